"""Stage 0: fit a backbone to a labelled data set, so that its features tell the classes apart.

Source: Wu et al., A Coarse-to-Fine Framework for Resource Efficient Video Recognition, section
4.1: MobileNetV2 and ResNet-101 as classifiers of frames, DPN-107 as temporal segment network,
SlowFast on clips.

First a linear classifier is fitted to the frozen features; then the whole network is trained
from there. Starting from a random classifier instead, its first gradients would spoil what the
features know (Kumar et al., Fine-Tuning can Distort Pretrained Features, 2022). The first step is
also the "before" of the result, epoch 0 of metrics.jsonl.

Shape letters: V videos of a batch, S segments, N rows, K classes, D features.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from extract.backbones import (
    BackboneSpec,
    FeatureExtractor,
    architecture_of,
    library_versions,
    load_network,
    replace_classifier,
    without_classifier,
)
from extract.decode import DecodeOptions
from extract.failures import append_failure
from extract.finetune_folder import FinetuneError, FinetuneFolder, Progress
from extract.labels import LabelError, Labels
from extract.pixels import (
    PixelCache,
    cut,
    published_crop,
    random_crop,
    segment_rows,
    training_input,
)
from extract.sampling import evenly_spaced
from extract.supervise import DecodeLimits, Failed
from extract.videos import Video

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
VALIDATION_ROWS = 25  # of a video, evenly spaced, as temporal segment networks are tested
HEAD_ROWS = 100_000  # that the first classifier is fitted to, at most
HEAD_DECAY = 0.01  # of its weights, on features of unit variance
HEAD_ITERATIONS = 100
PIXELS = "pixels"  # in the output, until the end


@dataclass(frozen=True)
class FinetuneConfig:
    """What decides the numbers, apart from videos, labels and source weights."""

    epochs: int = 10
    learning_rate: float = 0.01  # at the first step; falls to 0 as a cosine
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 1.0  # of the gradient, at most
    batch_videos: int = 16  # of all processes together
    segments: int = 3  # rows of a video in a batch
    consensus: bool | None = None  # one loss on the mean logits of a video; None: as the backbone
    label_smoothing: float = 0.0
    crop_area: float = 0.4  # smallest share of the picture that a random crop shows
    fps: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class FinetuneOptions:
    """Where and how."""

    device: str = "auto"
    precision: str = "fp32"
    workers: int = 0  # decode processes, and processes that crop; 0: one per core, less one
    cache: Path | None = None  # None: within the output, removed at the end
    cache_bytes: int = 20 << 30
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    resume: bool = False

    def worker_count(self) -> int:
        return self.workers or max(1, (os.cpu_count() or 2) - 1)


@dataclass(frozen=True)
class FinetuneResult:
    """What came out; accuracies are shares in [0, 1] on split val."""

    checkpoint: Path
    config: dict[str, Any]
    best_epoch: int
    before: dict[str, Any]  # the line of metrics.jsonl of epoch 0
    after: dict[str, Any]  # that of the chosen epoch
    failures: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "checkpoint": str(self.checkpoint)}


@dataclass(frozen=True)
class LabelledVideos:
    """The videos of a split and what they show."""

    videos: list[Video]
    target_VK: Tensor  # several classes of a video share its mass

    def __len__(self) -> int:
        return len(self.videos)

    def only(self, videos: set[str]) -> LabelledVideos:
        kept = [n for n, video in enumerate(self.videos) if video.id in videos]
        return LabelledVideos([self.videos[n] for n in kept], self.target_VK[kept])


def label_videos(
    videos: Sequence[Video], labels: Labels
) -> tuple[list[str], LabelledVideos, LabelledVideos]:
    """The classes of split train, sorted, and the videos of splits train and val.

    Raises: LabelError if a split has no videos, train has fewer than two classes, or val has a
        class that train lacks.
    """
    split = {
        name: [video for video in videos if labels.split_of.get(video.id) == name]
        for name in ("train", "val")
    }
    for name, found in split.items():
        if not found:
            listed = sum(s == name for s in labels.split_of.values())
            raise LabelError(
                f"{labels.path}: none of its {listed} videos of split {name} was found among "
                f"{len(videos)} videos; finetuning trains on train and chooses the model on val. "
                "Ids are paths relative to the folder, without suffix"
            )
    classes = sorted({name for v in split["train"] for name in labels.classes_of[v.id]})
    if len(classes) < 2:
        raise LabelError(
            f"{labels.path}: the training videos have one class, {classes[0]!r}; 2 are needed"
        )
    for video in split["val"]:
        for name in labels.classes_of[video.id]:
            if name not in classes:
                raise LabelError(
                    f"{labels.path}: class {name!r} of {video.id!r} (val) is not among the "
                    f"{len(classes)} classes of split train; label a training video with it, or "
                    "leave it out"
                )
    train, val = (
        LabelledVideos(found, _targets([labels.classes_of[v.id] for v in found], classes))
        for found in split.values()
    )
    return classes, train, val


def _targets(names: Sequence[Sequence[str]], classes: Sequence[str]) -> Tensor:
    number = {name: n for n, name in enumerate(classes)}
    target_VK = torch.zeros(len(names), len(classes))
    for video, of_video in enumerate(names):
        for name in of_video:
            target_VK[video, number[name]] = 1 / len(of_video)
    return target_VK


def cosine_learning_rate(first: float, step: int, steps: int) -> float:
    """From `first` at step 0 to 0 at step `steps`: half of it in the middle."""
    return first * 0.5 * (1 + math.cos(math.pi * step / steps))


def loss_of_videos(
    logits_VSK: Tensor, target_VK: Tensor, *, consensus: bool, label_smoothing: float = 0.0
) -> Tensor:
    """(V,) cross-entropy of each video, in nats.

    Args:
        consensus: of the mean logits of its segments; else the mean of the segments' own.
    """
    rows_VSK = logits_VSK.mean(dim=1, keepdim=True) if consensus else logits_VSK
    target_VSK = target_VK[:, None].expand_as(rows_VSK)
    loss_N = functional.cross_entropy(
        rows_VSK.flatten(0, 1),
        target_VSK.flatten(0, 1),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return loss_N.view(rows_VSK.shape[:2]).mean(dim=1)


def fit_linear_classifier(features_ND: Tensor, target_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of a multinomial logistic regression.

    Minimises the mean cross-entropy plus HEAD_DECAY / 2 times the squared weights, by L-BFGS, on
    features centred and divided by one number, their standard deviation; the result takes them as
    they are. One number for all: features that hardly vary must not get weights that blow up when
    the network begins to move.
    """
    mean_D = features_ND.mean(dim=0)
    scale = 1 / (features_ND - mean_D).square().mean().sqrt().clamp(min=1e-6)
    standard_ND = (features_ND - mean_D) * scale
    weight_KD = features_ND.new_zeros(target_NK.shape[1], features_ND.shape[1], requires_grad=True)
    bias_K = features_ND.new_zeros(target_NK.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KD, bias_K], max_iter=HEAD_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits_NK = functional.linear(standard_ND, weight_KD, bias_K)
        loss = functional.cross_entropy(logits_NK, target_NK)
        loss = loss + HEAD_DECAY / 2 * weight_KD.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    weight_KD = weight_KD.detach() * scale
    return weight_KD, bias_K.detach() - weight_KD @ mean_D


