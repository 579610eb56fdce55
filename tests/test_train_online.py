"""Prediction by budget and by share watched."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.store import FeatureStore
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
from liteeval_train.run import RunError, RunFolder, RunInfo
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
    ("seen", "rows", "share", "stop"),
    [
        (range(8), 8, 0.25, 1),
        (range(8), 8, 1.0, 7),
        (range(3), 3, 0.1, 0),
        (range(10), 10, 0.3, 2),
        (range(1), 1, 0.1, 0),
        ([1, 3, 5, 7], 8, 0.5, 1),  # rows 0 to 3 are watched, of which 1 and 3 are seen
        ([1, 3, 5, 7], 8, 0.1, 0),  # row 0 is watched and not seen: a prediction needs one frame
        ([1, 3, 5, 7], 8, 1.0, 3),
    ],
)
def test_share_is_that_of_the_video_not_of_the_frames_seen(seen, rows, share, stop):
    assert stop_at_share(np.array(seen), rows, share) == stop


def test_share_watched_of_long_videos_counts_all_their_frames(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "liteeval", run.path)
    values = run.read_info().model_dump()
    values["config"]["max_frames"] = 3
    run.write_info(RunInfo.model_validate(values))
    half, whole = evaluate_watched(run.path, shares=[0.5, 1.0])
    lengths = FeatureStore(folder / "fine")
    frames = [lengths.rows(video.video_id) for video in evaluate_run(run.path).videos]
    # 3 rows at the centres of equal thirds: the first half of T rows holds those below ceil(T / 2)
    centres = [[(2 * k + 1) * t // 6 for k in range(3)] if t > 3 else [*range(t)] for t in frames]
    expected = [
        max(1, sum(row < -(-t // 2) for row in seen))
        for t, seen in zip(frames, centres, strict=True)
    ]
    assert half["frames_mean"] == pytest.approx(np.mean(expected))
    for key in ("map", "frames_mean", "fine_frames_mean", "gflops_mean"):
        assert whole[key] == pytest.approx(evaluate_run(run.path).summary[key])


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
    assert [point for point in saved if point["budget"] <= 3] == curve


def test_one_question_overwrites_no_others_answer(folder, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(folder / "uniform", run.path)
    shutil.copytree(folder / "liteeval", tmp_path / "again")
    for budgets, reads_of in (
        ([1, 2], None),
        ([2], folder / "liteeval"),
        ([3], None),
        ([1, 2], tmp_path / "again"),
    ):
        evaluate_budgets(run.path, budgets, reads_of=reads_of)
    points = [(point["method"], point["budget"]) for point in run.read_curve("val", "budgets")]
    assert points[-3:] == [("seq-k", 1), ("seq-k", 2), ("seq-k", 3)]
    found = {(p["reads_of"], p["budget"]) for p in run.read_curve("val", "uniform-k")}
    assert found >= {
        (str(folder / "liteeval"), 2),
        (str(tmp_path / "again"), 1),
        (str(tmp_path / "again"), 2),
    }
    later = run.curve("val", "budgets").stat().st_mtime + 1
    os.utime(run.best, (later, later))  # another model
    evaluate_budgets(run.path, [5])
    assert [point["budget"] for point in run.read_curve("val", "budgets")] in ([5], [])


def test_head_is_timed_on_the_frames_that_were_seen(folder, monkeypatch):
    def predict_and_count(method, batch, every_step):
        return method.predict(batch, every_step=every_step), batch.packing.rows

    monkeypatch.setattr("liteeval_train.evaluate._timed", predict_and_count)
    for point in evaluate_budgets(folder / "uniform", [1, 3]):
        assert point["seconds_per_video"] == point["budget"]  # a second a row


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


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("fastforward", {}, "it is a run of fastforward, which has no gate"),
        ("liteeval", {"labels_sha256": "1"}, "labels are .* there, .* here"),
        ("liteeval", {"max_frames": 7}, "max_frames is 7 there, 129 here"),
        ("liteeval", {"sample_fps": 5.0}, "fine store: sample_fps was 1.0, is 5.0"),
    ],
)
def test_reads_of_a_run_that_does_not_fit_are_refused(folder, tmp_path, method, changes, message):
    other = RunFolder(tmp_path / "other")
    shutil.copytree(folder / method, other.path)
    values = other.read_info().model_dump()
    for key, value in changes.items():
        where = {"max_frames": values["config"], "sample_fps": values["fine"]["identity"]}
        where.get(key, values)[key] = value
    other.write_info(RunInfo.model_validate(values))
    with pytest.raises(RunError, match=message):
        evaluate_budgets(folder / "uniform", [1], reads_of=other.path)


def test_agent_has_no_online_prediction(folder):
    with pytest.raises(RunError, match="fastforward gives no prediction while a video runs"):
        evaluate_budgets(folder / "fastforward", [1])


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
@pytest.mark.parametrize("method", ["liteeval", "liteeval-rl", "lstm", "lstm+cf", "uniform+cf"])
def test_rows_piece_by_piece_give_what_the_whole_video_gives(method, cell):
    torch.manual_seed(0)
    config = resolve_config(method=method, preset="small", settings=[f"cell={cell}"])
    network = build_method(config, coarse_dim=5, fine_dim=7, classes=3).eval()
    features = torch.randn(9, 12)
    if method.startswith("liteeval"):
        with torch.no_grad():  # so that the gate opens at about half of the frames
            network.gate_coarse.weight *= 50
            logits_N2 = network.gate_coarse(network.project_coarse(_batch(features).coarse_ND))
            network.gate_coarse.bias[1] -= (logits_N2[:, 1] - logits_N2[:, 0]).median()
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
