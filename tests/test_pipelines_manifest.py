"""The manifest: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import DEMO_MANIFEST
from pipelines.importing import DATASETS
from pipelines.manifest import (
    BACKBONES,
    Importer,
    Manifest,
    ManifestError,
    Run,
    load_manifest,
    manifest_schema,
)

MANIFESTS = Path(__file__).parent.parent / "manifests"
SHIPPED = {
    DEMO_MANIFEST: {},
    MANIFESTS / "smoke.yaml": {},
    MANIFESTS / "ucf11.yaml": {"data": "ucf11", "weights": "mobilenet_v2.pth"},
}
ONE_SOURCE = "give either videos and labels, or importer and videos, or synthetic"
CONTENT = """\
name: mine
variables: {data: videos, seed: 3}
data: {videos: "${data}", labels: "${data}/labels.csv"}
backbones:
  coarse: {name: mobilenet_v2, size: 112}
  fine: {name: resnet101, size: 224, weights: weights/resnet101.pth}
runs:
  - {method: lstm, seed: "${seed}"}
  - {method: liteeval, preset: small, set: {epochs: 2}}
report: {filmstrip: liteeval}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "experiments" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(CONTENT)
    return path


def refuse(path: Path, old: str, new: str, **settings: str) -> str:
    """The error that the manifest gives after one change."""
    assert old in CONTENT
    path.write_text(CONTENT.replace(old, new, 1))
    with pytest.raises(ManifestError) as caught:
        load_manifest(path, settings=settings)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_manifests_load_and_open_with_their_command(path: Path) -> None:
    manifest = load_manifest(path, settings=SHIPPED[path])
    assert [run.method for run in manifest.runs][-1] == "liteeval"
    assert path.read_text().startswith("# liteeval ")


def test_paths_are_relative_to_the_manifest(manifest: Path) -> None:
    loaded = load_manifest(manifest)
    assert loaded.data.videos == manifest.parent / "videos"
    assert loaded.backbones.fine.weights == manifest.parent / "weights/resnet101.pth"


def test_paths_from_the_command_line_are_relative_to_the_current_directory(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_manifest(manifest, settings={"data": "elsewhere/x"})
    assert loaded.data.labels == tmp_path / "elsewhere/x/labels.csv"


def test_variables_keep_their_type_and_the_command_line_wins(manifest: Path) -> None:
    assert load_manifest(manifest).runs[0].seed == 3
    assert load_manifest(manifest, settings={"seed": "7"}).runs[0].seed == 7


def test_a_folder_may_be_called_as_a_number(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_manifest(manifest, settings={"data": "2024"})
    assert loaded.data.videos == tmp_path / "2024"
    assert loaded.data.labels == tmp_path / "2024" / "labels.csv"


def test_a_variable_may_stand_in_another_ones_default(manifest: Path, tmp_path: Path) -> None:
    chained = CONTENT.replace("data: videos,", "root: /films, data: '${root}/clips',")
    manifest.write_text(chained)
    assert load_manifest(manifest).data.labels == Path("/films/clips/labels.csv")
    loaded = load_manifest(manifest, settings={"root": str(tmp_path)})
    assert loaded.data.videos == tmp_path / "clips"
    message = refuse(manifest, "data: videos,", "data: '${root}', root: 'x/${data}',")
    assert message == f"{manifest}: variables: a cycle: data → root → data"


def test_a_merge_key_fills_in_what_is_not_given(manifest: Path) -> None:
    text = CONTENT.replace("coarse: {", "coarse: &b {")
    manifest.write_text(text.replace("fine: {name: resnet101", "fine: {<<: *b"))
    fine = load_manifest(manifest).backbones.fine
    assert (fine.name, fine.size) == ("mobilenet_v2", 224)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{data: videos, seed: 3}", "&v {data: [*v]}", ":2: an alias stands within what it"),
        ("seed: 3}", "[a]: 3}", ":2: expected a text as key"),
        ("name: mine", "name: 2024-13-45x/", "name: String should match pattern"),
        ("seed: 3}", "seed: 1" + 5000 * "0" + "}", "Exceeds the limit"),
        ("name: resnet101", "name: resnet11", "unknown backbone 'resnet11'; did you mean 'resnet1"),
    ],
)
def test_yaml_that_no_manifest_can_hold_is_one_line(
    manifest: Path, old: str, new: str, words: str
) -> None:
    message = refuse(manifest, old, new)
    assert words in message
    assert len(message.splitlines()) == 1


