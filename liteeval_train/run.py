"""The run folder: what a training run writes, and how it is read again.

    config.json         configuration, stores and labels with their identity, classes, versions
    metrics.jsonl       one line per epoch
    last.safetensors    model, optimizer and progress after the last whole epoch; `fit --resume`
    last.json           that progress, for people and scripts
    best.safetensors    the model of the epoch chosen on split val
    tensorboard/        the same lines as a TensorBoard log; `fit --tensorboard`
    evaluate_SPLIT.json, evaluate_SPLIT_videos.jsonl

Checkpoints get their name by renaming a complete file, so a kill leaves the old or the new one.
The progress stands inside last.safetensors too: the two can never disagree.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from extract.store import TEMPORARY_SUFFIX, FeatureStore
from liteeval_train.config import TrainConfig
from liteeval_train.data import Labels, StorePair
from liteeval_train.method import Method
from liteeval_train.methods import build_method

VERSIONED = ("liteeval", "torch", "lightning-fabric", "torchmetrics", "numpy", "h5py")


class RunError(Exception):
    """A run folder cannot be read, written or continued; the message says what to do."""


class StoreInfo(BaseModel):
    """A store that a run was trained on."""

    path: str
    identity: dict[str, Any]

    @classmethod
    def of(cls, store: FeatureStore) -> StoreInfo:
        return cls(path=str(store.path.resolve()), identity=store.identity.to_attributes())

    def differences(self, now: StoreInfo) -> list[str]:
        """One line for each way in which `now` is another store; library versions may differ."""
        pairs = [("path", self.path, now.path)] + [
            (name, self.identity.get(name), now.identity.get(name))
            for name in sorted(self.identity.keys() | now.identity.keys())
            if name != "versions"
        ]
        return [f"{name} was {was!r}, is {new!r}" for name, was, new in pairs if was != new]

    def require_same(self, store: FeatureStore) -> None:
        """Raises: RunError if a store's rows were made in another way than those trained on."""
        found = store.identity.to_attributes()
        for name, expected in self.identity.items():
            if name != "versions" and found.get(name) != expected:
                raise RunError(
                    f"{store.path}: {name} is {found.get(name)!r}, the run was trained on "
                    f"{expected!r} ({self.path}); give the same kind of store"
                )


class RunInfo(BaseModel):
    """config.json: all that says what a run is."""

    model_config = ConfigDict(extra="forbid")

    config: TrainConfig
    coarse: StoreInfo
    fine: StoreInfo
    labels_path: str
    labels_sha256: str
    classes: list[str]
    versions: dict[str, str]

    @classmethod
    def of(
        cls, config: TrainConfig, pair: StorePair, labels: Labels, classes: list[str]
    ) -> RunInfo:
        return cls(
            config=config,
            coarse=StoreInfo.of(pair.coarse),
            fine=StoreInfo.of(pair.fine),
            labels_path=str(labels.path.resolve()),
            labels_sha256=labels.sha256,
            classes=classes,
            versions={name: _version(name) for name in VERSIONED},
        )

    def build(self) -> Method:
        """The method this run trains, freshly initialised."""
        return build_method(
            self.config,
            coarse_dim=self.coarse.identity["feature_dim"],
            fine_dim=self.fine.identity["feature_dim"],
            classes=len(self.classes),
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # whole epochs done
    step: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    finished: bool = False


class RunFolder:
    """Names and atomic writes of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.safetensors"
        self.last_json = path / "last.json"
        self.best = path / "best.safetensors"
        self.tensorboard = path / "tensorboard"

    def evaluation(self, split: str) -> Path:
        return self.path / f"evaluate_{split}.json"

    def evaluation_videos(self, split: str) -> Path:
        return self.path / f"evaluate_{split}_videos.jsonl"

    def read_info(self) -> RunInfo:
        """Raises: RunError if this is no run folder or config.json is damaged."""
        try:
            return RunInfo.model_validate_json(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path}: no run here (no config.json); train one with liteeval-train fit"
            ) from error
        except (OSError, ValidationError) as error:
            raise RunError(f"{self.config}: cannot be read ({error})") from error

    def write_info(self, info: RunInfo) -> None:
        """Raises: RunError if the folder cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        write_atomically(self.config, info.model_dump_json(indent=2).encode())

    def load_best(self, method: nn.Module) -> None:
        """Raises: RunError if there is no chosen model, or it has other sizes."""
        if not self.best.exists():
            raise RunError(f"{self.path}: no trained model yet; finish it with fit --resume")
        _load_into(method, _read_tensors(self.best)[0], self.best)

    def save_best(self, method: nn.Module) -> None:
        write_atomically(self.best, save(_contiguous(method.state_dict())))

    def save_last(
        self, method: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        state = optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in method.state_dict().items()}
        for number, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        text = json.dumps({"progress": asdict(progress), "param_groups": state["param_groups"]})
        write_atomically(self.last, save(_contiguous(tensors), {"state": text}))
        write_atomically(self.last_json, json.dumps(asdict(progress), indent=2).encode())

    def load_last(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Put the checkpoint into method and optimizer.

        Raises: RunError if it is damaged or belongs to a network of other sizes.
        """
        tensors, metadata = _read_tensors(self.last)
        model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        _load_into(method, model, self.last)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = tensor
        saved = json.loads(metadata["state"])
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        return Progress(**saved["progress"])

    def read_progress(self) -> Progress | None:
        """How far the run is, None without a checkpoint."""
        if not self.last.exists():
            return None
        return Progress(**json.loads(_read_tensors(self.last)[1]["state"])["progress"])

    def progress_or_fail(self) -> Progress:
        """Raises: RunError without a checkpoint."""
        progress = self.read_progress()
        if progress is None:
            raise RunError(f"{self.path}: no checkpoint yet; run liteeval-train fit --resume")
        return progress

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _cannot_write(self.metrics, error) from error

    def remove_temporaries(self) -> None:
        """Remove what a killed training left half-written."""
        for path in (self.config, self.metrics, self.last, self.last_json, self.best):
            for temporary in self.path.glob(f".{path.name}.*{TEMPORARY_SUFFIX}"):
                temporary.unlink(missing_ok=True)

    def keep_metrics_until(self, epoch: int) -> None:
        """Drop lines of epochs that the checkpoint does not hold."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _epoch_of(line) <= epoch]
            write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError):
        return float("inf")  # a line cut off by a kill


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside under a name of its own, fsync, rename.

    Raises: RunError if the disk is full or read-only; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be written ({error.strerror}); what was finished is kept. Make room or "
        "make the folder writable, then give the same command again (fit: with --resume)"
    )


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: not a readable checkpoint ({error})") from error


def _load_into(method: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        method.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise RunError(
            f"{path}: holds another network than config.json describes ({first})"
        ) from error
