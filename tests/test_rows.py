"""One decoding pass gives every backbone the frames it would get alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import Clip, steady_times

from extract import decode
from extract.preprocess import Preprocessing
from extract.rows import iter_rows, repeats
from extract.sampling import Timeline

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


def test_inputs_of_one_size_and_filter_share_each_resize(
    path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows: four resizes to 48 px, which two networks share, and four to 40 px."""
    resize, sizes = Preprocessing.resize_and_crop, []

    def counting(self: Preprocessing, frame: np.ndarray) -> np.ndarray:
        sizes.append(self.resize_px)
        return resize(self, frame)

    monkeypatch.setattr(Preprocessing, "resize_and_crop", counting)
    inputs = {"a": FRAME, "b": replace(FRAME, mean=(0.1, 0.2, 0.3)), "small": SMALL}
    rows = list(iter_rows(decode.probe(path), 1.0, inputs))
    assert (sizes.count(48), sizes.count(40)) == (4, 4)
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(row["b"], resize(FRAME, pictures[25 * k]))


def test_a_snippet_and_a_frame_of_one_size_share_frames(
    path: Path, pictures: list[np.ndarray]
) -> None:
    inputs = {"clip": CLIP, "frame": replace(CLIP, frames=1)}
    for k, row in enumerate(iter_rows(decode.probe(path), 1.0, inputs)):
        np.testing.assert_array_equal(row["frame"], CLIP.resize_and_crop(pictures[25 * k]))
        expected = [CLIP.resize_and_crop(pictures[i]) for i in snippet_by_hand(k)]
        np.testing.assert_array_equal(row["clip"], np.stack(expected))


def test_a_row_repeats_where_every_input_shows_the_same_frames() -> None:
    """Frames at 0, 2 and 10 s. A snippet reaches 1 s to either side of its row."""
    timeline = Timeline(np.array([0.0, 2.0, 10.0]), 12.0)
    alone = repeats(timeline, 1.0, {"frame": FRAME})
    assert np.flatnonzero(~alone).tolist() == [0, 2, 10]
    both = repeats(timeline, 1.0, {"frame": FRAME, "clip": CLIP})
    assert np.flatnonzero(~both).tolist() == [0, 1, 2, 3, 4, 9, 10, 11]
    chosen = repeats(timeline, 1.0, {"frame": FRAME}, np.array([0, 1, 5, 11]))
    assert chosen.tolist() == [False, True, False, False]
