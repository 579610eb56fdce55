"""Runs that train go to idle nodes of a Ray cluster; the other jobs stay on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipelines.engines.local import IDLE_THREADS_SLEEP, INTERRUPTED, ThisMachine
from pipelines.jobs import Job, JobError

JOBS_AT_ONCE = 64  # handed to Ray, which starts them as nodes become idle
POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RayCluster:
    """A place for jobs: training and evaluation as Ray tasks, all others as processes here."""

    def __init__(self, ray: Any, here: ThisMachine, *, use_gpus: bool) -> None:
        self._ray, self._here = ray, here
        self.at_once = JOBS_AT_ONCE
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = max((int(node.get("GPU", 0)) for node in nodes), default=0) if use_gpus else 0
        self._task = ray.remote(run_command)
        self._calls: dict[str, Any] = {}
        self._change = threading.Lock()
        self._stopped = False

    def room_for(self, job: Job) -> bool:
        if not _is_for_ray(job):
            return self._here.room_for(job)
        if self._gpus and job.gpus is not None and job.gpus > self._gpus:
            raise JobError(
                f"{job.name} wants {job.gpus} GPUs and no node of the Ray cluster has more than "
                f"{self._gpus}; give its run fewer in the manifest"
            )
        return True

    def run(self, job: Job, *, stdout: Path | None, messages: Path | None) -> int:
        if not _is_for_ray(job):
            return self._here.run(job, stdout=stdout, messages=messages)
        assert messages is not None, "jobs that run beside others have a file for their messages"
        count = job.gpus or 1
        messages.unlink(missing_ok=True)
        task = self._task.options(num_cpus=count, num_gpus=count if self._gpus else 0)
        with self._change:
            if self._stopped:
                return INTERRUPTED
            call = self._calls[job.name] = task.remote(job.command, os.getcwd(), stdout, messages)
        code = INTERRUPTED
        try:
            code = self._ray.get(call)
        except self._ray.exceptions.TaskCancelledError:
            pass
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise JobError(f"{job.name}: {error.cause}; do all nodes share --out?") from error
            raise
        except self._ray.exceptions.RayError as error:
            if not self._stopped:
                first = str(error).splitlines()[0]
                raise JobError(f"{job.name}: its Ray task failed ({first}): {job}") from error
        del self._calls[job.name]
        return INTERRUPTED if self._stopped else code

    def interrupt(self) -> None:
        self._here.interrupt()
        self._cancel(force=False)

    def kill(self) -> None:
        self._here.kill()
        self._cancel(force=True)

    def _cancel(self, *, force: bool) -> None:
        with self._change:
            self._stopped = True
            for call in self._calls.values():
                self._ray.cancel(call, force=force)


def _is_for_ray(job: Job) -> bool:
    return job.argv[0] == "liteeval_train"


def run_command(command: list[str], folder: str, stdout: Path | None, messages: Path) -> int:
    """In a Ray task on some node: the exit code; Ray's cancellation becomes SIGTERM."""
    with (
        messages.open("ab") as errors,
        stdout.open("wb") if stdout else nullcontext(errors) as output,
    ):
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            env={**IDLE_THREADS_SLEEP, **os.environ},
            stdout=output,
            stderr=errors,
            preexec_fn=_prepare_process,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)  # Ray's interrupt comes between two steps of Python
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            return INTERRUPTED
    return process.returncode


def _prepare_process() -> None:
    """Let signals through that Ray's workers block, and end with the worker, however it ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
