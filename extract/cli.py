"""liteeval-extract: videos in, feature stores out."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click
from tqdm import tqdm

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
LONGEST_TIMEOUT_SECONDS = 7 * 24 * 3600


@contextmanager
def _user_errors() -> Iterator[None]:
    """The expected errors of this package become one line and exit code 1."""
    from extract.decode import DecodeError
    from extract.store import StoreError
    from extract.videos import VideoListError

    try:
        yield
    except (DecodeError, StoreError, VideoListError) as error:
        raise click.ClickException(str(error)) from error


class FiniteRange(click.FloatRange):
    """A range without NaN, which compares with nothing, and without infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be used.", param, ctx)
        return number


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _decode_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--max-duration", default=24 * 3600.0, show_default=True,
                     type=FiniteRange(0, min_open=True),
                     help="Seconds; longer videos are refused."),
        click.option("--max-pixels", default=16384 * 16384 - 1, show_default=True,
                     type=click.IntRange(1), help="Refuse larger frames."),
        click.option("--on-corrupt", default="keep", show_default=True,
                     type=click.Choice(["keep", "fail"]), help="What to do with damaged frames."),
        click.option("--decoder", default="auto", show_default=True,
                     type=click.Choice(["auto", "pyav", "decord"]),
                     help="auto is exact on every file; decord is refused where it is not."),
    ):  # fmt: skip
        function = option(function)
    return function


def _json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


