"""The table of methods: name -> class.

To add one, write a file in baselines/, then a line here and its name in config.
"""

from __future__ import annotations

from collections.abc import Callable

from liteeval_train.baselines.fastforward import FastForward
from liteeval_train.baselines.frameglimpse import FrameGlimpse
from liteeval_train.baselines.liteeval_rl import LiteEvalRL
from liteeval_train.baselines.lstm import FrameLSTM, FrameLSTMCF
from liteeval_train.baselines.uniform import Uniform, UniformCF
from liteeval_train.cells import remember_frames
from liteeval_train.config import TrainConfig
from liteeval_train.method import Method
from liteeval_train.model import LiteEval

METHODS: dict[str, Callable[..., Method]] = {
    "liteeval": LiteEval,
    "liteeval-rl": LiteEvalRL,
    "uniform": Uniform,
    "uniform+cf": UniformCF,
    "lstm": FrameLSTM,
    "lstm+cf": FrameLSTMCF,
    "frameglimpse": FrameGlimpse,
    "fastforward": FastForward,
}


def build_method(config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int) -> Method:
    """The configured method for features and classes of these sizes, freshly initialised."""
    method = METHODS[config.method](
        config, coarse_dim=coarse_dim, fine_dim=fine_dim, classes=classes
    )
    if config.memory_frames:
        remember_frames(method, config.memory_frames)
    return method
