"""Two stores and a label file -> packed batches.

A batch holds no padding. Its videos are ordered by length, longest first, and its rows are packed
by time step, as in torch's PackedSequence: first the rows at t = 0 of all B videos, then those at
t = 1 of the videos that still run, and so on. Row (b, t) stands at `step_offsets[t] + b`.

Shape letters: B videos, T steps, N = sum of lengths, D features, K classes.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.store import FeatureStore, Part, StoreError

SPLITS = ("train", "val", "test")
CACHE_BYTES = 4 << 30  # of rows kept in memory, by all processes of a machine together
DECISIONS = 64  # random numbers drawn per video for decisions that belong to no frame


class DataError(Exception):
    """Labels or stores do not fit together; the message names the file and the first difference."""


# ---------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Labels:
    """A label file: the classes of each video and the split it belongs to."""

    path: Path
    sha256: str
    videos: dict[str, tuple[str, ...]]  # video id -> its classes
    splits: dict[str, str]

    @cached_property
    def classes(self) -> list[str]:
        """All class names, sorted."""
        return sorted({name for names in self.videos.values() for name in names})

    def in_split(self, split: str) -> list[str]:
        """The videos of a split, sorted."""
        return sorted(video for video, s in self.splits.items() if s == split)


def read_labels(path: Path) -> Labels:
    """Read `video_id,label,split`; several labels of a video are joined by `|`.

    Raises: DataError naming the line where a column is missing, a split is unknown or a video
    stands twice.
    """
    try:
        data = path.read_bytes()
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    missing = {"video_id", "label", "split"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(
            f"{path}: expected the header video_id,label,split, found "
            f"{','.join(reader.fieldnames or ()) or 'nothing'}"
        )
    labels = Labels(path, hashlib.sha256(data).hexdigest(), {}, {})
    for line, row in rows:
        _add_row(labels, row, f"{path}, line {line}")
    return labels


def _add_row(labels: Labels, row: dict[str, str], where: str) -> None:
    video, split = (row["video_id"] or "").strip(), (row["split"] or "").strip()
    names = tuple(dict.fromkeys(n.strip() for n in (row["label"] or "").split("|") if n.strip()))
    if not video or not names:
        raise DataError(f"{where}: expected a video_id and a label, found {dict(row)}")
    if split not in SPLITS:
        raise DataError(f"{where}: split must be one of {', '.join(SPLITS)}, found {split!r}")
    if video in labels.splits:
        there = labels.splits[video]
        hint = f"in splits {there} and {split}" if there != split else "twice"
        raise DataError(f"{where}: {video!r} stands {hint}; join several labels by |")
    labels.videos[video] = names
    labels.splits[video] = split


# ---------------------------------------------------------------------------------------- stores


@dataclass(frozen=True)
class StorePair:
    """A coarse and a fine store of the same videos, sampled at the same times."""

    coarse: FeatureStore
    fine: FeatureStore


def open_pair(coarse: Path, fine: Path) -> StorePair:
    """Open both stores and check that they belong together.

    Raises: DataError naming the first difference in rate, videos, number of rows or their times,
    or if coarse rows cost more than fine ones; StoreError if a folder holds no store.
    """
    pair = StorePair(FeatureStore(coarse), FeatureStore(fine))
    c, f = pair.coarse.identity, pair.fine.identity
    if c.gflops_per_frame > f.gflops_per_frame:
        raise DataError(
            f"--coarse {coarse} costs {c.gflops_per_frame:g} GFLOPs per frame and --fine {fine} "
            f"{f.gflops_per_frame:g}: are they swapped?"
        )
    if c.sample_fps != f.sample_fps:
        raise DataError(
            f"{coarse} holds {c.sample_fps:g} frames per second, {fine} {f.sample_fps:g}; "
            "extract both in one run of liteeval-extract"
        )
    for video in sorted(set(pair.coarse.video_ids) ^ set(pair.fine.video_ids)):
        holder, other = (coarse, fine) if video in pair.coarse else (fine, coarse)
        raise DataError(
            f"{holder} holds {video!r}, {other} does not ({len(pair.coarse)} and "
            f"{len(pair.fine)} videos); extract again: only what is missing is done"
        )
    for video in pair.coarse.video_ids:
        rows = pair.coarse.rows(video), pair.fine.rows(video)
        if rows[0] != rows[1]:
            raise DataError(f"{video!r} has {rows[0]} rows in {coarse}, {rows[1]} in {fine}")
    _require_same_times(pair)
    return pair


def _require_same_times(pair: StorePair) -> None:
    """Raises: DataError naming the first row that the stores hold at different times."""
    coarse, fine = _hash_times(pair.coarse), _hash_times(pair.fine)
    for video in pair.coarse.video_ids:
        if coarse[video] != fine[video]:
            coarse_T, fine_T = pair.coarse[video].pts_seconds, pair.fine[video].pts_seconds
            row = int(np.flatnonzero(coarse_T != fine_T)[0])
            raise DataError(
                f"{video!r}, row {row}: {coarse_T[row]:g} s in {pair.coarse.path}, "
                f"{fine_T[row]:g} s in {pair.fine.path}; extract both stores in one run of "
                "liteeval-extract"
            )


def _hash_times(store: FeatureStore) -> dict[str, int]:
    """A number for the presentation times of each video; one read of each part."""
    hashes: dict[str, int] = {}
    for path in store.parts:
        with Part(path) as part:
            try:
                times_N = part.column("pts_seconds")
            except (KeyError, OSError, RuntimeError) as error:
                raise StoreError(
                    f"{path}: cannot read pts_seconds ({error}); move the file away and extract "
                    "again: only its videos are redone"
                ) from error
            for video, video_id in enumerate(part.video_ids):
                start, stop = part.offset[video : video + 2]
                hashes.setdefault(video_id, hash(times_N[start:stop].tobytes()))
    return hashes


def evenly_spaced(rows: int, wanted: int) -> np.ndarray:
    """Rows at the centres of `wanted` equal spans of range(rows), or all of them if fewer.

    8 rows, 4 wanted: centres 1, 3, 5, 7.
    """
    if rows <= wanted:
        return np.arange(rows)
    return np.floor((np.arange(wanted) + 0.5) * rows / wanted).astype(np.int64)


def first_rows(rows: int, wanted: int) -> np.ndarray:
    """The first `wanted` of range(rows): what is known while a video still runs."""
    return np.arange(min(rows, wanted))


@dataclass(frozen=True)
class Sample:
    """What is seen of one video."""

    video_id: str
    rows: np.ndarray  # (T,) row of the store
    pts_seconds: np.ndarray  # (T,)
    coarse_TD: np.ndarray
    fine_TD: np.ndarray
    labels: tuple[int, ...]
    number: int = 0  # of the video in its split
    uniform_T2: np.ndarray | None = None  # numbers in (0, 1) for sampling, while training
    uniform_S2: np.ndarray | None = None  # the same for decisions that belong to no frame


class VideoSet(torch.utils.data.Dataset[Sample]):
    """The labelled videos of one split.

    Keeps all samples in memory where they fit in `cache_bytes`; the files are then read once.
    Raises: DataError if a labelled video is in no store (unless none is) or a class is unknown.
    """

    def __init__(
        self,
        pair: StorePair,
        labels: Labels,
        split: str,
        *,
        classes: Sequence[str],
        max_frames: int,
        select: Callable[[int, int], np.ndarray] = evenly_spaced,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.pair, self.labels, self.split = pair, labels, split
        self.max_frames, self.select = max_frames, select
        self.class_number = {name: number for number, name in enumerate(classes)}
        self.video_ids = [video for video in labels.in_split(split) if video in pair.coarse]
        if not self.video_ids:
            raise DataError(
                f"{labels.path}: no video of split {split!r} is in {pair.coarse.path}; "
                f"it has {len(labels.in_split(split))} labels of that split. Ids are paths "
                f"without suffix, such as {pair.coarse.video_ids[0]!r}"
            )
        self._require_known_classes()
        self._pts_seconds: dict[int, np.ndarray] = {}
        self._cache: dict[int, Sample] | None = {} if self._bytes() <= cache_bytes else None

    def _bytes(self) -> int:
        """What all samples take in memory, if all rows are of the first one's type."""
        rows = sum(min(self.pair.coarse.rows(v), self.max_frames) for v in self.video_ids)
        first = slice(0, 1)
        stores = (self.pair.coarse, self.pair.fine)
        return rows * sum(s.read_features(self.video_ids[0], first).nbytes for s in stores)

    def _require_known_classes(self) -> None:
        for video in self.video_ids:
            for name in self.labels.videos[video]:
                if name not in self.class_number:
                    raise DataError(
                        f"{self.labels.path}: class {name!r} of {video!r} ({self.split}) is not "
                        f"among the {len(self.class_number)} classes of split train"
                    )

    @property
    def content(self) -> dict[str, Any]:
        """How many videos there are, and a SHA-256 of their ids."""
        digest = hashlib.sha256("\n".join(self.video_ids).encode()).hexdigest()
        return {"videos": len(self.video_ids), "sha256": digest}

    @property
    def longest(self) -> int:
        """Frames of the longest sample."""
        return max(min(self.pair.coarse.rows(v), self.max_frames) for v in self.video_ids)

    @property
    def missing(self) -> list[str]:
        """Labelled videos of the split that the stores do not hold."""
        return sorted(set(self.labels.in_split(self.split)) - set(self.video_ids))

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, number: int) -> Sample:
        if self._cache is None:
            return self._read(number)
        if number not in self._cache:
            self._cache[number] = self._read(number)
        return self._cache[number]

    def _read(self, number: int) -> Sample:
        video_id = self.video_ids[number]
        if number not in self._pts_seconds:
            self._pts_seconds[number] = self.pair.coarse[video_id].pts_seconds
        pts_seconds = self._pts_seconds[number]
        rows = self.select(len(pts_seconds), self.max_frames)
        wanted = None if len(rows) == len(pts_seconds) else rows
        return Sample(
            video_id,
            rows,
            pts_seconds[rows],
            self.pair.coarse.read_features(video_id, wanted),
            self.pair.fine.read_features(video_id, wanted),
            tuple(self.class_number[name] for name in self.labels.videos[video_id]),
            number,
        )


