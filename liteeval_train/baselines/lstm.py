"""LSTM: a recurrent network over the fine rows of all frames; its last state decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from liteeval_train.cells import Projection
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import classification_loss
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep


class FrameLSTM(Method):
    """torch.nn.LSTM of the size of LiteEval's fine network."""

    reads_coarse = False

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config)
        self.project_fine = Projection(
            fine_dim, config.fine_projection, l2_normalise=config.l2_normalise
        )
        self.lstm = nn.LSTM(self.project_fine.width, config.fine_hidden)
        self.classifier = nn.Linear(config.fine_hidden, classes)

    def _logits(self, batch: Batch) -> Tensor:
        sizes = torch.tensor(batch.packing.step_sizes)
        packed = PackedSequence(self.project_fine(batch.fine_ND), sizes)
        _, (last_1BH, _) = self.lstm(packed)
        return self.classifier(last_1BH[0])

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        loss = classification_loss(self._logits(batch), batch.labels_BK)
        return TrainingStep(loss, {"classification": loss.detach()})

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        scores_BK = self._logits(batch).softmax(dim=1)
        return Prediction(scores_BK, torch.ones_like(batch.video_N, dtype=torch.bool))

    def head_flops(self) -> HeadFlops:
        hidden = self.lstm.hidden_size
        cell = 4 * hidden * (self.lstm.input_size + hidden)
        classifier = hidden * self.classifier.out_features
        return HeadFlops(0, self.project_fine.flops + cell, classifier)
