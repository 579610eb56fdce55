"""Rendered, labelled clips for the demo and the smoke manifest: small, deterministic, honest H.264.

Six classes in three groups, 320 × 240 px at 10 to 25 fps:

    group    classes           what tells the class
    still    checks, sunset    any single frame; nothing moves
    moving   disc, rain        any single frame; the frames differ
    detail   card_plain,       a grey card, held up for two to four seconds of a park scene. It is
             card_printed      plain, or printed with 2 px checks of the same mean grey. Scaled down
                               for a 112 px backbone the print fades: the coarse features can tell
                               *that* a card is there, only the fine ones *which*.

Clip number k depends on the seed and on k alone: asking for more clips changes none of the others.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

WIDTH_PX, HEIGHT_PX = 320, 240
FRAME_RATES = (10, 12, 15, 25)
VAL_EVERY = 3  # every third clip of a class is for validation
CARD_PX = 112
PRINT_PX = 2
INK, PAPER = 20, 246  # of mean 133, the plain card's grey

Picture = np.ndarray  # (H, W, 3) uint8 RGB
Scene = Callable[[float], Picture]  # seconds since the start -> picture


@dataclass(frozen=True)
class Clip:
    """One clip to render; `number` and the seed determine every pixel."""

    number: int
    label: str
    split: str
    seed: int

    @property
    def video_id(self) -> str:
        return f"{self.label}/{self.label}_{self.number:03d}"


def plan_clips(count: int, *, seed: int) -> list[Clip]:
    """Clips 0 … count-1, the classes in turn."""
    labels = list(SCENES)
    return [
        Clip(
            number=number,
            label=labels[number % len(labels)],
            split="val" if number // len(labels) % VAL_EVERY == VAL_EVERY - 1 else "train",
            seed=seed,
        )
        for number in range(count)
    ]


def render_clips(
    folder: Path, count: int, *, seconds: tuple[float, float] = (8.0, 12.0), seed: int = 0
) -> Iterator[Clip]:
    """Write folder/LABEL/LABEL_NNN.mp4 one after another, and folder/labels.csv at the end.

    Args:
        seconds: shortest and longest clip.

    Yields: each clip when its file is complete.
    """
    clips = plan_clips(count, seed=seed)
    for clip in clips:
        _write_whole(folder / f"{clip.video_id}.mp4", _encode(clip, seconds))
        yield clip
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("video_id", "label", "split"))
    writer.writerows((clip.video_id, clip.label, clip.split) for clip in clips)
    _write_whole(folder / "labels.csv", text.getvalue().encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _encode(clip: Clip, seconds: tuple[float, float]) -> bytes:
    """The clip as an H.264 mp4, the same bytes every time: one thread for all, and without
    x264's macroblock tree, which gave other bytes for the same pictures once in a hundred clips.
    """
    import av

    random = np.random.default_rng((clip.seed, clip.number))
    rate = int(random.choice(FRAME_RATES))
    duration_seconds = random.uniform(*seconds)
    scene = SCENES[clip.label](random, duration_seconds)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.time_base = Fraction(1, rate)
        stream.options = {
            "preset": "veryfast",
            "crf": "20",
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        for index in range(max(1, round(duration_seconds * rate))):
            drawn = av.VideoFrame.from_ndarray(scene(index / rate), format="rgb24")
            frame = drawn.reformat(format="yuv420p", threads=1)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _tint(random: np.random.Generator, rgb: tuple[int, int, int], *, spread: int = 20) -> Picture:
    """(3,) uint8: a colour near `rgb`, another one for each clip."""
    return np.clip(np.array(rgb) + random.integers(-spread, spread + 1, 3), 0, 255).astype(np.uint8)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, (H, 1) and (1, W)."""
    return np.arange(HEIGHT_PX)[:, None], np.arange(WIDTH_PX)[None, :]


