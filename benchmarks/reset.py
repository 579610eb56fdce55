"""How often a stream should forget: the videos of a split, one after the other, as one stream.

    python -m benchmarks.reset runs/ucf11/runs/liteeval --seconds 0 15 30 60 120 300

Prints for each --reset-seconds the share of rows, and of last rows of a video, that got the right
class, against forgetting exactly where each video ends, which a stream does not tell. Reads stored
features; means over three orders of the videos, which all come twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from liteeval_train.data import Sample, VideoSet, collate
from liteeval_train.evaluate import TrainedRun, open_split, open_trained

ORDERS = 3


def concatenate(videos: VideoSet, seed: int) -> tuple[Sample, np.ndarray, np.ndarray]:
    """All videos, twice, as one; the class of each row; the last row of each video."""
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(len(videos)) for _ in range(2)])
    samples = [videos[int(number)] for number in order]
    labels = np.concatenate([[s.labels[0]] * len(s.rows) for s in samples])
    ends = np.cumsum([len(s.rows) for s in samples]) - 1
    coarse_TD, fine_TD = (
        np.concatenate([getattr(s, name) for s in samples]) for name in ("coarse_TD", "fine_TD")
    )
    rows = len(labels)
    stream = Sample("", np.arange(rows), np.zeros(rows), coarse_TD, fine_TD, labels=())
    return stream, labels, ends


def predict(run: TrainedRun, stream: Sample, cuts: Sequence[int]) -> tuple[np.ndarray, float]:
    """The best class at every row, everything forgotten at the cuts, and the share read finely."""
    best, used, start = [], [], 0
    for stop in [*cuts, len(stream.rows)]:
        if stop <= start:
            continue
        part = slice(start, stop)
        piece = Sample(
            "", stream.rows[part], stream.pts_seconds[part],
            stream.coarse_TD[part], stream.fine_TD[part], labels=(),
        )  # fmt: skip
        batch = collate([piece], classes=len(run.info.classes)).to(run.device)
        prediction, _ = run.method.advance(batch)
        assert prediction.step_scores_NK is not None
        best.append(prediction.step_scores_NK.argmax(dim=1).cpu().numpy())
        used.append(prediction.used_N.cpu().numpy())
        start = stop
    return np.concatenate(best), float(np.concatenate(used).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", nargs="+", type=int, default=[0, 15, 30, 60, 120, 300])
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    run = open_trained(arguments.run)
    fps = run.info.fine.identity["sample_fps"]
    videos = open_split(run.info, arguments.split, max_frames=run.info.config.max_frames)
    for seconds in [*arguments.seconds, None]:
        figures = []
        for seed in range(ORDERS):
            stream, labels, ends = concatenate(videos, seed)
            every = round(seconds * fps) if seconds else len(labels)
            cuts = (ends + 1).tolist() if seconds is None else range(every, len(labels), every)
            best, fine_share = predict(run, stream, cuts)
            right = best == labels
            figures.append((right.mean(), right[ends].mean(), fine_share))
        rows, at_ends, share = np.mean(figures, axis=0)
        name = "at each video's end" if seconds is None else f"{seconds} s" if seconds else "never"
        print(
            f"forget {name:20} rows right {100 * rows:5.1f} %, at ends {100 * at_ends:5.1f} %, "
            f"read finely {100 * share:5.1f} %"
        )


if __name__ == "__main__":
    main()
