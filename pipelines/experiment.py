"""One experiment: a manifest, its checks, its jobs, what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from extract.videos import VideoListError, find_videos
from liteeval_train.config import ConfigError, resolve_config
from pipelines.engines.local import ALL_JOBS, Choice, Outcome, lock, run_jobs
from pipelines.jobs import JobError, Layout, plan_jobs, write_text
from pipelines.manifest import Manifest, ManifestError, load_manifest


@dataclass(frozen=True)
class Done:
    """What an experiment left behind."""

    manifest: Manifest
    layout: Layout
    jobs: int
    outcome: Outcome

    @property
    def table(self) -> str:
        """The table of all runs; empty where --only left it out, as it may be of older runs."""
        if "table" not in self.outcome.done:
            return ""
        return self.layout.table.read_text(encoding="utf-8").rstrip()

    @property
    def notes(self) -> list[str]:
        """What a reader of the table has to know."""
        notes = []
        backbones = self.manifest.backbones.by_role.values()
        drawn = [backbone.option for backbone in backbones if backbone.weights == "random"]
        if drawn:
            notes.append(
                f"The weights of {' and '.join(drawn)} are random (seeded): costs are real, "
                "accuracies only show that the parts work together."
            )
        if self.outcome.with_failures:
            failures = self.layout.features / "failures.jsonl"
            notes.append(f"Some videos failed and are left out; {failures} says which and why.")
        return notes

    @property
    def files(self) -> list[tuple[str, Path]]:
        """The files to look at, each with a word for it."""
        files = [
            ("table", self.layout.table),
            ("tables", self.layout.out / "tables"),
            ("figures", self.layout.figures),
            ("filmstrip", self.layout.filmstrip),
            ("runs", self.layout.out / "runs"),
            ("features", self.layout.features),
            ("manifest", self.layout.manifest),
        ]
        return [(what, path) for what, path in files if path.exists()]


def run_experiment(
    path: Path,
    *,
    settings: Mapping[str, str],
    out: Path | None,
    device: str,
    workers: int | None,
    log: Callable[[str], None],
    choice: Choice = ALL_JOBS,
) -> Done:
    """Run the jobs of a manifest that are not done.

    Args:
        settings: the manifest's variables.
        out: the output folder; by default runs/NAME of the manifest.
        choice: which jobs.

    Raises: ManifestError if the manifest is wrong or names what is not there; JobError if a job
        fails; KeyboardInterrupt when interrupted, after the running job has saved its work.
    """
    manifest, layout = open_experiment(path, settings=settings, out=out)
    jobs = plan_jobs(manifest, layout, device=device, workers=workers)
    with lock(layout.out) as lock_file:
        write_text(layout.manifest, manifest.to_yaml())
        outcome = run_jobs(jobs, layout, lock_file=lock_file, log=log, choice=choice)
    return Done(manifest, layout, len(jobs), outcome)


def open_experiment(
    path: Path, *, settings: Mapping[str, str], out: Path | None
) -> tuple[Manifest, Layout]:
    """The manifest with its inputs checked, and where its outputs are.

    Raises: ManifestError and JobError as `run_experiment`.
    """
    manifest = load_manifest(path, settings=settings)
    require_inputs(path, manifest)
    require_configurations(path, manifest)
    return manifest, Layout((out or Path("runs", manifest.name)).absolute())


def require_configurations(path: Path, manifest: Manifest) -> None:
    """Raises: ManifestError if training would refuse a run: now, not after hours of extraction."""
    for run in manifest.all_runs:
        try:
            resolve_config(method=run.method, preset=run.preset, settings=run.settings)
        except ConfigError as error:
            raise ManifestError(f"{path}: run {run.name!r}: {error}") from error


def require_inputs(path: Path, manifest: Manifest) -> None:
    """Raises: ManifestError if a file is missing; JobError if the data folder has no video."""
    missing = manifest.missing_inputs()
    if missing:
        raise ManifestError("\n".join(f"{path}: {line}" for line in missing))
    if manifest.data.videos and not manifest.data.importer:
        try:
            found = find_videos([manifest.data.videos])
        except VideoListError as error:
            raise JobError(str(error)) from error
        if not found:
            raise JobError(f"{manifest.data.videos}: no video in this folder or below it")
