"""Training: what a run folder holds, resuming, killing, what is refused."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from extract.store import FeatureStore, FeatureWriter, StoreError
from liteeval_train import train
from liteeval_train.config import TrainConfig, resolve_config
from liteeval_train.data import DataError
from liteeval_train.evaluate import evaluate_run
from liteeval_train.run import RunError, RunFolder, write_atomically
from liteeval_train.simulate import Simulation, simulate
from liteeval_train.train import FitOptions, fit

SETTINGS = (
    "epochs=4",
    "batch_videos=8",
    "coarse_hidden=8",
    "fine_hidden=16",
    "coarse_projection=8",
    "fine_projection=16",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(Simulation(videos=40, classes=4, min_frames=3, max_frames=12), folder)
    return {"coarse": folder / "coarse", "fine": folder / "fine", "labels": folder / "labels.csv"}


def config(*settings: str, method: str = "liteeval") -> TrainConfig:
    return resolve_config(method=method, preset="small", settings=[*SETTINGS, *settings])


def command(data: dict[str, Path], out: Path, *more: str) -> list[str]:
    options = [part for key, path in data.items() for part in (f"--{key}", str(path))]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    fixed = ["--out", str(out), "--preset", "small", "--device", "cpu"]
    return [sys.executable, "-m", "liteeval_train", "fit", *options, *fixed, *settings, *more]


def test_run_folder_says_what_was_trained_on_what(data, tmp_path):
    run = fit(config(), out=tmp_path / "run", **data)
    info = json.loads(run.config.read_text())
    assert info["config"]["epochs"] == 4
    assert info["classes"] == ["class_000", "class_001", "class_002", "class_003"]
    assert info["coarse"]["identity"]["gflops_per_frame"] == 0.0822
    assert info["fine"]["path"] == str(data["fine"].resolve())
    assert info["versions"]["torch"] == torch.__version__.partition("+")[0]
    epochs = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    # τ = 0.5^p at p = (4 e + s) / 16, the mean over the 4 steps s of epoch e
    expected = [sum(0.5 ** ((4 * e + s) / 16) for s in range(4)) / 4 for e in range(4)]
    assert [line["temperature"] for line in epochs] == pytest.approx(expected)
    progress = json.loads(run.last_json.read_text())
    assert progress["finished"]
    assert progress["step"] == 4 * 4  # 30 training videos in batches of at most 8
    assert progress["best_score"] == max(line["val_score"] for line in epochs)


def test_existing_run_is_refused_without_resume_and_finished_with_it(data, tmp_path):
    run = fit(config(), out=tmp_path / "run", **data)
    written = run.last.stat().st_mtime_ns
    with pytest.raises(RunError, match="holds a run already; go on with --resume"):
        fit(config(), out=tmp_path / "run", **data)
    fit(config(), out=tmp_path / "run", options=FitOptions(resume=True), **data)
    assert run.last.stat().st_mtime_ns == written


def test_run_resumed_with_another_configuration_is_refused(data, tmp_path):
    fit(config(), out=tmp_path / "run", **data)
    with pytest.raises(RunError, match=r"another config \(learning_rate was 0.001, is 0.5\)"):
        fit(
            config("learning_rate=0.5"),
            out=tmp_path / "run",
            options=FitOptions(resume=True),
            **data,
        )


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_run_resumed_with_another_store_is_refused(data, tmp_path, name):
    fit(config("epochs=1"), out=tmp_path / "run", **data)
    shutil.copytree(data[name], tmp_path / "copy")  # the same identity, perhaps other rows
    with pytest.raises(RunError, match=rf"another {name} \(path was .*{name}', is .*copy'\)"):
        fit(
            config("epochs=1"),
            out=tmp_path / "run",
            options=FitOptions(resume=True),
            **{**data, name: tmp_path / "copy"},
        )


def test_run_resumed_on_a_store_made_anew_in_another_way_is_refused(data, tmp_path):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    info = run.read_info()
    info.fine.identity |= {"input_size_px": 96, "versions": "{}"}  # the store's before it changed
    run.write_info(info)
    with pytest.raises(RunError, match=r"another fine \(input_size_px was 96, is 1\)"):
        fit(config("epochs=1"), out=run.path, options=FitOptions(resume=True), **data)


def test_run_resumed_under_other_library_versions_or_a_link_goes_on(data, tmp_path):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    info = run.read_info()
    info.fine.identity["versions"] = '{"torch": "1.0"}'
    run.write_info(info)
    (tmp_path / "link").symlink_to(data["fine"])
    again = {**data, "fine": tmp_path / "link"}
    fit(config("epochs=1"), out=run.path, options=FitOptions(resume=True), **again)


def test_checkpoint_of_another_network_is_refused(data, tmp_path):
    run = fit(config(), out=tmp_path / "run", **data)
    other = fit(config("fine_hidden=24"), out=tmp_path / "other", **data)
    os.replace(other.best, run.best)
    with pytest.raises(RunError, match=r"holds another network than config.json describes"):
        run.load_best(run.read_info().build())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("another", "holds a model without the state of its training"),
        ("short", "not a readable checkpoint"),
    ],
)
def test_damaged_checkpoint_is_refused_with_the_way_out(data, tmp_path, damage, message):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    whole = run.last.read_bytes()
    run.last.write_bytes(run.best.read_bytes() if damage == "another" else whole[:-9])
    resume = FitOptions(resume=True)
    with pytest.raises(RunError, match=rf"last.safetensors: {message}.*remove it and give fit"):
        fit(config("epochs=1"), out=run.path, options=resume, **data)
    assert evaluate_run(run.path).summary["videos"] == 10
    run.last.unlink()
    fit(config("epochs=1"), out=run.path, options=resume, **data)
    assert run.last.read_bytes() == whole


def test_resume_without_a_checkpoint_starts_from_the_beginning(data, tmp_path):
    reference = fit(config(), out=tmp_path / "reference", **data)
    RunFolder(tmp_path / "run").write_info(reference.read_info())
    run = fit(config(), out=tmp_path / "run", options=FitOptions(resume=True), **data)
    assert_same_tensors(run.last, reference.last)


def assert_same_tensors(found: Path, expected: Path) -> None:
    left, right = load_file(found), load_file(expected)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_killed_run_resumes_to_the_weights_of_an_undisturbed_one(data, tmp_path):
    more = ("--set", "epochs=12")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        command(data, tmp_path / "whole", *more), check=True, env=environment, capture_output=True
    )
    run = RunFolder(tmp_path / "killed")
    process = subprocess.Popen(
        command(data, run.path, *more), env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not run.last_json.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = run.read_progress()
    assert before is not None
    assert not before.finished, "the run was over before it could be killed"
    subprocess.run(
        command(data, run.path, *more, "--resume"),
        check=True,
        env=environment,
        capture_output=True,
    )
    whole = RunFolder(tmp_path / "whole")
    assert_same_tensors(run.last, whole.last)
    assert_same_tensors(run.best, whole.best)
    epochs = [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()]
    assert epochs == list(range(1, 13))


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["best.safetensors", "metrics.jsonl", "last.safetensors"])
def test_full_disk_stops_with_one_message_and_the_run_goes_on_later(
    data, tmp_path, monkeypatch, name
):
    reference = fit(config("epochs=1"), out=tmp_path / "reference", **data)
    open_file = Path.open

    def fail_on_name(path: Path, mode: str = "r", *more, **options):
        if name in path.name and mode != "r":
            raise FULL
        return open_file(path, mode, *more, **options)

    with monkeypatch.context() as full:
        full.setattr(Path, "open", fail_on_name)
        message = rf"{name}: cannot be written \(No space left on device\)"
        with pytest.raises(RunError, match=message):
            fit(config("epochs=1"), out=tmp_path / "run", **data)
    run = fit(config("epochs=1"), out=tmp_path / "run", options=FitOptions(resume=True), **data)
    assert_same_tensors(run.last, reference.last)
    assert len(run.metrics.read_text().splitlines()) == 1


def test_file_that_cannot_be_replaced_stays_as_it_was_with_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "last.json"
    write_atomically(path, b"old")

    def fail(number: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.json"]


def test_writers_of_one_file_do_not_share_a_temporary_one(tmp_path, monkeypatch):
    path, fsync = tmp_path / "evaluate_val.json", os.fsync

    def let_another_in(number: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomically(path, b"a longer text")

    monkeypatch.setattr(os, "fsync", let_another_in)
    write_atomically(path, b"short")
    assert path.read_bytes() == b"short"


def test_resume_removes_what_a_kill_left_half_written(data, tmp_path):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    before = sorted(os.listdir(run.path))
    (run.path / ".last.safetensors.0123abcd.tmp").write_bytes(b"half")
    fit(config("epochs=1"), out=run.path, options=FitOptions(resume=True), **data)
    assert sorted(os.listdir(run.path)) == before


def test_tensorboard_shows_the_lines_of_metrics_once_each_after_a_kill(data, tmp_path, monkeypatch):
    options = FitOptions(tensorboard=True)
    finish = RunFolder.save_last

    def be_killed(folder: RunFolder, method, optimizer, progress, **state) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt
        finish(folder, method, optimizer, progress, **state)

    with monkeypatch.context() as killed:
        killed.setattr(RunFolder, "save_last", be_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(config("epochs=2"), out=tmp_path / "run", options=options, **data)
    options = replace(options, resume=True)
    run = fit(config("epochs=2"), out=tmp_path / "run", options=options, **data)
    events = charts(run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert events.keys() == lines[0].keys()
    for name, points in events.items():
        assert [step for step, _ in points] == [1, 2]
        assert [value for _, value in points] == pytest.approx([line[name] for line in lines])


def test_tensorboard_that_is_not_installed_is_named_before_any_training(
    data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"pip install 'liteeval\[tensorboard\]'"):
        fit(config(), out=tmp_path / "run", options=FitOptions(tensorboard=True), **data)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def charts(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("cell", ["lstm", "gru", "sru"])
def test_half_precision_trains_every_cell(data, tmp_path, cell):
    run = fit(
        config(f"cell={cell}", "epochs=2"),
        out=tmp_path / "run",
        options=FitOptions(device="cpu", precision="bf16-mixed"),
        **data,
    )
    full = fit(
        config(f"cell={cell}", "epochs=2"),
        out=tmp_path / "full",
        options=FitOptions(device="cpu"),
        **data,
    )
    # bfloat16 has 8 bits: losses near ln 4 agree to about a hundredth.
    for half, whole in zip(losses(run), losses(full), strict=True):
        assert half[0] == pytest.approx(whole[0], rel=0.05)
    assert load_file(run.best)["fine_cell.input.weight"].dtype == torch.float32


def test_number_of_workers_changes_no_weight(data, tmp_path):
    runs = [
        fit(
            config("epochs=2"),
            out=tmp_path / str(workers),
            options=FitOptions(device="cpu", workers=workers),
            **data,
        )
        for workers in (0, 2)
    ]
    assert_same_tensors(runs[0].last, runs[1].last)


def spoil(monkeypatch, *, step: int, what: str) -> None:
    """Make the gradient or a weight of the step-th step NaN; the step's loss is finite."""
    from lightning_fabric import Fabric

    clip, done = Fabric.clip_gradients, []

    def clip_and_spoil(fabric, module, optimizer, **options):
        done.append(1)
        weight = next(module.parameters())
        if len(done) == step:
            (weight.grad if what == "gradient" else weight.data).fill_(float("nan"))
        return clip(fabric, module, optimizer, **options)

    monkeypatch.setattr(Fabric, "clip_gradients", clip_and_spoil)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gradient", "the norm of the gradient is nan at step 4 of epoch 2"),
        ("weight", "project_coarse.layers.0.weight is not finite after epoch 2"),
    ],
)
def test_network_that_turns_nan_at_the_last_step_of_an_epoch_replaces_no_checkpoint(
    data, tmp_path, monkeypatch, what, message
):
    with monkeypatch.context() as spoilt:
        spoil(spoilt, step=8, what=what)  # 30 training videos by 8 are 4 steps
        with pytest.raises(RunError, match=message + "; stopped, the state after epoch 1 is kept"):
            fit(config(), out=tmp_path / "run", **data)
    run = RunFolder(tmp_path / "run")
    assert run.progress_or_fail().best_epoch == 1
    for path in (run.best, run.last):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    fit(config(), out=run.path, options=FitOptions(resume=True), **data)
    whole = fit(config(), out=tmp_path / "whole", **data)
    assert_same_tensors(run.last, whole.last)
    assert_same_tensors(run.best, whole.best)


