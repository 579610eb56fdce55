"""Kinetics-400 (600, 700): CSV files, or `path label` lists.

    label,youtube_id,time_start,time_end,split[,is_cc]     the clip is YOUTUBE_ID_000012_000022.mp4
    path label                                             train.txt, val.txt; a number or a word

Clips lie in folders of classes, their names with blanks or underscores, or in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipelines.datasets.listing import (
    DataSet,
    DataSetError,
    Listed,
    Source,
    check_label,
    class_names,
    name_class,
    parse_split,
    read_cells,
    read_lines,
    read_table,
    split_of_file,
    without_suffix,
)

COLUMNS = {"youtube_id", "time_start", "time_end"}


def fold_name(name: str) -> str:
    """Folders of classes are written with blanks or with underscores."""
    return name.replace(" ", "_")


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if a file is of neither layout."""
    names = class_names(source)
    listed: list[Listed] = []
    for path in source.annotations:
        listed += _read_table(path) if _has_header(path) else _read_list(path, names)
    return listed


def _has_header(path: Path) -> bool:
    return set(read_cells(next(read_lines(path), ("", ""))[1])) >= COLUMNS


def _read_table(path: Path) -> Iterator[Listed]:
    for where, row in read_table(path):
        try:
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        except (ValueError, OverflowError) as error:  # inf
            raise DataSetError(f"{where}: expected times in seconds ({error})") from error
        label = row.get("label", "")
        yield Listed(
            path=f"{row['youtube_id']}_{start:06d}_{end:06d}",
            labels=(check_label(label.replace("_", " "), where),) if label else (),
            split=parse_split(row["split"], where) if row.get("split") else split_of_file(path),
        )


def _read_list(path: Path, names: Sequence[str] | None) -> Iterator[Listed]:
    split = split_of_file(path)
    for where, line in read_lines(path):
        video, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not video:
            raise DataSetError(f"{where}: expected `path label`, found {line!r}")
        if label.isdecimal():
            label = name_class(int(label), names, where)
        yield Listed(without_suffix(video), (check_label(label, where),), split)


DATASET = DataSet(
    "Kinetics",
    "CSV files label,youtube_id,time_start,time_end,split, or `path label` lists",
    read,
    fold_name,
    unique_names=True,
)
