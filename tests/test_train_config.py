"""Configurations: presets, files, settings and what is refused."""

from pathlib import Path

import pytest

from liteeval_train.config import PRESETS, ConfigError, TrainConfig, resolve_config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("preset", "coarse", "fine", "batch"),
    [
        ("activitynet", 64, 512, 128),
        ("fcvid", 512, 2048, 256),
        ("kinetics", 1024, 2048, 512),
        ("breakfast", 512, 2048, 256),
    ],
)
def test_presets_hold_the_papers_sizes(preset, coarse, fine, batch):
    config = resolve_config(preset=preset)
    assert (config.coarse_hidden, config.fine_hidden, config.batch_videos) == (coarse, fine, batch)
    assert (config.learning_rate, config.usage_weight, config.clip_norm) == (1e-4, 2.0, 5.0)
    assert (config.fine_share_target, config.max_frames) == (0.05, 129)
    assert config.memory_frames == 0  # the paper says nothing of initial biases


def test_every_preset_is_valid():
    for preset in PRESETS:
        assert resolve_config(preset=preset).preset == preset


def test_settings_win_over_file_and_file_wins_over_preset(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 7\nfine_hidden: 96\ncoarse_hidden: 32\n")
    config = resolve_config(preset="small", file=file, settings=["epochs=3", "learning_rate=2e-3"])
    assert (config.epochs, config.fine_hidden, config.learning_rate) == (3, 96, 2e-3)
    assert config.batch_videos == PRESETS["small"]["batch_videos"]


def test_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'lerning_rate'; did you mean 'learning_rate'"):
        resolve_config(settings=["lerning_rate=1"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=-1", "learning_rate.*greater than 0.*-1"),
        ("fine_share_target=1.5", "fine_share_target.*less than or equal to 1.*1.5"),
        ("epochs=many", "epochs.*integer.*many"),
        ("epochs", "expected key=value"),
        ("coarse_hidden=4096", "coarse_hidden 4096 is not below fine_hidden 2048"),
        ("temperature_end=9", "temperature_end exceeds temperature_start"),
        ("policy_weight=.inf", "policy_weight.*finite number.*inf"),
        ("gate_bias=.nan", "gate_bias.*finite number.*nan"),
        ("seed=99999999999999999999999", "seed.*less than 9223372036854775808"),
        ("learning_rate=1e38", "learning_rate.*less than or equal to 100.*1e[+]38"),
        ("fine_hidden=100000000000", "fine_hidden.*less than or equal to 16384"),
        ("method=magic", "method"),
    ],
)
def test_value_out_of_range_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config(settings=[setting])


def test_file_that_is_no_mapping_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"config.yaml: expected `key: value` lines, found list"):
        resolve_config(file=file)


def test_preset_that_is_no_name_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("preset: [small]\n")
    with pytest.raises(ConfigError, match=r"unknown preset \['small'\]"):
        resolve_config(file=file)


def test_numbers_have_bounds_so_that_every_configuration_can_be_saved_and_read():
    """JSON has no infinity, and torch no number beyond float32 or int64."""
    for name, field in TrainConfig.model_fields.items():
        if field.annotation in (int, float):
            upper = [m for m in field.metadata if hasattr(m, "le") or hasattr(m, "lt")]
            assert upper, name


def test_settings_of_the_authors_code_go_with_every_preset():
    for preset in PRESETS:
        config = resolve_config(preset=preset, file=ROOT / "examples" / "authors.yaml")
        assert (config.noise_scale, config.temperature_schedule) == (0.5, "authors")
        assert (config.usage_per, config.fine_share_target) == ("batch", 0.1)
        assert (config.learning_rate, config.weight_decay, config.clip_norm) == (0.1, 1e-4, 5)
        assert config.coarse_hidden == PRESETS[preset]["coarse_hidden"]
