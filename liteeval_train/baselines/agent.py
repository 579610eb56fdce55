"""Agents that jump through a video, reading one frame finely at a time, until they stop.

At each step an agent reads the fine row and the position of a frame, updates its LSTM, gives class
scores, and decides whether to stop and where to read next. Decisions are sampled while training
and learned by REINFORCE with a learned baseline; cross-entropy at the step where the agent stopped
trains network and classifier.

    reward at each step   − step_cost, and + 1 at the last one if the prediction is right
    return G[s]           discounted sum of the rewards from step s on
    loss                  CE − w_p mean_b sum_s log π[s] (G[s] − v[s])
                          + mean_b mean_s (v[s] − G[s])² − w_e entropy

Shape letters: B videos, S steps of the agent, N rows of a batch, K classes, H state size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.cells import LSTMCell, Projection
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import classification_loss_per_row
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep
from liteeval_train.metrics import in_top


class Move(NamedTuple):
    """Where to read next."""

    position_B: Tensor  # row, as a float; outside the video: the agent stops
    log_policy_B: Tensor
    entropy_B: Tensor


@dataclass
class Episode:
    """What the steps gather, each entry (B,) or (B, K) for all videos."""

    logits: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    log_policies: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)
    running: list[Tensor] = field(default_factory=list)  # bool: the agent took this step
    rows: list[Tensor] = field(default_factory=list)  # packed row read


class Agent(Method):
    """What agents share; a subclass says where they can go."""

    reads_coarse = False

    def __init__(
        self, config: TrainConfig, *, fine_dim: int, classes: int, steps: int, choices: int
    ) -> None:
        super().__init__(config)
        self.steps = steps
        self.project_fine = Projection(
            fine_dim, config.fine_projection, l2_normalise=config.l2_normalise
        )
        self.cell = LSTMCell(self.project_fine.width + 1, config.fine_hidden)
        self.classifier = nn.Linear(config.fine_hidden, classes)
        self.value = nn.Linear(config.fine_hidden, 1)
        self.stop = nn.Linear(config.fine_hidden, 1)
        self.move = nn.Linear(config.fine_hidden, choices)
        nn.init.constant_(self.stop.bias, -2.0)  # at first agents read on

    def next_position(
        self, state_BH: Tensor, row_B: Tensor, batch: Batch, uniform_B: Tensor | None
    ) -> Move:
        """Sampled with the given numbers in (0, 1), or the best choice without them."""
        raise NotImplementedError

    def play(self, batch: Batch, projected_NF: Tensor | None) -> Episode:
        """Let the agent act; with `projected_NF` decisions are sampled, without it they are best
        choices and fine rows are projected as they are read."""
        uniform_BS2 = batch.uniform_BS2 if projected_NF is not None else None
        offsets_T = torch.tensor(batch.packing.step_offsets, device=batch.video_N.device)
        videos = len(batch.lengths_B)
        numbers_B = torch.arange(videos, device=batch.video_N.device)
        state = self.cell.zero_state(videos, like=batch.fine_ND)
        step, episode = self.cell.begin(), Episode()
        row_B = torch.zeros_like(numbers_B)
        running_B = torch.ones_like(numbers_B, dtype=torch.bool)
        for number in range(self.steps):
            packed_B = offsets_T[row_B] + numbers_B
            state = self._observe(batch, projected_NF, packed_B, row_B, step, state)
            uniform_B2 = None if uniform_BS2 is None else uniform_BS2[:, number]
            stop_B, log_stop_B, stop_entropy_B = self._decide_stop(state[0], uniform_B2)
            if number == self.steps - 1:
                stop_B = torch.ones_like(stop_B)
            uniform_B = None if uniform_B2 is None else uniform_B2[:, 1]
            move = self.next_position(state[0], row_B, batch, uniform_B)
            stop_free = 0.0 if number == self.steps - 1 else 1.0
            moved_B = (~stop_B).float()
            episode.logits.append(self.classifier(state[0]))
            episode.values.append(self.value(state[0].detach())[:, 0])
            episode.log_policies.append(stop_free * log_stop_B + moved_B * move.log_policy_B)
            episode.entropies.append(stop_free * stop_entropy_B + moved_B * move.entropy_B)
            episode.running.append(running_B)
            episode.rows.append(packed_B)
            inside_B = (move.position_B >= 0) & (move.position_B <= batch.lengths_B - 1)
            running_B = running_B & ~stop_B & inside_B
            last_B = (batch.lengths_B - 1).long()
            row_B = torch.minimum(move.position_B.round().long().clamp_min(0), last_B)
            if projected_NF is None and not running_B.any():
                break
        return episode

    def _observe(
        self,
        batch: Batch,
        projected_NF: Tensor | None,
        packed_B: Tensor,
        row_B: Tensor,
        step: object,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        if projected_NF is None:
            fine_BF = self.project_fine(batch.fine_ND[packed_B])
        else:
            fine_BF = projected_NF[packed_B]
        place_B1 = (row_B / (batch.lengths_B - 1).clamp_min(1))[:, None].to(fine_BF.dtype)
        inputs_BG = self.cell.inputs(torch.cat([fine_BF, place_B1], dim=1))
        new_state: tuple[Tensor, ...] = step(inputs_BG, state)  # type: ignore[operator]
        return new_state

    def _decide_stop(
        self, state_BH: Tensor, uniform_B2: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) bool, its log-probability and the decision's entropy."""
        logit_B = self.stop(state_BH)[:, 0]
        probability_B = torch.sigmoid(logit_B)
        stop_B = (probability_B > 0.5) if uniform_B2 is None else uniform_B2[:, 0] < probability_B
        log_B = torch.where(stop_B, functional.logsigmoid(logit_B), functional.logsigmoid(-logit_B))
        entropy_B = probability_B * functional.softplus(-logit_B)
        entropy_B = entropy_B + (1 - probability_B) * functional.softplus(logit_B)
        return stop_B, log_B, entropy_B

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        if batch.uniform_BS2 is None:
            raise ValueError("training needs a batch with random numbers (data.with_uniforms)")
        episode = self.play(batch, self.project_fine(batch.fine_ND))
        running_SB = torch.stack(episode.running).float()
        reads_B = running_SB.sum(dim=0)
        final_BK = at_last_step(torch.stack(episode.logits), reads_B)
        classification = classification_loss_per_row(final_BK, batch.labels_BK).mean()
        correct_B = in_top(final_BK, batch.labels_BK, 1).float()
        returns_SB = discounted_returns(
            correct_B, running_SB, step_cost=self.config.step_cost, discount=self.config.discount
        )
        advantage_SB = (returns_SB - torch.stack(episode.values)) * running_SB
        log_policy_SB = torch.stack(episode.log_policies)
        policy = -(log_policy_SB * advantage_SB.detach()).sum(dim=0).mean()
        value = (advantage_SB.square().sum(dim=0) / reads_B).mean()
        entropy = ((torch.stack(episode.entropies) * running_SB).sum(dim=0) / reads_B).mean()
        loss = classification + self.config.policy_weight * policy + value
        return TrainingStep(
            loss - self.config.entropy_weight * entropy,
            {
                "classification": classification.detach(),
                "reward": returns_SB[0].detach().mean(),
                "reads": reads_B.mean(),
            },
        )

    @torch.no_grad()
    def predict(self, batch: Batch, *, every_step: bool = False) -> Prediction:
        if every_step:
            raise ValueError("an agent jumps: it has no prediction at every frame")
        episode = self.play(batch, None)
        running_SB = torch.stack(episode.running)
        reads_B = running_SB.sum(dim=0)
        final_BK = at_last_step(torch.stack(episode.logits), reads_B)
        used_N = torch.zeros_like(batch.video_N, dtype=torch.bool)
        used_N[torch.stack(episode.rows)[running_SB]] = True
        rows_B = torch.zeros_like(reads_B).index_add(0, batch.video_N, used_N.to(reads_B.dtype))
        again_B = reads_B - rows_B
        return Prediction(final_BK.softmax(dim=1), used_N, used_N, read_again_B=again_B)

    def head_flops(self) -> HeadFlops:
        """Stop and move run after each frame read, the classifier at the end, the value never.

        Where a frame is read twice, its backbone runs once and the rest twice.
        """
        hidden = self.config.fine_hidden
        decisions = hidden * (self.stop.out_features + self.move.out_features)
        return HeadFlops(
            per_frame=0,
            per_fine_frame=self.project_fine.flops + self.cell.flops + decisions,
            per_video=hidden * self.classifier.out_features,
        )


def at_last_step(values_SBK: Tensor, reads_B: Tensor) -> Tensor:
    """(B, K) the values of each video's last step."""
    videos = torch.arange(values_SBK.shape[1], device=values_SBK.device)
    return values_SBK[reads_B.long() - 1, videos]


def discounted_returns(
    correct_B: Tensor, running_SB: Tensor, *, step_cost: float, discount: float
) -> Tensor:
    """(S, B) discounted sum of the rewards from each step on.

    Two reads, the second right, cost 0.1, discount 0.5: 0.9 at the second, −0.1 + 0.45 before.
    """
    reads_B = running_SB.sum(dim=0)
    future_B = torch.zeros_like(correct_B)
    returns: list[Tensor] = []
    for step in reversed(range(len(running_SB))):
        final_B = (reads_B == step + 1).float()
        future_B = running_SB[step] * (discount * future_B - step_cost + final_B * correct_B)
        returns.append(future_B)
    return torch.stack(returns[::-1])
