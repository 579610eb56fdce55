"""Stores in the formats of other tools: a .npy per video, or one Parquet file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from extract.store import ROW_COLUMNS, FeatureStore, StoreError, VideoFeatures

_VIDEO_FIELDS = (
    "duration_seconds", "source_fps", "source_path", "source_bytes", "decoder", "corrupt_frames",
)  # fmt: skip
_NPY_COLUMNS = ("features", *ROW_COLUMNS)
LONGEST_NAME_BYTES = 255  # of common file systems
ROW_GROUP_BYTES = 32 << 20  # of features, before compression


def export_npy(store: FeatureStore, out: Path) -> None:
    """Per video ID.npy (T, D), ID.pts_seconds.npy and ID.frame_index.npy (T,); for all
    videos.csv and identity.json.

    Raises: StoreError, before anything is written, if the ids cannot all be files in one folder;
        if a file cannot be written.
    """
    targets = _npy_files(store.video_ids)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "identity.json").write_text(json.dumps(_identity(store), indent=2))
        with (out / "videos.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["video_id", "rows", *_VIDEO_FIELDS])
            for video_id, video in _videos(store):
                for target, name in zip(targets[video_id], _NPY_COLUMNS, strict=True):
                    (out / target).parent.mkdir(parents=True, exist_ok=True)
                    np.save(out / target, getattr(video, name))
                facts = [getattr(video, name) for name in _VIDEO_FIELDS]
                table.writerow([video_id, len(video.features), *facts])
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error})") from error


def export_parquet(store: FeatureStore, path: Path) -> None:
    """One row per stored row: video_id, row, pts_seconds, frame_index, features (list of float).

    The identity is in the file's metadata under `liteeval`.
    Raises: StoreError if pyarrow is not installed or the file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise StoreError("Parquet needs pyarrow: pip install 'liteeval[parquet]'") from error
    dim = store.identity.feature_dim
    schema = pa.schema(
        [
            ("video_id", pa.string()),
            ("row", pa.int64()),
            ("pts_seconds", pa.float64()),
            ("frame_index", pa.int64()),
            ("features", pa.list_(pa.float32(), dim)),
        ],
        metadata={"liteeval": json.dumps(_identity(store))},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, schema) as writer:
            for group in _groups(store, max(1, ROW_GROUP_BYTES // (4 * dim))):
                writer.write_table(pa.concat_tables(_table(*item, schema) for item in group))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error})") from error


def _videos(store: FeatureStore) -> Iterator[tuple[str, VideoFeatures]]:
    for video_id in store.video_ids:
        yield video_id, store[video_id]


def _groups(store: FeatureStore, rows: int) -> Iterator[list[tuple[str, VideoFeatures]]]:
    """Videos in groups of about `rows` rows; readers pay for each group of a file."""
    group: list[tuple[str, VideoFeatures]] = []
    waiting = 0
    for video_id, video in _videos(store):
        group.append((video_id, video))
        waiting += len(video.features)
        if waiting >= rows:
            yield group
            group, waiting = [], 0
    if group:
        yield group


def _table(video_id: str, video: VideoFeatures, schema: Any) -> Any:
    import pyarrow as pa

    rows, dim = video.features.shape
    values = pa.array(video.features.astype(np.float32).ravel())
    columns = [
        pa.array([video_id] * rows),
        pa.array(np.arange(rows)),
        pa.array(video.pts_seconds),
        pa.array(video.frame_index),
        pa.FixedSizeListArray.from_arrays(values, dim),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _identity(store: FeatureStore) -> dict[str, Any]:
    identity = store.identity
    return {
        **identity.to_attributes(),
        "preprocessing": dict(identity.preprocessing),
        "versions": dict(identity.versions),
    }


def _npy_files(video_ids: list[str]) -> dict[str, list[PurePosixPath]]:
    """The files of each id, one for each of _NPY_COLUMNS, relative to the folder.

    Raises: StoreError if one would leave the folder, has too long a name, or is another's too.
    """
    owner: dict[PurePosixPath, str] = {}
    folders: dict[PurePosixPath, str] = {}
    targets: dict[str, list[PurePosixPath]] = {}
    for video_id in video_ids:
        path = PurePosixPath(video_id)
        if path.is_absolute() or ".." in path.parts:
            raise StoreError(f"the id {video_id!r} would leave the folder; {_PARQUET_INSTEAD}")
        suffixes = ["" if name == "features" else f".{name}" for name in _NPY_COLUMNS]
        targets[video_id] = [PurePosixPath(f"{path}{suffix}.npy") for suffix in suffixes]
        folders |= dict.fromkeys(path.parents, video_id)
        for target in targets[video_id]:
            if max(len(os.fsencode(part)) for part in target.parts) > LONGEST_NAME_BYTES:
                raise StoreError(f"a file for {video_id!r} has too long a name; {_PARQUET_INSTEAD}")
            if owner.setdefault(target, video_id) != video_id:
                raise StoreError(
                    f"{owner[target]!r} and {video_id!r} would share {target}; {_PARQUET_INSTEAD}"
                )
    for target in owner.keys() & folders.keys():
        raise StoreError(
            f"{target} would be a file of {owner[target]!r} and a folder of {folders[target]!r}; "
            f"{_PARQUET_INSTEAD}"
        )
    return targets


_PARQUET_INSTEAD = "export as Parquet instead"
