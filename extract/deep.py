"""Deep verification: rows of a store computed once more from their source."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from extract import decode
from extract.backbones import Backbone
from extract.rows import iter_rows
from extract.sampling import row_frames
from extract.store import FeatureStore, StoreError, VideoFeatures

COSINE_FLOOR = 0.999
BATCH_ROWS = 8


def recompute_sample(
    store: FeatureStore, backbone: Backbone, *, videos: int = 5, seed: int = 0
) -> list[str]:
    """Decode and compute a seeded sample of videos again; every difference as one line.

    Frames and times must be equal, features have a cosine of at least COSINE_FLOOR.
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
    problems = []
    for video_id in chosen:
        problems += [f"{video_id!r}: {line}" for line in _compare(store[video_id], backbone, store)]
    return problems


def _compare(stored: VideoFeatures, backbone: Backbone, store: FeatureStore) -> list[str]:
    path = Path(stored.source_path)
    if not path.is_file():
        return [f"the source {path} is gone"]
    if path.stat().st_size != stored.source_bytes:
        return [f"the source {path} has changed since"]
    try:
        video, features = _recompute(path, store.identity.sample_fps, backbone)
    except decode.DecodeError as error:
        return [str(error)]
    rows = row_frames(video.timeline, store.identity.sample_fps)
    if not np.array_equal(rows, stored.frame_index):
        return ["the frames differ"]
    if not np.allclose(video.timeline.pts_seconds[rows], stored.pts_seconds, atol=1e-6):
        return ["the times differ"]
    cosine = _cosine(features, stored.features.astype(np.float32))
    return [
        f"row {row} has a cosine of {value:.5f} with the recomputed one"
        for row, value in enumerate(cosine)
        if not value >= COSINE_FLOOR
    ]


def _recompute(path: Path, fps: float, backbone: Backbone) -> tuple[decode.Video, np.ndarray]:
    """The probed video and its (T, D) features, on the CPU in float32."""
    video = decode.probe(path)
    try:
        return video, _features(video, fps, backbone)
    except decode.PacketsMislead:
        video = decode.probe_by_decoding(path)
        return video, _features(video, fps, backbone)


def _features(video: decode.Video, fps: float, backbone: Backbone) -> np.ndarray:
    rows = iter_rows(video, fps, {"x": backbone.spec.preprocessing})
    batches = []
    while batch := [row["x"] for row in islice(rows, BATCH_ROWS)]:
        with torch.inference_mode():
            batches.append(backbone.extractor(torch.from_numpy(np.stack(batch))).numpy())
    return np.concatenate(batches)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: np.ndarray = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
    return cosine