def test_loss_that_is_not_finite_stops_training_within_the_epoch(data, tmp_path, monkeypatch):
    monkeypatch.setattr("liteeval_train.train.CHECK_STEPS", 3)
    spoil(monkeypatch, step=1, what="weight")
    steps = []
    monkeypatch.setattr(tqdm, "update", lambda bar, n=1: steps.append(n))
    message = r"the loss is nan at step 2 of epoch 1; stopped, no epoch was done before"
    with pytest.raises(RunError, match=message):
        fit(config(), out=tmp_path / "run", **data)
    assert len(steps) == 3  # of 4 in the epoch
    assert not RunFolder(tmp_path / "run").last.exists()


def test_error_of_a_worker_is_told_as_one_line(data, tmp_path):
    stores = {name: tmp_path / name for name in ("coarse", "fine")}
    for name, path in stores.items():
        shutil.copytree(data[name], path)
    (part,) = stores["coarse"].glob("part-*.h5")
    part.chmod(0o644)
    with h5py.File(part, "r+") as file:
        del file["frame_index"]  # read with the rows of a video, not when the store is opened
    with pytest.raises(StoreError) as caught:
        fit(
            config(),
            out=tmp_path / "run",
            options=FitOptions(device="cpu", workers=1),
            **{**data, **stores},
        )
    assert "Traceback" not in str(caught.value)


