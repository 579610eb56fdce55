"""The store: what is written is read, and nothing half-written is ever seen."""

import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.store import (
    MAX_OPEN_PARTS,
    FeatureStore,
    FeatureWriter,
    Part,
    StoreError,
    StoreIdentity,
    VideoFeatures,
    compact_store,
    describe_store,
    part_paths,
    verify_store,
)

DIM = 6


def make_identity(**changes: object) -> StoreIdentity:
    values = {
        "backbone": "mobilenet_v2",
        "input_size_px": 112,
        "weights": "weights.pth",
        "weights_sha256": "ab" * 32,
        "preprocessing": {"resize_px": 128, "mean": [0.1, 0.2, 0.3]},
        "sample_fps": 1.0,
        "feature_dim": DIM,
        "gflops_per_frame": 0.0822,
        "flop_convention": "1 multiply-add = 1 FLOP",
        "parameters": 3504872,
        "versions": {"python": "3.11"},
    }
    return StoreIdentity(**{**values, **changes})  # type: ignore[arg-type]


def make_video(rows: int, seed: int = 0, dtype: type = np.float16) -> VideoFeatures:
    rng = np.random.default_rng(seed)
    return VideoFeatures(
        features=rng.normal(size=(rows, DIM)).astype(dtype),
        pts_seconds=np.arange(rows, dtype=np.float64),
        frame_index=np.arange(rows, dtype=np.int64) * 25,
        duration_seconds=float(rows),
        source_fps=25.0,
        source_path=f"videos/{seed}.mp4",
        source_bytes=1000 + seed,
        decoder="pyav",
        corrupt_frames=seed % 3,
    )


def write(folder: Path, videos: dict[str, VideoFeatures], **identity: object) -> None:
    with FeatureWriter(folder, make_identity(**identity)) as writer:
        for video_id, video in videos.items():
            writer.add(video_id, video)


ids = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.dictionaries(ids, st.integers(1, 9), min_size=1, max_size=8),
    commit_after=st.integers(1, 8),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, lengths: dict[str, int], commit_after: int
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    videos = {i: make_video(rows, seed) for seed, (i, rows) in enumerate(lengths.items())}
    with FeatureWriter(folder, make_identity()) as writer:
        for count, (video_id, video) in enumerate(videos.items(), 1):
            writer.add(video_id, video)
            if count % commit_after == 0:
                writer.commit()
    store = FeatureStore(folder)
    assert store.video_ids == sorted(videos)
    assert store.identity == make_identity()
    for video_id, video in videos.items():
        read = store[video_id]
        np.testing.assert_array_equal(read.features, video.features)
        np.testing.assert_array_equal(read.pts_seconds, video.pts_seconds)
        np.testing.assert_array_equal(read.frame_index, video.frame_index)
        for name in ("duration_seconds", "source_fps", "source_path", "source_bytes", "decoder",
                     "corrupt_frames"):  # fmt: skip
            assert getattr(read, name) == getattr(video, name)
        assert store.rows(video_id) == len(video.features)
    assert verify_store(folder) == []


def test_a_part_follows_the_format_for_readers_without_our_code(tmp_path: Path) -> None:
    write(tmp_path / "s", {"a": make_video(2, 0), "b/c": make_video(3, 1)})
    (part,) = part_paths(tmp_path / "s")
    with h5py.File(part) as file:
        assert file.attrs["format"] == "liteeval-features"
        assert file.attrs["schema_version"] == 1
        assert file.attrs["gflops_per_frame"] == 0.0822
        assert json.loads(file.attrs["preprocessing"])["resize_px"] == 128
        assert file["features"].shape == (5, DIM)
        assert file["features"].dtype == np.float16
        assert file["video_offset"][:].tolist() == [0, 2, 5]
        assert file["video_id"].asstr()[:].tolist() == ["a", "b/c"]
        assert file["frame_index"][:].tolist() == [0, 25, 0, 25, 50]
        assert {"pts_seconds", "duration_seconds", "source_fps", "source_path", "source_bytes",
                "decoder", "corrupt_frames"} <= set(file)  # fmt: skip
    assert not os.access(part, os.W_OK) or os.geteuid() == 0
    assert part.stat().st_mode & 0o222 == 0


