"""Predictions on raw video equal those on extracted features, at the cost that they state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import LIVE_METHODS

from extract.sampling import evenly_spaced
from extract.videos import find_videos
from liteeval_train import data
from liteeval_train.evaluate import open_split, open_trained, trace_videos
from liteeval_train.online import evaluate_budgets
from pipelines.cli import main
from pipelines.live import LazyRows, open_live
from pipelines.predict import VideoPrediction, predict_videos


def split_videos(live_runs: Path, ids: list[str]):
    return [video for video in find_videos([live_runs / "clips"]) if video.id in ids]


@pytest.mark.parametrize("method", LIVE_METHODS)
def test_prediction_is_that_of_extracted_features_and_runs_the_fine_network_on_its_reads_alone(
    live_runs: Path, method: str
) -> None:
    run = open_trained(live_runs / method, "cpu")
    stored = open_split(run.info, "val", max_frames=run.method.max_frames)
    traces, _ = trace_videos(
        run.method, stored, classes=len(run.info.classes), batch_videos=1, device=run.device
    )
    live = open_live(live_runs / method, device="cpu")
    videos = split_videos(live_runs, stored.video_ids)
    results = {result.video_id: result for result in predict_videos(live, videos)}
    assert sorted(results) == [trace.sample.video_id for trace in traces]
    for trace in traces:
        result = results[trace.sample.video_id]
        assert isinstance(result, VideoPrediction)
        best = trace.scores_K.topk(len(result.top5))
        assert [score for _, score in result.top5] == pytest.approx(best.values.tolist(), abs=2e-3)
        assert result.fine_seconds == trace.sample.pts_seconds[trace.used_T].tolist()
        assert result.frames == trace.seen_T.sum()
    assert live.fine.rows == sum(trace.used_T.sum() for trace in traces)
    coarse = sum(len(trace.used_T) for trace in traces)
    assert (live.coarse.rows if live.coarse else 0) == (coarse if run.method.reads_coarse else 0)


@pytest.mark.parametrize(("method", "budget"), [("liteeval", 2), ("lstm", 3), ("uniform", 4)])
def test_a_budget_ends_each_video_at_its_last_fine_frame(
    live_runs: Path, method: str, budget: int
) -> None:
    (expected,) = evaluate_budgets(live_runs / method, [budget], device="cpu")
    live = open_live(live_runs / method, device="cpu")
    ids = open_split(live.run.info, "val", max_frames=99).video_ids
    results = list(predict_videos(live, split_videos(live_runs, ids), budget=budget))
    for key in ("frames", "fine_frames"):
        assert np.mean([getattr(r, key) for r in results]) == pytest.approx(expected[f"{key}_mean"])
    gflops = np.mean([result.gflops_total for result in results])
    assert gflops == pytest.approx(expected["gflops_mean"])
    assert max(result.fine_frames for result in results) <= budget
    assert live.fine.rows == sum(result.fine_frames for result in results)
    if live.coarse:
        assert live.coarse.rows == sum(result.frames for result in results)


def test_an_agent_takes_no_budget(live_runs: Path) -> None:
    arguments = [live_runs / "clips", "--run", live_runs / "fastforward", "--budget", 2]
    result = CliRunner().invoke(main, ["predict", *map(str, arguments)])
    assert result.exit_code == 1
    assert "takes no --budget" in result.output


def test_a_row_is_computed_once_and_only_when_it_is_read() -> None:
    asked = []

    def network(pixels: np.ndarray) -> torch.Tensor:
        asked.append(pixels[:, 0].tolist())
        return torch.from_numpy(pixels).float()

    rows = LazyRows([np.array([k, 10 * k]) for k in range(4)], network, torch.device("cpu"))
    assert rows[torch.tensor([2, 2, 0])].tolist() == [[2, 20], [2, 20], [0, 0]]
    assert asked == [[2, 0]]
    assert torch.cat([torch.zeros(4, 1), rows], dim=1).shape == (4, 3)
    assert asked == [[2, 0], [1, 3]]


@pytest.mark.parametrize(("rows", "wanted"), [(8, 4), (3, 4), (1, 1), (301, 129)])
def test_decode_processes_choose_the_rows_that_training_saw(rows: int, wanted: int) -> None:
    assert np.array_equal(evenly_spaced(rows, wanted), data.evenly_spaced(rows, wanted))


def test_a_damaged_video_is_named_and_the_others_are_predicted(live_runs: Path, tmp_path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    good = find_videos([live_runs / "clips"])[0].path
    arguments = [bad, good, "--run", live_runs / "liteeval", "--device", "cpu", "--json"]
    result = CliRunner().invoke(main, ["predict", *map(str, arguments)])
    assert result.exit_code == 3, result.output
    assert str(bad) in result.stderr
    by_id = {video["video_id"]: video for video in json.loads(result.stdout)["videos"]}
    assert "error" in by_id["bad"]
    assert by_id[good.stem]["fine_frames"] <= by_id[good.stem]["frames"]


def test_weights_that_the_run_does_not_know_are_refused(live_runs: Path, tmp_path) -> None:
    other = tmp_path / "other.pth"
    state = torch.nn.Linear(1, 1).state_dict()
    torch.save(state, other)
    for option, message in (
        (f"mobilenet_v2={other}", "not weights of this backbone"),
        ("resnet101=x.pth", "has no backbone resnet101"),
        ("mobilenet_v2", "expected NAME=FILE"),
    ):
        arguments = [live_runs / "clips", "--run", live_runs / "liteeval", "--weights", option]
        result = CliRunner().invoke(main, ["predict", *map(str, arguments)])
        assert result.exit_code == 1
        assert message in result.output
