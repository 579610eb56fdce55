"""The loop of stage 1: decode once, feed every backbone, commit whole videos to their stores.

Decode workers run ahead of the networks. Rows of many videos fill batches of a fixed size; a
video goes to its stores when its last row is computed, so a store never holds half a video.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from extract.backbones import Backbone, FeatureExtractor, fold_normalisation
from extract.decode import DecodeOptions
from extract.failures import append_failure
from extract.store import (
    FeatureStore,
    FeatureWriter,
    StoreError,
    VideoFeatures,
    part_paths,
)
from extract.supervise import (
    Decoded,
    DecodeLimits,
    DecodePool,
    DecodeTask,
    Event,
    Failed,
    Idle,
    Rows,
    Started,
    WorkerOptions,
    source_state,
)
from extract.videos import Video

IDLE_SECONDS = 1.0  # without news: half-filled batches are computed, old videos committed
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class ExtractOptions:
    """Where and how to extract; what is extracted is in the arguments beside it."""

    fps: float = 1.0
    device: str = "auto"
    workers: int = 0  # decode processes; 0: one per core, less one for the networks
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch_size: int = 0  # rows; 0: what suits the device
    precision: str = "fp32"
    commit_videos: int = 64
    commit_seconds: float = 60.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def torch_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def worker_count(self) -> int:
        return self.workers or max(1, len(os.sched_getaffinity(0)) - 1)


@dataclass
class ExtractSummary:
    """What a run has done."""

    videos: int = 0
    rows: int = 0
    already_stored: int = 0
    changed_sources: int = 0  # stored, but the file has another size now
    failures: int = 0
    source_seconds: float = 0.0
    wall_seconds: float = 0.0
    interrupted: bool = False

    def to_dict(self) -> dict[str, float]:
        wall = max(self.wall_seconds, 1e-9)
        return {
            **asdict(self),
            "rows_per_second": self.rows / wall,
            "source_seconds_per_second": self.source_seconds / wall,
        }


@dataclass(frozen=True)
class Extracted:
    """All rows of a video are computed; they are safe when a Committed names it."""

    video_id: str
    rows: int
    source_seconds: float


@dataclass(frozen=True)
class Committed:
    """These videos are on disk, in all their stores."""

    video_ids: tuple[str, ...]


@dataclass(frozen=True)
class GivenUp:
    """A video cannot be done."""

    video_id: str
    path: Path
    stage: str
    error: str
    attempts: int


Outcome = Extracted | Committed | GivenUp


class Ledger:
    """Totals, progress bar and failures.jsonl of a run, from what becomes of its videos."""

    def __init__(self, out: Path, videos: int, summary: ExtractSummary) -> None:
        self._out = out
        self._summary = summary
        self._started = time.monotonic()
        self._bar = _progress(videos)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def take(self, outcome: Outcome) -> None:
        """Raises: StoreError if failures.jsonl cannot be written."""
        if isinstance(outcome, Extracted):
            self._summary.videos += 1
            self._summary.rows += outcome.rows
            self._summary.source_seconds += outcome.source_seconds
            self._advance()
        elif isinstance(outcome, GivenUp):
            self._summary.failures += 1
            self._advance()
            self._bar.write(f"failed: {outcome.error}", file=sys.stderr)
            append_failure(self._out, **vars(outcome))

    def _advance(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(
            f"{self._summary.rows / seconds:.1f} rows/s, {self._summary.failures} failed",
            refresh=False,
        )
        self._bar.update()


def extract_features(
    videos: Sequence[Video],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions | None = None,
) -> ExtractSummary:
    """Extract the features of all videos that the stores below `out` do not hold yet.

    A video that cannot be decoded is written to out/failures.jsonl and passed over. SIGINT and
    SIGTERM end the run after a commit of what is complete.

    Raises: StoreError if a store has another identity or cannot be written.
    """
    options = options or ExtractOptions()
    summary = ExtractSummary()
    started = time.monotonic()
    with interruptible(), Extractor(out, backbones, options) as extractor:
        try:
            tasks = missing_tasks(videos, out, store_names(backbones), summary)
            extractor.decode_processes = min(options.worker_count(), len(tasks))
            with Ledger(out, len(tasks), summary) as ledger:
                for outcome in chain(extractor.add(tasks), extractor.finish()):
                    ledger.take(outcome)
        except KeyboardInterrupt:
            summary.interrupted = True
        finally:
            extractor.commit()
    summary.wall_seconds = time.monotonic() - started
    return summary


def store_names(backbones: Sequence[Backbone]) -> list[str]:
    return [backbone.spec.store_name for backbone in backbones]


def missing_tasks(
    videos: Iterable[Video], out: Path, names: Sequence[str], summary: ExtractSummary
) -> list[DecodeTask]:
    """What each video still lacks; a video that every store holds is no task.

    Counts in `summary` those that are stored, and tells of sources that have changed since.

    Args:
        names: of the stores below `out`.
    """
    held: dict[str, FeatureStore | tuple[()]] = {
        name: FeatureStore(out / name) if part_paths(out / name) else () for name in names
    }
    tasks, changed = [], []
    for video in videos:
        inputs = tuple(name for name in names if video.id not in held[name])
        if inputs:
            tasks.append(DecodeTask(video.id, video.path, inputs))
        else:
            summary.already_stored += 1
        if any(_has_changed(video, held[n]) for n in names if n not in inputs):
            changed.append(video)
    summary.changed_sources = len(changed)
    if changed:
        tqdm.write(
            f"{len(changed)} stored videos have a source of another size now, such as "
            f"{changed[0].path}; their rows are of the old one. Give the new files other "
            "names, or extract to another --out",
            file=sys.stderr,
        )
    return tasks


def longest_first(tasks: Sequence[DecodeTask]) -> list[DecodeTask]:
    """By size of the file: nothing is opened. Paths become absolute, for other processes."""

    def size(task: DecodeTask) -> int:
        try:
            return task.path.stat().st_size
        except OSError:
            return 0  # its worker will tell

    return [replace(t, path=t.path.absolute()) for t in sorted(tasks, key=size, reverse=True)]


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run as SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _progress(videos: int) -> tqdm[Any]:
    """A bar on a terminal, a line every 10 s in a log."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=videos,
        unit="video",
        desc="extract",
        smoothing=0.1,
        mininterval=interval,
        disable=videos == 0,
    )


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed activations instead of returning them to the system.

    Else every batch on the CPU faults its memory in again.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def _has_changed(video: Video, store: FeatureStore | tuple[()]) -> bool:
    """Whether a stored video's source has another size than when it was extracted."""
    try:
        size = video.path.stat().st_size
        return isinstance(store, FeatureStore) and size != store.source_bytes(video.id)
    except OSError:
        return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which networks run at a precision; float32 is float32, without TF32."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class _Assembly:
    """The rows of one video on their way through the networks."""

    def __init__(self, task: DecodeTask, rows: int, dims: Mapping[str, int]) -> None:
        self.path = task.path
        self.features = {name: np.empty((rows, dim), np.float16) for name, dim in dims.items()}
        self.decoded: Decoded | None = None
        self._places = np.empty(rows, np.int64)  # of each row, among those that are computed
        self._come = self._distinct = 0
        self.waiting = 0  # rows, of all networks, whose features have not come yet

    @property
    def complete(self) -> bool:
        return self.decoded is not None and self.waiting == 0

    def expect(self, repeats: np.ndarray) -> int:
        """Rows have come, of which only those that are no repeats go through the networks.

        Returns: the place of the first of these.
        """
        first = self._distinct
        places = first - 1 + np.cumsum(~repeats)
        self._places[self._come : self._come + len(repeats)] = places
        self._come += len(repeats)
        self._distinct = int(places[-1]) + 1
        self.waiting += (self._distinct - first) * len(self.features)
        return first

    def put(self, name: str, first: int, features: np.ndarray) -> None:
        self.features[name][first : first + len(features)] = features
        self.waiting -= len(features)

    def _all_rows(self, features: np.ndarray) -> np.ndarray:
        return features if self._distinct == len(features) else features[self._places]

    def video_features(self, name: str) -> VideoFeatures:
        decoded = self.decoded
        assert decoded is not None
        return VideoFeatures(
            features=self._all_rows(self.features[name]),
            pts_seconds=decoded.pts_seconds,
            frame_index=decoded.frame_index,
            duration_seconds=decoded.duration_seconds,
            source_fps=decoded.source_fps,
            source_path=os.path.abspath(self.path),
            source_bytes=decoded.source_state[0],
            decoder=decoded.decoder,
            corrupt_frames=decoded.corrupt_frames,
        )


