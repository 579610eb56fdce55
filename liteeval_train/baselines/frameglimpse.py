"""FRAMEGLIMPSE: an agent that looks at a few frames anywhere in the video.

After Yeung, Russakovsky, Mori, Fei-Fei: End-to-end Learning of Action Detection from Frame
Glimpses in Videos, CVPR 2016, as a classifier: the next position in [0, 1] is Gaussian around a
learned mean. At most `glimpses` frames, the first of them the video's first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from liteeval_train.baselines.agent import Agent, Move
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch


class FrameGlimpse(Agent):
    """An agent that may go anywhere."""

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(
            config, fine_dim=fine_dim, classes=classes, steps=config.glimpses, choices=1
        )

    def next_position(
        self, state_BH: Tensor, row_B: Tensor, batch: Batch, uniform_B: Tensor | None
    ) -> Move:
        mean_B = torch.sigmoid(self.move(state_BH)[:, 0])
        deviation = self.config.location_deviation
        place_B = mean_B.detach()
        if uniform_B is not None:
            place_B = place_B + deviation * torch.special.ndtri(uniform_B)
        standard_B = (place_B - mean_B) / deviation
        log_B = -0.5 * standard_B.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)
        position_B = place_B.clamp(0, 1) * (batch.lengths_B - 1)
        return Move(position_B, log_B, torch.zeros_like(log_B))  # a Gaussian's entropy is fixed
