"""One decoding pass gives every backbone the frames it would get alone."""

from pathlib import Path

import numpy as np
import pytest
from clips import Clip, steady_times

from extract import decode
from extract.preprocess import Preprocessing
from extract.rows import iter_rows

MEAN = STD = (0.5, 0.5, 0.5)
FRAME = Preprocessing(48, 32, MEAN, STD)
SMALL = Preprocessing(40, 24, MEAN, STD)
CLIP = Preprocessing(32, 32, MEAN, STD, antialias=False, frames=32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = Clip("rows.mp4", "libx264", steady_times(80, 25), options={"g": "30"})
    return clip.build(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def pictures(path: Path) -> list[np.ndarray]:
    video = decode.probe_by_decoding(path)
    return list(decode.iter_frames(video, np.arange(80)))


def snippet_by_hand(k: int, frames: int = 80, rate: int = 25) -> list[int]:
    """32 times, 1/15 s apart, centred on k seconds; the frame shown then, ends repeated."""
    times = [k + (i - 15.5) / 15 for i in range(32)]
    return [min(max(int(np.floor(t * rate + 1e-4)), 0), frames - 1) for t in times]


def test_single_frames_and_snippets_come_from_one_pass(
    path: Path, pictures: list[np.ndarray]
) -> None:
    inputs = {"frame": FRAME, "small": SMALL, "clip": CLIP}
    rows = list(iter_rows(decode.probe(path), 1.0, inputs))
    assert len(rows) == 4  # 80 frames at 25 fps last 3.2 s
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(row["frame"], FRAME.resize_and_crop(pictures[25 * k]))
        np.testing.assert_array_equal(row["small"], SMALL.resize_and_crop(pictures[25 * k]))
        expected = [CLIP.resize_and_crop(pictures[i]) for i in snippet_by_hand(k)]
        np.testing.assert_array_equal(row["clip"], np.stack(expected))


def test_a_rate_above_the_videos_repeats_frames(path: Path, pictures: list[np.ndarray]) -> None:
    rows = list(iter_rows(decode.probe(path), 50.0, {"frame": FRAME}))
    assert len(rows) == 160
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(row["frame"], FRAME.resize_and_crop(pictures[k // 2]))


def test_a_snippet_alone_needs_no_row_frame(path: Path, pictures: list[np.ndarray]) -> None:
    rows = list(iter_rows(decode.probe(path), 1.0, {"clip": CLIP}))
    expected = [CLIP.resize_and_crop(pictures[i]) for i in snippet_by_hand(2)]
    np.testing.assert_array_equal(rows[2]["clip"], np.stack(expected))
