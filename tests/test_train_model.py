"""LiteEval against the paper's equations, written out step by step for one video at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Sample, collate, with_uniforms
from liteeval_train.model import OPEN, LiteEval, gumbel_noise, sample_gate

COARSE, FINE, CLASSES = 6, 9, 3
SETTINGS = [
    "coarse_hidden=4",
    "fine_hidden=8",
    "coarse_projection=5",
    "fine_projection=7",
    "fine_share_target=0.3",
]


def make_model(*settings: str) -> LiteEval:
    torch.manual_seed(1)
    config = resolve_config(settings=[*SETTINGS, *settings])
    model = LiteEval(config, coarse_dim=COARSE, fine_dim=FINE, classes=CLASSES).double()
    with torch.no_grad():  # so that gates of random rows open and close
        model.gate_coarse.weight[OPEN] = torch.tensor([30.0, -30.0, 30.0, -30.0, 0.0])
    return model


def make_samples(lengths: list[int], seed: int = 0) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [
        with_uniforms(
            Sample(
                f"v{number}",
                np.arange(rows),
                np.arange(rows) * 1.0,
                random.standard_normal((rows, COARSE)),
                random.standard_normal((rows, FINE)),
                (number % CLASSES,),
                number,
            ),
            seed=seed,
            epoch=0,
        )
        for number, rows in enumerate(lengths)
    ]


def make_batch(samples: list[Sample]) -> Batch:
    batch = collate(samples, classes=CLASSES)
    batch.labels_BK, batch.lengths_B = batch.labels_BK.double(), batch.lengths_B.double()
    return batch


def lstm(x_D: Tensor, state: tuple[Tensor, Tensor], cell) -> tuple[Tensor, Tensor]:
    gates = cell.input.weight @ x_D + cell.input.bias + cell.recurrent.weight @ state[0]
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def reference_video(
    model: LiteEval, coarse_TC: Tensor, fine_TF: Tensor, noise_T2: Tensor | None, temperature: float
) -> tuple[Tensor, list[Tensor]]:
    """Equations 1–6 on projected rows of one video: logits (K,) and the gate of every step."""
    dim_c, dim_f = 4, 8
    h_c = (coarse_TC.new_zeros(dim_c),) * 2
    h_f = (coarse_TC.new_zeros(dim_f),) * 2
    gates = []
    for t in range(len(coarse_TC)):
        h_c = lstm(coarse_TC[t], h_c, model.coarse_cell)  # (1)
        logits = (  # (2)
            model.gate_coarse.weight @ coarse_TC[t]
            + model.gate_coarse.bias
            + model.gate_state.weight @ torch.cat(h_f)
        )
        read = lstm(torch.cat([coarse_TC[t], fine_TF[t]]), h_f, model.fine_cell)  # (3)
        if noise_T2 is None:
            gate = (logits.argmax() == OPEN).double()
        else:  # (8, 9)
            soft = torch.softmax((logits + noise_T2[t]) / temperature, dim=0)
            gate = (soft.argmax() == OPEN).double() + soft[OPEN] - soft[OPEN].detach()
        skipped = tuple(torch.cat([c, f[dim_c:]]) for c, f in zip(h_c, h_f, strict=True))
        h_f = tuple(gate * r + (1 - gate) * s for r, s in zip(read, skipped, strict=True))  # (4, 5)
        gates.append(gate)
    return model.classifier.weight @ h_f[0] + model.classifier.bias, gates  # (6)


def reference_loss(model: LiteEval, batch: Batch, progress: float) -> Tensor:
    """Equation 7 over a batch."""
    coarse_NC = model.project_coarse(batch.coarse_ND)
    fine_NF = model.project_fine(batch.fine_ND)
    noise_N2 = -torch.log(-torch.log(batch.uniform_N2))
    losses = []
    for video, item in enumerate(batch.samples):
        rows = torch.from_numpy(batch.packing.rows_of(video))
        temperature = 1.0 * (0.5 / 1.0) ** progress
        logits, gates = reference_video(
            model, coarse_NC[rows], fine_NF[rows], noise_N2[rows], temperature
        )
        label = torch.tensor(item.labels[0])
        share = torch.stack(gates).mean()
        losses.append(functional.cross_entropy(logits, label) + 2.0 * (share - 0.3) ** 2)
    return torch.stack(losses).mean()


def test_training_loss_and_every_gradient_agree_with_the_equations():
    model, batch = make_model(), make_batch(make_samples([7, 3, 5, 1]))
    step = model(batch, progress=0.4)
    step.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = reference_loss(model, batch, 0.4)
    expected.backward()
    torch.testing.assert_close(step.loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_without_synchronisation_a_skipped_frame_leaves_the_fine_state_alone():
    model, batch = make_model("synchronise=false", "gate_bias=-1e9"), make_batch(make_samples([5]))
    prediction = model.eval().predict(batch)
    assert not prediction.used_N.any()
    expected_K = torch.softmax(model.classifier.bias, dim=0)  # of the state before any frame
    torch.testing.assert_close(prediction.scores_BK[0], expected_K)


@pytest.mark.parametrize("cell", ["gru", "sru"])
def test_other_cells_skip_and_synchronise_alike(cell):
    model, batch = make_model(f"cell={cell}", "gate_bias=-1e9"), make_batch(make_samples([6, 2]))
    prediction = model.eval().predict(batch)
    inputs_NG = model.coarse_cell.inputs(model.project_coarse(batch.coarse_ND))
    for video, item in enumerate(batch.samples):
        step, state = model.coarse_cell.begin(), model.coarse_cell.zero_state(1, like=inputs_NG)
        for row in batch.packing.rows_of(video):
            state = step(inputs_NG[row : row + 1], state)
        h_K = torch.cat([state[0][0], torch.zeros(8 - 4, dtype=torch.float64)])  # [h_c, 0]
        expected_K = torch.softmax(model.classifier(h_K), dim=0)
        torch.testing.assert_close(prediction.scores_BK[video], expected_K)
        assert len(item.rows) in (6, 2)
    step = model.train()(batch, progress=0.5)
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_usage_per_batch_squares_the_gap_of_the_mean_share():
    batch = make_batch(make_samples([7, 3, 5, 1]))
    per_video = make_model()(batch, progress=0.0).parts
    per_batch = make_model("usage_per=batch")(batch, progress=0.0).parts
    share = per_video["fine_share"].item()
    assert per_batch["usage_penalty"].item() == pytest.approx((share - 0.3) ** 2)
    assert per_video["usage_penalty"].item() > per_batch["usage_penalty"].item()


def test_usage_weight_rises_during_its_warm_up():
    model = make_model("usage_warmup=0.5")
    assert [model.usage_weight(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]


def test_gate_bias_opens_the_gate_at_first():
    batch = make_batch(make_samples([9, 9]))
    for bias, expected in ((1e9, True), (-1e9, False)):
        used_N = make_model(f"gate_bias={bias}").eval().predict(batch).used_N
        assert used_N.tolist() == [expected] * 18


def test_scores_of_every_step_are_those_of_the_video_cut_there():
    model, samples = make_model().eval(), make_samples([6])
    whole = model.predict(make_batch(samples), every_step=True)
    for frames in range(1, 7):
        first = replace(
            samples[0],
            rows=samples[0].rows[:frames],
            coarse_TD=samples[0].coarse_TD[:frames],
            fine_TD=samples[0].fine_TD[:frames],
            uniform_T2=samples[0].uniform_T2[:frames],
        )
        cut = model.predict(make_batch([first]))
        torch.testing.assert_close(cut.scores_BK[0], whole.step_scores_NK[frames - 1])


def test_gradient_of_both_terms_reaches_the_gate():
    for setting in ("usage_weight=0", "usage_weight=1000"):
        model, batch = make_model(setting), make_batch(make_samples([7, 3, 5, 1]))
        model(batch, progress=0.0).loss.backward()
        assert model.gate_coarse.weight.grad.abs().max() > 1e-6
        assert model.gate_state.weight.grad.abs().max() > 1e-6


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 1000))
def test_prediction_agrees_with_the_equations_whatever_the_batch(lengths, seed):
    model = make_model().eval()
    batch = make_batch(make_samples(lengths, seed))
    prediction = model.predict(batch)
    coarse_NC = model.project_coarse(batch.coarse_ND)
    fine_NF = model.project_fine(batch.fine_ND)
    for video in range(len(lengths)):
        rows = torch.from_numpy(batch.packing.rows_of(video))
        logits, gates = reference_video(model, coarse_NC[rows], fine_NF[rows], None, 1.0)
        torch.testing.assert_close(prediction.scores_BK[video], torch.softmax(logits, dim=0))
        assert prediction.used_N[rows].tolist() == [bool(gate) for gate in gates]


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(5)), st.integers(1, 4))
def test_order_and_size_of_batches_change_no_prediction(order, batch_videos):
    model = make_model().eval()
    samples = make_samples([4, 9, 4, 1, 6])

    def predict(chosen: list[Sample]) -> dict[str, Tensor]:
        batch = make_batch(chosen)
        scores_BK = model.predict(batch).scores_BK
        return {s.video_id: p for s, p in zip(batch.samples, scores_BK, strict=True)}

    together, apart = predict(samples), {}
    for start in range(0, 5, batch_videos):
        apart |= predict([samples[n] for n in order[start : start + batch_videos]])
    for video_id, scores_K in together.items():
        torch.testing.assert_close(apart[video_id], scores_K)


def test_evaluation_reads_no_fine_row_whose_gate_is_closed():
    model, batch = make_model().eval(), make_batch(make_samples([9, 6, 6, 2]))
    before = model.predict(batch)
    assert 0 < before.used_N.sum() < len(before.used_N)
    batch.fine_ND[~before.used_N] = torch.nan
    after = model.predict(batch)
    assert torch.equal(before.scores_BK, after.scores_BK)
    assert torch.equal(before.used_N, after.used_N)


def test_gate_samples_follow_the_softmax_of_its_logits():
    generator = torch.Generator().manual_seed(0)
    uniform_N2 = torch.rand(40_000, 2, generator=generator).clamp(1e-6, 1 - 1e-6)
    logits_N2 = torch.tensor([0.3, -0.9]).expand(40_000, 2)
    hard = sample_gate(logits_N2, gumbel_noise(uniform_N2), 0.7)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    expected = torch.softmax(logits_N2[0], dim=0)[OPEN].item()
    # Four standard errors of a share of 40,000 draws.
    assert hard[:, OPEN].mean().item() == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / 40_000) ** 0.5
    )


def test_temperature_falls_from_its_start_to_its_end():
    model = make_model("temperature_start=4", "temperature_end=1")
    assert [model.temperature(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([4.0, 2.0, 1.0])


def test_temperature_of_the_authors_code_starts_again_with_each_epoch():
    model = make_model("temperature_schedule=authors")
    for step, expected in ((0, 1.0), (1000, 0.904837), (6931, 0.500024), (20_000, 0.5)):
        model.step_of_epoch = step
        for progress in (0.0, 0.9):
            assert model.temperature(progress) == pytest.approx(expected, abs=1e-6)


def test_without_synchronisation_there_is_no_coarse_network_to_train_or_pay_for():
    model, batch = make_model("synchronise=false"), make_batch(make_samples([7, 3, 5, 1]))
    model(batch, progress=0.0).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # coarse projection, then the gate on it and on (h, c)
    assert model.head_flops().per_frame == 6 * 5 + 2 * (5 + 2 * 8)


def test_training_without_random_numbers_is_refused():
    batch = make_batch(make_samples([3, 2]))
    batch.uniform_N2 = None
    with pytest.raises(ValueError, match="random numbers"):
        make_model()(batch, progress=0.0)