def test_float32_beside_float16_in_a_part_loses_nothing(tmp_path: Path) -> None:
    half = make_video(2, 0)
    full = dataclasses.replace(half, features=half.features.astype(np.float32) / 3)  # no float16
    write(tmp_path / "s", {"a": half, "b": full})
    store = FeatureStore(tmp_path / "s")
    np.testing.assert_array_equal(store["a"].features, half.features)
    np.testing.assert_array_equal(store["b"].features, full.features)


def test_a_part_that_does_not_fit_leaves_no_file_open(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = FeatureWriter(tmp_path / "s", make_identity())
    writer.add("a", make_video(40))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match="1 videos are not stored"):
            writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert not [name for name in opened if name.startswith(str(tmp_path))]
    assert list((tmp_path / "s").iterdir()) == []
    writer.commit()  # the same videos, once there is room
    assert FeatureStore(tmp_path / "s").video_ids == ["a"]


def test_an_unfinished_part_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    (folder / ".part-20261122T201500-aaaaaa.h5.tmp").write_bytes(b"half")
    assert FeatureStore(folder).video_ids == ["a"]
    assert verify_store(folder) == []


def kill_a_writer(folder: Path) -> Path:
    """The temporary file that a process leaves when it is killed in the middle of a commit."""
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent.parent), str(Path(__file__).parent)]!r}
import extract.store
from test_store import make_identity, make_video
extract.store._fsync = lambda path: (print("written", flush=True), time.sleep(60))
writer = extract.store.FeatureWriter({str(folder)!r}, make_identity())
writer.add("lost", make_video(50))
writer.commit()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    (left,) = folder.glob(".*")
    return left


def test_what_a_killed_writer_leaves_is_told_and_removed_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    left = kill_a_writer(folder)
    with pytest.raises(StoreError, match="1 unfinished part"):
        FeatureStore(folder)
    write(folder, {"a": make_video(2)})
    assert left.exists()  # for all that a writer knows, the other one is alive
    assert describe_store(folder)["unfinished_parts"] == [left.name]
    assert verify_store(folder) == []
    just_under, just_over = time.time() - 24 * 3600 + 60, time.time() - 24 * 3600 - 60
    os.utime(left, (just_under, just_under))
    FeatureWriter(folder, make_identity())
    assert left.exists()
    os.utime(left, (just_over, just_over))
    compact_store(folder)
    assert not left.exists()
    assert FeatureStore(folder).video_ids == ["a"]
    assert describe_store(folder)["unfinished_parts"] == []


def test_another_identity_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    with pytest.raises(StoreError, match=r"weights_sha256: 'ab.*sample_fps: 1.0 against 2.0"):
        FeatureWriter(folder, make_identity(weights_sha256="cd", sample_fps=2.0))
    other_versions = make_identity(versions={"python": "3.12"})
    FeatureWriter(folder, other_versions)  # versions are told, not compared


def test_of_two_writers_that_opened_an_empty_store_the_first_to_commit_has_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "s"
    first = FeatureWriter(folder, make_identity())
    second = FeatureWriter(folder, make_identity(weights_sha256="cd"))
    for writer, video_id in ((first, "a"), (second, "b"), (first, "c")):
        writer.add(video_id, make_video(2))
    first.commit()
    with pytest.raises(StoreError, match=r"identity\.json: another identity .*weights_sha256"):
        second.commit()
    first.add("c", make_video(2))
    first.commit()
    assert FeatureStore(folder).video_ids == ["a", "c"]
    assert verify_store(folder) == []
    assert not list(folder.glob(".*"))


RACE = """
import os, sys, time
sys.path[:0] = {paths!r}
from test_store import make_identity, make_video
from extract.store import FeatureWriter, StoreError
if sys.argv[3] == "no-links":
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")
    os.link = no_links
for i in range(20):
    folder = os.path.join(sys.argv[1], str(i))
    writer = FeatureWriter(folder, make_identity(weights_sha256=sys.argv[2]))
    writer.add(sys.argv[2], make_video(2))
    open(os.path.join(folder, "ready-" + sys.argv[2]), "w").close()
    while len([name for name in os.listdir(folder) if name.startswith("ready-")]) < 2:
        pass
    try:
        writer.commit()
    except StoreError:
        pass
"""


