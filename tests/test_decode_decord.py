"""decord is exact where it is let, and refused with the reason elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, read_number
from test_decode import MATRIX, folder  # noqa: F401  a fixture
from test_decode_cases import TURNS, h264, length_of_tick, patch, patch_box

from extract import decode

pytest.importorskip("decord")

# Wide enough that decord gives three channels: it gives four to pictures of 96 px.
WIDE = [replace(clip, name=f"wide-{clip.name}", width=128) for clip in MATRIX]
PROVED = [
    clip
    for clip in WIDE
    if clip.name.startswith(
        ("wide-h264-closed", "wide-h264-pyramid", "wide-h264-one", "wide-h264-no")
    )
    and clip.suffix in ("mp4", "mkv", "mov")
]
REFUSED = [
    clip
    for clip in WIDE
    if clip.suffix in ("avi", "ts", "mpg")
    or not clip.codec.endswith("264")
    or clip.name.startswith(("wide-h264-open", "wide-h264-refresh"))
]


@pytest.mark.parametrize("clip", PROVED[::2], ids=lambda clip: clip.name)
def test_decord_gives_the_frames_of_pyav_where_the_packets_prove_it(
    clip: Clip,
    folder: Path,  # noqa: F811
) -> None:
    path = clip.build(folder)
    theirs, ours = (decode.sample_frames(path, 7, decoder=name) for name in ("decord", "pyav"))
    assert theirs.decoder == "decord"
    np.testing.assert_array_equal(theirs.frames, ours.frames)
    np.testing.assert_array_equal(theirs.frame_index, ours.frame_index)


def test_decord_neither_skips_nor_seeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine both give other frames now and then ("Failed to skip frames")."""
    import decord

    def refuse(*arguments: object) -> None:
        raise AssertionError("decord was told to skip or seek")

    for name in ("get_batch", "__getitem__", "seek", "seek_accurate", "skip_frames"):
        monkeypatch.setattr(decord.VideoReader, name, refuse)
    clip = h264("long.mp4", 300, width=128)
    sampled = decode.sample_frames(clip.build(tmp_path), 0.5, decoder="decord")
    assert sampled.frame_index.tolist() == [0, 50, 100, 150, 200, 250]
    assert [read_number(frame) for frame in sampled.frames] == [0, 50, 100, 150, 200, 250]


@pytest.mark.parametrize("clip", REFUSED[::5], ids=lambda clip: clip.name)
def test_decord_is_refused_with_the_reason_where_nothing_proves_it(
    clip: Clip,
    folder: Path,  # noqa: F811
) -> None:
    path = clip.build(folder)
    with pytest.raises(decode.DecodeError, match=r"decord would not .*: .*; use the decoder pyav"):
        decode.sample_frames(path, decoder="decord")
    assert decode.sample_frames(path, decoder="auto").decoder == "pyav"


def test_decord_really_is_wrong_on_a_file_it_is_refused_on(tmp_path: Path) -> None:
    import decord

    clip = next(clip for clip in WIDE if clip.name == "wide-h264-open-25.mp4")
    reader = decord.VideoReader(str(clip.build(tmp_path)), num_threads=1)
    frames = reader.get_batch(range(0, len(reader), 25)).asnumpy()
    found = [read_number(frame) for frame in frames]
    assert found != [0, 25, 50], "decord has learned open groups: let it have them"


def test_decord_is_refused_on_an_edit_list_that_cuts(tmp_path: Path) -> None:
    path = h264("cut.mp4", width=128).build(tmp_path)
    content = path.read_bytes()
    start = content.index(b"elst") + 16
    media_time = int.from_bytes(content[start : start + 4], "big")
    cut = media_time + round(0.2 / length_of_tick(content, b"mdhd"))
    patch(path, start, cut.to_bytes(4, "big"))
    with pytest.raises(decode.DecodeError, match="edit list"):
        decode.sample_frames(path, decoder="decord")


def test_decord_is_refused_on_a_turned_picture(tmp_path: Path) -> None:
    path = h264("turned.mp4", width=128).build(tmp_path)
    a, b, c, d = TURNS[180]
    matrix = [a * 0x10000, b, 0, c, d * 0x10000, 0, 0, 0, 0x40000000]
    patch_box(
        path, b"tkhd", 40, b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    )
    with pytest.raises(decode.DecodeError, match="upright"):
        decode.sample_frames(path, decoder="decord")


@pytest.mark.parametrize(
    "changes", [{"width": 130, "pix_fmt": "yuv444p"}, {"pix_fmt": "yuv420p10le"}]
)
def test_decord_is_refused_on_pixels_it_converts_in_another_way(
    changes: dict[str, object], tmp_path: Path
) -> None:
    path = h264("layout.mp4", **changes).build(tmp_path)
    with pytest.raises(decode.DecodeError, match="converted in another way"):
        decode.sample_frames(path, decoder="decord")


def test_decord_is_refused_where_damage_may_not_be_kept(tmp_path: Path) -> None:
    path = h264("plain.mp4", width=128).build(tmp_path)
    with pytest.raises(decode.DecodeError, match="which frames are corrupt"):
        decode.sample_frames(path, decoder="decord", on_corrupt="fail")


def test_decord_is_refused_where_decoding_had_to_tell_the_times(tmp_path: Path) -> None:
    path = h264("plain.mp4", width=128).build(tmp_path)
    with pytest.raises(decode.DecodeError, match="do not tell when each frame is shown"):
        decode.probe_by_decoding(path, decode.DecodeOptions(decoder="decord"))


def test_decord_is_not_loaded_unless_it_is_used(tmp_path: Path) -> None:
    path = h264("plain.mp4", width=128).build(tmp_path)
    code = (
        "import sys; from extract.decode import sample_frames\n"
        f"sample_frames({str(path)!r}); assert 'decord' not in sys.modules\n"
        f"sample_frames({str(path)!r}, decoder='decord'); assert 'decord' in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=os.environ, timeout=60)


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, decord, pyav"):
        decode.sample_frames("any.mp4", decoder="opencv")
