"""labels.csv: the classes of each video and the split it belongs to."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")


class LabelError(Exception):
    """The labels cannot be used; the message names the file, the line and what to mend."""


@dataclass(frozen=True)
class Labels:
    """A label file as it was read."""

    path: Path
    sha256: str
    classes_of: dict[str, tuple[str, ...]]  # video id → its classes
    split_of: dict[str, str]


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read `video_id,label,split`; several labels of a video are joined by `|`.

    Raises: LabelError naming the line where a column is missing, a split is unknown or a video
        stands twice.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: not a readable CSV file ({error})") from error
    found = reader.fieldnames or ()
    if not {"video_id", "label", "split"} <= set(found):
        header = ",".join(found) or "nothing"
        raise LabelError(f"{path}: expected the header video_id,label,split, found {header}")
    labels = Labels(path, hashlib.sha256(data).hexdigest(), {}, {})
    for line, row in rows:
        _add(labels, row, f"{path}, line {line}")
    return labels


def _add(labels: Labels, row: dict[str, str | None], where: str) -> None:
    video, label, split = ((row[key] or "").strip() for key in ("video_id", "label", "split"))
    classes = tuple(dict.fromkeys(name.strip() for name in label.split("|") if name.strip()))
    if not video or not classes:
        raise LabelError(f"{where}: expected a video_id and a label, found {video!r}, {label!r}")
    if split not in SPLITS:
        raise LabelError(f"{where}: split must be one of {', '.join(SPLITS)}, found {split!r}")
    if video in labels.split_of:
        raise LabelError(f"{where}: {video!r} stands twice; join several labels by |")
    labels.classes_of[video], labels.split_of[video] = classes, split
