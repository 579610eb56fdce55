"""Finetuning: drawn rows and crops, the loss, labels that do not fit, resumed after a kill."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from clips import Clip, steady_times
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression

from extract.backbones import load_backbone, parse_backbone, replace_classifier
from extract.cli import main
from extract.finetune import (
    HEAD_DECAY,
    cosine_learning_rate,
    fit_linear_classifier,
    label_videos,
    loss_of_videos,
)
from extract.labels import LabelError, read_labels
from extract.pixels import cut, published_crop, random_crop, segment_rows, training_input
from extract.store import FeatureStore
from extract.videos import Video

ROOT = Path(__file__).parent.parent
SMALL = ("--backbone", "mobilenet_v2@32", "--weights", "mobilenet_v2=random", "--workers", 1,
         "--device", "cpu", "--fps", 4, "--batch", 2, "--segments", 2)  # fmt: skip


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of two classes, dark and bright; the last two are val."""
    folder = tmp_path_factory.mktemp("videos")
    lines = ["video_id,label,split"]
    for i in range(6):
        Clip(f"v{i}.mp4", "libx264", steady_times(25 + 5 * i, 25)).build(folder)
        lines.append(f"v{i},{'odd' if i % 2 else 'even'},{'train' if i < 4 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    result = call(
        "finetune", folder, "--labels", folder / "labels.csv", "--out", out, *SMALL, "--epochs", 3,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["config"]["classes"] == ["even", "odd"]
    return out


def test_one_row_is_drawn_from_each_segment() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([segment_rows(12, 3, rng) for _ in range(200)])
    for segment in range(3):
        assert set(drawn[:, segment]) == set(range(4 * segment, 4 * segment + 4))


def test_a_video_shorter_than_its_segments_repeats_rows() -> None:
    assert set(segment_rows(1, 4, np.random.default_rng(0))) == {0}
    assert set(segment_rows(2, 4, np.random.default_rng(0))) == {0, 1}


def test_random_crops_lie_within_the_picture_and_keep_area_and_ratio() -> None:
    rng = np.random.default_rng(1)
    crops = [random_crop(128, 0.4, rng) for _ in range(300)]
    for crop in crops:
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 128
        assert 0.39 <= crop.width * crop.height / 128**2 <= 1
        assert 0.74 <= crop.width / crop.height <= 1.35
    assert 100 < sum(crop.flip for crop in crops) < 200


@pytest.mark.parametrize("name", ["mobilenet_v2@112", "resnet101@224"])
def test_the_published_crop_of_a_kept_square_is_the_published_preprocessing(name: str) -> None:
    published = parse_backbone(name).preprocessing
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    square = training_input(published).resize_and_crop(frame)
    shown = cut(square, published_crop(len(square), published), published)
    np.testing.assert_array_equal(shown, published.resize_and_crop(frame))


def test_a_clip_is_cut_as_one() -> None:
    published = parse_backbone("slowfast_r50@224").preprocessing
    side = training_input(published).crop_px
    assert side == 256
    frames = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    crop = random_crop(side, 0.4, np.random.default_rng(0))
    clip = cut(frames.repeat(32, axis=0), crop, published)
    assert clip.shape == published.row_shape
    assert (clip == clip[:1]).all()


def test_the_learning_rate_falls_as_a_cosine() -> None:
    assert cosine_learning_rate(0.1, 0, 8) == pytest.approx(0.1)
    assert cosine_learning_rate(0.1, 4, 8) == pytest.approx(0.05)
    assert cosine_learning_rate(0.1, 2, 8) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))