def test_a_date_is_a_name_like_any_other(manifest: Path) -> None:
    for name in ("2026-11-24", "2024-13-45"):
        manifest.write_text(CONTENT.replace("name: mine", f"name: {name}"))
        assert load_manifest(manifest).name == name


def test_runs_named_after_a_backbone_of_timm_are_named_as_its_store(manifest: Path) -> None:
    text = CONTENT.replace("seed: 3}", "seed: 3, net: 'timm:resnet18.a1_in1k'}")
    text = text.replace("{method: lstm,", '{method: lstm, name: "lstm-${net}",')
    text = text.replace("filmstrip: liteeval", 'figures: ["*-${net}"]')
    manifest.write_text(text)
    loaded = load_manifest(manifest)
    assert loaded.runs_like(loaded.report.figures) == ["lstm-timm-resnet18.a1_in1k"]


def test_the_backbones_of_manifests_are_those_of_extraction() -> None:
    from extract.backbones import ARCHITECTURES

    assert set(BACKBONES) == set(ARCHITECTURES)


def test_unknown_key_is_answered_with_the_nearest_name(manifest: Path) -> None:
    message = refuse(manifest, "method: lstm", "metod: lstm")
    assert message == f"{manifest}: runs.0: unknown key 'metod'; did you mean 'method'?"


def test_unknown_variables_are_answered_with_the_nearest_name(manifest: Path) -> None:
    assert "unknown variable 'dat'; did you mean 'data'?" in refuse(manifest, "${data}", "${dat}")
    message = refuse(manifest, "mine", "mine", sed="1")
    assert message == f"{manifest}: --set sed: unknown variable 'sed'; did you mean 'seed'?"


def test_all_variables_without_a_value_are_named_at_once(manifest: Path) -> None:
    message = refuse(manifest, "data: videos, seed: 3", "data: , seed: ")
    assert message.endswith("give --set data=VALUE --set seed=VALUE")


def test_a_syntax_error_names_its_line(manifest: Path) -> None:
    assert refuse(manifest, "  coarse", "\tcoarse").startswith(f"{manifest}:5: ")


def test_a_key_that_stands_twice_is_refused_with_its_line(manifest: Path) -> None:
    message = refuse(manifest, "report: {", "name: other\nreport: {")
    assert message == f"{manifest}:10: the key 'name' stands twice"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fine: {name: resnet101, size: 224", "fine: {name: mobilenet_v2, size: 112", "two sizes"),
        ("filmstrip: liteeval", "filmstrip: litevl", "did you mean 'liteeval'?"),
        ("method: liteeval", "method: lstm", "two runs are called 'lstm'"),
        (
            ", labels: ",
            ", synthetic: {videos: 3}, labels: ",
            "give either videos and labels, or importer",
        ),
        ('videos: "${data}", ', "", ONE_SOURCE),
        ("{epochs: 2}", "{epochs: [2]}", "runs.1.set.epochs: expected a text, a number"),
        ("size: 112", "size: small", "backbones.coarse.size: Input should be a valid integer"),
        ("name: mine", "name: ../mine", "name: String should match pattern"),
        ("name: mine\n", "", "name: Field required"),
    ],
)
def test_what_cannot_be_meant_is_refused(manifest: Path, old: str, new: str, words: str) -> None:
    message = refuse(manifest, old, new)
    assert words in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("{method: lstm, seed: 1, seeds: [1]}", "give seed or seeds, not both"),
        ("{method: lstm, set: {epochs: 1}, matrix: {epochs: [2]}}", "epochs: stands in set and"),
        ("{method: lstm, matrix: {epochs: []}}", "runs.0.matrix.epochs: Tuple should have at"),
        ("{method: lstm, seeds: [1, 1]}", "two runs are called 'lstm-seed-1'"),
        ("{method: lstm, fine: dpn}", "runs.0.fine: unknown backbone 'dpn'; valid: fine"),
        ("{method: lstm, fine: coarse}", "unknown backbone 'coarse'"),
    ],
)
def test_runs_that_cannot_be_meant_are_refused(manifest: Path, new: str, words: str) -> None:
    assert words in refuse(manifest, '{method: lstm, seed: "${seed}"}', new)


