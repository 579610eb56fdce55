"""CSV files of your own: video_id (or path), label, and split if there is one.

Several labels are joined by |, or stand in several rows of one video. Without a column `split` all
videos are for training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipelines.datasets.listing import (
    LABEL_SEPARATOR,
    DataSet,
    DataSetError,
    Listed,
    Source,
    check_label,
    parse_split,
    read_table,
    without_suffix,
)


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if a file lacks a column or a row a label."""
    return [video for path in source.annotations for video in _read_file(path)]


def _read_file(path: Path) -> Iterator[Listed]:
    for where, row in read_table(path):
        path_given = row.get("path")
        video = row.get("video_id") or (without_suffix(path_given) if path_given else "")
        if not video or "label" not in row:
            raise DataSetError(
                f"{where}: expected video_id (or path) and label, found the columns {list(row)}"
            )
        labels = [check_label(label, where) for label in row["label"].split(LABEL_SEPARATOR)]
        split = parse_split(row["split"], where) if "split" in row else "train"
        yield Listed(video, tuple(dict.fromkeys(labels)), split)


DATASET = DataSet("table", "CSV files with video_id (or path), label[, split]", read)
