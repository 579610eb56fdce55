"""Runs jobs one after another on this machine, each as a process of its own."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

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


def run_jobs(
    jobs: Sequence[Job],
    layout: Layout,
    *,
    lock_file: IO[str],
    log: Callable[[str], None],
    choice: Choice = ALL_JOBS,
) -> Outcome:
    """Run the jobs that are not done, in order.

    Args:
        lock_file: of `lock`; each job inherits it.
        log: takes one line for each job that is started.

    Raises: JobError on the first job that fails, or at the end with choice.keep_going;
        KeyboardInterrupt when interrupted, after the running job has ended.
    """
    forced = select_jobs(jobs, choice.force)
    chosen = with_what_they_need(jobs, select_jobs(jobs, choice.only or ("*",)) | forced)
    digests: dict[str, str] = {}
    failed: dict[str, str] = {}
    ran, with_failures = 0, []
    for number, job in enumerate(jobs, start=1):
        wanted = digests[job.name] = digest(job, digests)
        if job.name not in chosen:
            continue
        if missing := [name for name in job.depends_on if name in failed]:
            failed[job.name] = f"{job.name} was not run: it needs {missing[0]}"
            continue
        if job.name in forced or not is_done(job, layout, wanted):
            for path in set_aside(job, layout, wanted, forced=job.name in forced):
                log(f"{job.name} starts over; what it had made is now in {path}")
            log(f"[{number}/{len(jobs)}] {job}")
            ran += 1
            try:
                _run_job(job, layout, wanted, lock_file)
            except JobError as error:
                if not choice.keep_going:
                    raise
                failed[job.name] = str(error)
        if _ended_with(job, layout) == SOME_VIDEOS_FAILED:
            with_failures.append(job.name)
    if failed:
        raise JobError("\n".join(failed.values()))
    return Outcome(ran=ran, with_failures=tuple(with_failures), done=chosen)


def _ended_with(job: Job, layout: Layout) -> int | None:
    stamp = Stamp.read(layout.stamp(job.name))
    return stamp.exit_code if stamp else None


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


def _run_job(job: Job, layout: Layout, wanted: str, lock_file: IO[str]) -> None:
    """Run one job and stamp it."""
    stamp_path, started = layout.stamp(job.name), time.monotonic()
    stamp: dict[str, Any] = {"digest": wanted, "command": str(job), "utc": _now()}
    Stamp(exit_code=None, **stamp).write(stamp_path)
    code = _execute(job, lock_file)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    seconds = round(time.monotonic() - started, 1)
    if code not in (0, SOME_VIDEOS_FAILED):
        Stamp(exit_code=code, seconds=seconds, **stamp).write(stamp_path)
        raise JobError(f"{job.name} failed (exit code {code}); its messages are above: {job}")
    for path in job.outputs:
        if not path.exists():
            raise JobError(f"{job.name} ended well, but {path} is not there: {job}")
    Stamp(exit_code=code, seconds=seconds, **stamp).write(stamp_path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _execute(job: Job, lock_file: IO[str]) -> int:
    """The exit code of the job's command; its progress goes to our standard error."""
    command = [sys.executable, "-m", *job.argv, *job.where]
    if job.stdout is None:
        return _wait(_start(command, lock_file, stdout=STANDARD_ERROR))
    temporary = job.stdout.with_name(f".{job.stdout.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        code = _wait(_start(command, lock_file, stdout=file.fileno()))
    if code == 0:
        os.replace(temporary, job.stdout)
    return code


def _start(command: list[str], lock_file: IO[str], *, stdout: int) -> subprocess.Popen[bytes]:
    """Start in a session of its own, so that Ctrl-C reaches it once: from us."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**IDLE_THREADS_SLEEP, **os.environ},
        stdout=stdout,
        pass_fds=[lock_file.fileno()],
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a job; hand it an interrupt and wait on, so that it can save; a second one kills."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
    try:
        process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return INTERRUPTED
