"""UNIFORM: a classifier on evenly spaced frames; the mean of their softmax scores decides.

With `head` the classifier is the finetuned backbone's own (see head.py) and nothing is trained.
UNIFORM-CF adds the coarse rows of the same frames: a frame's score is the mean of both.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from liteeval_train.cells import Projection
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import frame_loss
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep


class FrameClassifier(nn.Module):
    """Projection, then one linear layer."""

    def __init__(self, inputs: int, projection: int, classes: int, *, l2_normalise: bool) -> None:
        super().__init__()
        self.project = Projection(inputs, projection, l2_normalise=l2_normalise)
        self.classifier = nn.Linear(self.project.width, classes)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, K) logits."""
        return self.classifier(self.project(x_ND))

    @property
    def flops(self) -> int:
        return self.project.flops + self.classifier.in_features * self.classifier.out_features


class Uniform(Method):
    """Trained frame by frame, each frame with the labels of its video."""

    reads_coarse = False
    advances = True

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config)
        self.max_frames = min(config.frames, config.max_frames)
        own = not config.head  # else the backbone's classifier, which takes features as they are
        self.fine = FrameClassifier(
            fine_dim,
            config.fine_projection if own else 0,
            classes,
            l2_normalise=config.l2_normalise and own,
        )

    def frame_logits(self, batch: Batch) -> list[Tensor]:
        """(N, K) logits of each classifier."""
        return [self.fine(batch.fine_ND)]

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        loss = torch.stack([frame_loss(x, batch) for x in self.frame_logits(batch)]).sum()
        return TrainingStep(loss, {"classification": loss.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch, *, every_step: bool = False) -> Prediction:
        """`step_scores_NK` are those of each frame by itself."""
        frame_scores = [logits.softmax(dim=1) for logits in self.frame_logits(batch)]
        scores_NK = torch.stack(frame_scores).mean(dim=0)
        sums_BK = scores_NK.new_zeros(batch.labels_BK.shape).index_add(0, batch.video_N, scores_NK)
        all_N = torch.ones_like(batch.video_N, dtype=torch.bool)
        return Prediction(sums_BK / batch.lengths_B[:, None], all_N, all_N, scores_NK)

    def advance(
        self, batch: Batch, carried: tuple[Tensor, int] | None = None
    ) -> tuple[Prediction, tuple[Tensor, int]]:
        """The mean over the frames so far. What is carried are the scores' sum and the frames."""
        prediction = self.predict(batch)
        assert prediction.step_scores_NK is not None
        sum_K, frames = carried or (torch.zeros_like(prediction.scores_BK[0]), 0)
        sums_NK = sum_K + prediction.step_scores_NK.cumsum(dim=0)
        frames_N = frames + torch.arange(1, len(sums_NK) + 1, device=sums_NK.device)
        means_NK = sums_NK / frames_N[:, None]
        so_far = replace(prediction, scores_BK=means_NK[-1:], step_scores_NK=means_NK)
        return so_far, (sums_NK[-1], frames + len(sums_NK))

    def head_flops(self) -> HeadFlops:
        return HeadFlops(0, self.fine.flops, 0)


class UniformCF(Uniform):
    """UNIFORM on coarse and fine rows."""

    reads_coarse = True

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config, coarse_dim=coarse_dim, fine_dim=fine_dim, classes=classes)
        self.coarse = FrameClassifier(
            coarse_dim, config.coarse_projection, classes, l2_normalise=config.l2_normalise
        )

    def frame_logits(self, batch: Batch) -> list[Tensor]:
        return [self.coarse(batch.coarse_ND), *super().frame_logits(batch)]

    def head_flops(self) -> HeadFlops:
        return HeadFlops(self.coarse.flops, self.fine.flops, 0)