def require_labelled(pair: StorePair, labels: Labels) -> None:
    """Raises: DataError naming the first video of the stores that has no label."""
    unlabelled = [video for video in pair.coarse.video_ids if video not in labels.videos]
    if unlabelled:
        raise DataError(
            f"{labels.path}: no label for {unlabelled[0]!r} of {pair.coarse.path} "
            f"({len(unlabelled)} of {len(pair.coarse)} videos have none); add lines, or use "
            "--ignore-unlabelled to leave them out"
        )


# --------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Packing:
    """Where the rows of each video stand in a batch packed by time step."""

    lengths: list[int]  # of each video, falling
    step_sizes: list[int] = field(init=False)  # videos that run at step t
    step_offsets: list[int] = field(init=False)  # first row of step t

    def __post_init__(self) -> None:
        if not self.lengths or self.lengths != sorted(self.lengths, reverse=True):
            raise ValueError("lengths must be given and fall")
        if self.lengths[-1] < 1:
            raise ValueError("every video needs at least one frame")
        sizes = [int(s) for s in _videos_running(self.lengths)]
        offsets = [0, *np.cumsum(sizes)[:-1].tolist()]
        object.__setattr__(self, "step_sizes", sizes)
        object.__setattr__(self, "step_offsets", [int(o) for o in offsets])

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    def steps(self) -> Iterator[slice]:
        """The rows of each step, from t = 0 on."""
        for offset, size in zip(self.step_offsets, self.step_sizes, strict=True):
            yield slice(offset, offset + size)

    def rows_of(self, video: int) -> np.ndarray:
        """(T,) the packed rows of one video, in time order."""
        return np.asarray(self.step_offsets[: self.lengths[video]]) + video

    @cached_property
    def order(self) -> np.ndarray:
        """(N,) for each packed row its place when videos stand one after another."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        return np.concatenate(
            [starts[:size] + step for step, size in enumerate(self.step_sizes)]
        ).astype(np.int64)

    @cached_property
    def video_of_row(self) -> np.ndarray:
        """(N,) the video of each packed row."""
        return np.concatenate([np.arange(size) for size in self.step_sizes])

    @cached_property
    def step_of_row(self) -> np.ndarray:
        """(N,) the step of each packed row."""
        return np.repeat(np.arange(len(self.step_sizes)), self.step_sizes)

    @cached_property
    def row_before(self) -> np.ndarray:
        """(N − B,) the packed row of the frame before, of all rows but each video's first."""
        steps = zip(self.step_offsets[:-1], self.step_sizes[1:], strict=True)
        rows = [offset + np.arange(size) for offset, size in steps]
        return np.concatenate([np.arange(0), *rows])

    @cached_property
    def last_row(self) -> np.ndarray:
        """(B,) the packed row of each video's last frame."""
        return np.asarray(self.step_offsets)[np.asarray(self.lengths) - 1] + np.arange(
            len(self.lengths)
        )


