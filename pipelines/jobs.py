"""A manifest as a list of jobs, and the stamps that tell which of them are done.

A job is one command line of ours. Its digest is a hash over that command and the marks of what it
reads: files, and the digests of the jobs before it. When a job ends well its stamp,
OUT/jobs/NAME.json, is written with the digest; a job is done while its digest stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipelines.manifest import Backbone, Manifest, Run, SyntheticClips

COMMANDS = {
    "extract": "liteeval-extract",
    "liteeval_train": "liteeval-train",
    "pipelines": "liteeval",
}
SMALL_BYTES = 1 << 20  # files up to this size are known by content, larger ones by size and time


class JobError(Exception):
    """A job failed, or cannot be started; the message names it and what to do."""


@dataclass(frozen=True)
class Job:
    """One command line: `argv` says what, `where` how it is run (and changes no result)."""

    name: str
    argv: tuple[str, ...]  # package, then arguments: ("extract", "run", …)
    where: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()  # files, or folders of files
    outputs: tuple[Path, ...] = ()
    replaces: tuple[Path, ...] = ()  # moved aside when the job starts over, as they fit no more
    stdout: Path | None = None  # what the command prints is kept here

    def __str__(self) -> str:
        """The line that a user would type."""
        return shlex.join([COMMANDS[self.argv[0]], *self.argv[1:], *self.where])


@dataclass(frozen=True)
class Layout:
    """Where things are in an output folder."""

    out: Path

    @property
    def clips(self) -> Path:
        return self.out / "clips"

    @property
    def features(self) -> Path:
        return self.out / "features"

    @property
    def table(self) -> Path:
        return self.out / "table.txt"

    @property
    def filmstrip(self) -> Path:
        return self.out / "filmstrip.png"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.yaml"

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    def stamp(self, job: str) -> Path:
        return self.out / "jobs" / f"{job}.json"


def plan_jobs(
    manifest: Manifest, layout: Layout, *, device: str = "auto", workers: int | None = None
) -> list[Job]:
    """The manifest's jobs, each after those it depends on."""
    jobs: list[Job] = []
    videos, labels = manifest.data.videos, manifest.data.labels
    if manifest.data.synthetic:
        videos, labels = layout.clips, layout.clips / "labels.csv"
        jobs.append(_clips_job(manifest.data.synthetic, layout))
    assert videos is not None, "Data has one source"
    assert labels is not None, "Data has one source"
    jobs.append(_extract_job(manifest, layout, videos, labels, device=device, workers=workers))
    for run in manifest.runs:
        jobs.append(_fit_job(run, manifest, layout, labels, device=device))
        jobs.append(_evaluate_job(run, manifest, layout, device=device))
    jobs.append(_compare_job(manifest, layout))
    if manifest.report.filmstrip:
        jobs.append(_filmstrip_job(manifest.report.filmstrip, manifest, layout, videos))
    return jobs


def _clips_job(clips: SyntheticClips, layout: Layout) -> Job:
    shortest, longest = clips.seconds
    return Job(
        name="clips",
        argv=(
            *("pipelines", "clips", str(layout.clips), "--videos", str(clips.videos)),
            *("--seconds", f"{shortest:g}", f"{longest:g}", "--seed", str(clips.seed)),
        ),
        outputs=(layout.clips / "labels.csv",),
        replaces=(layout.clips, layout.features),
    )


def _extract_job(
    manifest: Manifest,
    layout: Layout,
    videos: Path,
    labels: Path,
    *,
    device: str,
    workers: int | None,
) -> Job:
    backbones = (manifest.backbones.coarse, manifest.backbones.fine)
    options = [f"--backbone={backbone.option}" for backbone in backbones]
    options += [
        f"--weights={backbone.option}={backbone.weights}"
        for backbone in backbones
        if backbone.weights != "published"
    ]
    return Job(
        name="extract",
        argv=(
            *("extract", "run", str(videos), "--out", str(layout.features), *options),
            *("--fps", f"{manifest.extraction.fps:g}", "--labels", str(labels)),
        ),
        where=(
            *("--device", device),
            *(() if workers is None else ("--workers", str(workers))),
        ),
        depends_on=("clips",) if manifest.data.synthetic else (),
        inputs=(videos, labels, *(b.weights for b in backbones if isinstance(b.weights, Path))),
        outputs=tuple(_store(layout, backbone) for backbone in backbones),
    )


