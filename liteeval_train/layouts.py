"""Runs grouped by what differs between them: the layouts of the paper's Tables 1, 2 and 6 to 9."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteeval_train.paper import PaperFigure, paper_figure
from liteeval_train.run_files import RunFiles, RunInfo

MADE_BY = ("weights_sha256", "preprocessing", "feature_dim", "gflops_per_frame", "parameters")
NUMBERS = ("top1", "map", "gflops_mean", "fine_frames_mean")


@dataclass(frozen=True)
class Compared:
    """A run beside others; `summary` is None where it is not evaluated."""

    name: str
    path: Path
    info: RunInfo
    summary: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path, split: str, *, name: str | None = None) -> Compared:
        """By the name of its folder, if no other is given.

        Raises: RunError if this is no run, or its evaluation is damaged.
        """
        files = RunFiles(path)
        info, summary = files.read_info(), files.read_evaluation(split)
        return cls(name or path.resolve().name, path, info, summary)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its numbers but the seed: configuration, precision, stores, videos."""
        info = self.info
        settings = info.config.model_dump(exclude={"preset", "seed"})
        settings["precision"] = info.precision
        settings["sample_fps"] = info.fine.identity.get("sample_fps")  # the same in both stores
        for role, store in (("coarse", info.coarse), ("fine", info.fine)):
            settings[role] = store.backbone
            made = repr([store.identity.get(name) for name in MADE_BY])
            settings[f"{role}_made"] = hashlib.sha256(made.encode()).hexdigest()[:8]
        videos = tuple(info.splits[split].sha256 for split in sorted(info.splits))
        return settings | {"labels": info.labels_sha256, "videos": videos}

    @property
    def paper(self) -> PaperFigure | None:
        return paper_figure(self.info)


@dataclass(frozen=True)
class Layout:
    """A table of runs that differ in `keys` alone."""

    title: str
    keys: tuple[str, ...]  # the last one has to differ
    also: tuple[str, ...] = ()  # differ with the keys and are not shown


LAYOUTS = (
    Layout("Methods (the paper's Table 1)", ("method",)),
    Layout("Fine features (Table 2)", ("method", "fine"), also=("fine_made",)),
    Layout("Recurrent cells (Table 6)", ("cell",)),
    Layout("Wanted share of fine frames γ (Table 7)", ("fine_share_target",)),
    Layout("Synchronisation (Table 8)", ("synchronise",)),
    Layout("Width of the coarse RNN (Table 9)", ("coarse_hidden",)),
    Layout("Coarse features", ("method", "coarse"), also=("coarse_made",)),
)
NEVER_VARIED = ("labels", "videos")  # on other data, runs do not stand side by side


@dataclass(frozen=True)
class Row:
    """Runs of one configuration: means over them, and deviations where they are several."""

    values: tuple[Any, ...]  # of the table's keys
    names: tuple[str, ...]
    seeds: int  # of them that have a seed of their own: a run done twice is one sample
    mean: dict[str, float]  # of NUMBERS
    std: dict[str, float]
    paper: PaperFigure | None


@dataclass(frozen=True)
class Table:
    title: str
    keys: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for row in self.rows for name in row.names)


def group_runs(runs: Sequence[Compared]) -> list[Table]:
    """Tables of the evaluated runs that differ in one thing; a part of another is left out."""
    evaluated = [run for run in runs if run.summary is not None]
    known = {key for layout in LAYOUTS for key in (*layout.keys, *layout.also)}
    first = evaluated[0].settings if evaluated else {}
    others = [
        Layout(key.replace("_", " ").capitalize(), (key,))
        for key in first
        if key not in known and key not in NEVER_VARIED and _differ(evaluated, key)
    ]
    tables = [table for layout in (*LAYOUTS, *others) for table in _tables(layout, evaluated)]
    return [
        table
        for number, table in enumerate(tables)
        if not any(
            table.names < other.names or (table.names == other.names and place < number)
            for place, other in enumerate(tables)
        )
    ]


def _differ(runs: Sequence[Compared], key: str) -> bool:
    return len({run.settings[key] for run in runs}) > 1


def _tables(layout: Layout, runs: Sequence[Compared]) -> list[Table]:
    groups: dict[tuple[Any, ...], list[Compared]] = {}
    for run in runs:
        fixed = (*run.settings.items(), ("split", (run.summary or {})["split"]))
        key = tuple(item for item in fixed if item[0] not in (*layout.keys, *layout.also))
        groups.setdefault(key, []).append(run)
    tables = []
    for group in groups.values():
        rows = _rows(layout, group)
        if len({row.values[-1] for row in rows}) > 1:
            tables.append(Table(layout.title, layout.keys, tuple(rows)))
    return tables


def _rows(layout: Layout, runs: Sequence[Compared]) -> list[Row]:
    """One row for each combination of values; the last key has several beside the others."""
    cells: dict[tuple[Any, ...], list[Compared]] = {}
    for values, run in zip(_told_apart(layout, runs), runs, strict=True):
        cells.setdefault(values, []).append(run)
    beside: dict[tuple[Any, ...], int] = {}
    for values in cells:
        beside[values[:-1]] = beside.get(values[:-1], 0) + 1
    kept = [values for values in cells if beside[values[:-1]] > 1]
    if all(isinstance(values[-1], (int, float)) for values in kept):
        kept.sort()
    else:  # in the order given, what stands side by side together
        order = list(beside)
        kept.sort(key=lambda values: order.index(values[:-1]))
    return [_row(values, cells[values]) for values in kept]


def _told_apart(layout: Layout, runs: Sequence[Compared]) -> list[tuple[Any, ...]]:
    """Each run's values of the keys; where what is not shown differs alone, it is added."""
    shown = [tuple(run.settings[key] for key in layout.keys) for run in runs]
    hidden = [" ".join(run.settings[key] for key in layout.also) for run in runs]
    variants: dict[tuple[Any, ...], set[str]] = {}
    for values, rest in zip(shown, hidden, strict=True):
        variants.setdefault(values, set()).add(rest)
    return [
        values if len(variants[values]) == 1 else (*values[:-1], f"{values[-1]} ({rest})")
        for values, rest in zip(shown, hidden, strict=True)
    ]


def one_of_each_seed(runs: Sequence[Compared]) -> list[Compared]:
    """Of runs of one configuration the first with each seed."""
    first: dict[int, Compared] = {}
    for run in runs:
        first.setdefault(run.info.config.seed, run)
    return list(first.values())


def _row(values: tuple[Any, ...], runs: Sequence[Compared]) -> Row:
    samples = one_of_each_seed(runs)
    numbers = {key: [(run.summary or {})[key] for run in samples] for key in NUMBERS}
    return Row(
        values=values,
        names=tuple(run.name for run in runs),
        seeds=len(samples),
        mean={key: statistics.fmean(found) for key, found in numbers.items()},
        std={
            key: statistics.stdev(found) if len(found) > 1 else 0.0
            for key, found in numbers.items()
        },
        paper=next((run.paper for run in runs if run.paper), None),
    )
