"""Small clips whose pixels carry the frame's number, encoded with PyAV.

Blocks of 16 × 16 px, black or white, stand for the bits of the number and survive lossy codecs;
a moving ramp beside them makes every frame depend on those before it. What a clip should show
when is arithmetic on the times handed to the encoder, rounded to the ticks its container keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

BLOCK_PX = 16
BITS = 10
WIDTH_PX, HEIGHT_PX = 96, 64

# Ticks per second that a container keeps; None: whatever the encoder's time base is.
CONTAINER_TICKS = {"mkv": 1000, "webm": 1000, "ts": 90_000, "mpg": 90_000}
MUXERS = {"mpg": "vob"}


@cache
def draw_number(number: int, width: int = WIDTH_PX, height: int = HEIGHT_PX) -> np.ndarray:
    """(H, W) uint8: a moving ramp, and over it the bits of `number`, each beside its inverse."""
    y, x = np.mgrid[:height, :width]
    picture = ((3 * x + 2 * y + 7 * number) % 160 + 40).astype(np.uint8)
    for bit, (top, left) in enumerate(_blocks()):
        lit = bool(number >> (bit // 2) & 1) ^ bool(bit % 2)
        picture[top : top + BLOCK_PX, left : left + BLOCK_PX] = 255 if lit else 0
    return picture


@cache
def draw_frame(number: int, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(draw_number(number, width, height), format="gray")
    return _reformatter.reformat(frame, format=pix_fmt, threads=1)


_reformatter = VideoReformatter()


def read_number(picture: np.ndarray) -> int:
    """The number in an upright (H, W, 3) frame; ValueError where the blocks contradict."""
    tops, lefts = np.array(_blocks()).T
    middle = BLOCK_PX // 2
    means = picture[tops + middle, lefts + middle].mean(axis=1)
    lit, inverse = means[::2] > 128, means[1::2] > 128
    if (lit == inverse).any():
        raise ValueError("no number in this picture")
    return int(sum(1 << bit for bit in range(BITS) if lit[bit]))


def _blocks() -> list[tuple[int, int]]:
    """Top left corners of 2 × BITS blocks, in columns: the same for every size of picture."""
    rows = HEIGHT_PX // BLOCK_PX
    return [(i % rows * BLOCK_PX, i // rows * BLOCK_PX) for i in range(2 * BITS)]


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip: what is encoded how, and what must come out.

    Attributes:
        name: file name; its suffix chooses the container.
        times: when each frame is shown, in seconds; frame i carries the number i.
        last_duration: how long the last frame is shown, in seconds.
    """

    name: str
    codec: str
    times: tuple[Fraction, ...]
    rate: Fraction = Fraction(25)
    options: Mapping[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    width: int = WIDTH_PX
    height: int = HEIGHT_PX
    time_base: Fraction | None = None  # one tick per frame where None

    def __post_init__(self) -> None:
        assert len(self.times) <= 1 << BITS

    @property
    def suffix(self) -> str:
        return self.name.rpartition(".")[2]

    @cached_property
    def shown_seconds(self) -> list[Fraction]:
        """When the container says each frame is shown, the first at 0."""
        ticks = CONTAINER_TICKS.get(self.suffix)
        if ticks is None:
            return [t - self.times[0] for t in self.times]
        stamps = [Fraction(int(t * ticks + Fraction(1, 2)), ticks) for t in self.times]
        return [t - stamps[0] for t in stamps]

    @property
    def duration_seconds(self) -> Fraction:
        return self.shown_seconds[-1] + 1 / self.rate

    def rows(self, fps: Fraction) -> list[int]:
        """The frame on display at each k / fps: a plain loop over the definition."""
        return rows_by_hand(self.shown_seconds, self.duration_seconds, fps)

    def build(self, folder: Path) -> Path:
        """The encoded file; made once per folder."""
        path = folder / self.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w", format=MUXERS.get(self.suffix)) as container:
                self.encode_into(container, self.add_stream(container))
        return path

    def add_stream(self, container: OutputContainer) -> VideoStream:
        stream = container.add_stream(self.codec, rate=self.rate, options=dict(self.options))
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pix_fmt
        stream.codec_context.time_base = self.time_base or 1 / self.rate
        return stream

    def encode_into(
        self, container: OutputContainer, stream: VideoStream, *, numbers_from: int = 0
    ) -> None:
        for frame in self.frames(self.time_base or 1 / self.rate, numbers_from):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    def frames(self, time_base: Fraction, numbers_from: int = 0) -> Iterator[av.VideoFrame]:
        for number, time in enumerate(self.times, start=numbers_from):
            frame = draw_frame(number, self.width, self.height, self.pix_fmt)
            ticks = time / time_base
            assert ticks.denominator == 1, f"{self.name}: {time} s is no multiple of {time_base} s"
            frame.pts, frame.time_base = int(ticks), time_base
            yield frame


def rows_by_hand(
    shown: Sequence[Fraction | float], duration: Fraction | float, fps: Fraction
) -> list[int]:
    """The last frame whose time is ≤ k / fps, for k = 0, 1, … while k / fps < duration."""
    rows: list[int] = []
    tolerance = Fraction(1, 10**6)
    k = 0
    while k == 0 or k / fps < duration - tolerance:
        time = k / fps + tolerance
        rows.append(max(i for i, t in enumerate(shown) if t <= time))
        k += 1
    return rows


def steady_times(
    frames: int, rate: Fraction | int, start: Fraction | int = 0
) -> tuple[Fraction, ...]:
    """Times of `frames` frames at a constant rate."""
    return tuple(start + Fraction(i) / rate for i in range(frames))


def uneven_times(frames: int) -> tuple[Fraction, ...]:
    """Times in whole milliseconds with gaps of 20, 40, 140, 33 and 17 ms in turn."""
    times = [Fraction(0)]
    while len(times) < frames:
        gap = (20, 40, 140, 33, 17)[len(times) % 5]
        times.append(times[-1] + Fraction(gap, 1000))
    return tuple(times)