def _videos_running(lengths: Sequence[int]) -> np.ndarray:
    """(T,) how many videos are longer than t."""
    return (np.asarray(lengths)[None, :] > np.arange(lengths[0])[:, None]).sum(axis=1)


class Batch:
    """Videos of falling length, their rows packed by time step (see the head of this file).

    Not a dataclass: Fabric takes those apart and rebuilds them around a module's call.

    Attributes:
        coarse_ND, fine_ND: features, of the stores' type until `to`, then float32.
        labels_BK: float, 1.0 at each class of the video.
        video_N, step_N: int64, the video and the step of each row.
        last_B: int64, the row of each video's last frame.
        before_N: int64 (N − B,), see Packing.row_before.
        lengths_B: float, frames of each video.
        samples: names, rows and times.
        uniform_N2: numbers in (0, 1) for sampling at each row, while training.
        uniform_BS2: the same for the S = DECISIONS steps of an agent.
    """

    def __init__(
        self,
        *,
        packing: Packing,
        samples: list[Sample],
        coarse_ND: Tensor,
        fine_ND: Tensor,
        labels_BK: Tensor,
        uniform_N2: Tensor | None = None,
        uniform_BS2: Tensor | None = None,
    ) -> None:
        self.packing, self.samples = packing, samples
        self.coarse_ND, self.fine_ND, self.labels_BK = coarse_ND, fine_ND, labels_BK
        self.uniform_N2, self.uniform_BS2 = uniform_N2, uniform_BS2
        self.video_N = torch.from_numpy(packing.video_of_row)
        self.step_N = torch.from_numpy(packing.step_of_row)
        self.last_B = torch.from_numpy(packing.last_row)
        self.before_N = torch.from_numpy(packing.row_before)
        self.lengths_B = torch.tensor(packing.lengths, dtype=torch.float32)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, features as float32 there."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        moved.coarse_ND, moved.fine_ND = moved.coarse_ND.float(), moved.fine_ND.float()
        return moved

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(changed, name, change(value))
        return changed


