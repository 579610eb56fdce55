"""Tables: rows, formats, averages over seeds."""

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from liteeval_train.cli import main
from liteeval_train.compare import (
    average_seeds,
    compare_runs,
    format_comparison,
    format_seeds,
    format_table,
    table_of_runs,
)
from liteeval_train.config import PRESETS
from liteeval_train.layouts import Compared, group_runs
from liteeval_train.run_files import RunError, RunInfo, SplitInfo, name_folders


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


def run(
    name: str,
    *,
    classes: int = 3,
    fine: str = "resnet101",
    weights: str = "official",
    fps: float = 1.0,
    evaluated: bool = True,
    **config,
):
    """A run as its folder tells it; top-1 is 0.5 and costs grow with its seed."""
    stores = {
        role: {
            "path": f"/{role}",
            "identity": {
                "backbone": backbone,
                "input_size_px": size,
                "weights_sha256": backbone + weights,
                "sample_fps": fps,
            },
        }
        for role, backbone, size in (("coarse", "mobilenet_v2", 112), ("fine", fine, 224))
    }
    info = RunInfo.model_validate(
        {
            "config": PRESETS[config.get("preset", "fcvid")] | config,
            **stores,
            "labels_path": "/labels.csv",
            "labels_sha256": "0",
            "classes": [str(number) for number in range(classes)],
            "versions": {},
        }
    )
    method = info.config.method
    numbers = summary(method, 0.5, 2.0 + info.config.seed) if evaluated else None
    return Compared(name, Path(name), info, numbers)


def told(name: str, top1: float, gflops: float, **more) -> Compared:
    """A run with these numbers."""
    made = run(name, **more)
    return replace(made, summary=summary(made.info.config.method, top1, gflops))


def test_a_configuration_trained_twice_with_one_seed_is_one_sample():
    """As `liteeval` and the run of a matrix over γ that has its γ."""
    runs = [
        told("liteeval", 0.7, 3, method="liteeval"),
        told("with-0.05", 0.7, 3, method="liteeval"),
        told("with-0.1", 0.5, 5, method="liteeval", fine_share_target=0.1),
    ]
    assert [(row["run"], row["runs"]) for row in average_seeds(runs)] == [
        ("liteeval", 1),
        ("with-0.1", 1),
    ]
    (table,) = group_runs(runs)
    assert [row.seeds for row in table.rows] == [1, 1]
    assert table.names == {"liteeval", "with-0.05", "with-0.1"}
    assert "runs" not in format_table(table, "markdown")


