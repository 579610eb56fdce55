"""What a run is, read from its folder without torch: commands that only read stay quick.

config.json         configuration, stores and labels with their identity, classes, versions
metrics.jsonl       one line per epoch
last.json           how far training is
best.safetensors    the model of the epoch chosen on split val
evaluate_SPLIT.json, evaluate_SPLIT_videos.jsonl, _budgets.json, _watched.json, _uniform-k.json
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from extract.store import TEMPORARY_SUFFIX, FeatureStore
from liteeval_train.config import TrainConfig

if TYPE_CHECKING:
    from liteeval_train.data import VideoSet
    from liteeval_train.method import Method

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

    @property
    def backbone(self) -> str:
        """As liteeval-extract takes it: mobilenet_v2@112."""
        return f"{self.identity.get('backbone', '?')}@{self.identity.get('input_size_px', '?')}"

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


class SplitInfo(BaseModel):
    """The videos of a split that a run was trained on: how many, and what tells them."""

    videos: int
    sha256: str  # of their ids


class RunInfo(BaseModel):
    """config.json: all that says what a run is.

    What older runs did not save is None or empty.
    """

    model_config = ConfigDict(extra="forbid")

    config: TrainConfig
    coarse: StoreInfo
    fine: StoreInfo
    labels_path: str
    labels_sha256: str
    classes: list[str]
    splits: dict[str, SplitInfo] = {}  # train and val
    precision: str | None = None
    device: str | None = None  # cpu or cuda, where the run was started
    versions: dict[str, str]

    @classmethod
    def of(
        cls, config: TrainConfig, sets: Sequence[VideoSet], *, precision: str, device: str
    ) -> RunInfo:
        """Of a run on the videos of these sets, which come from the same stores and labels."""
        pair, labels = sets[0].pair, sets[0].labels
        return cls(
            config=config,
            coarse=StoreInfo.of(pair.coarse),
            fine=StoreInfo.of(pair.fine),
            labels_path=str(labels.path.resolve()),
            labels_sha256=labels.sha256,
            classes=list(sets[0].class_number),
            splits={videos.split: SplitInfo(**videos.content) for videos in sets},
            precision=precision,
            device=device,
            versions={name: _version(name) for name in VERSIONED},
        )

    def build(self) -> Method:
        """The method this run trains, freshly initialised."""
        from liteeval_train.methods import build_method  # loads torch

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


class RunFiles:
    """Names of a run's files, and those of them that are text."""

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

    def curve(self, split: str, kind: str) -> Path:
        return self.path / f"evaluate_{split}_{kind}.json"

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

    def read_evaluation(self, split: str) -> dict[str, Any] | None:
        """The summary of a split; None without one, or if the model was trained on since.

        Raises: RunError if it cannot be read.
        """
        path = self.evaluation(split)
        if not path.exists() or self._is_older_than_model(path):
            return None
        try:
            summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            summary["map"], summary["gflops_mean"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); make it anew with liteeval-train evaluate "
                f"{self.path} --split {split}"
            ) from error
        return summary

    def read_curve(self, split: str, kind: str) -> list[dict[str, Any]]:
        """The summaries of kind budgets, watched or uniform-k; none if trained on since."""
        path = self.curve(split, kind)
        if not path.exists() or self._is_older_than_model(path):
            return []
        try:
            curve = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return curve if isinstance(curve, list) else []

    def _is_older_than_model(self, path: Path) -> bool:
        return self.best.exists() and path.stat().st_mtime_ns < self.best.stat().st_mtime_ns

    def read_metrics(self) -> list[dict[str, Any]]:
        """One mapping per epoch; a line that a kill has cut off is left out."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        epochs = []
        for line in lines:
            with contextlib.suppress(ValueError):
                epochs.append(json.loads(line))
        return [epoch for epoch in epochs if isinstance(epoch, dict) and "epoch" in epoch]


def name_folders(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder, no two alike: its own, with parents where others share it.

    x1/lstm, x2/lstm and x1/gru: x1/lstm, x2/lstm and gru. A folder that stands twice is one.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        folders.setdefault(path.resolve(), path)
    parts = {path: where.parts for where, path in folders.items()}
    names = {}
    for path, own in parts.items():
        length = 1
        while sum(own[-length:] == other[-length:] for other in parts.values()) > 1:
            length += 1
        names[path] = "/".join(own[-length:])
    return names


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
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be written ({error.strerror}); what was finished is kept. Make room or "
        "make the folder writable, then give the same command again (fit: with --resume)"
    )
