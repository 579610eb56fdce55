"""A manifest as a list of jobs: command lines of ours, what they read and what they make.

pipelines/stamps.py tells which of them are done.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.manifest import Backbone, Data, Manifest, Run, SyntheticClips

COMMANDS = {
    "extract": "liteeval-extract",
    "liteeval_train": "liteeval-train",
    "pipelines": "liteeval",
}
BY_BUDGET = frozenset({"liteeval", "liteeval-rl", "lstm", "lstm+cf", "uniform"})


class JobError(Exception):
    """A job failed, or cannot be started; the message names it and what to do."""


@dataclass(frozen=True)
class Job:
    """One command line: `argv` says what, `where` how it is run (and changes no result)."""

    name: str
    argv: tuple[str, ...]  # package, then arguments: ("extract", "run", …)
    where: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()  # the jobs that make its inputs
    inputs: tuple[Path, ...] = ()  # all that it reads, apart from
    videos: Path | None = None  # a folder or list of videos, each of which it reads
    outputs: tuple[Path, ...] = ()
    replaces: tuple[Path, ...] = ()  # what another job of this name left: moved aside first
    stdout: Path | None = None  # what the command prints is kept here
    gpus: int | None = 1  # that it runs on, where there are GPUs; None: all

    def __str__(self) -> str:
        """The line that a user would type."""
        if self._torchrun:
            return shlex.join(["torchrun", *self.command[2:]])
        return shlex.join([COMMANDS[self.argv[0]], *self.argv[1:], *self.where])

    @property
    def command(self) -> list[str]:
        """The same for Python: what follows `python`."""
        return ["-m", *self._torchrun, *self.argv, *self.where]

    @property
    def _torchrun(self) -> tuple[str, ...]:
        """A process for each GPU, if there is more than one."""
        if self.gpus is None or self.gpus == 1:
            return ()
        launch = ("pipelines.engines.torchrun", "--standalone", f"--nproc-per-node={self.gpus}")
        return (*launch, "-m")


@dataclass(frozen=True)
class Layout:
    """Where things are in an output folder."""

    out: Path

    @property
    def clips(self) -> Path:
        return self.out / "clips"

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def features(self) -> Path:
        return self.out / "features"

    def finetuned(self, role: str) -> Path:
        return self.out / "finetune" / role / "finetuned.safetensors"

    @property
    def table(self) -> Path:
        return self.out / "table.txt"

    def table_of_split(self, split: str) -> Path:
        return self.out / f"table_{split}.txt"

    def table_of_runs(self, name: str) -> Path:
        return self.out / "tables" / f"{name}.txt"

    def budgets(self, run: str) -> Path:
        return self.out / "budgets" / f"{run}.json"

    @property
    def seconds(self) -> Path:
        return self.out / "seconds.json"

    @property
    def figures(self) -> Path:
        return self.out / "figures"

    @property
    def filmstrip(self) -> Path:
        return self.out / "filmstrip.png"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.yaml"

    @property
    def old(self) -> Path:
        """What a job had made that has started over since."""
        return self.out / "old"

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    def model(self, run: str) -> Path:
        return self.run(run) / "best.safetensors"

    def evaluation(self, run: str, split: str) -> Path:
        return self.run(run) / f"evaluate_{split}.json"

    def stamp(self, job: str) -> Path:
        return self.out / "jobs" / f"{job}.json"

    def messages(self, job: str) -> Path:
        """What a job says that does not run alone."""
        return self.out / "jobs" / f"{job}.log"


@dataclass(frozen=True)
class _Inputs:
    """What extraction and training read."""

    videos: Path  # a folder or list
    labels: Path
    files: Path  # the folder or list of the video files themselves

    @property
    def tables(self) -> tuple[Path, ...]:
        """Those that are files by themselves."""
        return (self.labels,) if self.videos == self.files else (self.videos, self.labels)


def plan_jobs(
    manifest: Manifest,
    layout: Layout,
    *,
    device: str = "auto",
    workers: int | None = None,
    engine: tuple[str, ...] = (),
) -> list[Job]:
    """The manifest's jobs, each after those that make what it reads.

    Args:
        engine: options of `liteeval extract` that say who extracts.
    """
    jobs, inputs = _data_jobs(manifest.data, layout)
    jobs += [
        _finetune_job(role, backbone, manifest, layout, inputs, device=device, workers=workers)
        for role, backbone in manifest.backbones.by_role.items()
        if backbone.finetune
    ]
    extract = _extract_job(manifest, layout, inputs, device=device, workers=workers, engine=engine)
    jobs.append(extract)
    for run in manifest.all_runs:
        jobs.append(_fit_job(run, manifest, layout, inputs.labels, device=device))
        features = jobs[-1].inputs
        jobs += [
            _evaluate_job(run, layout, split, features, device=device)
            for split in manifest.evaluation.splits
        ]
        if manifest.evaluation.budgets and run.method in BY_BUDGET:
            jobs.append(_budgets_job(run, manifest, layout, features, device=device))
    jobs += _report_jobs(manifest, layout, inputs.videos, device=device)
    return _in_order([*jobs, _page_job(layout, jobs)])


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, each with the names of those that make its inputs."""
    maker = {path: job.name for job in jobs for path in job.outputs}
    return [
        replace(job, depends_on=tuple(dict.fromkeys(maker[p] for p in job.inputs if p in maker)))
        for job in jobs
    ]


