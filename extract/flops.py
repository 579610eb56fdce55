"""GFLOPs of a module on an input. 1 multiply-add = 1 FLOP, as in the paper.

torch.utils.flop_counter knows the formulas (2 per multiply-add, halved here). It counts
convolutions, matrix products and attention; normalisation, activations and pooling are free, as
in the published figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

CONVENTION = "1 multiply-add = 1 FLOP; convolutions and matrix products"


def count_gflops(module: nn.Module, *inputs: Tensor) -> float:
    """Billions of multiply-adds of one forward pass; only the shapes of the inputs matter."""
    with FlopCounterMode(display=False) as counter:
        _run_on_meta(module, inputs)
    return counter.get_total_flops() / 2 / 1e9


def output_shape(module: nn.Module, *inputs: Tensor) -> torch.Size:
    """The shape of what a module returns, without computing it."""
    return _run_on_meta(module, inputs).shape


def _run_on_meta(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """A forward pass in evaluation mode on the meta device: shapes, no values."""
    meta_state = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            result: Tensor = functional_call(
                module, meta_state, tuple(x.to("meta") for x in inputs)
            )
    finally:
        module.train(training)
    return result


def count_parameters(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in module.parameters())