class TrainingRows(Dataset[tuple[Tensor, Tensor]]):
    """A random row of each segment of a video, cropped at random; asked for by (epoch, number).

    What is drawn depends on seed, epoch and video alone, not on processes or order.
    """

    def __init__(self, train: LabelledVideos, cache: PixelCache, spec: BackboneSpec,
                 config: FinetuneConfig) -> None:  # fmt: skip
        self._train, self._cache, self._config = train, cache, config
        self._preprocessing = spec.preprocessing

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, number = key
        rng = np.random.default_rng([self._config.seed, epoch, number])
        rows = self._cache.rows(self._train.videos[number])
        chosen = segment_rows(len(rows), self._config.segments, rng)
        side = rows.shape[-2]
        pictures = [
            cut(rows[row], random_crop(side, self._config.crop_area, rng), self._preprocessing)
            for row in chosen
        ]
        return torch.from_numpy(np.stack(pictures)), self._train.target_VK[number]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """This process's share of the shuffled batches of `epoch`, which is set before each."""

    def __init__(self, videos: int, batch_videos: int, seed: int, fabric: Fabric) -> None:
        self._videos, self._batch_videos, self._seed = videos, batch_videos, seed
        self._rank, self._processes = fabric.global_rank, fabric.world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self._videos // self._batch_videos)

    def batches(self) -> list[np.ndarray]:
        """Nearly equal batches of at most `batch_videos`; a function of seed and epoch alone."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._videos)
        return np.array_split(order, len(self))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches():
            yield [(self.epoch, int(number)) for number in batch[self._rank :: self._processes]]


def finetune(
    videos: Sequence[Video],
    labels: Labels,
    spec: BackboneSpec,
    out: Path,
    *,
    weights: str = "published",
    config: FinetuneConfig | None = None,
    options: FinetuneOptions | None = None,
) -> FinetuneResult:
    """Finetune a backbone into the folder `out`; one that is finished is left as it is.

    A video that cannot be decoded is written to out/failures.jsonl and passed over.

    Raises: LabelError, BackboneError, PixelError; FinetuneError if `out` holds another
        finetuning, or the loss is not finite.
    """
    started = time.monotonic()
    config, options = config or FinetuneConfig(), options or FinetuneOptions()
    classes, train, val = label_videos(videos, labels)
    source = load_network(spec, weights)
    classifier = replace_classifier(source.network, spec, len(classes))
    about = {
        "backbone": spec.name,
        "input_size_px": spec.size_px,
        "classes": classes,
        "classifier": classifier,
        "source_weights": source.weights,
        "source_sha256": source.sha256,
        "labels_sha256": labels.sha256,
        "videos_sha256": _hash_ids([*train.videos, *val.videos]),
        "config": asdict(config),
        "precision": options.precision,
        "max_rows": _rows_that_fit(spec, train, val, config, options),
        "versions": library_versions(),
    }
    fabric = _fabric(options)
    if config.batch_videos < 2 * fabric.world_size or len(train) < fabric.world_size:
        raise FinetuneError(
            f"--batch {config.batch_videos} and {len(train)} training videos are too few for "
            f"{fabric.world_size} processes; each needs 2"
        )
    folder = FinetuneFolder(out)
    if fabric.is_global_zero:
        folder.open(about, resume=options.resume)
    fabric.barrier()
    module = FeatureExtractor(source.network, spec)
    finetuner = _Finetuner(module, spec, about, folder, config, options, fabric)
    folder.require_metrics_until(finetuner.progress.epoch)
    failures = 0
    if not finetuner.progress.finished:
        failures = finetuner.prepare(train, val)
        finetuner.run()
    finetuner.remove_cache()
    return _result(folder, about, failures, time.monotonic() - started)


def _hash_ids(videos: Sequence[Video]) -> str:
    return hashlib.sha256(json.dumps([video.id for video in videos]).encode()).hexdigest()


def _rows_that_fit(
    spec: BackboneSpec,
    train: LabelledVideos,
    val: LabelledVideos,
    config: FinetuneConfig,
    options: FinetuneOptions,
) -> int:
    """How many rows of every video the cache may hold.

    Raises: FinetuneError if they are fewer than the segments.
    """
    shown = spec.preprocessing
    row_bytes = len(train) * training_input(shown).row_bytes + len(val) * shown.row_bytes
    rows = options.cache_bytes // row_bytes
    if rows < config.segments:
        needed = math.ceil(config.segments * row_bytes / (1 << 30))
        raise FinetuneError(
            f"{config.segments} rows of {len(train)} + {len(val)} videos need {needed} GiB on "
            f"disk; raise --cache-gb (now {options.cache_bytes / (1 << 30):g}) or lower --segments"
        )
    return rows


def _result(
    folder: FinetuneFolder, about: dict[str, Any], failures: int, seconds: float
) -> FinetuneResult:
    lines = {line["epoch"]: line for line in folder.read_metrics()}
    best = max(lines.values(), key=lambda line: line["chosen_by"])
    return FinetuneResult(
        folder.best, about, best["epoch"], lines[0], best, failures, round(seconds, 1)
    )


def _fabric(options: FinetuneOptions) -> Fabric:
    """One process on one device, or those that torchrun started."""
    kind, _, number = options.device.partition(":")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    patient = timedelta(days=2)  # one process may decode long after the others
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)] if number else local,
            num_nodes=processes // local,
            strategy=DDPStrategy(timeout=patient) if processes > 1 else "auto",
            precision=PRECISIONS[options.precision],  # type: ignore[arg-type]
        )
        fabric.launch()
        return fabric
    except (RuntimeError, ValueError) as error:
        raise FinetuneError(f"--device {options.device}: {str(error).splitlines()[0]}") from error


class _Finetuner:
    """The state of one call of `finetune`."""

    def __init__(
        self,
        module: FeatureExtractor,
        spec: BackboneSpec,
        about: dict[str, Any],
        folder: FinetuneFolder,
        config: FinetuneConfig,
        options: FinetuneOptions,
        fabric: Fabric,
    ) -> None:
        self.spec, self.about, self.folder = spec, about, folder
        self.config, self.options, self.fabric = config, options, fabric
        self.consensus = config.consensus
        if self.consensus is None:
            self.consensus = architecture_of(spec.name).segment_consensus
        self.network = module.network
        self.raw = module.to(fabric.device).channels_last()
        self.optimizer = torch.optim.SGD(
            self.raw.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.progress = folder.load_last(self.network, self.optimizer)

    # ------------------------------------------------------------------------------------ pixels

    def prepare(self, train: LabelledVideos, val: LabelledVideos) -> int:
        """Decode all videos that are not cached; keep those that could be. Returns failures.

        Raises: FinetuneError if none is left of a split.
        """
        shown, rows = self.spec.preprocessing, self.about["max_rows"]
        folder = self.options.cache or self.folder.path / PIXELS
        make = functools.partial(
            PixelCache, folder, fps=self.config.fps, decode=self.options.decode
        )
        self.train_cache = make(preprocessing=training_input(shown), max_rows=rows)
        self.val_cache = make(preprocessing=shown, max_rows=min(rows, VALIDATION_ROWS))
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        with self._bar(len(train) + len(val), "decode", "video") as bar:
            for part, cache in ((train, self.train_cache), (val, self.val_cache)):
                mine = part.videos[rank::processes]
                cache.fill(
                    mine,
                    workers=self.options.worker_count(),
                    limits=self.options.limits,
                    on_done=functools.partial(self._decoded, {v.id: v for v in mine}, bar),
                )
        self.fabric.barrier()
        cached = {
            video.id
            for part, cache in ((train, self.train_cache), (val, self.val_cache))
            for video in part.videos
            if video in cache
        }
        self.train, self.val = train.only(cached), val.only(cached)
        if not self.train or not self.val:
            raise FinetuneError(
                f"{self.folder.path}: of {len(train)} training and {len(val)} validation videos, "
                f"{len(self.train)} and {len(self.val)} could be decoded; failures.jsonl says why"
            )
        return len(train) + len(val) - len(cached)

    def _decoded(self, videos: dict[str, Video], bar: tqdm[Any], failed: Failed | None) -> None:
        bar.update(self.fabric.world_size)
        if failed is not None:
            bar.write(f"failed: {failed.error}", file=sys.stderr)
            append_failure(
                self.folder.path,
                failed.video_id,
                videos[failed.video_id].path,
                stage=failed.stage,
                error=failed.error,
                attempts=failed.attempts,
            )

    def _bar(self, total: int, what: str, unit: str, *, done: int = 0) -> tqdm[Any]:
        return tqdm(
            disable=not self.fabric.is_global_zero,
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
        )

    # ---------------------------------------------------------------------------------- training

    def run(self) -> None:
        """The classifier on frozen features, then the epochs; one checkpoint after each."""
        if self.fabric.is_global_zero:
            self.folder.keep_metrics_until(self.progress.epoch)
            if self.progress.epoch < 0:
                self._fit_classifier()
        self.module, self.wrapped_optimizer = self.fabric.setup(self.raw, self.optimizer)
        if self.progress.epoch < 0:
            self._finish_epoch(0, {})
        batches = EpochBatches(
            len(self.train), self.config.batch_videos, self.config.seed, self.fabric
        )
        loader: DataLoader[Any] = DataLoader(
            TrainingRows(self.train, self.train_cache, self.spec, self.config),
            batch_sampler=batches,
            num_workers=self._cropping_processes(),
            pin_memory=self.fabric.device.type == "cuda",
        )
        first, last = self.progress.epoch + 1, self.config.epochs
        steps = len(batches)
        with self._bar(steps * last, str(self.spec), "step", done=steps * (first - 1)) as bar:
            for epoch in range(first, last + 1):
                batches.epoch = epoch
                self._finish_epoch(epoch, self._train_epoch(epoch, batches, loader, bar))

    def remove_cache(self) -> None:
        """Remove the pixels that lie in the output, also those that a kill at the end has left."""
        if self.options.cache is None and self.fabric.is_global_zero:
            shutil.rmtree(self.folder.path / PIXELS, ignore_errors=True)

    def _cropping_processes(self) -> int:
        """None on a CPU: the network takes its cores, and a process of its own costs memory."""
        return 0 if self.fabric.device.type == "cpu" else self.options.worker_count()

    def _train_epoch(
        self, epoch: int, batches: EpochBatches, loader: DataLoader[Any], bar: tqdm[Any]
    ) -> dict[str, float]:
        start = time.monotonic()
        self._train_mode(epoch)
        sums, rows = torch.zeros(2, dtype=torch.float64), 0
        for step, ((pixels, target_VK), of_all) in enumerate(
            zip(loader, batches.batches(), strict=True)
        ):
            done = (epoch - 1) * len(batches) + step
            rate = cosine_learning_rate(
                self.config.learning_rate, done, len(batches) * self.config.epochs
            )
            sums += self._step(pixels, target_VK, len(of_all), rate, f"epoch {epoch}, step {step}")
            rows += len(of_all) * self.config.segments
            bar.set_postfix_str(
                f"loss {sums[0] / (step + 1):.3f}, accuracy {sums[1] / (step + 1):.3f}",
                refresh=False,
            )
            bar.update()
        loss, accuracy = self._sum_over_processes(sums / len(batches)).tolist()
        seconds = time.monotonic() - start
        return {
            "train_loss": loss,
            "train_frame_accuracy": accuracy,
            "train_seconds": round(seconds, 2),
            "rows_per_second": round(rows / seconds, 1),
        }

    def _train_mode(self, epoch: int) -> None:
        """Normalisation statistics stay those of the source weights: batches hold a few rows of a
        few videos. Dropout is drawn anew each epoch, so that a resumed run draws the same."""
        seeds = np.random.SeedSequence([self.config.seed, epoch, self.fabric.global_rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.raw.train()
        for layer in self.raw.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def _step(
        self, pixels: Tensor, target_VK: Tensor, videos: int, rate: float, where: str
    ) -> Tensor:
        """One step of SGD on a batch of `videos`, of which this process holds some.

        Returns: this process's share of the batch's mean loss and frame accuracy.
        Raises: FinetuneError if the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        target_VK = target_VK.to(self.fabric.device, non_blocking=True)
        rows = pixels.flatten(0, 1).to(self.fabric.device, non_blocking=True)
        logits_VSK = self.module(rows).float().view(*pixels.shape[:2], -1)
        loss_V = loss_of_videos(
            logits_VSK,
            target_VK,
            consensus=bool(self.consensus),
            label_smoothing=self.config.label_smoothing,
        )
        loss = loss_V.sum() / videos
        if not math.isfinite(loss.item()):
            raise FinetuneError(
                f"{self.folder.path}: the loss is {loss.item()} at {where}; stopped, and the state "
                "after the epoch before is kept. Start again into another --out with a lower --lr "
                "or --precision fp32"
            )
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over processes; the shares are to be summed.
        self.fabric.backward(loss * self.fabric.world_size)
        self.fabric.clip_gradients(
            self.module,
            self.wrapped_optimizer,
            max_norm=self.config.clip_norm,
            error_if_nonfinite=False,
        )
        self.wrapped_optimizer.step()
        right_V = _is_right(logits_VSK.detach(), target_VK[:, None]).double().mean(dim=1)
        return torch.stack([loss.detach().double(), right_V.sum() / videos]).cpu()

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        reduced = self.fabric.all_reduce(values.to(self.fabric.device).float(), reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced.cpu()

    def _finish_epoch(self, epoch: int, line: dict[str, float]) -> None:
        """Validate; the first process writes metrics and checkpoints."""
        measured = self._validate()
        key = "val_video_accuracy" if self.consensus else "val_frame_accuracy"
        progress = Progress(epoch, self.progress.best_epoch, self.progress.best_accuracy)
        progress.finished = epoch == self.config.epochs
        better = measured[key] > progress.best_accuracy
        if better:
            progress.best_epoch, progress.best_accuracy = epoch, measured[key]
        self.progress = progress
        if self.fabric.is_global_zero:
            if better:
                chosen = {"epoch": epoch, **measured}
                self.folder.save_best(self.network, {**self.about, "chosen": chosen})
            rounded = {name: round(value, 6) for name, value in {**line, **measured}.items()}
            self.folder.append_metrics({"epoch": epoch, **rounded, "chosen_by": rounded[key]})
            self.folder.save_last(self.network, self.optimizer, progress)
        self.fabric.barrier()

    # -------------------------------------------------------------------------------- evaluation

    def _forward(self, rows: np.ndarray) -> Tensor:
        """(R, …) uint8 → (R, D or K) float32 on the CPU, in pieces that fit."""
        size = 64 if rows.ndim == 4 else 2
        pieces = [
            self.raw(torch.tensor(rows[first : first + size]).to(self.fabric.device))
            for first in range(0, len(rows), size)
        ]
        return torch.cat(pieces).float().cpu()

    def _fit_classifier(self) -> None:
        """Fit the classifier to the features that the frozen network gives now."""
        per_video = max(1, min(VALIDATION_ROWS, HEAD_ROWS // len(self.train)))
        crop = published_crop(self.train_cache.preprocessing.crop_px, self.spec.preprocessing)
        features, targets = [], []
        self.raw.eval()
        with (
            torch.inference_mode(),
            self.fabric.autocast(),
            without_classifier(self.network, self.spec),
            self._bar(len(self.train), "frozen features", "video") as bar,
        ):
            for video, target_K in zip(self.train.videos, self.train.target_VK, strict=True):
                rows = self.train_cache.rows(video)
                chosen = evenly_spaced(len(rows), per_video)
                shown = np.stack([cut(rows[row], crop, self.spec.preprocessing) for row in chosen])
                features.append(self._forward(shown))
                targets.append(target_K.expand(len(chosen), -1))
                bar.update()
        # Cloned outside of inference mode: its tensors take part in no gradient.
        features_ND = torch.cat(features).clone().to(self.fabric.device)
        weight_KD, bias_K = fit_linear_classifier(
            features_ND, torch.cat(targets).to(self.fabric.device)
        )
        layer = self.network.get_submodule(self.about["classifier"])
        with torch.no_grad():
            layer.get_parameter("weight").copy_(weight_KD.view_as(layer.get_parameter("weight")))
            layer.get_parameter("bias").copy_(bias_K)

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Mean loss and accuracy of rows, and accuracy of videos by their mean softmax scores."""
        self.raw.eval()
        sums = torch.zeros(5)
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        for number in range(rank, len(self.val), processes):
            target_K = self.val.target_VK[number]
            with self.fabric.autocast():
                logits_NK = self._forward(self.val_cache.rows(self.val.videos[number]))
            target_NK = target_K.expand_as(logits_NK)
            loss = functional.cross_entropy(logits_NK, target_NK, reduction="sum")
            scores_K = logits_NK.softmax(dim=1).mean(dim=0)
            rows_right = _is_right(logits_NK, target_NK).sum()
            count = torch.tensor(float(len(logits_NK)))
            sums += torch.stack(
                [loss, rows_right, _is_right(scores_K, target_K).float(), count, torch.tensor(1.0)]
            )
        loss, rows_right, videos_right, rows, videos = self._sum_over_processes(sums).tolist()
        return {
            "val_loss": loss / rows,
            "val_frame_accuracy": rows_right / rows,
            "val_video_accuracy": videos_right / videos,
        }


def _is_right(scores: Tensor, target: Tensor) -> Tensor:
    """(…,) bool: whether the best class of (…, K) scores is one of the video's."""
    target = target.expand_as(scores)
    return target.gather(-1, scores.argmax(dim=-1, keepdim=True)).squeeze(-1) > 0
