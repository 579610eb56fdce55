"""Runs side by side: the columns of the paper's Table 1, plus measured seconds.

Runs that differ in one thing stand in tables of their own as well (layouts.py).
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteeval_train.cost import FLOP_CONVENTION
from liteeval_train.layouts import Compared, Row, Table, group_runs, one_of_each_seed
from liteeval_train.run_files import RunError, RunFiles

FORMATS = ("table", "markdown", "csv", "json")
HEADER = (
    "method",
    "top-1 %",
    "mAP %",
    "GFLOPs per video",
    "fine frames per video",
    "frames seen",
    "seconds per video",
)
EXTRA_KEYS = ("paper_map", "budget", "watched", "key_frames_read", "other_frames_read")
NUMBER_KEYS = (
    "top1",
    "map",
    "gflops_mean",
    "gflops_std",
    "fine_frames_mean",
    "fine_frames_std",
    "frames_mean",
    "seconds_per_video",
)


def format_comparison(summaries: Sequence[dict[str, Any]], style: str) -> str:
    """Evaluation summaries as `table`, `markdown`, `csv` or `json` text."""
    if style == "json":
        return json.dumps({"flop_convention": FLOP_CONVENTION, "runs": list(summaries)}, indent=2)
    if style == "csv":
        return _csv(summaries)
    extra = [key for key in EXTRA_KEYS if any(key in s for s in summaries)]
    first = ["run"] if any("run" in s for s in summaries) else []
    rows = [
        (*(s.get(key, "") for key in first), *_cells(s), *(_short(s.get(key, "")) for key in extra))
        for s in summaries
    ]
    rows.insert(0, (*first, *HEADER, *(key.replace("paper_map", "paper's mAP") for key in extra)))
    splits = sorted({summary["split"] for summary in summaries})
    note = f"split {', '.join(splits)}; {FLOP_CONVENTION}; mean ± standard deviation over videos"
    return f"{note}\n\n{align_columns(rows, markdown=style == 'markdown')}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cells(summary: dict[str, Any]) -> tuple[str, ...]:
    return (
        summary["method"],
        f"{100 * summary['top1']:.1f}",
        f"{100 * summary['map']:.1f}",
        f"{summary['gflops_mean']:.2f} ± {summary['gflops_std']:.2f}",
        f"{summary['fine_frames_mean']:.1f} ± {summary['fine_frames_std']:.1f}",
        f"{summary['frames_mean']:.1f}",
        f"{summary['seconds_per_video']:.4f}",
    )


def align_columns(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Rows of equal length, the first the header, as a text or Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if not markdown:
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
    rule = ["---", *["---:"] * (len(widths) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _csv(summaries: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    first = ["run"] if any("run" in summary for summary in summaries) else []
    writer = csv.DictWriter(
        text, [*first, "method", "split", *NUMBER_KEYS, *EXTRA_KEYS], extrasaction="ignore"
    )
    writer.writeheader()
    writer.writerows(summaries)
    return text.getvalue().rstrip("\n")


SEED_KEYS = ("top1", "map", "gflops_mean", "fine_frames_mean", "seconds_per_video")


def average_seeds(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row per configuration, data and split: mean and sample standard deviation over seeds.

    All runs are evaluated; `run` in a row is the name of its first run. Each number becomes two
    keys, such as `map` and `map_std`; a single run has deviation 0.
    """
    groups: dict[tuple[Any, ...], list[Compared]] = {}
    for run in runs:
        key = (*run.settings.items(), (run.summary or {})["split"])
        groups.setdefault(key, []).append(run)
    return [_average(one_of_each_seed(group)) for group in groups.values()]


def _average(group: Sequence[Compared]) -> dict[str, Any]:
    summaries = [run.summary or {} for run in group]
    first = summaries[0]
    row = {
        "method": first["method"],
        "split": first["split"],
        "run": group[0].name,
        "runs": len(group),
    }
    for key in SEED_KEYS:
        values = [summary[key] for summary in summaries]
        row[key] = statistics.fmean(values)
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row


def format_seeds(rows: Sequence[dict[str, Any]], style: str) -> str:
    """Rows of `average_seeds` as `table`, `markdown`, `csv` or `json` text."""
    if style == "json":
        return json.dumps({"flop_convention": FLOP_CONVENTION, "methods": list(rows)}, indent=2)
    if style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    methods = [row["method"] for row in rows]
    several = len(set(methods)) < len(methods)  # configurations of one method: tell them apart
    numbers = ("top-1 %", "mAP %", "GFLOPs per video", "fine frames per video")
    header = ("method", *(("first run",) if several else ()), "runs", *numbers)
    cells = [
        (
            row["method"],
            *((row["run"],) if several else ()),
            str(row["runs"]),
            f"{100 * row['top1']:.1f} ± {100 * row['top1_std']:.1f}",
            f"{100 * row['map']:.1f} ± {100 * row['map_std']:.1f}",
            f"{row['gflops_mean']:.2f} ± {row['gflops_mean_std']:.2f}",
            f"{row['fine_frames_mean']:.1f} ± {row['fine_frames_mean_std']:.1f}",
        )
        for row in rows
    ]
    splits = ", ".join(sorted({row["split"] for row in rows}))
    note = f"split {splits}; {FLOP_CONVENTION}; mean ± standard deviation over runs"
    return f"{note}\n\n{align_columns([header, *cells], markdown=style == 'markdown')}"


