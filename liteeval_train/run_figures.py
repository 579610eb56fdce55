"""Pictures that runs give by themselves: the paper's Figures 2, 3, 4, and usage in training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liteeval_train.evaluate import read_or_evaluate
from liteeval_train.figures import Curve, draw_boxes, draw_curves
from liteeval_train.online import STEPWISE, evaluate_budgets, evaluate_watched
from liteeval_train.run import RunError, RunFolder, RunInfo

GATED = ("liteeval", "liteeval-rl")
BUDGETS = range(1, 11)


def draw_run_figures(runs: Sequence[Path], out: Path, *, split: str, device: str) -> list[Path]:
    """Write every figure that the runs have data for, as PNG and CSV; returns the PNG files.

    accuracy_gflops     online, by budget of fine frames (Figure 2): gated runs, UNIFORM's frames
    accuracy_watched    by share of the video seen (Figure 3): methods that predict at every frame
    fine_frames         per class, a box plot for each gated run (Figure 4)
    usage               share of fine frames over training, of gated runs

    Raises: RunError if a run is not trained or `out` cannot be written.
    """
    infos = {run: RunFolder(run).read_info() for run in runs}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be created ({error.strerror})") from error
    gated = [run for run, info in infos.items() if info.config.method in GATED]
    figures = [
        _draw(out / "accuracy_gflops", _budget_curves(infos, gated, split, device), _BUDGET_AXES),
        _draw(out / "accuracy_watched", _watched_curves(infos, split, device), _WATCHED_AXES),
        _draw(out / "usage", [_usage_curve(run) for run in gated], _USAGE_AXES),
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
    return path.with_suffix(".png")


def _curve(label: str, points: list[dict[str, Any]], x: Callable[[dict[str, Any]], float]) -> Curve:
    return Curve(label, [x(point) for point in points], [100 * point["map"] for point in points])


def _budget_curves(
    infos: dict[Path, RunInfo], gated: list[Path], split: str, device: str
) -> list[Curve]:
    curves = []
    for run in gated:
        points = evaluate_budgets(run, BUDGETS, split=split, device=device)
        curves.append(_curve(run.name, points, lambda point: point["gflops_mean"]))
    for run, info in infos.items():
        if info.config.method != "uniform":
            continue
        for reads_of in (None, *gated[:1]):
            points = evaluate_budgets(run, BUDGETS, split=split, device=device, reads_of=reads_of)
            label = f"{points[0]['method']} ({run.name})"
            curves.append(_curve(label, points, lambda point: point["gflops_mean"]))
    return curves


def _watched_curves(infos: dict[Path, RunInfo], split: str, device: str) -> list[Curve]:
    return [
        _curve(
            run.name,
            evaluate_watched(run, split=split, device=device),
            lambda point: 100 * point["watched"],
        )
        for run, info in infos.items()
        if info.config.method in STEPWISE
    ]


def _usage_curve(run: Path) -> Curve:
    lines = RunFolder(run).metrics.read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    return Curve(run.name, [e["epoch"] for e in epochs], [100 * e["fine_share"] for e in epochs])


def _draw_fine_frames(run: Path, out: Path, split: str, device: str) -> Path:
    read_or_evaluate(run, split=split, device=device)
    groups: dict[str, list[float]] = defaultdict(list)
    text = RunFolder(run).evaluation_videos(split).read_text(encoding="utf-8")
    for line in text.splitlines():
        video = json.loads(line)
        for label in video["labels"]:
            groups[label].append(video["fine_frames"])
    path = out / f"fine_frames_{run.name}"
    draw_boxes(groups, path, y_label="fine frames per video")
    return path.with_suffix(".png")
