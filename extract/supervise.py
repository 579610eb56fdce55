"""Decode processes that can be killed: time and memory limits, one retry, bounded buffers.

Each worker decodes one video at a time and puts preprocessed rows into slots of memory that it
shares with the parent; the parent reads them and hands each slot back. The kernel holds the
limits: an alarm ends a worker that overruns its time, even one that spins in native code, and
the address space is bounded. The alarm rests while a worker waits for a free slot, so a slow
network never makes a video fail. The video of a worker that died is tried once more in a fresh
process and then given up.

Workers start by `spawn`, import no torch, and end when the parent goes away.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from extract.decode import (
    DecodeError,
    DecodeOptions,
    Video,
    decode_video,
    wanted_frames,
)
from extract.preprocess import Preprocessing
from extract.rows import iter_rows, repeats
from extract.sampling import evenly_spaced

ATTEMPTS = 2
SLOTS_PER_WORKER = 4
SLOT_BYTES = 4 << 20
VIDEOS_PER_WORKER = 1000  # then a fresh process, against leaks in native code
PROBE_BYTES_PER_SECOND = 10e6  # reading slower than this counts as hanging

T = TypeVar("T")

spawning = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class DecodeTask:
    """One video to decode, and which inputs to make of each row."""

    video_id: str
    path: Path
    inputs: tuple[str, ...]  # keys of the preprocessings the pool was made with


@dataclass(frozen=True)
class DecodeLimits:
    """What one video may take."""

    timeout_seconds: float = 120.0  # at least this much, however short the video
    timeout_factor: float = 2.0  # and this many seconds per second of video
    memory_bytes: int = 4 << 30  # of a worker, beyond what it needs to start

    def probe_seconds(self, size_bytes: int) -> float:
        """To read the packets of a file whose length is not known yet."""
        return self.timeout_seconds + size_bytes / PROBE_BYTES_PER_SECOND

    def decode_seconds(self, duration_seconds: float) -> float:
        """For each pass that decodes."""
        return max(self.timeout_seconds, self.timeout_factor * duration_seconds)

    def allow(self, duration_seconds: float) -> None:
        """From now on this process may decode for so much video; then the kernel ends it."""
        self.arm(self.decode_seconds(duration_seconds))

    @staticmethod
    def arm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


@dataclass(frozen=True)
class Started:
    """A video is open; a second one for the same video voids the rows before it."""

    video_id: str
    rows: int
    begun_seconds: float  # when its file was opened, as time.monotonic of any process


@dataclass(frozen=True)
class Rows:
    """A block of rows in shared memory, valid until the next event is asked for."""

    video_id: str
    first: int
    pixels: Mapping[str, np.ndarray]  # input name → (n, *row_shape) uint8
    repeats: np.ndarray  # (n,) bool: whether a row has the very pixels of the row before it


@dataclass(frozen=True)
class Idle:
    """Nothing has come for a while."""


@dataclass(frozen=True)
class Decoded:
    """All rows of a video have come, or those before it was stopped."""

    video_id: str
    pts_seconds: np.ndarray  # (T,) float64
    frame_index: np.ndarray  # (T,) int64
    duration_seconds: float
    source_fps: float
    decoder: str
    corrupt_frames: int
    source_state: tuple[int, int]  # of the file, when it was opened: see `source_state`
    busy_seconds: float  # that opening, decoding and resizing took, without waits for the parent


def source_state(path: Path) -> tuple[int, int]:
    """Bytes, and time of the last change in ns: others where a file was written to meanwhile."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Failed:
    """A video is given up."""

    video_id: str
    stage: str
    error: str
    attempts: int


