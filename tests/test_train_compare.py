"""Tables: rows, formats, averages over seeds."""

import csv
import io
import json

import pytest

from liteeval_train.compare import average_seeds, format_comparison, format_seeds
from liteeval_train.config import TrainConfig


def summary(method: str, top1: float, gflops: float) -> dict:
    return {
        "method": method,
        "split": "val",
        "top1": top1,
        "map": top1 / 2,
        "gflops_mean": gflops,
        "gflops_std": 1.0,
        "fine_frames_mean": 2.0,
        "fine_frames_std": 0.5,
        "frames_mean": 30.0,
        "seconds_per_video": 0.001,
    }


def test_seeds_of_a_method_become_their_mean_and_sample_deviation():
    rows = average_seeds(
        [summary("lstm", 0.7, 3), summary("uniform", 0.5, 9), summary("lstm", 0.9, 5)],
        [
            TrainConfig(method="lstm"),
            TrainConfig(method="uniform"),
            TrainConfig(method="lstm", seed=1),
        ],
        ["lstm-0", "uniform-0", "lstm-1"],
    )
    assert [(row["method"], row["runs"]) for row in rows] == [("lstm", 2), ("uniform", 1)]
    assert rows[0]["top1"] == pytest.approx(0.8)
    assert rows[0]["top1_std"] == pytest.approx(0.1 * 2**0.5)  # sqrt((0.1² + 0.1²) / (2 − 1))
    assert rows[0]["gflops_mean"] == 4
    assert rows[1]["top1_std"] == 0
    text = format_seeds(rows, "table").splitlines()
    assert text[0].startswith("split val; 1 multiply-add = 1 FLOP")
    assert "80.0 ± 14.1" in text[4]
    assert json.loads(format_seeds(rows, "json"))["methods"] == rows
    parsed = list(csv.DictReader(io.StringIO(format_seeds(rows, "csv"))))
    assert [float(row["map"]) for row in parsed] == [row["map"] for row in rows]


def test_configurations_of_one_method_are_rows_of_their_own_with_a_run_each():
    rows = average_seeds(
        [summary("lstm", 0.7, 3), summary("lstm", 0.9, 5), summary("lstm", 0.5, 9)],
        [TrainConfig(method="lstm", **more) for more in ({}, {"seed": 1}, {"epochs": 3})],
        ["wide-0", "wide-1", "narrow-0"],
    )
    assert [(row["run"], row["runs"], row["gflops_mean"]) for row in rows] == [
        ("wide-0", 2, 4),
        ("narrow-0", 1, 9),
    ]
    header, _, *lines = format_seeds(rows, "markdown").splitlines()[2:]
    assert [cell.strip() for cell in header.split("|")][1:4] == ["method", "first run", "runs"]
    assert [[c.strip() for c in line.split("|")][2:4] for line in lines] == [
        ["wide-0", "2"],
        ["narrow-0", "1"],
    ]
    assert "first run" not in format_seeds(rows[:1], "table")


def test_columns_that_some_rows_have_stand_at_the_end():
    rows = [{**summary("a", 0.5, 3), "budget": 2}, summary("b", 0.25, 4)]
    lines = format_comparison(rows, "markdown").splitlines()[2:]
    assert [cell.strip() for cell in lines[0].split("|")][-2] == "budget"
    assert [cell.strip() for cell in lines[2].split("|")][1:4] == ["a", "50.0", "25.0"]
    assert [cell.strip() for cell in lines[2].split("|")][-2] == "2"
    assert [cell.strip() for cell in lines[3].split("|")][-2] == ""