def _report_jobs(manifest: Manifest, layout: Layout, videos: Path, *, device: str) -> list[Job]:
    every, report = [run.name for run in manifest.all_runs], manifest.report
    split, *others = manifest.evaluation.splits
    jobs = [_table_job("table", every, split, layout, layout.table)]
    jobs += [
        _table_job(f"table-{other}", every, other, layout, layout.table_of_split(other))
        for other in others
    ]
    for name, patterns in report.tables.items():
        path = layout.table_of_runs(name)
        jobs.append(_table_job(f"tables-{name}", manifest.runs_like(patterns), split, layout, path))
    if report.figures:
        runs = manifest.runs_like(report.figures)
        jobs.append(_figures_job(runs, split, layout, device=device))
    if report.seconds:
        runs = manifest.runs_like(report.seconds)
        jobs.append(_seconds_job(runs, manifest, layout, videos, device=device))
    if report.filmstrip:
        jobs.append(_filmstrip_job(report.filmstrip, manifest, layout, videos))
    return jobs


def _data_jobs(data: Data, layout: Layout) -> tuple[list[Job], _Inputs]:
    """The job that makes or finds the videos, if there is one, and what the next ones read."""
    if data.synthetic:
        clips = layout.clips
        inputs = _Inputs(clips, clips / "labels.csv", files=clips)
        return [_clips_job(data.synthetic, layout)], inputs
    assert data.videos is not None, "Data has one source"
    if data.importer:
        videos, labels = layout.data / "videos.csv", layout.data / "labels.csv"
        inputs = _Inputs(videos, labels, files=data.videos)
        return [_import_job(data, layout)], inputs
    assert data.labels is not None, "Data has one source"
    return [], _Inputs(data.videos, data.labels, files=data.videos)


def _import_job(data: Data, layout: Layout) -> Job:
    files = (*data.annotations, *((data.classes,) if data.classes else ()))
    return Job(
        name="import",
        argv=(
            *("pipelines", "import", str(data.importer), "--videos", str(data.videos)),
            *(f"--annotations={path}" for path in data.annotations),
            *((f"--classes={data.classes}",) if data.classes else ()),
            *("--fold", str(data.fold), "--val-share", f"{data.val_share:g}"),
            *("--out", str(layout.data)),
        ),
        inputs=files,
        videos=data.videos,
        outputs=(layout.data / "labels.csv", layout.data / "videos.csv"),
    )


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


