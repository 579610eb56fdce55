"""Labels, pairs of stores, packed batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extract.store import FeatureWriter, StoreError, StoreIdentity, VideoFeatures
from liteeval_train.data import (
    DataError,
    EpochSampler,
    Packing,
    Sample,
    VideoSet,
    collate,
    epoch_batches,
    evenly_spaced,
    open_pair,
    read_labels,
    require_labelled,
    with_uniforms,
)

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def write_store(
    path: Path,
    videos: dict[str, int],
    *,
    dim: int,
    gflops: float,
    fps: float = 1.0,
    late=(),
    dtype=np.float16,
) -> Path:
    """A store whose row t of every video is filled with t; rows of `late` stand 0.5 s later."""
    identity = StoreIdentity("b", 8, "w", "", {}, fps, dim, gflops, "1 multiply-add = 1 FLOP", 1)
    with FeatureWriter(path, identity) as writer:
        for video, rows in videos.items():
            pts = np.arange(rows) / fps
            if video in late:
                pts[1:] += 0.5
            features = np.repeat(np.arange(rows, dtype=dtype)[:, None], dim, axis=1)
            index = np.arange(rows)
            item = VideoFeatures(features, pts, index, rows / fps, 25.0, video, 1, "pyav")
            writer.add(video, item)
    return path


def write_pair(folder: Path, videos: dict[str, int]) -> tuple[Path, Path]:
    return (
        write_store(folder / "coarse", videos, dim=3, gflops=0.1),
        write_store(folder / "fine", videos, dim=5, gflops=1.0),
    )


def write_labels(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def sample(rows: int, number: int = 0) -> Sample:
    t = np.arange(rows)
    features = np.stack([np.full(rows, number), t], axis=1).astype(np.float16)
    return Sample(f"v{number}", t, t * 1.0, features, features, (number % 2,), number)


# ---------------------------------------------------------------------------------------- labels


def test_an_id_may_hold_the_end_of_a_line(tmp_path: Path):
    """As `liteeval-extract run` stores it."""
    text = 'video_id,label,split\n"new\nline",x,train\nplain,y,val\n'
    assert list(read_labels(write_labels(tmp_path, text)).videos) == ["new\nline", "plain"]


def test_labels_keep_several_classes_of_a_video(tmp_path):
    labels = read_labels(
        write_labels(tmp_path, "video_id,label,split\na/1,run|jump,train\na/2,jump,val\n")
    )
    assert labels.videos == {"a/1": ("run", "jump"), "a/2": ("jump",)}
    assert labels.classes == ["jump", "run"]
    assert labels.in_split("val") == ["a/2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label,split\na,b,train\n", "expected the header video_id,label,split, found id"),
        ("video_id,label,split\na,b,dev\n", "line 2: split must be .* found 'dev'"),
        ("video_id,label,split\na,b,train\na,c,train\n", "line 3: 'a' stands twice"),
        ("video_id,label,split\na,b,train\na,b,val\n", "'a' stands in splits train and val"),
        ("video_id,label,split\n\n\na,b,dev\n", "line 4: split must be"),
        ("video_id,label,split\na,,train\n", "expected a video_id and a label"),
        ("video_id,label,split\na\n", "expected a video_id and a label"),
        ("", "found nothing"),
    ],
)
def test_wrong_label_files_are_refused_with_their_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_labels(write_labels(tmp_path, text))


# ---------------------------------------------------------------------------------------- stores


def test_store_without_a_part_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no feature store here"):
        open_pair(tmp_path, tmp_path)


def test_swapped_stores_are_refused(tmp_path):
    coarse, fine = write_pair(tmp_path, {"a": 3})
    with pytest.raises(DataError, match="are they swapped"):
        open_pair(fine, coarse)


def test_first_video_that_only_one_store_holds_is_named(tmp_path):
    coarse = write_store(tmp_path / "c", {"a": 3, "b": 3, "c": 3}, dim=3, gflops=0.1)
    fine = write_store(tmp_path / "f", {"a": 3, "c": 3}, dim=5, gflops=1.0)
    with pytest.raises(DataError, match=r"/c holds 'b', .*/f does not \(3 and 2 videos\)"):
        open_pair(coarse, fine)


def test_stores_of_different_rate_or_length_are_refused(tmp_path):
    coarse = write_store(tmp_path / "c", {"a": 3}, dim=3, gflops=0.1)
    faster = write_store(tmp_path / "f2", {"a": 3}, dim=5, gflops=1.0, fps=2.0)
    longer = write_store(tmp_path / "f4", {"a": 4}, dim=5, gflops=1.0)
    with pytest.raises(DataError, match=r"1 frames per second, .* 2;"):
        open_pair(coarse, faster)
    with pytest.raises(DataError, match=r"'a' has 3 rows in .*/c, 4 in .*/f4"):
        open_pair(coarse, longer)


def test_stores_of_other_presentation_times_are_refused(tmp_path):
    coarse = write_store(tmp_path / "c", {"a": 3}, dim=3, gflops=0.1)
    fine = write_store(tmp_path / "f", {"a": 3}, dim=5, gflops=1.0, late=("a",))
    with pytest.raises(DataError, match=r"'a', row 1: 1 s in .*/c, 1.5 s in .*/f"):
        open_pair(coarse, fine)


def test_stores_whose_parts_hold_the_videos_in_another_order_belong_together(tmp_path):
    coarse = write_store(tmp_path / "c", {"a": 3, "b": 4}, dim=3, gflops=0.1)
    write_store(tmp_path / "f", {"b": 4}, dim=5, gflops=1.0)
    fine = write_store(tmp_path / "f", {"a": 3, "b": 4}, dim=5, gflops=1.0)  # b stands twice
    assert open_pair(coarse, fine).fine.video_ids == ["a", "b"]


def test_videos_without_labels_and_labels_without_videos_are_told(tmp_path):
    pair = open_pair(*write_pair(tmp_path, {"a": 3, "b": 3}))
    labels = read_labels(
        write_labels(tmp_path, "video_id,label,split\na,x,train\nghost,x,train\nq,x,val\n")
    )
    with pytest.raises(DataError, match=r"no label for 'b' .*1 of 2 .*--ignore-unlabelled"):
        require_labelled(pair, labels)
    assert VideoSet(pair, labels, "train", classes=["x"], max_frames=9).missing == ["ghost"]
    with pytest.raises(DataError, match="no video of split 'val'"):
        VideoSet(pair, labels, "val", classes=["x"], max_frames=9)


def test_class_that_no_training_video_has_is_named(tmp_path):
    pair = open_pair(*write_pair(tmp_path, {"a": 3}))
    labels = read_labels(write_labels(tmp_path, "video_id,label,split\na,new,val\n"))
    with pytest.raises(DataError, match="class 'new' of 'a'"):
        VideoSet(pair, labels, "val", classes=["old"], max_frames=9)


def test_long_videos_are_seen_at_evenly_spaced_rows(tmp_path):
    pair = open_pair(*write_pair(tmp_path, {"a": 8}))
    labels = read_labels(write_labels(tmp_path, "video_id,label,split\na,x,train\n"))
    seen = VideoSet(pair, labels, "train", classes=["x"], max_frames=4)[0]
    assert seen.rows.tolist() == [1, 3, 5, 7]
    assert seen.fine_TD[:, 0].tolist() == [1, 3, 5, 7]
    assert seen.pts_seconds.tolist() == [1, 3, 5, 7]


def test_float32_beside_float16_is_read_as_it_stands(tmp_path):
    coarse = write_store(tmp_path / "c", {"a": 3}, dim=3, gflops=0.1, dtype=np.float32)
    fine = write_store(tmp_path / "f", {"a": 3}, dim=5, gflops=1.0)
    labels = read_labels(write_labels(tmp_path, "video_id,label,split\na,x,train\n"))
    videos = VideoSet(open_pair(coarse, fine), labels, "train", classes=["x"], max_frames=9)
    batch = collate([videos[0]], classes=1)
    assert (batch.coarse_ND.dtype, batch.fine_ND.dtype) == (torch.float32, torch.float16)
    moved = batch.to(torch.device("cpu"))
    assert moved.coarse_ND[:, 0].tolist() == moved.fine_ND[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_videos_read_again_are_the_same_with_and_without_memory(tmp_path, cache_bytes):
    pair = open_pair(*write_pair(tmp_path, {"a": 5, "b": 2}))
    labels = read_labels(write_labels(tmp_path, "video_id,label,split\na,x,train\nb,x,train\n"))
    videos = VideoSet(pair, labels, "train", classes=["x"], max_frames=4, cache_bytes=cache_bytes)
    first, again = videos[0], videos[0]
    assert (first is again) == (cache_bytes > 0)
    assert first.fine_TD.tolist() == again.fine_TD.tolist()
    assert first.rows.tolist() == again.rows.tolist() == evenly_spaced(5, 4).tolist()


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [(np.float16, 2), (np.float32, 4)])
def test_rows_are_kept_in_memory_only_where_their_bytes_fit(tmp_path, dtype, bytes_per_value):
    coarse = write_store(tmp_path / "c", {"a": 5}, dim=3, gflops=0.1, dtype=dtype)
    fine = write_store(tmp_path / "f", {"a": 5}, dim=5, gflops=1.0, dtype=dtype)
    labels = read_labels(write_labels(tmp_path, "video_id,label,split\na,x,train\n"))
    whole = 5 * (3 + 5) * bytes_per_value
    for cache_bytes in (whole - 1, whole):
        videos = VideoSet(
            open_pair(coarse, fine),
            labels,
            "train",
            classes=["x"],
            max_frames=9,
            cache_bytes=cache_bytes,
        )
        assert (videos[0] is videos[0]) == (cache_bytes == whole)


def test_processes_share_out_every_batch():
    samplers = [
        EpochSampler(21, batch_videos=8, seed=1, rank=rank, processes=2) for rank in range(2)
    ]
    for sampler in samplers:
        sampler.epoch = 3
    shares = [list(sampler) for sampler in samplers]
    assert len(samplers[0]) == len(shares[0]) == len(shares[1]) == 3
    whole = epoch_batches(21, batch_videos=8, seed=1, epoch=3)
    for left, right, batch in zip(*shares, whole, strict=True):
        assert sorted([*left, *right]) == sorted((3, int(number)) for number in batch)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_evenly_spaced_rows_are_distinct_and_in_range(rows, wanted):
    chosen = evenly_spaced(rows, wanted)
    assert len(chosen) == min(rows, wanted)
    assert chosen[0] >= 0
    assert chosen[-1] < rows
    assert len(chosen) == 1 or np.diff(chosen).min() >= 1
    assert len(chosen) < 3 or np.ptp(np.diff(chosen)) <= 1


# --------------------------------------------------------------------------------------- batches


@given(lengths)
def test_packing_gives_every_row_of_every_video_one_place(lengths):
    packing = Packing(sorted(lengths, reverse=True))
    places = np.concatenate([packing.rows_of(video) for video in range(len(lengths))])
    assert sorted(places.tolist()) == list(range(sum(lengths))) == list(range(packing.rows))
    assert packing.step_sizes == [sum(n > t for n in lengths) for t in range(max(lengths))]


@given(lengths)
def test_batch_holds_each_video_in_time_order(lengths):
    batch = collate([sample(rows, number) for number, rows in enumerate(lengths)], classes=2)
    for video, item in enumerate(batch.samples):
        rows_T2 = batch.fine_ND[torch.from_numpy(batch.packing.rows_of(video))]
        assert rows_T2[:, 0].tolist() == [item.number] * len(item.rows)
        assert rows_T2[:, 1].tolist() == list(range(len(item.rows)))
        assert batch.labels_BK[video].tolist() == [item.number % 2 == k for k in range(2)]
    assert batch.fine_ND.dtype == torch.float16
    assert batch.to(torch.device("cpu")).fine_ND.dtype == torch.float32


def test_random_numbers_of_a_video_depend_on_seed_epoch_and_video_alone():
    drawn = {
        key: with_uniforms(sample(4, key[2]), seed=key[0], epoch=key[1]).uniform_T2.tobytes()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(set(drawn.values())) == 4
    assert drawn[0, 0, 1] == with_uniforms(sample(4, 1), seed=0, epoch=0).uniform_T2.tobytes()


def test_epoch_shows_every_video_once_in_nearly_equal_batches():
    batches = epoch_batches(165, batch_videos=16, seed=3, epoch=2)
    assert [len(batch) for batch in batches] == [15] * 11
    assert sorted(np.concatenate(batches).tolist()) == list(range(165))
    assert not np.array_equal(batches[0], epoch_batches(165, batch_videos=16, seed=3, epoch=3)[0])
