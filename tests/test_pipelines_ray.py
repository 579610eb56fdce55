"""The Ray engine on a real local cluster of two nodes: stores, deaths, interrupts."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from extract.run import ExtractOptions, ExtractSummary, Ledger, missing_tasks
from extract.store import (
    FeatureStore,
    FeatureWriter,
    StoreError,
    StoreIdentity,
    VideoFeatures,
    part_paths,
    verify_store,
)
from extract.supervise import DecodeTask
from extract.videos import find_videos
from pipelines.clips import render_clips
from pipelines.engines.ray import ExtractionActor, Share, Stores, connected, shares, work_through
from pipelines.engines.ray_jobs import run_command
from pipelines.jobs import JobError

ROOT = Path(__file__).parent.parent
STORE = "mobilenet_v2_64"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with one core each."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes.add_node(**small)
    yield nodes
    nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> str:
    return nodes.address  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for _ in render_clips(folder, 24, seconds=(3.0, 6.0), seed=0):
        pass
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def command(clips: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pipelines", "extract", str(clips), "--out", str(out)),
        *("--backbone", "mobilenet_v2@64", "--weights", "mobilenet_v2=random", "--fps", "4"),
        *("--device", "cpu", *more),
    ]


@pytest.fixture(scope="module")
def local(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run without Ray."""
    out = tmp_path_factory.mktemp("local")
    assert subprocess.run(command(clips, out), cwd=ROOT, capture_output=True).returncode == 3
    return out / STORE


def assert_same(a: Path, b: Path) -> None:
    """Same ids, times and frames; features within float16 rounding of the same values."""
    left, right = FeatureStore(a), FeatureStore(b)
    assert left.video_ids == right.video_ids
    for video_id in left.video_ids:
        x, y = left[video_id], right[video_id]
        np.testing.assert_array_equal(x.pts_seconds, y.pts_seconds)
        np.testing.assert_array_equal(x.frame_index, y.frame_index)
        scale = float(np.abs(x.features).max())
        np.testing.assert_allclose(x.features, y.features, atol=1e-3 * scale)


def videos_in_parts(store: Path) -> int:
    """Counted part by part: a video that stands in two counts twice."""
    import h5py

    total = 0
    for path in part_paths(store):
        with h5py.File(path) as part:
            total += len(part["video_id"])
    return total


def workers() -> list[psutil.Process]:
    """The processes of our cluster's actors that have a decode process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ExtractionActor" in " ".join(process.cmdline()) and process.children():
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_for_workers(driver: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    end = time.monotonic() + 120
    while len(found := workers()) < count:
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_worker_killed_in_the_middle_changes_no_store_and_no_total(
    cluster: str, clips: Path, local: Path, tmp_path: Path
) -> None:
    ours = command(clips, tmp_path, "--engine", "ray", "--ray-address", cluster, "--json")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(ours, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    wait_for_workers(driver, 1)[0].kill()
    stdout, stderr = driver.communicate(timeout=200)
    assert driver.returncode == 3, stderr
    assert "a worker died" in stderr
    store = tmp_path / STORE
    assert_same(store, local)
    assert verify_store(store) == []
    assert videos_in_parts(store) == 24
    totals = json.loads(stdout)
    rows = sum(FeatureStore(store).rows(video_id) for video_id in FeatureStore(store).video_ids)
    assert (totals["videos"], totals["rows"], totals["failures"]) == (24, rows, 1)
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["video_id"] == "broken"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failures.jsonl", STORE]


def test_an_interrupt_commits_what_is_complete_and_ends_the_workers(
    cluster: str, clips: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in clips.glob("**/*.mp4"):
        target = videos / path.relative_to(clips)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(path)
    (videos / "broken.mp4").unlink()
    os.mkfifo(videos / "waits.mp4")  # keeps the run alive until the signal
    out = tmp_path / "out"
    ours = command(videos, out, "--engine", "ray", "--ray-address", cluster)
    driver = subprocess.Popen(ours, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_workers(driver, 2)
    end = time.monotonic() + 100
    while not part_paths(out / STORE):  # the actor without the pipe has finished
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert len(FeatureStore(out / STORE)) >= 20
    assert verify_store(out / STORE) == []
    assert not list(out.rglob(".*"))
    assert videos_in_parts(out / STORE) == len(FeatureStore(out / STORE))


class FragileExtractor:
    """Says that videos are done; its process dies of the one that is called poison."""

    def __init__(self, options: ExtractOptions) -> None:
        self._held: list[str] = []

    def add(self, tasks):  # type: ignore[no-untyped-def]
        from extract.run import Extracted

        for task in tasks:
            if task.video_id == "poison":
                os._exit(1)
            self._held.append(task.video_id)
            yield Extracted(task.video_id, 1, 1.0)

    def finish(self):  # type: ignore[no-untyped-def]
        from extract.run import Committed

        yield Committed(tuple(self._held))
        self._held = []


def test_a_video_of_which_workers_die_is_given_up_alone(cluster: str, tmp_path: Path) -> None:
    names = [f"v{i:02d}" for i in range(11)] + ["poison"]
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see tests/
    summary, out = ExtractSummary(), tmp_path / "out"
    out.mkdir()
    tasks = missing_tasks(find_videos([tmp_path]), out, ["store"], summary)
    assert len(tasks) == 12
    with connected(cluster), Ledger(out, len(tasks), summary) as ledger:
        whole = work_through(
            ray, tasks, Stores(out, ("store",)), ExtractOptions(), ledger, load=FragileExtractor
        )
    assert whole
    assert (summary.videos, summary.rows, summary.failures) == (11, 11, 1)
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["video_id"], record["stage"], record["attempts"]) == ("poison", "worker", 2)


SAVES_WHEN_INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as all our commands do
print("begun", flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    print("saved", file=sys.stderr)
    sys.exit(7)
"""


