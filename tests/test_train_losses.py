"""The two terms of equation 7 and the one on single frames, by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from liteeval_train.config import resolve_config
from liteeval_train.data import Batch, Sample, collate, with_uniforms
from liteeval_train.losses import (
    FrameSupervision,
    classification_loss,
    fine_share,
    frame_loss,
    usage_penalty,
)
from liteeval_train.methods import build_method


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


def make_batch() -> Batch:
    """Three videos of 1, 3 and 2 frames; the second has two classes of three."""
    samples = [
        Sample(name, np.arange(rows), np.arange(rows) * 1.0, np.zeros((rows, 1), np.float32),
               np.zeros((rows, 1), np.float32), labels, number)
        for number, (name, rows, labels) in enumerate(
            [("a", 1, (0,)), ("b", 3, (0, 2)), ("c", 2, (1,))])
    ]  # fmt: skip
    return collate(samples, classes=3)


def frame_losses_by_hand(logits_NK: torch.Tensor, batch: Batch) -> float:
    """scikit-learn's cross-entropy of each frame, frames of a video averaged, then videos."""
    means = []
    for video, sample in enumerate(batch.samples):
        rows = logits_NK[torch.from_numpy(batch.packing.rows_of(video))].softmax(dim=1).numpy()
        of_frames = [
            np.mean([log_loss([label], [row], labels=[0, 1, 2]) for label in sample.labels])
            for row in rows
        ]
        means.append(np.mean(of_frames))
    return float(np.mean(means))


def test_frame_loss_averages_over_the_frames_of_a_video_then_over_videos():
    batch = make_batch()
    logits_NK = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = frame_losses_by_hand(logits_NK, batch)
    assert frame_loss(logits_NK, batch).item() == pytest.approx(expected)


def test_frame_supervision_weighs_the_sum_over_projections_and_reaches_them():
    batch = make_batch()
    coarse, fine = (torch.randn(6, width, requires_grad=True) for width in (4, 5))
    frames = FrameSupervision([4, 5], 3, weight=3.0)
    term = frames([coarse, fine], batch)
    with torch.no_grad():
        logits = [c(x) for c, x in zip(frames.classifiers, (coarse, fine), strict=True)]
    expected = 3.0 * sum(frame_losses_by_hand(x.double(), batch) for x in logits)
    assert term.item() == pytest.approx(expected, rel=1e-5)
    term.backward()
    assert all(x.grad is not None and x.grad.any(dim=1).all() for x in (coarse, fine))


def test_without_weight_frames_are_not_supervised_and_nothing_is_learned_for_it():
    frames = FrameSupervision([4, 5], 3, weight=0.0)
    assert list(frames.parameters()) == []
    assert frames([torch.randn(6, 4), torch.randn(6, 5)], make_batch()).item() == 0.0


@pytest.mark.parametrize("name", ["liteeval", "liteeval-rl", "lstm", "lstm+cf"])
def test_every_recurrent_method_adds_the_frames_term_to_its_loss(name: str):
    batch = collate(
        [with_uniforms(sample, seed=0, epoch=0) for sample in make_batch().samples], classes=3
    )
    steps, before = [], {}
    for weight in (0, 2):
        settings = ["fine_hidden=8", "coarse_hidden=4", f"frame_loss_weight={weight}"]
        torch.manual_seed(0)
        config = resolve_config(method=name, preset="small", settings=settings)
        method = build_method(config, coarse_dim=1, fine_dim=1, classes=3).train()
        method.load_state_dict(before, strict=False)
        before = {k: v.clone() for k, v in method.state_dict().items()}
        steps.append(method(batch, progress=0.5))
    without, with_frames = steps
    assert without.parts["frame_loss"].item() == 0
    added = with_frames.loss.item() - without.loss.item()
    assert added == pytest.approx(with_frames.parts["frame_loss"].item(), rel=1e-4)
    assert added > 0
