"""One page that tells an experiment: a file that opens from disk, without network or script.

Everything that a page says is read from what jobs have left: configurations, evaluations, metrics,
stores, stamps of jobs, the manifest. What is not there yet is said to be missing. Names of videos,
labels and runs are other people's text: the template escapes all of it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from extract.decode import DecodeError
from extract.failures import open_failures
from extract.store import FeatureStore, StoreError, describe_store
from liteeval_train.compare import table_cells, table_header
from liteeval_train.cost import FLOP_CONVENTION
from liteeval_train.figures import Curve, Filmstrip, curves_svg, style_of
from liteeval_train.layouts import Compared, group_runs
from liteeval_train.paper import EXTENSION, GFLOPS_PER_ROW
from liteeval_train.run_files import RunError, RunFiles, StoreInfo, name_folders
from pipelines.jobs import Layout, plan_jobs, write_text
from pipelines.manifest import Manifest, load_manifest
from pipelines.report import ReportError, choose_results, make_filmstrip, read_results
from pipelines.stamps import Stamp
from pipelines.timing import read_timings, timing_rows

GATED = ("liteeval", "liteeval-rl")
MOST_CURVES = 8  # in a figure
FIRST_CURVES = ("liteeval", "lstm", "uniform")  # with the same colours in every figure
MOST_ROWS = 500  # of videos, in a table; the rest is counted
THUMBNAIL_WIDTH_PX = 208  # twice what the page shows, for screens with small pixels
JPEG_QUALITY = 72


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    title: str
    runs: tuple[Path, ...]
    split: str = "val"
    main: str | None = None  # the run whose gate is shown; by default the first with a gate
    featured: tuple[str, ...] = ()  # runs whose curves are drawn; by default all
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)  # a title, names of runs
    strips: int = 6
    layout: Layout | None = None  # of the experiment, if the runs belong to one
    figures: Path | None = None  # folder of curves that were drawn for this split
    seconds: Path | None = None  # what was measured from the file to the prediction
    jobs: frozenset[str] = frozenset()  # that the manifest has now
    manifest: str = ""

    @classmethod
    def of_experiment(cls, manifest: Manifest, layout: Layout) -> Subject:
        report = manifest.report
        return cls(
            title=manifest.name,
            runs=tuple(layout.run(run.name) for run in manifest.all_runs),
            split=manifest.evaluation.split,
            main=report.filmstrip,
            featured=tuple(manifest.runs_like(report.figures)),
            tables={name: manifest.runs_like(like) for name, like in report.tables.items()},
            strips=report.filmstrip_videos,
            layout=layout,
            figures=layout.figures if report.figures else None,
            seconds=layout.seconds if report.seconds else None,
            jobs=frozenset(job.name for job in plan_jobs(manifest, layout)),
            manifest=manifest.to_yaml(),
        )


def find_subject(
    paths: Sequence[Path],
    *,
    split: str | None = None,
    settings: Mapping[str, str] | None = None,
    out: Path | None = None,
) -> Subject:
    """The experiment of a manifest or of an output folder, or runs by themselves.

    Args:
        split: by default the manifest's, or val.
        settings: variables of the manifest.
        out: the experiment's folder; by default where `liteeval run` puts it, or the folder of the
            manifest where that is the one which a run has written there.

    Raises: ManifestError if the manifest is wrong; RunError if the experiment has no output, or a
        folder holds no run.
    """
    first = paths[0] / "manifest.yaml" if (paths[0] / "manifest.yaml").is_file() else paths[0]
    if len(paths) > 1 or not first.is_file():
        for path in paths:
            RunFiles(path).read_info()
        title = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} runs"
        return Subject(title, tuple(paths), split or "val")
    manifest = load_manifest(first, settings=settings)
    folder = first.resolve().parent
    by_a_run = first.name == Layout(folder).manifest.name and (folder / "jobs").is_dir()
    given = first != paths[0]  # the folder itself
    default = folder if given or by_a_run else Path("runs", manifest.name)
    layout = Layout((out or default).resolve())
    if not layout.out.is_dir():
        raise RunError(
            f"{first}: no output of it in {layout.out}; give its folder by --experiment, or run it "
            f"with liteeval run {first}"
        )
    subject = Subject.of_experiment(manifest, layout)
    if split in (None, subject.split):
        return subject
    return replace(subject, split=split, figures=None)


@dataclass(frozen=True)
class PageRun:
    """A run as far as it is."""

    name: str
    files: RunFiles
    compared: Compared | None  # None: not started
    state: str  # empty for an evaluated run, else what it lacks
    epochs: tuple[Mapping[str, Any], ...]  # lines of metrics.jsonl

    @classmethod
    def read(cls, path: Path, split: str, name: str) -> PageRun:
        """Raises: RunError if its files are damaged."""
        files = RunFiles(path)
        if not files.config.exists():
            return cls(name, files, None, "not started yet", ())
        compared, epochs = Compared.read(path, split, name=name), tuple(files.read_metrics())
        if compared.summary is not None:
            state = ""
        elif not files.best.exists():
            state = f"not trained yet; {len(epochs)} of {compared.info.config.epochs} epochs"
        elif files.evaluation(split).exists():
            state = "trained on since its last evaluation; not evaluated again yet"
        else:
            state = "not evaluated yet"
        return cls(name, files, compared, state, epochs)

    @property
    def method(self) -> str:
        return self.compared.info.config.method if self.compared else ""

    @property
    def summary(self) -> dict[str, Any]:
        """Empty for a run that is not evaluated."""
        return (self.compared.summary or {}) if self.compared else {}


def write_page(subject: Subject, out: Path) -> None:
    """Write the page.

    Raises: RunError if a run is damaged; JobError if `out` cannot be written.
    """
    write_text(out, render_page(subject))


def render_page(subject: Subject) -> str:
    """The page as HTML.

    Raises: RunError if a run is damaged.
    """
    runs = [
        PageRun.read(path, subject.split, name) for path, name in name_folders(subject.runs).items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html").render(page_content(subject, runs))


def _breakable(text: object) -> Markup:
    """A long name that may go on in the next line after - _ / @ and full stops."""
    return Markup(re.sub(r"([-_/@.])", r"\1<wbr>", str(escape(text))))


def page_content(subject: Subject, runs: Sequence[PageRun]) -> dict[str, Any]:
    """All that the template shows."""
    main = _main_run(subject, runs)
    failures, failures_note = _failures(subject, runs)
    stores = _stores(runs)
    jobs = _jobs(subject)
    return {
        "title": subject.title,
        "split": subject.split,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "flop_convention": FLOP_CONVENTION,
        "main": main.name if main else "",
        "tiles": _tiles(main, runs),
        "notes": [*_missing(subject), *_notes(runs, stores, failures, jobs)],
        "results": _results(runs),
        "tables": _tables(subject, runs),
        "papers": sorted({str(r.compared.paper) for r in runs if r.compared and r.compared.paper}),
        "costs": _costs(runs),
        "figures": _figures(subject, runs),
        **_filmstrips(subject, main),
        "classes": _classes(subject, main),
        **_mistakes(subject, main),
        "failures": failures[:MOST_ROWS],
        "failures_total": len(failures),
        "failures_note": failures_note,
        "stores": stores,
        "paper_of_gflops": EXTENSION,
        "versions": _versions(runs),
        "jobs": jobs,
        "manifest": subject.manifest,
        "configs": [
            (run.name, run.compared.info.config.model_dump_json(indent=2))
            for run in runs
            if run.compared and not subject.manifest
        ],
    }


def _main_run(subject: Subject, runs: Sequence[PageRun]) -> PageRun | None:
    """The run that the page is about first of all, if one is evaluated."""
    evaluated = [run for run in runs if run.summary]
    wanted = [run for run in evaluated if run.name == subject.main]
    gated = [run for run in evaluated if run.method in GATED]
    return next(iter([*wanted, *gated, *evaluated]), None)


def _tiles(main: PageRun | None, runs: Sequence[PageRun]) -> list[tuple[str, str, str]]:
    """The main run's figures: value, unit, what stands beside it."""
    if main is None:
        return []
    summary = main.summary
    gflops, frames = summary["gflops_mean"], summary["frames_mean"]
    beside = [
        f"{100 * gflops / run.summary['gflops_mean']:.0f} % of {run.name}'s "
        f"{run.summary['gflops_mean']:.2f}"
        for run in _all_frames_runs(main, runs)
    ]
    others = [f"{run.name} {100 * run.summary['map']:.1f}" for run in _all_frames_runs(main, runs)]
    return [
        (f"{100 * summary['map']:.1f}", "% mAP", ", ".join(others)),
        (f"{100 * summary['top1']:.1f}", "% top-1", f"of {summary['videos']} videos"),
        (f"{gflops:.2f}", "GFLOPs per video", ", ".join(beside)),
        (
            f"{summary['fine_frames_mean']:.1f}",
            "frames read finely",
            f"of {frames:.1f} seen, {100 * summary['fine_frames_mean'] / frames:.0f} %",
        ),
    ]


