"""liteeval extract on this machine: a process for each GPU, the same stores and totals."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from extract.cli import run
from extract.decode import DecodeOptions
from extract.run import ExtractOptions
from extract.store import (
    FeatureStore,
    FeatureWriter,
    StoreError,
    StoreIdentity,
    VideoFeatures,
    verify_store,
)
from extract.videos import Video, find_videos
from pipelines.clips import render_clips
from pipelines.extract import misfits

ROOT = Path(__file__).parent.parent
STORE = "mobilenet_v2_64"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for _ in render_clips(folder, 9, seconds=(1.0, 2.0), seed=0):
        pass
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def start(package: str, clips: Path, out: Path, *, gpus: str) -> subprocess.Popen[str]:
    """No GPU is there: what a process would see is its environment; it works on the CPU."""
    command = [
        *(sys.executable, "-m", *package.split(), str(clips), "--out", str(out), "--json"),
        *("--backbone", "mobilenet_v2@64", "--weights", "mobilenet_v2=random", "--fps", "2"),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def gpus_seen(driver: subprocess.Popen[str]) -> set[str]:
    """By the processes of which one works for each GPU."""
    seen = set()
    for child in psutil.Process(driver.pid).children():
        try:
            if "spawn_main" in " ".join(child.cmdline()) and child.children():
                seen.add(child.environ()["CUDA_VISIBLE_DEVICES"])
        except psutil.Error:
            pass
    return seen


def wait_for_both(driver: subprocess.Popen[str]) -> None:
    seen: set[str] = set()
    end = time.monotonic() + 120
    while not seen >= {"4", "5"}:
        assert driver.poll() is None
        assert time.monotonic() < end
        seen |= gpus_seen(driver)
        time.sleep(0.02)


def test_two_gpus_have_a_process_each_and_give_the_store_of_one(
    clips: Path, tmp_path: Path
) -> None:
    driver = start("pipelines extract", clips, tmp_path / "two", gpus="4,5")
    wait_for_both(driver)
    printed, messages = driver.communicate(timeout=200)
    assert driver.returncode == 3, messages
    one = start("extract run", clips, tmp_path / "one", gpus="")
    totals, expected = json.loads(printed), json.loads(one.communicate(timeout=200)[0])
    for key in ("videos", "rows", "failures", "source_seconds"):
        assert totals[key] == pytest.approx(expected[key])
    assert totals["videos"] == 9
    left, right = FeatureStore(tmp_path / "two" / STORE), FeatureStore(tmp_path / "one" / STORE)
    assert left.video_ids == right.video_ids
    assert len(left.parts) == 2
    for video_id in left.video_ids:
        x, y = left[video_id], right[video_id]
        np.testing.assert_array_equal(x.frame_index, y.frame_index)
        np.testing.assert_allclose(x.features, y.features, atol=1e-3 * float(y.features.max()))
    (line,) = (tmp_path / "two" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["video_id"] == "broken"


def test_an_interrupt_ends_all_processes_after_a_commit(clips: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in clips.glob("*/*.mp4"):
        (videos / path.name).symlink_to(path)
    os.mkfifo(videos / "waits.mp4")  # keeps a process busy until the signal
    driver = start("pipelines extract", videos, tmp_path / "out", gpus="4,5")
    wait_for_both(driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    end = time.monotonic() + 60
    while not stored(tmp_path / "out" / STORE):  # the other process has done its share
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    _, messages = driver.communicate(timeout=60)
    assert driver.returncode == 130, messages
    assert "run the same command again" in messages
    assert verify_store(tmp_path / "out" / STORE) == []
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() for child in children)


def test_the_slurm_example_gives_each_task_its_shard(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    shards = []
    for task in range(3):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": "3",
        }
        script = [str(ROOT / "examples" / "slurm_extract.sh"), "my videos", "features"]
        result = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
        name, command, *arguments = result.stdout.splitlines()
        assert (name, command) == ("liteeval-extract", "run")
        with run.make_context(command, arguments) as context:
            assert context.params["videos"] == (Path("my videos"),)
            shards.append(context.params["shard"])
    assert shards == ["0/3", "1/3", "2/3"]


def stored(store: Path) -> int:
    try:
        return len(FeatureStore(store))
    except StoreError:
        return 0


@dataclasses.dataclass
class Spec:
    store_name: str


class FakeBackbone:
    """What `misfits` asks of a backbone."""

    def __init__(self, name: str, weights: str = "w") -> None:
        self.spec, self._weights = Spec(name), weights

    def identity(self, *, sample_fps: float, precision: str) -> StoreIdentity:
        return StoreIdentity(
            self.spec.store_name, 1, self._weights, "", {}, sample_fps, 1, 0, "", 0
        )


def fill(
    out: Path,
    backbone: FakeBackbone,
    *parts: list[Video],
    corrupt_frames: tuple[int, ...] = (0, 0, 0),
) -> list[Path]:
    """Store a row of each video; the paths of the parts."""
    writer = FeatureWriter(
        out / backbone.spec.store_name, backbone.identity(sample_fps=1.0, precision="fp32")
    )
    paths = []
    for videos, corrupt in zip(parts, corrupt_frames, strict=False):
        for video in videos:
            size = video.path.stat().st_size
            row = np.zeros(1), np.zeros(1, np.int64), 1.0, 1.0, str(video.path), size, "pyav"
            writer.add(video.id, VideoFeatures(np.zeros((1, 1), np.float16), *row, corrupt))
        paths.append(writer.commit())
    return [path for path in paths if path]


def test_what_extraction_would_make_otherwise_is_moved_and_all_else_stays(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_bytes(b"12345")
    a, b, c, d = find_videos([tmp_path])
    out, options = tmp_path / "out", ExtractOptions()
    one, two, new = FakeBackbone("one"), FakeBackbone("two"), FakeBackbone("new")
    ones, twos = fill(out, one, [a, b], [c], [d]), fill(out, two, [a, b], [c], [d])

    def moved(videos: list[Video], *backbones: FakeBackbone) -> list[Path]:
        return misfits(videos, out, backbones, options)  # type: ignore[arg-type]

    assert moved([a, b, c, d], one, two) == []
    a.path.touch()
    assert moved([a, b, c], one, two) == []  # d is in both: it does no harm
    assert moved([a, b, c], one, new) == [ones[2]]  # new will lack d
    assert moved([a, b, c, d], one, FakeBackbone("two", "others")) == [out / "two"]
    c.path.write_bytes(b"another")
    assert moved([a, b, c, d], one, two) == [ones[1], twos[1]]
    assert moved([a, b], one, two) == []  # c is asked for no more


def test_rows_that_another_decoder_gave_or_that_are_damaged_are_moved_when_it_matters(
    tmp_path: Path,
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"12345")
    videos, one = find_videos([tmp_path]), FakeBackbone("one")
    whole, damaged = fill(tmp_path, one, [videos[0]], [videos[1]], corrupt_frames=(0, 2))

    def moved(**decode: str) -> list[Path]:
        options = ExtractOptions(decode=DecodeOptions(**decode))
        return misfits(videos, tmp_path, [one], options)  # type: ignore[list-item]

    assert moved() == moved(decoder="pyav") == []
    assert sorted(moved(decoder="decord")) == sorted([whole, damaged])
    assert moved(on_corrupt="fail") == [damaged]