class _Group(click.Group):
    """An interrupt anywhere ends with exit code 130 and one line."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="liteeval")
def main() -> None:
    """Decode videos once and write per-frame feature stores that carry their GFLOPs.

    \b
    Example:
      liteeval-extract run videos/ --out features --backbone mobilenet_v2@112 --backbone resnet101
      liteeval-extract verify features/*
    """


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the stores.")
@click.option("--backbone", "backbones", multiple=True, required=True, metavar="NAME[@SIZE]",
              help="Repeat for several; see `liteeval-extract backbones`.")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE|random",
              help="Default: the published weights.")  # fmt: skip
@click.option("--fps", default=1.0, show_default=True, type=FiniteRange(0.001, 1000),
              help="Rows per second of video.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--workers", default=0, type=click.IntRange(0, 1024),
              help="Decode processes; 0, the default: cores − 1.")  # fmt: skip
@_decode_options
@click.option("--batch-size", default=0, type=click.IntRange(0, 4096),
              help="Rows per batch; 0, the default: what suits the device.")  # fmt: skip
@click.option("--precision", default="fp32", show_default=True,
              type=click.Choice(["fp32", "tf32", "bf16", "fp16"]))  # fmt: skip
@click.option("--shard", metavar="I/N",
              help="Only the videos of shard I (from 0) of N, by a hash of their ids.")  # fmt: skip
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=FiniteRange(0.1, LONGEST_TIMEOUT_SECONDS),
              help="Seconds that decoding a video may take; longer for long videos.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), help="Extract only these video_ids.")
@_json_option
def run(**options: Any) -> None:
    """Extract features of VIDEOS: folders, files, lists (.txt, .csv with a column path).

    Runs again where it stopped: what a store holds is skipped. Videos that fail are written to
    OUT/failures.jsonl and tried again by the next run.

    \b
    Example:
      liteeval-extract run videos/ --out features \\
          --backbone mobilenet_v2@112 --backbone resnet101@224 --weights resnet101=resnet101.pth
    """
    run_extraction(**options)


def run_extraction(
    *,
    extract: Callable[..., Any] | None = None,
    videos: tuple[Path, ...],
    out: Path,
    backbones: tuple[str, ...],
    weights: tuple[str, ...],
    fps: float,
    device: str,
    workers: int,
    decoder: str,
    on_corrupt: str,
    max_pixels: int,
    max_duration: float,
    batch_size: int,
    precision: str,
    shard: str | None,
    timeout_seconds: float,
    labels: Path | None,
    as_json: bool,
) -> None:
    """What `run` does with its options, checked.

    Args:
        extract: takes what extract_features takes; another engine's. None: extract_features.
    """
    # Idle threads that spin would take the decoders' cores; must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from extract.decode import DecodeOptions
    from extract.run import ExtractOptions, extract_features
    from extract.supervise import DecodeLimits
    from extract.videos import take_shard

    with _user_errors():
        found = _scan(videos)
        if not found:
            raise click.ClickException(f"no video file in {', '.join(map(str, videos))}")
        if labels is not None:
            found = _labelled(found, labels)
        if shard is not None:
            found = take_shard(found, *_parse_shard(shard))
        loaded = _load(backbones, weights)
        options = ExtractOptions(
            fps=fps,
            device=_checked_device(device),
            workers=workers,
            decode=DecodeOptions(decoder, on_corrupt, max_pixels, max_duration),
            batch_size=batch_size,
            precision=precision,
            limits=DecodeLimits(timeout_seconds=timeout_seconds),
        )
        summary = (extract or extract_features)(found, out, loaded, options)
    facts = summary.to_dict()
    if as_json:
        _print_json({**facts, "stores": [str(out / b.spec.store_name) for b in loaded]})
    else:
        _print_summary(facts, out)
    if summary.interrupted:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    if summary.failures:
        sys.exit(EXIT_SOME_FAILED)


def _scan(sources: tuple[Path, ...]) -> list[Any]:
    """The videos of VIDEOS, with progress; says how many other files are there."""
    from extract.videos import find_videos

    skipped: Counter[str] = Counter()

    def skip(name: str) -> None:
        skipped[os.path.splitext(name)[1].lower() or "without suffix"] += 1

    with tqdm(desc="scan", unit="video", delay=1) as bar:
        found = find_videos(sources, on_found=bar.update, on_skipped=skip)
    if skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(5))
        click.echo(f"passed over {skipped.total()} files that are no videos ({kinds})", err=True)
    return found


def _print_summary(facts: dict[str, Any], out: Path) -> None:
    click.echo(
        f"{facts['videos']} videos extracted, {facts['rows']} rows, "
        f"{facts['already_stored']} were stored already, {facts['failures']} failed\n"
        f"{facts['wall_seconds']:.1f} s: {facts['rows_per_second']:.1f} rows/s, "
        f"{facts['source_seconds_per_second']:.1f} seconds of video per second"
    )
    if facts["failures"]:
        click.echo(f"the failures are listed in {out / 'failures.jsonl'}")


def _parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise click.UsageError(f"--shard {text}: expected I/N, for example 0/8")
    if int(index) >= int(count):
        raise click.UsageError(f"--shard {text}: shards of {count} count from 0 to {count} − 1")
    return int(index), int(count)


def _labelled(found: list[Any], labels: Path) -> list[Any]:
    """Videos with a label; says which labels have no video."""
    from extract.videos import read_labelled_ids

    wanted = set(read_labelled_ids(labels))
    if not wanted:
        raise click.ClickException(f"{labels}: nothing below the header; list video_ids there")
    missing = sorted(wanted - {video.id for video in found})
    if missing:
        click.echo(
            f"{labels}: {len(missing)} of {len(wanted)} videos have no file, "
            f"first {missing[0]!r}; going on without them",
            err=True,
        )
    chosen = [video for video in found if video.id in wanted]
    if not chosen:
        raise click.ClickException(
            f"{labels}: none of its {len(wanted)} videos was found, first {missing[0]!r}; "
            f"found {found[0].id!r}. Ids are paths relative to the folder, without suffix"
        )
    return chosen


def _load(backbones: tuple[str, ...], weights: tuple[str, ...]) -> list[Any]:
    from extract.backbones import BackboneError, load_backbone, parse_backbone, parse_weights

    try:
        specs = list(dict.fromkeys(parse_backbone(text) for text in backbones))
        chosen = parse_weights(weights, specs)
    except BackboneError as error:
        raise click.UsageError(str(error)) from error
    try:
        return [load_backbone(spec, chosen[str(spec)]) for spec in specs]
    except BackboneError as error:
        raise click.ClickException(str(error)) from error


def _checked_device(device: str) -> str:
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.UsageError(f"--device {device}: not available; give auto, cpu, cuda or cuda:N")
    try:
        if device != "auto":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise click.UsageError(f"--device {device}: not available ({first})") from error
    return device


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--labels", required=True, type=click.Path(path_type=Path),
              help="CSV: video_id,label,split. Trains on train, chooses on val.")  # fmt: skip
@click.option("--backbone", required=True, metavar="NAME[@SIZE]",
              help="See `liteeval-extract backbones`.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE|random",
              help="To start from. Default: the published weights.")  # fmt: skip
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(0),
              help="0: a classifier on frozen features alone.")  # fmt: skip
@click.option("--lr", "learning_rate", default=0.01, show_default=True,
              type=FiniteRange(0, min_open=True),
              help="At first; falls as a cosine.")  # fmt: skip
@click.option("--weight-decay", default=5e-4, show_default=True, type=FiniteRange(0))
@click.option("--clip-norm", default=1.0, show_default=True,
              type=FiniteRange(0, min_open=True), help="Of the gradient.")  # fmt: skip
@click.option("--batch", "batch_videos", default=16, show_default=True, type=click.IntRange(2),
              help="Videos per step, of all processes together.")  # fmt: skip
@click.option("--segments", default=3, show_default=True, type=click.IntRange(1, 1000),
              help="Rows of a video per step, one of each segment.")  # fmt: skip
@click.option("--consensus/--no-consensus", default=None,
              help="Loss of a video's mean logits. Default: for dpn107.")  # fmt: skip
@click.option("--label-smoothing", default=0.0, show_default=True,
              type=FiniteRange(0, 1, max_open=True))  # fmt: skip
@click.option("--crop-area", default=0.4, show_default=True,
              type=FiniteRange(0, 1, min_open=True),
              help="Smallest share of a picture that a random crop shows.")  # fmt: skip
@click.option("--fps", default=1.0, show_default=True, type=FiniteRange(0.001, 1000),
              help="Rows per second of video.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch in --out.")
@click.option("--cache", type=click.Path(path_type=Path),
              help="Keep decoded pixels here. Default: in --out, until the end.")  # fmt: skip
@click.option("--cache-gb", default=20.0, show_default=True, type=FiniteRange(0.001),
              help="GiB of decoded pixels, at most: bounds the rows of a video.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--precision", default="fp32", show_default=True,
              type=click.Choice(["fp32", "bf16", "fp16"]))  # fmt: skip
@click.option("--workers", default=0, type=click.IntRange(0, 1024),
              help="Processes that decode and crop; 0, the default: cores − 1.")  # fmt: skip
@_decode_options
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=FiniteRange(0.1, LONGEST_TIMEOUT_SECONDS),
              help="Seconds that decoding a video may take; longer for long videos.")  # fmt: skip
@_json_option
def finetune(
    videos: tuple[Path, ...],
    labels: Path,
    backbone: str,
    out: Path,
    weights: tuple[str, ...],
    cache_gb: float,
    device: str,
    timeout_seconds: float,
    decoder: str,
    on_corrupt: str,
    max_pixels: int,
    max_duration: float,
    as_json: bool,
    **given: Any,
) -> None:
    """Fit a backbone to the labels of VIDEOS: stage 0 of the paper.

    OUT/finetuned.safetensors is the network of the epoch that was best on split val; `run` takes
    it as --weights NAME=FILE. Under torchrun several GPUs share the work.

    \b
    Example:
      liteeval-extract finetune videos/ --labels labels.csv --backbone mobilenet_v2@112 \\
          --out runs/finetune/mobilenet_v2_112
      liteeval-extract run videos/ --out features --backbone mobilenet_v2@112 \\
          --weights mobilenet_v2@112=runs/finetune/mobilenet_v2_112/finetuned.safetensors
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from extract.backbones import BackboneError, parse_backbone, parse_weights
    from extract.decode import DecodeOptions
    from extract.finetune import FinetuneConfig, FinetuneOptions
    from extract.finetune import finetune as train
    from extract.finetune_folder import FinetuneError
    from extract.labels import LabelError, read_labels
    from extract.pixels import PixelError
    from extract.supervise import DecodeLimits

    try:
        spec = parse_backbone(backbone)
        source = parse_weights(weights, [spec])[str(spec)]
    except BackboneError as error:
        raise click.UsageError(str(error)) from error
    how = {name: given.pop(name) for name in ("precision", "workers", "cache", "resume")}
    options = FinetuneOptions(
        device=_checked_device(device),
        cache_bytes=int(cache_gb * (1 << 30)),
        decode=DecodeOptions(decoder, on_corrupt, max_pixels, max_duration),
        limits=DecodeLimits(timeout_seconds=timeout_seconds),
        **how,
    )
    try:
        with _user_errors():
            result = train(
                _scan(videos),
                read_labels(labels),
                spec,
                out,
                weights=source,
                config=FinetuneConfig(**given),
                options=options,
            )
    except (BackboneError, FinetuneError, LabelError, PixelError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_finetuned(result.to_dict())
    if result.failures:
        sys.exit(EXIT_SOME_FAILED)


def _print_finetuned(facts: dict[str, Any]) -> None:
    for when, line in (("frozen features", facts["before"]), ("finetuned", facts["after"])):
        click.echo(
            f"{when}: {100 * line['val_frame_accuracy']:.1f} % of frames, "
            f"{100 * line['val_video_accuracy']:.1f} % of videos of val (epoch {line['epoch']})"
        )
    if facts["failures"]:
        click.echo(f"{facts['failures']} videos failed; failures.jsonl beside the result says why")
    click.echo(facts["checkpoint"])


@main.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--fps", default=1.0, show_default=True, type=FiniteRange(0.001, 1000))
@_decode_options
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=FiniteRange(0.1, LONGEST_TIMEOUT_SECONDS),
              help="As in `run`.")  # fmt: skip
@_json_option
def frames(
    video: Path,
    fps: float,
    timeout_seconds: float,
    decoder: str,
    on_corrupt: str,
    max_pixels: int,
    max_duration: float,
    as_json: bool,
) -> None:
    """Show which frames of VIDEO the rows of a store would hold, and decode them.

    \b
    Example:
      liteeval-extract frames talk.mp4 --fps 2 --json
    """
    from extract.decode import DecodeOptions, describe_samples
    from extract.supervise import DecodeLimits, decode_apart

    with _user_errors():
        options = DecodeOptions(decoder, on_corrupt, max_pixels, max_duration)
        limits = DecodeLimits(timeout_seconds=timeout_seconds)
        work = functools.partial(describe_samples, video, fps, options)
        facts = decode_apart(video, work, limits)
    if as_json:
        _print_json(facts)
        return
    click.echo(
        f"{video}: {facts['duration_seconds']:.3f} s at {facts['source_fps']:.3f} fps, "
        f"{facts['width']} × {facts['height']}, {len(facts['pts_seconds'])} rows, "
        f"decoder {facts['decoder']}, {facts['corrupt_frames']} corrupt frames"
    )
    click.echo("row  t_seconds  pts_seconds  frame_index")
    for k, (pts, index) in enumerate(zip(facts["pts_seconds"], facts["frame_index"], strict=True)):
        click.echo(f"{k:3d}  {k / fps:9.3f}  {pts:11.6f}  {index:11d}")


@main.command()
@_json_option
def backbones(as_json: bool) -> None:
    """List the backbones with their row size, parameters and GFLOPs per row.

    \b
    Example:
      liteeval-extract backbones --json
    """
    from extract.backbones import describe_backbones

    rows = describe_backbones()
    if as_json:
        _print_json(rows)
        return
    click.echo(f"{'backbone':20} {'row':>5} {'parameters':>11} {'GFLOPs/row':>10} {'paper':>6}")
    for row in rows:
        paper = "" if row["paper_gflops"] is None else f"{row['paper_gflops']:.2f}"
        click.echo(
            f"{row['backbone']:20} {row['feature_dim']:5d} {row['parameters']:11d} "
            f"{row['gflops_per_frame']:10.4f} {paper:>6}{_at_another_size(row)}"
        )
    click.echo(f"({rows[0]['flop_convention']})")


def _at_another_size(row: dict[str, Any]) -> str:
    """What the paper's figure compares with where it is not for the backbone's default size."""
    size = row["paper_input_size_px"]
    if row["backbone"].endswith(f"@{size}"):
        return ""
    return f" at {size}, where we count {row['gflops_at_paper_size']:.4f}"


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@_json_option
def inspect(store: Path, as_json: bool) -> None:
    """Show what a STORE holds and how it came to be.

    \b
    Example:
      liteeval-extract inspect features/resnet101_224
    """
    from extract.store import describe_store

    with _user_errors():
        facts = describe_store(store)
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:18} {value}")


@main.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also decode and compute rows of some videos again.")
@click.option("--sample", default=5, show_default=True, type=click.IntRange(1),
              help="How many videos --deep recomputes per store.")  # fmt: skip
@click.option("--weights", multiple=True, metavar="NAME[@SIZE]=FILE",
              help="For --deep: the weights files that the stores were made with.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="For --deep: as in `run`.")
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=FiniteRange(0.001, LONGEST_TIMEOUT_SECONDS),
              help="For --deep: as in `run`.")  # fmt: skip
@_json_option
def verify(
    stores: tuple[Path, ...],
    deep: bool,
    sample: int,
    weights: tuple[str, ...],
    device: str,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Check every part of STORES: structure, identity, offsets, order, finite values.

    Unfinished parts are told; they are no problem: no reader opens them, and a run removes those
    that nobody has written to for a day.

    \b
    Example:
      liteeval-extract verify features/*
      liteeval-extract verify features/resnet101_224 --deep --weights resnet101=resnet101.pth
    """
    from extract.store import unfinished_parts

    folders = [store for store in stores if not os.path.isfile(store)]
    if not folders:
        raise click.ClickException("only files were given; a store is a folder")
    problems = {str(folder): _store_problems(folder) for folder in folders}
    if deep:
        limit = {"videos": sample, "timeout_seconds": timeout_seconds}
        for name, lines in _verify_deep(folders, weights, _checked_device(device), **limit).items():
            problems[name] += lines
    unfinished = {name: unfinished_parts(Path(name)) for name in problems}
    if as_json:
        names = {name: [path.name for path in parts] for name, parts in unfinished.items()}
        ok = not any(problems.values())
        _print_json({"problems": problems, "unfinished_parts": names, "ok": ok})
    else:
        for name, lines in problems.items():
            click.echo(f"{name}: " + ("ok" if not lines else f"{len(lines)} problems"))
            for line in lines:
                click.echo(f"  {line}")
            for path, idle_seconds in unfinished[name].items():
                click.echo(
                    f"  unfinished: {path.name}, last written {idle_seconds / 3600:.1f} h ago; "
                    "its writer is at work or was killed"
                )
    if any(problems.values()):
        sys.exit(1)


def _store_problems(folder: Path) -> list[str]:
    from extract.store import StoreError, verify_store

    try:
        return verify_store(folder)
    except StoreError as error:  # one line among those of the other stores
        return [str(error)]


def _verify_deep(
    folders: list[Path], weights: tuple[str, ...], device: str, **limit: Any
) -> dict[str, list[str]]:
    """The problems of each store that can be opened; _store_problems tells of the others."""
    from extract.backbones import BackboneError
    from extract.store import FeatureStore, StoreError

    opened, names = {}, set()
    for folder in folders:
        with suppress(StoreError):
            store = opened[str(folder)] = FeatureStore(folder)
            names |= {store.identity.backbone, _backbone_name(store)}
    unused = [option for option in weights if option.partition("=")[0] not in names]
    if unused and len(opened) == len(folders):
        known = ", ".join(_backbone_name(store) for store in opened.values())
        raise click.UsageError(f"--weights {unused[0]}: no store here is of it ({known})")
    problems = {}
    for name, store in opened.items():
        try:
            problems[name] = _recompute(store, weights, device, **limit)
        except (BackboneError, StoreError) as error:
            problems[name] = [str(error)]
    return problems


def _backbone_name(store: Any) -> str:
    return f"{store.identity.backbone}@{store.identity.input_size_px}"


def _recompute(
    store: Any, weights: tuple[str, ...], device: str, *, videos: int, timeout_seconds: float
) -> list[str]:
    from extract.backbones import load_backbone, parse_backbone, parse_weights
    from extract.deep import recompute_sample
    from extract.run import ExtractOptions
    from extract.supervise import DecodeLimits

    spec = parse_backbone(_backbone_name(store))
    chosen = [w for w in weights if w.partition("=")[0] in (spec.name, str(spec))]
    if store.identity.weights.startswith("random"):
        chosen = [f"{spec}=random"]
    return recompute_sample(
        store,
        load_backbone(spec, parse_weights(chosen, [spec])[str(spec)]),
        videos=videos,
        device=ExtractOptions(device=device).torch_device(),
        limits=DecodeLimits(timeout_seconds=timeout_seconds),
    )


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--rows-per-part", default=100_000, show_default=True, type=click.IntRange(1))
def compact(store: Path, rows_per_part: int) -> None:
    """Rewrite the many parts of a STORE as few large ones, videos in order of their ids.

    A crash in the middle loses nothing. Do not compact a store while it is being read.

    \b
    Example:
      liteeval-extract compact features/resnet101_224
    """
    from extract.store import compact_store

    with _user_errors():
        before, after = compact_store(store, rows_per_part=rows_per_part)
    click.echo(f"{store}: {before} parts became {after}")


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--format", "format_", required=True, type=click.Choice(["npy", "parquet"]))
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="A folder for npy, a file for parquet.")  # fmt: skip
def export(store: Path, format_: str, out: Path) -> None:
    """Write a STORE for other tools: a .npy per video with a table, or one Parquet file.

    \b
    Example:
      liteeval-extract export features/resnet101_224 --format npy --out npy/
    """
    from extract.export import export_npy, export_parquet
    from extract.store import FeatureStore

    with _user_errors():
        opened = FeatureStore(store)
        (export_npy if format_ == "npy" else export_parquet)(opened, out)
    click.echo(f"{out}: {len(opened)} videos")


@main.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--list", "list_", type=click.Path(path_type=Path),
              help="Write the videos as a list that `run` takes.")  # fmt: skip
@_json_option
def failures(out: Path, list_: Path | None, as_json: bool) -> None:
    """List the videos below OUT that could not be done, and the command that tries them again.

    \b
    Example:
      liteeval-extract failures features --list retry.csv
    """
    from extract.failures import open_failures, retry_command, write_retry_list

    with _user_errors():
        records = open_failures(out)
        command = retry_command(out, list_ or Path("retry.csv"))
        left_out = 0 if list_ is None else write_retry_list(records, list_)
    if left_out:
        click.echo(f"{left_out} not in {list_}: their files are gone or misnamed", err=True)
    if as_json:
        _print_json({"failures": records, "retry": command})
        return
    for record in records:
        click.echo(f"{record['video_id']}: {record['error']} ({record['attempts']} attempts)")
    click.echo(f"{len(records)} videos failed")
    if records and command:
        hint = "" if list_ else ", after --list retry.csv"
        click.echo(f"to try them again{hint}:\n  {command}")
    elif records:
        click.echo("to try them again, repeat the command that made them")
