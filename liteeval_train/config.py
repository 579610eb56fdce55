"""What a run trains: one complete, named configuration. Presets are Wu et al.'s but `small`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(Exception):
    """A configuration has an unknown key or a value out of range; the message names both."""


MAX_WIDTH = 16_384  # an LSTM of this width has a weight of 4 GB


class TrainConfig(BaseModel):
    """Everything that decides a run's numbers, apart from the data and the machine."""

    # JSON has no infinity: config.json could not be read again.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal[
        "liteeval",
        "liteeval-rl",
        "uniform",
        "uniform+cf",
        "lstm",
        "lstm+cf",
        "frameglimpse",
        "fastforward",
    ] = "liteeval"
    preset: str = "fcvid"
    seed: int = Field(0, ge=0, lt=2**63)

    # optimisation
    epochs: int = Field(100, ge=1, le=1_000_000)
    batch_videos: int = Field(256, ge=2, le=1_000_000)  # of all processes together
    learning_rate: float = Field(1e-4, gt=0, le=100)
    weight_decay: float = Field(0.0, ge=0, le=100)
    clip_norm: float = Field(5.0, gt=0, le=1e9)

    # what is seen of a video
    max_frames: int = Field(129, ge=1, le=1_000_000)  # evenly spaced where a video has more
    frames: int = Field(25, ge=1, le=1_000_000)  # of methods uniform and uniform+cf
    head: str = ""  # of uniform: a finetuned backbone, whose own classifier is used; nothing trains

    # the network
    cell: Literal["lstm", "gru", "sru"] = "lstm"  # of liteeval
    synchronise: bool = True  # skipped frames update the fine state from the coarse one
    coarse_hidden: int = Field(512, ge=1, le=MAX_WIDTH)  # D_c
    fine_hidden: int = Field(2048, ge=1, le=MAX_WIDTH)  # D_f
    memory_frames: int = Field(
        0, ge=0, le=1_000_000
    )  # longest first memory of recurrent cells; 0: torch's initial values
    # widths after BatchNorm-Linear-BatchNorm-ReLU; 0: off
    coarse_projection: int = Field(512, ge=0, le=MAX_WIDTH)
    fine_projection: int = Field(2048, ge=0, le=MAX_WIDTH)
    l2_normalise: bool = True  # features, before the projection

    frame_loss_weight: float = Field(
        0.0, ge=0, le=1e9
    )  # of losses.FrameSupervision; recurrent methods

    # the gate
    fine_share_target: float = Field(0.05, ge=0, le=1)  # γ
    usage_weight: float = Field(2.0, ge=0, le=1e9)  # λ
    usage_per: Literal["video", "batch"] = "video"  # share whose gap to γ is squared
    usage_warmup: float = Field(0.0, ge=0, le=1)  # share of training while λ rises from 0
    gate_bias: float = Field(0.0, ge=-1e9, le=1e9)  # initial logit for reading a frame finely
    temperature_start: float = Field(1.0, ge=1e-3, le=1e3)  # τ at the first step
    temperature_end: float = Field(0.5, ge=1e-3, le=1e3)  # τ at the last step; falls exponentially
    temperature_schedule: Literal["exponential", "authors"] = "exponential"  # see docs/authors.md
    noise_scale: float = Field(1.0, ge=0, le=100)  # of the Gumbel noise; the authors' code has 0.5

    # methods that learn by reward: liteeval-rl, frameglimpse, fastforward
    policy_weight: float = Field(1.0, ge=0, le=1e9)  # of the REINFORCE term beside cross-entropy
    entropy_weight: float = Field(0.01, ge=0, le=1e9)  # keeps policies from settling at once
    glimpses: int = Field(4, ge=1, le=64)  # of frameglimpse, at most
    location_deviation: float = Field(0.1, ge=1e-3, le=10)  # of frameglimpse's sampled position
    moves: int = Field(24, ge=1, le=64)  # of fastforward, at most
    discount: float = Field(0.98, gt=0, le=1)  # of later rewards
    step_cost: float = Field(0.02, ge=0, le=1e3)  # reward lost with each frame read

    @model_validator(mode="after")
    def _check_sizes(self) -> TrainConfig:
        gated = self.method in ("liteeval", "liteeval-rl") and self.synchronise
        if gated and self.coarse_hidden >= self.fine_hidden:
            raise ValueError(
                f"coarse_hidden {self.coarse_hidden} is not below fine_hidden {self.fine_hidden}: "
                "a skipped frame would overwrite all that fine frames left in the state"
            )
        if self.head and self.method != "uniform":
            raise ValueError(
                f"head is for method uniform, which averages frames; not {self.method}"
            )
        if self.temperature_end > self.temperature_start:
            raise ValueError("temperature_end exceeds temperature_start: it falls during training")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "activitynet": {"coarse_hidden": 64, "fine_hidden": 512, "batch_videos": 128},
    "fcvid": {"coarse_hidden": 512, "fine_hidden": 2048, "batch_videos": 256},
    "kinetics": {"coarse_hidden": 1024, "fine_hidden": 2048, "batch_videos": 512},
    "breakfast": {"coarse_hidden": 512, "fine_hidden": 2048, "batch_videos": 256},
    # Ours, not the paper's: for some hundred videos on a laptop's processor.
    "small": {
        "coarse_hidden": 64,
        "fine_hidden": 256,
        "coarse_projection": 128,
        "fine_projection": 256,
        "batch_videos": 16,
        "learning_rate": 1e-3,
        "epochs": 20,
        "memory_frames": 30,
        "frame_loss_weight": 1.0,
        "fine_share_target": 0.1,
    },
}


def resolve_config(
    *,
    method: str | None = None,
    preset: str | None = None,
    file: Path | None = None,
    settings: Sequence[str] = (),
) -> TrainConfig:
    """The preset, then the file, then key=value settings, then the named method: the last wins.

    Raises: ConfigError on an unknown preset or key, a value out of range, an unreadable file.
    """
    given: dict[str, Any] = {**(_read_file(file) if file else {}), **_parse_settings(settings)}
    given |= {k: v for k, v in (("method", method), ("preset", preset)) if v is not None}
    name = given.setdefault("preset", TrainConfig.model_fields["preset"].default)
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return validate_config({**PRESETS[name], **given})


def validate_config(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig of these values.

    Raises: ConfigError naming each wrong key, with the nearest valid name for an unknown one.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return unknown_key_message(key, TrainConfig.model_fields)
    return f"{key}: {item['msg']}, got {item['input']!r}" if key else str(item["msg"])


def unknown_key_message(key: str, known: Mapping[str, Any]) -> str:
    """`unknown key 'lerning_rate', did you mean 'learning_rate'?`"""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML or JSON file ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def _parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: expected key=value")
        values[key.strip()] = _parse_value(text)
    return values


def _parse_value(text: str) -> Any:
    """YAML's reading of a value, but `1e-4` is a number as everywhere else."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return text
    except yaml.YAMLError as error:
        raise ConfigError(f"--set value {text!r} cannot be read ({error})") from error
