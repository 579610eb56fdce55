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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol

from pipelines.jobs import Job, JobError, Layout, select_jobs, with_what_they_need
from pipelines.stamps import (
    ENDED_WELL,
    SOME_VIDEOS_FAILED,
    Stamp,
    digest,
    hash_outputs,
    is_done,
    set_aside,
)

INTERRUPTED = 130
STANDARD_ERROR = 2  # file descriptor
LOCK_SECONDS = 1.0  # to wait for a lock that is held for a moment
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
    retry_failed: bool = False  # run jobs again of which some videos had failed


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

    def __init__(self, lock: Lock, *, gpus: Sequence[str] = (), jobs: int = 1) -> None:
        self._lock = lock
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
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
            self._lock.name_holder(process.pid, job.name)
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
                process.terminate()  # SIGINT is ignored by what a script starts with &

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
        wanted, forced = digest(job, self._layout), job.name in self._forced
        if not forced and not self._is_retried(job) and is_done(job, self._layout, wanted):
            self._waiting.remove(job)
            self._settled.add(job.name)
        elif place.room_for(job):
            self._waiting.remove(job)
            for path in set_aside(job, self._layout, wanted, forced=forced):
                self._log(f"{job.name} starts over; what it had made is now in {path}")
            self._log(f"{self._number[job.name]} {job}")
            self._ran += 1
            alone = place.at_once == 1 or job.gpus is None
            messages = None if alone else self._layout.messages(job.name)
            stamp = Stamp(wanted, None, command=str(job), utc=_now(), forced=forced)
            future = threads.submit(_run_job, job, self._layout, stamp, place, messages)
            running[future] = job

    def _is_retried(self, job: Job) -> bool:
        """Whether some of its videos failed, and the user wants them tried again."""
        stamp = Stamp.read(self._layout.stamp(job.name)) if self._choice.retry_failed else None
        return stamp is not None and stamp.exit_code == SOME_VIDEOS_FAILED

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


def _run_job(job: Job, layout: Layout, stamp: Stamp, place: Place, messages: Path | None) -> None:
    """Run one job and stamp it, when it starts and when it ends."""
    path, started = layout.stamp(job.name), time.monotonic()
    stamp.write(path)
    code = _execute(job, place, messages)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    ended = replace(stamp, exit_code=code, seconds=round(time.monotonic() - started, 1))
    if code not in ENDED_WELL:
        ended.write(path)
        told = f"in {messages}" if messages else "above"
        raise JobError(f"{job.name} failed (exit code {code}); its messages are {told}: {job}")
    for output in job.outputs:
        if not output.exists():
            raise JobError(f"{job.name} ended well, but {output} is not there: {job}")
    replace(ended, made=hash_outputs(job, layout)).write(path)


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


class Lock:
    """An output folder, held for one run.

    The system frees it when its last holder ends, however. Jobs inherit it: one that outlives a
    killed run still holds the folder. The file names the holders: a line `PID JOB` for each, an
    empty name for the run itself.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def fileno(self) -> int:
        return self._file.fileno()

    def name_holder(self, pid: int, job: str = "") -> None:
        with suppress(OSError):  # on a full disk: who waits is told less
            self._file.write(f"{pid} {job}\n".encode())


@contextmanager
def lock(folder: Path) -> Iterator[Lock]:
    """Hold the folder for one run.

    Raises: JobError if another run holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise JobError(
            f"{folder}: not writable ({error.strerror}); choose another --out"
        ) from error
    with file:
        if not _take(file):
            file.seek(0)
            raise JobError(f"{folder}: in use by {_holders(file.read().decode())}")
        file.truncate(0)
        held = Lock(file)
        held.name_holder(os.getpid())
        yield held


def _take(file: IO[bytes]) -> bool:
    """Whether the lock is ours now; `status` holds it for a moment."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(LOCK_SECONDS / 20)


def _holders(text: str) -> str:
    """Who of those named in a lock file lives, and what to do."""
    named = [line.partition(" ") for line in text.splitlines()]
    living = [(pid, job) for pid, _, job in named if pid and Path("/proc", pid).exists()]
    runs = [pid for pid, job in living if not job]
    if runs or not living:
        who = f"process {runs[0]}" if runs else "of another machine"
        return f"another run ({who}); wait for it, or choose another --out"
    jobs = " and ".join(f"{job} (process {pid})" for pid, job in living)
    return f"{jobs}, left by a run that was killed; wait for it, or end it with kill"
