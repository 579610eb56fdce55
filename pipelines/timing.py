"""Seconds per video from opening the file to the prediction: the paper's Table 10.

Every run predicts the same videos one after the other, as `liteeval predict --workers 1` does, one
decode process beside the networks. The runs take turns, and whose turn is first changes. Decoding
is the same work for all but UNIFORM and overlaps with the rest.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from extract.sampling import evenly_spaced
from extract.videos import Video, find_videos
from liteeval_train.compare import align_columns
from liteeval_train.cost import FLOP_CONVENTION
from pipelines.live import LiveRun
from pipelines.predict import VideoFailure, VideoPrediction, predict_videos

PARTS = ("decode", "coarse", "fine", "head", "total")
WARM_UP_VIDEOS = 2


class TimingError(Exception):
    """Nothing can be measured, or a run did other work than it says; the message says which."""


@dataclass(frozen=True)
class Timing:
    """What a run's predictions take: means over videos, seconds as medians over videos.

    Attributes:
        seconds: by part, see PARTS; of each video the median over repeats.
    """

    run: str
    method: str
    videos: int
    frames_mean: float
    fine_frames_mean: float
    gflops_mean: float
    seconds: dict[str, float]


def pick_videos(sources: Sequence[Path], count: int) -> list[Video]:
    """At most `count` of the videos of folders, files and lists, evenly picked.

    Raises: TimingError if there are none; VideoListError
    """
    found = find_videos(sources)
    if not found:
        raise TimingError(f"no video file in {', '.join(map(str, sources))}")
    return [found[row] for row in evenly_spaced(len(found), count)]


def time_runs(
    runs: Mapping[str, LiveRun],
    videos: Sequence[Video],
    *,
    repeats: int = 3,
    on_failure: Callable[[VideoFailure], object] = lambda failure: None,
) -> list[Timing]:
    """Measure every run on every video, `repeats` times.

    Args:
        on_failure: told of each video that cannot be decoded; it is left out.

    Raises: TimingError if no video is left, or if the fine network ran on another number of frames
        than were read finely.
    """
    done: dict[str, list[list[VideoPrediction]]] = defaultdict(list)
    names = list(runs)
    videos = _decodable(runs[names[0]], videos, on_failure)  # warms up its networks
    for name in names[1:]:
        _predict_all(runs[name], videos[:WARM_UP_VIDEOS])
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            done[name].append(_predict_all(runs[name], videos))
    return [_summarise(name, runs[name], done[name]) for name in names]


def _decodable(
    live: LiveRun, videos: Sequence[Video], on_failure: Callable[[VideoFailure], object]
) -> list[Video]:
    failed = set()
    for result in predict_videos(live, videos, workers=1):
        if isinstance(result, VideoFailure):
            failed.add(result.video_id)
            on_failure(result)
    if len(failed) == len(videos):
        raise TimingError(f"none of {len(videos)} videos can be decoded; give others")
    return [video for video in videos if video.id not in failed]


def _predict_all(live: LiveRun, videos: Sequence[Video]) -> list[VideoPrediction]:
    """In order of ids."""
    before = live.fine.rows
    results = []
    for result in predict_videos(live, videos, workers=1):
        if isinstance(result, VideoFailure):
            raise TimingError(f"{result.error}; it could be decoded a moment before")
        results.append(result)
    ran, read = live.fine.rows - before, sum(result.fine_frames for result in results)
    if ran != read:
        raise TimingError(f"the fine network ran on {ran} frames, {read} were read finely")
    return sorted(results, key=lambda result: result.video_id)


def _summarise(name: str, live: LiveRun, repeats: list[list[VideoPrediction]]) -> Timing:
    by_video = list(zip(*repeats, strict=True))

    def mean(key: str) -> float:
        return statistics.mean(getattr(video[0], key) for video in by_video)

    seconds = {
        part: statistics.median(
            statistics.median(result.seconds[part] for result in video) for video in by_video
        )
        for part in PARTS
    }
    method = live.run.info.config.method
    return Timing(
        name, method, len(by_video), mean("frames"), mean("fine_frames"), mean("gflops_total"),
        seconds,
    )  # fmt: skip


def timing_rows(timings: Sequence[Timing]) -> list[list[str]]:
    """Header and a row for each run; the last two columns are ratios to the first one."""
    base = timings[0]
    header = ["run", "read finely", "GFLOPs", *(f"{part} ms" for part in PARTS)]
    return [[*header, f"time ÷ {base.run}", f"GFLOPs ÷ {base.run}"]] + [
        [
            timing.run,
            f"{timing.fine_frames_mean:.1f} of {timing.frames_mean:.1f}",
            f"{timing.gflops_mean:.2f}",
            *(f"{1000 * timing.seconds[part]:.1f}" for part in PARTS),
            f"{timing.seconds['total'] / base.seconds['total']:.2f}",
            f"{timing.gflops_mean / base.gflops_mean:.2f}",
        ]
        for timing in timings
    ]


def format_timings(timings: Sequence[Timing]) -> str:
    note = (
        f"{timings[0].videos} videos, median; {FLOP_CONVENTION}; parts overlap: the total is less "
        "than their sum"
    )
    return f"{note}\n\n{align_columns(timing_rows(timings))}"


def timings_to_dict(timings: Sequence[Timing]) -> dict[str, Any]:
    """As --json prints them."""
    return {"flop_convention": FLOP_CONVENTION, "runs": [asdict(timing) for timing in timings]}


def read_timings(path: Path) -> list[Timing]:
    """What `liteeval time --json` printed; empty if there is no such file, or none of this form."""
    try:
        return [Timing(**row) for row in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
