"""Single cases of decoding: turned, cut, late, odd, deep and ill-timed videos; real clips too."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import Clip, draw_number, read_number, rows_by_hand, steady_times

from extract import decode

REAL_CLIPS = Path(__file__).parents[2] / "shared/data/clips"
GOLDEN = json.loads((Path(__file__).parent / "data/clips_ffprobe.json").read_text())["clips"]

CLOSED = {"preset": "veryfast", "x264-params": "keyint=12:min-keyint=12:bframes=2:scenecut=0"}


@pytest.fixture(autouse=True)
def seek_wherever_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These clips are short: as they are, no packet would be far enough to be sought."""
    monkeypatch.setattr(decode, "SEEK_PACKETS", 1)


def h264(name: str, frames: int = 60, **changes: Any) -> Clip:
    times = changes.pop("times", steady_times(frames, 25))
    return Clip(name, "libx264", times, options=CLOSED, **changes)


def numbers(sampled: decode.SampledFrames) -> list[int]:
    return [read_number(frame) for frame in sampled.frames]


# --- real clips ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_real_clips_have_ffprobes_frame_times(name: str) -> None:
    if not (REAL_CLIPS / name).exists():
        pytest.skip("needs ../shared/data/clips")
    golden = GOLDEN[name]
    tick = Fraction(golden["time_base"])
    shown = [(pts - golden["pts"][0]) * tick for pts in golden["pts"]]
    duration = shown[-1] + golden["last_duration"] * tick
    fps = Fraction(5, 2) if duration < 60 else Fraction(1, 4)
    described = decode.describe_samples(REAL_CLIPS / name, float(fps))
    expected = rows_by_hand(shown, duration, fps)
    assert described["frame_index"] == expected
    assert described["pts_seconds"] == pytest.approx([float(shown[i]) for i in expected])
    assert described["duration_seconds"] == pytest.approx(float(duration))
    assert described["corrupt_frames"] == 0
    assert sorted([described["width"], described["height"]]) == sorted(golden["size"])


