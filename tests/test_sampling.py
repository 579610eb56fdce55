"""Which frame is on display when: arithmetic against a plain loop over the definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from clips import rows_by_hand, steady_times
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.sampling import Timeline, row_count, row_frames, snippet_frames

# Whole milliseconds keep every case clear of the tolerance of 1e-6 s.
gaps_ms = st.lists(st.integers(1, 700), max_size=30)
rates = st.sampled_from([Fraction(1), Fraction(2), Fraction(5, 2), Fraction(7), Fraction(1, 3)])


def make_timeline(gaps: list[int], last_ms: int) -> tuple[list[Fraction], Fraction, Timeline]:
    shown = [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps) + 1)]
    duration = shown[-1] + Fraction(last_ms, 1000)
    return shown, duration, Timeline(np.array(shown, dtype=np.float64), float(duration))


@given(gaps_ms, st.integers(1, 1500), rates)
def test_rows_equal_a_plain_loop_over_the_definition(
    gaps: list[int], last_ms: int, fps: Fraction
) -> None:
    shown, duration, timeline = make_timeline(gaps, last_ms)
    assert row_frames(timeline, float(fps)).tolist() == rows_by_hand(shown, duration, fps)


@settings(max_examples=30)
@given(gaps_ms, st.integers(1, 1500), rates)
def test_snippets_equal_a_plain_loop_over_the_definition(
    gaps: list[int], last_ms: int, fps: Fraction
) -> None:
    shown, _, timeline = make_timeline(gaps, last_ms)
    for k, row in enumerate(snippet_frames(timeline, float(fps)).tolist()):
        times = [k / fps + Fraction(2 * i - 31, 30) for i in range(32)]
        assert row == [
            max((n for n, t in enumerate(shown) if t <= time + Fraction(1, 10**6)), default=0)
            for time in times
        ]


@given(gaps_ms, st.integers(1, 1500), rates)
def test_rows_never_go_back_and_never_leave_the_video(
    gaps: list[int], last_ms: int, fps: Fraction
) -> None:
    _, _, timeline = make_timeline(gaps, last_ms)
    rows = row_frames(timeline, float(fps))
    assert rows[0] == 0
    assert (np.diff(rows) >= 0).all()
    assert rows[-1] < len(timeline)


@pytest.mark.parametrize(
    ("seconds", "fps", "rows"),
    [(2, 1, 2), (2.5, 1, 3), (0.4, 1, 1), (0.04, 25, 1), (3, 2.5, 8), (1e-9, 1, 1), (10, 0.25, 3)],
)
def test_rows_run_while_their_time_is_before_the_end(seconds: float, fps: float, rows: int) -> None:
    assert row_count(seconds, fps) == rows


@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60, 90, 120])
def test_a_whole_rate_gives_every_rate_th_frame(rate: int) -> None:
    shown = steady_times(600, rate)
    timeline = Timeline(np.array(shown, dtype=np.float64), 600 / rate)
    assert row_frames(timeline, 1).tolist() == list(range(0, 600, rate))


def test_ntsc_rate_shows_the_frame_that_began_before_the_second() -> None:
    # Frame i begins at i × 1001/30000 s: frame 30 at 1.001 s, so at 1 s frame 29 is on display.
    shown = steady_times(150, Fraction(30000, 1001))
    timeline = Timeline(np.array(shown, dtype=np.float64), 150 * 1001 / 30000)
    assert row_frames(timeline, 1).tolist() == [0, 29, 59, 89, 119, 149]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="fps must be positive"):
        row_count(1.0, fps)


@pytest.mark.parametrize("pts", [[], [1.0, 2.0], [0.0, 0.0], [0.0, 2.0, 1.0]])
def test_a_timeline_must_start_at_zero_and_ascend(pts: list[float]) -> None:
    with pytest.raises(ValueError, match=r"timeline|ascend"):
        Timeline(np.array(pts), 5.0)
