"""The report page: what it says is what the runs hold; it opens anywhere and trusts no name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import PROGRAM, Chromium
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.stamps import Stamp

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def report(*arguments: object) -> str:
    """What `liteeval report` printed."""
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


class Page(HTMLParser):
    """A page's elements, attributes and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def runs(live_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two runs, evaluated, and of one that has only begun."""
    from liteeval_train.cli import main as train

    folder = tmp_path_factory.mktemp("runs")
    for name in ("liteeval", "lstm"):
        shutil.copytree(live_runs / name, folder / name)
        result = CliRunner().invoke(train, ["evaluate", str(folder / name), "--device", "cpu"])
        assert result.exit_code == 0, result.output
    (folder / "begun").mkdir()
    shutil.copy(folder / "lstm" / "config.json", folder / "begun")
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    out = runs / "report.html"
    assert str(out) in report(runs / "liteeval", runs / "lstm", runs / "begun", "--out", out)
    return out


def test_runs_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for parent in ("x1", "x2"):
        shutil.copytree(runs / "lstm", tmp_path / parent / "same")
    folders = [tmp_path / parent / "same" for parent in ("x1", "x2")]
    report(*folders, "--out", tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert "x1/same" in text
    assert "x2/same" in text


def test_accuracies_and_costs_are_those_of_the_evaluations(runs: Path, page: Path) -> None:
    text = Page(page).text
    for name in ("liteeval", "lstm"):
        summary = json.loads((runs / name / "evaluate_val.json").read_text())
        for value in (
            f"{100 * summary['top1']:.1f}",
            f"{100 * summary['map']:.1f}",
            f"{summary['gflops_mean']:.2f} ± {summary['gflops_std']:.2f}",
            f"{summary['fine_frames_mean']:.1f} ± {summary['fine_frames_std']:.1f}",
            f"{summary['gflops']['fine']:.3f}",
        ):
            assert value in text


def test_a_run_that_has_only_begun_is_said_to_have_no_result(page: Path) -> None:
    text = Page(page).text
    assert "not trained yet; 0 of 8 epochs" in text
    assert "1 of 3 runs have no result yet" in text


def test_random_weights_and_few_videos_are_said_beside_the_result(page: Path) -> None:
    text = Page(page).text
    assert "weights of mobilenet_v2@32 and mobilenet_v2@48 are random" in text
    assert "6 videos were evaluated: one of them is 16.7 points of top-1" in text


def test_the_page_needs_no_other_file_and_runs_no_script(page: Path) -> None:
    parsed = Page(page)
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)
    assert parsed.tags["script"] == 0
    assert parsed.handlers == []
    assert parsed.tags["img"] >= 6 * 3  # frames of the films
    assert parsed.tags["svg"] >= 2
    assert "default-src 'none'" in page.read_text(encoding="utf-8")


def test_names_of_videos_and_labels_are_text_whatever_they_hold(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "<b onclick=x>run"
    shutil.copytree(runs / "liteeval", run)
    path = run / "evaluate_val_videos.jsonl"
    videos = [json.loads(line) for line in path.read_text().splitlines()]
    for video in videos:
        video |= {"labels": [HOSTILE], "predicted": HOSTILE, "correct": False}
    path.write_text("".join(json.dumps(video) + "\n" for video in videos))
    report(run, "--out", tmp_path / "hostile.html")
    parsed = Page(tmp_path / "hostile.html")
    assert HOSTILE in parsed.text
    assert "<b onclick=x>run" in parsed.text
    assert parsed.tags["script"] == 0
    assert parsed.handlers == []
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)


