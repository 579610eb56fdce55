"""liteeval extract: what liteeval-extract run does, by all GPUs of a machine or a Ray cluster."""

from __future__ import annotations

import functools
from typing import Any

import click

from extract.cli import run, run_extraction


@click.command(params=list(run.params))
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]),
              help="local: a process for each GPU. ray: the workers of a cluster.")  # fmt: skip
@click.option("--ray-address", metavar="ADDRESS",
              help="Of a Ray cluster; default: $RAY_ADDRESS, or this machine alone.")  # fmt: skip
def extract(engine: str, ray_address: str | None, **options: Any) -> None:
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
    if engine == "ray":
        from pipelines.engines.ray import extract_on_ray

        run_extraction(extract=functools.partial(extract_on_ray, address=ray_address), **options)
        return
    from pipelines.engines.gpus import extract_on_gpus
    from pipelines.engines.local import visible_gpus

    gpus = visible_gpus() if options["device"] in ("auto", "cuda") else []
    several = functools.partial(extract_on_gpus, gpus=gpus) if len(gpus) > 1 else None
    run_extraction(extract=several, **options)
