"""Predictions on raw video that spend only what the method asks for.

Decode processes make the coarse and the fine input of every row that the run would see, as
extraction does. The coarse network runs on all of them, the fine network on the rows that the
method reads, when it reads them, while later rows are still being decoded.

Shape letters: T rows of a video, n of them, D features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.decode import DecodeOptions
from extract.sampling import evenly_spaced, first_rows
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
from pipelines.live import LiveRun

BLOCK_ROWS = 8  # that wait for each other: enough to fill a batch, few enough to overlap decoding


@dataclass(frozen=True)
class VideoPrediction:
    """What a run says of a video, and what that cost.

    Attributes:
        top5: class and softmax score, best first; fewer where there are fewer classes.
        frames: rows that the method saw.
        fine_seconds: times of the frames read finely, in seconds of the video.
        gflops: coarse, fine and recurrent, as spent.
        gflops_all_fine: what reading every frame finely would have cost.
        seconds: wall time of decoding and resizing, of the coarse network, the fine network and
            the head, and `total` from opening the file to the prediction. Decoding overlaps with
            the rest, so the parts add up to more than the total.
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


def predict_videos(
    live: LiveRun,
    videos: Sequence[Video],
    *,
    workers: int = 1,
    budget: int | None = None,
    decode: DecodeOptions | None = None,
    limits: DecodeLimits | None = None,
) -> Iterator[VideoPrediction | VideoFailure]:
    """Predict each video as it is decoded; they come in the order in which they are done.

    With a budget a video's first frames are seen one by one, and the K-th fine one is the last:
    what `liteeval-train evaluate --budget K` does on features. Frames behind it are neither
    decoded, but for the few on their way, nor computed.

    Memory holds what decode processes are ahead, however long a video is; an agent's videos are
    held whole: at most `workers` times the run's max_frames fine inputs.

    Raises: ValueError on a budget for a method that does not advance.
    """
    method, config = live.run.method, live.run.info.config
    if budget is not None and not method.advances:
        raise ValueError(f"{config.method} takes no budget")
    options = WorkerOptions(
        inputs=live.inputs,
        fps=live.fps,
        decode=decode or DecodeOptions(),
        limits=limits or DecodeLimits(),
        max_rows=method.max_frames if budget is None else config.max_frames,
        select=evenly_spaced if budget is None else first_rows,
        block_rows=BLOCK_ROWS if budget is None else 1,
    )
    by_id = {video.id: video for video in videos}
    tasks = [DecodeTask(video.id, video.path, tuple(live.inputs)) for video in videos]
    open_videos: dict[str, _OpenVideo] = {}
    with DecodePool(max(1, min(workers, len(tasks))), options) as pool:
        for event in pool.run(tasks):
            video = open_videos.get(event.video_id)
            if isinstance(event, Started):
                if video is None or not video.spent:
                    begun = event.begun_seconds
                    video = _OpenVideo(live, by_id[event.video_id], begun, budget)
                    open_videos[event.video_id] = video
            elif isinstance(event, Rows):
                assert video is not None
                if not video.spent:
                    video.take(event.pixels)
                    if video.spent:
                        pool.stop(event.video_id)
            elif isinstance(event, Decoded):
                assert video is not None
                yield video.predict(event)
                del open_videos[event.video_id]
            elif isinstance(event, Failed):
                open_videos.pop(event.video_id, None)
                path = str(by_id[event.video_id].path)
                yield VideoFailure(event.video_id, path, event.error)


class _OpenVideo:
    """A video on its way through the method."""

    def __init__(self, live: LiveRun, video: Video, begun: float, budget: int | None) -> None:
        self.spent = False  # whether the budget of fine frames is
        self._live, self._video, self._begun, self._budget = live, video, begun, budget
        self._carried: Any = None
        self._read_again = 0
        self._scores_K = torch.empty(0)
        self._used_T: list[bool] = []
        self._seen_T: list[bool] = []
        self._coarse_TD: list[Tensor] = []  # kept for methods that need all rows first,
        self._fine_pixels_T: list[np.ndarray] = []  # and so are their fine inputs
        self._seconds = {"coarse": 0.0, "fine": 0.0, "head": 0.0}
        self._done = begun

    def take(self, pixels: Mapping[str, np.ndarray]) -> None:
        """The next rows."""
        started = time.monotonic()
        coarse_nD = self._live.coarse(pixels["coarse"]) if self._live.coarse else None
        self._seconds["coarse"] += time.monotonic() - started
        if self._live.run.method.advances:
            self._run_method(coarse_nD, pixels["fine"])
            self.spent = self._budget is not None and sum(self._used_T) >= self._budget
            return
        if coarse_nD is not None:
            self._coarse_TD.append(coarse_nD)
        self._fine_pixels_T += [row.copy() for row in pixels["fine"]]

    def _run_method(
        self,
        coarse_nD: Tensor | None,
        fine_pixels: Sequence[np.ndarray] | np.ndarray,
        pts_seconds: np.ndarray | None = None,
    ) -> None:
        live, method = self._live, self._live.run.method
        fine_before, started = live.fine.seconds, time.monotonic()
        batch = live.batch(coarse_nD, fine_pixels, pts_seconds)
        if method.advances:
            prediction, self._carried = method.advance(batch, self._carried)
        else:
            prediction = method.predict(batch)
        self._scores_K = prediction.scores_BK[0].cpu()
        self._used_T += prediction.used_N.tolist()
        self._seen_T += prediction.seen_N.tolist()
        if prediction.read_again_B is not None:
            self._read_again += int(prediction.read_again_B.sum())
        self._done = time.monotonic()
        fine = live.fine.seconds - fine_before
        self._seconds["fine"] += fine
        self._seconds["head"] += self._done - started - fine

    def predict(self, decoded: Decoded) -> VideoPrediction:
        """The prediction, all rows having come."""
        live, classes = self._live, self._live.run.info.classes
        if not live.run.method.advances:
            coarse_TD = torch.cat(self._coarse_TD) if self._coarse_TD else None
            self._run_method(coarse_TD, self._fine_pixels_T, decoded.pts_seconds)
        frames, fine_frames, rows = sum(self._seen_T), sum(self._used_T), len(decoded.pts_seconds)
        cost = live.cost(frames, fine_frames, self._read_again)
        best = self._scores_K.topk(min(5, len(classes)))
        top5 = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return VideoPrediction(
            video_id=self._video.id,
            path=str(self._video.path),
            top5=[(classes[number], score) for number, score in top5],
            frames=frames,
            fine_frames=fine_frames,
            fine_seconds=decoded.pts_seconds[np.flatnonzero(self._used_T)].tolist(),
            gflops={"coarse": cost.coarse, "fine": cost.fine, "recurrent": cost.recurrent},
            gflops_total=cost.total,
            gflops_all_fine=live.cost(rows, rows).total,
            seconds={
                "decode": decoded.busy_seconds,
                **self._seconds,
                "total": self._done - self._begun,
            },
        )
