"""An experiment run again: what a change makes anew, and what a kill or a full disk loses."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from extract.store import FeatureStore, part_paths
from pipelines.clips import render_clips

ROOT = Path(__file__).parent.parent
# Table and page are left out: each is a process more, and nothing here is about them.
WHERE = ("--device", "cpu", "--workers", 1, "--only", "evaluate-*")
STORES = ("mobilenet_v2_32", "mobilenet_v2_48")
MANIFEST = """\
name: tiny
variables: {fps: 2, epochs: 12}
data: {videos: ., labels: labels.csv}
backbones:
  coarse: {name: mobilenet_v2, size: 32, weights: random}
  fine: {name: mobilenet_v2, size: 48, weights: random}
extraction: {fps: "${fps}"}
runs: [{method: lstm, preset: small, set: {epochs: "${epochs}"}}]
"""
EVERYTHING = ["liteeval extract", "liteeval-train fit", "liteeval-train evaluate"]
EXTRACTION = (*WHERE[:-1], "extract")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipelines", *map(str, arguments)]


def liteeval(
    *arguments: object, cwd: Path = ROOT, prepare: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "preexec_fn": prepare}
    result = subprocess.run(command(*arguments), cwd=cwd, timeout=300, **pipes)
    assert "Traceback" not in result.stderr
    return result


def started(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The commands of the jobs that a run has started."""
    words = (line.split() for line in result.stderr.splitlines() if line.startswith("["))
    return [" ".join(line[1:3]) for line in words if line[1].startswith("liteeval")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, their labels, a manifest, and its output below the clips, in runs/tiny."""
    folder = tmp_path_factory.mktemp("again")
    list(render_clips(folder, 18, seconds=(1.0, 1.5), seed=0))
    (folder / "mine.yaml").write_text(MANIFEST)
    first = liteeval("run", folder / "mine.yaml", *WHERE, "--out", folder / "runs" / "tiny")
    assert (first.returncode, started(first)) == (0, EVERYTHING)
    return folder


def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(folder: Path) -> None:
    out, whole = folder / "runs" / "killed", folder / "runs" / "tiny"
    moments = (
        out / "features" / STORES[1],
        out / "runs" / "lstm" / "metrics.jsonl",
        out / "jobs" / "evaluate-val-lstm.json",
    )
    line = command("run", folder / "mine.yaml", *WHERE, "--out", out)
    for moment in moments:
        driver = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 200
        while not moment.exists():
            assert driver.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
            process.send_signal(signal.SIGKILL)
        driver.wait()
    last = liteeval("run", folder / "mine.yaml", *WHERE, "--out", out)
    assert last.returncode == 0, last.stderr
    for name in STORES:
        killed, undisturbed = (FeatureStore(o / "features" / name) for o in (out, whole))
        assert killed.video_ids == undisturbed.video_ids
        for video_id in killed.video_ids:
            expected = undisturbed[video_id].features
            np.testing.assert_allclose(killed[video_id].features, expected, atol=1e-3, rtol=1e-2)
    results = []
    for o in (out, whole):
        result = json.loads((o / "runs" / "lstm" / "evaluate_val.json").read_text())
        results.append({key: result[key] for key in ("videos", "top1", "map", "gflops_mean")})
    assert results[0] == pytest.approx(results[1])
    assert not list(out.glob("old/*"))


def test_a_disk_that_is_full_in_the_middle_loses_nothing_that_was_done(folder: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk: features fit, the model does not."""

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    out = folder / "runs" / "full"
    shutil.copytree(folder / "runs" / "tiny", out)  # OUT may be copied too
    forced = ("run", folder / "mine.yaml", *WHERE, "--out", out, "--force", "fit-lstm")
    result = liteeval(*forced, prepare=fill_disk)
    assert (result.returncode, started(result)) == (1, ["liteeval-train fit"])
    assert "cannot be written (File too large); what was finished is kept" in result.stderr
    assert "fit-lstm failed (exit code 1)" in result.stderr
    again = liteeval(*forced[:-2])
    assert (again.returncode, started(again)) == (0, EVERYTHING[1:])


def test_a_changed_finetuning_makes_its_own_features_anew_and_no_others(folder: Path) -> None:
    path, out = folder / "finetuned.yaml", folder / "runs" / "finetuned"
    options = "weights: random, finetune: {epochs: '${epochs}', segments: 1, batch: 4}"
    path.write_text(MANIFEST.replace("weights: random", options, 1))

    def run(epochs: int) -> list[str]:
        result = liteeval("run", path, *EXTRACTION, "--out", out, "--set", f"epochs={epochs}")
        assert result.returncode == 0, result.stderr
        return started(result)

    def parts() -> list[list[str]]:
        return [[part.name for part in part_paths(out / "features" / name)] for name in STORES]

    both = ["liteeval-extract finetune", "liteeval extract"]
    assert run(1) == both
    first, before = FeatureStore(out / "features" / STORES[0]).identity, parts()
    assert first.weights == "finetuned.safetensors"
    assert run(1) == []
    assert run(2) == both
    second, after = FeatureStore(out / "features" / STORES[0]).identity, parts()
    assert second.weights_sha256 != first.weights_sha256
    assert after[0] != before[0]
    assert after[1] == before[1]
    (old,) = out.glob("old/*/finetune/coarse/metrics.jsonl")
    assert len(old.read_text().splitlines()) == 2  # epochs 0 and 1


def test_an_experiment_does_again_what_a_change_touches_and_nothing_else(folder: Path) -> None:
    out, run = folder / "runs" / "tiny", ("run", folder / "mine.yaml", *WHERE)
    for path in folder.glob("*/*.mp4"):
        path.touch()
    (folder / "labels.csv").touch()
    spelled = liteeval("run", "../mine.yaml", *WHERE, "--out", "tiny", cwd=folder / "runs")
    assert (spelled.returncode, started(spelled)) == (0, [])

    one, other = sorted(folder.glob("*/*.mp4"))[:2]
    shutil.copy(other, one)
    replaced = liteeval(*run, "--out", out)
    assert (replaced.returncode, started(replaced)) == (0, EVERYTHING)
    ids = [path.relative_to(folder).with_suffix("").as_posix() for path in (one, other)]
    for name in STORES:
        store = FeatureStore(out / "features" / name)
        assert len(store) == 18
        assert store.source_bytes(ids[0]) == other.stat().st_size
        np.testing.assert_array_equal(store[ids[0]].features, store[ids[1]].features)

    denser = liteeval("run", folder / "mine.yaml", *EXTRACTION, "--out", out, "--set", "fps=4")
    assert (denser.returncode, started(denser)) == (0, ["liteeval extract"])
    for name in STORES:
        assert FeatureStore(out / "features" / name).identity.sample_fps == 4
        assert len(list((out / "old").glob(f"*/{name}/part-*.h5"))) == 2  # replaced, then all
