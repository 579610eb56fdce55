"""The extraction loop: right features, resumed after any end, no committed part ever harmed."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Clip, steady_times
from damage import damaged_clips, time_limit
from test_hostile_media import SEEDS, mutate

from extract.backbones import Backbone, load_backbone, parse_backbone
from extract.decode import decode_video, sample_frames
from extract.deep import recompute_sample
from extract.rows import iter_rows
from extract.run import Committed, ExtractOptions, Extractor, extract_features
from extract.store import FeatureStore, FeatureWriter, StoreError, part_paths, verify_store
from extract.supervise import SLOTS_PER_WORKER, DecodeLimits, DecodeTask
from extract.videos import Video, find_videos

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(8):
        name = f"{'sub/' if i % 2 else ''}clip {i}.{'mkv' if i % 3 else 'mp4'}"
        times = steady_times(20 + 13 * i, 25)
        Clip(name, "libx264", times, rate=Fraction(25)).build(folder)
    return folder


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone(parse_backbone("mobilenet_v2@32"), "random")


@pytest.fixture(scope="module")
def larger() -> Backbone:
    return load_backbone(parse_backbone("mobilenet_v2@64"), "random")


def options(**changes: object) -> ExtractOptions:
    return ExtractOptions(**{"fps": 4.0, "workers": 2, "batch_size": 7, **changes})  # type: ignore[arg-type]


def assert_same(a: Path, b: Path) -> None:
    """Same ids, times and frames; features within float16 rounding of the same values."""
    left, right = FeatureStore(a), FeatureStore(b)
    assert left.video_ids == right.video_ids
    for video_id in left.video_ids:
        x, y = left[video_id], right[video_id]
        np.testing.assert_array_equal(x.pts_seconds, y.pts_seconds)
        np.testing.assert_array_equal(x.frame_index, y.frame_index)
        scale = np.abs(x.features).max()
        np.testing.assert_allclose(x.features, y.features, atol=1e-3 * float(scale))


@pytest.fixture(scope="module")
def whole(folder: Path, small: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    summary = extract_features(find_videos([folder]), out, [small], options())
    assert (summary.videos, summary.failures, summary.interrupted) == (8, 0, False)
    return out / small.spec.store_name


def test_rows_are_the_features_of_the_sampled_frames(
    whole: Path, folder: Path, small: Backbone
) -> None:
    store = FeatureStore(whole)
    for video in find_videos([folder]):
        sampled = sample_frames(video.path, 4.0)
        stored = store[video.id]
        np.testing.assert_array_equal(stored.pts_seconds, sampled.pts_seconds)
        np.testing.assert_array_equal(stored.frame_index, sampled.frame_index)
        assert stored.source_path == str(video.path)
        assert stored.source_bytes == video.path.stat().st_size
        pixels = [small.spec.preprocessing.resize_and_crop(frame) for frame in sampled.frames]
        with torch.inference_mode():
            expected = small.extractor(torch.from_numpy(np.stack(pixels))).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(stored.features, expected, atol=1e-3 * float(scale))
    assert verify_store(whole) == []


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (3, 64)])
def test_workers_and_batch_size_change_no_feature(
    whole: Path, folder: Path, small: Backbone, tmp_path: Path, workers: int, batch_size: int
) -> None:
    opts = options(workers=workers, batch_size=batch_size)
    extract_features(find_videos([folder]), tmp_path, [small], opts)
    assert_same(tmp_path / small.spec.store_name, whole)


def test_other_backbones_in_a_run_change_no_feature(
    whole: Path, folder: Path, small: Backbone, larger: Backbone, tmp_path: Path
) -> None:
    extract_features(find_videos([folder]), tmp_path, [larger, small], options())
    assert_same(tmp_path / small.spec.store_name, whole)
    assert len(FeatureStore(tmp_path / larger.spec.store_name)) == 8


def test_a_second_run_only_does_what_is_missing(
    folder: Path, small: Backbone, larger: Backbone, tmp_path: Path
) -> None:
    videos = find_videos([folder])
    extract_features(videos[:3], tmp_path, [small], options())
    parts = part_paths(tmp_path / small.spec.store_name)
    again = extract_features(videos, tmp_path, [small], options())
    assert (again.already_stored, again.videos) == (3, 5)
    assert set(parts) < set(part_paths(tmp_path / small.spec.store_name))
    extract_features(videos, tmp_path, [small, larger], options())
    assert len(FeatureStore(tmp_path / larger.spec.store_name)) == 8
    nothing = extract_features(videos, tmp_path, [small, larger], options())
    assert (nothing.already_stored, nothing.videos, nothing.rows) == (8, 0, 0)


def test_a_source_that_has_changed_is_told(
    folder: Path, small: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "v" / "a.mp4"
    video.parent.mkdir()
    video.write_bytes((folder / "clip 0.mp4").read_bytes())
    extract_features(find_videos([video]), tmp_path / "o", [small], options())
    video.write_bytes((folder / "clip 2.mkv").read_bytes())
    summary = extract_features(find_videos([video]), tmp_path / "o", [small], options())
    assert (summary.changed_sources, summary.already_stored) == (1, 1)
    assert "of another size now" in capsys.readouterr().err


def test_bad_videos_are_listed_and_the_others_done(
    folder: Path, small: Backbone, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.mp4").write_text("this is no video\n" * 50)
    (bad / "empty.mp4").touch()
    good = (folder / "clip 0.mp4").read_bytes()
    (bad / "cut.mp4").write_bytes(good[: len(good) // 2])
    (bad / "good.mp4").write_bytes(good)
    summary = extract_features(find_videos([bad]), tmp_path / "out", [small], options())
    assert (summary.videos, summary.failures) == (1, 3)
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    records = {record["video_id"]: record for record in map(json.loads, lines)}
    assert records.keys() == {"text", "empty", "cut"}
    for record in records.values():
        assert record.keys() == {"video_id", "path", "stage", "error", "attempts", "utc"}
        assert record["attempts"] == 2
    assert "empty" in records["empty"]["error"]
    assert FeatureStore(tmp_path / "out" / small.spec.store_name).video_ids == ["good"]


def test_a_store_of_another_identity_is_refused_before_any_work(
    whole: Path, folder: Path, small: Backbone
) -> None:
    before = sorted(whole.parent.rglob("*"))
    with pytest.raises(StoreError, match="sample_fps"):
        extract_features(find_videos([folder]), whole.parent, [small], options(fps=1.0))
    assert sorted(whole.parent.rglob("*")) == before


def test_a_video_is_in_all_stores_or_in_none(
    folder: Path, small: Backbone, larger: Backbone, tmp_path: Path
) -> None:
    """A row that is not finite in one network leaves the video out of the other's store too."""
    broken = copy.deepcopy(larger)
    last = broken.extractor.network.features[-1]  # convolution, normalisation, ReLU6
    last[1].weight.fill_(1e30)
    last[2] = torch.nn.Identity()
    summary = extract_features(find_videos([folder])[:2], tmp_path, [small, broken], options())
    assert (summary.videos, summary.failures) == (0, 2)
    assert not part_paths(tmp_path / small.spec.store_name)
    assert "not finite" in (tmp_path / "failures.jsonl").read_text()


