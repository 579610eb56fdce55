"""A decoded frame becomes a network's input: the published resize and crop, in uint8.

Pillow does the resampling, as in the libraries that published the weights, and gives their very
pixels. Imports neither torch nor a decoder, so that decode processes stay small.
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

    @property
    def picture(self) -> Preprocessing:
        """The part that `resize_and_crop` depends on: equal where the pixels of a frame are."""
        return replace(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), frames=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON would read them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resize_and_crop(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (crop_px, crop_px, 3) uint8."""
        height, width = frame.shape[:2]
        if width <= height:
            new_width, new_height = self.resize_px, int(self.resize_px * height / width)
        else:
            new_width, new_height = int(self.resize_px * width / height), self.resize_px
        across = _Cut(width, new_width, self.crop_px)
        down = _Cut(height, new_height, self.crop_px)
        if not self.antialias:
            return _bilinear(frame, across, down)
        return _resample(frame, across, down, _FILTERS[self.interpolation])


@dataclass(frozen=True)
class _Cut:
    """One axis: `source` pixels are resized to `resized`, of which the middle `crop` are kept."""

    source: int
    resized: int
    crop: int

    @property
    def first(self) -> int:
        return round((self.resized - self.crop) / 2.0)

    @property
    def box(self) -> tuple[float, float]:
        """Start and stop of the crop in pixels of the source."""
        scale = self.source / self.resized
        return self.first * scale, min((self.first + self.crop) * scale, self.source)


_LONGEST_PX = 8192


def _resample(
    frame: np.ndarray, across: _Cut, down: _Cut, resampling: Image.Resampling
) -> np.ndarray:
    """Resize the whole, then cut, as published: Pillow orders its two passes by the sizes, so
    that resampling only the crop rounds differently. Only a strip that would become huge is."""
    image = Image.fromarray(frame)
    if max(across.resized, down.resized) > _LONGEST_PX:
        (left, right), (top, bottom) = across.box, down.box
        box = (left, top, right, bottom)
        return np.asarray(image.resize((across.crop, down.crop), resampling, box=box))
    resized = np.asarray(image.resize((across.resized, down.resized), resampling))
    rows = slice(down.first, down.first + down.crop)
    return resized[rows, across.first : across.first + across.crop]


def _bilinear(frame: np.ndarray, across: _Cut, down: _Cut) -> np.ndarray:
    """(crop, crop, 3) uint8, rounded: each pixel between its 4 nearest in the source."""
    upper_row, lower_row, down_share = _neighbours(down)
    left_column, right_column, across_share = _neighbours(across)
    share = down_share[:, None, None]
    rows = frame[upper_row] * (1 - share) + frame[lower_row] * share
    share = across_share[None, :, None]
    pixels = rows[:, left_column] * (1 - share) + rows[:, right_column] * share
    return np.rint(pixels).astype(np.uint8)


def _neighbours(cut: _Cut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper source index of each pixel of the crop, and the share of the upper one;
    half-pixel centres, edges repeated."""
    centres = (cut.first + np.arange(cut.crop) + 0.5) * cut.source / cut.resized - 0.5
    centres = np.clip(centres, 0, cut.source - 1)
    lower = np.floor(centres).astype(np.int64)
    upper = np.minimum(lower + 1, cut.source - 1)
    return lower, upper, (centres - lower).astype(np.float32)
