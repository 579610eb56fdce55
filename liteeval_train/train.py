"""Training: every method by one loop, one checkpoint per epoch, the model chosen on split val."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from liteeval_train.config import TrainConfig
from liteeval_train.data import (
    Batch,
    DataError,
    EpochSampler,
    Labels,
    StorePair,
    TrainingVideos,
    VideoSet,
    collate,
    open_pair,
    read_labels,
    require_labelled,
)
from liteeval_train.evaluate import evaluate_method
from liteeval_train.method import Method
from liteeval_train.run import Progress, RunError, RunFolder, RunInfo

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class FitOptions:
    """Where and how to train; nothing here changes the numbers."""

    device: str = "auto"
    precision: str = "32-true"
    workers: int = 0
    resume: bool = False
    ignore_unlabelled: bool = False
    tensorboard: bool = False  # metrics into RUN/tensorboard too


def fit(
    config: TrainConfig,
    *,
    coarse: Path,
    fine: Path,
    labels: Path,
    out: Path,
    options: FitOptions | None = None,
) -> RunFolder:
    """Train a method into the run folder `out`; a finished run is left as it is.

    Raises: RunError if `out` holds a run (without `resume`) or another run than this one (with
    it); DataError, StoreError for data that does not fit together.
    """
    options = options or FitOptions()
    pair, known = open_pair(coarse, fine), read_labels(labels)
    if not options.ignore_unlabelled:
        require_labelled(pair, known)
    info = RunInfo.of(config, pair, known, _training_classes(known, pair))
    fabric = _fabric(options)
    if config.batch_videos < 2 * fabric.world_size:
        raise RunError(
            f"batch_videos {config.batch_videos} is too small for {fabric.world_size} processes: "
            "each needs at least 2"
        )
    folder = RunFolder(out)
    if fabric.is_global_zero:
        _open_run(folder, info, resume=options.resume)
    fabric.barrier()
    progress = folder.read_progress()
    if progress is None or not progress.finished:
        _Trainer(info, folder, pair, known, options, fabric).run()
    return folder


def _training_classes(labels: Labels, pair: StorePair) -> list[str]:
    """The classes of the training videos that the stores hold, sorted.

    Raises: DataError if there are fewer than two.
    """
    videos = [video for video in labels.in_split("train") if video in pair.coarse]
    classes = sorted({name for video in videos for name in labels.videos[video]})
    if len(classes) < 2:
        raise DataError(
            f"{labels.path}: the {len(videos)} training videos in {pair.coarse.path} have "
            f"{len(classes)} classes, at least 2 are needed"
        )
    return classes


def _open_run(folder: RunFolder, info: RunInfo, *, resume: bool) -> None:
    if not folder.config.exists():
        folder.write_info(info)
        return
    if not resume:
        raise RunError(
            f"{folder.path}: holds a run already; go on with --resume, or choose another --out"
        )
    for name, difference in _differences(folder.read_info(), info):
        raise RunError(
            f"{folder.path}: the run there has another {name} ({difference}); resume with what it "
            "was started with, or choose another --out"
        )
    folder.remove_temporaries()


def _differences(before: RunInfo, now: RunInfo) -> Iterator[tuple[str, str]]:
    """What two runs differ in, and how."""
    for key, value in before.config.model_dump().items():
        if getattr(now.config, key) != value:
            yield "config", f"{key} was {value!r}, is {getattr(now.config, key)!r}"
    for name in ("coarse", "fine"):
        for line in getattr(before, name).differences(getattr(now, name)):
            yield name, line
    for name in ("labels_sha256", "classes"):
        if getattr(before, name) != getattr(now, name):
            yield name, f"labels at {before.labels_path} have changed"


class _Trainer:
    """The state of one call of fit."""

    def __init__(
        self,
        info: RunInfo,
        folder: RunFolder,
        pair: StorePair,
        labels: Labels,
        options: FitOptions,
        fabric: Fabric,
    ) -> None:
        self.info, self.config, self.folder, self.options = info, info.config, folder, options
        self.fabric = fabric
        torch.manual_seed(self.config.seed)
        self.method: Method = info.build()
        frames = self.method.max_frames
        self.train_set = VideoSet(pair, labels, "train", classes=info.classes, max_frames=frames)
        self.val_set = VideoSet(pair, labels, "val", classes=info.classes, max_frames=frames)
        for videos in (self.train_set, self.val_set):
            if videos.missing and self.fabric.is_global_zero:
                tqdm.write(
                    f"{len(videos.missing)} labelled videos of split {videos.split} are not in "
                    f"the stores and are left out, such as {videos.missing[0]!r}",
                    file=sys.stderr,
                )
        self.method.to(self.fabric.device)
        self.optimizer = torch.optim.Adam(
            self.method.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=self.fabric.device.type == "cuda",
        )
        self.progress = Progress()
        if folder.last.exists():
            self.progress = folder.load_last(self.method, self.optimizer)
        self.charts: SummaryWriter | None = None
        if fabric.is_global_zero:
            folder.keep_metrics_until(self.progress.epoch)
            if options.tensorboard:
                self.charts = _open_charts(folder.tensorboard, self.progress.epoch)
        self.sampler = EpochSampler(
            len(self.train_set),
            batch_videos=self.config.batch_videos,
            seed=self.config.seed,
            rank=fabric.global_rank,
            processes=fabric.world_size,
        )
        self.loader: DataLoader[Batch] = DataLoader(
            TrainingVideos(self.train_set, seed=self.config.seed),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=functools.partial(collate, classes=len(info.classes)),
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
            pin_memory=fabric.device.type == "cuda",
        )
        self.module, self.wrapped_optimizer = self.fabric.setup(self.method, self.optimizer)

    def run(self) -> None:
        epochs = range(self.progress.epoch, self.config.epochs)
        steps = math.ceil(len(self.train_set) / self.config.batch_videos)
        with tqdm(
            disable=not self.fabric.is_global_zero,
            total=steps * self.config.epochs,
            initial=steps * self.progress.epoch,
            desc=self.config.method,
            unit="step",
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
        ) as bar:
            for epoch in epochs:
                self._train_epoch(epoch, steps, bar)
        if self.charts is not None:
            self.charts.close()

    def _train_epoch(self, epoch: int, steps: int, bar: tqdm) -> None:
        start = time.perf_counter()
        self.method.train()
        logged: list[dict[str, Tensor]] = []
        self.sampler.epoch = epoch
        for number, (batch, all_videos) in enumerate(
            zip(self.loader, self.sampler.batches(), strict=True)
        ):
            progress = (epoch * steps + number) / (steps * self.config.epochs)
            batch = batch.to(self.fabric.device)
            share = self._share_of_batch(batch, all_videos)
            logged.append(self._step(batch, progress, share))
            bar.update()
        means = self._means(logged, epoch)
        seconds = time.perf_counter() - start
        self.progress.epoch, self.progress.step = epoch + 1, (epoch + 1) * steps
        self.progress.finished = epoch + 1 == self.config.epochs
        if self.fabric.is_global_zero:
            line = {"epoch": epoch + 1, **means, "train_seconds": seconds}
            self._finish_epoch(line, bar)
        self.fabric.barrier()

    def _finish_epoch(self, line: dict[str, float], bar: tqdm) -> None:
        """Validate, write metrics and checkpoints; the first process alone does."""
        line |= self._validate(self.progress.epoch)
        self.folder.append_metrics(line)
        if self.charts is not None:
            for name, value in line.items():
                self.charts.add_scalar(name, value, self.progress.epoch)
            self.charts.flush()
        self.folder.save_last(self.method, self.optimizer, self.progress)
        shown = [key for key in ("loss", "fine_share", "val_map") if key in line]
        bar.set_postfix_str(", ".join(f"{key} {line[key]:.3f}" for key in shown), refresh=False)

    def _share_of_batch(self, batch: Batch, videos: np.ndarray) -> float:
        """What scales this process's mean loss so that DDP's mean over processes is the batch's."""
        return len(batch.samples) * self.fabric.world_size / len(videos)

    def _step(self, batch: Batch, progress: float, share: float) -> dict[str, Tensor]:
        step = self.module(batch, progress=progress)
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(step.loss * share)
        self.fabric.clip_gradients(
            self.module,
            self.wrapped_optimizer,
            max_norm=self.config.clip_norm,
            error_if_nonfinite=False,
        )
        self.wrapped_optimizer.step()
        parts = {"loss": step.loss.detach(), **step.parts}
        return {name: value * share for name, value in parts.items()}

    def _means(self, logged: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
        """Means over the epoch; one transfer from the device per epoch.

        Raises: RunError if a loss is not finite; the checkpoint of the epoch before stays.
        """
        columns = {k: torch.stack([entry[k] for entry in logged]) for k in logged[0]}
        columns = {k: self._mean_over_processes(column).cpu() for k, column in columns.items()}
        bad = (~columns["loss"].isfinite()).nonzero()
        if len(bad):
            raise RunError(
                f"{self.folder.path}: the loss is {columns['loss'][bad[0, 0]].item()} at step "
                f"{int(bad[0, 0]) + 1} of epoch {epoch + 1}; stopped, and the state after epoch "
                f"{epoch} is kept. Train again into another --out with a "
                "lower learning_rate or precision 32-true"
            )
        return {name: float(column.double().mean()) for name, column in columns.items()}

    def _mean_over_processes(self, column: Tensor) -> Tensor:
        reduced = self.fabric.all_reduce(column, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def _validate(self, epoch: int) -> dict[str, float]:
        """Evaluate on val and keep the model if it is the best so far.

        Score: mAP less the price that equation 7 puts on the share of fine frames. By mAP alone
        an early epoch, whose gate still reads everything, would often win.
        """
        summary = evaluate_method(
            self.method,
            self.val_set,
            classes=self.info.classes,
            batch_videos=self.config.batch_videos,
            device=self.fabric.device,
            name=self.config.method,
        ).summary
        share = summary["fine_frames_mean"] / summary["frames_mean"]
        score = summary["map"] - self.method.usage_gap(share)
        if score > self.progress.best_score:
            self.progress.best_score, self.progress.best_epoch = score, epoch
            self.folder.save_best(self.method)
        return {
            "val_top1": summary["top1"],
            "val_map": summary["map"],
            "val_fine_share": share,
            "val_gflops": summary["gflops_mean"],
            "val_score": score,
        }


def _open_charts(path: Path, epochs_done: int) -> SummaryWriter:
    """A TensorBoard log that goes on after the epochs done; later ones are hidden.

    Raises: RunError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            f"--tensorboard: {error}; pip install 'liteeval[tensorboard]', or leave it out: "
            "metrics.jsonl has the same numbers"
        ) from error
    return SummaryWriter(str(path), purge_step=epochs_done + 1)


def _fabric(options: FitOptions) -> Fabric:
    """One process on one device, or those that torchrun started."""
    kind, _, number = options.device.partition(":")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)] if number else int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            num_nodes=processes // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            strategy="ddp" if processes > 1 else "auto",
            precision=options.precision,  # type: ignore[arg-type]
        )
        fabric.launch()
        return fabric
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
