"""LSTM: a recurrent network over the fine rows of all frames; its last state decides.

LSTM-CF reads the coarse and the fine row of every frame, one beside the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from liteeval_train.cells import Projection, State
from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import FrameSupervision, classification_loss
from liteeval_train.method import HeadFlops, Method, Prediction, TrainingStep


class FrameLSTM(Method):
    """torch.nn.LSTM of the size of LiteEval's fine network."""

    reads_coarse = False
    advances = True

    def __init__(
        self,
        config: TrainConfig,
        *,
        coarse_dim: int,
        fine_dim: int,
        classes: int,
        coarse_width: int = 0,
    ) -> None:
        super().__init__(config)
        self.project_fine = Projection(
            fine_dim, config.fine_projection, l2_normalise=config.l2_normalise
        )
        self.lstm = nn.LSTM(coarse_width + self.project_fine.width, config.fine_hidden)
        self.classifier = nn.Linear(config.fine_hidden, classes)
        widths = [w for w in (coarse_width, self.project_fine.width) if w]
        self.frames = FrameSupervision(widths, classes, weight=config.frame_loss_weight)

    def frame_features(self, batch: Batch) -> list[Tensor]:
        """(N, width) of each projection: what the LSTM reads at each frame, side by side."""
        return [self.project_fine(batch.fine_ND)]

    def _run(
        self, projected: list[Tensor], batch: Batch, carried: State | None = None
    ) -> tuple[Tensor, State]:
        """(N, H) outputs and the state after each video, (1, B, H) both h and c."""
        sizes = torch.tensor(batch.packing.step_sizes)
        packed = PackedSequence(torch.cat(projected, dim=1), sizes)
        outputs, state = self.lstm(packed, carried)
        return outputs.data, state

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        projected = self.frame_features(batch)
        last_BH = self._run(projected, batch)[1][0][0]
        classification = classification_loss(self.classifier(last_BH), batch.labels_BK)
        frames = self.frames(projected, batch)
        parts = {"classification": classification.detach(), "frame_loss": frames.detach()}
        return TrainingStep(classification + frames, parts)

    def predict(self, batch: Batch, *, every_step: bool = False) -> Prediction:
        return self._evaluate(batch, None, every_step)[0]

    def advance(self, batch: Batch, carried: State | None = None) -> tuple[Prediction, State]:
        return self._evaluate(batch, carried, every_step=True)

    @torch.no_grad()
    def _evaluate(
        self, batch: Batch, carried: State | None, every_step: bool
    ) -> tuple[Prediction, State]:
        outputs_NH, state = self._run(self.frame_features(batch), batch, carried)
        scores_BK = self.classifier(state[0][0]).softmax(dim=1)
        steps_NK = self.classifier(outputs_NH).softmax(dim=1) if every_step else None
        all_N = torch.ones_like(batch.video_N, dtype=torch.bool)
        return Prediction(scores_BK, all_N, all_N, steps_NK), state

    def head_flops(self) -> HeadFlops:
        hidden = self.lstm.hidden_size
        cell = 4 * hidden * (self.lstm.input_size + hidden)
        classifier = hidden * self.classifier.out_features
        return HeadFlops(0, self.project_fine.flops + cell, classifier)


class FrameLSTMCF(FrameLSTM):
    """LSTM over coarse and fine rows."""

    reads_coarse = True

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        project_coarse = Projection(
            coarse_dim, config.coarse_projection, l2_normalise=config.l2_normalise
        )
        super().__init__(
            config,
            coarse_dim=coarse_dim,
            fine_dim=fine_dim,
            classes=classes,
            coarse_width=project_coarse.width,
        )
        self.project_coarse = project_coarse

    def frame_features(self, batch: Batch) -> list[Tensor]:
        return [self.project_coarse(batch.coarse_ND), *super().frame_features(batch)]

    def head_flops(self) -> HeadFlops:
        fine = super().head_flops()
        return HeadFlops(self.project_coarse.flops, fine.per_fine_frame, fine.per_video)
