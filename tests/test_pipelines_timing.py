"""Seconds from the file to the answer: what is measured, and that it is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import LIVE_METHODS

from liteeval_train.run_files import RunFiles
from pipelines.cli import main
from pipelines.jobs import Layout, plan_jobs
from pipelines.live import open_live
from pipelines.manifest import ManifestError, load_manifest
from pipelines.timing import (
    PARTS,
    Timing,
    TimingError,
    format_timings,
    pick_videos,
    read_timings,
    time_runs,
    timings_to_dict,
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["time", *map(str, arguments)])


def test_runs_are_timed_on_the_videos_they_predict(live_runs: Path) -> None:
    names = [name for name in LIVE_METHODS if name in ("liteeval", "lstm", "uniform")]
    runs = [live_runs / name for name in names]
    result = call(*runs, "--videos", live_runs / "clips", "--count", 3, "--repeats", 2,
                  "--device", "cpu", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {row["run"]: row for row in json.loads(result.stdout)["runs"]}
    assert list(rows) == names
    picked = [video.id for video in pick_videos([live_runs / "clips"], 3)]
    assert len(picked) == 3
    for name, row in rows.items():
        assert row["videos"] == 3
        assert set(row["seconds"]) == set(PARTS)
        assert row["seconds"]["total"] > row["seconds"]["head"] > 0
        read = json.loads(
            CliRunner()
            .invoke(main, ["predict", str(live_runs / "clips"), "--run", str(live_runs / name),
                           "--device", "cpu", "--json"])
            .stdout
        )["videos"]  # fmt: skip
        gflops = [video["gflops_total"] for video in read if video["video_id"] in picked]
        assert row["gflops_mean"] == pytest.approx(sum(gflops) / 3)
    lstm = rows["lstm"]["seconds"]
    assert lstm["coarse"] < 0.01 * lstm["fine"]  # it has no coarse network
    assert RunFiles(live_runs / "lstm").read_info().config.method == rows["lstm"]["method"]


def test_the_table_gives_ratios_to_the_first_run() -> None:
    def timing(name: str, fine: float, gflops: float, total: float) -> Timing:
        seconds = dict.fromkeys(PARTS, 0.1) | {"total": total}
        return Timing(name, "liteeval", 4, 10.0, fine, gflops, seconds)

    text = format_timings([timing("a", 2.0, 20.0, 0.5), timing("b", 10.0, 80.0, 1.25)])
    cells = [line.split() for line in text.splitlines()[4:]]
    assert cells[0][-2:] == ["1.00", "1.00"]
    assert cells[1][-2:] == ["2.50", "4.00"]
    assert cells[1][1:5] == ["10.0", "of", "10.0", "80.00"]


def test_what_was_measured_is_read_again_and_damage_is_nothing(tmp_path: Path) -> None:
    timing = Timing("a", "lstm", 3, 10.0, 10.0, 78.0, dict.fromkeys(PARTS, 0.25))
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps(timings_to_dict([timing])))
    assert read_timings(path) == [timing]
    path.write_text(path.read_text()[:40])
    assert read_timings(path) == read_timings(tmp_path / "none.json") == []


def test_a_manifest_times_runs_of_one_fine_backbone(tmp_path: Path) -> None:
    text = (
        "name: mine\ndata: {videos: v, labels: labels.csv}\nbackbones:\n"
        "  coarse: {name: mobilenet_v2, size: 112}\n"
        "  fine: {name: resnet101, size: 224, weights: w.pth, finetune: {}}\n"
        "  others: {big: {name: dpn107, size: 224}}\n"
        "runs: [{method: lstm}, {method: liteeval}, {method: lstm, name: deep, fine: big}]\n"
    )
    manifest = tmp_path / "mine.yaml"
    manifest.write_text(text + 'report: {seconds: ["l*"], seconds_videos: 7}\n')
    layout = Layout(tmp_path / "out")
    jobs = {job.name: job for job in plan_jobs(load_manifest(manifest), layout)}
    assert jobs["seconds"].inputs == (layout.model("lstm"), layout.model("liteeval"))
    assert jobs["seconds"].gpus is None  # alone
    assert f"--weights=resnet101@224={layout.finetuned('fine')}" in jobs["seconds"].argv
    context = main.commands["time"].make_context("time", [*jobs["seconds"].argv[2:]])
    assert context.params["count"] == 7
    assert context.params["runs"] == (layout.run("lstm"), layout.run("liteeval"))
    manifest.write_text(text + 'report: {seconds: ["*"]}\n')
    with pytest.raises(ManifestError, match="fine features of big and fine"):
        load_manifest(manifest)


def test_a_run_that_computes_more_than_it_says_is_told(
    live_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = open_live(live_runs / "liteeval", device="cpu")
    honest = type(live.fine).__call__

    def twice(network, pixels):
        honest(network, pixels)
        return honest(network, pixels)

    monkeypatch.setattr(type(live.fine), "__call__", twice)
    with pytest.raises(TimingError, match="the fine network ran on"):
        time_runs({"liteeval": live}, pick_videos([live_runs / "clips"], 2), repeats=1)


def test_a_video_that_cannot_be_decoded_is_named_and_left_out(live_runs: Path, tmp_path) -> None:
    bad, good = tmp_path / "bad.mp4", pick_videos([live_runs / "clips"], 1)[0].path
    bad.write_bytes(b"no video")
    options = ("--device", "cpu", "--repeats", 1)
    result = call(live_runs / "liteeval", "--videos", bad, "--videos", good, *options, "--json")
    assert result.exit_code == 3, result.output
    assert "bad.mp4" in result.stderr
    assert json.loads(result.stdout)["runs"][0]["videos"] == 1
    none = call(live_runs / "liteeval", "--videos", bad, *options)
    assert none.exit_code == 1
    assert "none of 1 videos can be decoded" in none.output


def test_no_video_is_told(live_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = call(live_runs / "liteeval", "--videos", tmp_path / "empty", "--device", "cpu")
    assert result.exit_code == 1
    assert "no video file" in result.output
