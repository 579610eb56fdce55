"""Key frames are those that the bitstream tells, whatever the container flags."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, read_number, steady_times

from extract import decode
from extract.bitstream import Bitstream

GROUP = 12
PLAIN = {"g": str(GROUP), "sc_threshold": "1000000000"}
X264 = {"preset": "veryfast", "x264-params": f"keyint={GROUP}:min-keyint={GROUP}:bframes=0"}
X265 = {
    "preset": "veryfast",
    "x265-params": f"keyint={GROUP}:min-keyint={GROUP}:bframes=0:log-level=none",
}
VPX = {"deadline": "realtime", "cpu-used": "8", "g": str(GROUP)}
SVT = {"preset": "10", "g": str(GROUP), "svtav1-params": "lp=1"}

# Encoder, its options, container; every twelfth frame is a key frame.
STREAMS = [
    ("libx264", X264, "mp4"),
    ("libx264", X264, "ts"),
    ("libx265", X265, "mp4"),
    ("libx265", X265, "ts"),
    ("libvpx", VPX, "webm"),
    ("libvpx-vp9", VPX, "webm"),
    ("libsvtav1", SVT, "mp4"),
    ("mpeg1video", PLAIN, "mpg"),
    ("mpeg2video", PLAIN, "mkv"),
    ("mpeg4", PLAIN, "mp4"),
    ("msmpeg4", PLAIN, "avi"),
    ("msmpeg4v2", PLAIN, "avi"),
    ("wmv1", PLAIN, "asf"),
    ("wmv2", PLAIN, "asf"),
    ("flv", PLAIN, "flv"),
    ("h263p", PLAIN, "avi"),
    ("ffv1", {"g": str(GROUP)}, "mkv"),
]


def make(name: str, codec: str, options: dict[str, str]) -> Clip:
    """60 frames at 25 fps of a size that does for every codec."""
    pix_fmt = {"svq1": "yuv410p", "rpza": "rgb555le"}.get(codec, "yuv420p")
    times = steady_times(60, 25)
    return Clip(name, codec, times, options=options, pix_fmt=pix_fmt, width=128, height=96)


def bits(text: str) -> memoryview:
    """Bytes of groups of binary digits, zeros at the end."""
    digits = text.replace(" ", "")
    return memoryview(int(digits.ljust(128, "0"), 2).to_bytes(16, "big"))


@pytest.mark.parametrize(
    ("codec", "options", "container"), STREAMS, ids=[f"{s[0]}-{s[2]}" for s in STREAMS]
)
def test_every_twelfth_packet_starts_afresh(
    codec: str, options: dict[str, str], container: str, tmp_path: Path
) -> None:
    packets = decode.probe(make(f"clip.{container}", codec, options).build(tmp_path)).packets
    assert packets is not None
    assert [i for i, clean in enumerate(packets.clean_key) if clean] == [0, 12, 24, 36, 48]


@pytest.mark.parametrize(
    ("digits", "key"),
    [
        # Start code 22, time 8, PTYPE: "10", 3 flags, source format 3, inter 1.
        ("0000000000000000100000 00000001 10 000 010 0", True),
        ("0000000000000000100000 00000001 10 000 010 1", False),
        # Source format 7: UFEP 3, with 001 OPPTYPE 18 bits, then the type in 3 bits.
        ("0000000000000000100000 00000001 10 000 111 001 110000000000001000 000", True),
        ("0000000000000000100000 00000001 10 000 111 001 110000000000001000 001", False),
        ("0000000000000000100000 00000001 10 000 111 000 000", True),
        ("0000000000000000100000 00000001 10 000 111 000 001", False),
        ("1111", False),
    ],
)
def test_h263_headers_are_read_bit_by_bit(digits: str, key: bool) -> None:
    assert Bitstream("h263", b"", intra_only=False).starts_afresh(bits(digits)) is key


@pytest.mark.parametrize(
    ("digits", "key"),
    [
        ("10 00 0 0 1 0", True),  # marker, profile, show_existing, inter
        ("10 00 0 1 1 0", False),
        ("10 00 1 0 0 0", False),
        ("10 11 0 0 0 1", True),  # profile 3 has a reserved bit
        ("10 11 0 0 1 1", False),
    ],
)
def test_vp9_headers_are_read_bit_by_bit(digits: str, key: bool) -> None:
    assert Bitstream("vp9", b"", intra_only=False).starts_afresh(bits(digits)) is key


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "mpeg4", "mpeg2video", "theora"])
@pytest.mark.parametrize("data", [b"\0", b"\0\0\1", b"\0\0\1\xb6", b"\xff" * 40, b"\x0a"])
def test_what_cannot_be_read_starts_nothing(codec: str, data: bytes) -> None:
    assert not Bitstream(codec, b"", intra_only=False).starts_afresh(memoryview(data))


def without_sync_samples(path: Path) -> None:
    """The table of key frames goes: each packet counts as one then, says ISO 14496-12 8.6.2."""
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))


def without_index(path: Path) -> None:
    """An AVI cut before its index, as an ended recording leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"idx1")])


def nothing(path: Path) -> None:
    """Its muxer flags every packet as it is."""


B_FRAMES = {**PLAIN, "bf": "2"}
FLAGGED_THROUGHOUT = [
    ("h264.mp4", "libx264", X264, without_sync_samples),
    ("hevc.mp4", "libx265", X265, without_sync_samples),
    ("mpeg4.mp4", "mpeg4", PLAIN, without_sync_samples),
    ("mpeg4.mov", "mpeg4", PLAIN, without_sync_samples),
    ("mpeg4-b.mp4", "mpeg4", B_FRAMES, without_sync_samples),
    ("mpeg2.mp4", "mpeg2video", B_FRAMES, without_sync_samples),
    ("vp9.mp4", "libvpx-vp9", VPX, without_sync_samples),
    ("msmpeg4.avi", "msmpeg4", PLAIN, without_index),
    ("msmpeg4v2.avi", "msmpeg4v2", PLAIN, without_index),
    ("wmv1.avi", "wmv1", PLAIN, without_index),
    ("wmv2.avi", "wmv2", PLAIN, without_index),
    ("flv.avi", "flv", PLAIN, without_index),
    ("mpeg4.avi", "mpeg4", PLAIN, without_index),
    ("h263p.avi", "h263p", PLAIN, without_index),
    ("h263p.avi", "h263p", PLAIN, nothing),
    ("svq1.mov", "svq1", PLAIN, without_sync_samples),  # not read: all of it is decoded
    ("rpza.mov", "rpza", PLAIN, nothing),
]


@pytest.mark.parametrize(
    ("name", "codec", "options", "harm"),
    FLAGGED_THROUGHOUT,
    ids=[f"{name}-{harm.__name__}" for name, _, _, harm in FLAGGED_THROUGHOUT],
)
def test_a_container_that_flags_every_packet_costs_no_right_pixel(
    name: str, codec: str, options: dict[str, str], harm: Callable[[Path], None], tmp_path: Path
) -> None:
    clip = make(name, codec, options)
    path = clip.build(tmp_path)
    harm(path)
    for fps in (Fraction(5, 2), Fraction(7), Fraction(1)):
        sampled = decode.sample_frames(path, float(fps))
        assert [read_number(frame) for frame in sampled.frames] == clip.rows(fps)
    full = decode.probe_by_decoding(path)
    wanted = [5, 13, 40, 59]
    got = decode.iter_frames(decode.probe(path), wanted)
    for ours, theirs in zip(got, decode.iter_frames(full, wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)
