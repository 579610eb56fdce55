"""Extraction on all GPUs of this machine: a process for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from extract.store import StoreError
from extract.videos import Video
from pipelines.jobs import JobError

if TYPE_CHECKING:  # else loading this file would load torch
    from extract.backbones import Backbone
    from extract.run import ExtractOptions, ExtractSummary, Outcome
    from extract.supervise import DecodeTask


def extract_on_gpus(
    videos: Sequence[Video],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions,
    *,
    gpus: Sequence[str],
) -> ExtractSummary:
    """As `extract_features`, by one process for each GPU; each takes an equal share, longest first.

    Raises: StoreError as there; JobError if a process dies: what it had committed is kept.
    """
    from extract.run import (
        ExtractSummary,
        Ledger,
        interruptible,
        longest_first,
        missing_tasks,
        store_names,
    )

    summary, started = ExtractSummary(), time.monotonic()
    workers = max(1, options.worker_count() // len(gpus))
    options = replace(options, workers=workers)
    with interruptible():
        tasks = longest_first(missing_tasks(videos, out, store_names(backbones), summary))
        shares = [tasks[i :: len(gpus)] for i in range(len(gpus))]
        with Ledger(out, len(tasks), summary) as ledger:
            children = [
                _start(gpu, share, out, backbones, options)
                for gpu, share in zip(gpus, shares, strict=True)
                if share
            ]
            try:
                for outcome in _outcomes(children):
                    ledger.take(outcome)
            except KeyboardInterrupt:
                summary.interrupted = True
                _end(children)
                for outcome in _outcomes(children, ended=True):
                    ledger.take(outcome)
            finally:
                _end(children)
                for child in children:
                    child.process.join()
    summary.wall_seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True)
class _Child:
    gpu: str
    process: multiprocessing.process.BaseProcess
    connection: Connection


def _start(
    gpu: str,
    tasks: Sequence[DecodeTask],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions,
) -> _Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, tasks, out, backbones, options))
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # what the child is born with
    try:
        process.start()
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    theirs.close()
    return _Child(gpu, process, ours)


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process.is_alive():
            child.process.terminate()


def _outcomes(children: Sequence[_Child], *, ended: bool = False) -> Iterator[Outcome]:
    """What the children report, until all have ended.

    Args:
        ended: we have sent them SIGTERM: of that a child may die that has nothing in hand.

    Raises: StoreError of a child; JobError if one died.
    """
    alive = {child.connection: child for child in children if not child.connection.closed}
    while alive:
        for connection in wait(list(alive)):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError:
                child = alive.pop(connection)
                connection.close()
                child.process.join()
                expected = (0, -signal.SIGTERM) if ended else (0,)
                if child.process.exitcode not in expected:
                    raise JobError(
                        f"the process of GPU {child.gpu} died (exit code "
                        f"{child.process.exitcode}); run the same command again to go on"
                    ) from None
                continue
            if isinstance(message, StoreError):
                raise message
            yield message


def _work(
    connection: Connection,
    tasks: Sequence[DecodeTask],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions,
) -> None:
    """In a child: extract and report; the parent ends us by SIGTERM."""
    from extract.run import Extractor, interruptible

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, and it decides
    try:
        with interruptible(), Extractor(out, backbones, options) as extractor:
            try:
                for outcome in chain(extractor.add(tasks), extractor.finish()):
                    connection.send(outcome)
            except KeyboardInterrupt:
                pass
            finally:
                extractor.commit()
    except StoreError as error:
        connection.send(error)
