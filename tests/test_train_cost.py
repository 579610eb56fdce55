"""GFLOPs written out as products."""

import pytest

from liteeval_train.config import resolve_config
from liteeval_train.cost import video_cost
from liteeval_train.method import HeadFlops
from liteeval_train.methods import build_method

CLASSES, COARSE, FINE = 239, 1280, 2048


def head(method: str) -> HeadFlops:
    config = resolve_config(method=method, preset="fcvid")
    return build_method(config, coarse_dim=COARSE, fine_dim=FINE, classes=CLASSES).head_flops()


def test_liteeval_pays_for_what_it_runs_on_each_frame():
    assert head("liteeval") == HeadFlops(
        per_frame=1280 * 512  # coarse projection
        + 4 * 512 * (512 + 512)  # coarse LSTM
        + 2 * (512 + 2 * 2048),  # gate on the coarse projection and (h, c)
        per_fine_frame=2048 * 2048  # fine projection
        + 4 * 2048 * (512 + 2048 + 2048),  # fine LSTM on both projections
        per_video=2048 * 239,
    )


def test_lstm_reads_every_frame_finely():
    assert head("lstm") == HeadFlops(0, 2048 * 2048 + 4 * 2048 * (2048 + 2048), 2048 * 239)


def test_uniform_classifies_every_frame():
    assert head("uniform") == HeadFlops(0, 2048 * 2048 + 2048 * 239, 0)


def test_coarse_and_fine_baselines_pay_for_both():
    assert head("uniform+cf") == HeadFlops(1280 * 512 + 512 * 239, 2048 * 2048 + 2048 * 239, 0)
    assert head("lstm+cf") == HeadFlops(
        1280 * 512, 2048 * 2048 + 4 * 2048 * (512 + 2048 + 2048), 2048 * 239
    )


def test_agents_pay_for_each_glimpse_and_its_decisions():
    cell = 4 * 2048 * (2048 + 1 + 2048)  # the projection and the position
    for method, choices in (("frameglimpse", 1), ("fastforward", 7)):
        assert head(method) == HeadFlops(0, 2048 * 2048 + cell + 2048 * (1 + choices), 2048 * 239)


def test_cost_of_a_video_is_the_sum_of_its_parts():
    cost = video_cost(
        coarse_frames=10,
        fine_frames=2,
        frames_seen=10,
        coarse_gflops=0.0822,
        fine_gflops=7.8014,
        head=HeadFlops(per_frame=3_000_000, per_fine_frame=50_000_000, per_video=1_000_000),
    )
    assert cost.coarse == pytest.approx(10 * 0.0822)
    assert cost.fine == pytest.approx(2 * 7.8014)
    assert cost.recurrent == pytest.approx((10 * 3e6 + 2 * 50e6 + 1e6) / 1e9)
    assert cost.total == pytest.approx(0.822 + 15.6028 + 0.131)


def test_skipping_a_frame_saves_both_its_backbone_and_its_fine_step():
    flops = head("liteeval")
    costs = [
        video_cost(
            coarse_frames=9,
            fine_frames=fine,
            frames_seen=9,
            coarse_gflops=0.0822,
            fine_gflops=7.8014,
            head=flops,
        ).total
        for fine in (4, 3)
    ]
    assert costs[0] - costs[1] == pytest.approx(7.8014 + flops.per_fine_frame / 1e9)
