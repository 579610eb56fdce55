"""Training: every method by one loop, one checkpoint per epoch, the model chosen on split val."""

from __future__ import annotations

import functools
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

from extract.store import StoreError
from liteeval_train.baselines.head import load_head
from liteeval_train.baselines.uniform import Uniform
from liteeval_train.config import TrainConfig
from liteeval_train.data import (
    CACHE_BYTES,
    Batch,
    DataError,
    EpochSampler,
    Labels,
    StorePair,
    TrainingVideos,
    VideoSet,
    collate_training,
    open_pair,
    read_labels,
    require_labelled,
)
from liteeval_train.evaluate import evaluate_method
from liteeval_train.loop import CapturedLoop, capture_on_gpu
from liteeval_train.method import Method
from liteeval_train.methods import build_method
from liteeval_train.model import LiteEval
from liteeval_train.run import Progress, RunError, RunFolder, RunInfo

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


CHECK_STEPS = 50  # between looks at the loss: each waits for the device


@dataclass(frozen=True)
class FitOptions:
    """Where and how to train; of these, precision alone changes the numbers."""

    device: str = "auto"
    precision: str = "32-true"
    workers: int = 0
    resume: bool = False
    ignore_unlabelled: bool = False
    tensorboard: bool = False  # metrics into RUN/tensorboard too
    capture: bool = False  # LiteEval's loop as CUDA graphs, see loop.py


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

    Nothing is written before data and options have proved to fit together.
    Raises: RunError if `out` holds a run (without `resume`) or another run than this one (with
    it); DataError, StoreError for data that does not fit together.
    """
    options = options or FitOptions()
    pair, known = open_pair(coarse, fine), read_labels(labels)
    if not options.ignore_unlabelled:
        require_labelled(pair, known)
    trainer = _Trainer(config, pair, known, options, _fabric(options))
    folder = RunFolder(out)
    if trainer.fabric.is_global_zero:
        _open_run(folder, trainer.info, resume=options.resume)
    trainer.fabric.barrier()
    progress = folder.read_progress()
    if progress is None or not progress.finished:
        if config.head:
            trainer.keep(folder)
        else:
            trainer.run(folder)
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
    for split, there in before.splits.items():
        if there != now.splits[split]:
            counts = f"{there.videos} videos of it and hold {now.splits[split].videos}"
            yield f"split {split}", f"the stores held {counts}, not the same ones"
    if before.precision not in (None, now.precision):
        yield "precision", f"was {before.precision}, is {now.precision}"


class _StepLog:
    """Figures of the steps of an epoch; on the device until they are looked at."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.waiting: list[dict[str, Tensor]] = []
        self.columns: dict[str, Tensor] = {}  # (S,) each, of the steps looked at

    def add(self, figures: dict[str, Tensor]) -> None:
        self.waiting.append(figures)

    def look(self) -> dict[str, Tensor]:
        """(S,) each figure of the steps added since the last look, the mean over processes."""
        new = {name: self._gather(name) for name in self.waiting[0]}
        self.waiting.clear()
        self.columns = {
            name: torch.cat([self.columns[name], column]) if self.columns else column
            for name, column in new.items()
        }
        return new

    def _gather(self, name: str) -> Tensor:
        column = torch.stack([figures[name] for figures in self.waiting])
        reduced = self.fabric.all_reduce(column, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return reduced.cpu()

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(column) for column in [*self.columns.values()][:1])


