"""The jobs of a manifest: their command lines, their order, and what makes them stale."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import extract.cli
import liteeval_train.cli
import pipelines.cli
from liteeval_train.online import STEPWISE
from pipelines.jobs import (
    BY_BUDGET,
    Job,
    JobError,
    Layout,
    plan_jobs,
    select_jobs,
    with_what_they_need,
)
from pipelines.manifest import Manifest, load_manifest
from pipelines.stamps import Stamp, digest, hash_outputs, is_done, set_aside

CONTENT = """\
name: mine
variables: {epochs: 2, video: 0, videos: videos}
data: {videos: "${videos}", labels: labels.csv}
backbones:
  coarse: {name: mobilenet_v2, size: 112, weights: random}
  fine: {name: mobilenet_v2, size: 224, weights: weights.pth}
runs:
  - {method: lstm}
  - {method: liteeval, preset: small, seed: 4, set: {epochs: "${epochs}", l2_normalise: true}}
report: {filmstrip: liteeval}
"""
TOOLS = {
    "extract": extract.cli.main,
    "liteeval_train": liteeval_train.cli.main,
    "pipelines": pipelines.cli.main,
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Manifest]:
    (tmp_path / "mine.yaml").write_text(CONTENT)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"first")
    (tmp_path / "labels.csv").write_text("video_id,label,split\na,x,train\n")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return lambda **settings: load_manifest(tmp_path / "mine.yaml", settings=settings)


def digests(jobs: list[Job], layout: Layout) -> dict[str, str]:
    """Of jobs that run one after the other; what a job makes tells what it was made from."""
    found: dict[str, str] = {}
    for job in jobs:
        found[job.name] = digest(job, layout)
        for path in job.outputs:
            made = path / "part-1.h5" if path.parent == layout.features else path
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(found[job.name])
            if made != path:
                made.rename(path / f"part-{found[job.name]}.h5")
        stamp = Stamp(found[job.name], 0, made=hash_outputs(job, layout))
        stamp.write(layout.stamp(job.name))
        shutil.rmtree(layout.features, ignore_errors=True)
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_jobs_come_after_what_they_depend_on(load: Callable[..., Manifest], tmp_path: Path) -> None:
    seen: set[str] = set()
    for job in plan_jobs(load(), Layout(tmp_path / "out")):
        assert seen.issuperset(job.depends_on)
        seen.add(job.name)
    assert seen == {
        *("extract", "fit-lstm", "evaluate-val-lstm", "fit-liteeval", "evaluate-val-liteeval"),
        *("table", "filmstrip", "report"),
    }


IMPORTING = """\
name: full
data: {importer: folders, videos: videos, val_share: 0.2}
backbones:
  coarse: {name: mobilenet_v2, size: 112}
  fine: {name: resnet101, size: 224}
  others: {timm: {name: "timm:resnet18.a1_in1k", size: 224}}
runs:
  - {method: uniform}
  - {method: frameglimpse}
  - {method: liteeval, matrix: {fine_share_target: [0.01, 0.1]}}
  - {method: liteeval, name: other, fine: timm}
