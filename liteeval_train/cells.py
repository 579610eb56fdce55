"""Recurrent cells for loops that a gate decides, and the layers before them.

A cell splits its step in two: `inputs` is all that does not depend on the state, done for every
row of a batch in one matrix product outside the loop; `begin` gives the rest. Weights that stand
inside the loop gather their gradient in one matrix product after it (`LoopLinear`).

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

from liteeval_train.processes import sum_over_processes, world_size

Tape = list[tuple[Tensor, Tensor]]  # (gradient of the output, input) of each step
State = tuple[Tensor, ...]  # each (B, H); the first is the cell's output
Step = Callable[[Tensor, State], State]  # (inputs (B, G), state) -> state

DENSE_SHARE = 0.7  # of rows with gradient, from which picking them costs more than it saves


# --------------------------------------------------------------------------------- linear layers


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
        weight = _autocast(self.weight)
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return lambda x_BD: functional.linear(x_BD.to(weight.dtype), weight)
        tape: Tape = []
        handle = _GatherGradient.apply(weight, tape)
        return lambda x_BD: _TapedLinear.apply(x_BD.to(weight.dtype), handle, tape)

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
        rows = _rows_with_gradient(grad_BG)
        if rows is None:
            ctx.tape.append((grad_BG, x_BD))
            return grad_BG @ weight, None, None
        grad_RG = grad_BG[rows]
        ctx.tape.append((grad_RG, x_BD[rows]))
        return torch.zeros_like(x_BD).index_copy_(0, rows, grad_RG @ weight), None, None


class _SparseGradientLinear(torch.autograd.Function):
    """x W^T + b whose backward leaves out rows without gradient."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight)
        return functional.linear(x_ND, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, weight = ctx.saved_tensors
        rows = _rows_with_gradient(grad_NG)
        if rows is None:
            return grad_NG @ weight, grad_NG.T @ x_ND, grad_NG.sum(dim=0)
        grad_RG = grad_NG[rows]
        grad_ND = torch.zeros_like(x_ND).index_copy_(0, rows, grad_RG @ weight)
        return grad_ND, grad_RG.T @ x_ND[rows], grad_RG.sum(dim=0)


def _autocast(weight: Tensor) -> Tensor:
    """The weight in the type that autocast wants, cast once for a whole loop."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return weight
    return weight.to(torch.get_autocast_dtype(device))


def _rows_with_gradient(grad_NG: Tensor) -> Tensor | None:
    """Rows that are not all zero, or None if nearly all are.

    A closed gate gives the fine step it did not take no gradient at all, so most rows are zero.
    None on a GPU too: to ask would wait for it, and dense products are cheap there.
    """
    if grad_NG.device.type != "cpu":
        return None
    rows = grad_NG.any(dim=1).nonzero()[:, 0]
    return None if len(rows) > DENSE_SHARE * len(grad_NG) else rows


def _bounded_linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    linear: nn.Linear = skip_init(nn.Linear, inputs, outputs)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.uniform_(linear.bias, -bound, bound)
    return linear


# ----------------------------------------------------------------------------------------- cells


class Cell(nn.Module):
    """One step of a recurrent network; `input` is the product with what comes from outside."""

    state_parts: int
    hidden: int
    input: nn.Linear

    def inputs(self, x_ND: Tensor) -> Tensor:
        """(N, G): the part of a step that comes from the input."""
        weight, bias = _autocast(self.input.weight), _autocast(self.input.bias)
        return _SparseGradientLinear.apply(x_ND.to(weight.dtype), weight, bias)

    def begin(self) -> Step:
        """The rest of the step, to be used within one loop."""
        raise NotImplementedError

    def remember(self, frames: int) -> None:
        """Start units with memories of 1 to `frames` steps, see `remember_frames`."""
        raise NotImplementedError

    def zero_state(self, videos: int, *, like: Tensor) -> State:
        """The state before the first frame, in float32 or better."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        zeros = like.new_zeros(videos, self.hidden, dtype=dtype)
        return (zeros,) * self.state_parts

    @property
    def flops(self) -> int:
        """Multiply-adds of the matrix products per step."""
        return self.input.in_features * self.input.out_features


class LSTMCell(Cell):
    """The LSTM cell of torch.nn.LSTM (gates i, f, g, o), state (h, c)."""

    state_parts = 2

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        bound = 1 / math.sqrt(hidden)
        self.input = _bounded_linear(inputs, 4 * hidden, bound)
        self.recurrent = LoopLinear(hidden, 4 * hidden, bound=bound)

    def begin(self) -> Step:
        recurrent = self.recurrent.begin()

        def step(inputs_BG: Tensor, state: State) -> State:
            h_BH, c_BH = state
            i, f, g, o = (inputs_BG + recurrent(h_BH)).to(c_BH.dtype).chunk(4, dim=1)
            c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
            return o.sigmoid() * c_BH.tanh(), c_BH

        return step

    def remember(self, frames: int) -> None:
        input_H, forget_H, _, _ = self.input.bias.chunk(4)
        _set_memory(forget_H, frames, opposite_H=input_H)

    @property
    def flops(self) -> int:
        """4 H (D + H)."""
        return super().flops + self.recurrent.flops


class GRUCell(Cell):
    """The GRU cell of torch.nn.GRU (gates r, z, n), state (h,)."""

    state_parts = 1

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        bound = 1 / math.sqrt(hidden)
        self.input = _bounded_linear(inputs, 3 * hidden, bound)
        self.recurrent = LoopLinear(hidden, 3 * hidden, bound=bound)
        self.candidate_bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))

    def begin(self) -> Step:
        recurrent = self.recurrent.begin()

        def step(inputs_BG: Tensor, state: State) -> State:
            (h_BH,) = state
            r, z, n = inputs_BG.to(h_BH.dtype).chunk(3, dim=1)
            r_h, z_h, n_h = recurrent(h_BH).to(h_BH.dtype).chunk(3, dim=1)
            n = torch.tanh(n + torch.sigmoid(r + r_h) * (n_h + self.candidate_bias))
            return (torch.lerp(n, h_BH, torch.sigmoid(z + z_h)),)

        return step

    def remember(self, frames: int) -> None:
        _set_memory(self.input.bias.chunk(3)[1], frames)

    @property
    def flops(self) -> int:
        """3 H (D + H)."""
        return super().flops + self.recurrent.flops


