"""A trained run with the networks that made its features, ready for pixels instead of stores.

Shape letters: T rows of a video, n of them, D features, K classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.backbones import Backbone, BackboneError, BackboneSpec, architecture_of, load_backbone
from extract.run import autocast, default_batch_size, keep_freed_memory
from liteeval_train.cost import Cost, video_cost
from liteeval_train.data import Batch, Sample, collate
from liteeval_train.evaluate import TrainedRun, open_trained
from liteeval_train.run import StoreInfo


class PredictError(Exception):
    """A run cannot predict from video; the message says what to give instead."""


class Network:
    """A backbone that runs on the rows it is given, as extraction would have stored them."""

    def __init__(self, backbone: Backbone, device: torch.device, precision: str) -> None:
        extractor = backbone.extractor.to(device)
        self._extractor = extractor.channels_last()
        self._device, self._precision = device, precision
        self._batch_rows = default_batch_size(backbone.spec.preprocessing.row_shape, device)
        self.rows = 0  # that it ran on
        self.seconds = 0.0

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """(n, …) uint8 rows → (n, D) float32, rounded to float16 as in a store."""
        started = time.monotonic()
        with torch.inference_mode(), autocast(self._device, self._precision):
            inputs = torch.from_numpy(pixels).to(self._device)
            batches = inputs.split(self._batch_rows)
            features = torch.cat([self._extractor(b).to(torch.float16).float() for b in batches])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.rows += len(pixels)
        self.seconds += time.monotonic() - started
        return features.clone()  # no inference tensor: those refuse some later uses


class LazyRows:
    """Stands for the (T, D) fine features of a video; a row is computed when it is first read.

    Indexing computes the rows asked for. Any other use, such as torch.cat, computes all rows.

    Args:
        pixels: the input of each row, or one array of them all.
    """

    dtype = torch.float32
    is_cuda = False

    def __init__(
        self, pixels: Sequence[np.ndarray] | np.ndarray, network: Network, device: torch.device
    ) -> None:
        self._pixels, self._network, self._device = pixels, network, device
        self._known: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        wanted = rows.tolist()
        new = [row for row in dict.fromkeys(wanted) if row not in self._known]
        if new:
            features = self._network(np.stack([self._pixels[row] for row in new]))
            self._known.update(zip(new, features, strict=True))
        return torch.stack([self._known[row] for row in wanted])

    def new_zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self._device)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return function(*_computed(args), **_computed(kwargs or {}))


def _computed(value: Any) -> Any:
    """The value with every LazyRows in it as a tensor."""
    if isinstance(value, LazyRows):
        return value[torch.arange(len(value))]
    if isinstance(value, dict):
        return {key: _computed(item) for key, item in value.items()}
    return type(value)(map(_computed, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LiveRun:
    """A trained run with the networks that its stores came from."""

    run: TrainedRun
    fine: Network
    coarse: Network | None  # None where the method reads no coarse rows
    inputs: dict[str, Any]  # of the decode processes
    fps: float

    def batch(
        self,
        coarse_nD: Tensor | None,
        fine_pixels: Sequence[np.ndarray] | np.ndarray,
        pts_seconds: np.ndarray | None = None,
    ) -> Batch:
        """Rows of one video, their fine features not computed yet.

        Their times matter to methods that choose among all rows, and to no others.
        """
        rows, nothing = len(fine_pixels), np.zeros((len(fine_pixels), 0), np.float16)
        pts_seconds = np.zeros(rows) if pts_seconds is None else pts_seconds
        sample = Sample("", np.arange(rows), pts_seconds, nothing, nothing, labels=())
        batch = collate([sample], classes=len(self.run.info.classes)).to(self.run.device)
        if coarse_nD is not None:
            batch.coarse_ND = coarse_nD
        lazy = LazyRows(fine_pixels, self.fine, self.run.device)
        batch.fine_ND = lazy  # type: ignore[assignment]
        return batch

    def cost(self, frames: int, fine_frames: int, read_again: int = 0) -> Cost:
        info, method = self.run.info, self.run.method
        return video_cost(
            coarse_frames=frames if self.coarse else 0,
            fine_frames=fine_frames,
            frames_seen=frames,
            coarse_gflops=info.coarse.identity["gflops_per_frame"],
            fine_gflops=info.fine.identity["gflops_per_frame"],
            head=method.head_flops(),
            read_again=read_again,
        )


def open_live(path: Path, *, weights: Sequence[str] = (), device: str = "auto") -> LiveRun:
    """A run and its backbones.

    Args:
        weights: NAME=FILE or NAME@SIZE=FILE for backbones whose weights came from a file.

    Raises: RunError if there is no trained run; PredictError if a backbone's weights are not
        those of the run's stores.
    """
    run = open_trained(path, device)
    given = _parse_weights(weights, run)
    if run.device.type == "cpu":
        keep_freed_memory()
    stores = {"fine": run.info.fine}
    if run.method.reads_coarse:
        stores["coarse"] = run.info.coarse
    backbones = {role: _load_backbone(store, given) for role, store in stores.items()}
    networks = {
        role: Network(backbones[role], run.device, _precision(store))
        for role, store in stores.items()
    }
    inputs = {role: backbone.spec.preprocessing for role, backbone in backbones.items()}
    fps = float(run.info.fine.identity["sample_fps"])
    return LiveRun(run, networks["fine"], networks.get("coarse"), inputs, fps)


def _spec(store: StoreInfo) -> BackboneSpec:
    return BackboneSpec(store.identity["backbone"], int(store.identity["input_size_px"]))


def _precision(store: StoreInfo) -> str:
    precision: str = _preprocessing(store).get("precision", "fp32")
    return precision


def _preprocessing(store: StoreInfo) -> dict[str, Any]:
    """A store's attribute is JSON."""
    made: dict[str, Any] = json.loads(store.identity["preprocessing"])
    return made


