"""liteeval: whole experiments over both stages."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from extract.cli import FiniteRange
from extract.videos import VideoListError
from pipelines.datasets.listing import DataSetError, Source
from pipelines.engines.local import INTERRUPTED, Choice
from pipelines.experiment import Done, Engine, open_experiment, run_experiment
from pipelines.extract import extract
from pipelines.importing import DATASETS, Report, import_dataset
from pipelines.jobs import JobError, plan_jobs
from pipelines.manifest import ManifestError, manifest_schema
from pipelines.plan import (
    ASSUMED_GFLOPS_PER_SECOND,
    estimate_work,
    format_estimate,
    format_states,
    job_states,
    progress,
)
from pipelines.stamps import SOME_VIDEOS_FAILED

if TYPE_CHECKING:
    from pipelines.live import LiveRun
    from pipelines.predict import VideoFailure
    from pipelines.stream import StreamUpdate

DEMO_MANIFEST = Path(__file__).with_name("demo.yaml")


class _ManifestFault(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """Commands whose expected errors are one line each; any other error keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ManifestError as error:
            raise _ManifestFault(str(error)) from error
        except (JobError, DataSetError, VideoListError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to go on", err=True)
            sys.exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _value in pairs:
        if not name or not equals:
            raise click.BadParameter(f"{name!r}: expected NAME=VALUE")
    return {name: value for name, _equals, value in pairs}


def _where_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--workers", type=click.IntRange(0, 1024),
                     help="Decode processes; default: cores − 1."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …"),
    ):  # fmt: skip
        function = option(function)
    return function