def test_budgets_out_of_order_are_refused(manifest: Path) -> None:
    message = refuse(manifest, "report: {", "evaluation: {budgets: 9-2}\nreport: {")
    assert "evaluation.budgets: expected A-B with A ≤ B" in message


def test_a_matrix_and_seeds_give_a_run_for_each_combination(manifest: Path) -> None:
    run = "{method: lstm, matrix: {fine_share_target: [0.01, 0.1], cell: [gru]}, seeds: [0, 7]}"
    manifest.write_text(CONTENT.replace('{method: lstm, seed: "${seed}"}', run))
    loaded = load_manifest(manifest)
    assert [single.name for single in loaded.all_runs] == [
        "lstm-fine_share_target-0.01-cell-gru-seed-0",
        "lstm-fine_share_target-0.01-cell-gru-seed-7",
        "lstm-fine_share_target-0.1-cell-gru-seed-0",
        "lstm-fine_share_target-0.1-cell-gru-seed-7",
        "liteeval",
    ]
    assert loaded.all_runs[2].set == {"fine_share_target": 0.1, "cell": "gru"}
    assert loaded.all_runs[3].seed == 7
    assert loaded.runs_like(["*-seed-7", "liteeval"])[-1] == "liteeval"


def test_tables_and_figures_name_runs_that_there_are(manifest: Path) -> None:
    old = "report: {filmstrip: liteeval}"
    message = refuse(manifest, old, "report: {figures: [lite*, unifrm]}")
    assert "report.figures: unknown run 'unifrm'" in message
    assert "report.tables.a: unknown run 'x*'" in refuse(
        manifest, old, "report: {tables: {a: ['x*']}}"
    )


def test_two_backbones_with_one_store_are_refused(manifest: Path) -> None:
    new = "backbones:\n  others: {more: {name: resnet101, size: 224}}"
    assert "fine and more are both resnet101@224" in refuse(manifest, "backbones:", new)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{importer: fcvd, videos: x}", "data.importer: Input should be 'activitynet', 'fcvid'"),
        ("{importer: fcvid, videos: x, labels: y}", ONE_SOURCE),
        ("{importer: folders}", "give either videos and labels, or importer and videos"),
        ("{videos: x, labels: y, fold: 2}", "fold: only with an importer"),
    ],
)
def test_data_has_one_source(manifest: Path, data: str, words: str) -> None:
    old = '{videos: "${data}", labels: "${data}/labels.csv"}'
    assert words in refuse(manifest, old, data)


def test_the_importers_of_manifests_are_those_of_the_command() -> None:
    assert set(get_args(Importer)) == set(DATASETS)


def test_the_schema_knows_every_key_and_accepts_variables() -> None:
    schema = manifest_schema()
    assert set(schema["properties"]) == {*Manifest.model_fields, "variables"}
    run = schema["$defs"]["Run"]["properties"]
    assert set(run) == set(Run.model_fields)
    kinds = run["seed"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["integer", "string"]
    assert re.search(kinds[1]["pattern"], "${seed}")
    assert not re.search(kinds[1]["pattern"], "seed")


def test_a_manifest_that_is_not_there_or_not_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.yaml: cannot be read \(No such file"):
        load_manifest(tmp_path / "gone.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ManifestError, match="expected a mapping"):
        load_manifest(tmp_path / "list.yaml")


def test_missing_inputs_are_named_by_key(manifest: Path) -> None:
    videos = manifest.parent / "videos"
    videos.mkdir()
    lines = load_manifest(manifest).missing_inputs()
    assert lines == [
        f"data.labels: {videos / 'labels.csv'} is not there",
        f"backbones.fine.weights: {manifest.parent / 'weights/resnet101.pth'} is not there",
    ]


options = st.one_of(
    st.text(max_size=8).filter(lambda text: "${" not in text),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(min_size=1, max_size=8), options, max_size=4))
def test_the_resolved_manifest_loads_again_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    content = yaml.safe_load(CONTENT)
    content["runs"][0]["set"] = overrides
    (folder / "first.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    first = load_manifest(folder / "first.yaml")
    (folder / "second").mkdir()
    (folder / "second" / "again.yaml").write_text(first.to_yaml(), encoding="utf-8")
    again: Manifest = load_manifest(folder / "second" / "again.yaml")
    assert again == first


def test_the_command_line_is_light() -> None:
    script = (
        "import sys, pipelines.cli\n"
        "print(*{'torch', 'matplotlib', 'av', 'h5py', 'numpy'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "")
