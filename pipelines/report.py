"""Filmstrips of what a run's gate did: fine frames have a green border."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from extract.store import FeatureStore
from extract.videos import find_videos
from liteeval_train.figures import Filmstrip, draw_filmstrips
from liteeval_train.run_files import RunFiles
from pipelines.thumbnails import read_thumbnails

MAX_FRAMES = 36  # of a video in the picture
# Of a line of evaluate_SPLIT_videos.jsonl, all that is shown.
SEEN_KEYS = ("rows", "used", "pts_seconds", "frames", "fine_frames", "gflops")
RESULT_KEYS = frozenset(("video_id", "labels", "predicted", "correct", *SEEN_KEYS))


class ReportError(Exception):
    """A picture cannot be made; the message says what is missing and which command makes it."""


def write_filmstrips(
    run: Path, picture: Path, *, videos: Path, split: str = "val", count: int = 6
) -> list[str]:
    """Picture `count` evaluated videos of a run.

    Args:
        run: folder of a run that `liteeval-train evaluate` has seen.
        videos: folder in which the source files lie.

    Returns: the ids of the videos shown.
    Raises: ReportError if the evaluation or a source file is missing, or the picture cannot be
        written; RunError, StoreError, DecodeError as the parts raise them.
    """
    folder = RunFiles(run)
    results = read_results(folder.evaluation_videos(split))
    chosen = choose_results(results, count)
    store = FeatureStore(folder.read_info().fine.path)
    paths = {video.id: video.path for video in find_videos([videos])}
    missing = [result["video_id"] for result in chosen if result["video_id"] not in paths]
    if missing:
        raise ReportError(f"{videos}: has no video {missing[0]!r}, which {run} was evaluated on")
    strips = [make_filmstrip(result, paths[result["video_id"]], store) for result in chosen]
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_filmstrips(strips, picture)
    except OSError as error:
        raise ReportError(f"{picture}: cannot be written ({error.strerror})") from error
    return [result["video_id"] for result in chosen]


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of evaluate_SPLIT_videos.jsonl.

    Raises: ReportError if there is no such file, nothing in it, or damage.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be read ({error.strerror}); make it with "
            f"liteeval-train evaluate {path.parent}"
        ) from error
    if not lines:
        raise ReportError(f"{path}: no video was evaluated")
    try:
        return [_parse_result(line) for line in lines]
    except ValueError as error:
        raise ReportError(
            f"{path}: damaged ({error}); make it anew with liteeval-train evaluate {path.parent}"
        ) from error


def _parse_result(line: str) -> dict[str, Any]:
    """Raises: ValueError if it is no JSON object with all that is told of a video."""
    result = json.loads(line)
    missing = RESULT_KEYS - result.keys() if isinstance(result, dict) else RESULT_KEYS
    if missing:
        raise ValueError(f"a line without {', '.join(sorted(missing))}")
    assert isinstance(result, dict)
    return result


def choose_results(results: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Videos of as many classes as possible; in turn those with most and with fewest fine frames.

    The choice depends on the results alone, not on their order.
    """
    classes: dict[str, list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda r: (r["fine_frames"], r["video_id"])):
        classes.setdefault("|".join(result["labels"]), []).append(result)
    orders = [
        members[::-1] if number % 2 == 0 else members
        for number, (_, members) in enumerate(sorted(classes.items()))
    ]
    in_turn = [result for turn in zip_longest(*orders) for result in turn if result is not None]
    return in_turn[:count]


def make_filmstrip(result: Mapping[str, Any], path: Path, store: FeatureStore) -> Filmstrip:
    """The frames that the run saw of one video, at most MAX_FRAMES of them."""
    seen = len(result["rows"])
    shown = choose_frames(np.array(result["used"], bool), MAX_FRAMES)
    rows = np.array(result["rows"])[shown]
    video = store[result["video_id"]]
    frames_THWC = read_thumbnails(path, video.frame_index[rows])
    verdict = "right" if result["correct"] else f"taken for {result['predicted']}"
    title = f"{result['video_id']} ({' | '.join(result['labels'])}, {verdict})"
    if len(shown) < seen:
        title += f", {len(shown)} of {seen} frames"
    return Filmstrip(
        title=title,
        frames_THWC=frames_THWC,
        used_T=np.array(result["used"], bool)[shown],
        pts_seconds_T=np.array(result["pts_seconds"])[shown],
    )


def choose_frames(used_T: np.ndarray, count: int) -> np.ndarray:
    """Positions of at most `count` frames: those read finely first, evenly spaced others beside.

    Args:
        used_T: (T,) bool, True where a frame was read finely.

    Returns: (≤ count,) int64, ascending.
    """
    fine = _thin(np.flatnonzero(used_T), count)
    return np.sort(np.concatenate([fine, _thin(np.flatnonzero(~used_T), count - len(fine))]))


def _thin(positions: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the positions, evenly spaced from the first to the last."""
    if len(positions) <= count:
        return positions
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]
