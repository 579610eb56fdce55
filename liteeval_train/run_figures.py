"""Pictures that runs give by themselves: the paper's Figures 2, 3, 4, and usage in training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from liteeval_train.evaluate import read_or_evaluate
from liteeval_train.figures import Curve, draw_boxes, draw_curves, with_ending
from liteeval_train.online import (
    GATED,
    STEPWISE,
    evaluate_budgets,
    evaluate_watched,
    reads_mismatch,
)
from liteeval_train.run import RunError, RunFolder, RunInfo
from liteeval_train.run_files import name_folders

BUDGETS = range(1, 11)


class _Run(NamedTuple):
    path: Path
    name: str  # no other run here has it
    info: RunInfo


def draw_run_figures(runs: Sequence[Path], out: Path, *, split: str, device: str) -> list[Path]:
    """Write every figure that the runs have data for, as PNG and CSV; returns the PNG files.

    accuracy_gflops     online, by budget of fine frames (Figure 2): gated runs, UNIFORM's frames
    accuracy_watched    by share of the video seen (Figure 3): methods that predict at every frame
    fine_frames         per class, a box plot for each gated run (Figure 4)
    usage               share of fine frames over training, of gated runs

    Raises: RunError if a run is not trained or `out` cannot be written.
    """
    named = [
        _Run(path, name, RunFolder(path).read_info()) for path, name in name_folders(runs).items()
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be created ({error.strerror})") from error
    gated = [run for run in named if run.info.config.method in GATED]
    figures = [
        _draw(out / "accuracy_gflops", _budget_curves(named, split, device), _BUDGET_AXES),
        _draw(out / "accuracy_watched", _watched_curves(named, split, device), _WATCHED_AXES),
        _draw(out / "usage", _usage_curves(gated), _USAGE_AXES),
        *(_draw_fine_frames(run, out, split, device) for run in gated),
    ]
    return [figure for figure in figures if figure is not None]


_BUDGET_AXES = ("GFLOPs per video (1 multiply-add = 1 FLOP)", "mAP %")
_WATCHED_AXES = ("share of the video seen, %", "mAP %")
_USAGE_AXES = ("epoch", "share of frames read finely while training, %")


def _draw(path: Path, curves: list[Curve], axes: tuple[str, str]) -> Path | None:
    if not curves:
        return None
    draw_curves(curves, path, x_label=axes[0], y_label=axes[1])
    return with_ending(path, ".png")


def _curve(label: str, points: list[dict[str, Any]], x: Callable[[dict[str, Any]], float]) -> Curve:
    return Curve(label, [x(point) for point in points], [100 * point["map"] for point in points])


def _budget_curves(runs: list[_Run], split: str, device: str) -> list[Curve]:
    """Gated runs, then seq-k of each uniform run, and uniform-k where a gated run fits it."""
    options: dict[str, Any] = {"split": split, "device": device}
    gated = [run for run in runs if run.info.config.method in GATED]
    curves = []
    for run in gated:
        points = evaluate_budgets(run.path, BUDGETS, **options)
        curves.append(_curve(run.name, points, lambda point: point["gflops_mean"]))
    for run in runs:
        if run.info.config.method != "uniform":
            continue
        fitting = [other.path for other in gated if not reads_mismatch(run.info, other.info)]
        for reads_of in (None, *fitting[:1]):
            points = evaluate_budgets(run.path, BUDGETS, reads_of=reads_of, **options)
            label = f"{points[0]['method']} ({run.name})"
            curves.append(_curve(label, points, lambda point: point["gflops_mean"]))
    return curves


def _watched_curves(runs: list[_Run], split: str, device: str) -> list[Curve]:
    return [
        _curve(
            run.name,
            evaluate_watched(run.path, split=split, device=device),
            lambda point: 100 * point["watched"],
        )
        for run in runs
        if run.info.config.method in STEPWISE
    ]


def _usage_curves(gated: list[_Run]) -> list[Curve]:
    epochs = {run.name: RunFolder(run.path).read_metrics() for run in gated}
    return [
        Curve(name, [line["epoch"] for line in lines], [100 * line["fine_share"] for line in lines])
        for name, lines in epochs.items()
        if lines
    ]


def _draw_fine_frames(run: _Run, out: Path, split: str, device: str) -> Path:
    read_or_evaluate(run.path, split=split, device=device)
    groups: dict[str, list[float]] = defaultdict(list)
    text = RunFolder(run.path).evaluation_videos(split).read_text(encoding="utf-8")
    for line in text.splitlines():
        video = json.loads(line)
        for label in video["labels"]:
            groups[label].append(video["fine_frames"])
    path = out / f"fine_frames_{run.name.replace('/', '-')}"
    draw_boxes(groups, path, y_label="fine frames per video")
    return with_ending(path, ".png")
