"""Pictures of results. matplotlib draws to files only; no display is needed.

Names of runs, videos and classes are drawn as they are: no mathematics between dollar signs.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

FINE_GREEN = "#009E73"  # of the Okabe-Ito palette, told apart by colour-blind readers
BORDER_POINTS = 4.0
FRAME_INCHES = 1.1
MIN_COLUMNS = 6  # so that the legend and most titles fit
LETTERS_PER_INCH = 11  # of a title in 10 points, on the safe side
TITLE_LINE_INCHES = 0.2


@dataclass(frozen=True)
class Filmstrip:
    """The frames of one video that were seen, and which of them were read finely."""

    title: str
    frames_THWC: np.ndarray  # uint8 RGB
    used_T: np.ndarray  # bool
    pts_seconds_T: np.ndarray

    def __post_init__(self) -> None:
        frames, steps = self.frames_THWC, len(self.frames_THWC)
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or steps == 0:
            raise ValueError(f"frames must be (T, H, W, 3) uint8, got {frames.shape}")
        if self.used_T.shape != (steps,) or self.pts_seconds_T.shape != (steps,):
            raise ValueError(
                f"used and pts_seconds must be ({steps},), got {self.used_T.shape} and "
                f"{self.pts_seconds_T.shape}"
            )


# The Okabe-Ito palette without its yellow, and a mark for each, so that colour is never alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Curve:
    """Points of one line, in the units of the axes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError(f"{self.label}: {len(self.x)} x and {len(self.y)} y values")


def with_ending(path: Path, ending: str) -> Path:
    """A full stop in the name is none of an ending: g-0.01 becomes g-0.01.png."""
    return path.with_name(path.name + ending)


def draw_curves(curves: Sequence[Curve], path: Path, *, x_label: str, y_label: str) -> None:
    """Write PATH.png with a line per curve, and its points as PATH.csv.

    Raises: ValueError without curves.
    """
    figure, axes = _figure()
    lines = _plot(axes, curves, COLOURS, x_label=x_label, y_label=y_label)
    axes.grid(alpha=0.3)
    legend = axes.legend(lines, [curve.label for curve in curves], frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, with_ending(path, ".png"))
    rows = [(c.label, x, y) for c in curves for x, y in zip(c.x, c.y, strict=True)]
    _write_csv(with_ending(path, ".csv"), ("line", x_label, y_label), rows)