class _Batcher:
    """Fills batches of a fixed size with rows of many videos and runs one network on them.

    On a GPU two buffers take turns: while one batch is computed, the next is filled; features
    come back when the buffer of their batch is needed again.
    """

    def __init__(self, backbone: Backbone, device: torch.device, options: ExtractOptions) -> None:
        self._name = backbone.spec.store_name
        self._device = device
        self._precision = options.precision
        self._extractor = _fast_extractor(backbone, device, options.precision)
        row_shape = backbone.spec.preprocessing.row_shape
        size = options.batch_size or default_batch_size(row_shape, device)
        cuda = device.type == "cuda"
        self._fixed_shape = cuda  # where another shape costs more than rows of no use
        self._buffers = [
            torch.zeros((size, *row_shape), dtype=torch.uint8, pin_memory=cuda)
            for _ in range(2 if cuda else 1)
        ]
        self._pixels = self._buffers.pop()
        self._owners: list[tuple[_Assembly, int, int]] = []
        self._filled = 0
        self._computing: deque[_Batch] = deque()

    def add(self, assembly: _Assembly, first: int, pixels: np.ndarray) -> None:
        """Take rows first, first + 1, … of a video."""
        while len(pixels):
            count = min(len(pixels), len(self._pixels) - self._filled)
            self._pixels[self._filled : self._filled + count] = torch.from_numpy(pixels[:count])
            self._owners.append((assembly, first, count))
            self._filled += count
            pixels, first = pixels[count:], first + count
            if self._filled == len(self._pixels):
                self._compute()

    def flush(self) -> None:
        """Compute what is there and hand all features to their videos."""
        if self._filled:
            self._compute()
        while self._computing:
            self._collect()

    def _compute(self) -> None:
        """Start the network on the filled buffer and make another one ready."""
        with torch.inference_mode(), autocast(self._device, self._precision):
            pixels = self._pixels.to(self._device, non_blocking=True)
            if not self._fixed_shape:
                pixels = pixels[: self._filled]
            features = self._extractor(pixels)[: self._filled].to(torch.float16)
            ready = None
            if self._device.type == "cuda":
                there = torch.empty_like(features, device="cpu", pin_memory=True)
                features = there.copy_(features, non_blocking=True)
                ready = torch.cuda.Event()
                ready.record()
        self._computing.append(_Batch(features, self._owners, self._pixels, ready))
        self._owners, self._filled = [], 0
        if not self._buffers:
            self._collect()
        self._pixels = self._buffers.pop()

    def _collect(self) -> None:
        """Wait for the oldest batch and hand its features to their videos."""
        batch = self._computing.popleft()
        if batch.ready is not None:
            batch.ready.synchronize()
        features = batch.features.numpy()
        position = 0
        for assembly, first, count in batch.owners:
            assembly.put(self._name, first, features[position : position + count])
            position += count
        self._buffers.append(batch.pixels)


