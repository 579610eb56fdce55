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

    Every wanted frame is decoded once, and resized once for all inputs of one size and filter;
    frames are held only as long as a later row needs them.

    Args:
        rows: (n,) int64, ascending; None: all.

    Yields: input name → row_shape uint8, in order of rows.
    Raises: decode.PacketsMislead if the packets told a wrong timeline.
    """
    needs = _needed_frames(video.timeline, fps, inputs, rows)
    pictures = {name: preprocessing.picture for name, preprocessing in inputs.items()}
    users: dict[Preprocessing, set[int]] = {}
    starts: dict[Preprocessing, np.ndarray] = {}  # (T,): the first frame that each row needs
    for name, needed in needs.items():
        picture, first = pictures[name], needed[:, 0]
        users.setdefault(picture, set()).update(needed.ravel().tolist())
        starts[picture] = np.minimum(starts.get(picture, first), first)
    complete = np.max([needed[:, -1] for needed in needs.values()], axis=0)
    wanted = np.unique(np.concatenate([needed.ravel() for needed in needs.values()]))
    held: dict[Preprocessing, dict[int, np.ndarray]] = {picture: {} for picture in users}
    row = 0
    for index, frame in zip(wanted.tolist(), decode.iter_frames(video, wanted), strict=True):
        for picture, indices in users.items():
            if index in indices:
                held[picture][index] = picture.resize_and_crop(frame)
        while row < len(complete) and complete[row] <= index:
            yield {name: _assemble(held[pictures[name]], needs[name][row]) for name in inputs}
            row += 1
            if row < len(complete):
                for picture, kept in held.items():
                    _forget(kept, before=int(starts[picture][row]))


def repeats(
    timeline: Timeline,
    fps: float,
    inputs: Mapping[str, Preprocessing],
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """(T,) bool: whether a row shows, to every input, the very frames of the row before it."""
    needs = _needed_frames(timeline, fps, inputs, rows)
    same = [(needed[1:] == needed[:-1]).all(axis=1) for needed in needs.values()]
    return np.concatenate([[False], np.logical_and.reduce(same)])


def _needed_frames(
    timeline: Timeline,
    fps: float,
    inputs: Mapping[str, Preprocessing],
    rows: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Input name → (T, n) int64: the frames that make it in each row, ascending."""
    needs = {}
    for name, preprocessing in inputs.items():
        if preprocessing.frames == SNIPPET_FRAMES:
            needed = snippet_frames(timeline, fps)
        else:
            needed = row_frames(timeline, fps)[:, None]
        needs[name] = needed if rows is None else needed[rows]
    return needs


def _assemble(held: Mapping[int, np.ndarray], needed: np.ndarray) -> np.ndarray:
    pictures = [held[index] for index in needed.tolist()]
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def _forget(held: dict[int, np.ndarray], *, before: int) -> None:
    for index in [index for index in held if index < before]:
        del held[index]
