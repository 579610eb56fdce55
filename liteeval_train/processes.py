"""What the processes that torchrun started share: sums over all of them, with gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def world_size() -> int:
    """How many processes train together; 1 without torchrun."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`; its gradient reaches all of them."""
    if world_size() == 1:
        return values
    total: Tensor = _SumOverProcesses.apply(values)
    return total


class _SumOverProcesses(torch.autograd.Function):
    """What one process adds reaches the loss of every process, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all_reduce(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _all_reduce(grad)


def _all_reduce(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
