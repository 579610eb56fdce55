"""Which frame is on display at t = 0, 1, 2, … s: pure functions of a video's timeline.

Row k stands for t_k = k / fps seconds after the first displayed frame and holds the last frame
whose presentation time is ≤ t_k. Rows run while t_k < duration; there is always at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE_SECONDS = 1e-6

SNIPPET_FRAMES = 32
SNIPPET_SPAN_SECONDS = 64 / 30


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown, in order of presentation.

    Attributes:
        pts_seconds: (N,) float64, ascending, 0.0 for the first displayed frame.
        duration_seconds: last presentation time plus the last frame's own duration.
    """

    pts_seconds: np.ndarray
    duration_seconds: float

    def __post_init__(self) -> None:
        if self.pts_seconds.ndim != 1 or len(self.pts_seconds) == 0:
            raise ValueError(f"a timeline needs at least one frame, got {self.pts_seconds.shape}")
        if self.pts_seconds[0] != 0 or (np.diff(self.pts_seconds) <= 0).any():
            raise ValueError("presentation times must start at 0 and ascend")

    def __len__(self) -> int:
        return len(self.pts_seconds)

    def frame_at(self, times_seconds: np.ndarray) -> np.ndarray:
        """Index of the frame on display at each time; the ends are repeated beyond the ends."""
        index = np.searchsorted(self.pts_seconds, times_seconds + TOLERANCE_SECONDS, "right") - 1
        return np.maximum(index, 0).astype(np.int64)


def row_count(duration_seconds: float, fps: float) -> int:
    """How many k ≥ 0 have k / fps < duration, at least 1; within the tolerance a tie is no row.

    Raises: ValueError if fps is not positive.

    2.0 s at 1 fps give rows at 0 and 1: 2. 2.5 s give 0, 1 and 2: 3. 0.4 s give 1.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return max(1, int(np.ceil((duration_seconds - TOLERANCE_SECONDS) * fps)))


def row_frames(timeline: Timeline, fps: float) -> np.ndarray:
    """(T,) int64: the index of the frame on display at each t_k; a slow video repeats frames."""
    rows = row_count(timeline.duration_seconds, fps)
    return timeline.frame_at(np.arange(rows) / fps)


def evenly_spaced(rows: int, wanted: int) -> np.ndarray:
    """(≤ wanted,) int64: rows at the centres of `wanted` equal spans, or all of them if fewer."""
    if rows <= wanted:
        return np.arange(rows)
    return np.floor((np.arange(wanted) + 0.5) * rows / wanted).astype(np.int64)


def first_rows(rows: int, wanted: int) -> np.ndarray:
    """(≤ wanted,) int64: the first `wanted` rows, or all of them if fewer."""
    return np.arange(min(rows, wanted))


def snippet_frames(timeline: Timeline, fps: float) -> np.ndarray:
    """(T, 32) int64: the frames of a clip of 64/30 s centred on each t_k, evenly 1/15 s apart.

    Clip position i stands for t_k + (i − 15.5) / 15 seconds; ends of the video are repeated.
    """
    rows = row_count(timeline.duration_seconds, fps)
    spacing = SNIPPET_SPAN_SECONDS / SNIPPET_FRAMES
    offsets = (np.arange(SNIPPET_FRAMES) - (SNIPPET_FRAMES - 1) / 2) * spacing
    return timeline.frame_at(np.arange(rows)[:, None] / fps + offsets)
