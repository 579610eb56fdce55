"""Small pictures of a video's frames, decoded by a process that can be killed."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from extract.decode import DecodeError, decode_video, iter_frames
from extract.supervise import DecodeLimits, bound_memory, spawning

THUMBNAIL_PX = (320, 240)  # width, height
NO_LIMITS_GIVEN = DecodeLimits()


def read_thumbnails(
    path: Path,
    frame_index: np.ndarray,
    *,
    duration_seconds: float,
    limits: DecodeLimits = NO_LIMITS_GIVEN,
) -> np.ndarray:
    """The frames of a video with these indices, small: one full picture in memory at a time.

    Args:
        frame_index: (T,) int64, ascending; an index may stand several times.
        duration_seconds: of the video: the longer, the more time it is given.

    Returns: (T, H, W, 3) uint8, each frame fitted into THUMBNAIL_PX on white.
    Raises: DecodeError if it cannot be decoded, or not within the limits.
    """
    wanted, inverse = np.unique(frame_index, return_inverse=True)
    ours, theirs = spawning.Pipe(duplex=False)
    arguments = (theirs, path, wanted, limits.memory_bytes)
    process = spawning.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()
    seconds = limits.decode_seconds(duration_seconds)
    try:
        if not ours.poll(seconds):
            raise DecodeError(f"{path}: took longer than {seconds:g} s to decode; mend the file")
        answer = ours.recv()
    except EOFError as error:
        process.join()
        raise DecodeError(
            f"{path}: the decoder process died (exit code {process.exitcode})"
        ) from error
    finally:
        ours.close()
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise DecodeError(answer)
    return np.stack(answer)[inverse]


def _serve(connection: Connection, path: Path, wanted: np.ndarray, memory_bytes: int) -> None:
    """In the process: the thumbnails, or why there are none."""
    bound_memory(memory_bytes)
    try:
        answer: list[np.ndarray] | str = decode_video(
            path, lambda video: [_thumbnail(frame) for frame in iter_frames(video, wanted)]
        )
    except DecodeError as error:
        answer = str(error)
    connection.send(answer)


def _thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame_HWC)
    image.thumbnail(THUMBNAIL_PX)
    canvas = Image.new("RGB", THUMBNAIL_PX, "white")
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return np.asarray(canvas)
