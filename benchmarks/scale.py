"""How extraction on Ray grows: workers, videos, memory; with simulated videos and real stores.

    python -m benchmarks.scale --videos 100000

Everything is as in `liteeval extract --engine ray` (driver, actors, groups, commits, parts) but for
what an actor does with a video: it waits, or works, for a fixed time and stores four rows of 16
values. Waiting tells what handing out costs with more workers than this machine has cores; working
tells what the cores give.
"""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from extract.run import Committed, Extracted, ExtractOptions, ExtractSummary, Ledger, Outcome
from extract.store import (
    FeatureStore,
    FeatureWriter,
    StoreIdentity,
    VideoFeatures,
    compact_store,
    part_paths,
)
from extract.supervise import DecodeTask
from extract.videos import Video
from pipelines.engines.ray import CPUS_PER_ACTOR, Stores, work_through

ROWS, DIM = 4, 16
STORE = "simulated"


def work(seconds: float, times: int = 1) -> None:
    """Use a core for so long, by the processor's clock."""
    end = time.thread_time() + seconds * times
    while time.thread_time() < end:
        pass


class SimulatedExtractor:
    """Does with a video what an Extractor does, but for decoding and networks."""

    def __init__(
        self, out: Path, workers: int, seconds: float, works: bool, options: ExtractOptions
    ) -> None:
        self._seconds, self._works, self._options = seconds, works, options
        (out / f"ready-{os.getpid()}").touch()
        while len(list(out.glob("ready-*"))) < workers:  # all begin at the same time
            time.sleep(0.01)
        identity = StoreIdentity("simulated", 16, "", "", {}, 1.0, DIM, 0.0, "", 0)
        self._writer = FeatureWriter(out / STORE, identity)
        self._video = rows_of_a_video(ROWS, DIM)
        self._added: list[str] = []

    def add(self, tasks: Sequence[DecodeTask]) -> Iterator[Outcome]:
        for task in tasks:
            if self._works:
                work(self._seconds)
            else:
                time.sleep(self._seconds)
            self._writer.add(task.video_id, self._video)
            self._added.append(task.video_id)
            yield Extracted(task.video_id, ROWS, float(ROWS))
            if len(self._added) == self._options.commit_videos:
                yield from self.stop()

    def finish(self) -> Iterator[Outcome]:
        yield from self.stop()

    def stop(self) -> list[Outcome]:
        self._writer.commit()
        added, self._added = self._added, []
        return [Committed(tuple(added))]