def _fast_extractor(backbone: Backbone, device: torch.device, precision: str) -> FeatureExtractor:
    """On its device, in the form that is fast there. Low precisions would round folded weights."""
    extractor = backbone.extractor.to(device)
    if device.type == "cpu" and precision == "fp32":
        extractor = fold_normalisation(backbone)
    return extractor.channels_last()


@dataclass(frozen=True)
class _Batch:
    """A batch on its way through a network, and whose rows are in it."""

    features: torch.Tensor
    owners: list[tuple[_Assembly, int, int]]
    pixels: torch.Tensor
    ready: torch.cuda.Event | None


def default_batch_size(row_shape: tuple[int, ...], device: torch.device) -> int:
    """Measured: small batches stay in the CPU's caches; a GPU wants some 10 MB of pixels."""
    if device.type == "cpu":
        return 8 if len(row_shape) == 3 else 1
    return max(8, min(128, (16 << 20) // math.prod(row_shape)))


class _TaskQueue:
    """Tasks that wait for a decode process. Not exhausted when empty: more may come."""

    def __init__(self) -> None:
        self._tasks: deque[DecodeTask] = deque()

    def extend(self, tasks: Iterable[DecodeTask]) -> None:
        self._tasks.extend(tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[DecodeTask]:
        return self

    def __next__(self) -> DecodeTask:
        if not self._tasks:
            raise StopIteration
        return self._tasks.popleft()


class Extractor:
    """Backbones, decode processes and writers that stay ready from one group of videos to the next.

        with Extractor(out, backbones, options) as extractor:
            for group in groups:
                for outcome in extractor.add(group): ...
            for outcome in extractor.finish(): ...

    Raises: StoreError if a store has another identity or cannot be written.
    """

    def __init__(self, out: Path, backbones: Sequence[Backbone], options: ExtractOptions) -> None:
        self._options = options
        self._backbones = {backbone.spec.store_name: backbone for backbone in backbones}
        self.decode_processes = options.worker_count()
        device = options.torch_device()
        if device.type == "cpu":
            keep_freed_memory()
        self._writers = {
            name: FeatureWriter(
                out / name,
                backbone.identity(sample_fps=options.fps, precision=options.precision),
            )
            for name, backbone in self._backbones.items()
        }
        self._batchers = {
            name: _Batcher(backbone, device, options) for name, backbone in self._backbones.items()
        }
        self._queue = _TaskQueue()
        self._pool: DecodePool | None = None
        self._processes = ExitStack()
        self._events: Iterator[Event | Idle] = iter(())
        self._tasks: dict[str, DecodeTask] = {}
        self._assemblies: dict[str, _Assembly] = {}
        self._uncommitted: list[str] = []
        self._oldest_uncommitted: float | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def add(self, tasks: Sequence[DecodeTask]) -> Iterator[Outcome]:
        """Work until the last of these videos has gone to a decode process.

        Videos may then still be in work: no process idles before the next group comes.
        """
        self._tasks |= {task.video_id: task for task in tasks}
        self._queue.extend(tasks)
        while self._queue and (event := self._next_event()):
            yield from self._locked(self._take, event)

    def finish(self) -> Iterator[Outcome]:
        """Work until every video that was added is committed or given up."""
        while event := self._next_event():
            yield from self._locked(self._take, event)
        yield from self._locked(self._flush)

    def stop(self) -> list[Outcome]:
        """Commit what is complete, and do no more; another thread may ask for it at any time."""
        with self._lock:
            self._stopped = True
            return self.commit()

    def commit(self) -> list[Outcome]:
        """Commit every store, also when one cannot be written; then raise its error."""
        errors = []
        for writer in self._writers.values():
            try:
                writer.commit()
            except StoreError as error:
                errors.append(error)
        self._oldest_uncommitted = None
        if errors:
            raise errors[0]
        committed, self._uncommitted = Committed(tuple(self._uncommitted)), []
        return [committed] if committed.video_ids else []

    def _locked(self, step: Callable[..., list[Outcome]], *arguments: Any) -> list[Outcome]:
        with self._lock:
            return [] if self._stopped else step(*arguments)

    def _next_event(self) -> Event | Idle | None:
        """What the decode processes have sent; None when they are idle and nothing waits."""
        event = None if self._stopped else next(self._events, None)
        if event is None and self._queue and not self._stopped:
            # While processes stall, what is complete is committed all the same.
            self._events = self._decoders().watch(self._queue, idle_seconds=IDLE_SECONDS)
            event = next(self._events, None)
        return event

    def _decoders(self) -> DecodePool:
        if self._pool is None:
            options = WorkerOptions(
                inputs={name: b.spec.preprocessing for name, b in self._backbones.items()},
                fps=self._options.fps,
                decode=self._options.decode,
                limits=self._options.limits,
            )
            pool = DecodePool(self.decode_processes, options)
            self._pool = self._processes.enter_context(pool)
        return self._pool

    def _take(self, event: Event | Idle) -> list[Outcome]:
        outcomes: list[Outcome] = []
        if isinstance(event, Idle):
            self._flush_batches()
        elif isinstance(event, Rows):
            assembly = self._assemblies[event.video_id]
            first, fresh = assembly.expect(event.repeats), ~event.repeats
            for name, pixels in event.pixels.items():
                self._batchers[name].add(assembly, first, pixels if fresh.all() else pixels[fresh])
        elif isinstance(event, Started):
            task = self._tasks[event.video_id]
            dims = {name: self._backbones[name].feature_dim for name in task.inputs}
            self._assemblies[task.video_id] = _Assembly(task, event.rows, dims)
        elif isinstance(event, Decoded):
            self._assemblies[event.video_id].decoded = event
        else:
            outcomes.append(self._give_up(event))
        return outcomes + self._store_complete()

    def _flush(self) -> list[Outcome]:
        self._flush_batches()
        return self._store_complete() + self.commit()

    def _flush_batches(self) -> None:
        for batcher in self._batchers.values():
            batcher.flush()

    def _store_complete(self) -> list[Outcome]:
        """Hand complete videos to the writers, and commit when it is time."""
        outcomes: list[Outcome] = [
            self._store(video_id)
            for video_id in [i for i, a in self._assemblies.items() if a.complete]
        ]
        waiting = max(len(writer) for writer in self._writers.values())
        oldest = self._oldest_uncommitted
        old = oldest is not None and time.monotonic() - oldest >= self._options.commit_seconds
        if waiting >= self._options.commit_videos or old:
            outcomes += self.commit()
        return outcomes

    def _store(self, video_id: str) -> Outcome:
        """Hand a complete video to all writers or to none: stores must not disagree."""
        assembly = self._assemblies[video_id]
        decoded = assembly.decoded
        assert decoded is not None
        try:
            if source_state(assembly.path) != decoded.source_state:
                raise ValueError(
                    f"{assembly.path}: was written to while it was read "
                    f"({decoded.source_state[0]} bytes when it was opened); the next run takes it"
                )
            items = {name: assembly.video_features(name) for name in assembly.features}
            for name, item in items.items():
                self._writers[name].check(video_id, item)
        except (ValueError, OSError) as error:
            return self._give_up(Failed(video_id, "store", str(error), 1))
        for name, item in items.items():
            self._writers[name].add(video_id, item)
        del self._assemblies[video_id], self._tasks[video_id]
        self._uncommitted.append(video_id)
        self._oldest_uncommitted = self._oldest_uncommitted or time.monotonic()
        return Extracted(video_id, len(decoded.pts_seconds), decoded.duration_seconds)

    def _give_up(self, failed: Failed) -> GivenUp:
        self._assemblies.pop(failed.video_id, None)
        task = self._tasks.pop(failed.video_id)
        return GivenUp(task.video_id, task.path, failed.stage, failed.error, failed.attempts)
