"""Prediction by budget and by share watched."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Sample, collate
from liteeval_train.evaluate import evaluate_run, open_split, open_trained
from liteeval_train.methods import build_method
from liteeval_train.online import (
    evaluate_budgets,
    evaluate_watched,
    stop_at_budget,
    stop_at_share,
)
from liteeval_train.run import RunError
from liteeval_train.simulate import Simulation, simulate
from liteeval_train.train import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(Simulation(videos=40, classes=4, min_frames=4, max_frames=12, key_share=0.3), folder)
    for method in ("liteeval", "uniform", "fastforward"):
        fit(
            resolve_config(method=method, preset="small", settings=["epochs=2", "fine_hidden=96"]),
            coarse=folder / "coarse",
            fine=folder / "fine",
            labels=folder / "labels.csv",
            out=folder / method,
        )
    return folder


@pytest.mark.parametrize(("budget", "stop"), [(1, 2), (2, 3), (3, 6), (4, 7), (99, 7)])
def test_budget_ends_at_its_last_fine_frame_or_with_the_video(budget, stop):
    used_T = np.array([0, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
    assert stop_at_budget(used_T, budget) == stop


@pytest.mark.parametrize(
    ("frames", "share", "stop"), [(8, 0.25, 1), (8, 1.0, 7), (3, 0.1, 0), (10, 0.3, 2), (1, 0.1, 0)]
)
def test_share_ends_at_the_frame_that_completes_it(frames, share, stop):
    assert stop_at_share(frames, share) == stop


def test_budget_beyond_every_video_is_the_whole_video(folder):
    whole = evaluate_run(folder / "liteeval").summary
    (online,) = evaluate_budgets(folder / "liteeval", [1000])
    for key in ("top1", "map", "gflops_mean", "fine_frames_mean", "frames_mean"):
        assert online[key] == pytest.approx(whole[key])
    assert evaluate_watched(folder / "liteeval")[-1]["gflops_mean"] == online["gflops_mean"]


def test_no_video_reads_more_finely_than_its_budget(folder):
    curve = evaluate_budgets(folder / "liteeval", [1, 2, 3])
    reads = [video.fine_frames for video in evaluate_run(folder / "liteeval").videos]
    for point in curve:
        expected = np.mean([min(fine_frames, point["budget"]) for fine_frames in reads])
        assert point["fine_frames_mean"] == pytest.approx(expected)
    saved = json.loads((folder / "liteeval" / "evaluate_val_budgets.json").read_text())
    assert saved == curve


def test_seq_k_averages_the_scores_of_the_first_frames(folder):
    (point,) = evaluate_budgets(folder / "uniform", [2])
    run = open_trained(folder / "uniform")
    videos = open_split(run.info, "val", max_frames=2, select=lambda rows, n: np.arange(n))
    correct = 0
    for number in range(len(videos)):
        sample = videos[number]
        fine_TD = torch.from_numpy(sample.fine_TD).float()
        scores_TK = run.method.fine(fine_TD).softmax(dim=1)
        correct += scores_TK.mean(dim=0).argmax().item() in sample.labels
    assert point["method"] == "seq-k"
    assert point["top1"] == pytest.approx(correct / len(videos))
    assert point["fine_frames_mean"] == point["frames_mean"] == 2


def test_uniform_k_reads_k_frames_up_to_where_liteeval_stopped(folder):
    points = evaluate_budgets(folder / "uniform", [1, 2], reads_of=folder / "liteeval")
    stops = evaluate_budgets(folder / "liteeval", [1, 2])
    for point, stop in zip(points, stops, strict=True):
        assert point["method"] == "uniform-k"
        assert point["fine_frames_mean"] <= min(point["budget"], stop["frames_mean"])


def test_agent_has_no_online_prediction(folder):
    with pytest.raises(RunError, match="fastforward gives no prediction while a video runs"):
        evaluate_budgets(folder / "fastforward", [1])


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
@pytest.mark.parametrize("method", ["liteeval", "liteeval-rl", "lstm", "lstm+cf", "uniform+cf"])
def test_rows_piece_by_piece_give_what_the_whole_video_gives(method, cell):
    torch.manual_seed(0)
    config = resolve_config(method=method, preset="small", settings=[f"cell={cell}"])
    network = build_method(config, coarse_dim=5, fine_dim=7, classes=3).eval()
    if method.startswith("liteeval"):
        with torch.no_grad():
            network.gate_coarse.weight *= 50  # the gate opens at some frames, not at others
    features = torch.randn(9, 12)
    whole = network.predict(_batch(features), every_step=True)
    pieces, carried = [], None
    for piece in features.split([1, 4, 1, 3]):
        prediction, carried = network.advance(_batch(piece), carried)
        pieces.append(prediction)
    assert torch.cat([piece.used_N for piece in pieces]).equal(whole.used_N)
    torch.testing.assert_close(pieces[-1].scores_BK, whole.scores_BK)
    if method != "uniform+cf":  # whose step scores are each frame's own
        assert whole.used_N.any()
        assert whole.used_N.all() == method.startswith("lstm")
        steps = torch.cat([piece.step_scores_NK for piece in pieces])
        torch.testing.assert_close(steps, whole.step_scores_NK)


def _batch(features: torch.Tensor) -> Batch:
    coarse, fine = features.numpy()[:, :5], features.numpy()[:, 5:]
    rows = np.arange(len(features))
    return collate([Sample("video", rows, rows * 1.0, coarse, fine, (0,))], classes=3)
