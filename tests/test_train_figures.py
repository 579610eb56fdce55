"""Filmstrips: the pixels that are written."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from liteeval_train.figures import (
    FINE_GREEN,
    Curve,
    Filmstrip,
    draw_boxes,
    draw_curves,
    draw_filmstrips,
)


def strip(steps: int, used: list[int]) -> Filmstrip:
    frames = np.full((steps, 60, 80, 3), 40, dtype=np.uint8)
    marks = np.isin(np.arange(steps), used)
    return Filmstrip("clip", frames, marks, np.arange(steps) * 1.0)


def green_pixels(path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    green = np.round(np.array(to_rgb(FINE_GREEN)) * 255)
    return int((np.abs(pixels - green).max(axis=2) <= 2).sum())


def test_frames_read_finely_have_a_green_border(tmp_path):
    counts = []
    for used in ([], [2], [2, 5]):
        draw_filmstrips([strip(7, used)], tmp_path / "strip.png")
        counts.append(green_pixels(tmp_path / "strip.png"))
    assert counts[0] == 0
    assert counts[1] > 500
    assert counts[2] == pytest.approx(2 * counts[1], rel=0.1)


def test_long_strips_go_on_below(tmp_path):
    heights = []
    for steps in (12, 13):
        draw_filmstrips([strip(steps, [])], tmp_path / "strip.png", columns=12)
        heights.append(Image.open(tmp_path / "strip.png").height)
    assert heights[1] > heights[0]


def test_strip_whose_lengths_differ_is_refused():
    with pytest.raises(ValueError, match=r"must be \(3,\)"):
        Filmstrip("clip", np.zeros((3, 4, 4, 3), np.uint8), np.zeros(2, bool), np.zeros(3))
    with pytest.raises(ValueError, match="uint8"):
        Filmstrip("clip", np.zeros((3, 4, 4, 3)), np.zeros(3, bool), np.zeros(3))


def test_picture_without_strips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no filmstrips"):
        draw_filmstrips([], tmp_path / "strip.png")


def test_curves_come_with_their_points_as_csv(tmp_path):
    draw_curves([Curve("a", [1, 2], [3.5, 4])], tmp_path / "curve", x_label="GFLOPs", y_label="%")
    assert (tmp_path / "curve.csv").read_text().split() == ["line,GFLOPs,%", "a,1,3.5", "a,2,4"]
    assert Image.open(tmp_path / "curve.png").width > 600


def test_boxes_stand_in_order_of_their_means(tmp_path):
    draw_boxes({"few": [1, 2], "many": [3, 9]}, tmp_path / "boxes", y_label="frames")
    lines = (tmp_path / "boxes.csv").read_text().split()
    assert lines == ["group,frames", "many,3", "many,9", "few,1", "few,2"]
    assert Image.open(tmp_path / "boxes.png").height > 300


def test_curve_without_points_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 x and 0 y"):
        Curve("a", [], [])
    with pytest.raises(ValueError, match="no curves"):
        draw_curves([], tmp_path / "x", x_label="", y_label="")
