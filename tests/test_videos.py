"""Sources to videos with ids."""

import os
import tracemalloc
from pathlib import Path

import pytest

from extract.videos import VideoListError, find_videos, read_labelled_ids


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
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(videos) == 100_000
    assert peak_bytes < 1500 * 100_000
