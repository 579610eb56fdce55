"""The commands: output, exit codes, one-line errors."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from liteeval_train.cli import main
from liteeval_train.simulate import Simulation, simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(Simulation(videos=24, classes=4, min_frames=3, max_frames=8), folder)
    for method in ("uniform", "liteeval"):
        result = invoke_fit(folder, method, "--method", method)
        assert result.exit_code == 0, result.output
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def invoke_fit(folder: Path, out: str, *more: str, **stores: Path) -> Result:
    paths = {"coarse": folder / "coarse", "fine": folder / "fine", "labels": folder / "labels.csv"}
    options = [part for key, path in (paths | stores).items() for part in (f"--{key}", path)]
    small = ["--preset", "small", "--set", "epochs=2", "--set", "fine_hidden=96"]
    return invoke("fit", *options, "--out", folder / out, *small, *more)


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(main.commands))])
def test_every_command_has_help_with_an_example(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.output
    assert "liteeval-train" in result.output.split("Example:")[1]


def test_help_comes_without_loading_torch():
    program = "import sys, liteeval_train.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_json_is_one_document_on_standard_output(folder):
    result = invoke("evaluate", folder / "liteeval", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["method"] == "liteeval"


def test_comparison_has_a_row_per_run_in_every_format(folder):
    runs = [folder / "uniform", folder / "liteeval"]
    table = invoke("compare", *runs).stdout
    assert table.startswith("split val; 1 multiply-add = 1 FLOP")
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["uniform", "liteeval"]
    markdown = invoke("compare", *runs, "--format", "markdown").stdout.strip().splitlines()
    assert {line.count("|") for line in markdown[2:]} == {8}
    rows = list(csv.DictReader(io.StringIO(invoke("compare", *runs, "--format", "csv").stdout)))
    document = json.loads(invoke("compare", *runs, "--format", "json").stdout)
    assert document["flop_convention"] == "1 multiply-add = 1 FLOP"
    for row, run in zip(rows, document["runs"], strict=True):
        assert row["method"] == run["method"]
        assert float(row["gflops_mean"]) == run["gflops_mean"]


def test_averages_over_seeds_pool_no_other_configurations(folder):
    for name, more in (("seed-1", ["--set", "seed=1"]), ("longer", ["--set", "epochs=3"])):
        assert invoke_fit(folder, name, "--method", "uniform", *more).exit_code == 0
    runs = [folder / name for name in ("uniform", "seed-1", "longer")]
    result = invoke("compare", *runs, "--average-seeds", "--format", "json")
    rows = json.loads(result.stdout)["methods"]
    assert [(row["run"], row["runs"]) for row in rows] == [("uniform", 2), ("longer", 1)]


def test_online_evaluation_prints_a_row_per_budget(folder):
    table = invoke("evaluate", folder / "liteeval", "--budgets", "1-3").stdout.strip()
    assert [line.split()[-1] for line in table.splitlines()[-3:]] == ["1", "2", "3"]
    points = json.loads(invoke("evaluate", folder / "liteeval", "--watched", "--json").stdout)
    assert [point["watched"] for point in points] == [n / 10 for n in range(1, 11)]
    point = json.loads(invoke("evaluate", folder / "liteeval", "--budget", 1, "--json").stdout)
    assert point["budget"] == 1


@pytest.mark.parametrize("text", ["0-3", "3-1", "x", "1-y"])
def test_wrong_budgets_are_wrong_usage(folder, text):
    result = invoke("evaluate", folder / "liteeval", "--budgets", text)
    assert result.exit_code == 2
    assert "expected A-B" in result.stderr


@pytest.mark.parametrize("online", [["--budget", 2], ["--budgets", "1-2"], ["--watched"]])
@pytest.mark.parametrize("option", ["coarse", "fine", "labels", "average-precision", "key-frames"])
def test_online_evaluation_refuses_what_it_would_leave_out(folder, online, option):
    values = {"coarse": "coarse", "fine": "fine", "labels": "labels.csv"}
    value: object = folder / values.get(option, "key_frames.jsonl")
    value = "interpolated" if option == "average-precision" else value
    result = invoke("evaluate", folder / "liteeval", *online, f"--{option}", value)
    assert result.exit_code == 2
    assert f"--{option} does not go with {online[0]}" in result.stderr


def test_reads_of_another_run_are_for_budgets_of_uniform(folder):
    reads = ("--reads-of", folder / "liteeval")
    for more in ([], ["--watched"]):
        result = invoke("evaluate", folder / "uniform", *reads, *more)
        assert result.exit_code == 2
        assert "--reads-of goes with --budget or --budgets" in result.stderr
    result = invoke("evaluate", folder / "liteeval", "--budget", 1, *reads)
    assert result.exit_code == 1
    assert "are for a run of uniform, this one is liteeval" in result.stderr
    result = invoke("evaluate", folder / "uniform", "--budget", 1, *reads, "--json")
    assert json.loads(result.stdout)["method"] == "uniform-k"


@pytest.mark.parametrize("device", ["foo", "cpu:1", "cuda:x", "cuda:", "cuda:99", "gpu", "auto:0"])
def test_device_that_is_not_there_is_wrong_usage(folder, tmp_path, device):
    run = folder / "liteeval"
    for command in (["evaluate", run], ["compare", run], ["figures", run, "--out", tmp_path]):
        result = invoke(*command, "--device", device)
        assert result.exit_code == 2
        assert f"'{device}': " in result.stderr
    assert invoke_fit(folder, "never", "--device", device).exit_code == 2
    assert not (folder / "never").exists()


def test_evaluation_counts_the_key_frames_of_a_simulation(folder):
    keys = folder / "key_frames.jsonl"
    result = invoke("evaluate", folder / "uniform", "--key-frames", keys, "--json")
    summary = json.loads(result.stdout)  # at most 8 frames, so UNIFORM reads them all
    assert summary["key_frames_read"] == summary["other_frames_read"] == 1.0


def test_figures_are_written_as_png_and_csv(folder, tmp_path):
    result = invoke("figures", folder / "uniform", folder / "liteeval", "--out", tmp_path / "f")
    assert result.exit_code == 0, result.output
    names = {"accuracy_gflops", "accuracy_watched", "usage", "fine_frames_liteeval"}
    assert {Path(line).stem for line in result.stdout.split()} == names
    for name in names:
        assert (tmp_path / "f" / f"{name}.csv").stat().st_size > 20


def test_figures_of_runs_of_one_name_stand_beside_each_other(folder, tmp_path):
    for parent in ("x1", "x2"):
        shutil.copytree(folder / "liteeval", tmp_path / parent / "lite-0.05")
    with (tmp_path / "x1" / "lite-0.05" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 3, "fine_')  # cut off by a kill
    runs = [tmp_path / parent / "lite-0.05" for parent in ("x1", "x2", "x1")]
    result = invoke("figures", *runs, "--out", tmp_path / "f")
    assert result.exit_code == 0, result.output
    drawn = {path.name for path in (tmp_path / "f").glob("fine_frames_*.png")}
    assert drawn == {"fine_frames_x1-lite-0.05.png", "fine_frames_x2-lite-0.05.png"}
    lines = list(csv.reader((tmp_path / "f" / "usage.csv").open()))[1:]
    assert [line[:2] for line in lines] == [
        [f"x{n}/lite-0.05", str(epoch)] for n in (1, 2) for epoch in (1, 2)
    ]


def test_simulation_is_written_once(tmp_path):
    assert invoke("simulate", "--out", tmp_path / "s", "--videos", 16).exit_code == 0
    again = invoke("simulate", "--out", tmp_path / "s", "--videos", 16)
    assert again.exit_code == 1
    assert "holds a simulation already" in again.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hint-strength", "1e6"], "hint strength must lie in [0, 1000]"),
        (["--detail-strength", "nan"], "detail strength must lie in [0, 1000]"),
        (["--videos", 8], "8 videos leave 6 for split train, too few for 10 classes"),
    ],
)
def test_simulation_that_cannot_be_trained_on_is_refused(tmp_path, more, message):
    result = invoke("simulate", "--out", tmp_path / "s", *more)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "s").exists()


def test_simulation_below_a_file_is_refused(tmp_path):
    (tmp_path / "afile").touch()
    result = invoke("simulate", "--out", tmp_path / "afile" / "x", "--videos", 16)
    assert result.exit_code == 1
    assert "cannot be created (Not a directory)" in result.stderr


def test_existing_run_fails_with_one_line_that_says_what_to_do(folder):
    result = invoke_fit(folder, "uniform", "--method", "uniform")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "go on with --resume, or choose another --out" in result.stderr


def test_finished_run_is_left_alone_and_says_so(folder):
    result = invoke_fit(folder, "uniform", "--method", "uniform", "--resume")
    assert result.exit_code == 0
    assert "2 epochs done" in result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "lr=3"], "unknown key 'lr'"),
        (["--set", "seed=-1"], "seed: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_wrong_settings_are_wrong_usage(folder, more, message):
    result = invoke_fit(folder, "never", *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (folder / "never").exists()


def test_wrong_usage_exits_with_2(folder):
    assert invoke("fit").exit_code == 2
    assert invoke_fit(folder, "never", coarse=folder / "nothing").exit_code == 2
    assert invoke("evaluate", folder / "nothing").exit_code == 2


def test_store_without_parts_is_an_error_not_a_traceback(folder, tmp_path):
    result = invoke_fit(folder, "never", coarse=tmp_path)
    assert result.exit_code == 1
    assert "no feature store here" in result.stderr


def test_interrupt_exits_with_130(folder, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("liteeval_train.train.fit", interrupt)
    assert invoke_fit(folder, "never").exit_code == 130


def test_bug_keeps_its_traceback(folder, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("liteeval_train.train.fit", fail)
    assert isinstance(invoke_fit(folder, "never").exception, ZeroDivisionError)