def _what_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An experiment: its manifest, variables and output folder."""
    for decorate in (
        click.option("--out", type=click.Path(path_type=Path),
                     help="Default: runs/NAME of the manifest."),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", callback=_settings,
                     help="A variable of the manifest; paths relative to the current directory."),
        click.argument("manifest", type=click.Path(path_type=Path)),
    ):  # fmt: skip
        function = decorate(function)
    return function


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="liteeval")
def main() -> None:
    """Run whole experiments: videos in, trained models, a table and pictures out.

    \b
    Example:
      liteeval demo
      liteeval run manifests/ucf11.yaml --set data=ucf11 --out runs/ucf11
    """
    signal.signal(signal.SIGTERM, _interrupt)


@main.command()
@_what_options
@click.option("--only", multiple=True, metavar="JOB",
              help="These jobs and what they need; * and ? stand for any text.")  # fmt: skip
@click.option("--force", multiple=True, metavar="JOB", help="Start these over, done or not.")
@click.option("--retry-failed", is_flag=True,
              help="Try videos again that failed; without it their jobs are done.")  # fmt: skip
@click.option("--keep-going", is_flag=True,
              help="After a failure, go on with the jobs that do not need that one.")  # fmt: skip
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]),
              help="local: this machine, a job for each GPU. ray: a cluster.")  # fmt: skip
@click.option("--ray-address", metavar="ADDRESS",
              help="Of a Ray cluster; default: $RAY_ADDRESS, or this machine alone.")  # fmt: skip
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64),
              help="At once on this machine; with GPUs one for each.")  # fmt: skip
@_where_options
def run(
    manifest: Path, settings: dict[str, str], out: Path | None,
    only: tuple[str, ...], force: tuple[str, ...], retry_failed: bool, keep_going: bool,
    engine: str, ray_address: str | None, jobs: int, **where: Any,
) -> None:  # fmt: skip
    """Run the experiment that MANIFEST says; jobs that are done are not run again.

    The output folder gets features, runs, tables, pictures, and the manifest as it was
    understood. Interrupted or killed, the same command goes on where it stopped.

    \b
    Example:
      liteeval run manifests/ucf11.yaml --set data=ucf11 --set weights=mobilenet_v2.pth \\
          --out runs/ucf11
      liteeval run manifests/ucf11.yaml --set … --only 'fit-*' --keep-going
    """
    if ray_address and engine != "ray":
        raise click.UsageError("--ray-address goes with --engine ray")
    choice = Choice(only=only, force=force, keep_going=keep_going, retry_failed=retry_failed)
    who = Engine(engine, ray_address, jobs)
    done = run_experiment(
        manifest, settings=settings, out=out, log=_log, choice=choice, engine=who, **where
    )
    _print_results(done)
    _exit(done)


@main.command()
@_what_options
@click.option("--gflops-per-second", default=ASSUMED_GFLOPS_PER_SECOND, show_default=True,
              type=FiniteRange(0, min_open=True),
              help="What the machine is assumed to do, for the estimate.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan(
    manifest: Path, settings: dict[str, str], out: Path | None,
    gflops_per_second: float, as_json: bool,
) -> None:  # fmt: skip
    """Show the jobs of MANIFEST: which are done, stale or to do. Runs and writes nothing.

    A job is stale when its command or anything that it reads has changed. Ends with an estimate of
    rows and of the backbones' time in what is not done, from a few probed videos and an assumed
    rate.

    \b
    Example:
      liteeval plan manifests/ucf11.yaml --set data=ucf11 --set weights=mobilenet_v2.pth
    """
    experiment, layout = open_experiment(manifest, settings=settings, out=out)
    states = job_states(plan_jobs(experiment, layout), layout)
    estimate = estimate_work(experiment, layout, states)
    if as_json:
        hours = estimate.network_hours(gflops_per_second)
        about = {**asdict(estimate), "network_hours": hours, "gflops_per_second": gflops_per_second}
        document = {"jobs": [asdict(state) for state in states], "estimate": about}
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{format_states(states)}\n\n{format_estimate(estimate, gflops_per_second)}")


@main.command()
@_what_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(manifest: Path, settings: dict[str, str], out: Path | None, as_json: bool) -> None:
    """Tell how far the experiment of MANIFEST is, also while it runs in another terminal.

    \b
    Example:
      liteeval status runs/ucf11/manifest.yaml --out runs/ucf11
    """
    experiment, layout = open_experiment(manifest, settings=settings, out=out)
    states = job_states(plan_jobs(experiment, layout), layout)
    notes = {
        state.name: progress(state.name, experiment, layout)
        for state in states
        if state.state in ("running", "interrupted")
    }
    if as_json:
        jobs = [{**asdict(s), "progress": notes.get(s.name, "")} for s in states]
        click.echo(json.dumps({"out": str(layout.out), "jobs": jobs}, indent=2))
        return
    done = sum(state.state == "done" for state in states)
    click.echo(f"{layout.out}: {done} of {len(states)} jobs done")
    click.echo(format_states(states, notes=notes))


main.add_command(extract)


@main.command()
def schema() -> None:
    """Print the JSON schema of manifests, by which editors complete and check them.

    \b
    Example:
      liteeval schema > manifest.schema.json
    """
    click.echo(json.dumps(manifest_schema(), indent=2))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True,
              type=click.Choice(("train", "val", "test")))  # fmt: skip
def table(runs: tuple[Path, ...], split: str) -> None:
    """Evaluated runs side by side, each under the name of its folder.

    \b
    Example:
      liteeval table runs/ucf11/runs/* --split val
    """
    from liteeval_train.compare import table_of_runs
    from liteeval_train.run_files import RunError

    try:
        click.echo(table_of_runs(runs, split=split))
    except RunError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("subjects", nargs=-1, required=True, metavar="MANIFEST | RUN…",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--out", default="report.html", show_default=True, type=click.Path(path_type=Path),
              help="The page.")  # fmt: skip
@click.option("--split", type=click.Choice(("train", "val", "test")),
              help="Default: the manifest's, or val.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", callback=_settings,
              help="A variable of the manifest.")  # fmt: skip
@click.option("--experiment", type=click.Path(path_type=Path), metavar="DIR",
              help="The --out of MANIFEST's run; default: where it puts it.")  # fmt: skip
def report(
    subjects: tuple[Path, ...], out: Path, split: str | None, settings: dict[str, str],
    experiment: Path | None,
) -> None:  # fmt: skip
    """One page that tells an experiment, or runs by themselves, as far as they are.

    Tables, figures, filmstrips, costs in GFLOPs and seconds, failures, manifest and versions, in
    one HTML file that needs no network and runs no script. `liteeval run` ends with it.

    \b
    Example:
      liteeval report runs/ucf11/manifest.yaml --out ucf11.html
      liteeval report runs/liteeval runs/lstm --out two.html
    """
    from extract.store import StoreError
    from liteeval_train.run_files import RunError
    from pipelines.report import ReportError
    from pipelines.report_page import find_subject, write_page

    try:
        subject = find_subject(subjects, split=split, settings=settings, out=experiment)
        write_page(subject, out)
    except (ReportError, RunError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(out)


@main.command()
@click.option("--out", default="runs/demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--videos", default=60, show_default=True, type=click.IntRange(18),
              help="Clips to render.")  # fmt: skip
@_where_options
def demo(out: Path, videos: int, **where: Any) -> None:
    """The whole pipeline on rendered clips, in minutes, without a download.

    Renders labelled clips, extracts features with mobilenet_v2@112 and resnet101@224 (seeded
    random weights), trains UNIFORM, LSTM and LITEEVAL, prints a table, writes a filmstrip.

    \b
    Example:
      liteeval demo --out runs/demo --videos 60
    """
    settings = {"videos": str(videos)}
    done = run_experiment(DEMO_MANIFEST, settings=settings, out=out, log=_log, **where)
    _print_results(done)
    click.echo(
        f"\nTry next: liteeval filmstrip {done.layout.run('liteeval')} "
        f"--videos {done.layout.clips} --count 12 --out {done.layout.out / 'more.png'}\n"
        f"Your own: copy {done.layout.manifest}, name your videos and labels in it, liteeval run it"
    )
    _exit(done)


def _log(line: str) -> None:
    click.echo(line, err=True)


def _print_results(done: Done) -> None:
    """Print the table, what the figures rest on, and the files."""
    if done.outcome.ran == 0:
        click.echo(f"everything is done: {done.jobs} jobs of {done.layout.out}", err=True)
    if done.table:
        click.echo(f"\n{done.table}")
    for note in done.notes:
        click.echo(note)
    click.echo()
    for what, path in done.files:
        click.echo(f"{what:10} {path}")


def _exit(done: Done) -> None:
    sys.exit(SOME_VIDEOS_FAILED if done.outcome.with_failures else 0)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--videos", default=60, show_default=True, type=click.IntRange(1))
@click.option("--seconds", nargs=2, default=(8.0, 12.0), show_default=True,
              type=FiniteRange(0.1, 600.0), help="Shortest and longest clip.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def clips(folder: Path, videos: int, seconds: tuple[float, float], seed: int) -> None:
    """Render labelled clips into FOLDER, with labels.csv: the data of the demo.

    \b
    Example:
      liteeval clips clips/ --videos 60 --seed 0
    """
    from tqdm import tqdm

    from pipelines.clips import render_clips

    if seconds[0] > seconds[1]:
        raise click.BadParameter(
            "the shortest clip is longer than the longest", param_hint="--seconds"
        )
    rendered = render_clips(folder, videos, seconds=seconds, seed=seed)
    try:
        for _ in tqdm(rendered, total=videos, desc="render", unit="clip", file=sys.stderr):
            pass
    except OSError as error:
        raise click.ClickException(f"{folder}: cannot be written ({error.strerror})") from error
    click.echo(f"{videos} clips and labels.csv in {folder}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--videos", required=True, type=click.Path(path_type=Path),
              help="Folder of the source files.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The picture, .png.")
@click.option("--split", default="val", show_default=True)
@click.option("--count", default=6, show_default=True, type=click.IntRange(1, 100),
              help="Videos to show.")  # fmt: skip
def filmstrip(run: Path, videos: Path, out: Path, split: str, count: int) -> None:
    """Picture what the gate of RUN did: frames that were read finely have a green border.

    \b
    Example:
      liteeval filmstrip runs/demo/runs/liteeval --videos runs/demo/clips --out strips.png
    """
    from extract.decode import DecodeError
    from extract.store import StoreError
    from extract.videos import VideoListError
    from liteeval_train.run_files import RunError
    from pipelines.report import ReportError, write_filmstrips

    try:
        shown = write_filmstrips(run, out, videos=videos, split=split, count=count)
    except (ReportError, RunError, StoreError, DecodeError, VideoListError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {len(shown)} videos")


@main.command("time")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--videos", "sources", multiple=True, required=True,
              type=click.Path(path_type=Path),
              help="A folder, file or list; repeatable.")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE",
              help="Of a backbone whose weights came from a file.")  # fmt: skip
@click.option("--count", default=10, show_default=True, type=click.IntRange(1),
              help="Videos, evenly picked.")  # fmt: skip
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1),
              help="Of each video by each run.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def time_(
    runs: tuple[Path, ...], sources: tuple[Path, ...], weights: tuple[str, ...], count: int,
    repeats: int, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Seconds per video of RUNS from opening the file to the prediction (the paper's Table 10).

    Videos are predicted one after the other, the runs take turns; medians are printed, with
    ratios to the first run. Nothing else should run on the machine. A video that cannot be
    decoded is named and left out; the exit code is then 3.

    \b
    Example:
      liteeval time runs/demo/runs/* --videos runs/demo/clips
    """
    from extract.videos import VideoListError
    from liteeval_train.run_files import name_folders
    from pipelines.timing import (
        TimingError,
        format_timings,
        pick_videos,
        time_runs,
        timings_to_dict,
    )

    named = name_folders(runs)
    opened = {name: _open_live(path, weights, device) for path, name in named.items()}
    failed = []

    def tell(failure: VideoFailure) -> None:
        failed.append(failure)
        _log(f"failed: {failure.error}")

    try:
        videos = pick_videos(sources, count)
        timings = time_runs(opened, videos, repeats=repeats, on_failure=tell)
    except (TimingError, VideoListError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        json.dumps(timings_to_dict(timings), indent=2) if as_json else format_timings(timings)
    )
    sys.exit(SOME_VIDEOS_FAILED if failed else 0)


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", "run_folder", required=True, type=click.Path(path_type=Path),
              help="Folder of a trained run.")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE",
              help="Of a backbone whose weights came from a file.")  # fmt: skip
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=FiniteRange(0.1),
              help="Seconds that decoding a video may take; longer for long videos.")  # fmt: skip
@click.option("--budget", type=click.IntRange(1), help="Predict at the K-th fine frame.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_where_options
def predict(
    videos: tuple[Path, ...], run_folder: Path, weights: tuple[str, ...],
    timeout_seconds: float, budget: int | None, as_json: bool, workers: int | None, device: str,
) -> None:  # fmt: skip
    """Recognise VIDEOS: folders, files, lists. The fine network runs only where RUN asks for it.

    Prints class, score, frames read finely and GFLOPs of each video. A video that cannot be
    decoded is named and passed over; the exit code is then 3.

    \b
    Example:
      liteeval predict holiday.mp4 clips/ --run runs/ucf11/runs/liteeval \\
          --weights mobilenet_v2=mobilenet_v2.pth
    """
    from extract.supervise import DecodeLimits
    from extract.videos import find_videos
    from pipelines.predict import VideoFailure, predict_videos

    found = find_videos(videos)
    if not found:
        raise click.ClickException(f"no video file in {', '.join(map(str, videos))}")
    live = _open_live(run_folder, weights, device)
    if budget is not None and not live.run.method.advances:
        method = live.run.info.config.method
        raise click.ClickException(f"{method} chooses among all frames and takes no --budget")
    limits = DecodeLimits(timeout_seconds=timeout_seconds)
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    results, failed = [], 0
    for result in predict_videos(live, found, workers=workers, budget=budget, limits=limits):
        if isinstance(result, VideoFailure):
            failed += 1
            _log(f"failed: {result.error}")
        elif not as_json:
            name, score = result.top5[0]
            click.echo(
                f"{result.video_id}: {name} {score:.3f}, {result.fine_frames} of {result.frames} "
                f"frames read finely, {result.gflops_total:.2f} GFLOPs (all fine: "
                f"{result.gflops_all_fine:.2f}), {result.seconds['total']:.2f} s"
            )
        results.append(asdict(result))
    if as_json:
        click.echo(json.dumps({"run": str(run_folder), "videos": results}, indent=2))
    sys.exit(SOME_VIDEOS_FAILED if failed else 0)


@main.command()
@click.argument("source")
@click.option("--run", "run_folder", required=True, type=click.Path(path_type=Path),
              help="Folder of a trained run.")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE",
              help="Of a backbone whose weights came from a file.")  # fmt: skip
@click.option("--reset-seconds", default=30.0, show_default=True, type=FiniteRange(0),
              help="Forget what was seen whenever so much has passed, about as long as the videos "
              "that RUN was trained on; 0: never.")  # fmt: skip
@click.option("--timeout", "timeout_seconds", default=30.0, show_default=True,
              type=FiniteRange(0.1), help="Seconds to wait for the next row.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
def stream(
    source: str, run_folder: Path, weights: tuple[str, ...], reset_seconds: float,
    timeout_seconds: float, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Recognise SOURCE while it runs: a file, - (standard input), or an address.

    Prints a line for each row: time, class and score, whether the fine network read it, its share
    and the GFLOPs so far, and how far the answer is behind the stream. Interrupt to end it; a
    summary comes last. Addresses: http, https, rtsp, rtmp, tcp, udp, as FFmpeg reads them.

    \b
    Example:
      liteeval stream rtsp://camera.local/door --run runs/ucf11/runs/liteeval --reset-seconds 60
      ffmpeg -i anything -c copy -f mpegts - | liteeval stream - --run … --json
    """
    from extract.streams import StreamError, StreamReader, find_source

    live = _open_live(run_folder, weights, device)
    if not live.run.method.advances:
        method = live.run.info.config.method
        raise click.ClickException(f"{method} chooses among all frames: it cannot follow a stream")
    from pipelines.stream import LiveStream

    follower, ended = LiveStream(live, reset_seconds=reset_seconds), True
    try:
        opened = StreamReader(
            find_source(source), live.inputs, fps=live.fps, timeout_seconds=timeout_seconds
        )
        with opened as rows:
            for update in follower.follow(rows):
                click.echo(json.dumps(asdict(update)) if as_json else _stream_line(update))
    except KeyboardInterrupt:
        ended = False
    except StreamError as error:
        raise click.ClickException(str(error)) from error
    finally:
        summary = asdict(follower.summary())
        if summary["rows"]:
            click.echo(json.dumps({"summary": summary}) if as_json else _stream_summary(summary))
    sys.exit(0 if ended else INTERRUPTED)


def _stream_line(update: StreamUpdate) -> str:
    gate = "fine" if update.gate_open else "    "
    side = "behind" if update.lag_seconds >= 0 else "ahead"
    return (
        f"{update.seconds:9.1f} s  {gate}  {update.label} {update.score:.3f}  "
        f"{100 * update.fine_share:.1f} % fine, {update.gflops:.2f} GFLOPs, "
        f"{abs(update.lag_seconds):.1f} s {side}"
    )


def _stream_summary(summary: dict[str, Any]) -> str:
    return (
        f"{summary['rows']} rows of {summary['stream_seconds']:.1f} s in "
        f"{summary['wall_seconds']:.1f} s, {summary['fine_rows']} read finely, "
        f"{summary['gflops']:.2f} GFLOPs (all fine: {summary['gflops_all_fine']:.2f})"
    )


def _open_live(run: Path, weights: tuple[str, ...], device: str) -> LiveRun:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads leave cores to decoders
    from liteeval_train.run_files import RunError
    from pipelines.live import PredictError, open_live

    try:
        return open_live(run, weights=weights, device=device)
    except (PredictError, RunError) as error:
        raise click.ClickException(str(error)) from error


@main.command("import")
@click.argument("dataset", type=click.Choice(list(DATASETS)))
@click.option("--videos", required=True, type=click.Path(path_type=Path),
              help="Folder of the videos, at any depth.")  # fmt: skip
@click.option("--annotations", multiple=True, type=click.Path(path_type=Path),
              help="An official annotation file; repeatable.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="Folder for labels.csv, videos.csv and the report.")  # fmt: skip
@click.option("--classes", type=click.Path(path_type=Path),
              help="Names of numbered classes, one a line.")  # fmt: skip
@click.option("--fold", default=1, show_default=True, type=click.IntRange(1),
              help="Of breakfast: 1 to 4.")  # fmt: skip
@click.option("--val-share", default=0.1, show_default=True,
              type=FiniteRange(0, 1, max_open=True),
              help="Of train, where there is no split val; 0: test becomes val.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON document.")
def import_(
    dataset: str, videos: Path, annotations: tuple[Path, ...], out: Path, as_json: bool,
    classes: Path | None, fold: int, val_share: float,
) -> None:  # fmt: skip
    """Find the videos of a data set and write labels.csv and videos.csv for them.

    Goes on with what is there; OUT/missing.txt, extra.txt and duplicates.txt say what is not as
    listed. DATASET folders needs no annotations: a folder for each class. docs/manifests.md shows
    the layout of each data set.

    \b
    Example:
      liteeval import activitynet --videos videos/ --annotations activity_net.v1-3.min.json \\
          --out activitynet
      liteeval-extract run activitynet/videos.csv --out features --backbone mobilenet_v2@112
    """
    source = Source(videos=videos, annotations=annotations, classes=classes, fold=fold)
    report = import_dataset(dataset, source, out, val_share=val_share)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else format_report(report, out))


def format_report(report: Report, out: Path) -> str:
    """The report as a few lines; counts of zero are left out."""
    splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items() if count)
    lines = [
        f"{report.dataset}: {report.found:,} of {report.listed:,} listed videos found; "
        f"{splits}; {report.classes:,} classes"
    ]
    remarks = (
        (report.missing, f"missing: {out / 'missing.txt'}"),
        (report.extra, f"not listed: {out / 'extra.txt'}"),
        (report.duplicates, f"listed or found more than once: {out / 'duplicates.txt'}"),
        (report.without_label, "without a published label, left out"),
        (report.unknown_class, "of a class that train lacks, left out"),
        (report.held_out, "of train held out as val"),
    )
    lines += [f"{count:8,} {remark}" for count, remark in remarks if count]
    return "\n".join([*lines, f"{'':8} {out / 'labels.csv'}, {out / 'videos.csv'}"])
