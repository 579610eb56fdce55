"""Exports: nothing overwritten, nothing half done, few row groups."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_store import DIM, make_video, write

from extract import export
from extract.export import export_npy, export_parquet
from extract.store import FeatureStore, StoreError


def store_of(folder: Path, **rows: int) -> FeatureStore:
    write(folder, {video_id: make_video(count, count) for video_id, count in rows.items()})
    return FeatureStore(folder)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a.pts_seconds"], r"'a' and 'a\.pts_seconds' would share a\.pts_seconds\.npy"),
        (["a", "a.frame_index"], r"would share a\.frame_index\.npy"),
        (["a/b", "a/./b"], r"would share a/b\.npy"),
        (["a", "a.npy/b"], r"a\.npy would be a file of 'a' and a folder of 'a\.npy/b'"),
        (["n" * 240], "has too long a name"),  # 240 + 16 for .frame_index.npy
        (["ü" * 120], "has too long a name"),
        (["a", "../b"], "would leave the folder"),
        (["/b"], "would leave the folder"),
    ],
)
def test_ids_that_cannot_all_be_files_are_refused_before_anything_is_written(
    tmp_path: Path, ids: list[str], message: str
) -> None:
    store = store_of(tmp_path / "s", **dict.fromkeys(ids, 2))
    with pytest.raises(StoreError, match=f"{message}.*Parquet instead"):
        export_npy(store, tmp_path / "npy")
    assert not (tmp_path / "npy").exists()
    export_parquet(store, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert sorted(set(table["video_id"].to_pylist())) == sorted(ids)


def test_the_longest_id_that_fits_is_written(tmp_path: Path) -> None:
    video_id = "n" * 239
    export_npy(store_of(tmp_path / "s", **{video_id: 2}), tmp_path / "npy")
    assert np.load(tmp_path / "npy" / f"{video_id}.frame_index.npy").tolist() == [0, 25]


def test_videos_share_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "s", **{f"{i:02d}": 1 + i % 3 for i in range(30)})
    export_parquet(store, tmp_path / "one.parquet")
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    monkeypatch.setattr(export, "ROW_GROUP_BYTES", 20 * 4 * DIM)  # 20 rows of float32
    export_parquet(store, tmp_path / "some.parquet")
    assert pq.ParquetFile(tmp_path / "some.parquet").num_row_groups == 3  # of 60 rows
    for name in ("one", "some"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        expected = np.concatenate([store[i].features for i in store.video_ids])
        np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), expected)
        assert table["row"].to_pylist() == [k for i in range(30) for k in range(1 + i % 3)]
