"""Accuracy, cost and time of a method on a split.

Shape letters: V videos, B videos of a batch, N packed rows, T frames, K classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liteeval_train.cost import Cost, video_cost
from liteeval_train.data import Batch, StorePair, VideoSet, collate, open_pair, read_labels
from liteeval_train.method import Method, Prediction
from liteeval_train.metrics import in_top, mean_average_precision
from liteeval_train.run import RunFolder, RunInfo, write_atomically


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


def evaluate_method(
    method: Method,
    videos: VideoSet,
    *,
    classes: list[str],
    batch_videos: int,
    device: torch.device,
    name: str,
) -> Evaluation:
    """Predict every video of a set and add up accuracy and cost."""
    method.eval()
    cost_of = _cost_function(method, videos.pair)
    results: list[VideoResult] = []
    costs: list[Cost] = []
    scores: list[Tensor] = []
    labels: list[Tensor] = []
    seconds = 0.0
    for number, batch in enumerate(_batches(videos, method, len(classes), batch_videos, device)):
        if number == 0:
            method.predict(batch)  # warm up, so that the clock sees no first-call work
        prediction, elapsed = _timed(method.predict, batch)
        seconds += elapsed
        batch_costs = [cost_of(batch, prediction, v) for v in range(len(batch.samples))]
        results += _video_results(batch, prediction, batch_costs, classes)
        costs += batch_costs
        scores.append(prediction.scores_BK.cpu())
        labels.append(batch.labels_BK.cpu())
    summary = {"method": name, "split": videos.split, "videos": len(results)}
    summary |= _accuracy(torch.cat(scores), torch.cat(labels))
    summary |= _usage(results, costs)
    summary["seconds_per_video"] = seconds / len(results)
    return Evaluation(summary, sorted(results, key=lambda result: result.video_id))


def _batches(
    videos: VideoSet, method: Method, classes: int, batch_videos: int, device: torch.device
) -> Iterator[Batch]:
    for start in range(0, len(videos), batch_videos):
        numbers = range(start, min(start + batch_videos, len(videos)))
        yield collate([videos[number] for number in numbers], classes=classes).to(device)


def _timed(predict: Callable[[Batch], Prediction], batch: Batch) -> tuple[Prediction, float]:
    """The prediction and the wall seconds it took, on a GPU to the end of its work."""
    on_gpu = batch.fine_ND.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    prediction = predict(batch)
    if on_gpu:
        torch.cuda.synchronize()
    return prediction, time.perf_counter() - start


def _cost_function(method: Method, pair: StorePair) -> Callable[[Batch, Prediction, int], Cost]:
    head = method.head_flops()

    def cost(batch: Batch, prediction: Prediction, video: int) -> Cost:
        frames = batch.packing.lengths[video]
        used_N = prediction.used_N
        return video_cost(
            coarse_frames=frames if method.reads_coarse else 0,
            fine_frames=int(used_N[torch.from_numpy(batch.packing.rows_of(video))].sum()),
            frames_seen=frames,
            coarse_gflops=pair.coarse.gflops_per_frame,
            fine_gflops=pair.fine.gflops_per_frame,
            head=head,
        )

    return cost


def _video_results(
    batch: Batch, prediction: Prediction, costs: list[Cost], classes: list[str]
) -> Iterator[VideoResult]:
    scores_BK, labels_BK = prediction.scores_BK, batch.labels_BK
    best_B = scores_BK.argmax(dim=1).tolist()
    correct_B = in_top(scores_BK, labels_BK, 1).tolist()
    top5_B = in_top(scores_BK, labels_BK, 5).tolist()
    used_N = prediction.used_N.cpu().numpy()
    for video, sample in enumerate(batch.samples):
        used_T = used_N[batch.packing.rows_of(video)]
        yield VideoResult(
            video_id=sample.video_id,
            labels=[classes[number] for number in sample.labels],
            predicted=classes[best_B[video]],
            correct=correct_B[video],
            top5=top5_B[video],
            gflops=costs[video].total,
            fine_frames=int(used_T.sum()),
            frames=len(sample.rows),
            rows=sample.rows.tolist(),
            pts_seconds=sample.pts_seconds.tolist(),
            used=used_T.astype(int).tolist(),
        )


def _accuracy(scores_VK: Tensor, labels_VK: Tensor) -> dict[str, float]:
    return {
        "top1": float(in_top(scores_VK, labels_VK, 1).double().mean()),
        "top5": float(in_top(scores_VK, labels_VK, 5).double().mean()),
        "map": mean_average_precision(scores_VK, labels_VK),
    }


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
) -> Evaluation:
    """Evaluate a run's chosen model on a split and write both result files into the run.

    Raises: RunError, DataError or StoreError with the way out.
    """
    folder = RunFolder(path)
    info = folder.read_info()
    method = info.build()
    videos = open_split(
        info, split, max_frames=method.max_frames, coarse=coarse, fine=fine, labels=labels
    )
    folder.load_best(method)
    place = choose_device(device)
    evaluation = evaluate_method(
        method.to(place),
        videos,
        classes=info.classes,
        batch_videos=info.config.batch_videos,
        device=place,
        name=info.config.method,
    )
    lines = [json.dumps(asdict(video)) for video in evaluation.videos]
    write_atomically(folder.evaluation_videos(split), "".join(f"{x}\n" for x in lines).encode())
    write_atomically(folder.evaluation(split), json.dumps(evaluation.summary, indent=2).encode())
    return evaluation


def open_split(
    info: RunInfo,
    split: str,
    *,
    max_frames: int,
    coarse: Path | None = None,
    fine: Path | None = None,
    labels: Path | None = None,
) -> VideoSet:
    """The videos of a split, from the stores and labels of a run or from others.

    Raises: RunError if a store's rows were made in another way than those trained on.
    """
    pair = open_pair(Path(coarse or info.coarse.path), Path(fine or info.fine.path))
    info.coarse.require_same(pair.coarse)
    info.fine.require_same(pair.fine)
    return VideoSet(
        pair,
        read_labels(Path(labels or info.labels_path)),
        split,
        classes=info.classes,
        max_frames=max_frames,
    )


def choose_device(name: str) -> torch.device:
    """`auto` is a CUDA device where there is one, else the processor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def read_or_evaluate(path: Path, *, split: str, device: str = "auto") -> dict[str, Any]:
    """A run's summary on a split, evaluated now unless a result newer than its model exists."""
    folder = RunFolder(path)
    result = folder.evaluation(split)
    folder.read_info()
    if result.exists() and result.stat().st_mtime > folder.best.stat().st_mtime:
        summary: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return summary
    return evaluate_run(path, split=split, device=device).summary
