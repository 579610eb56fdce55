"""LiteEval: a coarse and a fine recurrent network that share their state through a learned gate.

Wu, Xiong, Jiang, Davis: LiteEval: A Coarse-to-Fine Framework for Resource Efficient Video
Recognition, NeurIPS 2019. Equation numbers are the paper's.

Shape letters: B videos, T steps, N rows of a batch packed by time (see data.py), K classes,
C and F the widths of the coarse and fine projections, H state sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.cells import CELLS, LoopLinear, Projection, State, Step
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.loop import (
    OPEN,
    CapturedLoop,
    GatedLoop,
    LoopInputs,
    LoopOutputs,
    coarse_states,
    skip,
)
from liteeval_train.losses import (
    FrameSupervision,
    batch_share,
    classification_loss,
    fine_share,
    usage_penalty,
)
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep


class LiteEval(Method):
    """Equations 1–7. Training samples the gate; evaluation reads fine rows only where it opens."""

    advances = True
    captured: CapturedLoop | None = None  # on a GPU, where the trainer says so

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config)
        norm, cell = config.l2_normalise, CELLS[config.cell]
        self.project_coarse = Projection(coarse_dim, config.coarse_projection, l2_normalise=norm)
        self.project_fine = Projection(fine_dim, config.fine_projection, l2_normalise=norm)
        coarse, fine = self.project_coarse.width, self.project_fine.width
        # Only synchronisation reads the coarse state: the gate sees v_c and the fine one.
        self.coarse_cell = cell(coarse, config.coarse_hidden) if config.synchronise else None
        self.fine_cell = cell(coarse + fine, config.fine_hidden)
        self.gate_coarse = nn.Linear(coarse, 2)
        self.gate_state = LoopLinear(self.fine_cell.state_parts * config.fine_hidden, 2)
        self.classifier = nn.Linear(config.fine_hidden, classes)
        self.frames = FrameSupervision([coarse, fine], classes, weight=config.frame_loss_weight)
        with torch.no_grad():
            self.gate_coarse.bias[OPEN] += config.gate_bias

    # ------------------------------------------------------------------------------- training

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        temperature = self.temperature(progress)
        passed, projected = self._train_pass(batch, temperature, self.config.noise_scale)
        share_B = fine_share(passed.used_N, batch.video_N, batch.lengths_B)
        counted_B = share_B if self.config.usage_per == "video" else batch_share(share_B)
        classification = classification_loss(
            self.classifier(passed.outputs(batch.last_B)), batch.labels_BK
        )
        usage = usage_penalty(counted_B, fine_share_target=self.config.fine_share_target)
        frames = self.frames(projected, batch)
        return TrainingStep(
            classification + self.usage_weight(progress) * usage + frames,
            {
                "classification": classification.detach(),
                "frame_loss": frames.detach(),
                "usage_penalty": usage.detach(),
                "fine_share": share_B.detach().mean(),
                "temperature": share_B.new_tensor(temperature),
            },
        )

    def temperature(self, progress: float) -> float:
        """τ, which falls exponentially with the share of training done.

        With temperature_schedule "authors" as in the authors' code: max(0.5, e^(−1e-4 s)), s
        counting the steps of an epoch from 0 on.
        """
        if self.config.temperature_schedule == "authors":
            return max(0.5, math.exp(-1e-4 * self.step_of_epoch))
        start, end = self.config.temperature_start, self.config.temperature_end
        return start * (end / start) ** progress

    def usage_weight(self, progress: float) -> float:
        """λ, which rises linearly from 0 during the warm-up."""
        warmup = self.config.usage_warmup
        return self.config.usage_weight * (min(1.0, progress / warmup) if warmup else 1.0)

    def _train_pass(
        self, batch: Batch, temperature: float, noise_scale: float
    ) -> tuple[LoopOutputs, list[Tensor]]:
        """The loop with sampled gates, and the projected coarse and fine rows that it read."""
        if batch.uniform_N2 is None:
            raise ValueError("training needs a batch with random numbers (data.with_uniforms)")
        coarse_NC = self.project_coarse(batch.coarse_ND)
        fine_NF = self.project_fine(batch.fine_ND)
        inputs = LoopInputs(
            fine_NG=self.fine_cell.inputs(torch.cat([coarse_NC, fine_NF], dim=1)),
            gate_N2=self.gate_coarse(coarse_NC),
            noise_N2=noise_scale * gumbel_noise(batch.uniform_N2),
            coarse_NG=None if self.coarse_cell is None else self.coarse_cell.inputs(coarse_NC),
        )
        if self.captured is not None:
            outputs = self.captured.run(self._loop, batch, inputs, temperature)
        else:
            loop = self._loop(batch.packing.step_sizes)
            outputs = LoopOutputs(*loop(temperature, *inputs.given()))
        return outputs, [coarse_NC, fine_NF]

    def _loop(self, step_sizes: Sequence[int]) -> GatedLoop:
        return GatedLoop(
            coarse_cell=self.coarse_cell,
            fine_cell=self.fine_cell,
            gate_state=self.gate_state,
            sample=self.sample,
            step_sizes=step_sizes,
        )

    @staticmethod
    def sample(logits_B2: Tensor, noise_B2: Tensor, temperature: float | Tensor) -> Tensor:
        """(B, 2) one-hot sample of the gate."""
        return sample_gate(logits_B2, noise_B2, temperature)

    # ----------------------------------------------------------------------------- evaluation

    def predict(self, batch: Batch, *, every_step: bool = False) -> Prediction:
        """Class scores at the last frame. Fine rows are read only where the gate opens."""
        return self._evaluate(batch, None, every_step)[0]

    def advance(
        self, batch: Batch, carried: tuple[State, State] | None = None
    ) -> tuple[Prediction, tuple[State, State]]:
        """What is carried are the coarse and the fine state."""
        return self._evaluate(batch, carried, every_step=True)

    @torch.no_grad()
    def _evaluate(
        self, batch: Batch, carried: tuple[State, State] | None, every_step: bool
    ) -> tuple[Prediction, tuple[State, State]]:
        before, state = carried or (None, None)
        coarse_NC = self.project_coarse(batch.coarse_ND)
        coarse_NG = None if self.coarse_cell is None else self.coarse_cell.inputs(coarse_NC)
        coarse = coarse_states(self.coarse_cell, coarse_NG, batch.packing.step_sizes, before)
        gate_N2 = self.gate_coarse(coarse_NC)
        step, gate_state = self.fine_cell.begin(), self.gate_state.begin()
        state = state or self.fine_cell.zero_state(len(batch.lengths_B), like=coarse_NC)
        used: list[Tensor] = []
        outputs: list[Tensor] = []
        for coarse_state, rows in zip(coarse, batch.packing.steps(), strict=True):
            state = tuple(part[: rows.stop - rows.start] for part in state)
            logits_B2 = gate_N2[rows] + gate_state(torch.cat(state, dim=1))
            used_B = logits_B2.argmax(dim=1) == OPEN
            skipped = skip(coarse_state, state)
            wanted = used_B.nonzero()[:, 0]
            if len(wanted):
                state = self._read(batch, coarse_NC, rows.start, wanted, step, state, skipped)
            else:
                state = skipped
            used.append(used_B)
            outputs.append(state[0])
        used_N, output_NH = torch.cat(used), torch.cat(outputs)
        scores_BK = self.classifier(output_NH[batch.last_B]).softmax(dim=1)
        step_scores_NK = self.classifier(output_NH).softmax(dim=1) if every_step else None
        prediction = Prediction(scores_BK, used_N, torch.ones_like(used_N), step_scores_NK)
        return prediction, (coarse[-1], state)

    def _read(
        self,
        batch: Batch,
        coarse_NC: Tensor,
        offset: int,
        wanted: Tensor,
        step: Step,
        state: State,
        skipped: State,
    ) -> State:
        """Equations 3 and 4 on the videos whose gate is open; the others have skipped."""
        rows = wanted + offset
        fine_F = self.project_fine(batch.fine_ND[rows])
        inputs = self.fine_cell.inputs(torch.cat([coarse_NC[rows], fine_F], dim=1))
        read = step(inputs, tuple(part[wanted] for part in state))
        return tuple(s.index_copy(0, wanted, r) for s, r in zip(skipped, read, strict=True))

    # ------------------------------------------------------------------------------- the cost

    def head_flops(self) -> HeadFlops:
        """Coarse projection, coarse cell and gate on every frame; the rest on fine frames."""
        gate = 2 * self.gate_coarse.in_features + self.gate_state.flops
        coarse_cell = 0 if self.coarse_cell is None else self.coarse_cell.flops
        return HeadFlops(
            per_frame=self.project_coarse.flops + coarse_cell + gate,
            per_fine_frame=self.project_fine.flops + self.fine_cell.flops,
            per_video=self.classifier.in_features * self.classifier.out_features,
        )

    def usage_gap(self, fine_share: float) -> float:
        """λ (share − γ)²: the price of usage in equation 7."""
        return self.config.usage_weight * (fine_share - self.config.fine_share_target) ** 2


def gumbel_noise(uniform_N2: Tensor) -> Tensor:
    """Standard Gumbel numbers of numbers in (0, 1)."""
    return -torch.log(-torch.log(uniform_N2))


def sample_gate(logits_B2: Tensor, noise_B2: Tensor, temperature: float | Tensor) -> Tensor:
    """(B, 2) one-hot sample of softmax(logits), with the gradient of the soft sample (Eq. 8, 9)."""
    soft = functional.softmax((logits_B2 + noise_B2) / temperature, dim=1)
    hard = functional.one_hot(soft.argmax(dim=1), 2).to(soft.dtype)
    return hard + (soft - soft.detach())