def test_seeds_of_a_method_become_their_mean_and_sample_deviation():
    rows = average_seeds(
        [
            told("lstm-0", 0.7, 3, method="lstm"),
            told("uniform-0", 0.5, 9, method="uniform"),
            told("lstm-1", 0.9, 5, method="lstm", seed=1),
        ]
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
        [
            told("wide-0", 0.7, 3, method="lstm"),
            told("wide-1", 0.9, 5, method="lstm", seed=1),
            told("narrow-0", 0.5, 9, method="lstm", epochs=3),
        ]
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


def changed(run: Compared, **info) -> Compared:
    return replace(run, info=run.info.model_copy(update=info))


@pytest.mark.parametrize(
    "other",
    [
        run("other", seed=1, fine="dpn107"),
        run("other", seed=1, weights="ours"),
        run("other", seed=1, fps=5.0),
        changed(run("other", seed=1), labels_sha256="1"),
        changed(run("other", seed=1), precision="bf16-mixed"),
        changed(run("other", seed=1), splits={"val": SplitInfo(videos=3, sha256="1")}),
    ],
    ids=["backbone", "weights", "fps", "labels", "precision", "videos"],
)
def test_runs_on_other_data_or_in_another_precision_are_no_seeds_of_one(other):
    rows = average_seeds([run("ours"), run("again", seed=2), other])
    assert [(row["run"], row["runs"]) for row in rows] == [("ours", 2), ("other", 1)]
    for table in group_runs([run("ours"), run("gru", cell="gru"), other]):
        assert not any({"ours", "other"} <= set(row.names) for row in table.rows)


def test_features_of_one_backbone_that_were_made_in_two_ways_are_two_rows():
    runs = [run("official"), run("ours", weights="ours"), run("dpn", fine="dpn107")]
    alike = [changed(r, coarse=runs[0].info.coarse) for r in runs]
    (table,) = group_runs(alike)
    assert [row.names for row in table.rows] == [("official",), ("ours",), ("dpn",)]
    first, second, third = (row.values[-1] for row in table.rows)
    assert re.fullmatch(r"resnet101@224 \([0-9a-f]{8}\)", first)
    assert first != second
    assert third == "dpn107@224"


@pytest.mark.parametrize(
    ("runs", "title"),
    [
        ([run("a", fine_share_target=0.5), run("b")], "Wanted share of fine frames γ (Table 7)"),
        ([run("a", fine_share_target=0.5), run("b"), run("c", seed=1)], "Wanted share of fine"),
        ([run("a", method="lstm"), run("b"), run("c", seed=1)], "Methods (the paper's Table 1)"),
        ([run("a", cell="gru"), run("b")], "Recurrent cells (Table 6)"),
        ([run("a", synchronise=False), run("b")], "Synchronisation (Table 8)"),
        ([run("a", coarse_hidden=64), run("b")], "Width of the coarse RNN (Table 9)"),
        ([run("a", fps=5.0), run("b")], "Sample fps"),
    ],
)
def test_table_of_what_differs_is_shown_where_it_covers_every_run_too(runs, title, tmp_path):
    for each in runs:
        folder = tmp_path / each.name
        folder.mkdir()
        (folder / "config.json").write_text(each.info.model_dump_json())
        (folder / "evaluate_val.json").write_text(json.dumps(each.summary))
    paths = [str(tmp_path / each.name) for each in runs]
    result = CliRunner().invoke(main, ["compare", *paths, *paths, "--format", "json"])
    document = json.loads(result.stdout)
    assert len(document["runs"]) == len(runs)  # each was given twice
    assert [table["title"].startswith(title) for table in document["tables"]] == [True]
    assert sum(len(row["runs"]) for row in document["tables"][0]["rows"]) == len(runs)
    assert title in CliRunner().invoke(main, ["compare", *paths]).stdout


def test_methods_with_one_run_each_are_told_once():
    runs = [run("lstm", method="lstm"), run("ours")]
    assert json.loads(compare_runs(runs, "json"))["tables"] == []


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    paths = [tmp_path / "x1" / "lstm", tmp_path / "x2" / "lstm", tmp_path / "x1" / "gru"]
    names = name_folders([*paths, tmp_path / "x2" / ".." / "x1" / "lstm"])
    assert list(names.values()) == ["x1/lstm", "x2/lstm", "gru"]
    assert list(names) == paths


def test_columns_that_some_rows_have_stand_at_the_end():
    rows = [{**summary("a", 0.5, 3), "budget": 2}, summary("b", 0.25, 4)]
    lines = format_comparison(rows, "markdown").splitlines()[2:]
    assert [cell.strip() for cell in lines[0].split("|")][-2] == "budget"
    assert [cell.strip() for cell in lines[2].split("|")][1:4] == ["a", "50.0", "25.0"]
    assert [cell.strip() for cell in lines[2].split("|")][-2] == "2"
    assert [cell.strip() for cell in lines[3].split("|")][-2] == ""


def shape(tables) -> dict[str, list[tuple]]:
    return {table.title: [row.values for row in table.rows] for table in tables}


def test_runs_stand_in_the_papers_tables_by_what_differs():
    runs = [
        run("lstm", method="lstm"),
        run("ours"),
        run("gru", cell="gru"),
        run("less", fine_share_target=0.01),
        run("more", fine_share_target=0.1),
        run("apart", synchronise=False),
        run("narrow", coarse_hidden=64),
        run("dpn-lstm", method="lstm", fine="dpn107"),
        run("dpn", fine="dpn107"),
        run("long", epochs=300),
        run("not yet", cell="sru", evaluated=False),
    ]
    assert shape(group_runs(runs)) == {
        "Fine features (Table 2)": [
            ("lstm", "resnet101@224"),
            ("lstm", "dpn107@224"),
            ("liteeval", "resnet101@224"),
            ("liteeval", "dpn107@224"),
        ],
        "Recurrent cells (Table 6)": [("lstm",), ("gru",)],
        "Wanted share of fine frames γ (Table 7)": [(0.01,), (0.05,), (0.1,)],
        "Synchronisation (Table 8)": [(False,), (True,)],
        "Width of the coarse RNN (Table 9)": [(64,), (512,)],
        "Epochs": [(100,), (300,)],
    }  # methods alone would be a part of Table 2


def test_runs_that_differ_in_two_things_or_in_their_data_share_no_table():
    other = run("other", cell="gru", fine_share_target=0.1)
    assert group_runs([run("ours"), other]) == []
    elsewhere = run("elsewhere", cell="gru")
    moved = elsewhere.info.model_copy(update={"labels_sha256": "1"})
    assert group_runs([run("ours"), replace(elsewhere, info=moved)]) == []
    on_test = replace(elsewhere, summary={**elsewhere.summary, "split": "test"})
    assert group_runs([run("ours"), on_test]) == []


def test_seeds_are_one_row_with_mean_and_deviation():
    runs = [run("a"), run("b", seed=2), run("gru", cell="gru")]
    (table,) = group_runs(runs)
    row = table.rows[0]
    assert (row.values, row.names) == (("lstm",), ("a", "b"))
    assert row.mean["gflops_mean"] == 3  # of 2 and 4
    assert row.std["gflops_mean"] == pytest.approx(2**0.5)  # sqrt((1² + 1²) / (2 − 1))
    header, _, first, second = format_table(table, "table").splitlines()[2:]
    assert header.split()[:2] == ["cell", "runs"]
    assert "3.00 ± 1.41" in first
    assert "±" not in second


def test_the_papers_figure_stands_beside_runs_on_its_data_set_alone():
    ours = run("ours", classes=239)
    assert ours.paper is not None
    assert (ours.paper.data_set, ours.paper.map) == ("FCVID", 0.8)
    activitynet = run("anet", preset="activitynet", classes=200)
    assert activitynet.paper is not None
    assert (activitynet.paper.data_set, activitynet.paper.map) == ("ActivityNet v1.3", 0.727)
    for other in (
        run("fewer classes", classes=238),
        run("another preset", classes=239, preset="breakfast"),
        run("another method", classes=239, method="lstm"),
        run("other features", classes=239, fine="dpn107"),
        run("another cell", classes=239, cell="gru"),
    ):
        assert other.paper is None, other.name
    text = compare_runs([ours, run("gru", cell="gru", classes=239)], "table")
    assert "Wu et al., LiteEval, NeurIPS 2019: liteeval on FCVID (239 classes)" in text
    document = json.loads(compare_runs([ours], "json"))
    assert document["runs"][0]["paper_map"] == 0.8
    assert "paper" not in compare_runs([run("small", preset="small")], "table")


def test_runs_of_one_method_are_told_apart_by_name():
    runs = [run("ours"), run("gru", cell="gru")]
    rows = list(csv.DictReader(io.StringIO(compare_runs(runs, "csv"))))
    assert [row["run"] for row in rows] == ["ours", "gru"]
    assert "run " in compare_runs(runs, "table").splitlines()[2]
    assert "run " not in compare_runs([run("ours"), run("lstm", method="lstm")], "table")


def test_a_run_that_is_not_evaluated_since_training_is_told_with_the_command(tmp_path):
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "config.json").write_text(run("ours").info.model_dump_json())
    with pytest.raises(RunError, match=rf"liteeval-train evaluate {folder} --split val"):
        table_of_runs([folder], split="val")
    result = folder / "evaluate_val.json"
    result.write_text(json.dumps(summary("liteeval", 0.5, 3)))
    assert table_of_runs([folder], split="val").splitlines()[-1].startswith("ours ")
    (folder / "best.safetensors").touch()
    os.utime(result, (1, 1))  # the model is newer
    with pytest.raises(RunError, match="not evaluated on split val since"):
        table_of_runs([folder], split="val")
    result.write_text("[1, 2]")
    with pytest.raises(RunError, match="cannot be read"):
        table_of_runs([folder], split="val")