def _finetune_job(
    role: str,
    backbone: Backbone,
    manifest: Manifest,
    layout: Layout,
    inputs: _Inputs,
    *,
    device: str,
    workers: int | None,
) -> Job:
    assert backbone.finetune is not None, "only finetuned backbones have this job"
    checkpoint, weights = layout.finetuned(role), backbone.weights
    return Job(
        name=f"finetune-{role}",
        argv=(
            *("extract", "finetune", str(inputs.videos), "--labels", str(inputs.labels)),
            *("--backbone", backbone.option, "--out", str(checkpoint.parent)),
            *(() if weights == "published" else (f"--weights={backbone.option}={weights}",)),
            *(*manifest.extraction.decoding, *backbone.finetune.options),
        ),
        where=(
            *("--resume", "--device", device),
            *(() if workers is None else ("--workers", str(workers))),
        ),
        inputs=(*inputs.tables, *((weights,) if isinstance(weights, Path) else ())),
        videos=inputs.files,
        outputs=(checkpoint,),
        replaces=(checkpoint.parent,),
    )


def _extract_job(
    manifest: Manifest,
    layout: Layout,
    inputs: _Inputs,
    *,
    device: str,
    workers: int | None,
    engine: tuple[str, ...],
) -> Job:
    backbones = tuple(manifest.backbones.by_role.values())
    options = [f"--backbone={backbone.option}" for backbone in backbones]
    weights = _weights(manifest, layout)
    options += _weights_options(weights, manifest)
    files = [path for path in weights.values() if isinstance(path, Path)]
    return Job(
        name="extract",
        argv=(
            *("pipelines", "extract", str(inputs.videos), "--out", str(layout.features), *options),
            *(*manifest.extraction.decoding, "--precision", manifest.extraction.precision),
            *("--labels", str(inputs.labels)),
        ),
        where=(
            *engine,
            *("--aside", str(layout.old), "--device", device),
            *(() if workers is None else ("--workers", str(workers))),
        ),
        inputs=(*inputs.tables, *files),
        videos=inputs.files,
        outputs=tuple(_store(layout, backbone) for backbone in backbones),
        gpus=None,
    )


def _weights(manifest: Manifest, layout: Layout) -> dict[str, Path | str]:
    """By role: published, random, a file, or what finetuning makes of them."""
    return {
        role: layout.finetuned(role) if backbone.finetune else backbone.weights
        for role, backbone in manifest.backbones.by_role.items()
    }


def _weights_options(weights: Mapping[str, Path | str], manifest: Manifest) -> list[str]:
    named = {manifest.backbones.by_role[role].option: value for role, value in weights.items()}
    return [f"--weights={name}={value}" for name, value in named.items() if value != "published"]


def _store(layout: Layout, backbone: Backbone) -> Path:
    return layout.features / backbone.store_name


def _fit_job(run: Run, manifest: Manifest, layout: Layout, labels: Path, *, device: str) -> Job:
    coarse, fine = manifest.backbones.coarse, manifest.backbones.by_role[run.fine]
    stores = (_store(layout, coarse), _store(layout, fine))
    head = layout.finetuned(run.fine)
    return Job(
        name=f"fit-{run.name}",
        argv=(
            *("liteeval_train", "fit", "--coarse", str(stores[0]), "--fine", str(stores[1])),
            *("--labels", str(labels)),
            *("--out", str(layout.run(run.name)), "--method", run.method),
            *(("--preset", run.preset) if run.preset else ()),
            *(f"--set={setting}" for setting in run.settings),
            *((f"--set=head={head}",) if run.own_head else ()),
        ),
        where=("--resume", "--ignore-unlabelled", "--device", device),
        inputs=(*stores, labels, *((head,) if run.own_head else ())),
        outputs=(layout.model(run.name),),
        replaces=(layout.run(run.name),),
        gpus=run.gpus,
    )


