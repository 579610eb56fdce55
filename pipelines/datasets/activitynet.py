"""ActivityNet v1.3 (and v1.2): one JSON file that lists YouTube ids with labelled segments.

    {"version": "VERSION 1.3", "taxonomy": […], "database": {"sJ_MuQUNzxQ": {
        "subset": "training", "annotations": [{"segment": [0, 9.5], "label": "Rock climbing"}]}}}

Files are v_ID.mp4, .mkv or .webm, or ID alone, in any folder. The segments of a video become its
labels, each once. Test videos have no published labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.datasets.listing import (
    DataSet,
    DataSetError,
    Listed,
    Source,
    check_label,
    parse_split,
)

YOUTUBE_ID_LENGTH = 11
PREFIX = "v_"


def fold_name(name: str) -> str:
    """v_ID → ID; an id may begin with v_ itself."""
    return name[len(PREFIX) :] if _is_prefixed(name) else name


def _is_prefixed(name: str) -> bool:
    return name.startswith(PREFIX) and len(name) != YOUTUBE_ID_LENGTH


def read(source: Source, files: Sequence[PurePosixPath]) -> list[Listed]:
    """Raises: DataSetError if a file is not ActivityNet's JSON."""
    return [video for path in source.annotations for video in _read_file(path)]


def _read_file(path: Path) -> Iterator[Listed]:
    for video_id, entry in _read_database(path).items():
        where = f"{path}: {video_id!r}"
        try:
            subset, annotations = entry["subset"], entry.get("annotations") or []
            labels = [check_label(item["label"], where) for item in annotations]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataSetError(
                f"{where}: expected a subset, and annotations with a label each; {error!r}"
            ) from error
        yield Listed(video_id, tuple(dict.fromkeys(labels)), parse_split(subset, where))


def _read_database(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataSetError(f"{path}: not a readable JSON file ({error})") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataSetError(
            f"{path}: expected a mapping `database` from ids to annotations; give "
            "activity_net.v1-3.min.json"
        )
    return database


DATASET = DataSet("ActivityNet", "activity_net.v1-3.min.json", read, fold_name, unique_names=True)
