"""An experiment run again: what a change makes anew, and what a kill or a full disk loses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extract.store import FeatureStore
from pipelines.clips import render_clips

ROOT = Path(__file__).parent.parent
MANIFEST = """\
name: tiny
variables: {fps: 2}
data: {videos: ., labels: labels.csv}
backbones:
  coarse: {name: mobilenet_v2, size: 32, weights: random}
  fine: {name: mobilenet_v2, size: 48, weights: random}
extraction: {fps: "${fps}"}
runs: [{method: lstm, preset: small, set: {epochs: 1}}]
"""


def liteeval(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert "Traceback" not in result.stderr
    return result


def started(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The commands of the jobs that a run has started."""
    lines = (line for line in result.stderr.splitlines() if line.startswith("["))
    return [" ".join(line.split()[1:3]) for line in lines if line.split()[1].startswith("liteeval")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, their labels, and a manifest whose output, runs/tiny, lies below the clips."""
    folder = tmp_path_factory.mktemp("again")
    list(render_clips(folder, 18, seconds=(1.0, 1.5), seed=0))
    (folder / "mine.yaml").write_text(MANIFEST)
    return folder


EVERYTHING = [
    *("liteeval extract", "liteeval-train fit", "liteeval-train evaluate", "liteeval table"),
    "liteeval report",
]


def test_an_experiment_does_again_what_a_change_touches_and_nothing_else(folder: Path) -> None:
    out, where = folder / "runs" / "tiny", ("--device", "cpu", "--workers", 1)
    first = liteeval("run", folder / "mine.yaml", *where, "--out", out)
    assert (first.returncode, started(first)) == (0, EVERYTHING)

    for path in folder.glob("*/*.mp4"):
        path.touch()
    (folder / "labels.csv").touch()
    spelled = liteeval("run", "../mine.yaml", *where, "--out", "tiny", cwd=folder / "runs")
    assert (spelled.returncode, started(spelled)) == (0, [])
    assert not (out / "old").exists()

    one, other = sorted(folder.glob("*/*.mp4"))[:2]
    shutil.copy(other, one)
    replaced = liteeval("run", folder / "mine.yaml", *where, "--out", out)
    assert (replaced.returncode, started(replaced)) == (0, EVERYTHING)
    for name in ("mobilenet_v2_32", "mobilenet_v2_48"):
        store = FeatureStore(out / "features" / name)
        ids = [path.relative_to(folder).with_suffix("").as_posix() for path in (one, other)]
        assert len(store) == 18
        assert store.source_bytes(ids[0]) == other.stat().st_size
        np.testing.assert_array_equal(store[ids[0]].features, store[ids[1]].features)

    faster = ("--set", "fps=4", "--only", "extract")
    denser = liteeval("run", folder / "mine.yaml", *where, "--out", out, *faster)
    assert (denser.returncode, started(denser)) == (0, ["liteeval extract"])
    for name in ("mobilenet_v2_32", "mobilenet_v2_48"):
        assert FeatureStore(out / "features" / name).identity.sample_fps == 4
        assert len(list((out / "old").glob(f"*/{name}/part-*.h5"))) == 2  # replaced, then all
