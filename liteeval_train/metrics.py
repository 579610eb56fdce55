"""Accuracy of scores against labels. Shape letters: V videos, K classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision


def in_top(scores_VK: Tensor, labels_VK: Tensor, k: int) -> Tensor:
    """(V,) bool: whether one of a video's labels is among its k best scores."""
    best_Vk = scores_VK.topk(min(k, scores_VK.shape[1]), dim=1).indices
    return labels_VK.bool().gather(1, best_Vk).any(dim=1)


def mean_average_precision(scores_VK: Tensor, labels_VK: Tensor) -> float:
    """Non-interpolated average precision per class, averaged over the classes that occur.

    Agrees with scikit-learn's `average_precision_score`.
    """
    occurs_K = labels_VK.bool().any(dim=0)
    scores, labels = scores_VK[:, occurs_K].double(), labels_VK[:, occurs_K].long()
    # torchmetrics wants at least two labels; doubling one leaves the mean as it is.
    if scores.shape[1] == 1:
        scores, labels = scores.repeat(1, 2), labels.repeat(1, 2)
    precisions = multilabel_average_precision(
        scores, labels, num_labels=scores.shape[1], average="none"
    )
    return float(torch.as_tensor(precisions).mean())
