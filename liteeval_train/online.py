"""Prediction while a video still runs: by a budget of fine frames, or by the share watched.

By budget a method sees the first frames, not evenly spaced ones, and predicts from what it saw
until it stopped. Two baselines use UNIFORM's frame classifier the same way:

    seq-k       mean score of the first K frames
    uniform-k   mean score of K of the frames up to where LITEEVAL made its K-th fine read

By share a method sees the frames that a whole evaluation sees, evenly spaced where a video has more
than max_frames, up to that share of the video. The whole video gives what a whole evaluation gives.

Shape letters: T frames, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from liteeval_train.data import Sample, VideoSet, evenly_spaced, first_rows
from liteeval_train.evaluate import (
    Trace,
    TrainedRun,
    cost_function,
    open_split,
    open_trained,
    summarise,
    trace_videos,
)
from liteeval_train.run import RunError, RunInfo, write_atomically

GATED = ("liteeval", "liteeval-rl")
STEPWISE = (*GATED, "lstm", "lstm+cf")
WATCHED_SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))


def evaluate_budgets(
    path: Path,
    budgets: Sequence[int],
    *,
    split: str = "val",
    reads_of: Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """One summary per budget, with the key `budget`.

    A run of UNIFORM gives seq-k, and with `reads_of` (a LITEEVAL run) uniform-k. Summaries go into
    RUN/evaluate_SPLIT_budgets.json, those of uniform-k into RUN/evaluate_SPLIT_uniform-k.json,
    beside those of other budgets, or of reads of other runs, that the same model has there.

    Raises: RunError if the run's method cannot predict before the end; if `reads_of` has no gate,
        was trained on other data, or this run has no use for it.
    """
    run = open_trained(path, device)
    if reads_of is not None:
        return _uniform_k(run, budgets, split, open_trained(reads_of, device))
    if run.info.config.method == "uniform":
        online = _Online.trace(run, split, run.info.config.max_frames, first_rows)
        chosen = [[_only(t, first_rows(len(t.used_T), k)) for t in online.traces] for k in budgets]
        about = {"method": "seq-k"}
    else:
        _require_stepwise(run)
        online = _Online.trace(run, split, run.method.max_frames, first_rows)
        chosen = [[_cut(t, stop_at_budget(t.used_T, k)) for t in online.traces] for k in budgets]
        about = {"method": run.info.config.method}
    curve = [
        online.summary(traces, {**about, "budget": budget})
        for budget, traces in zip(budgets, chosen, strict=True)
    ]
    _merge(run, split, "budgets", curve, ("budget",))
    return curve


def evaluate_watched(
    path: Path,
    *,
    split: str = "val",
    shares: Sequence[float] = WATCHED_SHARES,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """One summary per share of the video seen, with the key `watched`; the paper's Figure 3.

    Summaries go into RUN/evaluate_SPLIT_watched.json.
    Raises: RunError if the run's method cannot predict before the end.
    """
    run = open_trained(path, device)
    _require_stepwise(run)
    online = _Online.trace(run, split, run.method.max_frames, evenly_spaced)
    stores_rows = online.videos.pair.fine.rows
    curve = [
        online.summary(
            [
                _cut(t, stop_at_share(t.sample.rows, stores_rows(t.sample.video_id), share))
                for t in online.traces
            ],
            {"method": run.info.config.method, "watched": share},
        )
        for share in shares
    ]
    _merge(run, split, "watched", curve, ("watched",))
    return curve


def stop_at_budget(used_T: np.ndarray, budget: int) -> int:
    """The frame at which the budget's last fine frame was read, or the last frame."""
    reads = np.flatnonzero(used_T)
    return int(reads[budget - 1]) if len(reads) >= budget else len(used_T) - 1


def stop_at_share(rows_T: np.ndarray, rows: int, share: float) -> int:
    """Which of the frames seen is the last one in the first `share` of a video; at least the first.

    Args:
        rows_T: (T,) the rows of the store that are seen, ascending. rows: how many the video has.

    Share 0.25 of 8 rows are rows 0 and 1. Of rows 1, 3, 5, 7 seen, the first (0) is the last there.
    """
    watched = int(np.ceil(share * rows - 1e-9))
    return max(1, int(np.searchsorted(rows_T, watched))) - 1


def reads_mismatch(info: RunInfo, gated: RunInfo) -> str | None:
    """Why uniform-k cannot end where a run read finely; None if it can."""
    if gated.config.method not in GATED:
        return f"it is a run of {gated.config.method}, which has no gate"
    if gated.config.max_frames != info.config.max_frames:
        return f"max_frames is {gated.config.max_frames} there, {info.config.max_frames} here"
    lines = [
        f"{name} store: {line}"
        for name in ("coarse", "fine")
        for line in getattr(info, name).differences(getattr(gated, name))
    ]
    if info.labels_sha256 != gated.labels_sha256:
        lines.append(f"labels are {gated.labels_path} there, {info.labels_path} here")
    return lines[0] if lines else None