@pytest.mark.parametrize("links", ["links", "no-links"])
def test_writers_that_race_for_a_store_leave_one_identity(tmp_path: Path, links: str) -> None:
    script = RACE.format(paths=[str(Path(__file__).parent.parent), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), sha256, links])
        for sha256 in ("ab", "cd")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for folder in tmp_path.iterdir():
        assert len(FeatureStore(folder)) == 1
        assert verify_store(folder) == []


def test_a_claim_without_parts_lets_its_own_identity_go_on(tmp_path: Path) -> None:
    """As a kill between the claim and the first part leaves it."""
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    (part,) = part_paths(folder)
    part.unlink()
    with pytest.raises(StoreError, match=r"identity\.json.*sample_fps.*remove"):
        FeatureWriter(folder, make_identity(sample_fps=2.0))
    write(folder, {"b": make_video(2)})
    assert FeatureStore(folder).video_ids == ["b"]


def test_a_claim_that_is_damaged_or_differs_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    claim = folder / "identity.json"
    claim.chmod(0o644)
    claim.write_text(claim.read_text().replace('"sample_fps": 1.0', '"sample_fps": 2.0'))
    (problem,) = verify_store(folder)
    assert "differs from the parts in sample_fps: 1.0 against 2.0" in problem
    claim.write_text("{")
    (problem,) = verify_store(folder)
    assert "not a store's identity" in problem
    with pytest.raises(StoreError, match="remove the file"):
        FeatureWriter(folder, make_identity())
    assert FeatureStore(folder).video_ids == ["a"]  # readers look at parts alone


