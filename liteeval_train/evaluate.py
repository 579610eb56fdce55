"""Accuracy, cost and time of a method on a split.

Shape letters: V videos, B videos of a batch, N packed rows, T frames, K classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liteeval_train.cost import Cost, video_cost
from liteeval_train.data import (
    Batch,
    DataError,
    Sample,
    StorePair,
    VideoSet,
    collate,
    evenly_spaced,
    open_pair,
    read_labels,
)
from liteeval_train.method import Method, Prediction
from liteeval_train.metrics import AVERAGE_PRECISIONS, in_top
from liteeval_train.run import RunError, RunFolder, RunInfo, write_atomically
from liteeval_train.simulate import key_frame_shares, key_rows


@dataclass(frozen=True)
class VideoResult:
    """What was predicted for one video and what it cost."""

    video_id: str
    labels: list[str]
    predicted: str
    correct: bool
    top5: bool  # whether a label is among the five best scores
    gflops: float
    fine_frames: int
    frames: int
    rows: list[int]  # of the stores, in the order they were seen
    pts_seconds: list[float]
    used: list[int]  # 1 where the row was read finely


@dataclass(frozen=True)
class Evaluation:
    """All results of a split; `summary` has the keys that `evaluate --json` prints."""

    summary: dict[str, Any]
    videos: list[VideoResult]


@dataclass(frozen=True)
class Trace:
    """What a method did on one video."""

    sample: Sample
    scores_K: Tensor  # softmax probabilities, on the processor
    used_T: np.ndarray  # bool, rows read finely
    seen_T: np.ndarray  # bool, rows seen at all
    step_scores_TK: Tensor | None = None
    read_again: int = 0  # steps of the head on rows it had read before


def evaluate_method(
    method: Method,
    videos: VideoSet,
    *,
    classes: list[str],
    batch_videos: int,
    device: torch.device,
    name: str,
    average_precision: str = "plain",
) -> Evaluation:
    """Predict every video of a set and add up accuracy and cost."""
    traces, seconds = trace_videos(
        method, videos, classes=len(classes), batch_videos=batch_videos, device=device
    )
    summary = {"method": name, "split": videos.split, "seconds_per_video": seconds / len(traces)}
    return summarise(
        traces,
        cost_function(method, videos.pair),
        classes,
        summary,
        average_precision=average_precision,
    )


def trace_videos(
    method: Method,
    videos: VideoSet | Sequence[Sample],
    *,
    classes: int,
    batch_videos: int,
    device: torch.device,
    every_step: bool = False,
) -> tuple[list[Trace], float]:
    """What the method does on each video, sorted by id, and the seconds its head took in all."""
    method.eval()
    traces: list[Trace] = []
    seconds = 0.0
    for start in range(0, len(videos), batch_videos):
        numbers = range(start, min(start + batch_videos, len(videos)))
        batch = collate([videos[number] for number in numbers], classes=classes).to(device)
        prediction, elapsed = _timed(method, batch, every_step)
        seconds += elapsed
        traces += _unpack(batch, prediction)
    return sorted(traces, key=lambda trace: trace.sample.video_id), seconds


def _timed(method: Method, batch: Batch, every_step: bool) -> tuple[Prediction, float]:
    """The prediction and the wall seconds it took, on a GPU to the end of its work."""
    wait = torch.cuda.synchronize if batch.fine_ND.is_cuda else _no_wait
    wait()
    start = time.perf_counter()
    prediction = method.predict(batch, every_step=every_step)
    wait()
    return prediction, time.perf_counter() - start


def _no_wait() -> None:
    """A processor has done its work when the call returns."""


def _unpack(batch: Batch, prediction: Prediction) -> Iterator[Trace]:
    scores_BK = prediction.scores_BK.cpu()
    used_N, seen_N = prediction.used_N.cpu().numpy(), prediction.seen_N.cpu().numpy()
    steps_NK = prediction.step_scores_NK
    steps_NK = None if steps_NK is None else steps_NK.cpu()
    again_B = [0] * len(scores_BK)
    if prediction.read_again_B is not None:
        again_B = prediction.read_again_B.tolist()
    for video, sample in enumerate(batch.samples):
        rows = batch.packing.rows_of(video)
        steps_TK = None if steps_NK is None else steps_NK[torch.from_numpy(rows)]
        marks = used_N[rows], seen_N[rows]
        yield Trace(sample, scores_BK[video], *marks, steps_TK, again_B[video])


def cost_function(method: Method, pair: StorePair) -> Callable[[Trace], Cost]:
    """The cost of a video by what the method did on it."""
    head = method.head_flops()

    def cost(trace: Trace) -> Cost:
        frames = int(trace.seen_T.sum())
        return video_cost(
            coarse_frames=frames if method.reads_coarse else 0,
            fine_frames=int(trace.used_T.sum()),
            frames_seen=frames,
            coarse_gflops=pair.coarse.gflops_per_frame,
            fine_gflops=pair.fine.gflops_per_frame,
            head=head,
            read_again=trace.read_again,
        )

    return cost


def summarise(
    traces: Sequence[Trace],
    cost: Callable[[Trace], Cost],
    classes: list[str],
    about: dict[str, Any],
    *,
    average_precision: str = "plain",
) -> Evaluation:
    """Accuracy and cost of traces; `about` goes into the summary as it is.

    Raises: RunError if a score is not a finite number.
    """
    for trace in traces:
        if not trace.scores_K.isfinite().all():
            raise RunError(
                f"{about['method']}: the scores of {trace.sample.video_id!r} are not finite; check "
                "the stores with liteeval-extract verify. If they are sound, the model is not: "
                "train again with a lower learning_rate or precision 32-true"
            )
    costs = [cost(trace) for trace in traces]
    results = [_result(t, c, classes) for t, c in zip(traces, costs, strict=True)]
    scores_VK = torch.stack([trace.scores_K for trace in traces])
    labels_VK = torch.zeros_like(scores_VK)
    for video, trace in enumerate(traces):
        labels_VK[video, list(trace.sample.labels)] = 1
    ordered = {"method": about["method"], "split": about["split"], "videos": len(traces)}
    accuracy: dict[str, Any] = {
        "top1": float(in_top(scores_VK, labels_VK, 1).double().mean()),
        "top5": float(in_top(scores_VK, labels_VK, 5).double().mean()),
        "map": AVERAGE_PRECISIONS[average_precision](scores_VK, labels_VK),
        "average_precision": average_precision,
    }
    return Evaluation(ordered | accuracy | _usage(results, costs) | about, results)


def _result(trace: Trace, cost: Cost, classes: list[str]) -> VideoResult:
    best = trace.scores_K.topk(min(5, len(classes))).indices.tolist()
    labels = trace.sample.labels
    seen_T = trace.seen_T
    return VideoResult(
        video_id=trace.sample.video_id,
        labels=[classes[number] for number in labels],
        predicted=classes[best[0]],
        correct=best[0] in labels,
        top5=not set(best).isdisjoint(labels),
        gflops=cost.total,
        fine_frames=int(trace.used_T.sum()),
        frames=int(seen_T.sum()),
        rows=trace.sample.rows[seen_T].tolist(),
        pts_seconds=trace.sample.pts_seconds[seen_T].tolist(),
        used=trace.used_T[seen_T].astype(int).tolist(),
    )


def _usage(results: list[VideoResult], costs: list[Cost]) -> dict[str, Any]:
    total = np.array([cost.total for cost in costs])
    fine = np.array([result.fine_frames for result in results])
    parts = ("coarse", "fine", "recurrent")
    return {
        "gflops_mean": float(total.mean()),
        "gflops_std": float(total.std()),
        "gflops": {part: float(np.mean([getattr(c, part) for c in costs])) for part in parts},
        "fine_frames_mean": float(fine.mean()),
        "fine_frames_std": float(fine.std()),
        "frames_mean": float(np.mean([result.frames for result in results])),
    }


def evaluate_run(
    path: Path,
    *,
    split: str = "val",
    coarse: Path | None = None,
    fine: Path | None = None,
    labels: Path | None = None,
    device: str = "auto",
    average_precision: str = "plain",
    key_frames: Path | None = None,
) -> Evaluation:
    """Evaluate a run's chosen model on a split and write both result files into the run.

    Only what `compare` may set beside other runs is written: plain average precision on the run's
    own stores and labels, wherever they are now. With the `key_frames` of a simulation the
    summary says which share of them was read finely.

    Raises: RunError, DataError or StoreError with the way out.
    """
    run = open_trained(path, device)
    videos = open_split(
        run.info, split, max_frames=run.method.max_frames, coarse=coarse, fine=fine, labels=labels
    )
    warm_up = collate([videos[0]], classes=len(run.info.classes)).to(run.device)
    run.method.eval().predict(warm_up)  # so that the clock sees no first-call work
    evaluation = evaluate_method(
        run.method,
        videos,
        classes=run.info.classes,
        batch_videos=run.info.config.batch_videos,
        device=run.device,
        name=run.info.config.method,
        average_precision=average_precision,
    )
    if key_frames is not None:
        evaluation.summary.update(_key_shares(evaluation, key_frames, videos.pair))
    given = {"coarse": coarse, "fine": fine, "labels": labels}
    if average_precision == "plain" and _is_own_data(run.info, **given):
        _write(run.folder, split, evaluation)
    return evaluation


def _is_own_data(
    info: RunInfo,
    *,
    coarse: Path | None = None,
    fine: Path | None = None,
    labels: Path | None = None,
) -> bool:
    """Whether this is the data that the run was trained on; None stands for that.

    Stores are told by their path. Where nothing is there any more, they have moved, and another
    of the same identity (`open_split` refuses others) takes their place.
    """
    stores = ((coarse, info.coarse.path), (fine, info.fine.path))
    return all(
        path is None or str(path.resolve()) == trained or not Path(trained).exists()
        for path, trained in stores
    ) and (labels is None or read_labels(labels).sha256 == info.labels_sha256)


def _write(folder: RunFolder, split: str, evaluation: Evaluation) -> None:
    lines = [json.dumps(asdict(video)) for video in evaluation.videos]
    write_atomically(folder.evaluation_videos(split), "".join(f"{x}\n" for x in lines).encode())
    write_atomically(folder.evaluation(split), json.dumps(evaluation.summary, indent=2).encode())


def _key_shares(evaluation: Evaluation, path: Path, pair: StorePair) -> dict[str, float]:
    reads = {
        video.video_id: {row for row, used in zip(video.rows, video.used, strict=True) if used}
        for video in evaluation.videos
    }
    keys = key_rows(path)
    unknown = sorted(set(reads) - set(keys))
    if unknown:
        raise DataError(f"{path}: no key frames of {unknown[0]!r}; give those of this simulation")
    return key_frame_shares(reads, keys, {video: pair.fine.rows(video) for video in reads})


@dataclass(frozen=True)
class TrainedRun:
    """A run with its chosen model, ready to predict."""

    folder: RunFolder
    info: RunInfo
    method: Method
    device: torch.device


def open_trained(path: Path, device: str = "auto") -> TrainedRun:
    """Raises: RunError if there is no trained run."""
    folder = RunFolder(path)
    info = folder.read_info()
    method = info.build()
    folder.load_best(method)
    place = choose_device(device)
    return TrainedRun(folder, info, method.to(place).eval(), place)


def open_split(
    info: RunInfo,
    split: str,
    *,
    max_frames: int,
    coarse: Path | None = None,
    fine: Path | None = None,
    labels: Path | None = None,
    select: Callable[[int, int], np.ndarray] = evenly_spaced,
) -> VideoSet:
    """The videos of a split, from the stores and labels of a run or from others.

    Raises: RunError if a store's rows were made in another way than those trained on, or the run's
        own labels have changed since.
    """
    pair = open_pair(Path(coarse or info.coarse.path), Path(fine or info.fine.path))
    info.coarse.require_same(pair.coarse)
    info.fine.require_same(pair.fine)
    known = read_labels(Path(labels or info.labels_path))
    if labels is None and known.sha256 != info.labels_sha256:
        raise RunError(
            f"{known.path}: has changed since the run was trained on it, so a video of {split} may "
            "be one of those; put back what it was, or evaluate on the new labels with "
            f"evaluate --labels {known.path}, which prints and writes nothing into the run"
        )
    return VideoSet(
        pair,
        known,
        split,
        classes=info.classes,
        max_frames=max_frames,
        select=select,
    )


def choose_device(name: str) -> torch.device:
    """`auto` is a CUDA device where there is one, else the processor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def read_or_evaluate(path: Path, *, split: str, device: str = "auto") -> dict[str, Any]:
    """A run's summary on a split, evaluated now unless a result newer than its model exists."""
    folder = RunFolder(path)
    folder.read_info()
    return folder.read_evaluation(split) or evaluate_run(path, split=split, device=device).summary