def _evaluate_job(
    run: Run, layout: Layout, split: str, features: tuple[Path, ...], *, device: str
) -> Job:
    return Job(
        name=f"evaluate-{split}-{run.name}",
        argv=("liteeval_train", "evaluate", str(layout.run(run.name)), "--split", split),
        where=("--device", device),
        inputs=(layout.model(run.name), *features),
        outputs=(layout.evaluation(run.name, split),),
    )


def _budgets_job(
    run: Run, manifest: Manifest, layout: Layout, features: tuple[Path, ...], *, device: str
) -> Job:
    budgets, split = str(manifest.evaluation.budgets), manifest.evaluation.split
    return Job(
        name=f"budgets-{run.name}",
        argv=(
            *("liteeval_train", "evaluate", str(layout.run(run.name)), "--split", split),
            *("--budgets", budgets, "--json"),
        ),
        where=("--device", device),
        inputs=(layout.model(run.name), *features),
        outputs=(layout.budgets(run.name),),
        stdout=layout.budgets(run.name),
    )


def _table_job(name: str, runs: list[str], split: str, layout: Layout, path: Path) -> Job:
    return Job(
        name=name,
        argv=("pipelines", "table", *(str(layout.run(run)) for run in runs), "--split", split),
        inputs=tuple(layout.evaluation(run, split) for run in runs),
        outputs=(path,),
        stdout=path,
    )


def _seconds_job(
    runs: list[str], manifest: Manifest, layout: Layout, videos: Path, *, device: str
) -> Job:
    """Nothing else of the experiment runs beside it."""
    fine = next(run.fine for run in manifest.all_runs if run.name == runs[0])
    weights = _weights(manifest, layout)
    return Job(
        name="seconds",
        argv=(
            *("pipelines", "time", *(str(layout.run(run)) for run in runs)),
            *("--videos", str(videos), "--count", str(manifest.report.seconds_videos)),
            *_weights_options({role: weights[role] for role in ("coarse", fine)}, manifest),
            "--json",
        ),
        where=("--device", device),
        inputs=tuple(layout.model(run) for run in runs),
        outputs=(layout.seconds,),
        stdout=layout.seconds,
        gpus=None,
    )


def _figures_job(runs: list[str], split: str, layout: Layout, *, device: str) -> Job:
    return Job(
        name="figures",
        argv=(
            *("liteeval_train", "figures", *(str(layout.run(run)) for run in runs)),
            *("--out", str(layout.figures), "--split", split),
        ),
        where=("--device", device),
        inputs=tuple(layout.evaluation(run, split) for run in runs),
        outputs=(layout.figures,),
    )


def _filmstrip_job(run: str, manifest: Manifest, layout: Layout, videos: Path) -> Job:
    return Job(
        name="filmstrip",
        argv=(
            *("pipelines", "filmstrip", str(layout.run(run)), "--videos", str(videos)),
            *("--out", str(layout.filmstrip), "--split", manifest.evaluation.split),
            *("--count", str(manifest.report.filmstrip_videos)),
        ),
        inputs=(layout.evaluation(run, manifest.evaluation.split),),
        outputs=(layout.filmstrip,),
    )


def _page_job(layout: Layout, before: Sequence[Job]) -> Job:
    return Job(
        name="report",
        argv=("pipelines", "report", str(layout.manifest), "--out", str(layout.report)),
        inputs=(layout.manifest, *(path for job in before for path in job.outputs)),
        outputs=(layout.report,),
    )


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


def select_jobs(jobs: Sequence[Job], patterns: Sequence[str]) -> frozenset[str]:
    """The names of the jobs that match a pattern, such as fit-* or table.

    Raises: JobError if a pattern matches no job.
    """
    names = [job.name for job in jobs]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise JobError(f"no job is called {pattern!r}; there are: {', '.join(names)}")
    return frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns))


def with_what_they_need(jobs: Sequence[Job], names: frozenset[str]) -> frozenset[str]:
    """These jobs and all that they depend on, near and far."""
    needed = set(names)
    for job in reversed(jobs):
        if job.name in needed:
            needed.update(job.depends_on)
    return frozenset(needed)
