"""`liteeval plan` and `status`: states, estimates, and that neither writes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.jobs import Job, Layout, plan_jobs
from pipelines.manifest import load_manifest
from pipelines.plan import Estimate, estimate_work, format_estimate, job_states, progress
from pipelines.stamps import Stamp, digest, hash_outputs

CONTENT = """\
name: mine
data: {importer: folders, videos: videos, val_share: 0.5}
backbones:
  coarse: {name: mobilenet_v2, size: 112}
  fine: {name: resnet101, size: 224}
extraction: {fps: 2}
runs: [{method: lstm}]
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four videos of 3 s in two classes."""
    for name in ("dog/a", "dog/b", "cat/c", "cat/d"):
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.time_base = 32, 32, Fraction(1, 10)
            for number in range(30):
                pixels = np.zeros((32, 32, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (tmp_path / "mine.yaml").write_text(CONTENT)
    return tmp_path / "mine.yaml"


def liteeval(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_a_plan_counts_rows_and_costs_and_writes_nothing(manifest: Path) -> None:
    out = manifest.parent / "out"
    before = sorted(manifest.parent.rglob("*"))
    result = liteeval("plan", manifest, "--out", out, "--gflops-per-second", "10", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert {job["name"]: job["state"] for job in document["jobs"]} == dict.fromkeys(
        ("import", "extract", "fit-lstm", "evaluate-val-lstm", "table", "report"), "to do"
    )
    estimate = document["estimate"]
    assert (estimate["videos"], estimate["rows"]) == (4, 4 * 3 * 2)  # 3 s at 2 rows per second
    gflops = 24 * (0.3006 / 4 + 7.8014)  # a quarter of the area at 112 px
    assert estimate["gflops"] == pytest.approx(gflops)
    assert estimate["network_hours"] == pytest.approx(gflops / 10 / 3600)
    assert sorted(manifest.parent.rglob("*")) == before


def test_what_is_done_costs_nothing_any_more_and_finetuning_costs_its_steps(
    manifest: Path,
) -> None:
    finetune = "size: 112, finetune: {epochs: 3, segments: 2}}"
    manifest.write_text(CONTENT.replace("size: 112}", finetune))
    layout, experiment = Layout(manifest.parent / "out"), load_manifest(manifest)
    jobs = plan_jobs(experiment, layout)
    cost = 0.3006 / 4
    rows = 2 * 6 + 3 * (2 * 2 * 3) + 2 * 6 * (3 + 1)  # frozen, 3 epochs forth and back, 4 × val
    nothing_done = estimate_work(experiment, layout, job_states(jobs, layout)).gflops
    assert nothing_done == pytest.approx(24 * (cost + 7.8014) + cost * rows)
    finish(jobs[:2], layout)
    finetuned = estimate_work(experiment, layout, job_states(jobs, layout)).gflops
    assert finetuned == pytest.approx(24 * (cost + 7.8014))
    finish(jobs[:3], layout)
    all_done = estimate_work(experiment, layout, job_states(jobs, layout))
    assert (all_done.rows, all_done.gflops) == (24, 0)
    assert format_estimate(all_done, 1000).endswith("24 rows per backbone, all extracted")


def test_clips_that_are_not_rendered_are_not_said_to_be_probed(tmp_path: Path) -> None:
    smoke = load_manifest(Path(__file__).parent.parent / "manifests" / "smoke.yaml")
    text = format_estimate(estimate_work(smoke, Layout(tmp_path)), 1000)
    assert text.startswith("Estimate for 18 clips of mean length: 180 rows")  # 5 s, 2 per second


def test_an_estimate_says_so_and_what_it_assumes() -> None:
    text = format_estimate(Estimate(videos=1000, probed=5, rows=7200, gflops=3_600_000), 1000)
    assert text.startswith("Estimate from 5 of 1,000 videos: 7,200 rows")
    assert "1 hours of the backbones at an assumed 1,000 GFLOPs per second" in text
    nothing = format_estimate(Estimate(videos=3, probed=0, rows=None, gflops=None), 1000)
    assert "no estimate" in nothing


def test_files_that_cannot_be_probed_and_unknown_backbones_leave_no_number(
    manifest: Path, tmp_path: Path
) -> None:
    text = CONTENT.replace("name: resnet101", "name: timm:resnet18.a1_in1k")
    manifest.write_text(text)
    layout = Layout(tmp_path / "out")
    known_rows = estimate_work(load_manifest(manifest), layout)
    assert (known_rows.rows, known_rows.gflops) == (24, None)
    for path in (tmp_path / "videos").rglob("*.mp4"):
        path.write_bytes(b"no video")
    assert estimate_work(load_manifest(manifest), layout).rows is None


def finish(jobs: list[Job], layout: Layout) -> None:
    """Stamp all jobs as done, with their outputs."""
    for job in jobs:
        wanted = digest(job, layout)
        for path in job.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.mkdir() if job.name == "extract" else path.write_text("x")
        stamp = Stamp(wanted, 0, seconds=12.0, utc="2026-11-23", made=hash_outputs(job, layout))
        stamp.write(layout.stamp(job.name))


def test_a_changed_option_makes_stale_only_what_depends_on_it(manifest: Path) -> None:
    layout = Layout(manifest.parent / "out")
    finish(plan_jobs(load_manifest(manifest), layout), layout)
    states = job_states(plan_jobs(load_manifest(manifest), layout), layout)
    assert {state.state for state in states} == {"done"}
    manifest.write_text(CONTENT.replace("{method: lstm}", "{method: lstm, seed: 1}"))
    states = job_states(plan_jobs(load_manifest(manifest), layout), layout)
    assert [(state.name, state.state, state.why) for state in states] == [
        ("import", "done", ""),
        ("extract", "done", ""),
        ("fit-lstm", "stale", "its command or something that it reads has changed"),
        ("evaluate-val-lstm", "stale", "after fit-lstm"),
        ("table", "stale", "after evaluate-val-lstm"),
        ("report", "stale", "after fit-lstm"),
    ]
    layout.table.unlink()
    result = liteeval("status", manifest, "--out", layout.out)
    assert result.stdout.startswith(f"{layout.out}: 2 of 6 jobs done\n")
    assert "took 12 s" in result.stdout


def test_a_new_video_makes_everything_stale(manifest: Path) -> None:
    layout = Layout(manifest.parent / "out")
    jobs = plan_jobs(load_manifest(manifest), layout)
    finish(jobs, layout)
    (manifest.parent / "videos" / "dog" / "new.mp4").touch()
    assert {state.state for state in job_states(jobs, layout)} == {"stale"}


def test_progress_of_training_is_its_last_epoch(manifest: Path) -> None:
    layout, experiment = Layout(manifest.parent / "out"), load_manifest(manifest)
    assert progress("fit-lstm", experiment, layout) == ""
    layout.run("lstm").mkdir(parents=True)
    lines = '{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.5}\n'
    (layout.run("lstm") / "metrics.jsonl").write_text(lines)
    assert progress("fit-lstm", experiment, layout) == "epoch 2"
    assert progress("extract", experiment, layout) == (
        "mobilenet_v2@112: 0 videos; resnet101@224: 0 videos"
    )
    layout.data.mkdir()
    (layout.data / "labels.csv").write_text("video_id,label,split\na,x,train\nb,x,val\n")
    assert progress("extract", experiment, layout).startswith("mobilenet_v2@112: 0 of 2 videos")


def test_the_schema_is_one_json_document() -> None:
    schema = json.loads(liteeval("schema").stdout)
    assert set(schema["required"]) == {"name", "data", "backbones", "runs"}


def test_a_table_names_its_rows_after_the_runs_folders(tmp_path: Path) -> None:
    summary = {
        **{"method": "liteeval", "split": "val", "top1": 0.5, "map": 0.25, "gflops_mean": 3.0},
        **{"gflops_std": 1.0, "fine_frames_mean": 2.0, "fine_frames_std": 0.5},
        **{"frames_mean": 30.0, "seconds_per_video": 0.01},
    }
    for name in ("share-0.01", "share-0.1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluate_val.json").write_text(json.dumps(summary))
    result = liteeval("table", tmp_path / "share-0.01", tmp_path / "share-0.1")
    rows = [line.split() for line in result.stdout.splitlines()[-2:]]
    assert [row[:3] for row in rows] == [
        ["share-0.01", "50.0", "25.0"],
        ["share-0.1", "50.0", "25.0"],
    ]
    result = liteeval("table", tmp_path / "share-0.1", "--split", "test")
    assert result.exit_code == 1
    assert (
        f"make it with liteeval-train evaluate {tmp_path}/share-0.1 --split test" in result.stderr
    )
