"""Sources to videos with ids."""

import os
import tracemalloc
from contextlib import suppress
from pathlib import Path

import av
import pytest

from extract.decode import DEMUXERS
from extract.videos import SUFFIXES, VideoListError, find_videos, read_labelled_ids


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ids_are_relative_paths_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "deep" / "er" / "b.v2.MKV")
    touch(tmp_path / "notes.txt")
    assert [v.id for v in find_videos([tmp_path])] == ["a", "deep/er/b.v2"]


@pytest.mark.parametrize(
    "name",
    ["with space", "quo'te\"s", "new\nline", "ünïcode 视频", "-dash", "http:evil", "%d", "a;b&c"],
)
def test_odd_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    touch(tmp_path / f"{name}.mp4")
    (video,) = find_videos([tmp_path])
    assert video.id == name
    assert video.path.is_file()


def test_a_name_that_is_not_utf8_is_listed_in_a_printable_form(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xc3\xa4.mp4", "w"):
        pass
    touch(tmp_path / "good.mp4")
    odd, good = find_videos([tmp_path])
    assert (odd.id, good.id) == ("\\xffä", "good")
    assert odd.path.is_file()


# FFmpeg's own lists hold sound, pictures and what other programs use too.
NO_VIDEO = {".avif", ".heic", ".heif", ".ism", ".isma", ".m4a", ".m4b", ".mka", ".mks", ".psp",
            ".ra", ".wma"}  # fmt: skip


def test_every_suffix_that_ffmpeg_knows_for_an_allowed_container_is_found() -> None:
    known = set()
    for name in DEMUXERS.split(","):
        for mode in ("r", "w"):
            with suppress(ValueError):  # it can only read or only write this one
                known |= {f".{e}" for e in av.format.ContainerFormat(name, mode).extensions}
    assert {".mp4", ".h264", ".y4m"} < known
    assert known - NO_VIDEO - SUFFIXES == set()
    assert not NO_VIDEO & SUFFIXES


def test_other_names_of_the_same_containers_are_found(tmp_path: Path) -> None:
    names = ["a.qt", "b.divx", "c.m2v", "d.m1v", "e.mpe", "f.f4v", "g.3G2", "h.vob", "i.ogm"]
    for name in names:
        touch(tmp_path / name)
    assert [video.path.name for video in find_videos([tmp_path])] == names


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    for name in ("a.mp4", "._a.mp4", "sub/._b.MKV", "sub/notes.txt", "noend", ".mp4"):
        touch(tmp_path / name)
    skipped: list[str] = []
    (video,) = find_videos([tmp_path], on_skipped=skipped.append)
    assert video.id == "a"
    assert sorted(skipped) == ["._a.mp4", "._b.MKV", ".mp4", "noend", "notes.txt"]


def test_two_files_with_one_id_are_both_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "a.mkv")
    with pytest.raises(VideoListError, match=r"a\.mkv and .*a\.mp4"):
        find_videos([tmp_path])


def test_one_file_given_twice_is_one_video(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4")
    assert len(find_videos([tmp_path, path, tmp_path / "." / "a.mp4"])) == 1


def test_symbolic_link_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "sub" / "a.mp4")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert [v.id for v in find_videos([tmp_path])] == ["sub/a"]


def test_a_list_names_one_path_a_line(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.mp4")
    touch(tmp_path / "b.mp4")
    (tmp_path / "list.txt").write_text("x/a.mp4\n\nb.mp4\n")
    assert [v.id for v in find_videos([tmp_path / "list.txt"])] == ["b", "x/a"]


def test_a_csv_may_name_the_ids(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.mp4")
    touch(tmp_path / "b.mp4")
    (tmp_path / "list.csv").write_text("video_id,path\nfirst,x/a.mp4\n,b.mp4\n")
    assert [v.id for v in find_videos([tmp_path / "list.csv"])] == ["b", "first"]


def test_a_list_with_a_missing_file_names_list_and_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.mp4\n")
    with pytest.raises(VideoListError, match=r"list\.txt: lists 'gone\.mp4'"):
        find_videos([tmp_path / "list.txt"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "x" * 300, "there is no file"),
        ("l.txt", "a\0b", "there is no file"),
        ("l.csv", f"path\n{'x' * 300}\n", "there is no file"),
        ("l.csv", "path\na\0b\n", "there is no file"),
        ("l.csv", "video_id,path\na\0b,a.mp4\n", "cannot be an id: it has a NUL"),
    ],
)
def test_a_list_of_what_cannot_be_a_name_is_a_clear_error(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoListError, match=rf"{name}: .*{message}"):
        find_videos([tmp_path / name])


def test_an_argument_too_long_for_a_name_is_a_clear_error() -> None:
    with pytest.raises(VideoListError, match="no such file or folder"):
        find_videos(["y" * 300])


def test_a_listed_name_may_hold_a_line_separator(tmp_path: Path) -> None:
    touch(tmp_path / "a\u2028b.mp4")
    (tmp_path / "l.txt").write_bytes("a\u2028b.mp4\r\n".encode())
    assert [video.id for video in find_videos([tmp_path / "l.txt"])] == ["a\u2028b"]


def test_a_csv_without_the_column_says_what_it_expects(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\nx\n")
    with pytest.raises(VideoListError, match="expected a column named path"):
        find_videos([tmp_path / "list.csv"])


@pytest.mark.parametrize(
    ("name", "content"),
    [("l.txt", b"\xff\xfe\x00"), ("l.csv", b"path\n\xff\n"), ("l.csv", b"path,x\n,1\n")],
)
def test_a_list_that_is_none_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoListError, match=name):
        find_videos([tmp_path / name])


def test_a_listed_file_outside_the_lists_folder_is_known_by_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "a.mp4")
    (tmp_path / "l").mkdir()
    (tmp_path / "l/list.txt").write_text("../v/a.mp4\n")
    assert [v.id for v in find_videos([tmp_path / "l/list.txt"])] == ["a"]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoListError, match="no such file or folder"):
        find_videos([tmp_path / "gone"])


def test_labelled_ids_come_from_the_column(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("video_id,label,split\na,x,train\nb,y|z,val\n")
    assert read_labelled_ids(tmp_path / "labels.csv") == ["a", "b"]
    (tmp_path / "bad.csv").write_text("id,label\na,x\n")
    with pytest.raises(VideoListError, match="expected a column named video_id"):
        read_labelled_ids(tmp_path / "bad.csv")


def test_a_folder_of_100_000_files_is_scanned_in_flat_memory(tmp_path: Path) -> None:
    for i in range(100_000):
        os.close(os.open(tmp_path / f"{i:06d}.mp4", os.O_CREAT))
    count = 0

    def found() -> None:
        nonlocal count
        count += 1

    tracemalloc.start()
    videos = find_videos([tmp_path], on_found=found)
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(videos) == 100_000
    assert kept_bytes < 1000 * 100_000  # two names and a path for each video
    assert peak_bytes - kept_bytes < 50 << 20