def test_failed_start_leaves_no_run_behind(data, tmp_path, monkeypatch):
    text = data["labels"].read_text().replace(",val", ",test")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match="no video of split 'val'"):
        fit(config(), out=tmp_path / "run", **{**data, "labels": tmp_path / "labels.csv"})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match="tensorboard"):
        fit(config(), out=tmp_path / "run", options=FitOptions(tensorboard=True), **data)
    assert not (tmp_path / "run").exists()


def test_run_resumed_in_another_precision_is_refused(data, tmp_path):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    info = run.read_info()
    assert (info.precision, info.device) == ("32-true", "cpu")
    with pytest.raises(RunError, match=r"another precision \(was 32-true, is bf16-mixed\)"):
        fit(
            config("epochs=1"),
            out=run.path,
            options=FitOptions(device="cpu", resume=True, precision="bf16-mixed"),
            **data,
        )


def test_run_resumed_on_a_store_that_has_grown_is_refused(data, tmp_path):
    simulate(Simulation(videos=41, classes=4, min_frames=3, max_frames=12), tmp_path / "more")
    lines = (tmp_path / "more" / "labels.csv").read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    stores = {"coarse": tmp_path / "coarse", "fine": tmp_path / "fine"}
    for name, path in stores.items():
        whole = FeatureStore(tmp_path / "more" / name)
        with FeatureWriter(path, whole.identity) as writer:
            for video in whole.video_ids[:40]:
                writer.add(video, whole[video])
    run = fit(config("epochs=1"), out=tmp_path / "run", labels=labels, **stores)
    for name, path in stores.items():
        whole = FeatureStore(tmp_path / "more" / name)
        with FeatureWriter(path, whole.identity) as writer:
            writer.add("video_00040", whole["video_00040"])
    message = r"another split train \(the stores held 30 videos of it and hold 31, not the same"
    with pytest.raises(RunError, match=message):
        fit(
            config("epochs=1"),
            out=run.path,
            labels=labels,
            options=FitOptions(resume=True),
            **stores,
        )