def _store(layout: Layout, backbone: Backbone) -> Path:
    return layout.features / backbone.store_name


def _fit_job(run: Run, manifest: Manifest, layout: Layout, labels: Path, *, device: str) -> Job:
    settings = {"seed": run.seed, **run.set}
    coarse, fine = manifest.backbones.coarse, manifest.backbones.fine
    return Job(
        name=f"fit-{run.name}",
        argv=(
            *("liteeval_train", "fit", "--coarse", str(_store(layout, coarse))),
            *("--fine", str(_store(layout, fine)), "--labels", str(labels)),
            *("--out", str(layout.run(run.name)), "--method", run.method),
            *(("--preset", run.preset) if run.preset else ()),
            *(f"--set={key}={_option_text(value)}" for key, value in settings.items()),
        ),
        where=("--resume", "--ignore-unlabelled", "--device", device),
        depends_on=("extract",),
        inputs=(labels,),
        outputs=(layout.run(run.name) / "best.safetensors",),
        replaces=(layout.run(run.name),),
    )


def _option_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _evaluate_job(run: Run, manifest: Manifest, layout: Layout, *, device: str) -> Job:
    split = manifest.evaluation.split
    return Job(
        name=f"evaluate-{run.name}",
        argv=("liteeval_train", "evaluate", str(layout.run(run.name)), "--split", split),
        where=("--device", device),
        depends_on=(f"fit-{run.name}",),
        outputs=(layout.run(run.name) / f"evaluate_{split}.json",),
    )


def _compare_job(manifest: Manifest, layout: Layout) -> Job:
    runs = [str(layout.run(run.name)) for run in manifest.runs]
    return Job(
        name="compare",
        argv=("liteeval_train", "compare", *runs, "--split", manifest.evaluation.split),
        depends_on=tuple(f"evaluate-{run.name}" for run in manifest.runs),
        outputs=(layout.table,),
        stdout=layout.table,
    )


def _filmstrip_job(run: str, manifest: Manifest, layout: Layout, videos: Path) -> Job:
    return Job(
        name="filmstrip",
        argv=(
            *("pipelines", "filmstrip", str(layout.run(run)), "--videos", str(videos)),
            *("--out", str(layout.filmstrip), "--split", manifest.evaluation.split),
            *("--count", str(manifest.report.filmstrip_videos)),
        ),
        depends_on=(f"evaluate-{run}",),
        outputs=(layout.filmstrip,),
    )


@dataclass(frozen=True)
class Stamp:
    """What is known of a job's last start: its digest, and how it ended."""

    digest: str
    exit_code: int | None  # None: started, not ended
    seconds: float = 0.0
    command: str = ""
    utc: str = ""

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        """None if there is none, or none that can be understood: then the job runs again."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is the old or the new one, whenever we are killed.

    Raises: JobError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise JobError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from error


def digest(job: Job, done: Mapping[str, str]) -> str:
    """Hash over the command and the marks of all that it reads.

    Args:
        done: digests of the jobs that it depends on, by name.
    """
    content = {
        "argv": job.argv,
        "jobs": {name: done[name] for name in job.depends_on},
        "inputs": {str(path): _mark(path) for path in job.inputs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mark(path: Path) -> str:
    """A text that changes when the file, or a file in the folder, does."""
    if path.is_dir():
        files = sorted(_files_under(path))
        return hashlib.sha256("\n".join(f"{f}\t{_mark(f)}" for f in files).encode()).hexdigest()
    try:
        status = path.stat()
        if status.st_size <= SMALL_BYTES and path.suffix in {".csv", ".json", ".yaml"}:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns"


def _files_under(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def is_done(job: Job, layout: Layout, wanted: str) -> bool:
    stamp = Stamp.read(layout.stamp(job.name))
    return (
        stamp is not None
        and stamp.digest == wanted
        and stamp.exit_code in (0, 3)
        and all(path.exists() for path in job.outputs)
    )


def set_aside(job: Job, layout: Layout, wanted: str) -> list[Path]:
    """Move what an earlier, different job of this name left to OUT/old; returns where to."""
    stamp = Stamp.read(layout.stamp(job.name))
    if stamp is None or stamp.digest == wanted:
        return []
    folder = layout.out / "old" / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    moved = []
    for path in filter(Path.exists, job.replaces):
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
        moved.append(folder / path.name)
    return moved
