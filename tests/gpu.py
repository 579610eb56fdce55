"""Tests that need a GPU skip without one, unless FAIL_WITHOUT_CUDA says that there must be one."""

import os

import pytest
import torch

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("FAIL_WITHOUT_CUDA"), reason="needs a GPU"
)
