"""Filmstrips: which videos are shown, and that the frames shown are those that were read."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest

from extract.decode import DecodeError
from extract.supervise import DecodeLimits
from pipelines.report import (
    MAX_FRAMES,
    RESULT_KEYS,
    ReportError,
    choose_frames,
    choose_results,
    make_filmstrip,
    read_results,
)
from pipelines.thumbnails import THUMBNAIL_PX, read_thumbnails


def result(video_id: str, label: str, fine_frames: int) -> dict[str, object]:
    return {"video_id": video_id, "labels": [label], "fine_frames": fine_frames}


RESULTS = [
    result("a1", "a", 0),
    result("a2", "a", 5),
    result("a3", "a", 3),
    result("b1", "b", 1),
    result("b2", "b", 4),
    result("c1", "c", 2),
]


def test_every_class_is_shown_and_both_much_and_little_fine_reading() -> None:
    chosen = [r["video_id"] for r in choose_results(RESULTS, 4)]
    assert chosen == ["a2", "b1", "c1", "a3"]  # most of a, fewest of b, c's only one, then a again


def test_the_choice_does_not_depend_on_the_order_of_results() -> None:
    shuffled = Random(0).sample(RESULTS, len(RESULTS))
    assert choose_results(shuffled, 5) == choose_results(RESULTS, 5)


def test_more_videos_than_there_are_shows_all_of_them_once() -> None:
    assert sorted(r["video_id"] for r in choose_results(RESULTS, 99)) == [
        r["video_id"] for r in RESULTS
    ]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames of 160 × 60 px; frame n is grey of level 5 n."""
    path = tmp_path_factory.mktemp("clip") / "numbered.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 60, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for number in range(50):
            pixels = np.full((60, 160, 3), 5 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_thumbnails_are_the_frames_asked_for_fitted_on_white(numbered: Path) -> None:
    indices = np.array([0, 7, 7, 30, 49])
    thumbnails = read_thumbnails(numbered, indices)
    width, height = THUMBNAIL_PX
    assert thumbnails.shape == (5, height, width, 3)
    levels = thumbnails[:, height // 2, width // 2].mean(axis=1)
    assert np.abs(levels - 5 * indices).max() < 5  # nearer to its own level than to a neighbour's
    assert (thumbnails[:, :2] == 255).all()  # a wide picture leaves white above


def test_a_video_that_never_ends_to_decode_is_given_up(tmp_path: Path) -> None:
    """A named pipe that nobody writes to: opening it waits for ever."""
    os.mkfifo(tmp_path / "waits.mp4")
    limits = DecodeLimits(timeout_seconds=3.0)
    with pytest.raises(DecodeError, match=r"waits\.mp4: took longer than its time limit"):
        read_thumbnails(tmp_path / "waits.mp4", np.array([0]), limits=limits)


def test_a_video_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        read_thumbnails(tmp_path / "broken.mp4", np.array([0]))


class Store:
    """What make_filmstrip asks of a store: row k was made from frame 2 k."""

    frame_index = np.arange(0, 50, 2)
    duration_seconds = 5.0

    def __getitem__(self, video_id: str) -> Store:
        return self


def seen(rows: list[int], used: list[int]) -> dict[str, object]:
    return {
        "video_id": "x",
        "labels": ["dog"],
        "predicted": "cat",
        "correct": False,
        "rows": rows,
        "pts_seconds": [row / 5 for row in rows],
        "used": used,
    }


def test_a_strip_shows_the_frames_of_the_rows_that_were_seen(numbered: Path) -> None:
    strip = make_filmstrip(seen([1, 5, 20], [0, 1, 0]), numbered, Store())  # type: ignore[arg-type]
    levels = strip.frames_THWC[:, 120, 160].mean(axis=1)
    assert np.abs(levels - 5 * np.array([2, 10, 40])).max() < 5
    assert strip.used_T.tolist() == [False, True, False]
    assert strip.pts_seconds_T.tolist() == [0.2, 1.0, 4.0]
    assert strip.title == "x (dog, taken for cat)"


def test_a_long_video_is_thinned_evenly_from_its_first_to_its_last_frame(numbered: Path) -> None:
    rows = [row % 25 for row in range(200)]
    rows.sort()
    strip = make_filmstrip(seen(rows, [0] * 200), numbered, Store())  # type: ignore[arg-type]
    assert len(strip.used_T) == MAX_FRAMES
    assert strip.pts_seconds_T[[0, -1]].tolist() == [0.0, 24 / 5]
    assert strip.title.endswith(f", {MAX_FRAMES} of 200 frames")


def test_thinning_keeps_the_frames_that_were_read_finely() -> None:
    used = np.zeros(100, bool)
    used[[3, 4, 97]] = True
    shown = choose_frames(used, 10)
    assert set(shown) >= {3, 4, 97}
    assert (len(set(shown)), shown.tolist()) == (10, sorted(shown))
    assert choose_frames(~used, 10).tolist() == sorted(choose_frames(~used, 10))
    assert len(choose_frames(~used, 10)) == 10


def test_missing_and_empty_results_name_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "evaluate_val_videos.jsonl"
    with pytest.raises(ReportError, match=rf"liteeval-train evaluate {tmp_path}"):
        read_results(path)
    path.touch()
    with pytest.raises(ReportError, match="no video was evaluated"):
        read_results(path)
    result = dict.fromkeys(RESULT_KEYS, 1)
    path.write_text(json.dumps(result) + "\n")
    assert read_results(path) == [result]
    path.write_text('{"video_id": "cut o')
    with pytest.raises(ReportError, match=r"damaged .*; make it anew with liteeval-train evaluate"):
        read_results(path)
