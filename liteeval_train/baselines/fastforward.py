"""FASTFORWARD: an agent that steps through the video, mostly forward.

After Fan, Xu, Zhu, Yan, Ge, Yang: Watching a Small Portion could be as Good as Watching All:
Towards Efficient Video Classification, IJCAI 2018. Moves are −2, −1, +1, +2, +4, +8 and +16
seconds; a move out of the video ends it. Public sources do not give the reward in full: ours is
in agent.py, terminal correctness with discount and a cost per frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from liteeval_train.baselines.agent import Agent, Move
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch

MOVES_SECONDS = (-2.0, -1.0, 1.0, 2.0, 4.0, 8.0, 16.0)


class FastForward(Agent):
    """An agent with a choice of seven moves."""

    moves_seconds: Tensor

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        moves = len(MOVES_SECONDS)
        super().__init__(
            config, fine_dim=fine_dim, classes=classes, steps=config.moves, choices=moves
        )
        self.register_buffer("moves_seconds", torch.tensor(MOVES_SECONDS), persistent=False)

    def next_position(
        self, state_BH: Tensor, row_B: Tensor, batch: Batch, uniform_B: Tensor | None
    ) -> Move:
        log_policy_BM = functional.log_softmax(self.move(state_BH), dim=1)
        policy_BM = log_policy_BM.exp()
        if uniform_B is None:
            choice_B = policy_BM.argmax(dim=1)
        else:  # the first move at which the running sum passes the number
            choice_B = (policy_BM.detach().cumsum(dim=1) < uniform_B[:, None]).sum(dim=1)
            choice_B = choice_B.clamp_max(len(MOVES_SECONDS) - 1)
        seconds_B = self.moves_seconds[choice_B]
        rows_B = (seconds_B / seconds_per_row(batch)).round()
        rows_B = torch.where(rows_B == 0, seconds_B.sign(), rows_B)
        log_B = log_policy_BM.gather(1, choice_B[:, None])[:, 0]
        entropy_B = -(policy_BM * log_policy_BM).sum(dim=1)
        return Move(row_B + rows_B, log_B, entropy_B)


def seconds_per_row(batch: Batch) -> Tensor:
    """(B,) seconds between the frames shown, 1 for a video of a single one."""
    spans = [
        (s.pts_seconds[-1] - s.pts_seconds[0]) / max(1, len(s.rows) - 1) for s in batch.samples
    ]
    spans_B = batch.lengths_B.new_tensor(spans)
    return torch.where(spans_B > 0, spans_B, torch.ones_like(spans_B))
