"""Filmstrips: the pixels that are written. Figures as files and as parts of a page."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from liteeval_train.figures import (
    FINE_GREEN,
    Curve,
    Filmstrip,
    curves_svg,
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


def test_names_with_full_stops_are_kept_whole(tmp_path):
    for name in ("g-0.01", "g-0.03"):
        draw_boxes({"a": [1, 2]}, tmp_path / name, y_label="frames")
        draw_curves([Curve("a", [1], [2])], tmp_path / f"c{name}", x_label="x", y_label="y")
    expected = [f"{c}g-0.0{n}.{e}" for c in ("c", "") for n in (1, 3) for e in ("csv", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


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


def ink_at_the_right_edge(path) -> int:
    pixels = np.asarray(Image.open(path).convert("L"))
    return int((pixels[:, -4:] < 200).sum())


def test_a_long_title_over_few_frames_is_not_cut_off(tmp_path):
    heights = []
    for title in ("short", "basketball_shooting/a_long_name_of_a_video " * 4):
        titled = dataclasses.replace(strip(2, [1]), title=title)
        draw_filmstrips([titled], tmp_path / "strip.png")
        assert ink_at_the_right_edge(tmp_path / "strip.png") == 0
        heights.append(Image.open(tmp_path / "strip.png").height)
    assert heights[1] > heights[0]  # it went on in further lines


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(tmp_path):
    for name in ("$x^{$", "_hidden", "a$b$"):
        draw_curves([Curve(name, [1], [2])], tmp_path / "x", x_label="GFLOPs", y_label="%")
        draw_boxes({name: [1, 2]}, tmp_path / "x", y_label="frames")
        draw_filmstrips([dataclasses.replace(strip(2, []), title=name)], tmp_path / "x.png")


def test_a_figure_for_a_page_takes_its_colours_from_the_page_and_names_no_other_place():
    curves = [Curve(str(number), [1, 2], [number, 3]) for number in range(9)]
    svg = curves_svg(curves, x_label="GFLOPs", y_label="mAP %")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {*root.attrib} == {"viewBox"}  # as wide as the page lets it be
    assert set(re.findall(r"https?://[^\s\"]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"#[0-9a-fA-F]{6}\b|<style|<!--", svg)
    assert {f"var(--series-{n})" for n in range(7)} <= set(re.findall(r"var\([\w-]+\)", svg))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"GFLOPs", "mAP %"} <= set(texts)
    for reference in re.findall(r'(?:href="|url\()#([\w.]+)', svg):
        assert f'id="{reference}"' in svg
