"""failures.jsonl: every record is read again, whatever its name holds and whatever a crash left."""

import json
import shlex
from pathlib import Path

import pytest
from test_store import make_identity, make_video

from extract.failures import append_failure, open_failures, retry_command, write_retry_list
from extract.store import FeatureWriter, StoreError
from extract.videos import find_videos


def fail(out: Path, video_id: str, path: Path | None = None) -> None:
    path = path or Path("x.mp4")
    append_failure(out, video_id, path, stage="decode", error="no video", attempts=2)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\n", "\r", "\x0b", '"', "\\"])
def test_a_name_with_any_end_of_line_in_it_is_one_failure(tmp_path: Path, mark: str) -> None:
    fail(tmp_path, f"a{mark}b")
    fail(tmp_path, "c")
    assert [record["video_id"] for record in open_failures(tmp_path)] == sorted([f"a{mark}b", "c"])


@pytest.mark.parametrize(
    "cut", [b'{"video_id": "cut", "pa', b'{"video_id": "\xc3', b"\xff", b"{}\n"]
)
def test_what_a_crash_cut_short_swallows_no_record(tmp_path: Path, cut: bytes) -> None:
    fail(tmp_path, "before")
    with (tmp_path / "failures.jsonl").open("ab") as file:
        file.write(cut)
    fail(tmp_path, "after")
    assert [record["video_id"] for record in open_failures(tmp_path)] == ["after", "before"]


def test_a_record_is_one_line_for_readers_without_our_code(tmp_path: Path) -> None:
    for video_id in ("a", "ü\n"):
        fail(tmp_path, video_id)
    lines = (tmp_path / "failures.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["video_id"] for line in lines[:-1]] == ["a", "ü\n"]
    assert lines[-1] == b""


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "failures.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"failures\.jsonl: cannot be read"):
        open_failures(tmp_path)


@pytest.mark.parametrize("fps", [1.0, 0.33333333, 1 / 3, 29.97])
def test_the_retry_command_has_the_stores_own_fps(tmp_path: Path, fps: float) -> None:
    with FeatureWriter(tmp_path / "mobilenet_v2_112", make_identity(sample_fps=fps)) as writer:
        writer.add("a", make_video(1))
    command = retry_command(tmp_path, Path("retry.csv"))
    assert command is not None
    words = shlex.split(command)
    assert float(words[words.index("--fps") + 1]) == fps


def test_the_retry_list_keeps_ids_and_is_no_option(tmp_path: Path) -> None:
    names = ["-dash", "new\nline", "q\"uo'te", "u\u2028s", "c,omma", " space "]
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
        fail(tmp_path, f"id of {name}", tmp_path / f"{name}.mp4")
    assert write_retry_list(open_failures(tmp_path), tmp_path / "-retry.csv") == 0
    found = find_videos([tmp_path / "-retry.csv"])
    assert {video.id: video.path.name for video in found} == {
        f"id of {name}": f"{name}.mp4" for name in names
    }
    with FeatureWriter(tmp_path / "mobilenet_v2_112", make_identity()) as writer:
        writer.add("a", make_video(1))
    command = retry_command(tmp_path, Path("-retry.csv"))
    assert command is not None
    assert shlex.split(command)[2] == "./-retry.csv"