class SRUCell(Cell):
    """The simple recurrent unit: no product inside the loop.

        f_t = σ(W_f x_t + v_f ⊙ c_{t−1} + b_f)      c_t = f_t ⊙ c_{t−1} + (1 − f_t) ⊙ W x_t
        r_t = σ(W_r x_t + v_r ⊙ c_{t−1} + b_r)      h_t = r_t ⊙ c_t + (1 − r_t) ⊙ α x'_t

    x' is x, or a projection of it where D ≠ H; α = sqrt(1 + 2 e^bias) with the initial bias of r.
    The recurrence runs on c; h is carried beside it because the gate and the classifier read it.
    Source: Lei, Zhang, Wang, Dai, Artzi: Simple Recurrent Units for Highly Parallelizable
    Recurrence, EMNLP 2018, with the initial scale of its section 3.2.
    """

    state_parts = 2

    def __init__(self, inputs: int, hidden: int, *, highway_bias: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.highway_scale = math.sqrt(1 + 2 * math.exp(highway_bias))
        self.projects = inputs != hidden
        self.input = _bounded_linear(inputs, (4 if self.projects else 3) * hidden, 0.0)
        bound = math.sqrt(3 / inputs)
        nn.init.uniform_(self.input.weight, -bound, bound)
        with torch.no_grad():
            self.input.bias[2 * hidden : 3 * hidden] = highway_bias
        self.forget_state = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.reset_state = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))

    def inputs(self, x_ND: Tensor) -> Tensor:
        """(N, 4H): W x, W_f x + b_f, W_r x + b_r and α x'."""
        inputs_NG = super().inputs(x_ND)
        if not self.projects:
            return torch.cat([inputs_NG, self.highway_scale * x_ND], dim=1)
        fixed_NG, highway_NH = inputs_NG.split([3 * self.hidden, self.hidden], dim=1)
        return torch.cat([fixed_NG, self.highway_scale * highway_NH], dim=1)

    def begin(self) -> Step:
        def step(inputs_BG: Tensor, state: State) -> State:
            _, c_BH = state
            value, forget, reset, highway = inputs_BG.to(c_BH.dtype).chunk(4, dim=1)
            f = torch.sigmoid(forget + self.forget_state * c_BH)
            r = torch.sigmoid(reset + self.reset_state * c_BH)
            c_BH = torch.lerp(value, c_BH, f)
            return torch.lerp(highway, c_BH, r), c_BH

        return step

    def remember(self, frames: int) -> None:
        _set_memory(self.input.bias[self.hidden : 2 * self.hidden], frames)


