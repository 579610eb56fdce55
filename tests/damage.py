"""Damaged files for tests, and a guard against tests that hang."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from clips import Clip, steady_times


def flip_bits(path: Path, *, first: float, last: float, count: int, seed: int = 0) -> None:
    """Flip single bits somewhere between two fractions of the file."""
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(int(first * len(content)), int(last * len(content)), count):
        content[position] ^= 1 << int(random.integers(8))
    path.write_bytes(content)


def damaged_clips(folder: Path, count: int) -> list[Path]:
    """Clips whose packets promise frames that do not come out: rows fail half-way, begin anew."""
    options = {"preset": "veryfast", "x264-params": "keyint=24:min-keyint=24:bframes=2"}
    whole = Clip("whole.mkv", "libx264", steady_times(75, 25), options=options)
    paths = [folder / f"damaged-{seed}.mkv" for seed in range(count)]
    for seed, path in enumerate(paths):
        path.write_bytes(whole.build(folder.parent).read_bytes())
        flip_bits(path, first=0.5, last=0.7, count=30, seed=seed)
    return paths


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail a test that would hang; give ten times what it needs."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
