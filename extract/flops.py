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


def count_gflops(module: nn.Module, *inputs: Tensor | Sequence[Tensor]) -> float:
    """Billions of multiply-adds of one forward pass.

    Runs on the meta device: only the shapes of the inputs matter and nothing is computed.
    """
    meta_state = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    meta_inputs = tuple(
        x.to("meta") if isinstance(x, Tensor) else [y.to("meta") for y in x] for x in inputs
    )
    training = module.training
    module.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            functional_call(module, meta_state, meta_inputs)
    finally:
        module.train(training)
    return counter.get_total_flops() / 2 / 1e9


def count_parameters(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in module.parameters())
