"""The run folder: what a training run writes, and how it is read again.

    last.safetensors    model, optimizer and progress after the last whole epoch; `fit --resume`
    last.json           that progress, for people and scripts
    best.safetensors    the model of the epoch chosen on split val
    tensorboard/        the same lines as a TensorBoard log; `fit --tensorboard`

The other files, and all that needs no torch, are in run_files.py. Checkpoints get their name by
renaming a complete file, so a kill leaves the old or the new one. The progress stands inside
last.safetensors too: the two can never disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from extract.store import TEMPORARY_SUFFIX
from liteeval_train.run_files import Progress as Progress
from liteeval_train.run_files import RunError as RunError
from liteeval_train.run_files import RunFiles, cannot_write
from liteeval_train.run_files import RunInfo as RunInfo
from liteeval_train.run_files import StoreInfo as StoreInfo
from liteeval_train.run_files import write_atomically as write_atomically


class RunFolder(RunFiles):
    """Atomic writes of a run's files, and its checkpoints."""

    def write_info(self, info: RunInfo) -> None:
        """Raises: RunError if the folder cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        write_atomically(self.config, info.model_dump_json(indent=2).encode())

    def load_best(self, method: nn.Module) -> None:
        """Raises: RunError if there is no chosen model, or it has other sizes."""
        if not self.best.exists():
            raise RunError(f"{self.path}: no trained model yet; finish it with fit --resume")
        _load_into(method, _read_tensors(self.best)[0], self.best)

    def save_best(self, method: nn.Module) -> None:
        write_atomically(self.best, save(_contiguous(method.state_dict())))

    def save_last(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        precision: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint; `precision` is the state of a loss scaler, if there is one."""
        state = optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in method.state_dict().items()}
        for number, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
        text = json.dumps(
            {
                "progress": asdict(progress),
                "param_groups": state["param_groups"],
                "precision": dict(precision),
            }
        )
        write_atomically(self.last, save(_contiguous(tensors), {"state": text}))
        write_atomically(self.last_json, json.dumps(asdict(progress), indent=2).encode())

    def load_last(
        self, method: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[Progress, dict[str, Any]]:
        """Put the checkpoint into method and optimizer.

        Returns: how far training is, and the state of the loss scaler.

        Raises: RunError if it is damaged or belongs to a network of other sizes.
        """
        tensors, saved = self._read_last()
        model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        _load_into(method, model, self.last)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        return Progress(**saved["progress"]), saved.get("precision", {})

    def read_progress(self) -> Progress | None:
        """How far the run is, None without a checkpoint.

        Raises: RunError if it is damaged.
        """
        return Progress(**self._read_last()[1]["progress"]) if self.last.exists() else None

    def _read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of last.safetensors, and what stands beside them."""
        way_out = (
            "put back a copy, or remove it and give fit --resume, which then starts at the "
            "beginning; until that has done an epoch, evaluate still uses best.safetensors"
        )
        try:
            tensors, metadata = _read_tensors(self.last)
        except RunError as error:
            raise RunError(f"{error}; {way_out}") from error
        if "state" not in metadata:
            raise RunError(
                f"{self.last}: holds a model without the state of its training, as "
                f"best.safetensors does; {way_out}"
            )
        return tensors, json.loads(metadata["state"])

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
            raise cannot_write(self.metrics, error) from error

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