Event = Started | Rows | Decoded | Failed


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs to know; travels to it once."""

    inputs: dict[str, Preprocessing]
    fps: float
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    max_rows: int | None = None  # of a video; None: all
    select: Callable[[int, int], np.ndarray] = evenly_spaced  # which: rows of (count, max_rows)
    block_rows: int = 32  # at most, that come at once

    @property
    def row_bytes(self) -> int:
        return sum(preprocessing.row_bytes for preprocessing in self.inputs.values())

    @property
    def rows_per_slot(self) -> int:
        return max(1, min(self.block_rows, SLOT_BYTES // self.row_bytes))

    @property
    def memory_bytes(self) -> int:
        return SLOTS_PER_WORKER * self.rows_per_slot * self.row_bytes

    def slot_views(self, memory: Any, slot: int) -> dict[str, np.ndarray]:
        """(rows_per_slot, *row_shape) uint8 view of each input in a slot of shared memory."""
        views = {}
        offset = slot * self.rows_per_slot * self.row_bytes
        for name, preprocessing in self.inputs.items():
            shape = (self.rows_per_slot, *preprocessing.row_shape)
            views[name] = np.ndarray(shape, np.uint8, memory, offset)
            offset += self.rows_per_slot * preprocessing.row_bytes
        return views


class DecodePool:
    """Runs decode tasks in worker processes and yields what comes back.

        with DecodePool(2, WorkerOptions(...)) as pool:
            for event in pool.run(tasks): ...

    Memory is bounded by workers × SLOTS_PER_WORKER × slot, whatever the videos' length.
    """

    def __init__(self, workers: int, options: WorkerOptions) -> None:
        self._count = workers
        self._options = options
        self._workers: list[_Worker] = []

    def __enter__(self) -> DecodePool:
        self._workers = [_Worker(self._options) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end_process()

    def run(self, tasks: Iterable[DecodeTask]) -> Iterator[Event]:
        """Events of all tasks as they happen; each task ends in one Decoded or Failed."""
        return (event for event in self.watch(tasks) if not isinstance(event, Idle))

    def watch(
        self, tasks: Iterable[DecodeTask], *, idle_seconds: float | None = None
    ) -> Iterator[Event | Idle]:
        """As `run`, and an Idle each time when for so long nothing happened; None: never."""
        pending = iter(tasks)
        retries: deque[DecodeTask] = deque()
        while True:
            for worker in self._workers:
                if worker.task is None:
                    self._give_task(worker, pending, retries)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = _ready(busy, idle_seconds)
            if not ready:
                yield Idle()
            for worker in ready:
                for event in worker.receive():
                    if isinstance(event, Failed) and event.attempts < ATTEMPTS:
                        assert worker.task is not None
                        retries.append(worker.task)
                    else:
                        yield event
                    if isinstance(event, Decoded | Failed):
                        worker.task = None

    def stop(self, video_id: str) -> None:
        """Of this video no more rows are wanted: its Decoded comes as soon as may be."""
        for worker in self._workers:
            if worker.task is not None and worker.task.video_id == video_id:
                worker.stop()

    @staticmethod
    def _give_task(
        worker: _Worker, pending: Iterator[DecodeTask], retries: deque[DecodeTask]
    ) -> None:
        if retries:
            worker.start(retries.popleft(), attempt=2)
        elif (task := next(pending, None)) is not None:
            worker.start(task, attempt=1)


def _ready(workers: list[_Worker], timeout_seconds: float | None) -> list[_Worker]:
    """Blocks until a worker has sent something or has died; none if that takes too long."""
    handles: dict[Any, _Worker] = {worker.connection: worker for worker in workers}
    handles |= {worker.process.sentinel: worker for worker in workers}
    return list(
        {
            id(handles[handle]): handles[handle] for handle in wait(list(handles), timeout_seconds)
        }.values()
    )


class _Worker:
    """The parent's side of one worker process, which is replaced when it must be."""

    def __init__(self, options: WorkerOptions) -> None:
        self.task: DecodeTask | None = None
        self._options = options
        self._attempt = 0
        self._videos = 0
        self._memory = spawning.RawArray("B", options.memory_bytes)
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = spawning.Pipe()
        arguments = (theirs, self._memory, self._options)
        self.process = spawning.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self._videos = 0

    def start(self, task: DecodeTask, *, attempt: int) -> None:
        if attempt > 1 or self._videos >= VIDEOS_PER_WORKER or not self.process.is_alive():
            self.end_process()
            self._launch()
        self.task, self._attempt = task, attempt
        self._videos += 1
        try:
            self.connection.send(task)
        except OSError:
            return  # it died just now; `receive` finds out

    def stop(self) -> None:
        with suppress(OSError):  # it died just now; `receive` finds out
            self.connection.send(_Stop())

    def receive(self) -> Iterator[Event]:
        """What the process has sent; hands each slot back once its rows were taken."""
        assert self.task is not None
        task = self.task
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, _Filled):
                    views = self._options.slot_views(self._memory, message.slot)
                    rows = {name: views[name][: message.repeats.size] for name in task.inputs}
                    yield Rows(task.video_id, message.first, rows, message.repeats)
                    self.connection.send(message.slot)
                elif isinstance(message, _Error):
                    yield Failed(task.video_id, "decode", message.text, self._attempt)
                    return
                else:
                    yield message
                    if isinstance(message, Decoded):
                        return
            if self.process.is_alive():
                return
        except (EOFError, OSError):
            pass
        yield self._died(task)

    def _died(self, task: DecodeTask) -> Failed:
        self.end_process()
        what = _how_it_ended(self.process.exitcode)
        return Failed(task.video_id, "decode", f"{task.path}: {what}", self._attempt)

    def end_process(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code == -signal.SIGALRM:
        return "took longer than its time limit; raise --timeout or mend the file"
    return f"the decoder process died (exit code {exit_code})"


def decode_apart(path: Path, work: Callable[..., T], limits: DecodeLimits) -> T:
    """What `work` makes of a file, in a process of its own that the limits end.

    Args:
        work: can be pickled; called with `on_pass`, see `decode.decode_video`.

    Raises: DecodeError as it does, or if the process was ended.
    """
    connection, theirs = spawning.Pipe(duplex=False)
    arguments = (theirs, path, work, limits)
    process = spawning.Process(target=_work_apart, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        answer: T | _Error = connection.recv()
    except EOFError:
        process.join()
        raise DecodeError(f"{path}: {_how_it_ended(process.exitcode)}") from None
    finally:
        connection.close()
        process.kill()
        process.join()
    if isinstance(answer, _Error):
        raise DecodeError(answer.text)
    return answer


# --- in the worker -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Filled:
    slot: int
    first: int
    repeats: np.ndarray  # (n,) bool, of its n rows


@dataclass(frozen=True)
class _Error:
    text: str


@dataclass(frozen=True)
class _Stop:
    """The task at hand has given rows enough; without meaning when it is over."""


def _serve(connection: Connection, memory: Any, options: WorkerOptions) -> None:
    """Decode tasks until the parent goes away."""
    confine(options.limits)
    service = _Service(connection, memory, options)
    try:
        while True:
            service.answer(service.next_task())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone


def _work_apart(
    connection: Connection, path: Path, work: Callable[..., T], limits: DecodeLimits
) -> None:
    confine(limits)

    def answer() -> T:
        limits.arm(limits.probe_seconds(path.stat().st_size))
        return work(on_pass=limits.allow)

    connection.send(_answer(path, answer))


def confine(limits: DecodeLimits) -> None:
    """This process is its parent's to stop, and may take so much memory and leave no core file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        now_bytes = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = now_bytes + limits.memory_bytes
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _answer(path: Path, work: Callable[[], T]) -> T | _Error:
    """What comes of work on a file; the alarm is off afterwards. The parent's end is an error."""
    try:
        return work()
    except DecodeError as error:
        return _Error(str(error))
    except MemoryError:
        return _Error(f"{path}: needs more memory than a decoder may take")
    except (ConnectionError, EOFError):
        raise
    except OSError as error:
        return _Error(f"{path}: cannot be read ({error.strerror})")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Service:
    """A worker's work: tasks and free slots come in, filled slots and answers go out."""

    def __init__(self, connection: Connection, memory: Any, options: WorkerOptions) -> None:
        self._connection = connection
        self._memory = memory
        self._options = options
        self._free = deque(range(SLOTS_PER_WORKER))
        self._stopped = False
        self._waited_seconds = 0.0

    def next_task(self) -> DecodeTask:
        while True:
            message = self._connection.recv()
            if isinstance(message, DecodeTask):
                self._stopped, self._waited_seconds = False, 0.0
                return message
            self._note(message)

    def _note(self, message: int | _Stop) -> None:
        if isinstance(message, _Stop):
            self._stopped = True
        else:
            self._free.append(message)

    def answer(self, task: DecodeTask) -> None:
        self._connection.send(_answer(task.path, lambda: self._decode(task)))

    def _decode(self, task: DecodeTask) -> Decoded:
        limits, begun = self._options.limits, time.monotonic()
        state = source_state(task.path)
        limits.arm(limits.probe_seconds(state[0]))
        return decode_video(
            task.path,
            lambda video: self._send_rows(task, video, begun, state),
            self._options.decode,
            on_pass=limits.allow,
        )

    def _send_rows(
        self, task: DecodeTask, video: Video, begun: float, state: tuple[int, int]
    ) -> Decoded:
        """Decode, preprocess and hand over every row of one video, unless stopped before."""
        options, timeline = self._options, video.timeline
        indices = wanted_frames(video, options.fps)
        rows = options.select(len(indices), options.max_rows or len(indices))
        indices = indices[rows]
        inputs = {name: options.inputs[name] for name in task.inputs}
        repeated = repeats(timeline, options.fps, inputs, rows)
        self._connection.send(Started(task.video_id, len(indices), begun))
        count = 0
        for k, row in enumerate(iter_rows(video, options.fps, inputs, rows)):
            if count == 0:
                self._wait_for_slot()
                if self._stopped:
                    break
                views = options.slot_views(self._memory, self._free[0])
            for name, pixels in row.items():
                views[name][count] = pixels
            count += 1
            if count == options.rows_per_slot or k == len(indices) - 1:
                # Only now is the slot given away: rows that fail half-way leave it free.
                first = k - count + 1
                filled = _Filled(self._free.popleft(), first, repeated[first : k + 1])
                self._connection.send(filled)
                count = 0
        return Decoded(
            video_id=task.video_id,
            pts_seconds=timeline.pts_seconds[indices],
            frame_index=indices,
            duration_seconds=timeline.duration_seconds,
            source_fps=video.source_fps,
            decoder=video.decoder,
            corrupt_frames=video.corrupt_frames,
            source_state=state,
            busy_seconds=time.monotonic() - begun - self._waited_seconds,
        )

    def _wait_for_slot(self) -> None:
        """Until the first of `_free` may be filled."""
        started = time.monotonic()
        with _alarm_resting():
            while self._connection.poll() or not self._free:
                self._note(self._connection.recv())
        self._waited_seconds += time.monotonic() - started


@contextmanager
def _alarm_resting() -> Iterator[None]:
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, max(remaining, 0.001) if remaining else 0)
