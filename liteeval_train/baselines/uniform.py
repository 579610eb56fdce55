"""UNIFORM: a classifier on evenly spaced fine frames; the mean of their softmax scores decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liteeval_train.cells import Projection
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import classification_loss
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep


class Uniform(Method):
    """Trained frame by frame, each frame with the labels of its video."""

    reads_coarse = False

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config)
        self.max_frames = min(config.frames, config.max_frames)
        self.project_fine = Projection(
            fine_dim, config.fine_projection, l2_normalise=config.l2_normalise
        )
        self.classifier = nn.Linear(self.project_fine.width, classes)

    def _frame_logits(self, batch: Batch) -> Tensor:
        return self.classifier(self.project_fine(batch.fine_ND))

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        loss = classification_loss(self._frame_logits(batch), batch.labels_BK[batch.video_N])
        return TrainingStep(loss, {"classification": loss.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        scores_NK = self._frame_logits(batch).softmax(dim=1)
        sums_BK = scores_NK.new_zeros(batch.labels_BK.shape).index_add(0, batch.video_N, scores_NK)
        used_N = torch.ones_like(batch.video_N, dtype=torch.bool)
        return Prediction(sums_BK / batch.lengths_B[:, None], used_N)

    def head_flops(self) -> HeadFlops:
        classifier = self.classifier.in_features * self.classifier.out_features
        return HeadFlops(0, self.project_fine.flops + classifier, 0)
