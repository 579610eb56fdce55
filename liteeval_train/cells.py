"""Recurrent cells for loops that a gate decides, and the layers before them.

A cell splits its step in two: `inputs` is all that does not depend on the state, done for every
row of a batch in one matrix product outside the loop; `step` is the rest. The weight of the
state's product gathers its gradient in one matrix product after the loop (`LoopLinear`).

Shape letters: B videos, N rows of a batch, D input features, H state size, G gates × H.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

Tape = list[tuple[Tensor, Tensor]]  # (gradient of the output, input) of each step
State = tuple[Tensor, ...]  # each (B, H); the first is the cell's output


class LoopLinear(nn.Module):
    """y = x W^T without bias, for use at every step of a loop.

    Autograd would form the weight's gradient at each step and add them up: T products of rank B
    and T passes over memory of the weight's size. Here the loop keeps (dy, x) of every step and
    one product of rank N gives the same sum.
    """

    def __init__(self, inputs: int, outputs: int, *, bound: float | None = None) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        bound = 1 / math.sqrt(inputs) if bound is None else bound
        nn.init.uniform_(self.weight, -bound, bound)

    def begin(self) -> Callable[[Tensor], Tensor]:
        """The product, to be used within one loop."""
        weight = self.weight
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return lambda x_BD: functional.linear(x_BD, weight)
        tape: Tape = []
        handle = _GatherGradient.apply(weight, tape)
        return lambda x_BD: _TapedLinear.apply(x_BD, handle, tape)

    @property
    def flops(self) -> int:
        """Multiply-adds per row."""
        return self.inputs * self.outputs


class _GatherGradient(torch.autograd.Function):
    """The weight itself; its backward runs after that of every step that used it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tape: Tape) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        if not ctx.tape:
            return None, None
        grad_NG = torch.cat([grad for grad, _ in ctx.tape])
        x_ND = torch.cat([x for _, x in ctx.tape])
        ctx.tape.clear()
        return grad_NG.T @ x_ND, None


class _TapedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, weight: Tensor, tape: Tape) -> Tensor:
        ctx.save_for_backward(x_BD, weight)
        ctx.tape = tape
        return x_BD @ weight.T

    @staticmethod
    def backward(ctx: Any, grad_BG: Tensor) -> tuple[Tensor, None, None]:
        x_BD, weight = ctx.saved_tensors
        ctx.tape.append((grad_BG, x_BD))
        return grad_BG @ weight, None, None


class LSTMCell(nn.Module):
    """The LSTM cell of torch.nn.LSTM (gates i, f, g, o), state (h, c)."""

    state_parts = 2

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        bound = 1 / math.sqrt(hidden)
        self.input = _bounded_linear(inputs, 4 * hidden, bound)
        self.recurrent = LoopLinear(hidden, 4 * hidden, bound=bound)

    def inputs(self, x_ND: Tensor) -> Tensor:
        """(N, 4H): the part of the gates that comes from the input."""
        return self.input(x_ND)

    def begin(self) -> Callable[[Tensor, State], State]:
        """The step, to be used within one loop: (inputs (B, 4H), state) -> state."""
        recurrent = self.recurrent.begin()

        def step(inputs_BG: Tensor, state: State) -> State:
            h_BH, c_BH = state
            gates_BG = inputs_BG + recurrent(h_BH)
            i, f, g, o = gates_BG.chunk(4, dim=1)
            c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
            return o.sigmoid() * c_BH.tanh(), c_BH

        return step

    @property
    def flops(self) -> int:
        """Multiply-adds of the matrix products per step: 4 H (D + H)."""
        return self.input.in_features * self.input.out_features + self.recurrent.flops


def _bounded_linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    linear: nn.Linear = skip_init(nn.Linear, inputs, outputs)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.uniform_(linear.bias, -bound, bound)
    return linear


def zero_state(cell: LSTMCell, videos: int, *, like: Tensor) -> State:
    """The state before the first frame."""
    return tuple(like.new_zeros(videos, cell.hidden) for _ in range(cell.state_parts))


class Projection(nn.Module):
    """L2 norm, then BatchNorm, Linear, BatchNorm, ReLU, each where switched on.

    Rows are real frames only (packed batches hold no padding), so statistics are too.
    """

    def __init__(self, inputs: int, outputs: int, *, l2_normalise: bool) -> None:
        super().__init__()
        self.l2_normalise = l2_normalise
        self.width = outputs or inputs
        self.layers: nn.Sequential | None = None
        if outputs:
            self.layers = nn.Sequential(
                nn.BatchNorm1d(inputs),
                nn.Linear(inputs, outputs),
                nn.BatchNorm1d(outputs),
                nn.ReLU(),
            )
        self.flops = inputs * outputs  # multiply-adds per row; norms fold into the product

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.l2_normalise:
            x_ND = functional.normalize(x_ND, dim=1)
        return x_ND if self.layers is None else self.layers(x_ND)