def collate(samples: Sequence[Sample], *, classes: int) -> Batch:
    """Pack samples into a batch; videos of one length keep their order."""
    ordered = sorted(samples, key=lambda sample: -len(sample.rows))
    packing = Packing([len(sample.rows) for sample in ordered])

    def pack(columns: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(columns)[packing.order])

    labels_BK = torch.zeros(len(ordered), classes)
    for video, sample in enumerate(ordered):
        labels_BK[video, list(sample.labels)] = 1.0
    uniforms = [sample.uniform_T2 for sample in ordered if sample.uniform_T2 is not None]
    decisions = [sample.uniform_S2 for sample in ordered if sample.uniform_S2 is not None]
    drawn = len(uniforms) == len(ordered)
    return Batch(
        packing=packing,
        samples=ordered,
        coarse_ND=pack([sample.coarse_TD for sample in ordered]),
        fine_ND=pack([sample.fine_TD for sample in ordered]),
        labels_BK=labels_BK,
        uniform_N2=pack(uniforms) if drawn else None,
        uniform_BS2=torch.from_numpy(np.stack(decisions)) if drawn else None,
    )


def with_uniforms(sample: Sample, *, seed: int, epoch: int) -> Sample:
    """The sample with its own random numbers, a function of seed, epoch and video alone.

    So neither batch mates nor a restart nor the number of processes changes what is drawn.
    """
    generator = np.random.default_rng([seed, epoch, 1 + sample.number])
    numbers = generator.random((DECISIONS + len(sample.rows), 2), dtype=np.float32)
    numbers = np.clip(numbers, 1e-6, 1 - 1e-6)
    return replace(sample, uniform_T2=numbers[DECISIONS:], uniform_S2=numbers[:DECISIONS])


class TrainingVideos(torch.utils.data.Dataset["Sample | DataError | StoreError"]):
    """A VideoSet asked for by (epoch, number), with the random numbers of that epoch.

    An error that a user can mend is given instead of a sample: the DataLoader would add the
    traceback of its worker to the message.
    """

    def __init__(self, videos: VideoSet, *, seed: int) -> None:
        self.videos, self.seed = videos, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError | StoreError:
        epoch, number = key
        try:
            return with_uniforms(self.videos[number], seed=self.seed, epoch=epoch)
        except (DataError, StoreError) as error:
            return error


def collate_training(
    items: Sequence[Sample | DataError | StoreError], *, classes: int
) -> Batch | DataError | StoreError:
    """A batch of what TrainingVideos gives, or the first error among it."""
    samples: list[Sample] = []
    for item in items:
        if isinstance(item, Exception):
            return item
        samples.append(item)
    return collate(samples, classes=classes)


class EpochSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The batches of `epoch`, set before each, of one process among several."""

    def __init__(
        self, videos: int, *, batch_videos: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.videos, self.batch_videos, self.seed = videos, batch_videos, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0

    def batches(self) -> list[np.ndarray]:
        """The videos of each batch, those of other processes too."""
        return epoch_batches(
            self.videos, batch_videos=self.batch_videos, seed=self.seed, epoch=self.epoch
        )

    def __len__(self) -> int:
        return -(-self.videos // self.batch_videos)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches():
            yield [(self.epoch, int(number)) for number in batch[self.rank :: self.processes]]


def epoch_batches(videos: int, *, batch_videos: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The shuffled videos of an epoch in nearly equal batches of at most `batch_videos`.

    A function of seed and epoch alone. 165 videos by 16: 11 batches of 15.
    """
    order = np.random.default_rng([seed, epoch]).permutation(videos)
    return np.array_split(order, -(-videos // batch_videos))
