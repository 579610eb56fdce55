"""Our resize and crop against the libraries that published the weights."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from extract.preprocess import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(256, 224, MEAN, STD)
BICUBIC = Preprocessing(256, 224, MEAN, STD, interpolation="bicubic")
SLOWFAST = Preprocessing(256, 256, MEAN, STD, antialias=False, frames=32)

sides = st.integers(24, 500)  # narrower strips would become longer than is resized whole


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, size=st.sampled_from([112, 224]), bicubic=st.booleans())
def test_pixels_are_torchvisions(height: int, width: int, size: int, bicubic: bool) -> None:
    frame = noise(height, width)
    ours = (BICUBIC if bicubic else IMAGENET).at_size(size)
    mode = T.InterpolationMode.BICUBIC if bicubic else T.InterpolationMode.BILINEAR
    theirs = T.Compose([T.Resize(ours.resize_px, mode), T.CenterCrop(size)])
    expected = np.asarray(theirs(Image.fromarray(frame)))
    np.testing.assert_array_equal(ours.resize_and_crop(frame), expected)


@settings(max_examples=40, deadline=None)
@given(height=sides, width=sides)
def test_without_antialias_pixels_are_torchs_interpolate(height: int, width: int) -> None:
    """pytorchvideo's short_side_scale is torch's interpolate to floor(long · size / short)."""
    frame = noise(height, width)
    short, long = sorted((height, width))
    scaled = int(np.floor(long / short * 256))
    size = (scaled, 256) if height > width else (256, scaled)
    if int(256 * long / short) != scaled:
        return  # the two libraries round this size differently
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    full = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    expected = T.CenterCrop(256)(full)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(SLOWFAST.resize_and_crop(frame), expected, atol=0.51)


def test_another_size_keeps_the_ratio_of_resize_to_crop() -> None:
    assert (IMAGENET.at_size(112).resize_px, IMAGENET.at_size(112).crop_px) == (128, 112)
    assert SLOWFAST.at_size(224).resize_px == 224
    assert SLOWFAST.at_size(224).row_shape == (32, 224, 224, 3)


def test_a_picture_of_extreme_shape_takes_no_extreme_memory() -> None:
    """Resized whole, a strip of 4 × 20,000 would be 256 × 1,280,000 pixels."""
    strip = noise(4, 20000)
    ours = IMAGENET.resize_and_crop(strip).astype(int)
    middle = np.ascontiguousarray(strip[:, 9990:10010])  # 20 columns become 1,280
    whole = T.CenterCrop(224)(T.Resize(256)(Image.fromarray(middle)))
    assert np.abs(ours - np.asarray(whole)).max() <= 1


@pytest.mark.parametrize(
    "bad", [{"interpolation": "nearest"}, {"resize_px": 100}, {"antialias": False}]
)
def test_what_is_not_supported_is_refused(bad: dict[str, object]) -> None:
    values = {"resize_px": 256, "crop_px": 224, "mean": MEAN, "std": STD, **bad}
    if "antialias" in bad:
        values["interpolation"] = "bicubic"
    with pytest.raises(ValueError, match="supported"):
        Preprocessing(**values)  # type: ignore[arg-type]
