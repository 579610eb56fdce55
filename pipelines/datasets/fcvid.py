"""FCVID: two files with a line for each video, or lists made from them.

    FCVID_VideoName_TrainTestSplit.txt      NAME train|test      NAME may have folders and a suffix
    FCVID_Label.txt                         239 columns of 0 and 1, same order of lines

    train.txt, test.txt: name,frames,label[,label…]      numbers of classes; −1 stands for none

Classes have numbers alone in these files; --classes gives their names, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipelines.datasets.listing import (
    DataSet,
    DataSetError,
    Listed,
    Source,
    class_names,
    name_class,
    parse_split,
    read_lines,
    split_of_file,
    without_suffix,
)

LIST_LINE = re.compile(r"(?P<name>.+?),\s*\d+(?P<labels>(,\s*-?\d+)+)\s*")  # a name may hold commas


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if the files are of neither layout, or do not fit one another."""
    names = class_names(source)
    kinds = {path: _is_matrix(path) for path in source.annotations}
    matrices = [path for path, is_matrix in kinds.items() if is_matrix]
    others = [path for path, is_matrix in kinds.items() if not is_matrix]
    if not matrices:
        return [video for path in others for video in _read_list(path, names)]
    if len(matrices) != 1 or len(others) != 1:
        raise DataSetError(f"FCVID: expected {DATASET.annotations}, found {len(kinds)} other files")
    return list(_read_pair(others[0], matrices[0], names))


def _is_matrix(path: Path) -> bool:
    """Whether the first line is numbers alone: FCVID_Label.txt."""
    first = next(read_lines(path), ("", ""))[1].replace(",", " ").split()
    return len(first) > 1 and all(_is_zero_or_one(cell) for cell in first)


def _is_zero_or_one(cell: str) -> bool:
    try:
        return float(cell) in (0.0, 1.0)
    except ValueError:
        return False


def _read_pair(splits: Path, matrix: Path, names: Sequence[str] | None) -> Iterator[Listed]:
    videos, rows = list(read_lines(splits)), list(read_lines(matrix))
    if len(videos) == len(rows) + 1:  # a line of column titles
        videos = videos[1:]
    if len(videos) != len(rows):
        raise DataSetError(
            f"{splits} has {len(videos)} lines, {matrix} {len(rows)}; expected equal"
        )
    columns = len(rows[0][1].replace(",", " ").split())
    for (where, line), (where_row, row) in zip(videos, rows, strict=True):
        name, _, split = line.strip().replace("\t", " ").rpartition(" ")
        cells = row.replace(",", " ").split()
        if len(cells) != columns or not all(map(_is_zero_or_one, cells)):
            raise DataSetError(f"{where_row}: expected {columns} cells, each 0 or 1")
        marked = [number for number, cell in enumerate(cells) if float(cell)]
        labels = tuple(name_class(number, names, where_row) for number in marked)
        yield Listed(without_suffix(name), labels, parse_split(split, where))


def _read_list(path: Path, names: Sequence[str] | None) -> Iterator[Listed]:
    split = split_of_file(path)
    for where, line in read_lines(path):
        match = LIST_LINE.fullmatch(line)
        if match is None:
            raise DataSetError(f"{where}: expected name,frames,label[,label…], found {line!r}")
        numbers = [int(number) for number in match["labels"].split(",")[1:]]
        labels = (name_class(number, names, where) for number in numbers if number >= 0)
        yield Listed(without_suffix(match["name"]), tuple(dict.fromkeys(labels)), split)


DATASET = DataSet(
    "FCVID",
    "FCVID_VideoName_TrainTestSplit.txt and FCVID_Label.txt, or lists name,frames,label…",
    read,
    unique_names=True,
)