@pytest.mark.parametrize("name", [name for name in GOLDEN if "1080p" not in name])
def test_skipping_keeps_the_pixels_of_real_clips(name: str) -> None:
    if not (REAL_CLIPS / name).exists():
        pytest.skip("needs ../shared/data/clips")
    full = decode.probe_by_decoding(REAL_CLIPS / name)
    wanted = decode.row_frames(full.timeline, 2.0)
    skipping = decode.iter_frames(decode.probe(REAL_CLIPS / name), wanted)
    for ours, theirs in zip(skipping, decode.iter_frames(full, wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- what a container says of its pictures -------------------------------------------------

# The matrix of a track header (a, b, c, d): x' = a x + c y, y' = b x + d y, y pointing down.
TURNS = {  # degrees clockwise
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@pytest.mark.parametrize("degrees", TURNS)
def test_rotation_is_applied(degrees: int, tmp_path: Path) -> None:
    path = h264("turned.mp4", width=128).build(tmp_path)
    upright = decode.sample_frames(path).frames
    a, b, c, d = (value * 0x10000 for value in TURNS[degrees])
    patch_box(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000))
    turned = decode.sample_frames(path).frames
    np.testing.assert_array_equal(turned, np.rot90(upright, -degrees // 90, axes=(1, 2)))
    assert turned.shape[1:3] == ((128, 64) if degrees != 180 else (64, 128))


def test_frames_that_an_edit_list_cuts_are_not_frames(tmp_path: Path) -> None:
    path = h264("cut.mp4").build(tmp_path)
    content = path.read_bytes()
    start = content.index(b"elst") + 12  # behind type, version and flags, number of entries
    length, media_time = struct.unpack(">Ii", content[start : start + 8])
    tick = length_of_tick(content, b"mdhd")
    # Cut the first 17 of 60 frames: 12 of the first group and 5 of the second.
    patch(path, start, struct.pack(">Ii", length, media_time + int(Fraction(17, 25) / tick)))
    sampled = decode.sample_frames(path, 5)
    assert numbers(sampled) == [17 + 5 * k for k in range(9)]
    assert sampled.frame_index.tolist() == [5 * k for k in range(9)]
    assert sampled.duration_seconds == pytest.approx(43 / 25)


def test_the_better_of_two_streams_is_used(tmp_path: Path) -> None:
    small = Clip("both.mp4", "libx264", steady_times(50, 25), options=CLOSED)
    large = Clip("both.mp4", "libx264", steady_times(50, 25), options=CLOSED, width=320, height=240)
    with av.open(str(tmp_path / "both.mp4"), "w") as container:
        streams = [clip.add_stream(container) for clip in (small, large)]
        for stream in streams:  # or the first alone counts as the default
            stream.disposition = type(stream.disposition).default
        for clip, stream, first in zip((small, large), streams, (0, 512), strict=True):
            clip.encode_into(container, stream, numbers_from=first)
    assert numbers(decode.sample_frames(tmp_path / "both.mp4")) == [512, 537]


def test_audio_alone_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        add_tone(container)
    with pytest.raises(decode.DecodeError, match=r"song\.mp4: no video stream"):
        decode.sample_frames(tmp_path / "song.mp4")


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
        picture.disposition = type(picture.disposition).attached_pic
        frame = av.VideoFrame.from_ndarray(draw_number(1), format="gray")
        packets = picture.encode(frame.reformat(format="yuvj420p")) + picture.encode(None)
        add_tone(container)
        container.mux(packets)
    with pytest.raises(decode.DecodeError, match="no video stream"):
        decode.probe(path)


# --- pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pix_fmt", "width", "height"),
    [
        ("yuv444p", 97, 67),
        ("yuv420p10le", 96, 64),
        ("yuv444p10le", 101, 65),
        ("yuv422p", 98, 65),
        ("yuvj420p", 96, 64),
        ("gray", 96, 64),
    ],
)
def test_every_layout_of_pixels_shows_the_right_frame(
    pix_fmt: str, width: int, height: int, tmp_path: Path
) -> None:
    clip = h264("layout.mp4", pix_fmt=pix_fmt, width=width, height=height)
    sampled = decode.sample_frames(clip.build(tmp_path), 7)
    assert sampled.frames.shape[1:] == (height, width, 3)
    assert numbers(sampled) == clip.rows(Fraction(7))


@pytest.mark.parametrize("colorspace", [1, 5], ids=["bt709", "bt601"])
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
def test_colours_follow_the_matrix_and_range_of_the_stream(
    colorspace: int, color_range: int, tmp_path: Path
) -> None:
    red, green, blue = 200, 60, 30
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[colorspace]
    y = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    offset, scale, chroma_scale = {1: (16, 219 / 255, 224 / 255), 2: (0, 1, 1)}[color_range]
    planes = [offset + scale * y, *(128 + chroma_scale * c for c in chroma)]

    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, planes, strict=True):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    with av.open(str(tmp_path / "colour.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for settings in (stream.codec_context, frame):
            settings.colorspace, settings.color_range = colorspace, color_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    pixels = decode.sample_frames(tmp_path / "colour.mp4").frames
    np.testing.assert_allclose(pixels, np.full((1, 64, 64, 3), (red, green, blue)), atol=3)


def test_a_change_of_size_keeps_every_frame_but_cannot_be_stacked(tmp_path: Path) -> None:
    first = h264("first.h264", 30).build(tmp_path)
    second = h264("second.h264", 30, width=160, height=128).build(tmp_path)
    path = tmp_path / "changing.h264"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    video = decode.probe(path)
    frames = list(decode.iter_frames(video, range(60)))
    assert [read_number(frame) for frame in frames] == [*range(30), *range(30)]
    assert [frame.shape[:2] for frame in frames] == [(64, 96)] * 30 + [(128, 160)] * 30
    with pytest.raises(decode.DecodeError, match="size changes"):
        decode.sample_frames(path, 1)


# --- times ---------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_a_late_start_is_row_zero(container: str, tmp_path: Path) -> None:
    clip = h264(f"late.{container}", times=steady_times(60, 25, start=Fraction(833, 25)))
    sampled = decode.sample_frames(clip.build(tmp_path), 7)
    assert numbers(sampled) == clip.rows(Fraction(7))
    assert sampled.pts_seconds[0] == 0
    assert sampled.duration_seconds == pytest.approx(2.4, abs=1e-3)


def test_negative_times_are_times(tmp_path: Path) -> None:
    clip = h264("early.nut", times=steady_times(60, 25, start=Fraction(-30, 25)))
    sampled = decode.sample_frames(clip.build(tmp_path), 7)
    assert numbers(sampled) == clip.rows(Fraction(7))


def test_two_frames_of_one_time_are_both_counted(tmp_path: Path) -> None:
    # Matroska keeps whole milliseconds: frames 10 and 11 are both written as 400 ms.
    times = [Fraction(i, 25) for i in range(60)]
    times[11] = times[10] + Fraction(1, 4000)
    clip = Clip(
        "twice.mkv", "mpeg4", tuple(times), options={"g": "12"}, time_base=Fraction(1, 4000)
    )
    sampled = decode.sample_frames(clip.build(tmp_path))
    assert sampled.frame_index.tolist() == numbers(sampled) == [0, 25, 50]
    full = decode.probe_by_decoding(tmp_path / "twice.mkv")
    assert len(full.timeline) == 60


def test_avi_with_b_frames_goes_by_order_and_average_rate(tmp_path: Path) -> None:
    options = {"bf": "2", "g": "12"}
    clip = Clip("ill-timed.avi", "mpeg4", steady_times(60, 25), options=options)
    sampled = decode.sample_frames(clip.build(tmp_path))
    assert sampled.frame_index.tolist() == numbers(sampled) == [0, 25, 50]
    assert sampled.pts_seconds == pytest.approx([0, 1, 2])


def test_a_recording_that_begins_to_count_again_goes_by_its_order(tmp_path: Path) -> None:
    """Two of 10 s, joined; the second counts from 5.02 s, so that their times interleave."""
    first = h264("first.flv", 250).build(tmp_path).read_bytes()
    times = steady_times(250, 25, start=Fraction(251, 50))
    second = h264("second.flv", times=times, time_base=Fraction(1, 100)).build(tmp_path)
    path = tmp_path / "joined.flv"
    path.write_bytes(
        first + second.read_bytes()[13:]
    )  # behind the header and the first back pointer
    sampled = decode.sample_frames(path)
    assert numbers(sampled) == 2 * list(range(0, 250, 25))
    assert sampled.frame_index.tolist() == list(range(0, 500, 25))
    assert sampled.duration_seconds == pytest.approx(20, abs=0.05)


def write_pictures(path: Path, ticks: list[int]) -> None:
    """A picture at each of these times in milliseconds, as they are."""
    picture = av.CodecContext.create("mjpeg", "w")
    picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
    picture.time_base = Fraction(1, 1000)
    frame = av.VideoFrame.from_ndarray(draw_number(1), format="gray").reformat(format="yuvj420p")
    (data,) = [bytes(packet) for packet in picture.encode(frame) + picture.encode(None)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick in ticks:
            packet = av.Packet(data)
            packet.pts = packet.dts = tick
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            container.mux(packet)


def test_times_that_a_float_cannot_tell_apart_are_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    write_pictures(path, [0, 1 << 56, (1 << 56) + 1])
    with pytest.raises(
        decode.DecodeError, match=r"late\.mkv: lasts 7205759403792\d\.\d s, more than"
    ):
        decode.probe(path)
    options = decode.DecodeOptions(max_duration_seconds=1e15)
    assert len(decode.probe(path, options).timeline) == 3


# --- work that is left out -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_far_frames_are_sought_where_key_frames_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Frames 0, 150 and 299 of 300 in groups of 10: at most a group and a half for each."""
    monkeypatch.undo()
    options = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2"}
    clip = Clip(f"long.{suffix}", "libx264", steady_times(300, 25), options=options)
    video = decode.probe(clip.build(tmp_path))
    read = 0

    def counting(*arguments: Any) -> Iterator[Any]:
        nonlocal read
        for packet in demux(*arguments):
            read += 1
            yield packet

    demux = decode._demux
    monkeypatch.setattr(decode, "_demux", counting)
    frames = list(decode.iter_frames(video, [0, 150, 299]))
    assert [read_number(frame) for frame in frames] == [0, 150, 299]
    assert (read < 50) == (suffix != "ts")


def test_a_seek_that_brings_another_packet_is_noticed(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2"}
    clip = Clip("long.mp4", "libx264", steady_times(300, 25), options=options)
    video = decode.probe(clip.build(tmp_path))
    assert video.packets is not None
    video.packets.dts[200] = video.packets.dts[100]
    with pytest.raises(decode.PacketsMislead):
        list(decode.iter_frames(video, [0, 200]))


def test_what_nobody_wants_is_not_decoded(tmp_path: Path) -> None:
    """Groups of 12 with 2 B-frames: I P B B P B B P B B P B in order of decoding."""
    video = decode.probe(h264("groups.mp4").build(tmp_path))
    assert video.packets is not None
    plan, restarts = decode.plan_packets(video.packets, video.pts[[0, 25]])
    assert plan[0] == decode.DECODE  # frame 0 begins group 0; the rest of the group is dropped
    assert plan[1:24] == [decode.DROP] * 23  # so is all of group 1
    assert plan[24] == decode.REFERENCE_ONLY  # frame 24, the key frame of group 2
    assert plan.count(decode.DECODE) == 2
    assert plan[36:] == [decode.DROP] * 24
    assert restarts & set(range(60)) == {12, 24, 36, 48}


def test_layers_in_time_forbid_skipping_by_nal_unit_type(tmp_path: Path) -> None:
    parameters = "keyint=24:bframes=4:log-level=none"
    layers = {}
    for count in (1, 3):
        options = {"preset": "veryfast", "x265-params": f"{parameters}:temporal-layers={count}"}
        name = f"layers-{count}.mp4"
        path = Clip(name, "libx265", steady_times(30, 25), options=options).build(tmp_path)
        packets = decode.probe(path).packets
        assert packets is not None
        layers[count] = packets.temporal_layers
    assert layers[1] == 1
    assert layers[3] == 3


# --- making files --------------------------------------------------------------------------


def patch(path: Path, position: int, replacement: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[position : position + len(replacement)] = replacement
    path.write_bytes(content)


def patch_box(path: Path, kind: bytes, offset: int, replacement: bytes) -> None:
    """Overwrite part of the first MP4 box of a kind, counted from behind its type."""
    patch(path, path.read_bytes().index(kind) + 4 + offset, replacement)


def length_of_tick(content: bytes, kind: bytes) -> Fraction:
    """Seconds per tick of a version 0 mdhd or mvhd box."""
    start = content.index(kind) + 4 + 12
    return Fraction(1, int.from_bytes(content[start : start + 4], "big"))


def add_tone(container: av.container.OutputContainer) -> None:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    samples = np.sin(np.arange(16000, dtype=np.float32) / 8)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
