"""The two terms of equation 7, by hand."""

import math

import pytest
import torch

from liteeval_train.losses import classification_loss, fine_share, usage_penalty


def test_usage_penalty_is_the_mean_of_each_videos_squared_gap():
    shares = torch.tensor([1 / 4, 2 / 2])
    assert usage_penalty(shares, fine_share_target=0.5).item() == pytest.approx(0.15625)


def test_fine_share_counts_the_rows_of_each_video():
    used_N = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    video_N = torch.tensor([0, 1, 0, 1, 0, 0])
    shares = fine_share(used_N, video_N, torch.tensor([4.0, 2.0]))
    assert shares.tolist() == [0.25, 1.0]


def test_several_labels_share_the_mass():
    logits_BK = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    labels_BK = torch.tensor([[1.0, 1.0, 0.0]])
    expected = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    assert classification_loss(logits_BK, labels_BK).item() == pytest.approx(expected)


def test_target_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        usage_penalty(torch.tensor([0.5]), fine_share_target=1.5)


def test_rows_and_videos_must_agree():
    with pytest.raises(ValueError, match="differ"):
        fine_share(torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.ones(1))