def test_one_class_is_refused(data, tmp_path):
    text = "video_id,label,split\n"
    text += "".join(f"video_{n:05d},same,{'val' if n < 4 else 'train'}\n" for n in range(40))
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(DataError, match="have 1 classes, at least 2 are needed"):
        fit(config(), out=tmp_path / "run", **{**data, "labels": labels})
    assert not (tmp_path / "run").exists()


def test_unlabelled_videos_are_refused_or_left_out_on_request(data, tmp_path):
    lines = data["labels"].read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines[:-1]) + "\n")
    other = {**data, "labels": labels}
    with pytest.raises(DataError, match="no label for 'video_00039'"):
        fit(config(), out=tmp_path / "run", **other)
    run = fit(config(), out=tmp_path / "run", options=FitOptions(ignore_unlabelled=True), **other)
    assert run.progress_or_fail().finished


@pytest.mark.parametrize("method", TrainConfig.model_fields["method"].annotation.__args__)
def test_batch_of_one_row_trains(tmp_path, method):
    simulate(Simulation(videos=8, classes=2, min_frames=1, max_frames=1), tmp_path)
    rows = [f"video_{n:05d},class_{n % 2:03d},{'val' if n < 3 else 'train'}" for n in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["video_id,label,split", *rows]))
    run = fit(
        config("epochs=2", "batch_videos=2", method=method),  # 5 videos: batches of 2, 2 and 1
        coarse=tmp_path / "coarse",
        fine=tmp_path / "fine",
        labels=tmp_path / "labels.csv",
        out=tmp_path / "run",
    )
    assert run.progress_or_fail().finished
    assert all(tensor.isfinite().all() for tensor in load_file(run.best).values())