def _checks(random: np.random.Generator, _: float) -> Scene:
    """A still checkerboard."""
    row, column = _grid()
    size_px = int(random.integers(28, 44))
    dark, light = _tint(random, (60, 30, 90)), _tint(random, (225, 215, 90))
    picture = np.where(((row // size_px + column // size_px) % 2 == 0)[..., None], dark, light)
    return lambda _: picture


def _sunset(random: np.random.Generator, _: float) -> Scene:
    """A still gradient from red to yellow with a sun in it."""
    row, column = _grid()
    top, bottom = _tint(random, (150, 30, 60)), _tint(random, (250, 170, 60))
    share = (row / HEIGHT_PX)[..., None]
    picture = np.broadcast_to(top * (1 - share) + bottom * share, (HEIGHT_PX, WIDTH_PX, 3)).copy()
    sun = (row - 150) ** 2 + (column - random.integers(80, 240)) ** 2 < 32**2
    picture[sun] = (255, 240, 190)
    still = picture.astype(np.uint8)
    return lambda _: still


def _disc(random: np.random.Generator, _: float) -> Scene:
    """A disc that bounces between the edges of a blue field."""
    row, column = _grid()
    field, disc = _tint(random, (25, 60, 160)), _tint(random, (240, 120, 30))
    radius_px = int(random.integers(30, 45))
    start = random.uniform(0, 2, 2)
    speed = random.uniform(0.3, 0.6, 2)  # widths (and heights) per second

    def scene(seconds: float) -> Picture:
        share = np.abs((start + speed * seconds) % 2 - 1)
        y, x = radius_px + share * (np.array([HEIGHT_PX, WIDTH_PX]) - 2 * radius_px)
        return np.where(
            (((row - y) ** 2 + (column - x) ** 2) < radius_px**2)[..., None], disc, field
        )

    return scene


def _rain(random: np.random.Generator, _: float) -> Scene:
    """Light streaks that fall over a grey sky."""
    sky, streak = _tint(random, (95, 105, 115)), _tint(random, (190, 205, 220))
    columns = random.integers(0, WIDTH_PX - 2, 90)
    starts = random.uniform(0, HEIGHT_PX, 90)
    speeds_px = random.uniform(150, 260, 90)

    def scene(seconds: float) -> Picture:
        picture = np.broadcast_to(sky, (HEIGHT_PX, WIDTH_PX, 3)).copy()
        tops = ((starts + speeds_px * seconds) % HEIGHT_PX).astype(int)
        for top, column in zip(tops, columns, strict=True):
            picture[top : top + 22, column : column + 2] = streak
        return picture

    return scene


def _card(random: np.random.Generator, duration_seconds: float, *, card: Picture) -> Scene:
    """A park, in which a card is held up for a few seconds."""
    row, column = _grid()
    grass, sky = _tint(random, (60, 130, 60)), _tint(random, (140, 180, 220))
    park = np.where((row < 80 + 0 * column)[..., None], sky, grass)
    shown_seconds = min(random.uniform(2.0, 4.0), duration_seconds)
    first = random.uniform(0, duration_seconds - shown_seconds)
    top, left = random.integers(40, 110), random.integers(50, 150)
    with_card = park.copy()
    with_card[top : top + CARD_PX, left : left + CARD_PX] = card
    return lambda seconds: with_card if first <= seconds < first + shown_seconds else park


def _card_plain(random: np.random.Generator, duration_seconds: float) -> Scene:
    card = np.full((CARD_PX, CARD_PX, 3), (INK + PAPER) // 2, np.uint8)
    return _card(random, duration_seconds, card=card)


def _card_printed(random: np.random.Generator, duration_seconds: float) -> Scene:
    check = np.add.outer(np.arange(CARD_PX) // PRINT_PX, np.arange(CARD_PX) // PRINT_PX) % 2
    card = np.where(check == 0, INK, PAPER).astype(np.uint8)[..., None]
    return _card(random, duration_seconds, card=card)


SCENES: dict[str, Callable[[np.random.Generator, float], Scene]] = {
    "checks": _checks,
    "card_plain": _card_plain,
    "disc": _disc,
    "sunset": _sunset,
    "card_printed": _card_printed,
    "rain": _rain,
}
