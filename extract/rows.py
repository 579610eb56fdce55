"""One decoding pass over a video, the inputs of every backbone out of it, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from extract import decode
from extract.preprocess import Preprocessing
from extract.sampling import SNIPPET_FRAMES, Timeline, row_frames, snippet_frames


def iter_rows(
    video: decode.Video,
    fps: float,
    inputs: Mapping[str, Preprocessing],
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Each row of a probed video, or those of `rows`, as the preprocessed pixels of every input.

    Every wanted frame is decoded and preprocessed once; frames are held only as long as a later
    row needs them.

    Args:
        rows: (n,) int64, ascending; None: all.

    Yields: input name → row_shape uint8, in order of rows.
    Raises: decode.PacketsMislead if the packets told a wrong timeline.
    """
    needs = {name: _needed_frames(video.timeline, fps, p.frames) for name, p in inputs.items()}
    if rows is not None:
        needs = {name: needed[rows] for name, needed in needs.items()}
    users = {name: set(needed.ravel().tolist()) for name, needed in needs.items()}
    complete = np.max([needed[:, -1] for needed in needs.values()], axis=0)
    wanted = np.unique(np.concatenate([needed.ravel() for needed in needs.values()]))
    held: dict[str, dict[int, np.ndarray]] = {name: {} for name in inputs}
    row = 0
    for index, frame in zip(wanted.tolist(), decode.iter_frames(video, wanted), strict=True):
        for name, preprocessing in inputs.items():
            if index in users[name]:
                held[name][index] = preprocessing.resize_and_crop(frame)
        while row < len(complete) and complete[row] <= index:
            yield {name: _assemble(held[name], needs[name][row]) for name in inputs}
            row += 1
            if row < len(complete):
                for name, needed in needs.items():
                    _forget(held[name], before=int(needed[row, 0]))


def _needed_frames(timeline: Timeline, fps: float, frames: int) -> np.ndarray:
    """(T, n) int64: the frames that make the input of each row, ascending."""
    if frames == SNIPPET_FRAMES:
        return snippet_frames(timeline, fps)
    return row_frames(timeline, fps)[:, None]


def _assemble(held: Mapping[int, np.ndarray], needed: np.ndarray) -> np.ndarray:
    pictures = [held[index] for index in needed.tolist()]
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def _forget(held: dict[int, np.ndarray], *, before: int) -> None:
    for index in [index for index in held if index < before]:
        del held[index]