def _all_frames_runs(main: PageRun, runs: Sequence[PageRun]) -> list[PageRun]:
    """LSTM's and UNIFORM's run on the same fine features: what the main run is measured by."""
    assert main.compared is not None
    found = []
    for method in ("lstm", "uniform"):
        same = [
            run
            for run in runs
            if run.summary
            and run.compared
            and run.method == method
            and run.compared.info.fine.backbone == main.compared.info.fine.backbone
            and run is not main
        ]
        found += same[:1]
    return found


def _notes(
    runs: Sequence[PageRun],
    stores: Sequence[Mapping[str, Any]],
    failures: Sequence[Any],
    jobs: Mapping[str, Any],
) -> list[str]:
    """What a reader has to know before believing a figure."""
    notes = []
    random = [store["backbone"] for store in stores if store["random"]]
    if random:
        notes.append(
            f"The weights of {' and '.join(random)} are random (seeded): costs are real, "
            "accuracies only show that the parts work together."
        )
    waiting = [run for run in runs if run.state]
    if waiting:
        notes.append(
            f"{len(waiting)} of {len(runs)} runs have no result yet; what is here can change."
        )
    evaluated = [run for run in runs if run.summary and run.compared]
    settings = [repr(run.compared.settings) for run in evaluated if run.compared]
    if evaluated and len(set(settings)) == len(settings):
        notes.append(
            "Each configuration was trained once: how far the seed alone moves its accuracy is "
            "not known."
        )
    videos = {run.summary["videos"] for run in evaluated}
    if videos and min(videos) < 200:
        notes.append(
            f"{min(videos)} videos were evaluated: one of them is "
            f"{100 / min(videos):.1f} points of top-1."
        )
    if failures:
        notes.append(f"{len(failures)} videos could not be extracted and are left out.")
    failed = [job["name"] for job in jobs["rows"] if job["failed"]]
    if failed:
        notes.append(f"Jobs that failed: {', '.join(failed)}.")
    return notes


