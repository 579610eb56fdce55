"""Baselines against plain computations on one video at a time."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Sample, collate
from liteeval_train.methods import build_method

CLASSES = 3


def make_batch(lengths: list[int]) -> Batch:
    random = np.random.default_rng(0)
    samples = [
        Sample(
            f"v{number}",
            np.arange(rows),
            np.arange(rows) * 1.0,
            random.standard_normal((rows, 4)).astype(np.float32),
            random.standard_normal((rows, 6)).astype(np.float32),
            (number % CLASSES,),
            number,
        )
        for number, rows in enumerate(lengths)
    ]
    return collate(samples, classes=CLASSES)


def make_method(name: str, *settings: str):
    torch.manual_seed(0)
    config = resolve_config(method=name, preset="small", settings=settings)
    return build_method(config, coarse_dim=4, fine_dim=6, classes=CLASSES)


def test_uniform_averages_the_softmax_scores_of_scikit_learns_logistic_regression():
    batch = make_batch([5, 2, 7])
    random = np.random.default_rng(1)
    regression = LogisticRegression().fit(random.standard_normal((60, 6)), np.arange(60) % CLASSES)
    method = make_method("uniform", "fine_projection=0", "l2_normalise=false").eval()
    with torch.no_grad():
        method.fine.classifier.weight.copy_(torch.from_numpy(regression.coef_))
        method.fine.classifier.bias.copy_(torch.from_numpy(regression.intercept_))
    scores_BK = method.predict(batch).scores_BK
    for video, item in enumerate(batch.samples):
        expected_K = regression.predict_proba(item.fine_TD).mean(axis=0)
        np.testing.assert_allclose(scores_BK[video].numpy(), expected_K, rtol=1e-4)


def test_uniform_sees_25_frames_or_as_many_as_set():
    assert make_method("uniform").max_frames == 25
    assert make_method("uniform", "frames=10").max_frames == 10


def test_lstm_predicts_from_the_last_frame_of_each_video():
    batch = make_batch([5, 2, 7])
    method = make_method("lstm").eval()
    scores_BK = method.predict(batch).scores_BK
    for video, item in enumerate(batch.samples):
        x_T1D = method.project_fine(torch.from_numpy(item.fine_TD))[:, None]
        outputs_T1H, _ = method.lstm(x_T1D)
        expected_K = method.classifier(outputs_T1H[-1, 0]).softmax(dim=0)
        torch.testing.assert_close(scores_BK[video], expected_K)


def test_baselines_read_every_frame_finely_and_none_coarsely():
    batch = make_batch([5, 2, 7])
    for name in ("uniform", "lstm"):
        method = make_method(name).eval()
        assert not method.reads_coarse
        assert method.predict(batch).used_N.all()


@pytest.mark.parametrize("name", ["liteeval", "lstm", "fastforward"])
def test_lstms_remember_up_to_the_frames_that_are_set(name):
    method = make_method(name, "memory_frames=30", "fine_hidden=2000")
    if name == "lstm":  # torch adds two biases
        bias_G = method.lstm.bias_ih_l0 + method.lstm.bias_hh_l0
    else:
        bias_G = (method.fine_cell if name == "liteeval" else method.cell).input.bias
    input_H, forget_H, candidate_H, output_H = bias_G.detach().chunk(4)
    torch.testing.assert_close(input_H, -forget_H)
    frames_H = forget_H.exp()  # uniform in [1, 29]: mean 15, deviation 28 / sqrt(12)
    assert 1 <= frames_H.min() < 2
    assert 28 < frames_H.max() <= 29.001
    assert abs(frames_H.mean() - 15) < 4 * 28 / math.sqrt(12 * 2000)
    assert candidate_H.abs().max() <= 2 / math.sqrt(2000)
    assert output_H.abs().max() <= 2 / math.sqrt(2000)


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("sru", 4)])
def test_other_cells_remember_as_long(cell, gates):
    method = make_method("liteeval", "memory_frames=30", "fine_hidden=2000", f"cell={cell}")
    others = make_method("liteeval", "memory_frames=0", "fine_hidden=2000", f"cell={cell}")
    kept, *rest = (m.fine_cell.input.bias.detach().chunk(gates)[1] for m in (method, others))
    frames_H = kept.exp()  # uniform in [1, 29]
    assert 1 <= frames_H.min() < 2
    assert 28 < frames_H.max() <= 29.001
    assert rest[0].abs().max() <= 1 / math.sqrt(2000)  # 0 in an SRU
    # A state that starts at 1 and is fed nothing is kept at σ(log u) = u / (1 + u) a step.
    step, zeros = method.fine_cell.begin(), torch.zeros(1, 2000)
    with torch.no_grad():
        method.fine_cell.input.bias.chunk(gates)[0].zero_()
        if cell == "gru":
            method.fine_cell.recurrent.weight.zero_()
            method.fine_cell.candidate_bias.zero_()
            method.fine_cell.input.bias.chunk(gates)[2].zero_()
        else:
            method.fine_cell.forget_state.zero_()
        inputs_1G = method.fine_cell.inputs(torch.zeros(1, method.fine_cell.input.in_features))
        after = step(inputs_1G, (zeros + 1,) * method.fine_cell.state_parts)[-1]
    torch.testing.assert_close(after[0], frames_H / (1 + frames_H))


def test_without_memory_frames_lstms_start_as_torchs():
    method = make_method("lstm", "memory_frames=0")
    assert method.lstm.bias_ih_l0.abs().max() <= 1 / math.sqrt(256)
