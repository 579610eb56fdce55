"""liteeval-train: train methods on feature stores, evaluate and compare them."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from liteeval_train.config import PRESETS, ConfigError, resolve_config
from liteeval_train.config import TrainConfig as _TrainConfig

METHOD_NAMES = _TrainConfig.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STORE = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
RUN = click.Path(exists=True, file_okay=False, path_type=Path)


class _Device(click.ParamType):
    """A device that is there: auto, cpu, cuda or cuda:N."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, number = str(value).partition(":")
        if value in ("auto", "cpu"):
            return str(value)
        if kind != "cuda" or (colon and not number.isdecimal()):
            self.fail(f"{value!r}: expected auto, cpu, cuda or cuda:1", param, ctx)
        import torch

        if int(number or 0) >= torch.cuda.device_count():
            self.fail(f"{value!r}: torch sees {torch.cuda.device_count()} GPUs here", param, ctx)
        return str(value)


device_option = click.option(
    "--device",
    type=_Device(),
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:1.",
)


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a user can mend: shown as one line. Anything else is a bug and keeps its traceback."""
    from extract.store import StoreError
    from liteeval_train.data import DataError
    from liteeval_train.run import RunError

    return ConfigError, DataError, RunError, StoreError


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted; what was finished is kept", err=True)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)):
                raise
            if isinstance(error, _expected_errors()):
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="liteeval")
def main() -> None:
    """Train LiteEval and its baselines on feature stores, evaluate and compare them.

    \b
    Example:
      liteeval-train fit --coarse features/mobilenet_v2_112 --fine features/resnet101_224 \\
          --labels labels.csv --out runs/liteeval
      liteeval-train evaluate runs/liteeval
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@main.command()
@click.option("--coarse", type=STORE, required=True, help="Store of the cheap backbone.")
@click.option("--fine", type=STORE, required=True, help="Store of the costly backbone.")
@click.option("--labels", type=FILE, required=True, help="CSV: video_id,label,split.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder."
)
@click.option("--method", type=click.Choice(METHOD_NAMES), help="Default: liteeval.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Default: fcvid.")
@click.option("--config", "file", type=FILE, help="YAML or JSON file of configuration keys.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One key; repeatable.")
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch in --out.")
@click.option("--ignore-unlabelled", is_flag=True, help="Leave out videos without a label.")
@device_option
@click.option("--precision", type=click.Choice(PRECISIONS), default="32-true", show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that read stores.")
@click.option(
    "--capture", is_flag=True, help="LiteEval's loop as a CUDA graph. Not tried on a GPU yet."
)
@click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard beside metrics.jsonl.")
def fit(
    coarse: Path,
    fine: Path,
    labels: Path,
    out: Path,
    method: str | None,
    preset: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a method; the model is chosen on split val.

    The baselines seq-k and uniform-k need no training of their own: they are budgets of a uniform
    run, see evaluate.

    \b
    Example:
      liteeval-train fit --coarse features/mobilenet_v2_112 --fine features/resnet101_224 \\
          --labels labels.csv --out runs/liteeval --preset small --set epochs=40
    """
    try:
        config = resolve_config(method=method, preset=preset, file=file, settings=settings)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    from liteeval_train.train import FitOptions
    from liteeval_train.train import fit as train

    result = train(
        config, coarse=coarse, fine=fine, labels=labels, out=out, options=FitOptions(**options)
    )
    if os.environ.get("RANK", "0") != "0":
        return  # torchrun started several; the first one tells
    progress = result.progress_or_fail()
    click.echo(
        f"{out}: {progress.epoch} epochs done, epoch {progress.best_epoch} chosen on val. "
        f"Next: liteeval-train evaluate {out}"
    )


@main.command()
@click.argument("run", type=RUN)
@click.option("--split", type=click.Choice(("train", "val", "test")), default="val")
@click.option("--coarse", type=STORE, help="Instead of the store the run was trained on.")
@click.option("--fine", type=STORE, help="Instead of the store the run was trained on.")
@click.option("--labels", type=FILE, help="Instead of the labels the run was trained on.")
@click.option(
    "--average-precision",
    type=click.Choice(("plain", "interpolated")),
    default="plain",
    show_default=True,
    help="interpolated is ActivityNet's.",
)
@click.option("--key-frames", type=FILE, help="Of a simulation: adds the shares of them read.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--budget", type=click.IntRange(1), help="Predict at the K-th fine frame.")
@click.option("--budgets", metavar="A-B", help="The same for each budget from A to B.")
@click.option("--watched", is_flag=True, help="Predict after each tenth of the video.")
@click.option("--reads-of", type=RUN, help="A liteeval run: budgets of uniform become uniform-k.")
def evaluate(
    run: Path,
    as_json: bool,
    budget: int | None,
    budgets: str | None,
    watched: bool,
    reads_of: Path | None,
    **options: Any,
) -> None:
    """Accuracy, GFLOPs and seconds of a run's chosen model on a split.

    Writes RUN/evaluate_SPLIT.json and RUN/evaluate_SPLIT_videos.jsonl, which compare reads;
    with --coarse, --fine, --labels or interpolated it prints alone. With --budget, --budgets
    or --watched the method predicts while the video still runs, and RUN/evaluate_SPLIT_budgets.json
    or RUN/evaluate_SPLIT_watched.json keeps a result for each budget or share.

    The baselines seq-k and uniform-k are budgets of a uniform run: the mean score of its first K
    frames, and with --reads-of of K frames up to the K-th fine read of that run.

    \b
    Example:
      liteeval-train evaluate runs/liteeval --split val --json
      liteeval-train evaluate runs/liteeval --budgets 1-10
      liteeval-train evaluate runs/uniform --budgets 1-10
      liteeval-train evaluate runs/uniform --budgets 1-10 --reads-of runs/liteeval
    """
    from liteeval_train.compare import format_comparison
    from liteeval_train.evaluate import evaluate_run
    from liteeval_train.online import evaluate_budgets, evaluate_watched

    asked = {"budget": budget is not None, "budgets": budgets is not None, "watched": watched}
    online = [name for name, given in asked.items() if given]
    _check_online(online, options, reads_of)
    where = {"split": options["split"], "device": options["device"]}
    if watched:
        result: Any = evaluate_watched(run, **where)
    elif budgets is not None:
        result = evaluate_budgets(run, _parse_range(budgets), reads_of=reads_of, **where)
    elif budget is not None:
        result = evaluate_budgets(run, [budget], reads_of=reads_of, **where)[0]
    else:
        result = evaluate_run(run, **options).summary
    rows = result if isinstance(result, list) else [result]
    click.echo(json.dumps(result, indent=2) if as_json else format_comparison(rows, "table"))


WHOLE_VIDEO_OPTIONS = ("coarse", "fine", "labels", "average_precision", "key_frames")


def _check_online(online: list[str], options: dict[str, Any], reads_of: Path | None) -> None:
    """Refuse what prediction while a video runs would leave out.

    Raises: click.UsageError
    """
    if len(online) > 1:
        raise click.UsageError("give one of --budget, --budgets and --watched")
    given = [name for name in WHOLE_VIDEO_OPTIONS if options[name] not in (None, "plain")]
    if online and given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} does not go with --{online[0]}")
    if reads_of is not None and online not in (["budget"], ["budgets"]):
        raise click.UsageError("--reads-of goes with --budget or --budgets")


def _parse_range(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        values = range(int(first), int(last or first) + 1)
    except ValueError:
        values = range(0)
    if not values or values[0] < 1:
        raise click.UsageError(f"--budgets {text!r}: expected A-B with 1 ≤ A ≤ B, such as 1-10")
    return values


@main.command()
@click.argument("runs", nargs=-1, required=True, type=RUN)
@click.option("--split", type=click.Choice(("train", "val", "test")), default="val")
@click.option(
    "--format",
    "style",
    type=click.Choice(("table", "markdown", "csv", "json")),
    default="table",
    show_default=True,
)
@device_option
@click.option("--average-seeds", is_flag=True, help="Mean ± std over runs that differ in seed.")
def compare(
    runs: tuple[Path, ...], split: str, style: str, device: str, average_seeds: bool
) -> None:
    """Runs side by side; a run that is not evaluated yet is evaluated first.

    Runs that differ in one thing stand in a table of their own as well: methods, fine features,
    cells, γ, synchronisation, coarse width as in the paper's Tables 1, 2, 6 to 9, then any other
    setting. Runs that differ in the seed alone are one row there. The paper's own figure stands
    beside ours where it is known and preset, number of classes and backbones are the paper's. A
    run that is given twice is taken once.

    \b
    Example:
      liteeval-train compare runs/uniform runs/lstm runs/liteeval --format markdown
    """
    from liteeval_train import compare as tables
    from liteeval_train.layouts import Compared
    from liteeval_train.run_files import name_folders

    found = [Compared.read(run, split, name=name) for run, name in name_folders(runs).items()]
    for number, run in enumerate(found):
        if run.summary is None:
            from liteeval_train.evaluate import evaluate_run  # loads torch

            summary = evaluate_run(run.path, split=split, device=device).summary
            found[number] = replace(run, summary=summary)
    if average_seeds:
        click.echo(tables.format_seeds(tables.average_seeds(found), style))
    else:
        click.echo(tables.compare_runs(found, style))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=RUN)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder."
)
@click.option("--split", type=click.Choice(("train", "val", "test")), default="val")
@device_option
def figures(runs: tuple[Path, ...], out: Path, split: str, device: str) -> None:
    """Pictures of runs, each as PNG and as CSV.

    Accuracy against GFLOPs by budget, against the share of the video seen, fine frames per class,
    usage over training. The frames themselves are pictured by `liteeval filmstrip`, which decodes
    the videos; this command reads features alone.

    \b
    Example:
      liteeval-train figures runs/uniform runs/lstm runs/liteeval --out figures
    """
    from liteeval_train.run_figures import draw_run_figures

    for path in draw_run_figures(runs, out, split=split, device=device):
        click.echo(path)


@main.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="New folder."
)
@click.option("--needs", type=click.Choice(("detail", "context")), default="detail")
@click.option("--videos", type=click.IntRange(8), default=600, show_default=True)
@click.option("--classes", type=click.IntRange(2), default=10, show_default=True)
@click.option("--min-frames", type=click.IntRange(1), default=20, show_default=True)
@click.option("--max-frames", type=click.IntRange(1), default=60, show_default=True)
@click.option("--key-share", type=float, default=0.05, show_default=True, help="Of frames.")
@click.option("--hint-strength", type=float, default=6.0, show_default=True)
@click.option("--detail-strength", type=float, default=6.0, show_default=True)
@click.option("--context-strength", type=float, default=0.8, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def simulate(out: Path, **options: Any) -> None:
    """A pair of stores with labels in which the right policy is known.

    Only the fine rows of a few key frames tell the two classes of a pair apart; coarse rows hint
    at which frames those are. With --needs context, the pair itself stands in coarse rows alone.
    Strengths are in deviations of the noise.

    \b
    Example:
      liteeval-train simulate --out simulated --needs context --videos 800 --classes 6
    """
    from liteeval_train.simulate import Simulation
    from liteeval_train.simulate import simulate as write

    write(Simulation(**options), out)
    click.echo(f"{out}: coarse, fine, labels.csv, key_frames.jsonl, simulation.json")
