"""One experiment: a manifest, its checks, its jobs, what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from extract.labels import LabelError, Labels, read_labels
from extract.videos import Video, VideoListError, find_videos
from liteeval_train.config import ConfigError, resolve_config
from pipelines.engines.local import (
    ALL_JOBS,
    Choice,
    Lock,
    Outcome,
    Place,
    ThisMachine,
    lock,
    run_jobs,
    visible_gpus,
)
from pipelines.jobs import JobError, Layout, plan_jobs, write_text
from pipelines.manifest import Manifest, ManifestError, load_manifest


@dataclass(frozen=True)
class Engine:
    """Who runs the jobs of an experiment."""

    name: str = "local"  # or ray
    ray_address: str | None = None  # None: $RAY_ADDRESS, or this machine alone
    jobs: int = 1  # at once on this machine, where it has no GPUs


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
            notes.append(
                f"Some videos failed and are left out; {failures} says which and why. "
                "--retry-failed tries them again."
            )
        return notes

    @property
    def files(self) -> list[tuple[str, Path]]:
        """The files to look at, each with a word for it."""
        files = [
            ("report", self.layout.report),
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
    engine: Engine | None = None,
) -> Done:
    """Run the jobs of a manifest that are not done.

    Args:
        settings: the manifest's variables.
        out: the output folder; by default runs/NAME of the manifest.
        choice: which jobs.
        engine: who runs them; None: this machine, one at a time where it has no GPUs.

    Raises: ManifestError if the manifest is wrong or names what is not there; JobError if a job
        fails; KeyboardInterrupt when interrupted, after the running job has saved its work.
    """
    manifest, layout = open_experiment(path, settings=settings, out=out)
    use_gpus = device in ("auto", "cuda")
    with (
        lock(layout.out) as held,
        _place(engine or Engine(), held, use_gpus=use_gpus) as (place, extract_on),
    ):
        jobs = plan_jobs(manifest, layout, device=device, workers=workers, engine=extract_on)
        write_text(layout.manifest, manifest.to_yaml())
        outcome = run_jobs(jobs, layout, place=place, log=log, choice=choice)
    return Done(manifest, layout, len(jobs), outcome)


@contextmanager
def _place(
    engine: Engine, held: Lock, *, use_gpus: bool
) -> Iterator[tuple[Place, tuple[str, ...]]]:
    """Where the jobs run, and the options that send `liteeval extract` there too."""
    if engine.name == "local":
        gpus = visible_gpus() if use_gpus else []
        yield ThisMachine(held, gpus=gpus, jobs=engine.jobs), ()
        return
    from pipelines.engines.ray import connected
    from pipelines.engines.ray_jobs import RayCluster

    with connected(engine.ray_address) as ray:
        address = ray.get_runtime_context().gcs_address
        place = RayCluster(ray, ThisMachine(held), use_gpus=use_gpus)
        yield place, ("--engine", "ray", "--ray-address", address)


def open_experiment(
    path: Path, *, settings: Mapping[str, str], out: Path | None
) -> tuple[Manifest, Layout]:
    """The manifest with its inputs checked, and where its outputs are.

    Raises: ManifestError and JobError as `run_experiment`.
    """
    manifest = load_manifest(path, settings=settings)
    require_inputs(path, manifest)
    require_configurations(path, manifest)
    return manifest, Layout(require_folder((out or Path("runs", manifest.name)).resolve()))


def require_folder(out: Path) -> Path:
    """The output folder, which is there or can be made.

    Raises: JobError if a file is in its way.
    """
    file = next((path for path in (out, *out.parents) if path.is_file()), None)
    if file:
        raise JobError(f"{out}: not writable ({file} is a file); choose another --out")
    return out


def require_configurations(path: Path, manifest: Manifest) -> None:
    """Raises: ManifestError if training would refuse a run: now, not after hours of extraction."""
    for run in manifest.all_runs:
        try:
            resolve_config(method=run.method, preset=run.preset, settings=run.settings)
        except ConfigError as error:
            raise ManifestError(f"{path}: run {run.name!r}: {error}") from error


def require_inputs(path: Path, manifest: Manifest) -> None:
    """Raises: ManifestError if a file is missing or a split cannot be there; JobError if the data
    folder has no video, or not those that the labels name.
    """
    missing = manifest.missing_inputs()
    if missing:
        raise ManifestError("\n".join(f"{path}: {line}" for line in missing))
    data, splits = manifest.data, ("train", "val", *manifest.evaluation.splits)
    if data.synthetic and "test" in splits:
        raise ManifestError(f"{path}: evaluation: rendered clips have splits train and val alone")
    if data.videos and data.labels:
        try:
            found, labels = find_videos([data.videos]), read_labels(data.labels)
        except (VideoListError, LabelError) as error:
            raise JobError(str(error)) from error
        if not found:
            raise JobError(f"{data.videos}: no video in this folder or below it")
        require_splits(found, labels, splits, folder=data.videos)


def require_splits(
    found: Sequence[Video], labels: Labels, splits: Sequence[str], *, folder: Path
) -> None:
    """Raises: JobError if a split has no video among those found."""
    there = {labels.split_of.get(video.id) for video in found}
    for split in splits:
        listed = [video_id for video_id, of in labels.split_of.items() if of == split]
        if not listed:
            raise JobError(
                f"{labels.path}: has no video of split {split}; training learns from train and "
                f"chooses the model on val, evaluation is on {splits[-1]}"
            )
        if split not in there:
            raise JobError(
                f"{labels.path}: none of its {len(listed)} videos of split {split} is in {folder}, "
                f"first {listed[0]!r}; found {found[0].id!r}. Ids are paths relative to the "
                "folder, without suffix"
            )
