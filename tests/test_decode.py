"""The right frame in every row, and skipping that changes no pixel: the matrix of small clips."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, read_number, steady_times, uneven_times

from extract import decode

RATES = {
    "24": Fraction(24),
    "25": Fraction(25),
    "29.97": Fraction(30000, 1001),
    "30": Fraction(30),
    "60": Fraction(60),
}
SAMPLING_RATES = (Fraction(1), Fraction(5, 2), Fraction(7))

# Structure of the groups of pictures, in x264's own words.
H264 = {
    "closed": "keyint=24:min-keyint=24:bframes=3:open-gop=0:scenecut=0",
    "open": "keyint=24:min-keyint=24:bframes=3:open-gop=1:scenecut=0",
    "pyramid": "keyint=48:bframes=5:b-adapt=0:b-pyramid=normal",
    "intra": "keyint=1",
    "one-group": "keyint=infinite:bframes=3",
    "no-b": "keyint=30:bframes=0",
    "interlaced": "keyint=24:bframes=3:interlaced=1",
    "refresh": "keyint=24:intra-refresh=1:bframes=2",
}
HEVC = {
    "closed": "keyint=24:min-keyint=24:open-gop=0:bframes=4",
    "open": "keyint=24:min-keyint=24:open-gop=1:bframes=4:scenecut=0",
    "short-open": "keyint=2:min-keyint=2:open-gop=1:bframes=1:b-adapt=0:scenecut=0",
    "layers": "keyint=24:open-gop=0:bframes=4:temporal-layers=3",
    "intra": "keyint=1",
}
OTHERS = {  # name: encoder, its options, containers
    "vp8": ("libvpx", {"deadline": "realtime", "g": "24"}, ["webm", "mkv"]),
    "vp8-altref": (
        "libvpx",
        {
            "deadline": "good",
            "cpu-used": "4",
            "g": "24",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
        },
        ["webm"],
    ),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "24"}, ["webm", "mp4"]),
    "vp9-altref": (
        "libvpx-vp9",
        {
            "deadline": "good",
            "cpu-used": "5",
            "g": "24",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
        },
        ["webm", "mkv", "mp4"],
    ),
    "av1": (
        "libsvtav1",
        {"preset": "8", "g": "24", "crf": "5", "svtav1-params": "lp=1"},
        ["mp4", "webm", "mkv"],
    ),
    "mpeg2-open": ("mpeg2video", {"bf": "2", "g": "12"}, ["mpg", "ts", "mkv", "mp4", "avi"]),
    "mpeg2-closed": (
        "mpeg2video",
        {"bf": "2", "g": "12", "flags": "+cgop", "sc_threshold": "1000000000"},
        ["mpg", "ts", "avi"],
    ),
    "mpeg1": ("mpeg1video", {"bf": "2", "g": "12"}, ["mpg", "mkv"]),
    "mpeg4-b": ("mpeg4", {"bf": "2", "g": "12"}, ["mp4", "mov", "mkv", "avi"]),
    "mpeg4-no-b": ("mpeg4", {"g": "12"}, ["mp4", "mov", "mkv", "avi"]),
}


ANY_TIMES = {"mp4", "mov", "mkv", "webm"}
FIXED_RATES = {"mpeg1video", "mpeg2video"}  # their headers know only a constant rate


def steady_clip(name: str, codec: str, rate: Fraction, options: dict[str, str]) -> Clip:
    return Clip(name, codec, steady_times(int(rate * 5 / 2) + 3, rate), rate, options)


def uneven_clip(name: str, codec: str, options: dict[str, str]) -> Clip:
    return Clip(name, codec, uneven_times(51), options=options, time_base=Fraction(1, 1000))


def h264_clips() -> Iterator[Clip]:
    for structure, parameters in H264.items():
        options = {"preset": "veryfast", "x264-params": parameters}
        for container in ("mp4", "mkv", "mov", "ts", "avi"):
            for label, rate in RATES.items():
                yield steady_clip(f"h264-{structure}-{label}.{container}", "libx264", rate, options)
            if container != "avi":  # which knows only a constant rate
                yield uneven_clip(f"h264-{structure}-uneven.{container}", "libx264", options)


def other_clips() -> Iterator[Clip]:
    for structure, parameters in HEVC.items():
        options = {"preset": "veryfast", "x265-params": f"{parameters}:log-level=none"}
        for container in ("mp4", "mkv", "mov", "ts"):
            name = f"hevc-{structure}"
            yield steady_clip(f"{name}-29.97.{container}", "libx265", RATES["29.97"], options)
            yield uneven_clip(f"{name}-uneven.{container}", "libx265", options)
        yield steady_clip(f"{name}-60.mp4", "libx265", RATES["60"], options)
    for name, (codec, options, containers) in OTHERS.items():
        for container in containers:
            yield steady_clip(f"{name}-25.{container}", codec, RATES["25"], options)
            yield steady_clip(f"{name}-29.97.{container}", codec, RATES["29.97"], options)
            if container in ANY_TIMES and codec not in FIXED_RATES:
                yield uneven_clip(f"{name}-uneven.{container}", codec, options)
        yield steady_clip(f"{name}-60.{containers[0]}", codec, RATES["60"], options)


def short_clips() -> Iterator[Clip]:
    """One frame, 0.4 s, whole seconds, whole seconds and a half."""
    options = {"preset": "veryfast", "x264-params": H264["closed"]}
    for frames in (1, 10, 25, 75, 88):
        for container in ("mp4", "mkv", "ts", "avi"):
            times = steady_times(frames, 25)
            yield Clip(f"h264-{frames}-frames.{container}", "libx264", times, options=options)


MATRIX = [*h264_clips(), *other_clips(), *short_clips()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(params=MATRIX, ids=lambda clip: clip.name)
def clip(request: pytest.FixtureRequest) -> Clip:
    found: Clip = request.param
    return found


def has_useless_times(clip: Clip) -> bool:
    """AVI keeps no times of presentation, and with B-frames the order in it is another."""
    return clip.suffix == "avi" and not clip.name.startswith(
        ("h264-no-b", "h264-intra", "mpeg4-no")
    )


def test_every_row_is_the_frame_on_display(clip: Clip, folder: Path) -> None:
    path = clip.build(folder)
    for fps in SAMPLING_RATES:
        sampled = decode.sample_frames(path, float(fps))
        expected = clip.rows(fps)
        assert [read_number(frame) for frame in sampled.frames] == expected
        assert sampled.frame_index.tolist() == expected
        shown = [float(clip.shown_seconds[i]) for i in expected]
        assert sampled.pts_seconds == pytest.approx(shown, abs=1e-9)
        assert sampled.corrupt_frames == 0


def test_skipping_and_seeking_give_the_pixels_of_full_sequential_decoding(
    clip: Clip, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "SEEK_PACKETS", 1)  # the clips are short: seek wherever allowed
    path = clip.build(folder)
    video, full = decode.probe(path), decode.probe_by_decoding(path)
    assert (video.packets is None) == has_useless_times(clip)
    np.testing.assert_allclose(video.timeline.pts_seconds, full.timeline.pts_seconds, atol=1e-9)
    frames = list(decode.iter_frames(full, range(len(full.timeline))))
    assert [read_number(frame) for frame in frames] == list(range(len(clip.times)))
    some = np.random.default_rng(0).permutation(len(frames))
    for wanted in (some[:2], some[2:5], some[5:20], some[:1], some):
        indices = np.sort(wanted)
        got = list(decode.iter_frames(video, indices))
        assert len(got) == len(indices)
        assert all(np.array_equal(frames[i], frame) for i, frame in zip(indices, got, strict=True))


def test_duration_is_the_last_time_plus_the_last_frames_own_duration(folder: Path) -> None:
    for clip in (clip for clip in MATRIX if "uneven" not in clip.name):
        found = decode.probe(clip.build(folder)).timeline.duration_seconds
        assert found == pytest.approx(float(clip.duration_seconds), abs=1.1e-3), clip.name
