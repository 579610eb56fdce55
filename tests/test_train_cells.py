"""Cells against torch's own, and the linear layer of loops against the plain one."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.cells import (
    Cell,
    GRUCell,
    LoopLinear,
    LSTMCell,
    PackedBatchNorm,
    Projection,
    SRUCell,
)


def test_lstm_cell_agrees_with_torch_lstm():
    torch.manual_seed(0)
    cell, reference = LSTMCell(5, 7), nn.LSTM(5, 7)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(cell.input.weight)
        reference.weight_hh_l0.copy_(cell.recurrent.weight)
        reference.bias_ih_l0.copy_(cell.input.bias)
        reference.bias_hh_l0.zero_()
    x_TBD = torch.randn(9, 4, 5)
    expected_TBH, (_, c_1BH) = reference(x_TBD)
    outputs_TBH, state = run(cell, x_TBD)
    torch.testing.assert_close(outputs_TBH, expected_TBH)
    torch.testing.assert_close(state[1], c_1BH[0])


def test_gru_cell_agrees_with_torch_gru():
    torch.manual_seed(0)
    cell, reference = GRUCell(5, 7), nn.GRU(5, 7)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(cell.input.weight)
        reference.weight_hh_l0.copy_(cell.recurrent.weight)
        reference.bias_ih_l0.copy_(cell.input.bias)
        reference.bias_hh_l0.zero_()
        reference.bias_hh_l0[14:].copy_(cell.candidate_bias)
    x_TBD = torch.randn(9, 4, 5)
    torch.testing.assert_close(run(cell, x_TBD)[0], reference(x_TBD)[0])


@pytest.mark.parametrize("inputs", [7, 5])
def test_sru_cell_agrees_with_its_equations(inputs):
    torch.manual_seed(0)
    cell = SRUCell(inputs, 7, highway_bias=-1.0).double()
    x_TBD = torch.randn(9, 4, inputs, dtype=torch.float64)
    weight, bias = cell.input.weight, cell.input.bias
    c_BH, expected = torch.zeros(4, 7, dtype=torch.float64), []
    for x_BD in x_TBD:
        f = torch.sigmoid(x_BD @ weight[7:14].T + cell.forget_state * c_BH + bias[7:14])
        r = torch.sigmoid(x_BD @ weight[14:21].T + cell.reset_state * c_BH + bias[14:21])
        c_BH = f * c_BH + (1 - f) * (x_BD @ weight[:7].T)
        highway = x_BD if inputs == 7 else x_BD @ weight[21:].T
        expected.append(r * c_BH + (1 - r) * math.sqrt(1 + 2 * math.exp(-1.0)) * highway)
    assert torch.equal(bias[14:21], torch.full((7,), -1.0, dtype=torch.float64))
    outputs_TBH, state = run(cell, x_TBD)
    torch.testing.assert_close(outputs_TBH, torch.stack(expected))
    torch.testing.assert_close(state[1], c_BH)


@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, SRUCell])
def test_backward_that_leaves_out_rows_without_gradient_is_exact(kind):
    torch.manual_seed(0)
    cell = kind(5, 7).double()
    x_TBD = torch.randn(6, 8, 5, dtype=torch.float64)
    gradients = []
    # One video alone has a loss, so 7 of 8 rows have no gradient; beside it, a loss of weight
    # 1e-300 on all videos makes every row count and changes no number.
    for weight in (0.0, 1e-300):
        cell.zero_grad()
        outputs_TBH, _ = run(cell, x_TBD)
        loss = outputs_TBH[:, 3].square().sum()
        if weight:
            loss = loss + weight * outputs_TBH.sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in cell.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def run(cell: Cell, x_TBD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(T, B, H) outputs and the last state, by the cell's own loop."""
    steps, videos, features = x_TBD.shape
    inputs_TBG = cell.inputs(x_TBD.reshape(-1, features)).reshape(steps, videos, -1)
    step, state = cell.begin(), cell.zero_state(videos, like=x_TBD)
    outputs = []
    for inputs_BG in inputs_TBG:
        state = step(inputs_BG, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def test_loop_linear_gathers_the_gradient_of_every_step():
    torch.manual_seed(0)
    layer = LoopLinear(6, 6).double()
    plain = layer.weight.detach().clone().requires_grad_()
    start = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    same = start.detach().clone().requires_grad_()
    product, x, y = layer.begin(), start, same
    for _ in range(5):
        x, y = torch.tanh(product(x)), torch.tanh(functional.linear(y, plain))
    x.square().sum().backward()
    y.square().sum().backward()
    torch.testing.assert_close(x, y)
    torch.testing.assert_close(layer.weight.grad, plain.grad)
    torch.testing.assert_close(start.grad, same.grad)


def test_loop_linear_adds_up_the_gradients_of_two_loops():
    torch.manual_seed(0)
    layer = LoopLinear(2, 3)
    x_BD = torch.randn(4, 2)
    for product in (layer.begin(), layer.begin()):
        product(x_BD).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * x_BD.sum(0).expand(3, 2))


def test_cells_cost_their_matrix_products():
    assert LSTMCell(512, 64).flops == 4 * 64 * (512 + 64)
    assert GRUCell(512, 64).flops == 3 * 64 * (512 + 64)
    assert SRUCell(512, 64).flops == 4 * 64 * 512  # the fourth is the highway's projection
    assert SRUCell(64, 64).flops == 3 * 64 * 64


def test_batch_norm_of_one_process_is_torchs():
    torch.manual_seed(0)
    x_ND = torch.randn(6, 4)
    ours, reference = PackedBatchNorm(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(ours(x_ND), reference(x_ND))
    torch.testing.assert_close(ours.running_var, reference.running_var)


def test_projection_normalises_each_row_before_its_layers():
    projection = Projection(4, 3, l2_normalise=True).eval()
    x_ND = torch.randn(5, 4)
    torch.testing.assert_close(projection(x_ND), projection(x_ND * 7))
    torch.testing.assert_close(
        projection(x_ND), projection.layers(x_ND / x_ND.norm(dim=1, keepdim=True))
    )


def test_projection_of_width_zero_keeps_the_features():
    projection = Projection(4, 0, l2_normalise=False)
    x_ND = torch.randn(5, 4)
    assert projection.width == 4
    assert projection.flops == 0
    assert torch.equal(projection(x_ND), x_ND)


def test_batch_norm_of_one_row_uses_the_running_statistics():
    norm = PackedBatchNorm(2, eps=0.0)
    norm.running_mean, norm.running_var = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25])
    out = norm.train()(torch.tensor([[5.0, 0.0]]))
    assert out.tolist() == [[2.0, 2.0]]  # (5 − 1) / √4, (0 + 1) / √0.25
    assert norm.running_mean.tolist() == [1.0, -1.0]
    assert norm.running_var.tolist() == [4.0, 0.25]