class MeasuredLedger(Ledger):
    """Notes the memory of driver and actors as the videos come in."""

    def __init__(self, out: Path, videos: int, summary: ExtractSummary) -> None:
        super().__init__(out, videos, summary)
        self.megabytes: dict[int, tuple[float, float]] = {}
        self._done, self._every = 0, max(1, videos // 5)

    def take(self, outcome: Outcome) -> None:
        super().take(outcome)
        self._done += 1
        if self._done % self._every == 0:
            self.megabytes[self._done] = (resident_mb(psutil.Process()), largest_actor_mb())


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def largest_actor_mb() -> float:
    sizes = [0.0]
    for process in psutil.Process().children(recursive=True):
        try:
            if "ExtractionActor" in " ".join(process.cmdline()):
                sizes.append(resident_mb(process))
        except psutil.Error:
            pass
    return max(sizes)


@dataclass(frozen=True)
class Result:
    seconds: float  # from the moment in which all actors are ready
    megabytes: dict[int, tuple[float, float]]  # videos done → driver, largest actor
    parts: int


def simulate(workers: int, videos: int, seconds: float, *, works: bool = False) -> Result:
    with tempfile.TemporaryDirectory() as folder, own_cluster(workers) as ray:
        out = Path(folder)
        tasks = [
            DecodeTask(f"class {i % 100:03d}/video {i:08d}", out / f"{i:08d}.mp4", (STORE,))
            for i in range(videos)
        ]
        summary, options = ExtractSummary(), ExtractOptions(device="cpu")
        load = functools.partial(SimulatedExtractor, out, workers, seconds, works)
        with MeasuredLedger(out, videos, summary) as ledger:
            assert work_through(ray, tasks, Stores(out, (STORE,)), options, ledger, load=load)
        end = time.time()
        ready = max(path.stat().st_mtime for path in out.glob("ready-*"))
        assert len(FeatureStore(out / STORE)) == summary.videos == videos
        return Result(end - ready, ledger.megabytes, len(part_paths(out / STORE)))


def seconds_on_ray(workers: int, *, videos: int, works: bool) -> float:
    return simulate(workers, videos, 0.05, works=works).seconds


@contextmanager
def own_cluster(workers: int) -> Iterator[Any]:
    """Ray on this machine, which says that it has cores for so many actors."""
    import ray

    ray.init(
        address="local",
        num_cpus=workers * CPUS_PER_ACTOR,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def print_scaling(
    what: str, seconds_of: Callable[[int], float], counts: Sequence[int], videos: int
) -> None:
    print(f"\n{what}: {videos} videos\nworkers  seconds  videos/s  speed-up  of the ideal")
    first = 0.0
    for count in counts:
        seconds = seconds_of(count)
        first = first or seconds
        gain, ideal = first / seconds, count / counts[0]
        print(
            f"{count:7d}  {seconds:7.1f}  {videos / seconds:8.1f}  {gain:7.2f}×  "
            f"{gain / ideal:12.2f}"
        )


def plain_seconds(processes: int, videos: int, seconds: float) -> float:
    """What the cores give at best: the same work by processes that need not be told what to do."""
    context = multiprocessing.get_context("fork")
    share = videos // processes
    workers = [context.Process(target=work, args=(seconds, share)) for _ in range(processes)]
    start = time.time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.time() - start


def rows_of_a_video(rows: int, dim: int) -> VideoFeatures:
    t = np.arange(rows)
    return VideoFeatures(
        np.ones((rows, dim), np.float16), t * 1.0, t, float(rows), 25.0, "/videos/a.mp4", 1, "none"
    )


def print_store(parts: int) -> None:
    """What a store of many parts costs: to open, to hold, to write, to compact."""
    with tempfile.TemporaryDirectory() as folder:
        many, large = Path(folder, "many"), Path(folder, "large")
        write_parts(many, parts, rows_of_a_video(1, 16))
        before, start = psutil.Process().memory_info().rss, time.time()
        store = FeatureStore(many)
        each_ms = (time.time() - start) / parts * 1000
        held = (psutil.Process().memory_info().rss - before) / len(store)
        print(f"\nopening {parts} parts: {each_ms:.1f} ms each, {held:.0f} bytes per video")
        video = rows_of_a_video(167, 2048)
        start = time.time()
        write_parts(large, 20, video)
        megabytes = 20 * 64 * video.features.nbytes / 1e6
        write = megabytes / (time.time() - start)
        start = time.time()
        compact_store(large)
        compact = megabytes / (time.time() - start)
        print(f"writing {megabytes:.0f} MB: {write:.0f} MB/s; compacting: {compact:.0f} MB/s")


def write_parts(path: Path, parts: int, video: VideoFeatures) -> None:
    writer = FeatureWriter(path, StoreIdentity("bench", 1, "", "", {}, 1.0, video.features.shape[1],
                                               0.0, "", 0))  # fmt: skip
    for part in range(parts):
        for i in range(64):
            writer.add(f"class/{part:06d}-{i:02d}", video)
        writer.commit()


def print_memory_of_tasks(count: int) -> None:
    """What the driver holds for each video that waits."""
    before = psutil.Process().memory_info().rss
    videos = [
        Video(f"class {i % 100:03d}/video {i:08d}", Path(f"/shared/videos/class/{i:08d}.mp4"))
        for i in range(count)
    ]
    tasks = [DecodeTask(video.id, video.path, (STORE, STORE)) for video in videos]
    held = (psutil.Process().memory_info().rss - before) / len(tasks)
    print(f"\na video that waits in the driver: {held:.0f} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=100_000, help="for handing out and memory")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8])
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so); as the plain processes
    os.environ["TQDM_DISABLE"] = "1"
    waiting = functools.partial(seconds_on_ray, videos=400, works=False)
    working = functools.partial(seconds_on_ray, videos=200, works=True)
    print_store(300)
    print_memory_of_tasks(200_000)
    print_scaling("waiting 50 ms", waiting, options.workers, 400)
    print_scaling("working 50 ms", working, [1, 2], 200)
    plain = functools.partial(plain_seconds, videos=200, seconds=0.05)
    print_scaling("working 50 ms, plain processes without Ray", plain, [1, 2], 200)
    result = simulate(2, options.videos, 0.0)
    rate = options.videos / result.seconds
    print(f"\nno time per video, 2 workers: {options.videos} videos, {rate:.0f} videos/s")
    print(f"{result.parts} parts\n\nvideos done  driver MB  largest actor MB")
    for done, (driver, actor) in result.megabytes.items():
        print(f"{done:11d}  {driver:9.0f}  {actor:16.0f}")


if __name__ == "__main__":
    main()
