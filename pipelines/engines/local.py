"""Runs jobs on this machine, each as a process of its own: on each GPU one, else one by one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol

from pipelines.jobs import (
    Job,
    JobError,
    Layout,
    Stamp,
    digest,
    is_done,
    select_jobs,
    set_aside,
    with_what_they_need,
)

SOME_VIDEOS_FAILED = 3
INTERRUPTED = 130
STANDARD_ERROR = 2  # file descriptor
# Threads that wait for work would else burn the cores that other jobs want: on a busy machine
# training of small networks slows down many times over.
IDLE_THREADS_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs: how many ran, and which of them had videos that failed."""

    ran: int
    with_failures: tuple[str, ...]
    done: frozenset[str]  # those that were chosen: all are done now


@dataclass(frozen=True)
class Choice:
    """Which jobs to run, and what to do when one fails; patterns may hold * and ?."""

    only: tuple[str, ...] = ()  # these and what they need; none: all
    force: tuple[str, ...] = ()  # start these over though they are done
    keep_going: bool = False  # after a failure, go on with the jobs that do not need that one


ALL_JOBS = Choice()


class Place(Protocol):
    """Where jobs run: this machine, or a cluster."""

    @property
    def at_once(self) -> int:
        """How many jobs at most."""

    def room_for(self, job: Job) -> bool:
        """Whether the job can start now.

        Raises: JobError if it never can.
        """

    def run(self, job: Job, *, stdout: Path | None, messages: Path | None) -> int:
        """The exit code of the job's command, once it has ended; called in a thread of its own.

        Args:
            stdout: a file for what it prints; None: that goes where its messages go.
            messages: a file for these; None: our standard error.
        """

    def interrupt(self) -> None:
        """Ask all running jobs to save and end; start no more."""

    def kill(self) -> None:
        """End them now."""


