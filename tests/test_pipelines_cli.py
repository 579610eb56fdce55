"""The commands of liteeval: help, bad input and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main

CONTENT = """\
name: mine
variables: {videos: videos}
data: {videos: "${videos}", labels: labels.csv}
backbones: {coarse: {name: mobilenet_v2, size: 112}, fine: {name: resnet101, size: 224}}
runs: [{method: lstm}]
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels.csv").write_text("video_id,label,split\na,x,train\nb,x,val\n")
    (tmp_path / "mine.yaml").write_text(CONTENT)
    return tmp_path / "mine.yaml"


def liteeval(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize("command", [None, *main.commands])
def test_every_command_has_help_with_an_example(command: str | None) -> None:
    result = liteeval(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert "Example:\n  " in result.stdout
    assert "liteeval " in result.stdout.split("Example:")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "videos"], 2, "'videos': expected NAME=VALUE"),
        (["--set", "video=x"], 2, "unknown variable 'video'; did you mean 'videos'?"),
        (["--set", "videos=gone"], 2, "data.videos: {cwd}/gone is not there"),
        (["--workers", "-1"], 2, "--workers"),
        ([], 1, "{folder}/videos: no video in this folder or below it"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(
    manifest: Path, arguments: list[str], code: int, words: str
) -> None:
    result = liteeval("run", manifest, "--out", manifest.parent / "out", *arguments)
    expected = words.format(cwd=Path.cwd(), folder=manifest.parent)
    assert (result.exit_code, result.stdout) == (code, "")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not (manifest.parent / "out").exists()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("{method: lstmm, name: x}", "run 'x': method: Input should be"),
        ("{method: lstm, preset: big}", "run 'lstm': unknown preset 'big'; known: activitynet"),
        ("{method: lstm, set: {epoch: 3}}", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("{method: lstm, matrix: {epochs: [3, 0]}}", "run 'lstm-epochs-0': epochs: Input should"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan", "status"])
def test_a_run_that_training_would_refuse_is_refused_before_any_work(
    manifest: Path, command: str, run: str, words: str
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (manifest.parent / "videos" / name).write_bytes(b"not decoded in this test")
    manifest.write_text(CONTENT.replace("{method: lstm}", run))
    result = liteeval(command, manifest, "--out", manifest.parent / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert not (manifest.parent / "out").exists()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("video_id,label\na,x\n", "expected the header video_id,label,split, found video_id,label"),
        ("video_id,label,split\nc,x,train\n", "none of its 1 videos of split train is in "),
        ("video_id,label,split\na,x,train\n", "has no video of split val; training learns"),
        ("video_id,label,split\na,x,train\na,x,val\n", "line 3: 'a' stands twice"),
        ("video_id,label,split\na,x,train\nb,x,val\n", "has no video of split test; training"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_labels_that_training_or_evaluation_would_refuse_are_refused_before_any_work(
    manifest: Path, command: str, labels: str, words: str
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (manifest.parent / "videos" / name).write_bytes(b"not decoded in this test")
    (manifest.parent / "labels.csv").write_text(labels)
    manifest.write_text(CONTENT + "evaluation: {split: test}\n")
    result = liteeval(command, manifest, "--out", manifest.parent / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {manifest.parent}/labels.csv")
    assert words in result.stderr
    assert not (manifest.parent / "out").exists()


def test_a_manifest_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    result = liteeval("run", tmp_path / "gone.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {tmp_path}/gone.yaml: cannot be read (No such file or directory)\n"
    )


def test_an_output_that_cannot_be_written_is_refused_before_any_work(manifest: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (manifest.parent / "videos" / name).write_bytes(b"not decoded in this test")
    for command in ("run", "plan", "status"):
        for out in (manifest, manifest / "out"):
            result = liteeval(command, manifest, "--out", out)
            assert result.exit_code == 1
            assert f"{out}: not writable ({manifest} is a file); choose another --out" in (
                result.stderr
            )


def test_a_filmstrip_of_no_run_says_what_to_do(tmp_path: Path) -> None:
    result = liteeval("filmstrip", tmp_path, "--videos", tmp_path, "--out", tmp_path / "x.png")
    assert result.exit_code == 1
    assert f"make it with liteeval-train evaluate {tmp_path}" in result.stderr


def test_clips_refuse_lengths_out_of_order(tmp_path: Path) -> None:
    result = liteeval("clips", tmp_path / "clips", "--seconds", "3", "2")
    assert result.exit_code == 2
    assert "the shortest clip is longer than the longest" in result.stderr


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "arguments",
    [("predict", "x.mp4", "--run", "r", "--timeout"), ("stream", "-", "--run", "r", "--timeout")],
)
def test_a_time_that_is_no_number_is_refused(arguments: tuple[str, ...], value: str) -> None:
    result = CliRunner().invoke(main, [*arguments, value])
    assert result.exit_code == 2
    assert value in result.output
