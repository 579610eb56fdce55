"""Methods that learn by reward: what they read, what they are paid, that they improve."""

import numpy as np
import pytest
import torch

from liteeval_train.baselines.agent import at_last_step, discounted_returns
from liteeval_train.baselines.fastforward import seconds_per_row
from liteeval_train.config import resolve_config
from liteeval_train.cost import video_cost
from liteeval_train.data import Batch, Sample, collate, with_uniforms
from liteeval_train.method import HeadFlops
from liteeval_train.methods import build_method

CLASSES = 3


def make_batch(lengths: list[int], *, epoch: int = 0, seconds: float = 1.0) -> Batch:
    random = np.random.default_rng(0)
    samples = []
    for number, rows in enumerate(lengths):
        coarse = random.standard_normal((rows, 4)).astype(np.float32)
        fine = random.standard_normal((rows, 6)).astype(np.float32)
        t = np.arange(rows)
        label = (number % CLASSES,)
        sample = Sample(f"v{number}", t, t * seconds, coarse, fine, label, number)
        samples.append(with_uniforms(sample, seed=0, epoch=epoch))
    return collate(samples, classes=CLASSES)


def make_method(name: str, *settings: str):
    torch.manual_seed(0)
    config = resolve_config(method=name, preset="small", settings=settings)
    return build_method(config, coarse_dim=4, fine_dim=6, classes=CLASSES)


def test_returns_are_the_discounted_rewards_from_each_step_on():
    running_SB = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    correct_B = torch.tensor([1.0, 0.0])
    returns_SB = discounted_returns(correct_B, running_SB, step_cost=0.1, discount=0.5)
    expected = torch.tensor([[-0.1 + 0.5 * 0.9, -0.1], [0.9, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(returns_SB, expected)


def test_last_step_is_that_of_each_video():
    values_SBK = torch.arange(12.0).reshape(3, 2, 2)
    assert at_last_step(values_SBK, torch.tensor([3.0, 1.0])).tolist() == [[8.0, 9.0], [2.0, 3.0]]


def test_glimpses_are_at_most_those_allowed_and_start_at_the_first_frame():
    batch = make_batch([9, 30, 1, 4])
    method = make_method("frameglimpse", "glimpses=3").eval()
    prediction = method.predict(batch)
    for video in range(4):
        used_T = prediction.used_N[torch.from_numpy(batch.packing.rows_of(video))]
        assert used_T[0]
        assert 1 <= used_T.sum() <= 3
    assert torch.equal(prediction.seen_N, prediction.used_N)


@pytest.mark.parametrize("name", ["frameglimpse", "fastforward"])
def test_agents_read_no_other_frames_than_they_say(name):
    batch, method = make_batch([9, 30, 1, 4]), make_method(name).eval()
    before = method.predict(batch)
    batch.fine_ND[~before.used_N] = torch.nan
    after = method.predict(batch)
    assert torch.equal(before.scores_BK, after.scores_BK)
    assert torch.equal(before.used_N, after.used_N)


@pytest.mark.parametrize("name", ["frameglimpse", "fastforward", "liteeval-rl"])
def test_batch_mates_change_no_prediction(name):
    method = make_method(name).eval()
    together = method.predict(batch := make_batch([9, 30, 1, 4]))
    for video, sample in enumerate(batch.samples):
        alone = method.predict(collate([sample], classes=CLASSES))
        torch.testing.assert_close(alone.scores_BK[0], together.scores_BK[video])


def test_frame_read_again_costs_a_step_of_the_head_and_no_backbone():
    method = make_method("frameglimpse", "glimpses=4").eval()
    with torch.no_grad():
        method.move.weight.zero_()
        method.move.bias.fill_(-50.0)  # always back to the first frame
        method.stop.bias.fill_(-50.0)
    prediction = method.predict(make_batch([9, 1]))
    assert prediction.used_N.sum() == 2  # one row of each video
    assert prediction.read_again_B.tolist() == [3, 3]
    head = HeadFlops(per_frame=0, per_fine_frame=10**9, per_video=0)
    options = {"coarse_frames": 0, "fine_frames": 1, "frames_seen": 1, "coarse_gflops": 0.0}
    cost = video_cost(**options, fine_gflops=7.0, head=head, read_again=3)
    assert (cost.fine, cost.recurrent) == (7.0, 4.0)


def test_moves_are_seconds_not_rows():
    method = make_method("fastforward").eval()
    with torch.no_grad():
        method.move.weight.zero_()
        method.move.bias.copy_(torch.tensor([0.0, 0, 0, 0, 9, 0, 0]))  # always 4 s forward
        method.stop.bias.fill_(-99.0)
    for seconds, stride in ((1.0, 4), (2.0, 2), (4.0, 1), (60.0, 1)):
        batch = make_batch([13], seconds=seconds)
        assert seconds_per_row(batch).tolist() == [seconds]
        read = method.predict(batch).used_N.nonzero()[:, 0].tolist()
        assert read == list(range(0, 13, stride))


@pytest.mark.parametrize("name", ["frameglimpse", "fastforward", "liteeval-rl"])
def test_reward_rises_in_training(name):
    method = make_method(name, "fine_hidden=80", "policy_weight=0.1")
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    rewards = []
    for epoch in range(60):
        step = method(make_batch([9, 12, 8, 5, 7, 6], epoch=epoch), progress=epoch / 60)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        rewards.append(step.parts["reward"].item())
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.15


def test_policy_gradient_reaches_the_decisions_but_not_through_the_reward():
    method = make_method("liteeval-rl", "entropy_weight=0")
    method(make_batch([9, 12, 8, 5]), progress=0.0).loss.backward()
    assert method.gate_coarse.weight.grad.abs().max() > 0
    assert method.value.weight.grad.abs().max() > 0
    for name in ("frameglimpse", "fastforward"):
        agent = make_method(name, "entropy_weight=0")
        agent(make_batch([9, 12, 8, 5]), progress=0.0).loss.backward()
        for layer in (agent.stop, agent.move, agent.value, agent.classifier):
            assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("setting", ["noise_scale=0.5", "temperature_start=9"])
def test_sampled_gates_follow_their_policy_whatever_helps_the_other_gate(setting):
    batch = make_batch([9, 12, 8, 5])
    expected = make_method("liteeval-rl")(batch, progress=0.0)
    found = make_method("liteeval-rl", setting)(batch, progress=0.0)
    assert torch.equal(found.loss, expected.loss)


def test_agents_have_no_prediction_at_every_frame():
    with pytest.raises(ValueError, match="an agent jumps"):
        make_method("fastforward").eval().predict(make_batch([3]), every_step=True)
