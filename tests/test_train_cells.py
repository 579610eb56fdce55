"""Cells against torch's own, and the linear layer of loops against the plain one."""

import torch
from torch import nn
from torch.nn import functional

from liteeval_train.cells import LoopLinear, LSTMCell, Projection


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
    inputs_TBG, step = cell.inputs(x_TBD), cell.begin()
    state = cell.zero_state(4, like=x_TBD)
    outputs = []
    for inputs_BG in inputs_TBG:
        state = step(inputs_BG, state)
        outputs.append(state[0])
    torch.testing.assert_close(torch.stack(outputs), expected_TBH)
    torch.testing.assert_close(state[1], c_1BH[0])


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


def test_cell_costs_four_gates_times_inputs_and_state():
    assert LSTMCell(512, 64).flops == 4 * 64 * (512 + 64)


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
