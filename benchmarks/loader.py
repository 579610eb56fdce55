"""Reading an epoch from a store against a memory map of the same bytes.

Both read the fine rows of every video once, in the same shuffled order, into fresh memory, turn by
turn in one process; the files stand in the page cache for both. Goal: at least 0.7 of the rate.

    python benchmarks/loader.py [--videos 400] [--frames 120] [--dim 2048]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from extract.store import FeatureStore, FeatureWriter, StoreIdentity, VideoFeatures

GOAL = 0.7
VIDEOS_PER_PART = 64


def write_store(path: Path, lengths: Sequence[int], dim: int) -> None:
    identity = StoreIdentity("bench", 1, "random", "", {}, 1.0, dim, 1.0, "", 0)
    random = np.random.default_rng(0)
    with FeatureWriter(path, identity) as writer:
        for number, rows in enumerate(lengths):
            features = random.random((rows, dim), dtype=np.float32).astype(np.float16)
            t = np.arange(rows)
            video = VideoFeatures(features, t * 1.0, t, float(rows), 1.0, "", 0, "none")
            writer.add(f"{number:06d}", video)
            if (number + 1) % VIDEOS_PER_PART == 0:
                writer.commit()


def epoch_from_store(store: FeatureStore, order: Sequence[int]) -> int:
    return sum(store.read_features(f"{number:06d}").nbytes for number in order)


def epoch_from_memory_map(path: Path, offsets: np.ndarray, dim: int, order: Sequence[int]) -> int:
    rows = np.memmap(path, dtype=np.float16, mode="r").reshape(-1, dim)
    return sum(np.array(rows[offsets[n] : offsets[n + 1]]).nbytes for n in order)


def seconds_of(read: Callable[[], int], expected_bytes: int) -> float:
    start = time.perf_counter()
    assert read() == expected_bytes
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--frames", type=int, default=120, help="mean rows per video")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    random = np.random.default_rng(1)
    lengths = random.integers(options.frames // 2, options.frames * 3 // 2, options.videos)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1]) * options.dim * 2
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", lengths.tolist(), options.dim)
        store = FeatureStore(Path(folder) / "store")
        flat = Path(folder) / "flat.bin"
        with flat.open("wb") as file:
            for number in range(options.videos):
                file.write(store.read_features(f"{number:06d}").tobytes())
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.repeats):
            order = random.permutation(options.videos).tolist()
            times[0].append(seconds_of(lambda: epoch_from_store(store, order), total))  # noqa: B023
            times[1].append(
                seconds_of(
                    lambda: epoch_from_memory_map(flat, offsets, options.dim, order),  # noqa: B023
                    total,
                )
            )
        store.close()
    from_store, from_map = (statistics.median(column) for column in times)
    print(
        f"{options.videos} videos, {total / 1e6:.0f} MB: store {total / from_store / 1e9:.2f} GB/s "
        f"({1e3 * from_store / options.videos:.3f} ms per video), memory map "
        f"{total / from_map / 1e9:.2f} GB/s; ratio {from_map / from_store:.2f} (goal {GOAL})"
    )


if __name__ == "__main__":
    main()