def _missing(subject: Subject) -> list[str]:
    """How many videos of the data set the importer did not find."""
    if subject.layout is None or "import" not in subject.jobs:
        return []
    try:
        found = json.loads((subject.layout.data / "import.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not found["missing"]:
        return []
    return [
        f"{found['missing']:,} of the {found['listed']:,} videos that the data set lists were not "
        "found and are left out; data/missing.txt names them."
    ]


RESULT_HEADER = (
    "top-1 %", "mAP %", "GFLOPs per video", "fine frames per video", "frames seen",
    "head, ms per video", "method",
)  # fmt: skip


def _results(runs: Sequence[PageRun]) -> dict[str, Any]:
    rows = []
    for run in runs:
        s = run.summary
        cells = [] if not s else [
            f"{100 * s['top1']:.1f}",
            f"{100 * s['map']:.1f}",
            f"{s['gflops_mean']:.2f} ± {s['gflops_std']:.2f}",
            f"{s['fine_frames_mean']:.1f} ± {s['fine_frames_std']:.1f}",
            f"{s['frames_mean']:.1f}",
            f"{1000 * s['seconds_per_video']:.2f}",
        ]  # fmt: skip
        rows.append({"name": run.name, "method": run.method, "cells": cells, "state": run.state})
    return {"header": RESULT_HEADER, "rows": rows}


def _tables(subject: Subject, runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    """Runs by what differs, the manifest's tables that say something else, then seconds."""
    grouped = group_runs([run.compared for run in runs if run.compared])
    tables = [
        {"title": table.title, "header": table_header(table), "rows": table_cells(table)}
        for table in grouped
    ]
    evaluated = {run.name: run for run in runs if run.summary}
    for title, names in subject.tables.items():
        if not any(set(names) <= table.names for table in grouped):
            results = _results([evaluated[name] for name in names if name in evaluated])
            rows = [[row["name"], *row["cells"], row["method"]] for row in results["rows"]]
            header = ["run", *RESULT_HEADER]
            tables += [{"title": title, "header": header, "rows": rows}] if rows else []
    timings = read_timings(subject.seconds) if subject.seconds else []
    if timings:
        header, *rows = timing_rows(timings)
        title = "Time per video, from opening the file to the prediction"
        tables.append({"title": title, "header": header, "rows": rows})
    return tables


def _costs(runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    """GFLOPs by part, as text and as share of the costliest run; seconds."""
    evaluated = [run for run in runs if run.summary]
    most = max((run.summary["gflops_mean"] for run in evaluated), default=0.0) or 1.0
    return [
        {
            "name": run.name,
            "parts": [
                (part, f"{value:.3f}", f"{100 * value / most:.2f}")
                for part, value in run.summary["gflops"].items()
            ],
            "total": f"{run.summary['gflops_mean']:.2f}",
            "head_ms": f"{1000 * run.summary['seconds_per_video']:.2f}",
            "training_seconds": f"{sum(e.get('train_seconds', 0.0) for e in run.epochs):,.0f}",
            "epochs": len(run.epochs),
        }
        for run in evaluated
    ]


def _figures(subject: Subject, runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    featured = [run for run in runs if run.name in subject.featured] or list(runs)
    shown = featured[:MOST_CURVES]
    gated = [run for run in featured if run.method in GATED][:MOST_CURVES]
    gflops = f"GFLOPs per video ({FLOP_CONVENTION})"
    figures = [
        _figure(
            "Accuracy against cost",
            "Every evaluated run is a mark, every method a colour. Up and left is better.",
            _by_method(runs), gflops, "mAP %", joined=False,
        ),
        _figure(
            "By budget of fine frames",
            "Prediction while the video runs, at the first, second, … fine frame. seq-k: the "
            "first k frames; uniform-k: k frames up to where liteeval stops.",
            _stored(subject, shown, "accuracy_gflops", "budgets", "gflops_mean", 1), gflops,
            "mAP %",
        ),
        _figure(
            "By share of the video seen",
            "Prediction after each tenth of the video.",
            _stored(subject, shown, "accuracy_watched", "watched", "watched", 100),
            "share of the video seen, %", "mAP %",
        ),
        _figure(
            "Fine frames over training",
            "Share of frames that the gate opens while training.",
            [_epochs(run, "fine_share") for run in gated], "epoch",
            "share of frames read finely, %",
        ),
        _figure(
            "Accuracy over training",
            "On split val, after each epoch.",
            [_epochs(run, "val_map") for run in shown], "epoch", "mAP on val, %",
        ),
    ]  # fmt: skip
    return [figure for figure in figures if figure]


def _figure(
    title: str,
    caption: str,
    curves: Iterable[Curve | None],
    x_label: str,
    y_label: str,
    *,
    joined: bool = True,
) -> dict[str, Any] | None:
    drawn = [curve for curve in curves if curve is not None]
    if not drawn:
        return None
    drawn.sort(key=lambda curve: (*FIRST_CURVES, curve.label).index(curve.label))
    # Safe as markup: no text in it but axis labels of ours and numbers.
    svg = Markup(curves_svg(drawn, x_label=x_label, y_label=y_label, joined=joined))
    legend = [(curve.label, *style_of(number)) for number, curve in enumerate(drawn)]
    about = f"{title}: {y_label} against {x_label}, for {', '.join(c.label for c in drawn)}"
    return {"title": title, "caption": caption, "svg": svg, "legend": legend, "about": about}


def _by_method(runs: Sequence[PageRun]) -> list[Curve]:
    points: dict[str, list[dict[str, Any]]] = {method: [] for method in ("liteeval", "lstm")}
    for run in runs:
        if run.summary:
            points.setdefault(run.method, []).append(run.summary)
    return [
        Curve(method, [s["gflops_mean"] for s in found], [100 * s["map"] for s in found])
        for method, found in points.items()
        if found
    ]


def _stored(
    subject: Subject, runs: Sequence[PageRun], name: str, kind: str, x: str, factor: float
) -> list[Curve]:
    """Curves that the job `figures` drew, or else those that evaluation left in the runs."""
    drawn = _read_curves(subject.figures / f"{name}.csv") if subject.figures else []
    if drawn:
        return drawn
    curves = []
    for run in runs:
        points = run.files.read_curve(subject.split, kind) if run.summary else []
        if points:
            method = points[0]["method"]
            label = run.name if method == run.method else f"{method} ({run.name})"
            xs = [factor * point[x] for point in points]
            curves.append(Curve(label, xs, [100 * point["map"] for point in points]))
    return curves


def _read_curves(path: Path) -> list[Curve]:
    """The lines of a CSV file that `liteeval-train figures` wrote; none where none can be read."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for label, x, y in list(csv.reader(file))[1:]:
                xs, ys = lines.setdefault(label, ([], []))
                xs.append(float(x))
                ys.append(float(y))
    except (OSError, ValueError):
        return []
    return [Curve(label, xs, ys) for label, (xs, ys) in lines.items()]


def _epochs(run: PageRun, key: str) -> Curve | None:
    epochs = [epoch for epoch in run.epochs if key in epoch]
    if not epochs:
        return None
    return Curve(run.name, [e["epoch"] for e in epochs], [100 * e[key] for e in epochs])


def _filmstrips(subject: Subject, main: PageRun | None) -> dict[str, Any]:
    """The frames of some videos, and why some are missing."""
    if main is None or main.compared is None:
        return {"strips": [], "strips_note": "No run is evaluated yet."}
    strips, notes = [], []
    try:
        results = read_results(main.files.evaluation_videos(subject.split))
        store = FeatureStore(main.compared.info.fine.path)
    except (ReportError, StoreError) as error:
        return {"strips": [], "strips_note": str(error)}
    for result in choose_results(results, subject.strips):
        try:
            path = Path(store[result["video_id"]].source_path)
            strips.append(_strip(make_filmstrip(result, path, store), result))
        except (DecodeError, StoreError, KeyError) as error:
            notes.append(str(error))
    return {"strips": strips, "strips_note": "; ".join(notes)}


def _strip(strip: Filmstrip, result: Mapping[str, Any]) -> dict[str, Any]:
    shown, seen = len(strip.used_T), result["frames"]
    counts = f"{result['fine_frames']} of {seen} frames read finely, {result['gflops']:.2f} GFLOPs"
    return {
        "title": result["video_id"],
        **{key: result[key] for key in ("labels", "predicted", "correct")},
        "counts": counts + (f", {shown} frames shown" if shown < seen else ""),
        "frames": [
            {"jpeg": _jpeg(frame), "fine": bool(fine), "seconds": f"{seconds:.1f}"}
            for frame, fine, seconds in zip(
                strip.frames_THWC, strip.used_T, strip.pts_seconds_T, strict=True
            )
        ],
    }


def _jpeg(frame_HWC: np.ndarray) -> str:
    """A small picture as a data address."""
    image = Image.fromarray(frame_HWC)
    image.thumbnail((THUMBNAIL_WIDTH_PX, THUMBNAIL_WIDTH_PX))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _videos(subject: Subject, main: PageRun | None) -> list[dict[str, Any]]:
    """The main run's results, video by video."""
    try:
        return read_results(main.files.evaluation_videos(subject.split)) if main else []
    except ReportError:
        return []


def _classes(subject: Subject, main: PageRun | None) -> list[dict[str, Any]]:
    """For each class: how many of its videos were right, and how many frames they took."""
    members: dict[str, list[dict[str, Any]]] = {}
    for video in _videos(subject, main):
        for label in video["labels"]:
            members.setdefault(label, []).append(video)
    means = {
        label: float(np.mean([video["fine_frames"] for video in videos]))
        for label, videos in members.items()
    }
    most = max(means.values(), default=0.0) or 1.0
    return [
        {
            "label": label,
            "videos": len(members[label]),
            "right": f"{100 * np.mean([video['correct'] for video in members[label]]):.0f}",
            "fine_frames": f"{mean:.1f}",
            "share": f"{100 * mean / most:.1f}",
            "gflops": f"{np.mean([video['gflops'] for video in members[label]]):.2f}",
        }
        for label, mean in sorted(means.items(), key=lambda item: (-item[1], item[0]))
    ]


def _mistakes(subject: Subject, main: PageRun | None) -> dict[str, Any]:
    wrong = [video for video in _videos(subject, main) if not video["correct"]]
    return {"mistakes": wrong[:MOST_ROWS], "mistakes_total": len(wrong)}


def _failures(subject: Subject, runs: Sequence[PageRun]) -> tuple[list[dict[str, Any]], str]:
    """Videos that extraction could not do, and what kept us from telling."""
    folders = {Path(run.compared.info.coarse.path).parent for run in runs if run.compared}
    folders |= {subject.layout.features} if subject.layout else set()
    failures, notes = [], []
    for folder in sorted(folders):
        try:
            failures += open_failures(folder)
        except (StoreError, OSError) as error:
            notes.append(f"{folder}: cannot be read ({error})")
    stamp = Stamp.read(subject.layout.stamp("extract")) if subject.layout else None
    if subject.layout and not (stamp and stamp.ended_well):
        notes.append("Extraction has not ended yet: what can be extracted is not known.")
    elif not any(folder.is_dir() for folder in folders):
        notes.append("The features are not here: what could be extracted is not known.")
    return failures, "; ".join(notes)


def _stores(runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    """The stores that the runs read, each once."""
    infos: dict[str, tuple[StoreInfo, str]] = {}
    for run in runs:
        if run.compared:
            infos.setdefault(run.compared.info.coarse.path, (run.compared.info.coarse, "coarse"))
            infos.setdefault(run.compared.info.fine.path, (run.compared.info.fine, "fine"))
    return [_store(info, role) for info, role in infos.values()]


def _store(info: StoreInfo, role: str) -> dict[str, Any]:
    identity = info.identity
    paper = GFLOPS_PER_ROW.get(info.backbone)
    try:
        held = describe_store(info.path)
    except StoreError:
        held = {}
    return {
        "role": role,
        "backbone": info.backbone,
        "weights": identity.get("weights", ""),
        "sha256": str(identity.get("weights_sha256", ""))[:12],
        "random": str(identity.get("weights", "")).startswith("random"),
        "gflops": f"{identity.get('gflops_per_frame', float('nan')):.4f}",
        "paper_gflops": "" if paper is None else f"{paper:.2f}",
        "dim": identity.get("feature_dim", ""),
        "parameters": f"{identity.get('parameters', 0) / 1e6:.1f}",
        "fps": f"{identity.get('sample_fps', float('nan')):g}",
        "videos": f"{held['videos']:,}" if held else "not here",
        "rows": f"{held['rows']:,}" if held else "",
        "hours": f"{held['duration_seconds'] / 3600:.2f}" if held else "",
        "decoders": ", ".join(held.get("decoders", [])),
    }


def _versions(runs: Sequence[PageRun]) -> list[tuple[str, str]]:
    """Each library and the versions of it that made the stores and the runs."""
    found: dict[str, set[str]] = {}
    for run in runs:
        if not run.compared:
            continue
        info = run.compared.info
        stored = [info.versions]
        for store in (info.coarse, info.fine):
            versions = store.identity.get("versions", {})
            stored.append(json.loads(versions) if isinstance(versions, str) else versions)
        for versions in stored:
            for name, version in versions.items():
                found.setdefault(name, set()).add(str(version))
    return [(name, ", ".join(sorted(versions))) for name, versions in sorted(found.items())]


def _jobs(subject: Subject) -> dict[str, Any]:
    """The stamps of an experiment's jobs in the order they began, and their seconds by kind."""
    rows, kinds, layout = [], dict[str, list[float]](), subject.layout
    names = sorted(subject.jobs) if layout else []
    read = [(name, Stamp.read(layout.stamp(name))) for name in names if layout]
    for name, stamp in sorted(read, key=lambda pair: pair[1].utc if pair[1] else ""):
        if stamp is None or stamp.exit_code is None:
            continue
        kinds.setdefault(name.split("-")[0], []).append(stamp.seconds)
        failed = stamp.exit_code not in (0, 3)
        seconds = f"{stamp.seconds:,.1f}"
        rows.append({"name": name, "seconds": seconds, "command": stamp.command, "failed": failed})
    totals = [(kind, len(took), f"{sum(took):,.0f}") for kind, took in kinds.items()]
    all_seconds = sum(sum(took) for took in kinds.values())
    return {"rows": rows, "totals": totals, "seconds": f"{all_seconds:,.0f}"}
