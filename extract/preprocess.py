"""A decoded frame becomes a network's input: the published resize and crop, in uint8.

Pillow does the resampling, as in the libraries that published the weights. Only the crop is
computed, through Pillow's `box`: the same pixels as resizing the whole frame and cutting the
middle, but for rare ones that differ by 1 of 255 because the box is kept in float32. Imports
neither torch nor a decoder, so that decode processes stay small.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to resize_px, centre crop of crop_px, then (x / 255 − mean) / std.

    Attributes:
        antialias: Pillow's resampling, which averages; False: bilinear between the 4 nearest
            pixels, as torch.nn.functional.interpolate.
        frames: how many frames make the input of one row.

    Source of the rounding: torchvision.transforms.Resize and CenterCrop.
    """

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    antialias: bool = True
    frames: int = 1

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS or self.crop_px > self.resize_px:
            raise ValueError(f"not supported: {self}")
        if not self.antialias and self.interpolation != "bilinear":
            raise ValueError(f"without antialias only bilinear is supported: {self}")

    def at_size(self, crop_px: int) -> Preprocessing:
        """The same ratio of resize to crop at another crop size: 256 → 224 gives 128 → 112."""
        resize_px = round(self.resize_px * crop_px / self.crop_px)
        return replace(self, resize_px=resize_px, crop_px=crop_px)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the uint8 pixels that one row needs."""
        picture = (self.crop_px, self.crop_px, 3)
        return picture if self.frames == 1 else (self.frames, *picture)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON would read them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resize_and_crop(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (crop_px, crop_px, 3) uint8."""
        box = self._source_box(*frame.shape[:2])
        if not self.antialias:
            return _bilinear(frame, box, self.crop_px)
        size, filter_ = (self.crop_px, self.crop_px), _FILTERS[self.interpolation]
        return np.asarray(Image.fromarray(frame).resize(size, filter_, box=box))

    def _source_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the crop, in pixels of the source."""
        if width <= height:
            new_width, new_height = self.resize_px, int(self.resize_px * height / width)
        else:
            new_width, new_height = int(self.resize_px * width / height), self.resize_px
        left = round((new_width - self.crop_px) / 2.0)
        top = round((new_height - self.crop_px) / 2.0)
        x, y = width / new_width, height / new_height
        return (
            left * x,
            top * y,
            min((left + self.crop_px) * x, width),  # rounding may leave it a hair outside
            min((top + self.crop_px) * y, height),
        )


def _bilinear(
    frame: np.ndarray, box: tuple[float, float, float, float], size_px: int
) -> np.ndarray:
    """(size_px, size_px, 3) uint8, rounded: each pixel between its 4 nearest in the source."""
    left, top, right, bottom = box
    top_row, bottom_row, down = _neighbours(top, bottom, size_px, frame.shape[0])
    left_column, right_column, across = _neighbours(left, right, size_px, frame.shape[1])
    rows = frame[top_row] * (1 - down)[:, None, None] + frame[bottom_row] * down[:, None, None]
    across = across[None, :, None]
    return np.rint(rows[:, left_column] * (1 - across) + rows[:, right_column] * across).astype(
        np.uint8
    )


def _neighbours(
    start: float, stop: float, count: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper source index of `count` pixel centres in [start, stop), and the share of
    the upper one; half-pixel centres, edges repeated."""
    centres = start + (np.arange(count) + 0.5) * (stop - start) / count - 0.5
    centres = np.clip(centres, 0, length - 1)
    lower = np.floor(centres).astype(np.int64)
    upper = np.minimum(lower + 1, length - 1)
    return lower, upper, (centres - lower).astype(np.float32)
