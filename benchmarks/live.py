"""Seconds per video of predictions on raw video (the paper's Table 10), and that skipping is true.

    liteeval demo --out runs/demo
    python -m benchmarks.live runs/demo/clips --runs runs/demo/runs/liteeval \\
        runs/demo/runs/lstm runs/demo/runs/uniform

What `liteeval time` measures, with the machine named. Fails if the fine network ran on another
number of frames than were read finely.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as liteeval predict does

import argparse
from pathlib import Path

import torch

from pipelines.live import open_live
from pipelines.timing import format_timings, pick_videos, time_runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path, help="folders, files, lists")
    parser.add_argument("--runs", nargs="+", required=True, type=Path)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME[@SIZE]=FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=10, help="videos, evenly picked")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    runs = {
        path.name: open_live(path, weights=arguments.weights, device=arguments.device)
        for path in arguments.runs
    }
    videos = pick_videos(arguments.videos, arguments.count)
    device = next(iter(runs.values())).run.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    print(
        f"{machine}, {arguments.repeats} repeats, {torch.get_num_threads()} threads, "
        f"1 decode process, torch {torch.__version__}"
    )
    print(format_timings(time_runs(runs, videos, repeats=arguments.repeats)))


if __name__ == "__main__":
    main()
