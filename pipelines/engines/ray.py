"""Extraction on a Ray cluster: one actor for each GPU, or for each share of the CPU cores.

The driver hands groups of videos to the actors, longest first; an actor keeps its backbones and
its decode processes from group to group. A video is done when its part is committed and the actor
has said so. When an actor dies, what it had in hand and no store holds is handed out again, and
another actor takes its place. Stores lie on a file system that all nodes share.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from extract.store import FeatureStore, StoreError
from extract.videos import Video
from pipelines.jobs import JobError

if TYPE_CHECKING:  # else loading this file would load torch
    from extract.backbones import Backbone
    from extract.run import ExtractOptions, Extractor, ExtractSummary, Ledger, Outcome
    from extract.supervise import DecodeTask

Load = Callable[["ExtractOptions"], Any]  # makes an Extractor, or what works as one

CPUS_PER_ACTOR = 4  # where there is no GPU
CALLS_AHEAD = 2  # groups that an actor has in hand, so that it never waits for the next
GROUP_VIDEOS = 64  # at most; fewer towards the end
FAILED_STARTS = 3
STOP_SECONDS = 60.0


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected to a cluster. Ray's own messages go to standard error.

    Args:
        address: of a running cluster; None: that of $RAY_ADDRESS, or one on this machine alone,
            which ends with us.

    Raises: JobError if Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":  # its ports are open to all: let no one else in
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise JobError("--engine ray needs Ray: pip install 'liteeval[ray]'") from error
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    settings: dict[str, Any] = alone if address == "local" else {}
    try:
        _require_listener(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(
            f"Ray cluster {address}: cannot be reached ({str(error).splitlines()[0]}); start one "
            "with `ray start --head`, or leave out --ray-address to use this machine alone"
        ) from error
    try:
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises: OSError if nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@dataclass(frozen=True)
class Share:
    """What one actor takes of a node."""

    cpus: int
    gpus: int = 0


def shares(nodes: Iterable[Mapping[str, float]], *, use_gpus: bool) -> list[Share]:
    """How many actors a cluster gets, from the resources of its nodes.

    An actor for each GPU, with an equal part of its node's cores; in a cluster without GPUs an
    actor for every four cores of a node, or one for a node that has fewer.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    gpus = [int(node.get("GPU", 0)) if use_gpus else 0 for node in nodes]
    found = []
    for node, count in zip(nodes, gpus, strict=True):
        cpus = int(node["CPU"])
        if not any(gpus):
            count = max(1, cpus // CPUS_PER_ACTOR)
        found += [Share(max(1, cpus // max(count, 1)), int(any(gpus)))] * count
    return found


def extract_on_ray(
    videos: Sequence[Video],
    out: Path,
    backbones: Sequence[Backbone],
    options: ExtractOptions,
    *,
    address: str | None = None,
) -> ExtractSummary:
    """As `extract_features`, by the actors of a Ray cluster.

    Raises: StoreError as there, or if a node does not see `out`; JobError if the cluster cannot be
        used.
    """
    from extract.run import (
        ExtractSummary,
        Ledger,
        interruptible,
        longest_first,
        missing_tasks,
        store_names,
    )
    from extract.store import FeatureWriter

    summary, started = ExtractSummary(), time.monotonic()
    out = out.absolute()
    with connected(address) as ray, interruptible():
        for backbone in backbones:  # refuses a store of another identity before any work
            identity = backbone.identity(sample_fps=options.fps, precision=options.precision)
            FeatureWriter(out / backbone.spec.store_name, identity)
        stores = Stores(out, tuple(store_names(backbones)))
        tasks = longest_first(missing_tasks(videos, out, stores.names, summary))
        load = functools.partial(_load_extractor, [ray.put(list(backbones))], out)
        with Ledger(out, len(tasks), summary) as ledger:
            summary.interrupted = not work_through(ray, tasks, stores, options, ledger, load=load)
    summary.wall_seconds = time.monotonic() - started
    return summary


def _load_extractor(place: list[Any], out: Path, options: ExtractOptions) -> Extractor:
    """In an actor: the backbones from Ray's object store.

    `place` is a list because Ray would load its content before the environment of torch is set.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import ray

    from extract.run import Extractor

    return Extractor(out, ray.get(place[0]), options)


class ExtractionActor:
    """In a process on some node: an Extractor that is handed group after group."""

    def start(self, load: Load, options: ExtractOptions, witness: Path) -> None:
        """Load what all groups need.

        Raises: StoreError if this node does not see the file that the driver wrote.
        """
        # Decode processes are spawned and would load Ray's main file, and with it all of Ray.
        sys.modules["__main__"].__file__ = None
        if not witness.exists():
            raise StoreError(
                f"{witness.parent}: node {os.uname().nodename} does not see what the driver wrote "
                "there; give an --out on a file system that all nodes share"
            )
        self._extractor = load(options)
        self._outcomes: deque[Outcome] = deque()

    def add(self, tasks: Sequence[DecodeTask]) -> list[Outcome]:
        return self._report(self._extractor.add(tasks))

    def finish(self) -> list[Outcome]:
        return self._report(self._extractor.finish())

    def stop(self) -> list[Outcome]:
        """Called while `add` works in another thread."""
        return self._report(self._extractor.stop())

    def _report(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        self._outcomes.extend(outcomes)
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._outcomes.popleft())
        return taken


@dataclass(frozen=True)
class Stores:
    """The stores that a run fills: names of folders below `out`."""

    out: Path
    names: tuple[str, ...]

    @contextmanager
    def witness(self) -> Iterator[Path]:
        """A file by which an actor sees that it has the same `out` as we have."""
        path = self.out / f".ray-{secrets.token_hex(8)}"
        try:
            path.touch()
        except OSError as error:
            raise StoreError(f"{self.out}: not writable ({error.strerror})") from error
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def work_through(
    ray: Any,
    tasks: Sequence[DecodeTask],
    stores: Stores,
    options: ExtractOptions,
    ledger: Ledger,
    *,
    load: Load,
) -> bool:
    """Have the actors of a cluster do all tasks.

    Args:
        load: makes the extractor of an actor, there.

    Returns: whether all was done; False: interrupted, after a commit of what was complete.
    Raises: StoreError if a store cannot be written; JobError if no actor can be started.
    """
    with stores.witness() as witness:
        crew = _Crew(ray, stores, options, ledger, load, witness)
        try:
            crew.work(tasks)
        except KeyboardInterrupt:
            crew.stop()
            return False
        finally:
            crew.dismiss()
    return True


@dataclass
class _Member:
    """The driver's side of an actor."""

    actor: Any
    share: Share
    ready: bool = False
    calls: int = 0  # in flight
    suspects: bool = False  # whether it has videos in hand with which another actor died
    tasks: dict[str, DecodeTask] = field(default_factory=dict)  # in hand: not known to be on disk
    computed: dict[str, Outcome] = field(default_factory=dict)  # of these, what waits for a commit


class _Crew:
    """The actors of one extraction, and who has which videos in hand."""

    def __init__(
        self,
        ray: Any,
        stores: Stores,
        options: ExtractOptions,
        ledger: Ledger,
        load: Load,
        witness: Path,
    ) -> None:
        self._ray, self._stores, self._ledger = ray, stores, ledger
        self._options, self._load, self._witness = options, load, witness
        self._waiting: deque[DecodeTask] = deque()
        self._suspects: deque[list[DecodeTask]] = deque()
        self._members: list[_Member] = []
        self._calls: dict[Any, _Member] = {}
        self._failed_starts = 0
        self._actor_class = ray.remote(concurrency_groups={"stop": 1})(ExtractionActor)

    def work(self, tasks: Sequence[DecodeTask]) -> None:
        """Until every video is committed or given up.

        Raises: StoreError if a store cannot be written; JobError if no actor can be started.
        """
        self._waiting.extend(tasks)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        found = shares(nodes, use_gpus=not self._options.device.startswith("cpu"))
        if not found:
            raise JobError("the Ray cluster has no CPU core to work on")
        for share in found[: len(tasks)]:
            self._hire(share)
        while self._waiting or self._suspects or any(m.tasks for m in self._members):
            for member in self._members:
                self._employ(member)
            done, _ = self._ray.wait(list(self._calls), num_returns=1)
            for call in done:
                self._take(call)

    def stop(self) -> None:
        """Let every actor commit what is complete."""
        calls = {
            m.actor.stop.options(concurrency_group="stop").remote(): m
            for m in self._members
            if m.ready
        }
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=STOP_SECONDS)
        for call in done:
            with suppress(self._ray.exceptions.RayError):
                self._note(calls[call], self._ray.get(call))

    def dismiss(self) -> None:
        for member in self._members:
            self._ray.kill(member.actor)

    def _hire(self, share: Share) -> None:
        actor = self._actor_class.options(num_cpus=share.cpus, num_gpus=share.gpus).remote()
        member = _Member(actor, share)
        options = replace(
            self._options,
            device="cuda" if share.gpus else "cpu",
            workers=self._options.workers or max(1, share.cpus - 1),
        )
        self._members.append(member)
        self._calls[actor.start.remote(self._load, options, self._witness)] = member

    def _employ(self, member: _Member) -> None:
        """Give an actor work, if there is some for it.

        Videos with which an actor died come last, to an actor that has nothing else in hand.
        """
        if not member.ready:
            return
        while self._waiting and member.calls < CALLS_AHEAD:
            self._hand(member, self._next_group())
        if member.calls:
            return
        if not member.tasks and self._suspects:
            member.suspects = True
            self._hand(member, self._suspects.popleft())
        if member.tasks:
            self._call(member, member.actor.finish)

    def _next_group(self) -> list[DecodeTask]:
        size = len(self._waiting) // (4 * len(self._members))
        count = min(max(1, size), GROUP_VIDEOS)
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _hand(self, member: _Member, group: list[DecodeTask]) -> None:
        member.tasks |= {task.video_id: task for task in group}
        self._call(member, member.actor.add, group)

    def _call(self, member: _Member, method: Any, *arguments: Any) -> None:
        self._calls[method.remote(*arguments)] = member
        member.calls += 1

    def _take(self, call: Any) -> None:
        """What a call has brought; a call that died with its actor is not there any more."""
        member = self._calls.pop(call, None)
        if member is None:
            return
        try:
            outcomes = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StoreError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            self._lose(member, str(error).splitlines()[0])
            return
        if member.ready:
            member.calls -= 1
            self._note(member, outcomes)
        else:
            member.ready, self._failed_starts = True, 0

    def _note(self, member: _Member, outcomes: Iterable[Outcome]) -> None:
        from extract.run import Extracted, GivenUp

        for outcome in outcomes:
            if isinstance(outcome, Extracted):
                member.computed[outcome.video_id] = outcome
            elif isinstance(outcome, GivenUp):
                member.tasks.pop(outcome.video_id, None)
                self._ledger.take(outcome)
            else:
                for video_id in outcome.video_ids:
                    member.tasks.pop(video_id, None)
                    if video_id in member.computed:
                        self._ledger.take(member.computed.pop(video_id))
        member.suspects = member.suspects and bool(member.tasks)

    def _lose(self, member: _Member, why: str) -> None:
        """Replace an actor that died; hand out again what it had in hand.

        The videos come again in two halves, and so on down to a single video: if its actor dies
        once more, that video is given up.

        Raises: JobError if actors die before they are ready, again and again.
        """
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)  # it may be out of reach alone: no two may have a video
        self._members.remove(member)
        self._calls = {call: other for call, other in self._calls.items() if other is not member}
        self._failed_starts += not member.ready
        if self._failed_starts > FAILED_STARTS:
            raise JobError(f"no worker can be started on the Ray cluster: {why}")
        lost = self._lost_tasks(member)
        tqdm.write(f"a worker died ({why}); {len(lost)} videos are handed out again", sys.stderr)
        if len(lost) == 1 and member.suspects:
            self._give_up(lost[0])
        else:
            self._suspects.extend(half for half in (lost[::2], lost[1::2]) if half)
        self._hire(member.share)

    def _lost_tasks(self, member: _Member) -> list[DecodeTask]:
        """What the actor had in hand and some store still lacks; the rest is counted as done."""
        from extract.run import Extracted, ExtractSummary, missing_tasks

        videos = [Video(task.video_id, task.path) for task in member.tasks.values()]
        lost = missing_tasks(videos, self._stores.out, self._stores.names, ExtractSummary())
        done = member.tasks.keys() - {task.video_id for task in lost}
        if done:
            store = FeatureStore(self._stores.out / self._stores.names[0])
            for video_id in sorted(done):
                item = store[video_id]
                rows = len(item.features)
                self._ledger.take(Extracted(video_id, rows, item.duration_seconds))
        return lost

    def _give_up(self, task: DecodeTask) -> None:
        from extract.run import GivenUp

        error = f"{task.path}: the process that worked on it died, again when it had this one alone"
        self._ledger.take(GivenUp(task.video_id, task.path, "worker", error, 2))
