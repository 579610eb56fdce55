"""LiteEval: a coarse and a fine recurrent network that share their state through a learned gate.

Wu, Xiong, Jiang, Davis: LiteEval: A Coarse-to-Fine Framework for Resource Efficient Video
Recognition, NeurIPS 2019. Equation numbers are the paper's.

Shape letters: B videos, T steps, N rows of a batch packed by time (see data.py), K classes,
C and F the widths of the coarse and fine projections, H state sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.cells import LoopLinear, LSTMCell, Projection, State, zero_state
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch, Packing
from liteeval_train.losses import classification_loss, fine_share, usage_penalty
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep

OPEN = 1  # index of "read this frame finely" among the gate's two logits


class LiteEval(Method):
    """Equations 1–7. Training samples the gate; evaluation reads fine rows only where it opens."""

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config)
        norm = config.l2_normalise
        self.project_coarse = Projection(coarse_dim, config.coarse_projection, l2_normalise=norm)
        self.project_fine = Projection(fine_dim, config.fine_projection, l2_normalise=norm)
        coarse, fine = self.project_coarse.width, self.project_fine.width
        self.coarse_cell = LSTMCell(coarse, config.coarse_hidden)
        self.fine_cell = LSTMCell(coarse + fine, config.fine_hidden)
        self.gate_coarse = nn.Linear(coarse, 2)
        self.gate_state = LoopLinear(self.fine_cell.state_parts * config.fine_hidden, 2)
        self.classifier = nn.Linear(config.fine_hidden, classes)

    # ------------------------------------------------------------------------------- training

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        logits_BK, used_N = self._train_pass(batch, self.temperature(progress))
        share_B = fine_share(used_N, batch.video_N, batch.lengths_B)
        target = self.config.fine_share_target
        classification = classification_loss(logits_BK, batch.labels_BK)
        usage = usage_penalty(share_B, fine_share_target=target)
        return TrainingStep(
            classification + self.config.usage_weight * usage,
            {
                "classification": classification.detach(),
                "usage_penalty": usage.detach(),
                "fine_share": share_B.detach().mean(),
            },
        )

    def temperature(self, progress: float) -> float:
        """τ, which falls exponentially with the share of training done."""
        start, end = self.config.temperature_start, self.config.temperature_end
        return start * (end / start) ** progress

    def _train_pass(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """(B, K) logits at the last frame and (N,) gate samples, 0 or 1, with their gradient.

        Both branches are computed at every step: the straight-through gradient of a gate needs
        the state that it did not take.
        """
        if batch.uniform_N2 is None:
            raise ValueError("training needs a batch with random numbers (data.with_uniforms)")
        coarse_NC = self.project_coarse(batch.coarse_ND)
        fine_NF = self.project_fine(batch.fine_ND)
        coarse_states = self._coarse_states(coarse_NC, batch.packing)
        inputs_NG = self.fine_cell.inputs(torch.cat([coarse_NC, fine_NF], dim=1))
        gate_N2 = self.gate_coarse(coarse_NC)
        noise_N2 = gumbel_noise(batch.uniform_N2)
        step, gate_state = self.fine_cell.begin(), self.gate_state.begin()
        state = zero_state(self.fine_cell, len(batch.lengths_B), like=inputs_NG)
        used: list[Tensor] = []
        finished: list[Tensor] = []
        for coarse_state, rows in zip(coarse_states, batch.packing.steps(), strict=True):
            running = rows.stop - rows.start
            finished.append(state[0][running:])
            state = tuple(part[:running] for part in state)
            logits_B2 = gate_N2[rows] + gate_state(torch.cat(state, dim=1))
            used_B1 = sample_gate(logits_B2, noise_N2[rows], temperature)[:, OPEN:]
            read = step(inputs_NG[rows], state)
            skipped = synchronise(coarse_state, state)
            state = tuple(torch.lerp(s, r, used_B1) for s, r in zip(skipped, read, strict=True))
            used.append(used_B1[:, 0])
        finished.append(state[0])
        last_BH = torch.cat(finished[::-1])  # the longest videos stand first and end last
        return self.classifier(last_BH), torch.cat(used)

    def _coarse_states(self, coarse_NC: Tensor, packing: Packing) -> list[State]:
        """Equation 1 at every step: it depends on no gate."""
        inputs_NG, step = self.coarse_cell.inputs(coarse_NC), self.coarse_cell.begin()
        state = zero_state(self.coarse_cell, packing.step_sizes[0], like=coarse_NC)
        states = []
        for rows in packing.steps():
            state = step(inputs_NG[rows], tuple(p[: rows.stop - rows.start] for p in state))
            states.append(state)
        return states

    # ----------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Class scores at the last frame. Fine rows are read only where the gate opens."""
        coarse_NC = self.project_coarse(batch.coarse_ND)
        coarse_states = self._coarse_states(coarse_NC, batch.packing)
        gate_N2 = self.gate_coarse(coarse_NC)
        step, gate_state = self.fine_cell.begin(), self.gate_state.begin()
        state = zero_state(self.fine_cell, len(batch.lengths_B), like=coarse_NC)
        used: list[Tensor] = []
        finished: list[Tensor] = []
        for coarse_state, rows in zip(coarse_states, batch.packing.steps(), strict=True):
            running = rows.stop - rows.start
            finished.append(state[0][running:])
            state = tuple(part[:running] for part in state)
            logits_B2 = gate_N2[rows] + gate_state(torch.cat(state, dim=1))
            used_B = logits_B2.argmax(dim=1) == OPEN
            state = self._read_where(used_B, batch, coarse_NC, rows, step, state, coarse_state)
            used.append(used_B)
        finished.append(state[0])
        logits_BK = self.classifier(torch.cat(finished[::-1]))
        return Prediction(functional.softmax(logits_BK, dim=1), torch.cat(used))

    def _read_where(
        self,
        used_B: Tensor,
        batch: Batch,
        coarse_NC: Tensor,
        rows: slice,
        step: Callable[[Tensor, State], State],
        state: State,
        coarse_state: State,
    ) -> State:
        """Equations 3–5 with the fine network run on the rows of open gates alone."""
        skipped = synchronise(coarse_state, state)
        opened = used_B.nonzero()[:, 0]
        if len(opened) == 0:
            return skipped
        wanted = opened + rows.start
        fine_F = self.project_fine(batch.fine_ND[wanted])
        inputs = self.fine_cell.inputs(torch.cat([coarse_NC[wanted], fine_F], dim=1))
        read = step(inputs, tuple(part[opened] for part in state))
        return tuple(s.index_copy(0, opened, r) for s, r in zip(skipped, read, strict=True))

    # ------------------------------------------------------------------------------- the cost

    def head_flops(self) -> HeadFlops:
        """Multiply-adds; the gate and the coarse part of equation 3 run on what they see.

        The fine cell's product with the coarse projection counts for fine frames only, as it runs.
        """
        gate = 2 * self.gate_coarse.in_features + self.gate_state.flops
        return HeadFlops(
            per_frame=self.project_coarse.flops + self.coarse_cell.flops + gate,
            per_fine_frame=self.project_fine.flops + self.fine_cell.flops,
            per_video=self.classifier.in_features * self.classifier.out_features,
        )

    def usage_gap(self, fine_share: float) -> float:
        """λ (share − γ)²: the price of usage in equation 7."""
        return self.config.usage_weight * (fine_share - self.config.fine_share_target) ** 2


def synchronise(coarse: State, fine: State) -> State:
    """[h_c[t], h_f[t−1][D_c:]] for each part of the state: equation 5."""
    return tuple(
        torch.cat([c, f[:, c.shape[1] :]], dim=1) for c, f in zip(coarse, fine, strict=True)
    )


def gumbel_noise(uniform_N2: Tensor) -> Tensor:
    """Standard Gumbel numbers of numbers in (0, 1)."""
    return -torch.log(-torch.log(uniform_N2))


def sample_gate(logits_B2: Tensor, noise_B2: Tensor, temperature: float) -> Tensor:
    """(B, 2) one-hot sample of softmax(logits), with the gradient of the soft sample (Eq. 8, 9)."""
    soft = functional.softmax((logits_B2 + noise_B2) / temperature, dim=1)
    hard = functional.one_hot(soft.argmax(dim=1), 2).to(soft.dtype)
    return hard + (soft - soft.detach())
