"""Pixels of labelled videos for training: decoded once, kept on disk, cropped anew each epoch.

A video becomes one .npy file of uint8 rows, (R, M, M, 3) or (R, 32, M, M, 3) of clips: the middle
square of each row's frame, its shorter side resized to M px. The rows are those of the sampling
contract, or `max_rows` of them, evenly spaced: this bounds the disk that a data set takes.
Uncompressed, because a row is then a read of its own and needs no decoding; the system's page
cache holds what fits into memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from extract.decode import DecodeOptions
from extract.preprocess import Preprocessing
from extract.supervise import (
    Decoded,
    DecodeLimits,
    DecodePool,
    DecodeTask,
    Event,
    Failed,
    Rows,
    Started,
    WorkerOptions,
)
from extract.videos import Video

CROP_TRIES = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)


class PixelError(Exception):
    """Pixels cannot be kept or read; the message names the file and what to do."""


def training_input(preprocessing: Preprocessing) -> Preprocessing:
    """The middle square that random crops are cut from: as published, but not cropped yet.

    Networks whose published input is the whole square get a margin of 8 : 7, ImageNet's.
    """
    side = preprocessing.resize_px
    if side == preprocessing.crop_px:
        side = round(side * 8 / 7)
    return replace(preprocessing, resize_px=side, crop_px=side)


def segment_rows(rows: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """(segments,) int64, ascending: a random row of each of as many equal segments.

    Where there are fewer rows than segments, rows are repeated. Source: Wang et al., Temporal
    Segment Networks, section 3.1.
    """
    positions = (np.arange(segments) + rng.random(segments)) * rows / segments
    return np.minimum(positions.astype(np.int64), rows - 1)


@dataclass(frozen=True)
class Crop:
    """A part of a square picture, in pixels, and whether it is mirrored."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.left + self.width, self.top + self.height


def random_crop(side: int, min_area: float, rng: np.random.Generator) -> Crop:
    """A random part of a square: area and, logarithmically, aspect ratio (3/4 to 4/3) are uniform.

    Args:
        side: of the square, px.
        min_area: the smallest share of the square, in (0, 1].

    Source: Szegedy et al., Going Deeper with Convolutions, section 6; mirrored half of the time.
    """
    flip = bool(rng.random() < 0.5)
    for _ in range(CROP_TRIES):
        area = side * side * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(*np.log(ASPECT_RATIOS)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            left, top = rng.integers(side - width + 1), rng.integers(side - height + 1)
            return Crop(float(left), float(top), width, height, flip)
    return Crop(0, 0, side, side, flip)


def published_crop(side: int, preprocessing: Preprocessing) -> Crop:
    """The part of a kept square that the published preprocessing shows."""
    shown = side * preprocessing.crop_px / preprocessing.resize_px
    return Crop((side - shown) / 2, (side - shown) / 2, shown, shown)


def cut(row: np.ndarray, crop: Crop, preprocessing: Preprocessing) -> np.ndarray:
    """One row, (M, M, 3) or (32, M, M, 3), → preprocessing.row_shape; a clip is cut as one."""
    if row.ndim == 4:
        return np.stack([cut(frame, crop, preprocessing) for frame in row])
    size = (preprocessing.crop_px, preprocessing.crop_px)
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    picture = np.asarray(Image.fromarray(row).resize(size, resampling, box=crop.box))
    return picture[:, ::-1] if crop.flip else picture


@dataclass(frozen=True)
class PixelCache:
    """Rows of videos in a folder; a file's name says what it was made of, so none is ever stale."""

    folder: Path
    preprocessing: Preprocessing
    fps: float
    max_rows: int
    decode: DecodeOptions

    def path(self, video: Video) -> Path:
        """Raises: PixelError if the video is gone."""
        try:
            status = os.stat(video.path)
        except OSError as error:
            raise PixelError(f"{video.path}: cannot be read ({error.strerror})") from error
        made_of = [
            *(video.id, status.st_size, status.st_mtime_ns, self.fps, self.max_rows),
            *(self.preprocessing.to_dict(), self.decode.on_corrupt),
        ]
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.npy"

    def __contains__(self, video: Video) -> bool:
        return self.path(video).exists()

    def rows(self, video: Video) -> np.ndarray:
        """(R, *row_shape) uint8, mapped from the file, not read.

        Raises: PixelError if the video was not cached.
        """
        path = self.path(video)
        try:
            rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PixelError(
                f"{path}: the pixels of {video.id} cannot be read ({error}); remove the file and "
                "give the same command again with --resume"
            ) from error
        return rows

    def fill(
        self,
        videos: Sequence[Video],
        *,
        workers: int,
        limits: DecodeLimits,
        on_done: Callable[[Failed | None], object],
    ) -> None:
        """Decode the videos that are not there yet.

        Args:
            on_done: called once per video, with what made it fail.

        Raises: PixelError if a file cannot be written.
        """
        wanted = [video for video in videos if video not in self]
        for _ in range(len(videos) - len(wanted)):
            on_done(None)
        if not wanted:
            return
        options = WorkerOptions(
            inputs={"pixels": self.preprocessing},
            fps=self.fps,
            decode=self.decode,
            limits=limits,
            max_rows=self.max_rows,
        )
        by_id = {video.id: video for video in wanted}
        tasks = [DecodeTask(video.id, video.path, ("pixels",)) for video in wanted]
        files: dict[str, _GrowingFile] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with DecodePool(min(workers, len(tasks)), options) as pool:
                for event in pool.run(tasks):
                    self._take(event, by_id[event.video_id], files)
                    if isinstance(event, Decoded | Failed):
                        on_done(event if isinstance(event, Failed) else None)
        except OSError as error:
            raise PixelError(
                f"{self.folder}: cannot be written ({error.strerror}); make room, lower --cache-gb "
                "or give another --cache, then give the same command again with --resume"
            ) from error
        finally:
            for file in files.values():
                file.discard()

    def _take(self, event: Event, video: Video, files: dict[str, _GrowingFile]) -> None:
        """Write rows as they come; a video that starts anew or fails loses those it had."""
        if isinstance(event, Rows):
            files[video.id].append(event.pixels["pixels"])
        elif isinstance(event, Decoded):
            files.pop(video.id).commit()
        elif video.id in files:
            files.pop(video.id).discard()
        if isinstance(event, Started):
            shape = (event.rows, *self.preprocessing.row_shape)
            files[video.id] = _GrowingFile(self.path(video), shape)


class _GrowingFile:
    """A .npy file that gets its name when it is complete."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._file: BinaryIO = self._temporary.open("xb")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        self._file.write(rows.tobytes())

    def commit(self) -> None:
        self._file.close()
        self._temporary.rename(self._path)

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
