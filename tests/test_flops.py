"""GFLOPs, each expected value written out as a product."""

import pytest
import torch
from torch import nn

from extract.flops import count_gflops, count_parameters


@pytest.mark.parametrize(
    ("module", "shape", "multiply_adds"),
    [
        (nn.Linear(10, 20), (1, 10), 10 * 20),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 16, 16), 3 * 8 * 3 * 3 * 16 * 16),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (1, 8, 16, 16), 8 * 3 * 3 * 8 * 8),
        (nn.Conv3d(3, 4, (5, 1, 1), padding=(2, 0, 0)), (1, 3, 8, 4, 4), 3 * 4 * 5 * 8 * 4 * 4),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (1, 3, 8, 8), 0),
    ],
)
def test_multiply_adds_are_counted_once(
    module: nn.Module, shape: tuple[int, ...], multiply_adds: int
) -> None:
    assert count_gflops(module, torch.empty(shape)) == pytest.approx(multiply_adds / 1e9)


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    count_gflops(module, torch.empty(1, 4))
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_parameters_are_weights_and_biases() -> None:
    assert count_parameters(nn.Linear(10, 20)) == 10 * 20 + 20