def test_an_interrupt_reaches_a_job_on_another_node(cluster: str, tmp_path: Path) -> None:
    printed, messages = tmp_path / "printed", tmp_path / "messages"
    with connected(cluster) as ray:
        command = ray.remote(run_command).options(num_cpus=1)
        ended = command.remote(["-c", "print(5); raise SystemExit(3)"], "/", printed, messages)
        assert (ray.get(ended), printed.read_text()) == (3, "5\n")
        printed.unlink()
        call = command.remote(["-c", SAVES_WHEN_INTERRUPTED], "/", printed, messages)
        while not printed.exists() or printed.read_text() != "begun\n":
            time.sleep(0.02)
        ray.cancel(call)
        assert ray.get(call) == 130
    assert messages.read_text() == "saved\n"


class SlowExtractor:
    """Takes its time over each video and stores it; begins when both actors are ready."""

    def __init__(self, out: Path, options: ExtractOptions) -> None:
        identity = StoreIdentity("slow", 1, "", "", {}, 1.0, 1, 0.0, "", 0)
        self._writer, self._held = FeatureWriter(out / "store", identity), []
        (out / f"ready-{os.getpid()}").touch()
        while len(list(out.glob("ready-*"))) < 2:
            time.sleep(0.02)

    def add(self, tasks):  # type: ignore[no-untyped-def]
        from extract.run import Extracted

        for task in tasks:
            time.sleep(0.1)
            row = np.zeros(1)
            item = VideoFeatures(row[:, None].astype("f4"), row, row, 1.0, 1.0, "", 0, "none")
            self._writer.add(task.video_id, item)
            self._held.append(task.video_id)
            yield Extracted(task.video_id, 1, 1.0)
            if len(self._held) == 4:
                yield from self.finish()

    def finish(self):  # type: ignore[no-untyped-def]
        from extract.run import Committed

        self._writer.commit()
        yield Committed(tuple(self._held))
        self._held = []


def test_a_node_that_dies_leaves_its_work_to_the_others(nodes: Any, tmp_path: Path) -> None:
    """The last test of the cluster: a node goes for good, and its actor with it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    names, stores = [f"v{i:03d}" for i in range(80)], Stores(tmp_path, ("store",))
    tasks = [DecodeTask(name, tmp_path / name, ("store",)) for name in names]

    def remove_a_node() -> None:
        while not part_paths(tmp_path / "store"):
            time.sleep(0.02)
        nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)

    summary = ExtractSummary()
    with connected(nodes.address), Ledger(tmp_path, len(tasks), summary) as ledger:
        end = threading.Thread(target=remove_a_node)
        end.start()
        load = functools.partial(SlowExtractor, tmp_path)
        assert work_through(ray, tasks, stores, ExtractOptions(), ledger, load=load)
        end.join()
    assert FeatureStore(tmp_path / "store").video_ids == names
    assert (summary.videos, summary.rows, summary.failures) == (80, 80, 0)


@pytest.mark.parametrize(
    ("resources", "use_gpus", "expected"),
    [
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}], True, [Share(4, 1)] * 4),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}], False, [Share(4)] * 6),
        ([{"CPU": 2.0, "GPU": 4.0}], True, [Share(1, 1)] * 4),
        ([{"CPU": 1.0}, {"CPU": 7.0}, {"memory": 1.0}], True, [Share(1), Share(7)]),
        ([{"CPU": 10.0}], True, [Share(5), Share(5)]),
        ([{"CPU": 0.0, "GPU": 1.0}], True, []),
    ],
)
def test_a_cluster_is_shared_out_by_gpus_or_by_cores(
    resources: list[dict[str, float]], use_gpus: bool, expected: list[Share]
) -> None:
    assert shares(resources, use_gpus=use_gpus) == expected


def test_a_node_that_does_not_see_the_output_is_refused(tmp_path: Path) -> None:
    main = sys.modules["__main__"].__file__
    try:
        with pytest.raises(StoreError, match=r"does not see .* that all nodes share"):
            ExtractionActor().start(FragileExtractor, ExtractOptions(), tmp_path / "gone")
    finally:
        sys.modules["__main__"].__file__ = main


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(JobError, match=r"pip install 'liteeval\[ray\]'"), connected(None):
        pass


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    message = (
        r"^Ray cluster 127.0.0.1:1: cannot be reached \(.*Connection refused\); start one with"
    )
    with pytest.raises(JobError, match=message), connected("127.0.0.1:1"):
        pass
