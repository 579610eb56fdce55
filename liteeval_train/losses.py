"""Equation 7's two terms, and a third on single frames.

Shape letters: B videos, N rows of a batch packed by time, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.data import Batch
from liteeval_train.processes import sum_over_processes


def classification_loss(logits_BK: Tensor, labels_BK: Tensor) -> Tensor:
    """Cross-entropy; the labels of a video share its mass equally.

        loss = − mean_b  sum_k (labels_bk / sum_k' labels_bk')  log softmax(logits_b)_k

    Args:
        logits_BK: (B, K) float.
        labels_BK: (B, K) float, 1.0 at each class of the video.

    Returns: float scalar in nats.
    """
    return classification_loss_per_row(logits_BK, labels_BK).mean()


def classification_loss_per_row(logits_NK: Tensor, labels_NK: Tensor) -> Tensor:
    """(N,) `classification_loss` of each row."""
    target_NK = labels_NK / labels_NK.sum(dim=1, keepdim=True)
    return functional.cross_entropy(logits_NK, target_NK, reduction="none")


def frame_loss(logits_NK: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of each video's frames, averaged over videos.

    Args:
        logits_NK: (N, K) float; each frame has the labels of its video.

    Returns: float scalar in nats.
    """
    loss_N = classification_loss_per_row(logits_NK, batch.labels_BK[batch.video_N])
    return (loss_N / batch.lengths_B[batch.video_N]).sum() / len(batch.lengths_B)


class FrameSupervision(nn.Module):
    """Linear classifiers on the projected rows of single frames, for training alone.

        term = w · sum over the projections of `frame_loss`

    It teaches projections what classes look like from every frame of a video, where equation 7 has
    one label per video: the part of stage 0 (backbones finetuned as classifiers of frames) that can
    be done on stored features. Ours, not the paper's; w = 0 leaves it out.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.classifiers = nn.ModuleList(nn.Linear(w, classes) for w in widths if weight)

    def forward(self, projected: Sequence[Tensor], batch: Batch) -> Tensor:
        """Float scalar. Args: projected: (N, width) rows of each projection."""
        term = batch.lengths_B.new_zeros(())
        for classifier, x_NW in zip(self.classifiers, projected, strict=False):
            term = term + frame_loss(classifier(x_NW), batch)
        return self.weight * term


def fine_share(used_N: Tensor, video_N: Tensor, lengths_B: Tensor) -> Tensor:
    """(B,) each video's share of frames that were read finely.

    Args:
        used_N: (N,) float, 1.0 where the gate chose the fine backbone.
        video_N: (N,) int64, the video of each row.
        lengths_B: (B,) float, frames of each video.

    Returns: (B,) float in [0, 1], which carries the gradient of `used_N`.
    Raises: ValueError if shapes differ.
    """
    if used_N.shape != video_N.shape:
        raise ValueError(f"used {tuple(used_N.shape)} and video {tuple(video_N.shape)} differ")
    return used_N.new_zeros(len(lengths_B)).index_add(0, video_N, used_N) / lengths_B


def batch_share(share_B: Tensor) -> Tensor:
    """(1,) the mean share over the batch, of all processes together; carries the gradient."""
    sums = sum_over_processes(torch.stack([share_B.sum(), share_B.new_tensor(len(share_B))]))
    return sums[:1] / sums[1:]


def usage_penalty(share_B: Tensor, *, fine_share_target: float) -> Tensor:
    """Squared gap between each video's share of fine frames and the target, averaged over videos.

        penalty = mean_b ( share_b − target )²

    Args:
        share_B: (B,) float, see `fine_share`.
        fine_share_target: γ, the wanted share, in [0, 1].

    Returns: float scalar, no unit.
    Raises: ValueError if the target lies outside [0, 1].
    Source: Wu et al., LiteEval: A Coarse-to-Fine Framework for Resource Efficient Video
    Recognition, Eq. 7, second term.

    Shares 1/4 and 2/2 with target 0.5 give ((−0.25)² + 0.5²) / 2 = 0.15625.
    """
    if not 0 <= fine_share_target <= 1:
        raise ValueError(f"fine_share_target must lie in [0, 1], got {fine_share_target}")
    return (share_B - fine_share_target).square().mean()
