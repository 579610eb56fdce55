"""LiteEval's loop over time in training, and its capture as CUDA graphs.

A step of the loop is some thirty small operations, which a GPU does faster than Python can ask for
them. A CUDA graph asks for all of them at once, but for one shape only: captured, the loop runs
over batches padded to the largest one. What stands behind a video's end is computed and not used.

Shape letters: B videos, N rows packed by time (see data.py), H state sizes, G inputs of a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from liteeval_train.cells import Cell, LoopLinear, State
from liteeval_train.data import Batch

OPEN = 1  # index of "read this frame finely" among the gate's two logits

Sampler = Callable[[Tensor, Tensor, float | Tensor], Tensor]  # logits, noise, τ -> (B, 2) one-hot
Loop = Callable[..., tuple[Tensor, Tensor, Tensor]]  # as GatedLoop.forward


@dataclass(frozen=True)
class LoopInputs:
    """What does not depend on the state, one row for each frame."""

    fine_NG: Tensor  # the fine cell's inputs
    gate_N2: Tensor  # v_c's part of the gate's logits
    noise_N2: Tensor  # Gumbel
    coarse_NG: Tensor | None  # the coarse cell's inputs; None without synchronisation

    def given(self) -> tuple[Tensor, ...]:
        """In the order of `GatedLoop.forward`."""
        given = (self.fine_NG, self.gate_N2, self.noise_N2)
        return given if self.coarse_NG is None else (*given, self.coarse_NG)


@dataclass(frozen=True)
class LoopOutputs:
    """What the loop gives for each frame."""

    used_N: Tensor  # sampled gates, with their gradient
    logits_N2: Tensor  # of the gates
    output_MH: Tensor  # the fine network's output after each frame, padded ones too
    place_N: Tensor | None = None  # where the rows of the batch stand among the M; None: M = N

    def outputs(self, rows: Tensor) -> Tensor:
        """(R, H) after these rows of the batch."""
        return self.output_MH.index_select(0, rows if self.place_N is None else self.place_N[rows])


class GatedLoop(nn.Module):
    """Equations 1 to 5 at every step, with sampled gates.

    Both branches are computed at every step: the straight-through gradient of a gate needs the
    state that it did not take.
    """

    def __init__(
        self,
        *,
        coarse_cell: Cell | None,
        fine_cell: Cell,
        gate_state: LoopLinear,
        sample: Sampler,
        step_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.coarse_cell, self.fine_cell, self.gate_state = coarse_cell, fine_cell, gate_state
        self.sample, self.step_sizes = sample, step_sizes

    def forward(
        self,
        temperature: float | Tensor,
        fine_NG: Tensor,
        gate_N2: Tensor,
        noise_N2: Tensor,
        coarse_NG: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled gates (N,), their logits (N, 2) and the output after each row (N, H)."""
        states = coarse_states(self.coarse_cell, coarse_NG, self.step_sizes)
        step, gate_state = self.fine_cell.begin(), self.gate_state.begin()
        state = self.fine_cell.zero_state(self.step_sizes[0], like=fine_NG)
        used, logits, outputs = [], [], []
        inputs = zip(
            states,
            fine_NG.split(list(self.step_sizes)),
            gate_N2.split(list(self.step_sizes)),
            noise_N2.split(list(self.step_sizes)),
            strict=True,
        )
        for coarse, fine_BG, gate_B2, noise_B2 in inputs:
            state = tuple(part[: len(fine_BG)] for part in state)
            logits_B2 = gate_B2 + gate_state(torch.cat(state, dim=1))
            used_B1 = self.sample(logits_B2, noise_B2, temperature)[:, OPEN:]
            read, skipped = step(fine_BG, state), skip(coarse, state)
            state = tuple(torch.lerp(s, r, used_B1) for s, r in zip(skipped, read, strict=True))
            used.append(used_B1[:, 0])
            logits.append(logits_B2)
            outputs.append(state[0])
        return torch.cat(used), torch.cat(logits), torch.cat(outputs)


def coarse_states(
    cell: Cell | None,
    inputs_NG: Tensor | None,
    step_sizes: Sequence[int],
    before: State | None = None,
) -> list[State]:
    """Equation 1 at every step: it depends on no gate. Empty states without synchronisation."""
    if cell is None or inputs_NG is None:
        return [()] * len(step_sizes)
    step = cell.begin()
    state = before or cell.zero_state(step_sizes[0], like=inputs_NG)
    states = []
    for inputs_BG in inputs_NG.split(list(step_sizes)):
        state = step(inputs_BG, tuple(part[: len(inputs_BG)] for part in state))
        states.append(state)
    return states


def skip(coarse: State, fine: State) -> State:
    """Equation 5 for each part of the state; without synchronisation the state stays."""
    if not coarse:
        return fine
    return tuple(
        torch.cat([c, f[:, c.shape[1] :]], dim=1) for c, f in zip(coarse, fine, strict=True)
    )


# -------------------------------------------------------------------------------------- capture


class CapturedLoop:
    """Runs the loop of any batch of up to `videos` of up to `steps` frames as one CUDA graph."""

    def __init__(
        self, capture: Callable[[GatedLoop, tuple[Tensor, ...]], Loop], *, steps: int, videos: int
    ) -> None:
        """`capture` is `capture_on_gpu`, or anything that computes the same."""
        self.capture, self.steps, self.videos = capture, steps, videos
        self.loop: Loop | None = None  # until the first batch

    def run(
        self,
        make_loop: Callable[[Sequence[int]], GatedLoop],
        batch: Batch,
        inputs: LoopInputs,
        temperature: float,
    ) -> LoopOutputs:
        """`make_loop` gives the loop over steps of these sizes."""
        place_N = batch.step_N * self.videos + batch.video_N
        padded = (
            rows.new_zeros(self.steps * self.videos, rows.shape[1]).index_copy(0, place_N, rows)
            for rows in inputs.given()
        )
        arguments = (inputs.noise_N2.new_full((), temperature), *padded)
        if self.loop is None:
            self.loop = self.capture(make_loop([self.videos] * self.steps), arguments)
        used_M, logits_M2, output_MH = self.loop(*arguments)
        used_N, logits_N2 = (rows.index_select(0, place_N) for rows in (used_M, logits_M2))
        return LoopOutputs(used_N, logits_N2, output_MH, place_N)


def capture_on_gpu(loop: GatedLoop, arguments: tuple[Tensor, ...]) -> Loop:
    """The loop, forward and backward, as CUDA graphs for arguments of these shapes.

    Each forward pass wants its backward pass before the next one, and gradients set to None
    between: they are memory of the graph. So gradients cannot be accumulated over batches.
    """
    samples = tuple(a.detach().clone().requires_grad_(a.requires_grad) for a in arguments)
    autocast = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,  # a cached cast would not be captured
    )
    with torch.cuda.device(arguments[0].device), autocast:
        captured = torch.cuda.make_graphed_callables(loop, samples, allow_unused_input=True)
    return cast(Loop, captured)