def test_failed_videos_are_listed(runs: Path, tmp_path: Path) -> None:
    from extract.failures import append_failure

    info = json.loads((runs / "liteeval" / "config.json").read_text())
    features = tmp_path / "features"
    shutil.copytree(Path(info["coarse"]["path"]).parent, features, ignore=lambda *_: ["clips"])
    run = tmp_path / "run"
    shutil.copytree(runs / "liteeval", run)
    moved = {
        key: {**info[key], "path": str(features / Path(info[key]["path"]).name)}
        for key in ("coarse", "fine")
    }
    (run / "config.json").write_text(json.dumps({**info, **moved}))
    append_failure(
        features, "broken/one", Path("/films/one.mp4"),
        stage="decode", error="truncated <file>", attempts=2,
    )  # fmt: skip
    report(run, "--out", tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "broken/one" in text
    assert "truncated <file>" in text
    assert "1 videos could not be extracted" in text


EXPERIMENT = """\
name: unfinished
data: {synthetic: {videos: 18}}
backbones:
  coarse: {name: mobilenet_v2, size: 32, weights: random}
  fine: {name: mobilenet_v2, size: 48, weights: random}
runs: [{method: liteeval}, {method: lstm}, {method: uniform}]
report: {tables: {"ours": [liteeval]}, figures: [uniform]}
"""


def test_an_unfinished_experiment_is_told_as_far_as_it_is(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("liteeval", "lstm"):
        shutil.copytree(runs / name, out / "runs" / name)
    (out / "manifest.yaml").write_text(EXPERIMENT)
    Stamp("x", 1, seconds=70.0, command="liteeval-train fit …").write(out / "jobs/fit-uniform.json")
    Stamp("x", 0, seconds=30.0, command="liteeval extract").write(out / "jobs/extract.json")
    Stamp("x", None).write(out / "jobs/report.json")  # the one that writes the page
    Stamp("x", 1, seconds=900.0).write(out / "jobs/fit-gone.json")  # of an older manifest
    (out / "figures").mkdir()
    lines = "line,GFLOPs,mAP %\nseq-k (uniform),1,50\nseq-k (uniform),2,60\n"
    (out / "figures" / "accuracy_gflops.csv").write_text(lines)
    pages = [tmp_path / "page.html", tmp_path / "same.html"]
    report(out, "--out", pages[0])
    report(out / "manifest.yaml", "--out", pages[1])
    text, same = (Page(path).text for path in pages)
    assert text.split("written")[1][20:] == same.split("written")[1][20:]  # all but the time
    assert "uniform not started yet" in text
    assert "1 of 3 runs have no result yet" in text
    assert "Jobs that failed: fit-uniform." in text
    assert "one job after another: 100 s in all" in text
    assert "seq-k (uniform)" in text
    assert "name: unfinished" in text
    report(out, "--split", "train", "--out", pages[0])
    text = Page(pages[0]).text
    assert "No run is evaluated yet" in text
    assert "not evaluated yet" in text
    assert "seq-k (uniform)" not in text  # drawn for another split


def test_figures_of_an_older_manifest_are_not_shown(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "liteeval", tmp_path / "runs" / "liteeval")
    (tmp_path / "manifest.yaml").write_text(EXPERIMENT.replace(", figures: [uniform]", ""))
    (tmp_path / "figures").mkdir()
    lines = "line,GFLOPs,mAP %\nseq-k (uniform),1,50\nseq-k (uniform),2,60\n"
    (tmp_path / "figures" / "accuracy_gflops.csv").write_text(lines)
    report(tmp_path, "--out", tmp_path / "page.html")
    assert "seq-k (uniform)" not in Page(tmp_path / "page.html").text


def test_nothing_is_said_to_be_extracted_before_extraction_has_ended(
    runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.yaml").write_text(EXPERIMENT)
    (tmp_path / "runs").mkdir()
    report(tmp_path, "--out", tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "Every video could be extracted" not in text
    assert "Extraction has not ended yet" in text


def test_a_manifest_beside_the_folder_runs_is_not_taken_for_the_output(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    for out in (tmp_path / "runs" / "unfinished", tmp_path / "elsewhere"):
        shutil.copytree(runs / "liteeval", out / "runs" / "liteeval")
        report("mine.yaml", "--out", "page.html", "--experiment", out)
        chosen = Page(tmp_path / "page.html").text
        assert "2 of 3 runs have no result yet" in chosen
    report("mine.yaml", "--out", "page.html")
    default = Page(tmp_path / "page.html").text
    assert default.split("written")[1][20:] == chosen.split("written")[1][20:]


def test_videos_that_the_data_set_lists_and_nobody_has_are_counted(
    runs: Path, tmp_path: Path
) -> None:
    importing = "data: {importer: folders, videos: videos}"
    manifest = EXPERIMENT.replace("data: {synthetic: {videos: 18}}", importing)
    (tmp_path / "manifest.yaml").write_text(manifest)
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "import.json").write_text('{"missing": 1234, "listed": 19994}')
    report(tmp_path, "--out", tmp_path / "page.html")
    assert "1,234 of the 19,994 videos that the data set lists were not found" in (
        Page(tmp_path / "page.html").text
    )


def test_a_damaged_result_is_said_to_be_damaged(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "liteeval", tmp_path / "run")
    path = tmp_path / "run" / "evaluate_val_videos.jsonl"
    path.write_text('{"video_id": "a"}\n')
    report(tmp_path / "run", "--out", tmp_path / "page.html")
    assert "damaged (a line without correct, fine_frames, frames, gflops, labels," in (
        Page(tmp_path / "page.html").text
    )


def test_a_folder_that_holds_no_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path), "--out", str(tmp_path / "p.html")])
    assert result.exit_code == 1
    assert str(tmp_path) in result.output
    assert not (tmp_path / "p.html").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("no Chromium here")
    with Chromium() as chromium:
        yield chromium


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_the_page_without_complaint(
    browser: Chromium, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert browser.evaluate("document.querySelectorAll('table tbody tr').length") >= 10
    pictures = "[...document.images]"
    assert browser.evaluate(f"{pictures}.length") >= 18
    assert browser.evaluate(f"{pictures}.every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert browser.evaluate(
        "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 100)"
    )
    ink, ground = (
        browser.evaluate(
            f"getComputedStyle(document.body).{style}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        )
        for style in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(ground)) == dark
    assert abs(sum(ink) - sum(ground)) > 3 * 150  # legible
