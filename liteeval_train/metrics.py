"""Accuracy of scores against labels. Shape letters: V videos, K classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_precision_recall_curve,
)


def in_top(scores_VK: Tensor, labels_VK: Tensor, k: int) -> Tensor:
    """(V,) bool: whether one of a video's labels is among its k best scores."""
    best_Vk = scores_VK.topk(min(k, scores_VK.shape[1]), dim=1).indices
    return labels_VK.bool().gather(1, best_Vk).any(dim=1)


def mean_average_precision(scores_VK: Tensor, labels_VK: Tensor) -> float:
    """Non-interpolated average precision per class, averaged over the classes that occur.

    Agrees with scikit-learn's `average_precision_score`.
    """
    return _mean_over_classes(binary_average_precision, scores_VK, labels_VK)


def interpolated_mean_average_precision(scores_VK: Tensor, labels_VK: Tensor) -> float:
    """The same with ActivityNet's interpolation: at each recall the best precision from there on.

    Right, wrong, right in falling order: precisions 1 and 2/3 at recalls 1/2 and 1, both ways
    5/6. Wrong, right, right: 1/2 and 2/3 plain, 2/3 and 2/3 interpolated.
    """
    return _mean_over_classes(_interpolated_average_precision, scores_VK, labels_VK)


def _interpolated_average_precision(scores_V: Tensor, labels_V: Tensor) -> Tensor:
    precision, recall, _ = binary_precision_recall_curve(scores_V, labels_V)
    # Thresholds rise, so recall falls: the best precision from a recall on stands before it.
    best = precision.cummax(dim=0).values
    return ((recall[:-1] - recall[1:]) * best[:-1]).sum()


def _mean_over_classes(
    precision_of: Callable[[Tensor, Tensor], Tensor], scores_VK: Tensor, labels_VK: Tensor
) -> float:
    if not scores_VK.isfinite().all():
        raise ValueError("scores that are not finite have no order, and so no average precision")
    scores_VK, labels_VK = scores_VK.double(), labels_VK.long()
    classes = labels_VK.any(dim=0).nonzero()[:, 0].tolist()
    return float(
        torch.stack([precision_of(scores_VK[:, k], labels_VK[:, k]) for k in classes]).mean()
    )


AVERAGE_PRECISIONS = {
    "plain": mean_average_precision,
    "interpolated": interpolated_mean_average_precision,
}
