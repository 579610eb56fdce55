"""The table of methods: name -> class.

To add one, write a file in baselines/, then a line here and its name in config.
"""

from __future__ import annotations

from liteeval_train.baselines.lstm import FrameLSTM
from liteeval_train.baselines.uniform import Uniform
from liteeval_train.config import TrainConfig
from liteeval_train.method import Method
from liteeval_train.model import LiteEval

METHODS = {"liteeval": LiteEval, "uniform": Uniform, "lstm": FrameLSTM}


def build_method(config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int) -> Method:
    """The configured method for features and classes of these sizes, freshly initialised."""
    return METHODS[config.method](config, coarse_dim=coarse_dim, fine_dim=fine_dim, classes=classes)