def test_source_paths_are_absolute(
    folder: Path, small: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    extract_features(find_videos([Path("clip 0.mp4")]), tmp_path, [small], options())
    stored = FeatureStore(tmp_path / small.spec.store_name)["clip 0"]
    assert stored.source_path == str(folder / "clip 0.mp4")


def test_a_video_that_vanishes_is_a_failure_not_an_end(
    folder: Path, small: Backbone, tmp_path: Path
) -> None:
    videos = [Video("gone", tmp_path / "gone.mp4"), *find_videos([folder])[:1]]
    summary = extract_features(videos, tmp_path / "out", [small], options())
    assert (summary.videos, summary.failures) == (1, 1)


def test_hanging_videos_take_their_limit_and_no_more(
    folder: Path, small: Backbone, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    videos = [Video("pipe", tmp_path / "pipe.mp4"), *find_videos([folder])]
    opts = options(limits=DecodeLimits(timeout_seconds=1.0))
    summary = extract_features(videos, tmp_path / "out", [small], opts)
    assert (summary.videos, summary.failures) == (8, 1)


def test_more_damaged_videos_than_a_worker_has_slots_are_all_stored(
    small: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    videos = find_videos(damaged_clips(tmp_path / "videos", 3 * SLOTS_PER_WORKER))
    with time_limit(60):
        summary = extract_features(videos, tmp_path / "out", [small], options(workers=1))
    assert (summary.videos, summary.failures) == (3 * SLOTS_PER_WORKER, 0)
    assert len(FeatureStore(tmp_path / "out" / small.spec.store_name)) == 3 * SLOTS_PER_WORKER


def test_mutants_in_a_run_end_as_rows_or_as_a_failure(small: Backbone, tmp_path: Path) -> None:
    """Six of each kind of file: the run ends by itself, and each is in the store or in failures."""
    folder = tmp_path / "videos"
    random_bytes = np.random.default_rng(0)
    for clip in SEEDS:
        content = clip.build(tmp_path).read_bytes()
        for number in range(6):
            path = folder / f"{clip.name}-{number}.{clip.suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(mutate(content, random_bytes))
    opts = options(limits=DecodeLimits(timeout_seconds=5.0, memory_bytes=1 << 30))
    with time_limit(200):
        summary = extract_features(find_videos([folder]), tmp_path / "out", [small], opts)
    assert summary.videos + summary.failures == 6 * len(SEEDS)
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    failed = {json.loads(line)["video_id"] for line in lines}
    stored = set(FeatureStore(tmp_path / "out" / small.spec.store_name).video_ids)
    assert stored | failed == {video.id for video in find_videos([folder])}
    assert stored
    assert not stored & failed
    assert verify_store(tmp_path / "out" / small.spec.store_name) == []


def test_a_file_that_grows_while_it_is_read_is_left_to_the_next_run(
    folder: Path, small: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of 46 frames was there when it was decoded, all of them when it was to be stored."""
    whole = (folder / "clip 2.mkv").read_bytes()
    copied = tmp_path / "v" / "a.mkv"
    copied.parent.mkdir()
    copied.write_bytes(whole[: len(whole) // 2])
    store = Extractor._store

    def copy_and_store(self: Extractor, video_id: str) -> object:
        copied.write_bytes(whole)
        return store(self, video_id)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Extractor, "_store", copy_and_store)
        summary = extract_features(find_videos([copied]), out, [small], options())
    assert (summary.videos, summary.failures) == (0, 1)
    (record,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert f"was written to while it was read ({len(whole) // 2} bytes" in record["error"]
    again = extract_features(find_videos([copied]), out, [small], options())
    assert (again.videos, again.failures, again.changed_sources) == (1, 0, 0)
    stored = FeatureStore(out / small.spec.store_name)["a"]
    assert (len(stored.features), stored.source_bytes) == (8, len(whole))  # 1.84 s at 4 rows


def test_what_is_complete_is_committed_while_a_decode_process_stalls(
    folder: Path, small: Backbone, tmp_path: Path
) -> None:
    """The rows of two videos do not fill a batch, and nothing comes after them."""
    os.mkfifo(tmp_path / "pipe.mp4")
    videos = [*find_videos([folder])[:2], Video("pipe", tmp_path / "pipe.mp4")]
    tasks = [DecodeTask(v.id, v.path, (small.spec.store_name,)) for v in videos]
    stalling = DecodeLimits(timeout_seconds=600.0)
    opts = options(workers=1, batch_size=64, commit_seconds=0.1, limits=stalling)
    with time_limit(60), Extractor(tmp_path / "out", [small], opts) as extractor:
        outcomes = chain(extractor.add(tasks), extractor.finish())
        committed = next(o for o in outcomes if isinstance(o, Committed))
    assert set(committed.video_ids) == {video.id for video in videos[:2]}


def test_rows_of_one_frame_go_through_the_networks_once(small: Backbone, tmp_path: Path) -> None:
    """Two frames, half an hour apart: at 4 rows a second 7200 of the first and one of the second.

    The network gives rows their number in the batch: 0 and 1, for the two frames fill one.
    """
    times = (Fraction(0), Fraction(1800))
    clip = Clip("bomb.mkv", "libx264", times, time_base=Fraction(1, 1000))
    numbering = copy.deepcopy(small)
    numbering.extractor.register_forward_hook(
        lambda module, given, out: torch.arange(len(out)).float()[:, None].expand_as(out)
    )
    videos = find_videos([clip.build(tmp_path)])
    summary = extract_features(videos, tmp_path / "out", [numbering], options())
    assert summary.rows == 7201
    stored = FeatureStore(tmp_path / "out" / small.spec.store_name)["bomb"]
    assert stored.frame_index.tolist() == [0] * 7200 + [1]
    assert stored.features[:, 0].tolist() == [0] * 7200 + [1]


def test_deep_verification_computes_a_sample_of_a_long_videos_rows(
    folder: Path, small: Backbone, tmp_path: Path
) -> None:
    """111 rows, of which 32 are computed: row 1, the middle of the first 3.47, is the first."""
    videos = [video for video in find_videos([folder]) if video.id == "sub/clip 7"]
    extract_features(videos, tmp_path, [small], options(fps=25.0))
    store = FeatureStore(tmp_path / small.spec.store_name)
    counting, computed = copy.deepcopy(small), []
    counting.extractor.register_forward_hook(lambda module, given, out: computed.append(len(out)))
    assert recompute_sample(store, counting) == []
    assert (len(store["sub/clip 7"].features), sum(computed)) == (111, 32)
    with FeatureWriter(tmp_path / "wrong", store.identity) as writer:
        video = store["sub/clip 7"]
        video.features[1] *= 2
        writer.add("sub/clip 7", video)
    (problem,) = recompute_sample(FeatureStore(tmp_path / "wrong"), small)
    assert "row 1 differs" in problem


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from extract.backbones import load_backbone, parse_backbone
from extract.run import ExtractOptions, extract_features
from extract.videos import find_videos
if __name__ == "__main__":
    backbone = load_backbone(parse_backbone("mobilenet_v2@32"), "random")
    options = ExtractOptions(fps=4.0, workers=2, batch_size=7, commit_videos=1)
    print("ready", flush=True)
    summary = extract_features(find_videos([Path({folder!r})]), Path({out!r}), [backbone], options)
    sys.exit(130 if summary.interrupted else 0)
"""


def start(folder: Path, out: Path, script: Path) -> subprocess.Popen[str]:
    script.write_text(SCRIPT.format(root=str(ROOT), folder=str(folder), out=str(out)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_another_part(process: subprocess.Popen[str], store: Path, kept: set[Path]) -> None:
    while not set(part_paths(store)) - kept:
        assert process.poll() is None
        time.sleep(0.01)


def test_killed_runs_lose_no_committed_part_and_are_completed(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    """Killed once at any moment, then twice just after a part was written."""
    out = tmp_path / "out"
    store = out / whole.name
    kept: set[Path] = set()
    generator = random.Random(0)
    for after_a_part, within_seconds in ((False, 2.0), (True, 0.02), (True, 0.02)):
        process = start(folder, out, tmp_path / "run.py")
        if after_a_part:
            wait_for_another_part(process, store, kept)
        time.sleep(generator.uniform(0.0, within_seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kept <= set(part_paths(store))
        kept = set(part_paths(store))
        assert not kept or verify_store(store) == []
    assert len(kept) >= 2
    assert start(folder, out, tmp_path / "run.py").wait(timeout=120) == 0
    assert kept <= set(part_paths(store))
    assert_same(store, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB; the test may let it grow."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_harms_nothing(
    whole: Path, folder: Path, small: Backbone, small_disk: Path
) -> None:
    videos, opts = find_videos([folder]), options(commit_videos=1)
    with pytest.raises(StoreError, match="Free space"):
        extract_features(videos, small_disk, [small], opts)
    store = small_disk / whole.name
    assert 0 < len(FeatureStore(store)) < len(videos)
    assert verify_store(store) == []
    assert not list(store.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    extract_features(videos, small_disk, [small], opts)
    assert_same(store, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_what_is_complete_and_says_interrupted(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    os.mkfifo(folder / "waits.mp4")  # keeps the run alive until the signal
    try:
        process = start(folder, out, tmp_path / "run.py")
        store = out / "mobilenet_v2_32"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not part_paths(store):
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
    finally:
        (folder / "waits.mp4").unlink()
    assert verify_store(store) == []
    assert not list(store.glob("*.tmp"))


def test_two_runs_on_one_output_give_a_sound_store(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    processes = [start(folder, out, tmp_path / f"run{i}.py") for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert verify_store(out / whole.name) == []
    assert_same(out / whole.name, whole)


def test_a_network_on_clips_is_extracted_as_it_answers_by_itself(tmp_path: Path) -> None:
    """SlowFast on a video of one second: 25 frames, one row."""
    slowfast = load_backbone(parse_backbone("slowfast_r50@224"), "random")
    clip = Clip("second.mp4", "libx264", steady_times(25, 25)).build(tmp_path)
    pixels = {"s": slowfast.spec.preprocessing}
    (row,) = decode_video(clip, lambda video: list(iter_rows(video, 1.0, pixels)))
    with torch.inference_mode():
        expected = slowfast.extractor(torch.from_numpy(row["s"])[None])[0].numpy()
    summary = extract_features(find_videos([clip]), tmp_path / "out", [slowfast], options(fps=1.0))
    assert (summary.videos, summary.rows) == (1, 1)
    stored = FeatureStore(tmp_path / "out" / slowfast.spec.store_name)["second"].features[0]
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
