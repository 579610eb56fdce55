"""Small pictures of a video's frames, decoded by a process that can be killed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from extract.decode import decode_video, iter_frames
from extract.supervise import DecodeLimits, decode_apart

THUMBNAIL_PX = (320, 240)  # width, height
NO_LIMITS_GIVEN = DecodeLimits()


def read_thumbnails(
    path: Path, frame_index: np.ndarray, *, limits: DecodeLimits = NO_LIMITS_GIVEN
) -> np.ndarray:
    """The frames of a video with these indices, small: one full picture in memory at a time.

    Args:
        frame_index: (T,) int64, ascending; an index may stand several times.

    Returns: (T, H, W, 3) uint8, each frame fitted into THUMBNAIL_PX on white.
    Raises: DecodeError if it cannot be decoded, or not within the limits.
    """
    wanted, inverse = np.unique(frame_index, return_inverse=True)
    pictures = decode_apart(path, functools.partial(_decode, path, wanted), limits)
    return np.stack(pictures)[inverse]


def _decode(
    path: Path, wanted: np.ndarray, *, on_pass: Callable[[float], object]
) -> list[np.ndarray]:
    return decode_video(
        path,
        lambda video: [_thumbnail(frame) for frame in iter_frames(video, wanted)],
        on_pass=on_pass,
    )


def _thumbnail(frame_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame_HWC)
    image.thumbnail(THUMBNAIL_PX)
    canvas = Image.new("RGB", THUMBNAIL_PX, "white")
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return np.asarray(canvas)