def table_of_runs(runs: Sequence[Path], *, split: str) -> str:
    """The evaluations of runs as a table whose rows have the names of the runs' folders.

    Raises: RunError if a run is not evaluated on this split.
    """
    summaries = []
    for path in runs:
        summary = RunFiles(path).read_evaluation(split)
        if summary is None:
            raise RunError(
                f"{path}: not evaluated on split {split} since it was trained; make it with "
                f"liteeval-train evaluate {path} --split {split}"
            )
        summaries.append({**summary, "method": path.resolve().name})
    return format_comparison(summaries, "table")


def compare_runs(runs: Sequence[Compared], style: str) -> str:
    """Evaluated runs side by side, then in tables of what differs between them.

    Where the paper's own figure for a run is known it stands beside ours. CSV has a row per run.
    """
    names_told = len({run.info.config.method for run in runs}) == len(runs)
    summaries = [_named(run, unless=names_told) for run in runs]
    tables = [table for table in group_runs(runs) if not _is_the_whole(table, runs)]
    if style == "json":
        about = {"flop_convention": FLOP_CONVENTION, "runs": summaries}
        return json.dumps({**about, "tables": [_as_json(table) for table in tables]}, indent=2)
    if style == "csv":
        return _csv(summaries)
    parts = [format_comparison(summaries, style)]
    parts += [format_table(table, style) for table in tables]
    papers = sorted({str(run.paper) for run in runs if run.paper})
    return "\n\n".join(parts + papers)


def _is_the_whole(table: Table, runs: Sequence[Compared]) -> bool:
    """Whether a table says no more than the first one, which has a row per run and its method."""
    return (
        table.keys == ("method",)
        and all(len(row.names) == 1 for row in table.rows)
        and table.names == {run.name for run in runs}
    )


def _named(run: Compared, *, unless: bool) -> dict[str, Any]:
    """The summary of a run, with its name, and the paper's figure if there is one."""
    summary = dict(run.summary or {})
    if not unless:
        summary = {"run": run.name, **summary}
    return {**summary, "paper_map": run.paper.map} if run.paper else summary


def table_header(table: Table) -> list[str]:
    """The names of a table's columns."""
    paper = ["paper's mAP %"] if any(row.paper for row in table.rows) else []
    runs = ["runs"] if any(row.seeds > 1 for row in table.rows) else []
    numbers = ["top-1 %", "mAP %", *paper, "GFLOPs per video", "fine frames per video"]
    return [*(key.replace("_", " ") for key in table.keys), *runs, *numbers]


def table_cells(table: Table) -> list[list[str]]:
    """The rows of a table as texts; ± where a row stands for several seeds."""
    has_paper = any(row.paper for row in table.rows)
    has_runs = any(row.seeds > 1 for row in table.rows)
    return [
        [
            *map(_word, row.values),
            *([str(row.seeds)] if has_runs else []),
            _mean(row, "top1", 100, 1),
            _mean(row, "map", 100, 1),
            *([f"{100 * row.paper.map:.1f}" if row.paper else ""] if has_paper else []),
            _mean(row, "gflops_mean", 1, 2),
            _mean(row, "fine_frames_mean", 1, 1),
        ]
        for row in table.rows
    ]


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _mean(row: Row, key: str, factor: float, digits: int) -> str:
    text = f"{factor * row.mean[key]:.{digits}f}"
    return text if row.seeds == 1 else f"{text} ± {factor * row.std[key]:.{digits}f}"


def format_table(table: Table, style: str) -> str:
    """A table of `group_runs` as `table` or `markdown` text."""
    rows = [table_header(table), *table_cells(table)]
    title = f"**{table.title}**" if style == "markdown" else table.title
    return f"{title}\n\n{align_columns(rows, markdown=style == 'markdown')}"


def _as_json(table: Table) -> dict[str, Any]:
    rows = [
        {
            "values": dict(zip(table.keys, row.values, strict=True)),
            "runs": row.names,
            "mean": row.mean,
            "std": row.std,
            "paper_map": row.paper.map if row.paper else None,
        }
        for row in table.rows
    ]
    return {"title": table.title, "rows": rows}