def _parse_weights(options: Sequence[str], run: TrainedRun) -> dict[str, str]:
    known = {
        name
        for spec in (_spec(run.info.coarse), _spec(run.info.fine))
        for name in (spec.name, str(spec))
    }
    given = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not value:
            raise PredictError(f"--weights {option}: expected NAME=FILE or NAME@SIZE=FILE")
        if name not in known:
            raise PredictError(
                f"--weights {option}: the run has no backbone {name}; it has "
                f"{', '.join(sorted(known))}"
            )
        given[name] = value
    return given


def _load_backbone(store: StoreInfo, given: dict[str, str]) -> Backbone:
    """The very network that made the rows of a store."""
    spec, identity = _spec(store), store.identity
    weights = given.get(str(spec)) or given.get(spec.name) or _weights_by_name(spec, identity)
    try:
        backbone = load_backbone(spec, weights)
    except BackboneError as error:
        raise PredictError(str(error)) from error
    if backbone.weights_sha256 != identity["weights_sha256"]:
        raise PredictError(
            f"{spec}: the run was trained on features of weights {identity['weights']} (sha256 "
            f"{identity['weights_sha256'][:12]}…), found {backbone.weights} "
            f"({backbone.weights_sha256[:12]}…); give that file with --weights {spec}=FILE"
        )
    made = {**spec.preprocessing.to_dict(), "precision": _precision(store)}
    if made != _preprocessing(store):
        raise PredictError(
            f"{spec}: its preprocessing is {made}, the run's store has "
            f"{_preprocessing(store)}; extract again and train again"
        )
    return backbone


def _weights_by_name(spec: BackboneSpec, identity: dict[str, Any]) -> str:
    """Weights that need no file."""
    name: str = identity["weights"]
    if name.startswith("random:"):
        return "random"
    if name == architecture_of(spec.name).published:
        return "published"
    raise PredictError(
        f"{spec}: the run's features come from the weights file {name} (sha256 "
        f"{identity['weights_sha256'][:12]}…); give it with --weights {spec}=FILE"
    )