def test_a_store_without_a_claim_gets_that_of_its_parts(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    (folder / "identity.json").unlink()
    with pytest.raises(StoreError, match="sample_fps"):
        FeatureWriter(folder, make_identity(sample_fps=2.0))
    write(folder, {"b": make_video(2)})
    assert (folder / "identity.json").exists()
    assert FeatureStore(folder).video_ids == ["a", "b"]


def test_parts_that_disagree_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", {"a": make_video(2)})
    write(tmp_path / "b", {"b": make_video(2)}, sample_fps=2.0)
    (part,) = part_paths(tmp_path / "b")
    part.rename(tmp_path / "a" / part.name)
    with pytest.raises(StoreError, match=r"sample_fps"):
        FeatureStore(tmp_path / "a")
    assert any("sample_fps" in problem for problem in verify_store(tmp_path / "a"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_value_that_is_not_finite_is_stored(tmp_path: Path, value: float) -> None:
    video = make_video(2)
    video.features[1, 3] = value
    with FeatureWriter(tmp_path / "s", make_identity()) as writer:
        with pytest.raises(ValueError, match="not finite"):
            writer.add("a", video)
        writer.add("b", make_video(1))
    assert FeatureStore(tmp_path / "s").video_ids == ["b"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pts_seconds": np.array([0.0, np.nan])}, "pts_seconds holds values that are not finite"),
        ({"pts_seconds": np.array([1.0, 0.0])}, "not in order"),
        ({"frame_index": np.array([25, 0])}, "not in order"),
        ({"duration_seconds": np.nan}, "duration_seconds holds values that are not finite"),
        ({"source_fps": np.inf}, "source_fps holds values that are not finite"),
        ({"source_path": "a\0b"}, "without NUL"),
    ],
)
def test_a_video_that_no_store_may_hold_is_refused(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    writer = FeatureWriter(tmp_path / "s", make_identity())
    with pytest.raises(ValueError, match=expected):
        writer.add("a", dataclasses.replace(make_video(2), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("video_id", ["a\0b", "caf\udce9"])
def test_an_id_that_cannot_be_written_costs_no_other_video(tmp_path: Path, video_id: str) -> None:
    with FeatureWriter(tmp_path / "s", make_identity()) as writer:
        writer.add("good", make_video(1))
        with pytest.raises(ValueError, match="UTF-8 text without NUL"):
            writer.add(video_id, make_video(1))
    assert FeatureStore(tmp_path / "s").video_ids == ["good"]


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with (
        FeatureWriter(tmp_path / "s", make_identity(feature_dim=7)) as writer,
        pytest.raises(ValueError, match="6 values, the store's have 7"),
    ):
        writer.add("a", make_video(1))


def test_leaving_on_an_error_commits_the_complete_videos(tmp_path: Path) -> None:
    def interrupted_run() -> None:
        with FeatureWriter(tmp_path / "s", make_identity()) as writer:
            writer.add("a", make_video(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert FeatureStore(tmp_path / "s").video_ids == ["a"]


def test_a_video_in_two_parts_is_read_once_from_the_older(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2, seed=1)})
    (older,) = part_paths(folder)
    older.rename(folder / "part-20000101T000000-000000.h5")
    write(folder, {"a": make_video(3, seed=2)})
    store = FeatureStore(folder)
    assert len(store) == 1
    assert len(store["a"].features) == 2


def test_a_folder_without_parts_is_a_clear_error(tmp_path: Path) -> None:
    for call in (FeatureStore, verify_store, describe_store):
        with pytest.raises(StoreError, match="no feature store here"):
            call(tmp_path)


def test_an_unknown_video_is_a_key_error(tmp_path: Path) -> None:
    write(tmp_path / "s", {"a": make_video(2)})
    with pytest.raises(KeyError, match="no video 'b'"):
        FeatureStore(tmp_path / "s")["b"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: f["features"].__setitem__((0, 0), np.nan), "not finite"),
        (lambda f: f["pts_seconds"].__setitem__(1, np.nan), "pts_seconds holds values"),
        (lambda f: f["duration_seconds"].__setitem__(1, np.nan), "duration_seconds holds values"),
        (lambda f: f["video_offset"].__setitem__(1, 0), "no rows"),
        (lambda f: f["video_offset"].__setitem__(2, 4), "does not span"),
        (lambda f: f["frame_index"].__setitem__(1, -5), "not in order"),
        (lambda f: f.__delitem__("decoder"), "unreadable"),
        (lambda f: f.attrs.__setitem__("feature_dim", 9), "identity says 9"),
        (lambda f: f.attrs.__setitem__("schema_version", 2), "version 2"),
    ],
)
def test_verify_names_each_kind_of_damage(tmp_path: Path, damage: object, expected: str) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2, 0), "b": make_video(3, 1)})
    (part,) = part_paths(folder)
    part.chmod(0o644)
    with h5py.File(part, "r+") as file:
        damage(file)  # type: ignore[operator]
    assert any(expected in problem for problem in verify_store(folder)), verify_store(folder)


@pytest.mark.parametrize("name", ["video_id", "features", "pts_seconds", "decoder"])
def test_a_group_in_the_place_of_a_dataset_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2)})
    (part,) = part_paths(folder)
    part.chmod(0o644)
    with h5py.File(part, "r+") as file:
        del file[name]
        file.create_group(name)
    (problem,) = verify_store(folder)
    assert f"{name} is a group, not a dataset" in problem
    with pytest.raises(StoreError, match="is a group, not a dataset"):
        _ = FeatureStore(folder)["a"]


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(200)})
    (part,) = part_paths(folder)
    part.chmod(0o644)
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(StoreError, match="move the file away"):
        FeatureStore(folder)
    assert verify_store(folder)


