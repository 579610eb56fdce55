"""The rendered clips: what the demo's story about them says must be true of their pixels."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from extract.decode import sample_frames
from extract.preprocess import Preprocessing
from pipelines.clips import CARD_PX, SCENES, plan_clips, render_clips

TEST_BACKBONE = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
COARSE = Preprocessing(128, 112, **TEST_BACKBONE)
FINE = Preprocessing(256, 224, **TEST_BACKBONE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    list(render_clips(folder, len(SCENES), seconds=(3.0, 4.0), seed=5))
    return folder


def clip(folder: Path, label: str) -> Path:
    (path,) = (folder / label).glob("*.mp4")
    return path


def test_a_clip_depends_on_its_number_and_the_seed_alone(clips: Path, tmp_path: Path) -> None:
    list(render_clips(tmp_path / "fewer", 2, seconds=(3.0, 4.0), seed=5))
    list(render_clips(tmp_path / "other", 1, seconds=(3.0, 4.0), seed=6))
    for path in (tmp_path / "fewer").rglob("*.mp4"):
        assert path.read_bytes() == (clips / path.relative_to(tmp_path / "fewer")).read_bytes()
    assert clip(tmp_path / "other", "checks").read_bytes() != clip(clips, "checks").read_bytes()


def test_clips_are_h264_of_the_stated_size_rate_and_length(clips: Path) -> None:
    for path in clips.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (320, 240)
            assert stream.average_rate in (10, 12, 15, 25)
            seconds = stream.frames / stream.average_rate
            assert 3.0 - 0.05 <= seconds <= 4.0 + 0.05  # rounded to a whole frame


def test_labels_name_every_clip_and_every_class_is_in_both_splits(tmp_path: Path) -> None:
    counts = Counter((clip.label, clip.split) for clip in plan_clips(60, seed=0))
    # Ten clips of each of six classes, every third of a class for validation: 3, 6 and 9.
    expected = {(label, "train"): 7 for label in SCENES} | {(label, "val"): 3 for label in SCENES}
    assert counts == expected


def test_labels_csv_lists_the_files(clips: Path) -> None:
    with (clips / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video_id", "label", "split"]
    files = {path.relative_to(clips).with_suffix("").as_posix() for path in clips.rglob("*.mp4")}
    assert {row["video_id"] for row in rows} == files


@pytest.mark.parametrize(
    ("label", "moves"), [("checks", False), ("sunset", False), ("disc", True), ("rain", True)]
)
def test_still_clips_stand_and_moving_clips_move(clips: Path, label: str, moves: bool) -> None:
    frames = sample_frames(clip(clips, label), 1.0).frames.astype(int)
    change = np.abs(frames[1:] - frames[:-1]).mean(axis=(1, 2, 3)).min()
    assert (change > 2) == moves


def card_contrast(frame: np.ndarray, preprocessing: Preprocessing) -> float:
    """Standard deviation of grey inside the card, which lies near the middle of the picture."""
    grey = preprocessing.resize_and_crop(frame).astype(float).mean(axis=2)
    middle = slice(len(grey) * 2 // 5, len(grey) * 3 // 5)
    return float(grey[middle, middle].std())


def test_the_print_of_a_card_is_there_for_the_fine_backbone_and_fades_for_the_coarse(
    clips: Path,
) -> None:
    frames = sample_frames(clip(clips, "card_printed"), 5.0).frames
    contrasts = [card_contrast(frame, FINE) for frame in frames]
    shown = frames[int(np.argmax(contrasts))]
    # Ink 20 and paper 246 in equal parts deviate by 113 from their mean.
    assert max(contrasts) > 113 / 2
    assert card_contrast(shown, COARSE) < 113 / 3
    assert min(contrasts) < 10  # the park without the card


def test_the_cards_have_the_same_mean_grey(clips: Path) -> None:
    greys = {}
    for label in ("card_plain", "card_printed"):
        frames = sample_frames(clip(clips, label), 5.0).frames.astype(float)
        patches = frames[:, 112:144, 136:184].mean(axis=(1, 2))
        colourless = np.ptp(patches, axis=1) < 10  # grass is green, a card is grey
        assert colourless.any()
        greys[label] = patches[colourless].mean()
    assert abs(greys["card_plain"] - greys["card_printed"]) < 6
    assert CARD_PX == 112
