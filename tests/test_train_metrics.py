"""Metrics against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from liteeval_train.metrics import (
    in_top,
    interpolated_mean_average_precision,
    mean_average_precision,
)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_map_agrees_with_scikit_learn(videos, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 8, (videos, classes), generator=generator) / 8  # with ties
    labels = (torch.rand(videos, classes, generator=generator) < 0.4).long()
    labels[0, 0] = 1
    occurs = labels.any(dim=0)
    expected = average_precision_score(
        labels[:, occurs].numpy(), scores[:, occurs].numpy(), average="macro"
    )
    assert mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-6)


def test_classes_that_do_not_occur_take_no_part_in_map():
    scores = torch.tensor([[0.9, 0.0, 0.1], [0.2, 0.0, 0.8]])
    labels = torch.tensor([[1, 0, 0], [0, 0, 1]])
    assert mean_average_precision(scores, labels) == 1.0


def test_any_label_among_the_best_scores_counts():
    scores = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    labels = torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert in_top(scores, labels, 1).tolist() == [False, True]
    assert in_top(scores, labels, 2).tolist() == [True, True]
    assert in_top(scores, labels, 5).tolist() == [True, True]


def activitynet_average_precision(scores: list[float], labels: list[int]) -> float:
    """The published evaluation's rule, on scores without ties: rank, envelope, sum of steps."""
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    hits, precisions, recalls = 0, [0.0], [0.0]
    for rank, number in enumerate(order, start=1):
        hits += labels[number]
        precisions.append(hits / rank)
        recalls.append(hits / sum(labels))
    precisions.append(0.0)
    recalls.append(1.0)
    for n in reversed(range(len(precisions) - 1)):
        precisions[n] = max(precisions[n], precisions[n + 1])
    return sum(
        (recalls[n] - recalls[n - 1]) * precisions[n]
        for n in range(1, len(recalls))
        if recalls[n] != recalls[n - 1]
    )


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(12)), st.lists(st.integers(0, 1), min_size=12, max_size=12))
def test_interpolated_map_agrees_with_activitynets_rule(ranks, labels):
    labels = [1, *labels[1:]]
    scores = [rank / 12 for rank in ranks]
    found = interpolated_mean_average_precision(
        torch.tensor(scores)[:, None], torch.tensor(labels)[:, None]
    )
    assert found == pytest.approx(activitynet_average_precision(scores, labels), abs=1e-6)


def test_interpolation_takes_the_best_later_precision():
    scores = torch.tensor([0.9, 0.8, 0.7])[:, None]
    labels = torch.tensor([0, 1, 1])[:, None]
    assert mean_average_precision(scores, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert interpolated_mean_average_precision(scores, labels) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "average_precision", [mean_average_precision, interpolated_mean_average_precision]
)
def test_scores_that_are_not_finite_have_no_average_precision(average_precision):
    scores = torch.tensor([[0.5, 0.5], [float("nan"), 0.5]])
    with pytest.raises(ValueError, match="not finite"):
        average_precision(scores, torch.eye(2))
