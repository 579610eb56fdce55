"""Simulated stores: what stands in their rows."""

import json

import numpy as np
import pytest

from extract.store import FeatureStore
from liteeval_train.data import DataError, open_pair, read_labels
from liteeval_train.simulate import Simulation, key_frame_shares, key_rows, simulate


@pytest.mark.parametrize("needs", ["detail", "context"])
def test_key_frames_differ_from_others_by_the_strengths_asked_for(tmp_path, needs):
    simulation = Simulation(needs=needs, videos=60, classes=4, key_share=0.2)
    simulate(simulation, tmp_path)
    pair = open_pair(tmp_path / "coarse", tmp_path / "fine")
    keys = key_rows(tmp_path / "key_frames.jsonl")
    labels = read_labels(tmp_path / "labels.csv").videos
    sums = {}  # mean fine key row per class
    for name in pair.fine.video_ids:
        rows = sorted(keys[name])
        assert len(rows) == max(1, round(0.2 * pair.fine.rows(name)))
        fine = pair.fine[name].features.astype(float)
        sums.setdefault(labels[name][0], []).append(fine[rows].mean(axis=0))
    means = {label: np.mean(vectors, axis=0) for label, vectors in sums.items()}
    # Two orthogonal directions of length 6 lie 6 √2 apart; noise adds little to a mean of means.
    apart = np.linalg.norm(means["class_000"] - means["class_001"])
    assert apart == pytest.approx(6 * 2**0.5, rel=0.25)
    other_pair = np.linalg.norm(means["class_000"] - means["class_002"])
    if needs == "detail":
        assert other_pair == pytest.approx(6 * 2**0.5, rel=0.25)
    else:
        assert other_pair < 3.5  # the same side of another pair: no difference but noise


def test_one_seed_gives_one_simulation(tmp_path):
    for name in ("a", "b"):
        simulate(Simulation(videos=4, classes=2), tmp_path / name)
    stores = [FeatureStore(tmp_path / name / "fine") for name in ("a", "b")]
    for video in stores[0].video_ids:
        assert np.array_equal(stores[0][video].features, stores[1][video].features)
    assert json.loads((tmp_path / "a" / "simulation.json").read_text())["videos"] == 4


def test_stores_of_two_simulations_are_of_different_identity(tmp_path):
    for needs in ("detail", "context"):
        simulate(Simulation(videos=4, classes=2, needs=needs), tmp_path / needs)
    labels = [(tmp_path / needs / "labels.csv").read_bytes() for needs in ("detail", "context")]
    assert labels[0] == labels[1]  # so nothing else tells the two apart
    stores = [FeatureStore(tmp_path / needs / "fine") for needs in ("detail", "context")]
    (line,) = stores[0].identity.differences(stores[1].identity)
    assert line.startswith("weights_sha256")


def test_existing_simulation_and_odd_classes_are_refused(tmp_path):
    simulate(Simulation(videos=4, classes=2), tmp_path)
    with pytest.raises(DataError, match="holds a simulation already"):
        simulate(Simulation(videos=4, classes=2), tmp_path)
    with pytest.raises(DataError, match="classes must be even"):
        Simulation(classes=3)


def test_shares_of_key_and_other_frames_are_counted_over_all_videos():
    shares = key_frame_shares(
        {"a": {2, 3}, "b": {0}}, {"a": {2, 5}, "b": {1, 2}}, {"a": 10, "b": 4}
    )
    assert shares == {"key_frames_read": 1 / 4, "other_frames_read": 2 / 10}


def test_file_that_holds_no_key_frames_is_refused(tmp_path):
    path = tmp_path / "key_frames.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"not the key_frames.jsonl of a simulation"):
        key_rows(path)
