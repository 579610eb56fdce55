"""liteeval-extract: videos in, feature stores out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


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


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--fps", default=1.0, show_default=True, type=click.FloatRange(0.001, 1000),
              help="Rows per second of video.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--workers", default=0, type=click.IntRange(0, 1024),
              help="Decode processes; 0, the default: cores − 1.")  # fmt: skip
@click.option("--decoder", default="auto", show_default=True, type=click.Choice(["auto", "pyav"]))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1, 4096))
@click.option("--timeout", "timeout_seconds", default=120.0, show_default=True,
              type=click.FloatRange(0.1),
              help="Seconds that decoding a video may take; longer for long videos.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), help="Extract only these video_ids.")
@_json_option
def run(
    videos: tuple[Path, ...],
    out: Path,
    backbones: tuple[str, ...],
    weights: tuple[str, ...],
    fps: float,
    device: str,
    workers: int,
    decoder: str,
    batch_size: int,
    timeout_seconds: float,
    labels: Path | None,
    as_json: bool,
) -> None:
    """Extract features of VIDEOS: folders, files, lists (.txt, .csv with a column path).

    Runs again where it stopped: what a store holds is skipped. Videos that fail are written to
    OUT/failures.jsonl and tried again by the next run.

    \b
    Example:
      liteeval-extract run videos/ --out features \\
          --backbone mobilenet_v2@112 --backbone resnet101@224 --weights resnet101=resnet101.pth
    """
    from extract.run import ExtractOptions, extract_features
    from extract.supervise import DecodeLimits
    from extract.videos import find_videos

    with _user_errors():
        found = find_videos(videos)
        if not found:
            raise click.ClickException(f"no video file in {', '.join(map(str, videos))}")
        if labels is not None:
            found = _labelled(found, labels)
        loaded = _load(backbones, weights)
        options = ExtractOptions(
            fps=fps,
            device=_checked_device(device),
            workers=workers,
            decoder=decoder,
            batch_size=batch_size,
            limits=DecodeLimits(timeout_seconds=timeout_seconds),
        )
        summary = extract_features(found, out, loaded, options)
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


def _print_summary(facts: dict[str, Any], out: Path) -> None:
    click.echo(
        f"{facts['videos']} videos extracted, {facts['rows']} rows, "
        f"{facts['already_stored']} were stored already, {facts['failures']} failed\n"
        f"{facts['wall_seconds']:.1f} s: {facts['rows_per_second']:.1f} rows/s, "
        f"{facts['source_seconds_per_second']:.1f} seconds of video per second"
    )
    if facts["failures"]:
        click.echo(f"the failures are listed in {out / 'failures.jsonl'}")


def _labelled(found: list[Any], labels: Path) -> list[Any]:
    """Videos with a label; says which labels have no video."""
    from extract.videos import read_labelled_ids

    wanted = set(read_labelled_ids(labels))
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

    try:
        if device != "auto":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise click.UsageError(f"--device {device}: not available ({first})") from error
    return device


@main.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--fps", default=1.0, show_default=True, type=click.FloatRange(0.001, 1000))
@click.option("--decoder", default="auto", show_default=True, type=click.Choice(["auto", "pyav"]))
@_json_option
def frames(video: Path, fps: float, decoder: str, as_json: bool) -> None:
    """Show which frames of VIDEO the rows of a store would hold, and decode them.

    \b
    Example:
      liteeval-extract frames talk.mp4 --fps 2 --json
    """
    from extract.decode import describe_samples

    with _user_errors():
        facts = describe_samples(video, fps, decoder=decoder)
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
            f"{row['gflops_per_frame']:10.4f} {paper:>6}"
        )
    click.echo(f"({rows[0]['flop_convention']})")


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
@_json_option
def verify(stores: tuple[Path, ...], as_json: bool) -> None:
    """Check every part of STORES: structure, identity, offsets, order, finite values.

    \b
    Example:
      liteeval-extract verify features/*
    """
    from extract.store import verify_store

    with _user_errors():
        problems = {str(store): verify_store(store) for store in stores}
    if as_json:
        _print_json({"problems": problems, "ok": not any(problems.values())})
    else:
        for store, lines in problems.items():
            click.echo(f"{store}: " + ("ok" if not lines else f"{len(lines)} problems"))
            for line in lines:
                click.echo(f"  {line}")
    if any(problems.values()):
        sys.exit(1)
