"""Evaluation: what is written, what it says, from which stores."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from extract.store import StoreError
from liteeval_train.config import resolve_config
from liteeval_train.data import DataError
from liteeval_train.evaluate import evaluate_run, read_or_evaluate
from liteeval_train.online import evaluate_budgets, evaluate_watched
from liteeval_train.run import RunError, RunFolder
from liteeval_train.simulate import Simulation, simulate
from liteeval_train.train import fit

KEYS = {
    "method",
    "split",
    "videos",
    "top1",
    "top5",
    "map",
    "average_precision",
    "gflops_mean",
    "gflops_std",
    "gflops",
    "fine_frames_mean",
    "fine_frames_std",
    "frames_mean",
    "seconds_per_video",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(Simulation(videos=40, classes=6, min_frames=3, max_frames=12), folder)
    for method in ("liteeval", "uniform", "lstm"):
        config = resolve_config(
            method=method, preset="small", settings=["epochs=2", "fine_hidden=96", "frames=5"]
        )
        fit(
            config,
            coarse=folder / "coarse",
            fine=folder / "fine",
            labels=folder / "labels.csv",
            out=folder / method,
        )
    return folder


@pytest.mark.parametrize("method", ["liteeval", "uniform", "lstm"])
def test_summary_adds_up_the_lines_of_the_videos(folder, method):
    summary = evaluate_run(folder / method).summary
    assert summary.keys() == KEYS
    run = RunFolder(folder / method)
    assert json.loads(run.evaluation("val").read_text()) == summary
    lines = [json.loads(x) for x in run.evaluation_videos("val").read_text().splitlines()]
    count = len(lines)
    assert summary["videos"] == count == 10
    assert summary["top1"] == pytest.approx(sum(x["correct"] for x in lines) / count)
    assert summary["top5"] == pytest.approx(sum(x["top5"] for x in lines) / count)
    assert summary["gflops_mean"] == pytest.approx(sum(x["gflops"] for x in lines) / count)
    assert summary["gflops_mean"] == pytest.approx(sum(summary["gflops"].values()))
    assert summary["fine_frames_mean"] == pytest.approx(sum(sum(x["used"]) for x in lines) / count)
    assert summary["frames_mean"] == pytest.approx(sum(x["frames"] for x in lines) / count)
    for line in lines:
        assert line["correct"] == (line["predicted"] in line["labels"])
        assert len(line["rows"]) == len(line["pts_seconds"]) == len(line["used"]) == line["frames"]
        assert line["fine_frames"] == sum(line["used"])
        assert line["pts_seconds"] == line["rows"]  # one simulated frame per second


def test_gflops_are_those_of_the_frames_read(folder):
    for method in ("liteeval", "lstm", "uniform"):
        summary = evaluate_run(folder / method).summary
        assert summary["gflops"]["fine"] == pytest.approx(7.8014 * summary["fine_frames_mean"])
        coarse_frames = summary["frames_mean"] if method == "liteeval" else 0
        assert summary["gflops"]["coarse"] == pytest.approx(0.0822 * coarse_frames)
    assert evaluate_run(folder / "uniform").summary["frames_mean"] <= 5


def test_stores_that_moved_are_named_by_hand(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "fine", moved)
    expected = evaluate_run(folder / "lstm").summary
    found = evaluate_run(folder / "lstm", fine=moved).summary
    assert {k: v for k, v in found.items() if k != "seconds_per_video"} == {
        k: v for k, v in expected.items() if k != "seconds_per_video"
    }


@pytest.mark.parametrize("other", ["coarse", "fine", "labels", "average_precision"])
def test_results_on_other_data_or_by_another_measure_do_not_replace_the_runs_own(
    folder, tmp_path, other
):
    run = RunFolder(folder / "lstm")
    evaluate_run(run.path)
    files = (run.evaluation("val"), run.evaluation_videos("val"))
    own = [file.read_bytes() for file in files]
    if other == "average_precision":
        options = {other: "interpolated"}
    elif other == "labels":
        rows = (folder / "labels.csv").read_text().replace(",class_000,", ",class_001,")
        (tmp_path / "other.csv").write_text(rows)
        options = {other: tmp_path / "other.csv"}
    else:
        shutil.copytree(folder / other, tmp_path / "copy")
        options = {other: tmp_path / "copy"}
    summary = evaluate_run(run.path, **options).summary
    assert summary["average_precision"] == options.get("average_precision", "plain")
    assert [file.read_bytes() for file in files] == own


def test_the_runs_own_files_named_by_hand_are_its_own(folder):
    run = RunFolder(folder / "lstm")
    run.evaluation("val").unlink(missing_ok=True)
    evaluate_run(run.path, fine=folder / "coarse" / ".." / "fine", labels=folder / "labels.csv")
    assert run.evaluation("val").exists()


def test_results_on_stores_and_labels_that_moved_are_the_runs_own(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "lstm", run.path)
    info = run.read_info()
    for store in (info.coarse, info.fine):
        store.path = store.path.replace(str(folder), "/gone")
    info.labels_path = "/gone/labels.csv"
    run.write_info(info)
    shutil.copyfile(folder / "labels.csv", tmp_path / "moved.csv")
    stores = {"coarse": folder / "coarse", "fine": folder / "fine"}
    expected = evaluate_run(folder / "lstm").summary["map"]
    run.evaluation("val").unlink(missing_ok=True)
    evaluate_run(run.path, labels=tmp_path / "moved.csv", **stores)
    assert read_or_evaluate(run.path, split="val")["map"] == expected
    with pytest.raises((DataError, StoreError), match="/gone"):
        evaluate_run(run.path)


def test_labels_edited_since_training_are_refused_unless_they_are_named(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "lstm", run.path)
    labels = tmp_path / "labels.csv"
    shutil.copyfile(folder / "labels.csv", labels)
    info = run.read_info()
    info.labels_path = str(labels)
    run.write_info(info)
    assert evaluate_run(run.path).summary["videos"] == 10
    labels.write_text(labels.read_text().replace(",train", ",val"))
    files = (run.evaluation("val"), run.evaluation_videos("val"))
    own = [file.read_bytes() for file in files]
    for evaluate in (evaluate_run, evaluate_watched, lambda path: evaluate_budgets(path, [1])):
        with pytest.raises(RunError, match=r"labels.csv: has changed since .* --labels"):
            evaluate(run.path)
    assert evaluate_run(run.path, labels=labels).summary["videos"] == 40
    assert [file.read_bytes() for file in files] == own


def test_store_of_another_backbone_is_refused(folder, tmp_path):
    with pytest.raises((RunError, DataError), match=r"simulated_|swapped"):
        evaluate_run(folder / "lstm", fine=folder / "coarse", coarse=folder / "coarse")


def test_split_without_videos_is_refused(folder):
    with pytest.raises(DataError, match="no video of split 'test'"):
        evaluate_run(folder / "lstm", split="test")


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no run here \(no config.json\)"):
        evaluate_run(tmp_path)


def test_result_is_read_again_only_while_its_model_is_the_chosen_one(folder):
    run = RunFolder(folder / "lstm")
    first = evaluate_run(run.path).summary
    assert read_or_evaluate(run.path, split="val") == first
    marked = {**first, "top1": -1.0}
    run.evaluation("val").write_text(json.dumps(marked))
    assert read_or_evaluate(run.path, split="val") == marked
    later = run.evaluation("val").stat().st_mtime + 1  # clocks of file systems tick coarsely
    os.utime(run.best, (later, later))
    assert read_or_evaluate(run.path, split="val")["top1"] == first["top1"]


def test_model_whose_scores_are_not_finite_is_refused(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "lstm", run.path)
    network = run.read_info().build()
    torch.nn.init.constant_(network.classifier.bias, float("nan"))
    run.save_best(network)
    run.evaluation("val").unlink(missing_ok=True)
    with pytest.raises(RunError, match=r"lstm: the scores of 'video_00000' are not finite"):
        evaluate_run(run.path)
    assert not run.evaluation("val").exists()
