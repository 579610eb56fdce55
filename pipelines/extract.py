"""liteeval extract: what liteeval-extract run does, by all GPUs of a machine or a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extract.cli import run, run_extraction
from extract.videos import Video
from pipelines.stamps import move_aside

if TYPE_CHECKING:  # else loading this file would load torch
    from extract.backbones import Backbone
    from extract.decode import DecodeOptions
    from extract.run import ExtractOptions, ExtractSummary
    from extract.store import Part

    Extract = Callable[[Sequence[Video], Path, Sequence[Backbone], ExtractOptions], ExtractSummary]


@click.command(params=list(run.params))
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]),
              help="local: a process for each GPU. ray: the workers of a cluster.")  # fmt: skip
@click.option("--ray-address", metavar="ADDRESS",
              help="Of a Ray cluster; default: $RAY_ADDRESS, or this machine alone.")  # fmt: skip
@click.option("--aside", type=click.Path(path_type=Path),
              help="Move what does not fit here, and extract it again: stores of another backbone, "
              "weights or fps, and the rows of files that have changed.")  # fmt: skip
def extract(engine: str, ray_address: str | None, aside: Path | None, **options: Any) -> None:
    """Extract features of VIDEOS on several GPUs or machines; options as liteeval-extract run.

    With --engine ray, OUT and the videos lie on a file system that all machines share. A worker
    that dies is replaced, and the videos it had in hand are done again.

    \b
    Example:
      liteeval extract videos/ --out features --backbone mobilenet_v2@112 --backbone resnet101
      liteeval extract /shared/videos --out /shared/features --backbone resnet101 \\
          --engine ray --ray-address 10.0.0.1:6379
    """
    if ray_address and engine != "ray":
        raise click.UsageError("--ray-address goes with --engine ray")
    chosen = _engine(engine, ray_address, options["device"])
    if aside is not None:
        chosen = functools.partial(_extract_with_room, extract=chosen, aside=aside)
    run_extraction(extract=chosen, **options)


def _engine(engine: str, ray_address: str | None, device: str) -> Extract:
    """As `extract_features`; without loading torch, which run_extraction prepares for."""
    if engine == "ray":
        from pipelines.engines.ray import extract_on_ray

        return functools.partial(extract_on_ray, address=ray_address)
    from pipelines.engines.gpus import extract_on_gpus
    from pipelines.engines.local import visible_gpus

    gpus = visible_gpus() if device in ("auto", "cuda") else []
    return functools.partial(extract_on_gpus, gpus=gpus) if len(gpus) > 1 else _extract_here


def _extract_here(*arguments: Any) -> ExtractSummary:
    from extract.run import extract_features

    return extract_features(*arguments)


def _extract_with_room(
    videos: Sequence[Video],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions,
    *,
    extract: Extract,
    aside: Path,
) -> ExtractSummary:
    """Extract after `misfits` are moved to `aside`."""
    for path in move_aside(misfits(videos, out, backbones, options), out, aside):
        click.echo(f"extracted again, as it fits no more; it is now {path}", err=True)
    return extract(videos, out, backbones, options)


def misfits(
    videos: Sequence[Video], out: Path, backbones: Sequence[Backbone], options: ExtractOptions
) -> list[Path]:
    """What the stores below `out` hold and this extraction would not make.

    A store of another identity as a whole; else its parts with rows of a video whose file has
    another size now, that the decoder asked for would not give, or that is not asked for any more
    and would not be in all stores: training wants the same videos in both of its stores.
    """
    from extract.store import Part, part_paths

    sizes = {video.id: video.path.stat().st_size for video in videos if video.path.exists()}
    found: list[Path] = []
    held: dict[Path, dict[Path, set[str]]] = {}  # store → part that stays → ids
    for backbone in backbones:
        wanted = backbone.identity(sample_fps=options.fps, precision=options.precision)
        store = out / backbone.spec.store_name
        held[store] = {}
        for path in part_paths(store):
            with Part(path) as part:
                if wanted.differences(part.identity):
                    found.append(store)
                    break
                if _has_changed(part, sizes) or _is_decoded_otherwise(part, options.decode):
                    found.append(path)
                else:
                    held[store][path] = set(part.video_ids)
    asked = {video.id for video in videos}
    return found + _parts_apart(held, asked)


def _has_changed(part: Part, sizes: Mapping[str, int]) -> bool:
    """Whether a source has another size than when the part's rows were made."""
    held = zip(part.video_ids, part.source_bytes.tolist(), strict=True)
    return any(sizes.get(video_id, size) != size for video_id, size in held)


def _is_decoded_otherwise(part: Part, wanted: DecodeOptions) -> bool:
    """Whether a video would be decoded by another decoder, or be refused for damaged frames."""
    forced = wanted.decoder != "auto" and set(part.column("decoder")) != {wanted.decoder.encode()}
    return forced or (wanted.on_corrupt == "fail" and bool(part.column("corrupt_frames").any()))


def _parts_apart(held: dict[Path, dict[Path, set[str]]], asked: set[str]) -> list[Path]:
    """Parts with a video that is not asked for and that some store lacks; taken out of `held`."""
    apart: list[Path] = []
    while True:
        ids = [set().union(*parts.values()) for parts in held.values()]
        known = asked | set.intersection(*ids)
        more = [(s, path) for s, parts in held.items() for path, i in parts.items() if i - known]
        if not more:
            return apart
        for store, path in more:
            del held[store][path]
            apart.append(path)
