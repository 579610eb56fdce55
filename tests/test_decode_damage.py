"""Damaged files: what can be decoded is used, what the codec flags is counted or refused."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import Clip, read_number, steady_times
from damage import flip_bits

from extract import decode

OPTIONS = {
    "libx264": {"preset": "veryfast", "x264-params": "keyint=24:min-keyint=24:bframes=2"},
    "mpeg4": {"g": "12"},
}


def make(name: str, codec: str, folder: Path) -> Path:
    return Clip(name, codec, steady_times(75, 25), options=OPTIONS[codec]).build(folder)


def make_with_index_in_front(folder: Path) -> Path:
    clip = Clip("front.mp4", "libx264", steady_times(75, 25), options=OPTIONS["libx264"])
    path = folder / clip.name
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        clip.encode_into(container, clip.add_stream(container))
    return path


@pytest.mark.parametrize("codec", OPTIONS)
@pytest.mark.parametrize("container", ["mkv", "ts"])
def test_a_truncated_file_gives_the_frames_it_still_has(
    container: str, codec: str, tmp_path: Path
) -> None:
    path = make(f"short.{container}", codec, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    sampled = decode.sample_frames(path, 5)
    found = [read_number(frame) for frame in sampled.frames]
    assert found == [5 * k for k in range(len(found))]
    assert 5 <= len(found) < 15
    assert sampled.duration_seconds < 3


def test_a_truncated_mp4_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    path = make_with_index_in_front(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    sampled = decode.sample_frames(path, 5)
    whole = [read_number(frame) for frame in sampled.frames[:-1]]
    assert whole == [5 * k for k in range(len(whole))]
    assert 5 <= len(whole) < 15
    assert sampled.corrupt_frames >= 1  # the last packet is cut
    with pytest.raises(decode.DecodeError, match=r"[1-9]\d* corrupt frames"):
        decode.sample_frames(path, on_corrupt="fail")


def test_an_mp4_whose_index_is_missing_is_an_error(tmp_path: Path) -> None:
    path = make("unfinished.mp4", "libx264", tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])
    with pytest.raises(decode.DecodeError, match=r"unfinished\.mp4: .*truncated"):
        decode.probe(path)


def test_an_mkv_without_cues_is_whole(tmp_path: Path) -> None:
    path = make("plain.mkv", "libx264", tmp_path)
    content = path.read_bytes()
    cues = content.rindex(b"\x1c\x53\xbb\x6b")
    path.write_bytes(content[:cues])
    sampled = decode.sample_frames(path, 5)
    assert [read_number(frame) for frame in sampled.frames] == [5 * k for k in range(15)]
    assert sampled.corrupt_frames == 0


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "avi", "mov"])
@pytest.mark.parametrize("filler", ["noise", "zeros"])
def test_a_garbage_tail_changes_nothing(container: str, filler: str, tmp_path: Path) -> None:
    path = make(f"tail.{container}", "libx264", tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    with path.open("ab") as file:
        file.write(noise if filler == "noise" else bytes(5000))
    sampled = decode.sample_frames(path, 5)
    assert [read_number(frame) for frame in sampled.frames] == [5 * k for k in range(15)]


@pytest.mark.parametrize("codec", OPTIONS)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_flipped_bits_are_counted_and_rows_still_come(
    container: str, codec: str, tmp_path: Path
) -> None:
    path = make(f"flipped.{container}", codec, tmp_path)
    flip_bits(path, first=0.4, last=0.6, count=30)
    sampled = decode.sample_frames(path, 5)
    assert sampled.corrupt_frames > 0
    before = [read_number(frame) for frame in sampled.frames[:4]]
    assert before == [0, 5, 10, 15]
    assert len(sampled.frames) > len(before)
    assert (np.diff(sampled.frame_index) >= 0).all()


@pytest.mark.parametrize("codec", OPTIONS)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_flipped_bits_fail_where_damage_may_not_be_kept(
    container: str, codec: str, tmp_path: Path
) -> None:
    path = make(f"flipped.{container}", codec, tmp_path)
    whole = decode.sample_frames(path, 25, on_corrupt="fail")
    assert len(whole.frames) == 75
    flip_bits(path, first=0.4, last=0.6, count=30)
    with pytest.raises(decode.DecodeError, match=rf"flipped\.{container}: [1-9]\d* corrupt frames"):
        decode.sample_frames(path, 25, on_corrupt="fail")


@pytest.mark.parametrize("codec", OPTIONS)
def test_lost_packets_of_a_broadcast_are_counted(codec: str, tmp_path: Path) -> None:
    path = make("lossy.ts", codec, tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2 // 188 * 188
    path.write_bytes(content[:middle] + content[middle + 6 * 188 :])
    assert decode.sample_frames(path, 5).corrupt_frames > 0
    with pytest.raises(decode.DecodeError, match="corrupt frames"):
        decode.sample_frames(path, 5, on_corrupt="fail")


@pytest.mark.parametrize("codec", OPTIONS)
def test_a_broadcast_cut_at_its_head_starts_with_the_first_whole_frame(
    codec: str, tmp_path: Path
) -> None:
    path = make("headless.ts", codec, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 3 // 188 * 188 :])
    sampled = decode.sample_frames(path, 5)
    whole = [read_number(frame) for frame in sampled.frames]
    assert whole[0] > 12
    assert whole == [whole[0] + 5 * k for k in range(len(whole))]
    assert whole[-1] >= 70


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"not a video", bytes(range(256)) * 20])
def test_what_is_no_video_is_an_error_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nothing.mp4"
    path.write_bytes(content)
    with pytest.raises(decode.DecodeError, match=r"nothing\.mp4: not a readable video"):
        decode.sample_frames(path)


def test_a_missing_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(decode.DecodeError, match="No such file"):
        decode.sample_frames(tmp_path / "absent.mp4")


def test_an_unknown_way_with_damage_is_refused() -> None:
    with pytest.raises(ValueError, match="keep, fail"):
        decode.sample_frames("any.mp4", on_corrupt="ignore")
