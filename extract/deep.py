"""Deep verification: rows of a store computed once more from their source."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from extract.backbones import Backbone
from extract.run import autocast
from extract.sampling import evenly_spaced, row_count
from extract.store import FeatureStore, StoreError, VideoFeatures
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

# How far a row may lie from the float32 one, as a share of its length, by the precision of its
# store. Measured on 5 networks: ≤ 0.0003 by storing float16, 0.025 in fp16, 0.14 in bf16.
TOLERANCES = {"fp32": 0.01, "tf32": 0.05, "fp16": 0.05, "bf16": 0.25}
BATCH_ROWS = 8
ROWS_PER_VIDEO = 32  # evenly spaced


def recompute_sample(
    store: FeatureStore,
    backbone: Backbone,
    *,
    videos: int = 5,
    seed: int = 0,
    device: torch.device | None = None,
    limits: DecodeLimits | None = None,
) -> list[str]:
    """Decode and compute rows of a seeded sample of videos again; every difference as one line.

    The number of rows, and frames and times of those computed, must be equal; features may differ
    by TOLERANCES. Networks run in float32 whatever the precision of the store. A source that hangs
    is ended when its time is up.

    Args:
        device: where the network runs; None: the CPU.

    Raises: StoreError if the backbone's weights are not those of the store.
    """
    identity = store.identity
    if backbone.weights_sha256 != identity.weights_sha256:
        raise StoreError(
            f"{store.path}: was made with weights {identity.weights} "
            f"(sha256 {identity.weights_sha256[:12]}…), given are {backbone.weights} "
            f"({backbone.weights_sha256[:12]}…); pass the same with --weights"
        )
    chosen = random.Random(seed).sample(store.video_ids, min(videos, len(store)))
    problems, tasks = [], []
    for video_id in chosen:
        stored = store[video_id]
        if problem := _source_problem(stored):
            problems.append(f"{video_id!r}: {problem}")
        else:
            tasks.append(DecodeTask(video_id, Path(stored.source_path), ("pixels",)))
    options = WorkerOptions(
        inputs={"pixels": backbone.spec.preprocessing},
        fps=identity.sample_fps,
        limits=limits or DecodeLimits(),
        max_rows=ROWS_PER_VIDEO,
    )
    tolerance = TOLERANCES.get(identity.preprocessing.get("precision", ""), TOLERANCES["fp32"])
    device = device or torch.device("cpu")
    for video_id, found in _recompute(tasks, options, backbone, device):
        if isinstance(found, str):
            problems.append(f"{video_id!r}: {found}")
        else:
            lines = _differences(
                store[video_id], *found, fps=identity.sample_fps, tolerance=tolerance
            )
            problems += [f"{video_id!r}: {line}" for line in lines]
    return problems


def _source_problem(stored: VideoFeatures) -> str | None:
    path = Path(stored.source_path)
    if not path.is_file():
        return f"the source {path} is gone"
    if path.stat().st_size != stored.source_bytes:
        return f"the source {path} has changed since"
    return None


def _recompute(
    tasks: list[DecodeTask], options: WorkerOptions, backbone: Backbone, device: torch.device
) -> Iterator[tuple[str, tuple[Decoded, np.ndarray] | str]]:
    """Each video's frames and (T, D) features in float32, or why there are none."""
    extractor = backbone.extractor.to(device)
    features: list[np.ndarray] = []
    with DecodePool(1, options) as pool:  # one process: videos come one after the other
        for event in pool.run(tasks):
            if isinstance(event, Started):
                features = []
            elif isinstance(event, Rows):
                for batch in torch.from_numpy(event.pixels["pixels"]).split(BATCH_ROWS):
                    with torch.inference_mode(), autocast(device, "fp32"):
                        features.append(extractor(batch.to(device)).cpu().numpy())
            elif isinstance(event, Decoded):
                yield event.video_id, (event, np.concatenate(features))
            elif isinstance(event, Failed):
                yield event.video_id, event.error


def _differences(
    stored: VideoFeatures,
    decoded: Decoded,
    features: np.ndarray,
    *,
    fps: float,
    tolerance: float,
) -> Iterator[str]:
    if (found := row_count(decoded.duration_seconds, fps)) != len(stored.features):
        yield f"{found} rows, stored are {len(stored.features)}"
        return
    rows = evenly_spaced(found, ROWS_PER_VIDEO)
    if not np.array_equal(decoded.frame_index, stored.frame_index[rows]):
        yield "the frames differ"
        return
    if not np.allclose(decoded.pts_seconds, stored.pts_seconds[rows], atol=1e-6):
        yield "the times differ"
        return
    gaps = np.linalg.norm(stored.features[rows].astype(np.float32) - features, axis=1)
    shares = gaps / np.maximum(np.linalg.norm(features, axis=1), 1e-12)
    for place in np.flatnonzero(~(shares <= tolerance)):
        yield (
            f"row {rows[place]} differs from the recomputed one by {shares[place]:.1%} of its "
            f"length; {tolerance:.0%} are allowed"
        )
