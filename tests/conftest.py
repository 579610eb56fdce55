"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch  # before any test loads decord, after which its convolutions crash
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
# Ray reads these once, when some library first loads it. Without a token of ours it writes one to
# the home folder; without any, its ports are open to all.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

LIVE_METHODS = ("liteeval", "uniform", "lstm", "lstm+cf", "frameglimpse", "fastforward")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU tests marked needs_cuda skip, unless FAIL_WITHOUT_CUDA says there is one."""
    if torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA"):
        return
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def live_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of clips/, their two stores at 4 fps, and a run of each method on them."""
    from click.testing import CliRunner

    from extract.cli import main as extract
    from liteeval_train.cli import main as train
    from pipelines.clips import render_clips

    def call(command, *arguments) -> None:
        result = CliRunner().invoke(command, list(map(str, arguments)))
        assert result.exit_code == 0, result.output

    folder = tmp_path_factory.mktemp("live")
    list(render_clips(folder / "clips", 18, seconds=(3.0, 5.0), seed=1))
    backbones = ["mobilenet_v2@32", "mobilenet_v2@48"]
    options = [f"--backbone={name}" for name in backbones] + ["--weights=mobilenet_v2=random"]
    call(extract, "run", folder / "clips", "--out", folder, *options, "--fps", 4, "--device", "cpu")
    stores = ["--coarse", folder / "mobilenet_v2_32", "--fine", folder / "mobilenet_v2_48"]
    labels = ["--labels", folder / "clips" / "labels.csv"]
    for method in LIVE_METHODS:
        settings = ["--set", "epochs=8", "--set", "learning_rate=0.003",
                    "--set", "max_frames=11", "--set", "frames=6",
                    "--set", "fine_share_target=0.3"]  # fmt: skip
        call(train, "fit", *stores, *labels, "--out", folder / method, "--method", method,
             "--preset", "small", *settings, "--device", "cpu")  # fmt: skip
    return folder
