"""Stores in the formats of other tools: a .npy per video, or one Parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from extract.store import ROW_COLUMNS, FeatureStore, StoreError, VideoFeatures

_VIDEO_FIELDS = (
    "duration_seconds", "source_fps", "source_path", "source_bytes", "decoder", "corrupt_frames",
)  # fmt: skip


def export_npy(store: FeatureStore, out: Path) -> None:
    """Per video ID.npy (T, D), ID.pts_seconds.npy and ID.frame_index.npy (T,); for all
    videos.csv and identity.json.

    Raises: StoreError if an id would leave the folder, or a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "identity.json").write_text(json.dumps(_identity(store), indent=2))
        with (out / "videos.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["video_id", "rows", *_VIDEO_FIELDS])
            for video_id, video in _videos(store):
                target = out / f"{_inside(video_id)}.npy"
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, video.features)
                for name in ROW_COLUMNS:
                    np.save(target.with_name(f"{target.stem}.{name}.npy"), getattr(video, name))
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
            for video_id, video in _videos(store):
                rows = len(video.features)
                values = pa.array(video.features.astype(np.float32).ravel())
                columns = [
                    pa.array([video_id] * rows),
                    pa.array(np.arange(rows)),
                    pa.array(video.pts_seconds),
                    pa.array(video.frame_index),
                    pa.FixedSizeListArray.from_arrays(values, dim),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error})") from error


def _videos(store: FeatureStore) -> Iterator[tuple[str, VideoFeatures]]:
    for video_id in store.video_ids:
        yield video_id, store[video_id]


def _identity(store: FeatureStore) -> dict[str, Any]:
    identity = store.identity
    return {
        **identity.to_attributes(),
        "preprocessing": dict(identity.preprocessing),
        "versions": dict(identity.versions),
    }


def _inside(video_id: str) -> PurePosixPath:
    path = PurePosixPath(video_id)
    if path.is_absolute() or ".." in path.parts:
        raise StoreError(f"the id {video_id!r} would leave the folder; export as Parquet instead")
    return path
