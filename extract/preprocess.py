"""A decoded frame becomes a network's input: the published resize and crop, in uint8.

Pillow does the resampling, as in the libraries that published the weights. Only the crop is
computed, through Pillow's `box`: the same pixels as resizing the whole frame and cutting the
middle, but for rare ones that differ by 1 of 255 because the box is kept in float32. Imports
neither torch nor a decoder, so that decode processes stay small.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to resize_px, centre crop of crop_px, then (x / 255 − mean) / std.

    Source of the rounding: torchvision.transforms.Resize and CenterCrop.
    """

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    antialias: bool = True

    def at_size(self, crop_px: int) -> Preprocessing:
        """The same ratio of resize to crop at another crop size: 256 → 224 gives 128 → 112."""
        resize_px = round(self.resize_px * crop_px / self.crop_px)
        return Preprocessing(
            resize_px, crop_px, self.mean, self.std, self.interpolation, self.antialias
        )

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the uint8 pixels that one row needs."""
        return (self.crop_px, self.crop_px, 3)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape)

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
        left = round((new_width - self.crop_px) / 2.0)
        top = round((new_height - self.crop_px) / 2.0)
        x, y = width / new_width, height / new_height
        box = (
            left * x,
            top * y,
            min((left + self.crop_px) * x, width),  # rounding may leave it a hair outside
            min((top + self.crop_px) * y, height),
        )
        size = (self.crop_px, self.crop_px)
        filter_ = _FILTERS[self.interpolation]
        return np.asarray(Image.fromarray(frame).resize(size, filter_, box=box))