def visible_gpus() -> list[str]:
    """The GPUs that we may use, as CUDA_VISIBLE_DEVICES names them; torch is not asked."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


class ThisMachine:
    """Jobs as processes here. With GPUs: as many at once, each sees its own GPU alone."""

    def __init__(self, lock_file: IO[str], *, gpus: Sequence[str] = (), jobs: int = 1) -> None:
        self._lock_file = lock_file
        self._gpus = bool(gpus)
        self._free = list(gpus) if gpus else [""] * jobs
        self.at_once = len(self._free)
        self._change = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._taken: dict[str, list[str]] = {}
        self._stopped = False

    def room_for(self, job: Job) -> bool:
        """Takes the GPUs, if there are enough idle ones; `run` gives them back."""
        wanted = self.at_once if job.gpus is None else job.gpus
        if self._gpus and wanted > self.at_once:
            raise JobError(
                f"{job.name} wants {wanted} GPUs and this machine has {self.at_once}; give its run "
                "fewer in the manifest, or run it elsewhere"
            )
        wanted = min(wanted, self.at_once)
        with self._change:
            if len(self._free) < wanted:
                return False
            self._taken[job.name], self._free = self._free[:wanted], self._free[wanted:]
        return True

    def run(self, job: Job, *, stdout: Path | None, messages: Path | None) -> int:
        try:
            with (
                messages.open("wb") if messages else nullcontext(STANDARD_ERROR) as errors,
                stdout.open("wb") if stdout else nullcontext(errors) as output,
            ):
                return self._run(job, output, errors)
        finally:
            with self._change:
                self._free += self._taken.pop(job.name)

    def _run(self, job: Job, output: Any, errors: Any) -> int:
        with self._change:
            if self._stopped:
                return INTERRUPTED
            # A session of its own, so that Ctrl-C reaches it once: from us.
            process = self._processes[job.name] = subprocess.Popen(
                [sys.executable, *job.command],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environment(job)},
                stdout=output,
                stderr=errors,
                pass_fds=[self._lock_file.fileno()],
                start_new_session=True,
            )
        code = process.wait()
        del self._processes[job.name]
        return INTERRUPTED if self._stopped else code

    def _environment(self, job: Job) -> dict[str, str]:
        settings = dict(IDLE_THREADS_SLEEP)
        if not self._gpus and self.at_once > 1 and job.gpus is not None:
            settings["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // self.at_once))
        settings = {name: os.environ.get(name, value) for name, value in settings.items()}
        if self._gpus:
            settings["CUDA_VISIBLE_DEVICES"] = ",".join(self._taken[job.name])
        return settings

    def interrupt(self) -> None:
        with self._change:
            self._stopped = True
            for process in self._processes.values():
                process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        for process in list(self._processes.values()):
            os.killpg(process.pid, signal.SIGKILL)


def run_jobs(
    jobs: Sequence[Job],
    layout: Layout,
    *,
    place: Place,
    log: Callable[[str], None],
    choice: Choice = ALL_JOBS,
) -> Outcome:
    """Run the jobs that are not done, each after those it needs; several at once where they fit.

    Args:
        log: takes one line for each job that is started.

    Raises: JobError when a job fails, once those that run beside it have ended, or at the end with
        choice.keep_going; KeyboardInterrupt when interrupted, after the running jobs have ended.
    """
    board = _Board(jobs, layout, choice, log)
    with ThreadPoolExecutor(place.at_once) as threads:
        running: dict[Future[None], Job] = {}
        try:
            while board.start_ready(place, threads, running):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    board.settle(running.pop(future), future.exception())
        except KeyboardInterrupt:
            place.interrupt()
            try:
                wait(running)
            except KeyboardInterrupt:
                place.kill()
            raise
    return board.outcome()


class _Board:
    """Which jobs wait, which are done, which failed."""

    def __init__(
        self, jobs: Sequence[Job], layout: Layout, choice: Choice, log: Callable[[str], None]
    ) -> None:
        self._layout, self._choice, self._log = layout, choice, log
        self._forced = select_jobs(jobs, choice.force)
        names = select_jobs(jobs, choice.only or ("*",)) | self._forced
        self._chosen = with_what_they_need(jobs, names)
        self._jobs = {job.name: job for job in jobs}
        self._number = {job.name: f"[{i}/{len(jobs)}]" for i, job in enumerate(jobs, start=1)}
        self._waiting = [job for job in jobs if job.name in self._chosen]
        self._digests: dict[str, str] = {}
        self._settled: set[str] = set()
        self._failed: dict[str, str] = {}
        self._ran = 0

    def start_ready(
        self, place: Place, threads: ThreadPoolExecutor, running: dict[Future[None], Job]
    ) -> bool:
        """Start what can be started; whether anything runs now."""
        for job in list(self._waiting):  # in order: a job comes after those it needs
            if self._failed and not self._choice.keep_going:
                break
            if missing := [name for name in job.depends_on if name in self._failed]:
                self._waiting.remove(job)
                self._failed[job.name] = f"{job.name} was not run: it needs {missing[0]}"
            elif self._settled.issuperset(job.depends_on):
                self._start(job, place, threads, running)
        return bool(running)

    def _start(
        self,
        job: Job,
        place: Place,
        threads: ThreadPoolExecutor,
        running: dict[Future[None], Job],
    ) -> None:
        if job.name not in self._digests:
            self._digests[job.name] = digest(job, self._digests)
        wanted = self._digests[job.name]
        forced = job.name in self._forced
        if not forced and is_done(job, self._layout, wanted):
            self._waiting.remove(job)
            self._settled.add(job.name)
        elif place.room_for(job):
            self._waiting.remove(job)
            for path in set_aside(job, self._layout, wanted, forced=forced):
                self._log(f"{job.name} starts over; what it had made is now in {path}")
            self._log(f"{self._number[job.name]} {job}")
            self._ran += 1
            messages = self._layout.messages(job.name) if place.at_once > 1 else None
            future = threads.submit(_run_job, job, self._layout, wanted, place, messages)
            running[future] = job

    def settle(self, job: Job, error: BaseException | None) -> None:
        """Raises: what the job raised, unless it is that it failed."""
        if isinstance(error, JobError):
            self._failed[job.name] = str(error)
        elif error is not None:
            raise error
        else:
            self._settled.add(job.name)

    def outcome(self) -> Outcome:
        """Raises: JobError if a job failed."""
        if self._failed:
            raise JobError("\n".join(self._failed.values()))
        ended = {name: Stamp.read(self._layout.stamp(name)) for name in self._jobs}
        return Outcome(
            ran=self._ran,
            with_failures=tuple(
                name
                for name, stamp in ended.items()
                if name in self._chosen and stamp and stamp.exit_code == SOME_VIDEOS_FAILED
            ),
            done=self._chosen,
        )


def _run_job(job: Job, layout: Layout, wanted: str, place: Place, messages: Path | None) -> None:
    """Run one job and stamp it."""
    stamp_path, started = layout.stamp(job.name), time.monotonic()
    stamp: dict[str, Any] = {"digest": wanted, "command": str(job), "utc": _now()}
    Stamp(exit_code=None, **stamp).write(stamp_path)
    code = _execute(job, place, messages)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    seconds = round(time.monotonic() - started, 1)
    if code not in (0, SOME_VIDEOS_FAILED):
        Stamp(exit_code=code, seconds=seconds, **stamp).write(stamp_path)
        told = f"in {messages}" if messages else "above"
        raise JobError(f"{job.name} failed (exit code {code}); its messages are {told}: {job}")
    for path in job.outputs:
        if not path.exists():
            raise JobError(f"{job.name} ended well, but {path} is not there: {job}")
    Stamp(exit_code=code, seconds=seconds, **stamp).write(stamp_path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _execute(job: Job, place: Place, messages: Path | None) -> int:
    """The exit code of the job's command; what it prints is kept if the job wants that."""
    if job.stdout is None:
        return place.run(job, stdout=None, messages=messages)
    temporary = job.stdout.with_name(f".{job.stdout.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    code = place.run(job, stdout=temporary, messages=messages)
    if code == 0:
        os.replace(temporary, job.stdout)
    return code


@contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder for one run. The system frees the lock when its last holder ends, however.

    The running job inherits it, so that a job which outlives a killed run still holds the folder.
    Raises: JobError if another run holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise JobError(
            f"{folder}: not writable ({error.strerror}); choose another --out"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise JobError(
                f"{folder}: in use by another run (process {holder}); "
                "wait for it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file
