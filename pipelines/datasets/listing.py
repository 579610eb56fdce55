"""What every importer speaks of: the videos that a data set lists, and where it lists them.

An importer is a `DataSet`: how to read the annotation files, and how to fold a file's name to the
name that they use. It opens no video.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from extract.videos import SUFFIXES

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "training": "train",
    "validation": "val",
    "validate": "val",
    "valid": "val",
    "testing": "test",
}
LABEL_SEPARATOR = "|"


class DataSetError(Exception):
    """A data set cannot be imported; the message names the file, what was expected and found."""


@dataclass(frozen=True)
class Listed:
    """One video as the data set lists it."""

    path: str  # without suffix: as much of the path as the data set tells, often only the name
    labels: tuple[str, ...]  # none: a held-out test video whose label is not published
    split: str  # train, val or test
    group: str = ""  # videos of one group, a person say, are never parted; by default its own path


@dataclass(frozen=True)
class Source:
    """What the user gives: paths, and the choices that some data sets leave."""

    videos: Path
    annotations: tuple[Path, ...] = ()
    classes: Path | None = None  # names of numbered classes, one a line
    fold: int = 1  # of data sets with several official splits


@dataclass(frozen=True)
class DataSet:
    """An importer.

    read: the listed videos, from annotation files or, where there are none, from the paths of the
        files found (relative to the folder, without suffix).
    fold_name: a file's or a listed video's name → what both are compared by.
    """

    title: str
    annotations: str  # the files it takes, for messages and help
    read: Callable[[Source, Sequence[PurePosixPath]], list[Listed]]
    fold_name: Callable[[str], str] = str
    needs_annotations: bool = True
    unique_names: bool = False  # a name holds a site's id: folders tell nothing


def parse_split(text: str, where: str) -> str:
    """Raises: DataSetError if the text names no split."""
    split = SPLIT_NAMES.get(text.strip().lower())
    if split is None:
        raise DataSetError(f"{where}: expected a split ({', '.join(SPLITS)}), found {text!r}")
    return split


def split_of_file(path: Path) -> str:
    """The split that an annotation file is for, told by the last such word of its name.

    Raises: DataSetError if no word of it names a split.
    """
    words = "".join(c if c.isalpha() else " " for c in path.stem.lower()).split()
    for word in reversed(words):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    raise DataSetError(
        f"{path}: its name does not tell which split it lists; rename it, to {path.stem}_train"
        f"{path.suffix} for example"
    )


def check_label(label: str, where: str) -> str:
    """The label without blanks around it.

    Raises: DataSetError if it is empty or holds the character that joins labels.
    """
    label = label.strip()
    if not label or LABEL_SEPARATOR in label:
        raise DataSetError(
            f"{where}: expected a label without {LABEL_SEPARATOR!r}, found {label!r}"
        )
    return label


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) for each line of a text file that is not blank; where is FILE:NUMBER.

    Raises: DataSetError if the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line.rstrip("\r")


def read_cells(line: str) -> list[str]:
    """The cells of a line of a CSV file, without blanks around them; none if it is no such line."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error:
        return []


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) for each row of a CSV file with a header.

    Raises: DataSetError if the file cannot be read, or a row has more or fewer cells.
    """
    lines = list(read_lines(path))
    reader = csv.DictReader((line for _, line in lines), skipinitialspace=True)
    try:
        for row in reader:
            where = lines[reader.line_num - 1][0]
            if None in row or None in row.values():
                raise DataSetError(f"{where}: expected {len(reader.fieldnames or ())} cells")
            yield where, {(key or "").strip(): value.strip() for key, value in row.items()}
    except csv.Error as error:
        where = lines[min(reader.line_num, len(lines) - 1)][0]  # the line after the last one read
        raise DataSetError(f"{where}: cannot be read as CSV ({error})") from error


def class_names(source: Source) -> list[str] | None:
    """Names of numbered classes from --classes, if given: lines NAME, NUMBER NAME or NUMBER,NAME.

    Raises: DataSetError if the file cannot be read or a name is no label.
    """
    if source.classes is None:
        return None
    names = []
    for where, line in read_lines(source.classes):
        first, _, rest = line.strip().replace("\t", " ").replace(",", " ", 1).partition(" ")
        numbered = first.isdecimal() and bool(rest.strip())
        names.append(check_label(rest if numbered else line, where))
    return names


def name_class(number: int, names: Sequence[str] | None, where: str) -> str:
    """The name of class `number` (from 0); its number as text where no names are given.

    Raises: DataSetError if the names do not reach that far.
    """
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise DataSetError(f"{where}: class {number}, but --classes names {len(names)} classes")
    return names[number]


def without_suffix(path: str) -> str:
    """a/b.mp4 → a/b, whatever slashes stand in front or double; c.d is no name of a video file."""
    parts = [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    pure = PurePosixPath(*parts)
    return str(pure.with_suffix("")) if pure.suffix.lower() in SUFFIXES else str(pure)


def require_annotations(source: Source, dataset: DataSet) -> None:
    """Raises: DataSetError if annotation files are wanted and none is given, or the reverse."""
    if dataset.needs_annotations and not source.annotations:
        raise DataSetError(f"{dataset.title}: give its annotation files: {dataset.annotations}")
    if not dataset.needs_annotations and source.annotations:
        raise DataSetError(f"{dataset.title}: takes no annotation files; the folders tell all")


def merge(listed: Iterable[Listed]) -> tuple[list[Listed], list[str]]:
    """Each video once, its labels joined; and the paths that are listed more than once.

    A video in several splits stays in the first.
    """
    merged: dict[str, Listed] = {}
    repeated = []
    for video in listed:
        other = merged.setdefault(video.path, video)
        if other is not video:
            repeated.append(video.path)
            labels = tuple(dict.fromkeys(other.labels + video.labels))
            if video.split == other.split and labels != other.labels:
                merged[video.path] = Listed(video.path, labels, other.split, other.group)
    return list(merged.values()), repeated