def _require_stepwise(run: TrainedRun) -> None:
    method = run.info.config.method
    if method not in STEPWISE:
        raise RunError(
            f"{run.folder.path}: {method} gives no prediction while a video runs; "
            f"methods that do: {', '.join(STEPWISE)}"
        )


@dataclass(frozen=True)
class _Online:
    """What a run did on the videos of a split, with scores after every frame."""

    run: TrainedRun
    videos: VideoSet
    traces: list[Trace]

    @classmethod
    def trace(
        cls,
        run: TrainedRun,
        split: str,
        max_frames: int,
        select: Callable[[int, int], np.ndarray],
    ) -> _Online:
        videos = open_split(run.info, split, max_frames=max_frames, select=select)
        return cls(run, videos, _trace(run, videos, every_step=True)[0])

    def summary(self, chosen: Sequence[Trace], about: dict[str, Any]) -> dict[str, Any]:
        """The summary of traces that end early; the head is timed on the frames they saw."""
        _, seconds = _trace(self.run, [_seen(trace) for trace in chosen])
        timed = {"split": self.videos.split, "seconds_per_video": seconds / len(chosen)}
        cost = cost_function(self.run.method, self.videos.pair)
        return summarise(chosen, cost, self.run.info.classes, {**timed, **about}).summary


def _trace(
    run: TrainedRun, videos: VideoSet | Sequence[Sample], *, every_step: bool = False
) -> tuple[list[Trace], float]:
    return trace_videos(
        run.method,
        videos,
        classes=len(run.info.classes),
        batch_videos=run.info.config.batch_videos,
        device=run.device,
        every_step=every_step,
    )


def _seen(trace: Trace) -> Sample:
    """The sample as if the video had no other frames than those seen."""
    sample, seen_T = trace.sample, trace.seen_T
    return replace(
        sample,
        rows=sample.rows[seen_T],
        pts_seconds=sample.pts_seconds[seen_T],
        coarse_TD=sample.coarse_TD[seen_T],
        fine_TD=sample.fine_TD[seen_T],
    )


def _cut(trace: Trace, stop: int) -> Trace:
    """What was known after frame `stop`."""
    assert trace.step_scores_TK is not None
    later_T = np.arange(len(trace.used_T)) > stop
    return replace(
        trace,
        scores_K=trace.step_scores_TK[stop],
        used_T=trace.used_T & ~later_T,
        seen_T=trace.seen_T & ~later_T,
    )


def _uniform_k(
    run: TrainedRun, budgets: Sequence[int], split: str, gated: TrainedRun
) -> list[dict[str, Any]]:
    reads_of = gated.folder.path.resolve()
    if run.info.config.method != "uniform":
        raise RunError(
            f"{run.folder.path}: reads of another run ({reads_of}) are for a run of uniform, this "
            f"one is {run.info.config.method}"
        )
    mismatch = reads_mismatch(run.info, gated.info)
    if mismatch is not None:
        raise RunError(
            f"{reads_of}: uniform-k of {run.folder.path} cannot end where this run reads finely: "
            f"{mismatch}. Give a liteeval run on the same stores and labels"
        )
    max_frames = run.info.config.max_frames
    online = _Online.trace(run, split, max_frames, first_rows)
    reads = {
        trace.sample.video_id: trace.used_T
        for trace in _Online.trace(gated, split, max_frames, first_rows).traces
    }
    curve = []
    for budget in budgets:
        chosen = []
        for trace in online.traces:
            frames = stop_at_budget(reads[trace.sample.video_id], budget) + 1
            chosen.append(_only(trace, evenly_spaced(frames, budget)))
        about = {"method": "uniform-k", "budget": budget, "reads_of": str(reads_of)}
        curve.append(online.summary(chosen, about))
    _merge(run, split, "uniform-k", curve, ("reads_of", "budget"))
    return curve


def _only(trace: Trace, rows: np.ndarray) -> Trace:
    """The mean of the scores of these rows."""
    assert trace.step_scores_TK is not None
    marks_T = np.isin(np.arange(len(trace.used_T)), rows)
    return replace(
        trace, scores_K=trace.step_scores_TK[rows].mean(dim=0), used_T=marks_T, seen_T=marks_T
    )


def _merge(
    run: TrainedRun, split: str, kind: str, curve: list[dict[str, Any]], keys: tuple[str, ...]
) -> None:
    """Put summaries beside those of other questions, told by `keys`, to the same model."""
    points = {
        tuple(point.get(key) for key in keys): point
        for point in [*run.folder.read_curve(split, kind), *curve]
    }
    merged = [points[key] for key in sorted(points)]
    write_atomically(run.folder.curve(split, kind), json.dumps(merged, indent=2).encode())
