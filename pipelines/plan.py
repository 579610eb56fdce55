"""What an experiment would do, and how far it is: nothing here writes, and nothing is locked."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from extract.labels import LabelError, read_labels
from extract.videos import find_videos
from pipelines.datasets.listing import Source
from pipelines.importing import examine
from pipelines.jobs import Job, Layout
from pipelines.manifest import Backbone, Finetune, Manifest
from pipelines.stamps import SOME_VIDEOS_FAILED, Stamp, digest, is_done

PROBED_VIDEOS = 5
VALIDATION_ROWS = 25  # of a video, at most, while finetuning
ASSUMED_GFLOPS_PER_SECOND = 1000.0
# GFLOPs per row at a size in px, from the table of backbones; others are not estimated.
GFLOPS_AT_PX = {
    "mobilenet_v2": (0.3006, 224),
    "resnet101": (7.8014, 224),
    "dpn107": (18.2988, 224),
    "slowfast_r50": (50.3086, 224),
}

State = Literal["done", "running", "interrupted", "failed", "stale", "to do"]


@dataclass(frozen=True)
class JobState:
    """One job of the graph and how it stands."""

    name: str
    state: State
    why: str
    needs: tuple[str, ...]
    command: str
    seconds: float | None  # that its last complete run took
    started_utc: str | None = None
    some_videos_failed: bool = False


@dataclass(frozen=True)
class Estimate:
    """How much there is to compute. From a few probed videos and a table: an estimate."""

    videos: int
    probed: int  # 0 for clips that are yet to be rendered
    rows: int | None  # of all videos, per backbone; None where no video could be probed
    gflops: float | None  # of the jobs to do; None where a backbone's cost is not in the table

    def network_hours(self, gflops_per_second: float) -> float | None:
        """Hours of the backbones alone, without decoding, at an assumed rate."""
        return None if self.gflops is None else self.gflops / gflops_per_second / 3600


def job_states(jobs: Sequence[Job], layout: Layout) -> list[JobState]:
    """How each job stands: done, to do, or stale as its command or what it reads has changed."""
    busy = is_locked(layout.out)
    states: dict[str, JobState] = {}
    for job in jobs:
        wanted = digest(job, layout)
        stamp = Stamp.read(layout.stamp(job.name))
        waits = [name for name in job.depends_on if states[name].state != "done"]
        state, why = _judge(job, layout, wanted, stamp, waits, busy=busy)
        states[job.name] = JobState(
            name=job.name,
            state=state,
            why=why,
            needs=job.depends_on,
            command=str(job),
            seconds=stamp.seconds if stamp and stamp.exit_code is not None else None,
            started_utc=stamp.utc if stamp else None,
            some_videos_failed=bool(stamp and stamp.exit_code == SOME_VIDEOS_FAILED),
        )
    return list(states.values())


def _judge(
    job: Job, layout: Layout, wanted: str, stamp: Stamp | None, waits: list[str], *, busy: bool
) -> tuple[State, str]:
    if stamp is None:
        return "to do", f"after {waits[0]}" if waits else ""
    if stamp.exit_code is None and stamp.digest == wanted:
        return ("running", "") if busy else ("interrupted", "goes on where it stopped")
    if stamp.exit_code is not None and not stamp.ended_well and stamp.digest == wanted:
        return "failed", f"exit code {stamp.exit_code}; the next run tries it again"
    if waits:
        return "stale", f"after {waits[0]}"
    if is_done(job, layout, wanted):
        return "done", ""
    if stamp.digest != wanted:
        return "stale", "its command or something that it reads has changed"
    return "stale", "what it made is gone"


def is_locked(folder: Path) -> bool:
    """Whether a run, or a job that outlived one, holds the output folder now."""
    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError):
        return False
    except BlockingIOError:
        return True
    return False


def estimate_work(manifest: Manifest, layout: Layout, states: Sequence[JobState] = ()) -> Estimate:
    """Videos × rows × GFLOPs of the backbones, in what is not done of finetuning and extraction.

    Args:
        states: of the jobs; by default nothing is done.

    Raises: DataSetError if an importer cannot read its data set; LabelError or VideoListError if
        labels or videos cannot be read.
    """
    from extract.sampling import row_count  # both load numpy
    from pipelines.clips import plan_clips

    clips, fps = manifest.data.synthetic, manifest.extraction.fps
    if clips:
        splits = Counter(clip.split for clip in plan_clips(clips.videos, seed=clips.seed))
        durations, probed = [sum(clips.seconds) / 2], 0
    else:
        paths, splits = _labelled_videos(manifest)
        step = max(1, len(paths) // PROBED_VIDEOS)
        found = [_duration_seconds(path) for path in paths[::step][:PROBED_VIDEOS]]
        durations = [seconds for seconds in found if seconds is not None]
        probed = len(durations)
    videos = splits.total()
    if not durations:
        return Estimate(videos, 0, None, None)
    rows = sum(row_count(seconds, fps) for seconds in durations) / len(durations)
    state_of = {state.name: state.state for state in states}
    gflops = 0.0
    for role, backbone in manifest.backbones.by_role.items():
        cost = gflops_per_row(backbone)
        if cost is None:
            return Estimate(videos, probed, round(videos * rows), None)
        if state_of.get("extract") != "done":
            goes_on = state_of.get("extract") in ("running", "interrupted", "failed")
            held = _videos_in_store(layout, backbone) if goes_on else 0
            gflops += cost * rows * max(0, videos - held)
        if backbone.finetune and state_of.get(f"finetune-{role}") != "done":
            gflops += cost * _finetuned_rows(backbone.finetune, splits, rows)
    return Estimate(videos, probed, round(videos * rows), gflops)


def _finetuned_rows(finetune: Finetune, splits: Counter[str], rows: float) -> float:
    """How many rows go through a network that is finetuned; one that learns counts as three."""
    seen = min(rows, VALIDATION_ROWS)
    frozen, learnt = splits["train"] * seen, splits["train"] * finetune.segments * finetune.epochs
    return frozen + 3 * learnt + splits["val"] * seen * (finetune.epochs + 1)


def gflops_per_row(backbone: Backbone) -> float | None:
    """From the table, scaled by the area of the input; None for a backbone not in it."""
    if backbone.name not in GFLOPS_AT_PX:
        return None
    gflops, size_px = GFLOPS_AT_PX[backbone.name]
    return gflops * (backbone.size / size_px) ** 2


def _labelled_videos(manifest: Manifest) -> tuple[list[Path], Counter[str]]:
    """The files that will be extracted, and how many there are of each split."""
    data = manifest.data
    assert data.videos is not None, "only rendered clips come without videos"
    if data.importer:
        source = Source(data.videos, data.annotations, data.classes, data.fold)
        imported = examine(data.importer, source, val_share=data.val_share)
        return list(imported.videos), Counter(imported.report.splits)
    assert data.labels is not None, "Data has one source"
    split_of = read_labels(data.labels).split_of
    found = [video for video in find_videos([data.videos]) if video.id in split_of]
    return [video.path for video in found], Counter(split_of[video.id] for video in found)


def _duration_seconds(path: Path) -> float | None:
    """None if the file cannot be probed: extraction will tell why."""
    from extract.decode import DecodeError, probe

    try:
        return probe(path).timeline.duration_seconds
    except DecodeError:
        return None


def progress(name: str, manifest: Manifest, layout: Layout) -> str:
    """How far a running or interrupted job is, from what it has written; empty if not told."""
    if name == "extract":
        done = {b.option: _videos_in_store(layout, b) for b in manifest.backbones.by_role.values()}
        total = _labelled_count(layout, manifest)
        of_all = "" if total is None else f" of {total:,}"
        return "; ".join(f"{option}: {count:,}{of_all} videos" for option, count in done.items())
    if name.startswith("fit-"):
        last = _last_line(layout.run(name.removeprefix("fit-")) / "metrics.jsonl")
        return f"epoch {last['epoch']}" if "epoch" in last else ""
    return ""


def _videos_in_store(layout: Layout, backbone: Backbone) -> int:
    from extract.store import FeatureStore, StoreError

    try:
        return len(FeatureStore(layout.features / backbone.store_name))
    except StoreError:
        return 0


def _labelled_count(layout: Layout, manifest: Manifest) -> int | None:
    made = layout.clips if manifest.data.synthetic else layout.data
    try:
        return len(read_labels(manifest.data.labels or made / "labels.csv").split_of)
    except LabelError:
        return None


def _last_line(path: Path) -> dict[str, Any]:
    try:
        last = path.read_text(encoding="utf-8").splitlines()[-1]
        line = json.loads(last)
    except (OSError, IndexError, ValueError):
        return {}
    return line if isinstance(line, dict) else {}


def format_states(states: Sequence[JobState], *, notes: dict[str, str] | None = None) -> str:
    """One line a job: how it stands, its name, why, and the time it last took."""
    width = max(len(state.name) for state in states)
    lines = []
    for state in states:
        took = f"took {state.seconds:,.0f} s" if state.seconds is not None else ""
        failed = "some videos failed" if state.some_videos_failed else ""
        words = (state.why, (notes or {}).get(state.name, ""), took, failed)
        said = "; ".join(word for word in words if word)
        lines.append(f"{state.state:12}{state.name:{width}}  {said}".rstrip())
    return "\n".join(lines)


def format_estimate(estimate: Estimate, gflops_per_second: float) -> str:
    """The estimate, and what it rests on."""
    if estimate.rows is None:
        return f"{estimate.videos:,} videos; no estimate of rows: none of those tried can be probed"
    of = f"from {estimate.probed} of {estimate.videos:,} videos"
    if estimate.probed == 0:
        of = f"for {estimate.videos:,} clips of mean length"
    base = f"Estimate {of}: {estimate.rows:,} rows per backbone"
    hours = estimate.network_hours(gflops_per_second)
    if hours is None or estimate.gflops is None:
        return f"{base}; a backbone's cost is not in the table"
    if estimate.gflops == 0:
        return f"{base}, all extracted"
    return (
        f"{base}; to do: {estimate.gflops:,.0f} GFLOPs (1 multiply-add = 1 FLOP), {hours:,.2g} "
        f"hours of the backbones at an assumed {gflops_per_second:,.0f} GFLOPs per second; "
        "decoding and the training of runs come on top"
    )