def remember_frames(network: nn.Module, frames: int) -> None:
    """Set the initial biases of a network's cells so that their units remember 1 to `frames` steps.

        b_f = log u,  u uniform in [1, frames − 1], for each unit another

    b_f is the bias of the gate that keeps the state: an LSTM's forget gate, whose input gate gets
    b_i = −b_f, a GRU's z and an SRU's f. It starts at σ(b_f) = u / (1 + u). Near 1/2, as torch
    starts it, a state is halved at each frame and the last one knows few frames; from few videos
    longer memory is not learned.
    Source: Tallec, Ollivier: Can Recurrent Neural Networks Warp Time?, ICLR 2018 (chrono
    initialisation).
    """
    for module in network.modules():
        if isinstance(module, Cell):
            module.remember(frames)
        elif isinstance(module, nn.LSTM):
            outer, inner = module.get_parameter("bias_ih_l0"), module.get_parameter("bias_hh_l0")
            input_H, forget_H, _, _ = outer.chunk(4)
            _set_memory(forget_H, frames, opposite_H=input_H)
            nn.init.zeros_(inner)  # torch adds the two


@torch.no_grad()
def _set_memory(forget_H: Tensor, frames: int, *, opposite_H: Tensor | None = None) -> None:
    forget_H.uniform_(1, max(frames - 1, 1)).log_()
    if opposite_H is not None:
        opposite_H.copy_(-forget_H)


CELLS: dict[str, type[LSTMCell] | type[GRUCell] | type[SRUCell]] = {
    "lstm": LSTMCell,
    "gru": GRUCell,
    "sru": SRUCell,
}


# ----------------------------------------------------------------------------------- projections


class PackedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of a batch; with several processes, over the rows of all of them.

    Rows are real frames only (packed batches hold no padding), so statistics are too.
    torch's SyncBatchNorm does the second on GPUs alone. A single row has no variance: the running
    statistics stand in for its own and stay as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if world_size() > 1:
            return self._over_processes(input)
        if len(input) > 1:
            return super().forward(input)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _over_processes(self, input: Tensor) -> Tensor:
        sums = torch.cat([input.sum(0), input.square().sum(0), input.new_tensor([len(input)])])
        sums = sum_over_processes(sums)
        total, squares, count = sums.split([self.num_features, self.num_features, 1])
        mean, square = total / count, squares / count
        variance = (square - mean.square()).clamp_min(0)
        self._update_running(mean.detach(), (variance * count / (count - 1)).detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (input - mean) * scale + self.bias

    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked += 1


class Projection(nn.Module):
    """L2 norm, then BatchNorm, Linear, BatchNorm, ReLU, each where switched on."""

    def __init__(self, inputs: int, outputs: int, *, l2_normalise: bool) -> None:
        super().__init__()
        self.l2_normalise = l2_normalise
        self.width = outputs or inputs
        self.layers: nn.Sequential | None = None
        if outputs:
            self.layers = nn.Sequential(
                PackedBatchNorm(inputs),
                nn.Linear(inputs, outputs),
                PackedBatchNorm(outputs),
                nn.ReLU(),
            )
        self.flops = inputs * outputs  # multiply-adds per row; norms fold into the product

    def forward(self, x_ND: Tensor) -> Tensor:
        if self.l2_normalise:
            x_ND = functional.normalize(x_ND, dim=1)
        return x_ND if self.layers is None else self.layers(x_ND)