def test_liteeval_learns_to_read_few_frames_finely(tmp_path):
    simulate(Simulation(videos=320, classes=2, min_frames=6, max_frames=9), tmp_path)
    data = {"coarse": tmp_path / "coarse", "fine": tmp_path / "fine"}
    run = fit(
        resolve_config(preset="small", settings=["epochs=8", "coarse_hidden=16", "fine_hidden=64"]),
        out=tmp_path / "run",
        labels=tmp_path / "labels.csv",
        **data,
    )
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert last["val_top1"] > 0.8
    assert last["val_fine_share"] < 0.3


@pytest.mark.parametrize("more", [(), ("synchronise=false", "usage_per=batch")])
def test_two_processes_have_the_losses_of_one(data, tmp_path, more):
    settings = ("epochs=2", *more)
    single, double = RunFolder(tmp_path / "single"), RunFolder(tmp_path / "double")
    fit(config(*settings), out=single.path, options=FitOptions(device="cpu"), **data)
    two = command(data, double.path, *(p for s in settings for p in ("--set", s)))[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *two], check=True, env=environment, capture_output=True)
    assert done.stdout.count(b"2 epochs done") == 1  # one of the processes tells it
    for left, right in zip(losses(single), losses(double), strict=True):
        assert left == pytest.approx(right, rel=1e-3)


def losses(run: RunFolder) -> list[tuple[float, float, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [(x["classification"], x["fine_share"], x["usage_penalty"]) for x in lines]


def test_capture_is_refused_where_there_is_nothing_to_capture(data, tmp_path):
    options = FitOptions(device="cpu", capture=True)
    with pytest.raises(RunError, match="needs a GPU, this is cpu; leave it out"):
        fit(config(), out=tmp_path / "run", options=options, **data)
    with pytest.raises(RunError, match="lstm has no gated loop to capture"):
        fit(config(method="lstm"), out=tmp_path / "run", options=options, **data)
    assert not (tmp_path / "run").exists()


def test_captured_training_learns_what_training_learns(data, tmp_path, monkeypatch):
    """On a CPU, with the padded loop in place of its graph."""
    plain = fit(config("epochs=2"), out=tmp_path / "plain", **data)
    monkeypatch.setattr(train, "_require_capturable", lambda *_: None)
    monkeypatch.setattr(train, "capture_on_gpu", lambda loop, _: loop)
    options = FitOptions(device="cpu", capture=True, workers=1)
    padded = fit(config("epochs=2"), out=tmp_path / "padded", options=options, **data)
    for before, after in zip(metrics_of(plain), metrics_of(padded), strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)
        assert after["val_map"] == pytest.approx(before["val_map"], abs=0.02)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_captured_training_on_a_gpu_learns_what_training_learns(data, tmp_path, precision):
    options = FitOptions(device="cuda", precision=precision)
    plain = fit(config(), out=tmp_path / "plain", options=options, **data)
    options = replace(options, capture=True)
    captured = fit(config(), out=tmp_path / "captured", options=options, **data)
    for before, after in zip(metrics_of(plain), metrics_of(captured), strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.05)


def metrics_of(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_half_precision_on_a_cpu_is_refused(data, tmp_path):
    options = FitOptions(device="cpu", precision="16-mixed")
    with pytest.raises(RunError, match="16-mixed: a CPU cannot; use bf16-mixed or 32-true"):
        fit(config(), out=tmp_path / "run", options=options, **data)


def test_checkpoint_keeps_the_loss_scale_of_half_precision(data, tmp_path):
    run = fit(config("epochs=1"), out=tmp_path / "run", **data)
    method = run.read_info().build()
    optimizer = torch.optim.Adam(method.parameters())
    progress, precision = run.load_last(method, optimizer)
    assert precision == {}  # float32 has no scale
    before = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    loss = before.scale(next(method.parameters()).sum())  # sets up the scale
    assert loss.isfinite()
    run.save_last(method, optimizer, progress, precision=before.state_dict())
    after = torch.amp.GradScaler("cpu")
    after.load_state_dict(run.load_last(method, optimizer)[1])
    assert after.get_scale() == 1024.0
    assert after.get_growth_interval() == 2
