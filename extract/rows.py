"""One decoding pass over a video, the inputs of every backbone out of it, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from extract import decode
from extract.preprocess import Preprocessing
from extract.sampling import row_frames


def iter_rows(
    video: decode.Video, fps: float, inputs: Mapping[str, Preprocessing]
) -> Iterator[dict[str, np.ndarray]]:
    """Each row of a probed video as the preprocessed pixels of every input.

    Yields: input name → (S, S, 3) uint8, for k = 0, 1, …
    Raises: decode.PacketsMislead if the packets told a wrong timeline.
    """
    rows = row_frames(video.timeline, fps)
    wanted = np.unique(rows)
    repeats = np.diff(np.searchsorted(rows, np.append(wanted, wanted[-1] + 1)))
    for frame, times in zip(decode.iter_frames(video, wanted), repeats, strict=True):
        row = {name: p.resize_and_crop(frame) for name, p in inputs.items()}
        for _ in range(times):
            yield row