evaluation: {split: val, also: [test], budgets: 1-4}
report: {figures: [uniform, other], tables: {shares: ["liteeval-*"]}, filmstrip: other}
"""


@pytest.fixture
def full(load: Callable[..., Manifest], tmp_path: Path) -> Manifest:
    """A manifest that uses every kind of job."""
    (tmp_path / "full.yaml").write_text(IMPORTING)
    return load_manifest(tmp_path / "full.yaml")


def test_every_kind_of_job_is_planned_once(full: Manifest, tmp_path: Path) -> None:
    names = [job.name for job in plan_jobs(full, Layout(tmp_path / "out"))]
    runs = [
        "uniform",
        "frameglimpse",
        *(f"liteeval-fine_share_target-{g}" for g in ("0.01", "0.1")),
    ]
    runs.append("other")
    expected = {"import", "extract", "table", "table-test", "tables-shares", "figures", "filmstrip"}
    expected |= {"report"}
    for run in runs:
        expected |= {f"fit-{run}", f"evaluate-val-{run}", f"evaluate-test-{run}"}
        expected |= set() if run == "frameglimpse" else {f"budgets-{run}"}  # it reads out of order
    assert sorted(names) == sorted(expected)


def test_runs_read_the_fine_backbone_that_they_name(full: Manifest) -> None:
    jobs = {job.name: str(job) for job in plan_jobs(full, Layout(Path("/out")))}
    assert "--fine /out/features/timm-resnet18.a1_in1k_224 " in jobs["fit-other"]
    assert "--fine /out/features/resnet101_224 " in jobs["fit-uniform"]
    assert jobs["extract"].count("--backbone=") == 3
    assert "liteeval extract /out/data/videos.csv --out" in jobs["extract"]
    assert "--labels /out/data/labels.csv" in jobs["fit-uniform"]


def test_a_run_on_several_gpus_is_launched_by_torchrun_and_stays_the_same_job(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout, path = Layout(tmp_path / "out"), tmp_path / "mine.yaml"
    one = plan_jobs(load(), layout)
    path.write_text(CONTENT.replace("{method: lstm}", "{method: lstm, gpus: 4}"))
    four = plan_jobs(load_manifest(path), layout)
    assert digests(four, layout) == digests(one, layout)
    job = {job.name: job for job in four}["fit-lstm"]
    launch = "pipelines.engines.torchrun --standalone --nproc-per-node=4 -m liteeval_train fit"
    assert job.command[:7] == ["-m", *launch.split()]
    assert str(job).startswith("torchrun --standalone --nproc-per-node=4 -m liteeval_train fit ")
    assert {job.gpus for job in four if job.name.startswith("evaluate")} == {1}


def test_methods_evaluated_by_budget_are_those_that_predict_online() -> None:
    assert {*STEPWISE, "uniform"} == BY_BUDGET


def test_patterns_select_jobs_and_what_they_need(full: Manifest) -> None:
    jobs = plan_jobs(full, Layout(Path("/out")))
    chosen = select_jobs(jobs, ["fit-li*"])
    assert chosen == {f"fit-liteeval-fine_share_target-{g}" for g in ("0.01", "0.1")}
    assert with_what_they_need(jobs, chosen) == chosen | {"import", "extract"}
    with pytest.raises(JobError, match=r"no job is called 'fti-\*'; there are: import, extract"):
        select_jobs(jobs, ["fti-*"])


@pytest.mark.parametrize("name", ["smoke", "mine", "full"])
def test_every_job_is_a_command_line_that_its_tool_accepts(
    load: Callable[..., Manifest], full: Manifest, tmp_path: Path, name: str
) -> None:
    smoke = Path(__file__).parent.parent / "manifests" / "smoke.yaml"
    manifest = {"mine": load, "full": lambda: full, "smoke": lambda: load_manifest(smoke)}[name]()
    layout = Layout(tmp_path / "out")
    for backbone in manifest.backbones.by_role.values():
        (layout.features / backbone.store_name).mkdir(parents=True)
    for run in manifest.all_runs:
        layout.run(run.name).mkdir(parents=True)
    for folder in (layout.clips, layout.data):
        folder.mkdir()
        (folder / "labels.csv").touch()
    for job in plan_jobs(manifest, layout, workers=2):
        package, command, *arguments = (*job.argv, *job.where)
        context = click.Context(TOOLS[package])
        TOOLS[package].commands[command].make_context(command, arguments, parent=context)


def test_a_run_is_handed_on_as_its_tool_writes_it(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    jobs = {job.name: job for job in plan_jobs(load(), Layout(Path("/out")))}
    line = str(jobs["fit-liteeval"])
    assert line.startswith("liteeval-train fit --coarse /out/features/mobilenet_v2_112 --fine ")
    assert "--method liteeval --preset small --set=seed=4 --set=epochs=2" in line
    assert "--set=l2_normalise=true" in line
    weights = f"--weights=mobilenet_v2@112=random --weights=mobilenet_v2@224={tmp_path}/weights.pth"
    assert weights in str(jobs["extract"])


def test_where_a_job_runs_makes_nothing_stale(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "out")
    one = digests(plan_jobs(load(), layout, device="cpu", workers=1), layout)
    assert digests(plan_jobs(load(), layout, device="cuda", workers=8), layout) == one


def test_an_option_makes_its_run_and_what_follows_stale(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "out")
    before = digests(plan_jobs(load(), layout), layout)
    after = digests(plan_jobs(load(epochs="3"), layout), layout)
    assert changed(before, after) == {
        *("fit-liteeval", "evaluate-val-liteeval", "table", "filmstrip", "report")
    }


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("videos/a.mp4", b"another"),
        ("videos/b/c.mp4", b"one more"),
        ("labels.csv", b"video_id,label,split\na,y,train\n"),
        ("weights.pth", b"others"),
    ],
)
def test_a_changed_input_makes_everything_stale(
    load: Callable[..., Manifest], tmp_path: Path, file: str, content: bytes
) -> None:
    layout = Layout(tmp_path / "out")
    jobs = plan_jobs(load(), layout)
    before = digests(jobs, layout)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    assert changed(before, digests(jobs, layout)) == set(before)


def test_labels_written_again_with_the_same_content_make_nothing_stale(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "out")
    jobs = plan_jobs(load(), layout)
    before = digests(jobs, layout)
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv").write_text(text)
    assert digests(jobs, layout) == before


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Job, Layout, str]:
    """A job that has ended well, with its output and its stamp."""
    layout = Layout(tmp_path)
    run = layout.run("a")
    run.mkdir(parents=True)
    (run / "model").write_text("trained")
    job = Job("fit-a", ("extract",), outputs=(run / "model",), replaces=(run,))
    wanted = digest(job, layout)
    Stamp(wanted, exit_code=0).write(layout.stamp("fit-a"))
    return job, layout, wanted


def test_a_job_is_done_only_with_its_stamp_and_its_outputs(
    finished: tuple[Job, Layout, str],
) -> None:
    job, layout, wanted = finished
    assert is_done(job, layout, wanted)
    assert not is_done(job, layout, digest(dataclasses.replace(job, argv=("extract", "x")), layout))
    Stamp(wanted, exit_code=None).write(layout.stamp("fit-a"))
    assert not is_done(job, layout, wanted)
    layout.stamp("fit-a").write_text('{"digest": ')
    assert not is_done(job, layout, wanted)
    Stamp(wanted, exit_code=0).write(layout.stamp("fit-a"))
    job.outputs[0].unlink()
    assert not is_done(job, layout, wanted)


def test_a_changed_job_moves_its_old_work_aside_and_an_interrupted_one_keeps_it(
    finished: tuple[Job, Layout, str],
) -> None:
    job, layout, wanted = finished
    assert set_aside(job, layout, wanted) == []
    (moved,) = set_aside(job, layout, "another digest")
    assert (moved / "model").read_text() == "trained"
    assert not layout.run("a").exists()


def test_a_job_stays_done_until_one_before_it_makes_something_else(
    finished: tuple[Job, Layout, str],
) -> None:
    job, layout, wanted = finished
    table = Job("table", ("pipelines",), depends_on=("fit-a",), inputs=job.outputs)

    def run_again() -> str:
        Stamp(wanted, 0, made=hash_outputs(job, layout)).write(layout.stamp("fit-a"))
        return digest(table, layout)

    before = run_again()
    job.outputs[0].unlink()
    job.outputs[0].write_text("trained")
    assert run_again() == before
    job.outputs[0].write_text("trained on more")
    assert run_again() != before


def test_a_moved_output_folder_changes_no_digest(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    here, there = Layout(tmp_path / "out"), Layout(tmp_path / "elsewhere" / "moved")
    before = digests(plan_jobs(load(), here), here)
    there.out.parent.mkdir()
    here.out.rename(there.out)
    after = {job.name: digest(job, there) for job in plan_jobs(load(), there)}
    assert after == before


def test_touched_videos_and_files_beside_them_change_no_digest(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "videos" / "out")  # below the videos
    jobs = plan_jobs(load(), layout)
    before = digests(jobs, layout)
    os.utime(tmp_path / "videos" / "a.mp4", (1, 1))
    os.utime(tmp_path / "weights.pth", (1, 1))
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    assert {job.name: digest(job, layout) for job in jobs} == before


def test_another_backbone_leaves_runs_done_that_do_not_read_it(
    load: Callable[..., Manifest], tmp_path: Path
) -> None:
    layout, path = Layout(tmp_path / "out"), tmp_path / "mine.yaml"
    more = "\n  others: {more: {name: mobilenet_v2, size: 1, weights: random}}"
    text = CONTENT.replace("weights.pth}", "weights.pth}" + more)
    text = text.replace("{method: lstm}", "{method: lstm, fine: more}")

    def plan(size: int) -> list[Job]:
        path.write_text(text.replace("size: 1,", f"size: {size},"))
        return plan_jobs(load_manifest(path), layout)

    def fits(jobs: list[Job]) -> dict[str, tuple[Path, ...]]:
        return {job.name: job.inputs for job in jobs if job.name.startswith("fit-")}

    before, after = fits(plan(64)), fits(plan(96))
    assert before["fit-liteeval"] == after["fit-liteeval"]
    assert before["fit-lstm"] != after["fit-lstm"]


def test_a_forced_job_starts_over_though_nothing_changed(
    finished: tuple[Job, Layout, str],
) -> None:
    job, layout, wanted = finished
    (moved,) = set_aside(job, layout, wanted, forced=True)
    assert (moved / "model").read_text() == "trained"
    assert not layout.run("a").exists()


def test_an_interrupted_start_over_goes_on_and_an_ended_one_starts_over_again(
    finished: tuple[Job, Layout, str],
) -> None:
    job, layout, wanted = finished
    Stamp(wanted, exit_code=None, forced=True).write(layout.stamp("fit-a"))
    assert set_aside(job, layout, wanted, forced=True) == []
    Stamp(wanted, exit_code=None).write(layout.stamp("fit-a"))  # never asked to start over
    assert len(set_aside(job, layout, wanted, forced=True)) == 1


def test_what_cannot_be_moved_aside_is_named(finished: tuple[Job, Layout, str]) -> None:
    job, layout, _ = finished
    layout.old.write_text("a file in the way")
    with pytest.raises(JobError, match=r"runs/a: cannot be moved to .*; move it away yourself"):
        set_aside(job, layout, "another digest")
