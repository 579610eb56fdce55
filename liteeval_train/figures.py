"""Pictures of results. matplotlib draws to files only; no display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FINE_GREEN = "#009E73"  # of the Okabe-Ito palette, told apart by colour-blind readers
BORDER_POINTS = 4.0


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


def draw_filmstrips(
    strips: Sequence[Filmstrip], path: Path, *, columns: int = 12, dpi: int = 150
) -> None:
    """Write one picture with a strip per video; a strip longer than `columns` goes on below.

    Frames that were read finely have a green border (the paper's Figure 5) and the word "fine" in
    their caption, so that the picture does not rest on colour alone.
    Raises: ValueError without strips.
    """
    if not strips:
        raise ValueError("no filmstrips to draw")
    columns = min(columns, max(len(strip.used_T) for strip in strips))
    lines = [-(-len(strip.used_T) // columns) for strip in strips]
    height, width = strips[0].frames_THWC.shape[1:3]
    frame_inches = 1.1
    line_inches = frame_inches * height / width + 0.28
    title_inches = 0.34
    total = sum(count * line_inches + title_inches for count in lines) + 0.3
    figure = Figure(figsize=(columns * frame_inches * 1.06 + 0.2, total), dpi=dpi)
    top = total - 0.05
    for strip, count in zip(strips, lines, strict=True):
        _draw_strip(figure, strip, top, columns, line_inches, title_inches)
        top -= count * line_inches + title_inches
    legend = "green border: read by the fine backbone; other frames: coarse backbone only"
    figure.text(0.1 / figure.get_figwidth(), 0.08 / total, legend, fontsize=8, color="0.3")
    FigureCanvasAgg(figure).print_figure(path, dpi=dpi, facecolor="white")


def _draw_strip(
    figure: Figure,
    strip: Filmstrip,
    top: float,
    columns: int,
    line_inches: float,
    title_inches: float,
) -> None:
    """Draw a strip whose upper edge lies `top` inches above the figure's lower one."""
    width, height = figure.get_size_inches()
    cell = (width - 0.2) / columns
    used = int(strip.used_T.sum())
    title = f"{strip.title} — {used} of {len(strip.used_T)} frames read finely"
    figure.text(0.1 / width, (top - 0.22) / height, title, fontsize=10)
    for number, frame in enumerate(strip.frames_THWC):
        line, column = divmod(number, columns)
        bottom = top - title_inches - (line + 1) * line_inches + 0.24
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
