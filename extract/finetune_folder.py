"""The folder of a finetuning: what stage 0 writes, and how it is read again.

    config.json              configuration, weights, labels, classes, versions
    metrics.jsonl            one line per epoch; epoch 0 is a linear classifier on frozen features
    last.safetensors         network, momentum and progress after the last whole epoch; --resume
    finetuned.safetensors    the network of the epoch chosen on split val; --weights of `run`
    failures.jsonl           videos that could not be decoded
    pixels/                  decoded pixels, until the end

finetuned.safetensors holds the network's state dict. Its metadata has one key, `liteeval`: a JSON
object with `backbone`, `classes`, `classifier` (the layer whose .weight and .bias turn features
into class scores) and all of config.json. One key alone, because safetensors writes several in
random order, and the file's hash is the identity of the features made with it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

METADATA = "liteeval"


class FinetuneError(Exception):
    """Finetuning cannot start or go on; the message says what to do."""


@dataclass
class Progress:
    """How far a finetuning is."""

    epoch: int = -1  # the last whole one; 0: the classifier on frozen features
    best_epoch: int = -1
    best_accuracy: float = -1.0
    finished: bool = False


class FinetuneFolder:
    """Names and atomic writes of the files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.safetensors"
        self.best = path / "finetuned.safetensors"

    def open(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or check that it holds this very finetuning.

        Raises: FinetuneError if it holds one and `resume` was not asked for, or another one.
        """
        if not self.config.exists():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            _write(self.config, json.dumps(config, indent=2).encode())
            return
        if not resume:
            raise FinetuneError(
                f"{self.path}: holds a finetuning already; go on with --resume, or choose "
                "another --out"
            )
        before = self.read_config()
        for name in sorted((before.keys() | config.keys()) - {"versions"}):
            if before.get(name) != config.get(name):
                raise FinetuneError(
                    f"{self.path}: {name} was {before.get(name)!r}, is {config.get(name)!r}; "
                    "resume with what it was started with, or choose another --out"
                )

    def read_config(self) -> dict[str, Any]:
        try:
            content = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FinetuneError(f"{self.config}: cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise FinetuneError(f"{self.config}: expected a JSON object")
        return content

    def save_best(self, network: nn.Module, about: Mapping[str, Any]) -> None:
        text = json.dumps(about, sort_keys=True)
        _write(self.best, save(_plain(network.state_dict()), {METADATA: text}))

    def save_last(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        tensors = {f"network.{name}": t for name, t in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors[f"momentum.{number}"] = state["momentum_buffer"]
        _write(self.last, save(_plain(tensors), {METADATA: json.dumps(asdict(progress))}))

    def load_last(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Put the checkpoint into network and optimizer; the start where there is none.

        Raises: FinetuneError if it is damaged.
        """
        if not self.last.exists():
            return Progress()
        try:
            with safe_open(self.last, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                progress = Progress(**json.loads((file.metadata() or {})[METADATA]))
            network.load_state_dict(_under("network.", tensors))
            optimizer.load_state_dict(
                {
                    "state": {
                        int(number): {"momentum_buffer": tensor}
                        for number, tensor in _under("momentum.", tensors).items()
                    },
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise FinetuneError(
                f"{self.last}: not a checkpoint of this finetuning ({first}); choose another --out"
            ) from error
        return progress

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _cannot_write(self.metrics, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines in order of epochs; one that a kill cut short is left out."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict) and "epoch" in line]

    def require_metrics_until(self, epoch: int) -> None:
        """Raises: FinetuneError if a line is missing of an epoch that the checkpoint holds."""
        missing = set(range(epoch + 1)) - {line["epoch"] for line in self.read_metrics()}
        if missing:
            raise FinetuneError(
                f"{self.metrics}: lacks epoch {min(missing)} of {epoch} that are done; put the "
                "file back, or start again into another --out"
            )

    def keep_metrics_until(self, epoch: int) -> None:
        """Drop lines of epochs that the checkpoint does not hold."""
        if self.metrics.exists():
            kept = [line for line in self.read_metrics() if line["epoch"] <= epoch]
            _write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> FinetuneError:
    return FinetuneError(
        f"{path}: cannot be written ({error.strerror}); what was finished is kept. Make room or "
        "make the folder writable, then give the same command again with --resume"
    )
