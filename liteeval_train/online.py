"""Prediction while a video still runs: by a budget of fine frames, or by the share watched.

A method sees the first frames, not evenly spaced ones, and predicts from what it saw until it
stopped. Two baselines use UNIFORM's frame classifier the same way:

    seq-k       mean score of the first K frames
    uniform-k   mean score of K of the frames up to where LITEEVAL made its K-th fine read

Shape letters: T frames, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from liteeval_train.data import evenly_spaced, first_rows
from liteeval_train.evaluate import (
    Trace,
    TrainedRun,
    cost_function,
    open_split,
    open_trained,
    summarise,
    trace_videos,
)
from liteeval_train.run import RunError, write_atomically

STEPWISE = ("liteeval", "liteeval-rl", "lstm", "lstm+cf")
WATCHED_SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))


def evaluate_budgets(
    path: Path,
    budgets: Sequence[int],
    *,
    split: str = "val",
    reads_of: Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """One summary per budget, with the key `budget`; written to RUN/evaluate_SPLIT_budgets.json.

    A run of UNIFORM gives seq-k, and with `reads_of` (a LITEEVAL run) uniform-k.
    Raises: RunError if the run's method cannot predict before the end, or has no use for
    `reads_of`.
    """
    run = open_trained(path, device)
    if reads_of is not None and run.info.config.method != "uniform":
        raise RunError(
            f"{path}: reads of another run ({reads_of}) are for a run of uniform, this one is "
            f"{run.info.config.method}"
        )
    if run.info.config.method == "uniform":
        curve = _frame_budgets(run, budgets, split, reads_of, device)
    else:
        traces, about, cost = _trace_online(run, split)
        curve = [
            summarise(
                [_cut(trace, stop_at_budget(trace.used_T, budget)) for trace in traces],
                cost,
                run.info.classes,
                {**about, "budget": budget},
            ).summary
            for budget in budgets
        ]
    _write(run, f"evaluate_{split}_budgets.json", curve)
    return curve


def evaluate_watched(
    path: Path,
    *,
    split: str = "val",
    shares: Sequence[float] = WATCHED_SHARES,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """One summary per share of the video seen, with the key `watched`; the paper's Figure 3.

    Written to RUN/evaluate_SPLIT_watched.json.
    """
    run = open_trained(path, device)
    traces, about, cost = _trace_online(run, split)
    curve = [
        summarise(
            [_cut(trace, stop_at_share(len(trace.used_T), share)) for trace in traces],
            cost,
            run.info.classes,
            {**about, "watched": share},
        ).summary
        for share in shares
    ]
    _write(run, f"evaluate_{split}_watched.json", curve)
    return curve


def stop_at_budget(used_T: np.ndarray, budget: int) -> int:
    """The frame at which the budget's last fine frame was read, or the last frame."""
    reads = np.flatnonzero(used_T)
    return int(reads[budget - 1]) if len(reads) >= budget else len(used_T) - 1


def stop_at_share(frames: int, share: float) -> int:
    """The last frame of the first `share` of a video: share 0.25 of 8 frames is frame 1."""
    return max(1, int(np.ceil(share * frames - 1e-9))) - 1


def _trace_online(run: TrainedRun, split: str) -> tuple[list[Trace], dict[str, Any], Callable]:
    method = run.info.config.method
    if method not in STEPWISE:
        raise RunError(
            f"{run.folder.path}: {method} gives no prediction while a video runs; "
            f"methods that do: {', '.join(STEPWISE)}"
        )
    return _trace(run, split, run.method.max_frames)


def _trace(
    run: TrainedRun, split: str, max_frames: int
) -> tuple[list[Trace], dict[str, Any], Callable]:
    videos = open_split(run.info, split, max_frames=max_frames, select=first_rows)
    traces, seconds = trace_videos(
        run.method,
        videos,
        classes=len(run.info.classes),
        batch_videos=run.info.config.batch_videos,
        device=run.device,
        every_step=True,
    )
    about = {
        "method": run.info.config.method,
        "split": split,
        "seconds_per_video": seconds / len(traces),
    }
    return traces, about, cost_function(run.method, videos.pair)


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


def _frame_budgets(
    run: TrainedRun, budgets: Sequence[int], split: str, reads_of: Path | None, device: str
) -> list[dict[str, Any]]:
    max_frames = run.info.config.max_frames
    traces, about, cost = _trace(run, split, max_frames)
    stops: dict[str, np.ndarray] | None = None
    if reads_of is not None:
        gated = _trace_online(open_trained(reads_of, device), split)[0]
        stops = {trace.sample.video_id: trace.used_T for trace in gated}
    about["method"] = "seq-k" if stops is None else "uniform-k"
    curve = []
    for budget in budgets:
        chosen = []
        for trace in traces:
            frames = len(trace.used_T)
            if stops is not None:
                frames = stop_at_budget(stops[trace.sample.video_id], budget) + 1
            rows = (first_rows if stops is None else evenly_spaced)(frames, budget)
            chosen.append(_only(trace, rows))
        summary = summarise(chosen, cost, run.info.classes, {**about, "budget": budget}).summary
        curve.append(summary)
    return curve


def _only(trace: Trace, rows: np.ndarray) -> Trace:
    """The mean of the scores of these rows."""
    assert trace.step_scores_TK is not None
    marks_T = np.isin(np.arange(len(trace.used_T)), rows)
    return replace(
        trace, scores_K=trace.step_scores_TK[rows].mean(dim=0), used_T=marks_T, seen_T=marks_T
    )


def _write(run: TrainedRun, name: str, curve: list[dict[str, Any]]) -> None:
    write_atomically(run.folder.path / name, json.dumps(curve, indent=2).encode())