class _Trainer:
    """The state of one call of fit."""

    def __init__(
        self,
        config: TrainConfig,
        pair: StorePair,
        labels: Labels,
        options: FitOptions,
        fabric: Fabric,
    ) -> None:
        """Check and open all that is needed but the run folder, which is left alone.

        Raises: RunError, DataError
        """
        self.config, self.options, self.fabric = config, options, fabric
        if config.batch_videos < 2 * fabric.world_size:
            raise RunError(
                f"batch_videos {config.batch_videos} is too small for {fabric.world_size} "
                "processes: each needs at least 2"
            )
        if options.capture:
            _require_capturable(config, fabric)
        self.open_charts = _summary_writer() if options.tensorboard else None
        self.charts: SummaryWriter | None = None
        classes = _training_classes(labels, pair)
        torch.manual_seed(config.seed)
        self.method: Method = build_method(
            config,
            coarse_dim=pair.coarse.identity.feature_dim,
            fine_dim=pair.fine.identity.feature_dim,
            classes=len(classes),
        )
        readers = max(1, options.workers) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.train_set, self.val_set = (
            VideoSet(
                pair,
                labels,
                split,
                classes=classes,
                max_frames=self.method.max_frames,
                cache_bytes=CACHE_BYTES // (readers if split == "train" else 1),
            )
            for split in ("train", "val")
        )
        self.info = RunInfo.of(
            config,
            (self.train_set, self.val_set),
            precision=options.precision,
            device=fabric.device.type,
        )
        if config.head:
            assert isinstance(self.method, Uniform), "the configuration refuses other methods"
            head = self.method.fine.classifier
            load_head(head, Path(config.head), fine=self.info.fine, classes=classes)
        self.progress = Progress()
        self.shown: dict[str, float] = {}  # behind the bar

    def run(self, folder: RunFolder) -> None:
        """Train into the folder, from its checkpoint on if it has one."""
        self.folder = folder
        self._tell_missing()
        self._set_up()
        epochs = range(self.progress.epoch, self.config.epochs)
        steps = len(self.sampler)
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

    def keep(self, folder: RunFolder) -> None:
        """Validate and save the method as it is: with a backbone's own head nothing is trained."""
        self.folder = folder
        self._tell_missing()
        self._set_up()
        self.progress.epoch, self.progress.finished = 1, True
        if self.fabric.is_global_zero:
            self._finish_epoch({"epoch": 1}, tqdm(disable=True))
        self.fabric.barrier()

    def _tell_missing(self) -> None:
        for videos in (self.train_set, self.val_set):
            if videos.missing and self.fabric.is_global_zero:
                tqdm.write(
                    f"{len(videos.missing)} labelled videos of split {videos.split} are not in "
                    f"the stores and are left out, such as {videos.missing[0]!r}",
                    file=sys.stderr,
                )

    def _set_up(self) -> None:
        """Optimizer, checkpoint, loader and, with several processes, what joins them."""
        self.method.to(self.fabric.device)
        if self.options.capture:
            assert isinstance(self.method, LiteEval), "other methods are refused"
            self.method.captured = CapturedLoop(
                capture_on_gpu, steps=self.train_set.longest, videos=self.config.batch_videos
            )
        self.optimizer = torch.optim.Adam(
            self.method.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            # Fabric cannot clip what a fused optimizer unscales by itself.
            fused=self.fabric.device.type == "cuda" and self.options.precision != "16-mixed",
        )
        if self.folder.last.exists():
            self.progress, precision = self.folder.load_last(self.method, self.optimizer)
            self.fabric.strategy.precision.load_state_dict(precision)
        if self.fabric.is_global_zero:
            self.folder.keep_metrics_until(self.progress.epoch)
            if self.open_charts is not None:
                # A log that goes on after the epochs done; later ones are hidden.
                self.charts = self.open_charts(
                    str(self.folder.tensorboard), purge_step=self.progress.epoch + 1
                )
        self.sampler = EpochSampler(
            len(self.train_set),
            batch_videos=self.config.batch_videos,
            seed=self.config.seed,
            rank=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )
        self.loader: DataLoader[Batch | DataError | StoreError] = DataLoader(
            TrainingVideos(self.train_set, seed=self.config.seed),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=functools.partial(collate_training, classes=len(self.info.classes)),
            num_workers=self.options.workers,
            persistent_workers=self.options.workers > 0,
            # A thread that pins memory for workers would break a capture.
            pin_memory=self.fabric.device.type == "cuda"
            and not (self.options.capture and self.options.workers),
        )
        self.module, self.wrapped_optimizer = self.fabric.setup(self.method, self.optimizer)

    def _train_epoch(self, epoch: int, steps: int, bar: tqdm) -> None:
        start = time.perf_counter()
        self.method.train()
        log = _StepLog(self.fabric)
        self.sampler.epoch = epoch
        for number, (batch, all_videos) in enumerate(
            zip(self.loader, self.sampler.batches(), strict=True)
        ):
            if isinstance(batch, Exception):
                raise batch
            self.method.step_of_epoch = number
            progress = (epoch * steps + number) / (steps * self.config.epochs)
            batch = batch.to(self.fabric.device)
            share = self._share_of_batch(batch, all_videos)
            log.add(self._step(batch, progress, share))
            bar.update()
            if len(log) % CHECK_STEPS == 0 or len(log) == steps:
                self._look(log, epoch, bar)
        self._require_finite_weights(epoch)
        del log.columns["gradient_norm"]
        means = {name: float(column.double().mean()) for name, column in log.columns.items()}
        seconds = time.perf_counter() - start
        self.progress.epoch, self.progress.step = epoch + 1, (epoch + 1) * steps
        self.progress.finished = epoch + 1 == self.config.epochs
        if self.fabric.is_global_zero:
            self._finish_epoch({"epoch": epoch + 1, **means, "train_seconds": seconds}, bar)
        self.fabric.barrier()

    def _finish_epoch(self, line: dict[str, float], bar: tqdm) -> None:
        """Validate, write metrics and checkpoints; the first process alone does."""
        line |= self._validate(self.progress.epoch)
        self.folder.append_metrics(line)
        if self.charts is not None:
            for name, value in line.items():
                self.charts.add_scalar(name, value, self.progress.epoch)
            self.charts.flush()
        self.folder.save_last(
            self.method,
            self.optimizer,
            self.progress,
            precision=self.fabric.strategy.precision.state_dict(),
        )
        self._show(bar, line)

    def _share_of_batch(self, batch: Batch, videos: np.ndarray) -> float:
        """What scales this process's mean loss so that DDP's mean over processes is the batch's."""
        return len(batch.samples) * self.fabric.world_size / len(videos)

    def _step(self, batch: Batch, progress: float, share: float) -> dict[str, Tensor]:
        step = self.module(batch, progress=progress)
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(step.loss * share)
        gradient_norm = self.fabric.clip_gradients(
            self.module,
            self.wrapped_optimizer,
            max_norm=self.config.clip_norm,
            error_if_nonfinite=False,
        )
        assert gradient_norm is not None
        self.wrapped_optimizer.step()
        parts = {"loss": step.loss.detach(), **step.parts}
        scaled = {name: value * share for name, value in parts.items()}
        return {**scaled, "gradient_norm": gradient_norm.detach()}

    def _look(self, log: _StepLog, epoch: int, bar: tqdm) -> None:
        """Show how training goes, and stop it where it has gone wrong.

        Raises: RunError if a loss or a gradient is not finite. In 16-mixed gradients may be so:
        the scaler leaves such a step out.
        """
        first = len(log) - len(log.waiting)
        new = log.look()
        watched = {"loss": "loss", "gradient_norm": "norm of the gradient"}
        if self.options.precision == "16-mixed":
            del watched["gradient_norm"]
        bad_S = ~torch.stack([new[name].isfinite() for name in watched]).all(dim=0)
        if bad_S.any():
            step = int(bad_S.nonzero()[0, 0])
            name = next(name for name in watched if not new[name][step].isfinite())
            raise self._diverged(
                f"the {watched[name]} is {new[name][step].item()} at step {first + step + 1} of "
                f"epoch {epoch + 1}",
                epoch,
            )
        self._show(bar, {name: float(column.mean()) for name, column in new.items()})

    def _show(self, bar: tqdm, figures: dict[str, float]) -> None:
        """Put figures behind the bar, beside those shown before."""
        names = ("loss", "fine_share", "temperature", "val_map")
        self.shown |= {name: figures[name] for name in names if name in figures}
        text = ", ".join(f"{name} {self.shown[name]:.3f}" for name in names if name in self.shown)
        bar.set_postfix_str(text, refresh=False)

    def _require_finite_weights(self, epoch: int) -> None:
        """Raises: RunError before anything of the epoch is chosen or saved."""
        tensors = self.method.state_dict()
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
        if not finite.all():
            name = list(tensors)[int((~finite).nonzero()[0, 0])]
            raise self._diverged(f"{name} is not finite after epoch {epoch + 1}", epoch)

    def _diverged(self, what: str, epoch: int) -> RunError:
        kept = f"the state after epoch {epoch} is kept" if epoch else "no epoch was done before"
        return RunError(
            f"{self.folder.path}: {what}; stopped, {kept}. Train again into another --out with a "
            "lower learning_rate or precision 32-true"
        )

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


def _require_capturable(config: TrainConfig, fabric: Fabric) -> None:
    """Raises: RunError where there is no loop to capture, or no GPU, or more than one process."""
    if "liteeval" not in config.method:
        raise RunError(f"--capture: {config.method} has no gated loop to capture; leave it out")
    if fabric.device.type != "cuda":
        raise RunError(f"--capture: needs a GPU, this is {fabric.device}; leave it out")
    if fabric.world_size > 1:
        raise RunError("--capture: is for one process; leave it out under torchrun")


def _summary_writer() -> type[SummaryWriter]:
    """TensorBoard's writer.

    Raises: RunError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            f"--tensorboard: {error}; pip install 'liteeval[tensorboard]', or leave it out: "
            "metrics.jsonl has the same numbers"
        ) from error
    return SummaryWriter


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
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    if options.precision == "16-mixed" and fabric.device.type == "cpu":
        raise RunError("--precision 16-mixed: a CPU cannot; use bf16-mixed or 32-true")
    return fabric
