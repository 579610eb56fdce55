"""Predictions on raw video that spend only what the method asks for.

Decode processes make the coarse and the fine input of every row that the run would see, as
extraction does. The coarse network runs on all of them, the fine network on the rows that the
method reads, when it reads them.

Shape letters: T rows of a video, D features, K classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.backbones import Backbone, BackboneError, BackboneSpec, architecture_of, load_backbone
from extract.decode import DecodeOptions
from extract.run import autocast, keep_freed_memory
from extract.supervise import (
    Decoded,
    DecodeLimits,
    DecodePool,
    DecodeTask,
    Failed,
    Rows,
    Started,
    WorkerOptions,
)
from extract.videos import Video
from liteeval_train.cost import Cost, video_cost
from liteeval_train.data import Sample, collate
from liteeval_train.evaluate import TrainedRun, open_trained
from liteeval_train.run import StoreInfo


class PredictError(Exception):
    """A run cannot predict from video; the message says what to give instead."""


@dataclass(frozen=True)
class VideoPrediction:
    """What a run says of a video, and what that cost.

    Attributes:
        top5: class and softmax score, best first; fewer where there are fewer classes.
        fine_seconds: times of the frames read finely, in seconds of the video.
        gflops: coarse, fine and recurrent, as spent.
        gflops_all_fine: what reading every frame finely would have cost.
        seconds: wall time of the coarse network, the fine network and the head, and `total` from
            the first decoded row to the prediction.
    """

    video_id: str
    path: str
    top5: list[tuple[str, float]]
    frames: int
    fine_frames: int
    fine_seconds: list[float]
    gflops: dict[str, float]
    gflops_total: float
    gflops_all_fine: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class VideoFailure:
    """A video that could not be decoded."""

    video_id: str
    path: str
    error: str


class Network:
    """A backbone that runs on the rows it is given, as extraction would have stored them."""

    def __init__(self, backbone: Backbone, device: torch.device, precision: str) -> None:
        extractor = backbone.extractor.to(device)
        self._extractor = extractor.to(memory_format=torch.channels_last)
        self._device, self._precision = device, precision
        self.dim = backbone.feature_dim
        self.rows = 0  # that it ran on
        self.seconds = 0.0

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """(n, …) uint8 rows → (n, D) float32, rounded to float16 as in a store."""
        started = time.perf_counter()
        with torch.inference_mode(), autocast(self._device, self._precision):
            inputs = torch.from_numpy(pixels).to(self._device)
            features = self._extractor(inputs).to(torch.float16).float()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.rows += len(pixels)
        self.seconds += time.perf_counter() - started
        return features.clone()  # no inference tensor: those refuse some later uses


class LazyRows:
    """Stands for the (T, D) fine features of a video; a row is computed when it is first read.

    Indexing computes the rows asked for. Any other use, such as torch.cat, computes all rows.
    """

    dtype = torch.float32
    is_cuda = False

    def __init__(
        self, pixels: Sequence[np.ndarray], network: Network, device: torch.device
    ) -> None:
        self._pixels, self._network, self._device = pixels, network, device
        self._known: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        wanted = rows.tolist()
        for row in wanted:
            if row not in self._known:
                self._known[row] = self._network(self._pixels[row][None])[0]
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

    def cost(self, frames: int, fine_frames: int) -> Cost:
        info, method = self.run.info, self.run.method
        return video_cost(
            coarse_frames=frames if self.coarse else 0,
            fine_frames=fine_frames,
            frames_seen=frames,
            coarse_gflops=info.coarse.identity["gflops_per_frame"],
            fine_gflops=info.fine.identity["gflops_per_frame"],
            head=method.head_flops(),
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


@dataclass
class _Seen:
    """A video on its way: its coarse features, and its fine inputs not computed yet."""

    video: Video
    started: float
    coarse_TD: list[Tensor] = field(default_factory=list)
    fine_pixels_T: list[np.ndarray] = field(default_factory=list)
    coarse_seconds: float = 0.0


def predict_videos(
    live: LiveRun,
    videos: Sequence[Video],
    *,
    workers: int = 1,
    decode: DecodeOptions | None = None,
    limits: DecodeLimits | None = None,
) -> Iterator[VideoPrediction | VideoFailure]:
    """Predict each video as it is decoded; they come in the order in which they are done.

    Memory holds the fine inputs of the videos being decoded: at most `workers` times the run's
    max_frames rows, however long a video is.
    """
    options = WorkerOptions(
        inputs=live.inputs,
        fps=live.fps,
        decode=decode or DecodeOptions(),
        limits=limits or DecodeLimits(),
        max_rows=live.run.method.max_frames,
    )
    by_id = {video.id: video for video in videos}
    tasks = [DecodeTask(video.id, video.path, tuple(live.inputs)) for video in videos]
    seen: dict[str, _Seen] = {}
    with DecodePool(max(1, min(workers, len(tasks))), options) as pool:
        for event in pool.run(tasks):
            if isinstance(event, Started):
                seen[event.video_id] = _Seen(by_id[event.video_id], time.perf_counter())
            elif isinstance(event, Rows):
                _take_rows(live, seen[event.video_id], event)
            elif isinstance(event, Decoded):
                yield _predict(live, seen.pop(event.video_id), event)
            elif isinstance(event, Failed):
                seen.pop(event.video_id, None)
                path = str(by_id[event.video_id].path)
                yield VideoFailure(event.video_id, path, event.error)


def _take_rows(live: LiveRun, seen: _Seen, event: Rows) -> None:
    """Coarse features now, fine inputs for later."""
    if live.coarse is not None:
        before = live.coarse.seconds
        seen.coarse_TD.append(live.coarse(event.pixels["coarse"]))
        seen.coarse_seconds += live.coarse.seconds - before
    seen.fine_pixels_T += [row.copy() for row in event.pixels["fine"]]


def _predict(live: LiveRun, seen: _Seen, decoded: Decoded) -> VideoPrediction:
    run, classes = live.run, live.run.info.classes
    rows = len(decoded.frame_index)
    sample = Sample(
        seen.video.id,
        np.arange(rows),
        decoded.pts_seconds,
        np.zeros((rows, 0), np.float16),
        np.zeros((rows, 0), np.float16),
        labels=(),
    )
    batch = collate([sample], classes=len(classes)).to(run.device)
    if seen.coarse_TD:
        batch.coarse_ND = torch.cat(seen.coarse_TD)
    batch.fine_ND = LazyRows(seen.fine_pixels_T, live.fine, run.device)  # type: ignore[assignment]
    fine_before, started = live.fine.seconds, time.perf_counter()
    prediction = run.method.predict(batch)
    scores_K = prediction.scores_BK[0].cpu()
    used_T, ended = prediction.used_N.cpu().numpy(), time.perf_counter()
    fine_seconds = live.fine.seconds - fine_before
    frames, fine_frames = int(prediction.seen_N.sum()), int(used_T.sum())
    cost = live.cost(frames, fine_frames)
    best = scores_K.topk(min(5, len(classes)))
    top5 = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return VideoPrediction(
        video_id=seen.video.id,
        path=str(seen.video.path),
        top5=[(classes[number], score) for number, score in top5],
        frames=frames,
        fine_frames=fine_frames,
        fine_seconds=decoded.pts_seconds[used_T].tolist(),
        gflops={"coarse": cost.coarse, "fine": cost.fine, "recurrent": cost.recurrent},
        gflops_total=cost.total,
        gflops_all_fine=live.cost(rows, rows).total,
        seconds={
            "coarse": seen.coarse_seconds,
            "fine": fine_seconds,
            "head": ended - started - fine_seconds,
            "total": ended - seen.started,
        },
    )
