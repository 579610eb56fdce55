"""The smoke manifest through the real commands: clips, stores, runs, table, picture, again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.store import FeatureStore
from liteeval_train.figures import FINE_GREEN

SMOKE = Path(__file__).parent.parent / "manifests" / "smoke.yaml"


def liteeval(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=SMOKE.parent.parent)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of the smoke manifest, and what the command printed."""
    out = tmp_path_factory.mktemp("smoke")
    result = liteeval("run", SMOKE, "--out", out, "--device", "cpu", "--workers", 1)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_the_table_the_warning_and_the_files_are_on_standard_output(
    smoke: tuple[Path, str],
) -> None:
    out, printed = smoke
    table = (out / "table.txt").read_text()
    assert table.strip() in printed
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["lstm", "liteeval"]
    assert "weights of mobilenet_v2@64 and mobilenet_v2@112 are random" in printed
    for name in ("report.html", "table.txt", "filmstrip.png", "runs", "features", "manifest.yaml"):
        assert str(out / name) in printed


def test_stores_hold_every_clip_in_rows_that_both_backbones_share(
    smoke: tuple[Path, str],
) -> None:
    out, _ = smoke
    coarse, fine = (
        FeatureStore(out / "features" / name) for name in ("mobilenet_v2_64", "mobilenet_v2_112")
    )
    assert len(coarse) == 18
    assert coarse.video_ids == fine.video_ids
    for video_id in coarse.video_ids:
        assert np.array_equal(coarse[video_id].frame_index, fine[video_id].frame_index)


def test_the_cost_of_a_video_is_its_frames_times_the_stores_gflops(
    smoke: tuple[Path, str],
) -> None:
    out, _ = smoke
    coarse = FeatureStore(out / "features/mobilenet_v2_64").gflops_per_frame
    fine = FeatureStore(out / "features/mobilenet_v2_112").gflops_per_frame
    run = out / "runs/liteeval"
    summary = json.loads((run / "evaluate_val.json").read_text())
    lines = (run / "evaluate_val_videos.jsonl").read_text().splitlines()
    videos = [json.loads(line) for line in lines]
    assert len(videos) == 6  # of 18 clips every third of a class is for validation
    assert summary["gflops"]["coarse"] == pytest.approx(
        coarse * np.mean([len(video["rows"]) for video in videos])
    )
    assert summary["gflops"]["fine"] == pytest.approx(
        fine * np.mean([sum(video["used"]) for video in videos])
    )


def test_the_filmstrip_has_a_green_border_where_the_gate_read_finely(
    smoke: tuple[Path, str],
) -> None:
    out, _ = smoke
    lines = (out / "runs/liteeval/evaluate_val_videos.jsonl").read_text().splitlines()
    pixels = np.asarray(Image.open(out / "filmstrip.png").convert("RGB")).astype(int)
    green = [int(FINE_GREEN[i : i + 2], 16) for i in (1, 3, 5)]
    has_green = bool((np.abs(pixels - green).max(axis=2) < 3).sum() > 1000)
    assert has_green == any(sum(json.loads(line)["used"]) for line in lines)


def test_the_report_page_tells_the_whole_experiment(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no result yet" not in page
    summary = json.loads((out / "runs/liteeval/evaluate_val.json").read_text())
    assert f"<b>{summary['gflops_mean']:.2f}</b><span>GFLOPs per video</span>" in page
    assert page.count("data:image/jpeg;base64,") >= 6 * 4  # frames of the filmstrips
    for job in (out / "jobs").glob("*.json"):
        assert job.stem == "report" or job.stem in page.replace("<wbr>", "")
    assert "name: smoke" in page  # the manifest


def test_a_second_run_finds_everything_done_within_seconds(smoke: tuple[Path, str]) -> None:
    out, printed = smoke
    started = time.monotonic()
    again = liteeval("run", SMOKE, "--out", out, "--device", "cpu", "--workers", 1)
    assert time.monotonic() - started < 5
    assert again.returncode == 0
    assert "everything is done" in again.stderr
    assert again.stdout == printed


def test_on_ray_the_stores_and_the_table_are_those_of_this_machine(
    smoke: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = smoke
    pytest.importorskip("ray")
    where = ("--device", "cpu", "--workers", 1, "--engine", "ray")
    result = liteeval("run", SMOKE, "--out", tmp_path, *where)
    assert result.returncode == 0, result.stderr
    for name in ("mobilenet_v2_64", "mobilenet_v2_112"):
        left, right = (FeatureStore(folder / "features" / name) for folder in (out, tmp_path))
        assert left.video_ids == right.video_ids
        for video_id in left.video_ids:
            x, y = left[video_id], right[video_id]
            assert np.array_equal(x.pts_seconds, y.pts_seconds)
            scale = float(np.abs(x.features).max())
            np.testing.assert_allclose(x.features, y.features, atol=1e-3 * scale)
    rows = [(folder / "table.txt").read_text().splitlines()[-2:] for folder in (out, tmp_path)]
    assert [row.split()[0] for row in rows[1]] == [row.split()[0] for row in rows[0]]
    again = liteeval("run", SMOKE, "--out", tmp_path, "--device", "cpu", "--workers", 1)
    assert "everything is done" in again.stderr  # wherever the jobs had run


def test_the_resolved_manifest_runs_as_the_same_experiment(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    again = liteeval("run", out / "manifest.yaml", "--out", out)
    assert again.returncode == 0
    assert "everything is done" in again.stderr
