"""Every manifest of manifests/ plans on small data of the official layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from liteeval_train.config import PRESETS, resolve_config
from pipelines.cli import main
from pipelines.manifest import load_manifest

MANIFESTS = Path(__file__).parent.parent / "manifests"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / name)
    return folder


def smoke(folder: Path) -> dict[str, object]:
    return {}


def ucf11(folder: Path) -> dict[str, object]:
    touch(folder / "videos", "golf/golf_01.avi", "golf/golf_02.avi")
    write(
        folder / "labels.csv",
        "video_id,label,split\ngolf/golf_01,golf,train\ngolf/golf_02,golf,val\n",
    )
    return {"data": folder, "weights": write(folder / "mobilenet_v2.pth")}


def activitynet(folder: Path) -> dict[str, object]:
    videos = touch(folder / "videos", "v_sJ_MuQUNzxQ.mp4", "v_0123456789a.mkv")
    database = {
        "sJ_MuQUNzxQ": {"subset": "training", "annotations": [{"label": "Long jump"}]},
        "0123456789a": {"subset": "validation", "annotations": [{"label": "Long jump"}]},
    }
    annotations = write(folder / "anet.json", json.dumps({"database": database}))
    return {"videos": videos, "annotations": annotations}


FCVID_SPLITS = {"a": "train", "b": "train", "c": "train", "d": "test"}


def fcvid(folder: Path) -> dict[str, object]:
    videos = touch(folder / "videos", *(f"beach/{name}.mp4" for name in FCVID_SPLITS))
    splits = [f"beach/{name}.mp4 {split}\n" for name, split in FCVID_SPLITS.items()]
    return {
        "videos": videos,
        "splits": write(folder / "FCVID_VideoName_TrainTestSplit.txt", "".join(splits)),
        "matrix": write(folder / "FCVID_Label.txt", "1 0\n" * 4),
    }


def kinetics400(folder: Path) -> dict[str, object]:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    names = [f"juggling/{name}_000001_000011.mp4" for name in ("aaaaaaaaaaa", "bbbbbbbbbbb")]
    return {
        "videos": touch(folder / "videos", *names),
        "train": write(folder / "train.csv", header + "juggling,aaaaaaaaaaa,1,11,train,0\n"),
        "val": write(folder / "validate.csv", header + "juggling,bbbbbbbbbbb,1,11,validate,0\n"),
    }


def breakfast(folder: Path) -> dict[str, object]:
    names = [f"P{person:02d}/cam01/P{person:02d}_tea.avi" for person in range(3, 55)]
    return {"videos": touch(folder / "videos", *names)}


def paper_tables(folder: Path) -> dict[str, object]:
    videos = touch(folder / "videos", "golf/a.avi", "golf/b.avi")
    labels = write(
        folder / "labels.csv", "video_id,label,split\ngolf/a,golf,train\ngolf/b,golf,val\n"
    )
    return {"videos": videos, "labels": labels, "preset": "small", "fine_hidden": 1024}


DATA: list[Callable[[Path], dict[str, object]]] = [
    *(smoke, ucf11, activitynet, fcvid, kinetics400, breakfast, paper_tables),
]


@pytest.fixture(params=DATA, ids=lambda make: make.__name__)
def shipped(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A manifest, and the variables that it needs."""
    settings = {name: str(value) for name, value in request.param(tmp_path).items()}
    return MANIFESTS / f"{request.param.__name__}.yaml", settings


def test_each_manifest_has_its_data_here() -> None:
    assert {make.__name__ for make in DATA} == {path.stem for path in MANIFESTS.glob("*.yaml")}


def test_a_shipped_manifest_plans(shipped: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    path, settings = shipped
    options = [f"--set={name}={value}" for name, value in settings.items()]
    arguments = ["plan", str(path), *options, "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    names = [job["name"] for job in document["jobs"]]
    assert {"extract", "fit-liteeval", "table", "filmstrip"} <= set(names)
    assert {job["state"] for job in document["jobs"]} == {"to do"}
    assert document["estimate"]["videos"] > 0


def test_a_shipped_manifest_names_configurations_that_training_accepts(
    shipped: tuple[Path, dict[str, str]],
) -> None:
    path, settings = shipped
    for run in load_manifest(path, settings=settings).all_runs:
        given = [f"{key}={json.dumps(value)}" for key, value in run.set.items()]
        config = resolve_config(method=run.method, preset=run.preset, settings=given)
        assert config.preset in PRESETS


def test_a_shipped_manifest_opens_with_command_hardware_and_result(
    shipped: tuple[Path, dict[str, str]],
) -> None:
    path, _ = shipped
    text = path.read_text(encoding="utf-8")
    comment = re.match(r"(#.*\n)+", text)
    assert comment is not None
    assert comment[0].startswith(f"# liteeval run manifests/{path.name}")
    for name, default in (yaml.safe_load(text).get("variables") or {}).items():
        assert default is not None or f"--set {name}=" in comment[0]
    assert re.search(r"xpected|Result", comment[0])
    assert re.search(r"CPU|GPU|plan", comment[0])


@pytest.mark.parametrize(
    ("name", "preset", "coarse_hidden", "fine_hidden", "batch_videos"),
    [
        ("activitynet", "activitynet", 64, 512, 128),
        ("fcvid", "fcvid", 512, 2048, 256),
        ("kinetics400", "kinetics", 1024, 2048, 512),
        ("breakfast", "breakfast", 512, 2048, 256),
    ],
)
def test_the_papers_settings_stand_in_the_manifests_of_data_sets(
    tmp_path: Path, name: str, preset: str, coarse_hidden: int, fine_hidden: int, batch_videos: int
) -> None:
    make = next(make for make in DATA if make.__name__ == name)
    settings = {key: str(value) for key, value in make(tmp_path).items()}
    manifest = load_manifest(MANIFESTS / f"{name}.yaml", settings=settings)
    assert manifest.backbones.coarse.option == "mobilenet_v2@112"
    assert manifest.backbones.fine.option == "resnet101@224"
    assert manifest.extraction.fps == 1
    run = next(run for run in manifest.all_runs if run.name == "liteeval")
    given = [f"{key}={json.dumps(value)}" for key, value in run.set.items()]
    config = resolve_config(method=run.method, preset=run.preset, settings=given)
    assert config.preset == preset
    assert (config.coarse_hidden, config.fine_hidden) == (coarse_hidden, fine_hidden)
    assert (config.batch_videos, config.fine_share_target) == (batch_videos, 0.05)
