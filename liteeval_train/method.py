"""What every method is to the trainer and the evaluator.

Shape letters: B videos, N rows of a batch packed by time (see data.py), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch


@dataclass(frozen=True)
class HeadFlops:
    """Multiply-adds of what runs on top of the backbones, by how often it runs."""

    per_frame: int  # for each frame seen
    per_fine_frame: int  # more, for each frame read finely
    per_video: int


class TrainingStep(NamedTuple):
    """What a step of training gives: `loss` to minimise, `parts` to log, all scalars.

    The loss is a mean over the videos of the batch, so that processes can average theirs.
    """

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch, and what it read to say so."""

    scores_BK: Tensor  # softmax probabilities
    used_N: Tensor  # bool, rows read finely
    seen_N: Tensor  # bool, rows seen at all
    step_scores_NK: Tensor | None = None  # scores had the video ended at this row
    read_again_B: Tensor | None = None  # int, steps of the head on rows it had read before

    def __post_init__(self) -> None:
        if self.scores_BK.ndim != 2 or self.used_N.ndim != 1:
            raise ValueError(
                f"scores must be (B, K) and used (N,), got {tuple(self.scores_BK.shape)} "
                f"and {tuple(self.used_N.shape)}"
            )


class Method(nn.Module):
    """A way to classify a video from its coarse and fine rows."""

    reads_coarse = True  # whether the coarse backbone runs on the frames seen
    advances = False  # whether it can go on from the rows it has seen
    step_of_epoch = 0  # while training; the trainer counts

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.max_frames = config.max_frames  # shown of a video, evenly spaced

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        """The loss of a batch; `progress` in [0, 1] is the share of training done."""
        raise NotImplementedError

    def predict(self, batch: Batch, *, every_step: bool = False) -> Prediction:
        """Class scores of a batch, in evaluation mode; after every row too where asked for."""
        raise NotImplementedError

    def advance(self, batch: Batch, carried: Any = None) -> tuple[Prediction, Any]:
        """Class scores after every row of a batch that goes on where another one ended.

        The batch holds the next rows of one video. Rows in one batch or in several give the same.

        Args:
            carried: what `advance` gave for the rows before; None before the first.

        Returns: the prediction, with `step_scores_NK`, and what is to be carried on.
        """
        raise NotImplementedError

    def head_flops(self) -> HeadFlops:
        """What the layers on top of the backbones cost."""
        raise NotImplementedError

    def usage_gap(self, fine_share: float) -> float:
        """What using this share of fine frames costs when the best epoch is chosen."""
        return 0.0
