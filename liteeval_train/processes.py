"""What the processes that torchrun started share: sums over all of them, with gradient."""

from __future__ import annotations

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
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    total: Tensor = all_reduce(values)
    return total
