"""Recognition of a live source, row by row, in constant memory.

The method's state is carried from row to row, so a row costs the coarse network once, and the fine
one where the gate opens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from extract.streams import StreamRow
from pipelines.live import LiveRun


@dataclass(frozen=True)
class StreamUpdate:
    """What is known after a row.

    Attributes:
        seconds: of the stream, at this row.
        gate_open: whether the fine network read this row.
        fine_share: of all rows so far.
        gflops: spent so far.
        lag_seconds: how far the answer is behind the stream, counted from the first row; negative
            where the source runs faster than real time, as files do.
    """

    seconds: float
    label: str
    score: float
    gate_open: bool
    fine_share: float
    gflops: float
    lag_seconds: float


@dataclass(frozen=True)
class StreamSummary:
    """A stream as a whole."""

    rows: int
    fine_rows: int
    stream_seconds: float
    wall_seconds: float
    gflops: float
    gflops_all_fine: float
    largest_lag_seconds: float
    resets: int


class LiveStream:
    """A run on the rows of one source.

    A method that was trained on videos of limited length knows no endless one: `reset_seconds`
    lets it forget what it saw whenever so much of the stream has passed; 0: never.
    """

    def __init__(self, live: LiveRun, *, reset_seconds: float = 0.0) -> None:
        """Raises: ValueError if the method cannot go on from the rows it has seen."""
        if not live.run.method.advances:
            raise ValueError(f"{live.run.info.config.method} needs all frames at once")
        self._live, self._reset_seconds = live, reset_seconds
        self._carried: Any = None
        self._since = 0.0  # stream seconds of the last reset
        self._rows = self._fine_rows = self._resets = 0
        self._started = 0.0
        self._seconds = self._lag_seconds = self._largest_lag_seconds = 0.0

    def follow(self, rows: Iterable[StreamRow]) -> Iterator[StreamUpdate]:
        for row in rows:
            yield self.take(row)

    def take(self, row: StreamRow) -> StreamUpdate:
        live, classes = self._live, self._live.run.info.classes
        if self._rows == 0:
            self._started = time.monotonic() - row.seconds
        if self._reset_seconds and row.seconds - self._since >= self._reset_seconds - 1e-6:
            self._carried, self._since = None, row.seconds
            self._resets += 1
        coarse_1D = live.coarse(row.pixels["coarse"][None]) if live.coarse else None
        batch = live.batch(coarse_1D, row.pixels["fine"][None])
        prediction, self._carried = live.run.method.advance(batch, self._carried)
        score, best = prediction.scores_BK[0].max(dim=0)
        gate_open = bool(prediction.used_N[0])
        self._rows, self._fine_rows = self._rows + 1, self._fine_rows + gate_open
        self._seconds = row.seconds
        lag_seconds = time.monotonic() - self._started - row.seconds
        self._largest_lag_seconds = max(self._largest_lag_seconds, lag_seconds)
        return StreamUpdate(
            seconds=row.seconds,
            label=classes[int(best)],
            score=float(score),
            gate_open=gate_open,
            fine_share=self._fine_rows / self._rows,
            gflops=self._gflops(self._fine_rows),
            lag_seconds=lag_seconds,
        )

    def summary(self) -> StreamSummary:
        return StreamSummary(
            rows=self._rows,
            fine_rows=self._fine_rows,
            stream_seconds=self._seconds,
            wall_seconds=time.monotonic() - self._started if self._rows else 0.0,
            gflops=self._gflops(self._fine_rows),
            gflops_all_fine=self._gflops(self._rows),
            largest_lag_seconds=self._largest_lag_seconds,
            resets=self._resets,
        )

    def _gflops(self, fine_rows: int) -> float:
        """So far, the classifier at every row included."""
        if self._rows == 0:
            return 0.0
        classifier = self._live.run.method.head_flops().per_video / 1e9
        return self._live.cost(self._rows, fine_rows).total + (self._rows - 1) * classifier