def _plot(
    axes: Axes,
    curves: Sequence[Curve],
    colours: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    joined: bool = True,
) -> list[Line2D]:
    if not curves:
        raise ValueError("no curves to draw")
    lines: list[Line2D] = []
    for number, curve in enumerate(curves):
        colour, marker = style_of(number)
        dots = len(curve.x) <= 30 or not joined
        lines += axes.plot(
            curve.x,
            curve.y,
            color=colours[colour],
            marker=MARKERS[marker] if dots else None,
            linestyle="-" if joined else "none",
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if all(float(x).is_integer() for curve in curves for x in curve.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return lines


def style_of(number: int) -> tuple[int, int]:
    """Colour and mark of a curve, as places in COLOURS and MARKERS: 49 pairs before one repeats."""
    return number % len(COLOURS), (number + number // len(COLOURS)) % len(MARKERS)


# Colours that stand for variables of a page's style sheet, so that a picture follows light and dark
INK, GRID = "#010203", "#010204"
VARIABLES = {INK: "var(--ink)", GRID: "var(--rule)"} | {
    f"#0a0b{number:02x}": f"var(--series-{number})" for number in range(len(COLOURS))
}


def curves_svg(curves: Sequence[Curve], *, x_label: str, y_label: str, joined: bool = True) -> str:
    """An <svg> element for a page, without prolog, legend, width or height.

    Colours are variables of the page's style sheet: --ink, --rule, --series-0, … (`style_of`).
    Texts stay texts. Labels of curves are not in it: the page tells them.
    Raises: ValueError without curves.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{x_label} {y_label} {len(curves)}",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=(4.5, 3.1), layout="constrained")
        axes = figure.add_subplot()
        colours = [colour for colour in VARIABLES if colour not in (INK, GRID)]
        _plot(axes, curves, colours, x_label=x_label, y_label=y_label, joined=joined)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        text = io.StringIO()
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(text, metadata=about)
    return _as_element(text.getvalue())


def _as_element(document: str) -> str:
    """The svg element of a document that matplotlib wrote, ready to stand inside a page."""
    svg = document[document.index("<svg ") :]
    for pattern, replacement in (
        (r"<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", ""),  # its rules would reach the page
        (r' (?:xmlns:xlink|version)="[^"]*"', ""),
        (r"xlink:href", "href"),
        (r"font-family: [^;]*;", "font-family: inherit;"),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    used = set(re.findall(r'#([\w.]+)["\)]', svg))
    svg = re.sub(r' id="([\w.]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def draw_boxes(groups: Mapping[str, Sequence[float]], path: Path, *, y_label: str) -> None:
    """Write PATH.png with a box per group and a dot at its mean, and all values as PATH.csv.

    Groups stand in order of their means. Raises: ValueError without groups.
    """
    if not groups:
        raise ValueError("no groups to draw")
    ordered = sorted(groups.items(), key=lambda item: -float(np.mean(item[1])))
    figure, axes = _figure(width_inches=max(6.4, 0.35 * len(groups)))
    axes.boxplot(
        [list(values) for _, values in ordered],
        showmeans=True,
        meanprops={"marker": "o", "markerfacecolor": COLOURS[1], "markeredgecolor": COLOURS[1]},
        medianprops={"color": COLOURS[0]},
    )
    names = [name for name, _ in ordered]
    axes.set_xticks(
        range(1, len(names) + 1), names, rotation=60, ha="right", fontsize=8, parse_math=False
    )
    axes.set_ylabel(y_label)
    axes.grid(axis="y", alpha=0.3)
    _save(figure, with_ending(path, ".png"))
    rows = [(name, value) for name, values in ordered for value in values]
    _write_csv(with_ending(path, ".csv"), ("group", y_label), rows)


def _figure(width_inches: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inches, 4.2), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(path, dpi=150, facecolor="white")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def draw_filmstrips(
    strips: Sequence[Filmstrip], path: Path, *, columns: int = 12, dpi: int = 150
) -> None:
    """Write one picture with a strip per video; a strip longer than `columns` goes on below.

    Frames that were read finely have a green border (the paper's Figure 5) and the word "fine" in
    their caption, so that the picture does not rest on colour alone. Titles wrap.
    Raises: ValueError without strips.
    """
    if not strips:
        raise ValueError("no filmstrips to draw")
    columns = min(columns, max(MIN_COLUMNS, *(len(strip.used_T) for strip in strips)))
    width = columns * FRAME_INCHES * 1.06 + 0.2
    titles = [textwrap.wrap(_title(strip), int(width * LETTERS_PER_INCH)) for strip in strips]
    lines = [-(-len(strip.used_T) // columns) for strip in strips]
    heights = [_aspect(strip) * FRAME_INCHES + 0.28 for strip in strips]
    title_inches = [0.14 + TITLE_LINE_INCHES * len(title) for title in titles]
    total = sum(n * h + t for n, h, t in zip(lines, heights, title_inches, strict=True)) + 0.3
    figure = Figure(figsize=(width, total), dpi=dpi)
    top = total - 0.05
    for strip, title, inches, count, line_inches in zip(
        strips, titles, title_inches, lines, heights, strict=True
    ):
        _write_title(figure, title, top)
        _draw_strip(figure, strip, top - inches, columns, line_inches)
        top -= count * line_inches + inches
    legend = "green border: read by the fine backbone; other frames: coarse backbone only"
    figure.text(0.1 / width, 0.08 / total, legend, fontsize=8, color="0.3")
    FigureCanvasAgg(figure).print_figure(path, dpi=dpi, facecolor="white")


def _title(strip: Filmstrip) -> str:
    used = int(strip.used_T.sum())
    return f"{strip.title} — {used} of {len(strip.used_T)} frames read finely"


def _write_title(figure: Figure, lines: Sequence[str], top: float) -> None:
    width, height = figure.get_size_inches()
    for number, line in enumerate(lines):
        y = (top - 0.22 - number * TITLE_LINE_INCHES) / height
        figure.text(0.1 / width, y, line, fontsize=10, parse_math=False)


def _aspect(strip: Filmstrip) -> float:
    """Height of a frame over its width."""
    height, width = strip.frames_THWC.shape[1:3]
    return height / width


def _draw_strip(
    figure: Figure, strip: Filmstrip, top: float, columns: int, line_inches: float
) -> None:
    """Draw frames whose upper edge lies `top` inches above the figure's lower one."""
    width, height = figure.get_size_inches()
    cell = (width - 0.2) / columns
    for number, frame in enumerate(strip.frames_THWC):
        line, column = divmod(number, columns)
        bottom = top - (line + 1) * line_inches + 0.24
        axes = figure.add_axes(
            (
                (0.1 + column * cell + 0.03) / width,
                bottom / height,
                (cell - 0.06) / width,
                (line_inches - 0.28) / height,
            )
        )
        _draw_frame(axes, frame, bool(strip.used_T[number]), float(strip.pts_seconds_T[number]))


def _draw_frame(axes: Axes, frame_HWC: np.ndarray, used: bool, pts_seconds: float) -> None:
    axes.imshow(frame_HWC, aspect="auto", interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FINE_GREEN if used else "0.8")
        spine.set_linewidth(BORDER_POINTS if used else 0.5)
    caption = f"{pts_seconds:.1f} s" + (" · fine" if used else "")
    axes.set_xlabel(
        caption,
        fontsize=7,
        labelpad=3,
        color=FINE_GREEN if used else "0.3",
        fontweight="bold" if used else "normal",
    )
