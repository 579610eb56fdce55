"""UNIFORM with the classifier of the finetuned backbone: the network's own answer, from a store."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from clips import Clip, steady_times
from safetensors.torch import load_file, save_file

from extract.backbones import load_network, parse_backbone, replace_classifier
from extract.cli import main as extract
from extract.decode import sample_frames
from liteeval_train.cli import main as train
from liteeval_train.evaluate import open_split, open_trained, trace_videos
from liteeval_train.run import RunFolder

SPEC = parse_backbone("mobilenet_v2@32")


def call(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a backbone finetuned to them, and both stores."""
    folder = tmp_path_factory.mktemp("head")
    videos = folder / "videos"
    videos.mkdir()
    lines = ["video_id,label,split"]
    for i in range(6):
        Clip(f"v{i}.mp4", "libx264", steady_times(25 + 5 * i, 25)).build(videos)
        lines.append(f"v{i},{'odd' if i % 2 else 'even'},{'train' if i < 4 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    where = ("--workers", 1, "--device", "cpu", "--fps", 4)
    finetuned = call(
        extract, "finetune", videos, "--labels", folder / "labels.csv", "--out", folder / "tuned",
        "--backbone", SPEC, "--weights", "mobilenet_v2=random", "--batch", 2, "--segments", 2,
        "--epochs", 1, *where,
    )  # fmt: skip
    assert finetuned.exit_code == 0, finetuned.output
    for name, weights in (("coarse", "random"), ("fine", folder / "tuned/finetuned.safetensors")):
        done = call(
            extract, "run", videos, "--out", folder / name, "--backbone", SPEC,
            "--weights", f"mobilenet_v2={weights}", *where,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    return folder


def fit(folder: Path, out: Path, head: Path, *more: object) -> Result:
    return call(
        train, "fit", "--coarse", folder / "coarse/mobilenet_v2_32",
        "--fine", folder / "fine/mobilenet_v2_32", "--labels", folder / "labels.csv",
        "--out", out, "--method", "uniform", "--preset", "small", "--set", f"head={head}",
        "--device", "cpu", *more,
    )  # fmt: skip


def test_scores_are_the_means_of_the_finetuned_networks_own(folder: Path, tmp_path: Path) -> None:
    checkpoint = folder / "tuned/finetuned.safetensors"
    result = fit(folder, tmp_path / "run", checkpoint)
    assert result.exit_code == 0, result.output
    network = load_network(SPEC, "random").network
    replace_classifier(network, SPEC, 2)
    network.load_state_dict(load_file(checkpoint))
    network.eval()
    run = open_trained(tmp_path / "run", "cpu")
    stored = open_split(run.info, "val", max_frames=run.method.max_frames)
    traces, _ = trace_videos(run.method, stored, classes=2, batch_videos=2, device=run.device)
    assert len(traces) == 2
    for trace in traces:
        path = folder / "videos" / f"{trace.sample.video_id}.mp4"
        frames = [SPEC.preprocessing.resize_and_crop(f) for f in sample_frames(path, 4).frames]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in
                     (SPEC.preprocessing.mean, SPEC.preprocessing.std))  # fmt: skip
        with torch.no_grad():
            expected_K = network((pixels - mean) / std).softmax(dim=1).mean(dim=0)
        assert trace.scores_K.tolist() == pytest.approx(expected_K.tolist(), abs=2e-3)
    accuracy = json.loads((folder / "tuned/metrics.jsonl").read_text().splitlines()[-1])
    metrics = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert metrics["val_top1"] == pytest.approx(accuracy["val_video_accuracy"])
    progress = RunFolder(tmp_path / "run").read_progress()
    assert progress is not None
    assert progress.finished


def test_nothing_is_trained_and_a_second_call_finds_it_done(folder: Path, tmp_path: Path) -> None:
    checkpoint = folder / "tuned/finetuned.safetensors"
    assert fit(folder, tmp_path / "run", checkpoint).exit_code == 0
    best = tmp_path / "run/best.safetensors"
    own = load_file(checkpoint)
    kept = load_file(best)
    assert kept["fine.classifier.weight"].equal(own["classifier.1.weight"])
    before = best.stat().st_mtime_ns
    assert fit(folder, tmp_path / "run", checkpoint, "--resume").exit_code == 0
    assert best.stat().st_mtime_ns == before


def test_a_head_of_other_features_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    checkpoint = folder / "tuned/finetuned.safetensors"
    tensors = load_file(checkpoint)
    tensors["classifier.1.bias"] += 1
    save_file(tensors, other, metadata=_metadata(checkpoint))
    result = fit(folder, tmp_path / "run", other)
    assert result.exit_code == 1
    assert "made with other weights" in result.output
    assert not (tmp_path / "run").exists()


def test_a_head_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text((folder / "labels.csv").read_text().replace("odd", "strange"))
    result = fit(
        folder, tmp_path / "run", folder / "tuned/finetuned.safetensors", "--labels", labels
    )
    assert result.exit_code == 1
    assert "'odd' is only in one of them" in result.output


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_without_a_classifier_is_refused(
    folder: Path, tmp_path: Path, content: bytes
) -> None:
    head = tmp_path / "head.safetensors"
    head.write_bytes(content)
    result = fit(folder, tmp_path / "run", head)
    assert result.exit_code == 1
    assert "not a backbone with its classifier" in result.output


def test_a_head_is_for_uniform_alone(folder: Path, tmp_path: Path) -> None:
    result = fit(folder, tmp_path / "run", tmp_path / "x", "--method", "lstm")
    assert result.exit_code == 2
    assert "head is for method uniform" in result.output


def _metadata(checkpoint: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        return file.metadata()
