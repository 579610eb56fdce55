"""Seconds per video of predictions on raw video (the paper's Table 10), and that skipping is true.

    liteeval demo --out runs/demo
    python -m benchmarks.live runs/demo/clips --runs runs/demo/runs/liteeval \\
        runs/demo/runs/lstm runs/demo/runs/uniform

Every run predicts the same videos one after the other, as `liteeval predict --workers 1` does: from
opening the file to the prediction, decoding beside the networks. The runs take turns, and whose
turn is first changes. Medians over videos, of the median over repeats; ratios are to the first run.
Decoding is the same work for all but UNIFORM and overlaps with the rest.

Fails if the fine network ran on another number of frames than were read finely.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as liteeval predict does

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from extract.videos import Video, find_videos
from pipelines.live import LiveRun, open_live
from pipelines.predict import VideoPrediction, predict_videos

PARTS = ("decode", "coarse", "fine", "head", "total")


def predict_all(live: LiveRun, videos: Sequence[Video]) -> list[VideoPrediction]:
    """Raises: SystemExit if a video fails, or the fine network ran on more or fewer frames."""
    before = live.fine.rows
    results = []
    for result in predict_videos(live, videos, workers=1):
        if not isinstance(result, VideoPrediction):
            sys.exit(f"{result.path}: {result.error}")
        results.append(result)
    ran, read = live.fine.rows - before, sum(result.fine_frames for result in results)
    if ran != read:
        sys.exit(f"the fine network ran on {ran} frames, {read} were read finely")
    return results


def measure(
    runs: dict[str, LiveRun], videos: Sequence[Video], repeats: int
) -> dict[str, list[list[VideoPrediction]]]:
    """For each run the predictions of each repeat; what comes first warms up and is left out."""
    results = defaultdict(list)
    for repeat in range(-1, repeats):
        names = list(runs)
        first = max(repeat, 0) % len(names)
        for name in names[first:] + names[:first]:
            done = predict_all(runs[name], videos[:2] if repeat < 0 else videos)
            if repeat >= 0:
                results[name].append(sorted(done, key=lambda result: result.video_id))
    return results


def summarise(repeats: list[list[VideoPrediction]]) -> dict[str, float]:
    """Means and medians over videos; seconds of each part are medians over repeats before."""
    by_video = list(zip(*repeats, strict=True))
    seconds = {
        part: statistics.median(
            statistics.median(result.seconds.get(part, 0.0) for result in video)
            for video in by_video
        )
        for part in PARTS
    }
    mean = {
        key: statistics.mean(getattr(video[0], key) for video in by_video)
        for key in ("frames", "fine_frames", "gflops_total")
    }
    return {**mean, **seconds}


def report(runs: dict[str, LiveRun], results: dict[str, list[list[VideoPrediction]]]) -> None:
    rows = {name: summarise(repeats) for name, repeats in results.items()}
    base = next(iter(rows.values()))
    for name, row in rows.items():
        print(
            f"{name:12} {row['frames']:6.1f} frames, {row['fine_frames']:5.1f} finely "
            f"{row['gflops_total']:7.2f} GFLOPs   "
            + "  ".join(f"{part} {1000 * row[part]:6.1f} ms" for part in PARTS)
        )
    names = list(rows)
    for name in names[1:]:
        row = rows[name]
        print(
            f"{names[0]} ÷ {name}: {base['total'] / row['total']:.2f} of the time, "
            f"{base['gflops_total'] / row['gflops_total']:.2f} of the GFLOPs, "
            f"{base['fine'] / max(row['fine'], 1e-9):.2f} of the fine network's time"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", help="folders, files, lists")
    parser.add_argument("--runs", nargs="+", required=True, type=Path)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME[@SIZE]=FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=10, help="videos, evenly picked")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found = find_videos(arguments.videos)
    videos = found[:: max(1, len(found) // arguments.count)][: arguments.count]
    runs = {
        path.name: open_live(path, weights=arguments.weights, device=arguments.device)
        for path in arguments.runs
    }
    device = next(iter(runs.values())).run.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    print(
        f"{len(videos)} videos, {arguments.repeats} repeats, {machine}, "
        f"{torch.get_num_threads()} threads, 1 decode process, torch {torch.__version__}"
    )
    report(runs, measure(runs, videos, arguments.repeats))


if __name__ == "__main__":
    main()