def test_a_full_disk_leaves_no_part_and_says_so(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk: writes beyond 20 kB fail."""
    script = f"""
import signal, sys
sys.path[:0] = {[str(Path(__file__).parent.parent), str(Path(__file__).parent)]!r}
import resource
from test_store import make_identity, make_video
from extract.store import FeatureWriter, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = FeatureWriter({str(tmp_path / "s")!r}, make_identity())
writer.add("small", make_video(10))
writer.commit()
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
writer.add("large", make_video(5000))
try:
    writer.commit()
except StoreError as error:
    print("StoreError", error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "StoreError" in result.stdout, result.stderr
    assert "Free space" in result.stdout
    assert FeatureStore(tmp_path / "s").video_ids == ["small"]
    assert not list((tmp_path / "s").glob(".*"))


def test_compaction_keeps_a_part_that_is_committed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2, 0)})
    opened = FeatureStore.__init__

    def then_another_commits(self: FeatureStore, path: Path) -> None:
        opened(self, path)
        if "b" not in self:
            monkeypatch.undo()
            write(folder, {"b": make_video(3, 1)})

    monkeypatch.setattr(FeatureStore, "__init__", then_another_commits)
    compact_store(folder)
    assert FeatureStore(folder).video_ids == ["a", "b"]


COMPACT = """
import sys
sys.path[:0] = {paths!r}
from extract.store import compact_store
print("ready", flush=True)
print("done", compact_store(sys.argv[1], rows_per_part=20), flush=True)
"""


def test_a_compaction_killed_at_any_moment_harms_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    videos = {f"{i:03d}": make_video(1 + i % 7, i) for i in range(24)}
    with FeatureWriter(folder, make_identity()) as writer:
        for video_id, video in videos.items():
            writer.add(video_id, video)
            writer.commit()
    script = COMPACT.format(paths=[str(Path(__file__).parent.parent)])
    generator = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 0.12))
        process.kill()
        done = "done" in process.communicate()[0]
        assert verify_store(folder) == []
        store = FeatureStore(folder)
        assert store.video_ids == sorted(videos)
        for video_id, video in videos.items():
            np.testing.assert_array_equal(store[video_id].features, video.features)
            np.testing.assert_array_equal(store[video_id].frame_index, video.frame_index)
        if done:  # too early to be killed: again from many parts
            compact_store(folder, rows_per_part=1)
    assert compact_store(folder)[1] == 1
    assert FeatureStore(folder).video_ids == sorted(videos)
    assert verify_store(folder) == []


def test_describe_counts_rows_and_gflops(tmp_path: Path) -> None:
    write(tmp_path / "s", {"a": make_video(2, 0), "b": make_video(3, 1)})
    facts = describe_store(tmp_path / "s")
    assert (facts["videos"], facts["rows"], facts["parts"]) == (2, 5, 1)
    assert facts["gflops_total"] == pytest.approx(5 * 0.0822)
    assert facts["corrupt_frames"] == 0 + 1
    json.dumps(facts)


def test_describe_counts_a_video_in_two_parts_once(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder, {"a": make_video(2, 1), "b": make_video(3, 2)})
    write(folder, {"a": make_video(2, 1), "c": make_video(4, 4)})
    facts = describe_store(folder)
    assert (facts["videos"], facts["rows"], facts["parts"]) == (3, 2 + 3 + 4, 2)
    assert facts["duration_seconds"] == 2 + 3 + 4
    assert facts["corrupt_frames"] == 1 + 2 + 1  # seed % 3


def test_compaction_keeps_what_is_known_of_each_rows_making(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    made_by = {"a": "1", "b": "2", "c": "1"}
    for video_id, version in made_by.items():
        write(folder, {video_id: make_video(2)}, versions={"torch": version})
    assert compact_store(folder) == (3, 2)
    found = {}
    for path in part_paths(folder):
        with Part(path) as part:
            found |= dict.fromkeys(part.video_ids, part.identity.versions["torch"])
    assert found == made_by
    assert describe_store(folder)["versions"] == {"torch": "1, 2"}


def test_a_store_of_many_parts_keeps_few_files_open(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with FeatureWriter(folder, make_identity()) as writer:
        for i in range(MAX_OPEN_PARTS + 20):
            writer.add(str(i), make_video(1, i))
            writer.commit()
    before = len(os.listdir("/proc/self/fd"))
    store = FeatureStore(folder)
    for video_id in store.video_ids:
        np.testing.assert_array_equal(
            store[video_id].features, make_video(1, int(video_id)).features
        )
    assert len(os.listdir("/proc/self/fd")) - before <= MAX_OPEN_PARTS
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