def test_consensus_is_the_loss_of_the_mean_logits() -> None:
    """Logits (2, 0) and (0, 0): the mean is (1, 0), whose loss of class 0 is log(1 + 1/e)."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[1.0, 0.0]])
    consensus = loss_of_videos(logits, target, consensus=True)
    frames = loss_of_videos(logits, target, consensus=False)
    assert consensus.tolist() == pytest.approx([math.log(1 + math.exp(-1))])
    assert frames.tolist() == pytest.approx([(math.log(1 + math.exp(-2)) + math.log(2)) / 2])


def test_the_first_classifier_is_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (60, 5))
    classes = np.argmax(features[:, :3] + rng.normal(0, 1, (60, 3)), axis=1)
    scale = np.sqrt(np.square(features - features.mean(axis=0)).mean())
    theirs = LogisticRegression(C=1 / (60 * HEAD_DECAY), tol=1e-8, max_iter=10_000)
    theirs.fit((features - features.mean(axis=0)) / scale, classes)
    weight, bias = fit_linear_classifier(
        torch.tensor(features), torch.nn.functional.one_hot(torch.tensor(classes)).double()
    )
    scores = (torch.tensor(features) @ weight.T + bias).softmax(dim=1)
    expected = theirs.predict_proba((features - features.mean(axis=0)) / scale)
    np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["dpn107@64", "timm:resnet18.a1_in1k@64", "slowfast_r50"])
def test_every_kind_of_classifier_is_replaced(name: str) -> None:
    from extract.backbones import architecture_of

    spec = parse_backbone(name)
    network = architecture_of(spec.name).build()
    layer = replace_classifier(network, spec, 7)
    assert network.get_parameter(f"{layer}.weight").shape[0] == 7


def labelled(folder: Path, text: str) -> Path:
    path = folder / "other.csv"
    path.write_text("video_id,label,split\n" + text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v0,a,train\nv1,b,train\nv2,c,val\n", "class 'c' of 'v2' .val. is not among the 2"),
        ("v0,a,train\nv1,a,train\nv2,a,val\n", "one class"),
        ("v0,a,train\nv1,b,train\n", "none of its 0 videos of split val"),
        ("x,a,train\ny,b,train\nv2,a,val\n", "none of its 2 videos of split train"),
        ("v0,a,train\nv0,b,train\n", "line 3: 'v0' stands twice"),
        ("v0,a,training\n", "line 2: split must be one of train, val, test"),
        ("v0,,train\n", "line 2: expected a video_id and a label"),
    ],
)
def test_labels_that_do_not_fit_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    videos = [Video(f"v{i}", Path(f"v{i}.mp4")) for i in range(4)]
    with pytest.raises(LabelError, match=message):
        label_videos(videos, read_labels(labelled(tmp_path, text)))


def test_several_labels_share_the_mass(tmp_path: Path) -> None:
    videos = [Video(f"v{i}", Path(f"v{i}.mp4")) for i in range(3)]
    path = labelled(tmp_path, "v0,a|b,train\nv1,c,train\nv2,c,val\n")
    classes, train, _ = label_videos(videos, read_labels(path))
    assert classes == ["a", "b", "c"]
    assert train.target_VK.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]


def test_a_finetuning_leaves_metrics_and_weights_that_run_takes(done: Path, folder: Path) -> None:
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert not (done / "pixels").exists()
    checkpoint = done / "finetuned.safetensors"
    result = call(
        "run", folder, "--out", done / "features", "--backbone", "mobilenet_v2@48",
        "--weights", f"mobilenet_v2={checkpoint}", "--workers", 1, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    identity = FeatureStore(done / "features" / "mobilenet_v2_48").identity
    assert identity.weights == "finetuned.safetensors"
    assert identity.weights_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_the_checkpoint_names_its_classifier_and_classes(done: Path) -> None:
    with safe_open(done / "finetuned.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["liteeval"])
        assert about["classes"] == ["even", "odd"]
        assert about["classifier"] == "classifier.1"
        assert file.get_tensor("classifier.1.weight").shape == (2, 1280)
    random = load_backbone(parse_backbone("mobilenet_v2@32"), "random")
    assert about["source_sha256"] == random.weights_sha256


def test_training_moves_the_network_and_keeps_its_normalisation_statistics(done: Path) -> None:
    random = load_backbone(parse_backbone("mobilenet_v2@32"), "random").extractor.network
    with safe_open(done / "last.safetensors", framework="pt") as file:
        for name, before in random.state_dict().items():
            after = file.get_tensor(f"network.{name}")
            if "running" in name or "num_batches" in name:
                assert torch.equal(before, after), name
        name = "features.18.0.weight"
        assert not torch.equal(random.get_parameter(name), file.get_tensor(f"network.{name}"))


def wait_for_epoch(out: Path, epoch: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and f'"epoch": {epoch},' in metrics.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"epoch {epoch} was not reached: {process.poll()}")


def test_killed_and_resumed_gives_the_same_bytes(done: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = ("finetune", folder, "--labels", folder / "labels.csv", "--out", out, *SMALL)
    command = [sys.executable, "-m", "extract", *map(str, arguments), "--epochs", "3"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        wait_for_epoch(out, 1, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = call(*arguments, "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.output
    with (
        safe_open(done / "last.safetensors", framework="pt") as whole,
        safe_open(out / "last.safetensors", framework="pt") as resumed,
    ):
        for name in whole.keys():  # noqa: SIM118
            assert torch.equal(whole.get_tensor(name), resumed.get_tensor(name)), name
    name = "finetuned.safetensors"
    assert (out / name).read_bytes() == (done / name).read_bytes()


def test_pixels_that_a_kill_at_the_end_has_left_are_removed(done: Path, folder: Path) -> None:
    (done / "pixels").mkdir()
    (done / "pixels" / "v0.npy").touch()
    arguments = ("finetune", folder, "--labels", folder / "labels.csv", "--out", done, *SMALL)
    result = call(*arguments, "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert not (done / "pixels").exists()


def test_a_finetuning_whose_metrics_are_gone_is_told_what_to_do(
    done: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out, ignore=lambda *_: ["metrics.jsonl", "features"])
    arguments = ("finetune", folder, "--labels", folder / "labels.csv", "--out", out, *SMALL)
    result = call(*arguments, "--epochs", 3, "--resume")
    assert result.exit_code == 1
    assert f"{out}/metrics.jsonl: lacks epoch 0 of 3 that are done; put the file" in result.output


def test_another_setting_or_a_second_start_is_refused(done: Path, folder: Path) -> None:
    arguments = ("finetune", folder, "--labels", folder / "labels.csv", "--out", done, *SMALL)
    again = call(*arguments, "--epochs", 3)
    assert again.exit_code == 1
    assert "holds a finetuning already" in again.output
    other = call(*arguments, "--epochs", 4, "--resume")
    assert other.exit_code == 1
    assert "resume with what it was started with" in other.output


def test_a_loss_that_is_not_finite_stops_with_the_epoch_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "extract.finetune.loss_of_videos", lambda *_, **__: torch.tensor([math.nan])
    )
    out = tmp_path / "nan"
    result = call(
        "finetune", folder, "--labels", folder / "labels.csv", "--out", out, *SMALL, "--epochs", 1
    )
    assert result.exit_code == 1
    assert "the loss is nan at epoch 1, step 0" in result.output
    assert (out / "last.safetensors").exists()


def test_a_broken_video_is_told_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in folder.glob("v*.mp4"):
        (videos / path.name).write_bytes(path.read_bytes())
    (videos / "v1.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    result = call(
        "finetune", videos, "--labels", folder / "labels.csv", "--out", out, *SMALL, "--epochs", 0
    )
    assert result.exit_code == 3, result.output
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["video_id"] == "v1"


def test_a_cache_too_small_for_the_segments_is_refused(folder: Path, tmp_path: Path) -> None:
    result = call(
        "finetune", folder, "--labels", folder / "labels.csv", "--out", tmp_path / "out",
        "--backbone", "slowfast_r50", "--weights", "slowfast_r50=random", "--cache-gb", 0.01,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "raise --cache-gb" in result.output


def test_a_manifest_finetunes_before_it_extracts(tmp_path: Path) -> None:
    from pipelines.jobs import Layout, plan_jobs
    from pipelines.manifest import load_manifest

    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndata: {videos: v, labels: labels.csv}\nbackbones:\n"
        "  coarse: {name: mobilenet_v2, size: 112, weights: w.pth, finetune: {epochs: 5}}\n"
        "  fine: {name: resnet101, size: 224}\nruns: [{method: lstm}]\n"
    )
    layout = Layout(tmp_path / "out")
    jobs = {job.name: job for job in plan_jobs(load_manifest(tmp_path / "mine.yaml"), layout)}
    finetune, extract = jobs["finetune-coarse"], jobs["extract"]
    assert extract.depends_on == ("finetune-coarse",)
    assert f"--weights=mobilenet_v2@112={finetune.outputs[0]}" in extract.argv
    context = main.commands["finetune"].make_context("finetune", [*finetune.argv[2:]])
    assert context.params["epochs"] == 5
    assert context.params["weights"] == (f"mobilenet_v2@112={tmp_path / 'w.pth'}",)
