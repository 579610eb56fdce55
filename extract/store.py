"""The feature store, format version 1: the HDF5 files in which the two stages meet.

A store is a folder for one backbone at one size and one sampling rate. It holds part files

    part-20261122T201500-3f9c1a.h5          complete and read-only: renamed into place after fsync
    .part-20261122T201500-3f9c1a.h5.tmp     being written: no reader opens it; what a killed
                                            writer left is removed by a later one after a day
    identity.json                           the identity that the first writer claimed the store
                                            for; only writers look at it

and a part holds whole videos, their rows back to back:

    /features (N, D) float16 or float32     /pts_seconds (N,) float64     /frame_index (N,) int64
    /video_id (V,) UTF-8                    /video_offset (V+1,) int64: rows of video v
    /duration_seconds, /source_fps (V,) float64       /source_bytes, /corrupt_frames (V,) int64
    /source_path, /decoder (V,) UTF-8
    attributes: format, schema_version, the identity (see StoreIdentity), created_utc

Several processes and machines may write to one store: the names of parts are unique, and a part
is never changed once it has its name. This file imports h5py and numpy and nothing heavier.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

FORMAT = "liteeval-features"
SCHEMA_VERSION = 1
PART_PREFIX = "part-"
PART_SUFFIX = ".h5"
CLAIM = "identity.json"
TEMPORARY_SUFFIX = ".tmp"
ABANDONED_SECONDS = 24 * 3600.0  # a part is written in seconds; clocks of machines may differ
MAX_OPEN_PARTS = 64

ROW_COLUMNS: dict[str, type[np.generic]] = {"pts_seconds": np.float64, "frame_index": np.int64}
VIDEO_COLUMNS: dict[str, type[np.generic]] = {
    "duration_seconds": np.float64,
    "source_fps": np.float64,
    "source_bytes": np.int64,
    "corrupt_frames": np.int64,
}
VIDEO_TEXT_COLUMNS = ("source_path", "decoder")


class StoreError(Exception):
    """A store cannot be read or written; the message names the file and the way out."""


@dataclass(frozen=True)
class StoreIdentity:
    """What every part of a store agrees on: how its rows came to be."""

    backbone: str
    input_size_px: int
    weights: str  # where they came from: a published name, a file's name, or random:SEED
    weights_sha256: str
    preprocessing: Mapping[str, Any]
    sample_fps: float
    feature_dim: int
    gflops_per_frame: float  # 1 multiply-add = 1 FLOP
    flop_convention: str
    parameters: int
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_attributes(self) -> dict[str, Any]:
        """The identity as HDF5 attributes; mappings become JSON text."""
        attributes = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("preprocessing", "versions"):
            attributes[name] = json.dumps(dict(attributes[name]), sort_keys=True)
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> StoreIdentity:
        values: dict[str, Any] = {}
        for f in fields(cls):
            value = attributes[f.name]
            values[f.name] = value.item() if isinstance(value, np.generic) else value
        for name in ("preprocessing", "versions"):
            values[name] = json.loads(values[name])
        return cls(**values)

    def differences(self, other: StoreIdentity) -> list[str]:
        """One line for each attribute in which two identities differ; versions may differ."""
        return [
            f"{f.name}: {getattr(self, f.name)!r} against {getattr(other, f.name)!r}"
            for f in fields(self)
            if f.compare and getattr(self, f.name) != getattr(other, f.name)
        ]


@dataclass(frozen=True)
class VideoFeatures:
    """The rows of one video and where they came from."""

    features: np.ndarray  # (T, D) float16 or float32
    pts_seconds: np.ndarray  # (T,) float64, from the first displayed frame on
    frame_index: np.ndarray  # (T,) int64, in order of presentation
    duration_seconds: float
    source_fps: float
    source_path: str
    source_bytes: int
    decoder: str
    corrupt_frames: int = 0

    def __post_init__(self) -> None:
        rows = len(self.features)
        if self.features.ndim != 2 or rows == 0:
            raise ValueError(f"features must be (T, D) with T ≥ 1, got {self.features.shape}")
        for name in ROW_COLUMNS:
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} must be ({rows},), got {getattr(self, name).shape}")

    def problems(self) -> Iterator[str]:
        """What no store may hold: values that are not finite, frames out of order."""
        for name in ("features", "pts_seconds", "duration_seconds", "source_fps"):
            if not np.isfinite(getattr(self, name)).all():
                yield f"{name} holds values that are not finite"
        if (np.diff(self.pts_seconds) < 0).any() or (np.diff(self.frame_index) < 0).any():
            yield "its frames are not in order"

    def __repr__(self) -> str:
        return (
            f"VideoFeatures(features {self.features.shape} {self.features.dtype}, "
            f"{self.duration_seconds:.2f} s, {self.source_path!r})"
        )


def part_paths(store: Path) -> list[Path]:
    """The committed parts of a store, oldest first; temporary files are not parts."""
    return sorted(_glob(store, f"{PART_PREFIX}*{PART_SUFFIX}"))


def _glob(store: Path, pattern: str) -> Iterator[Path]:
    return store.glob(pattern) if os.path.isdir(store) else iter(())


def unfinished_parts(store: Path) -> dict[Path, float]:
    """Temporary files of a store and the seconds since each was last written, oldest first.

    Their writers are at work just now, or were killed.
    """
    idle_seconds = {}
    for path in _glob(store, f".*{TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError):  # finished this moment
            idle_seconds[path] = time.time() - path.stat().st_mtime
    return dict(sorted(idle_seconds.items(), key=lambda item: -item[1]))


def remove_abandoned_parts(store: Path) -> list[Path]:
    """Remove temporary files that nobody has written to for ABANDONED_SECONDS.

    No lock tells a killed writer from a living one on every network file system; time does. A
    writer that was only stopped for so long fails with a StoreError and harms nothing.

    Returns: the files that are gone.
    """
    removed = []
    for path, idle_seconds in unfinished_parts(store).items():
        if idle_seconds > ABANDONED_SECONDS:
            with suppress(OSError):  # another's file: `verify` goes on reporting it
                path.unlink()
                removed.append(path)
    return removed


def _require_parts(store: Path) -> list[Path]:
    """The parts of a store. Raises: StoreError if there is none."""
    paths = part_paths(store)
    if not paths:
        unfinished = len(unfinished_parts(store))
        aside = f" ({unfinished} unfinished parts of a run that works or was killed)"
        raise StoreError(
            f"{store}: no feature store here{aside if unfinished else ''}; "
            "run liteeval-extract run first"
        )
    return paths


class Part:
    """One committed part file, open for reading. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r", libver=("earliest", "v110"))
        except OSError as error:
            raise StoreError(f"{path}: not a readable HDF5 file ({error}); {_REMOVE}") from error
        try:
            self._read_header()
        except StoreError:
            self._file.close()
            raise
        except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
            self._file.close()
            raise StoreError(f"{path}: damaged header ({error}); {_REMOVE}") from error

    def _read_header(self) -> None:
        attributes = self._file.attrs
        found = (attributes.get("format"), attributes.get("schema_version"))
        if found != (FORMAT, SCHEMA_VERSION):
            raise StoreError(
                f"{self.path}: expected format {FORMAT} version {SCHEMA_VERSION}, found "
                f"{found[0]} version {found[1]}; give a store that liteeval-extract wrote"
            )
        self.identity = StoreIdentity.from_attributes(attributes)
        self.video_ids: list[str] = list(self._dataset("video_id").asstr()[:])
        self.offset: np.ndarray = self._dataset("video_offset")[:]
        self.source_bytes: np.ndarray = self._dataset("source_bytes")[:]
        self._features = self._dataset("features")
        contiguous = self._features.chunks is None
        self._features_start = self._features.id.get_offset() if contiguous else None

    def _dataset(self, name: str) -> h5py.Dataset:
        """Raises: KeyError if there is none of this name."""
        found = self._file[name]
        if not isinstance(found, h5py.Dataset):
            raise KeyError(f"{name} is a {type(found).__name__.lower()}, not a dataset")
        return found

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def column(self, name: str) -> np.ndarray:
        """(V,): one value per video, text as bytes."""
        column: np.ndarray = self._dataset(name)[:]
        return column

    def read(self, video: int) -> VideoFeatures:
        """The rows of the part's video number `video`."""
        rows = slice(int(self.offset[video]), int(self.offset[video + 1]))
        try:
            return VideoFeatures(
                features=self._read_rows(rows.start, rows.stop),
                **{name: self._dataset(name)[rows] for name in ROW_COLUMNS},
                **{name: self._dataset(name)[video].item() for name in VIDEO_COLUMNS},
                **{name: self._dataset(name).asstr()[video] for name in VIDEO_TEXT_COLUMNS},
            )
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            name = self.video_ids[video]
            raise StoreError(f"{self.path}: cannot read {name!r} ({error}); {_REMOVE}") from error

    def read_features(self, video: int, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """(T, D): only the features of a video, or only the wanted rows of it (ascending)."""
        start, stop = int(self.offset[video]), int(self.offset[video + 1])
        try:
            features = self._read_rows(start, stop)
        except (KeyError, OSError, RuntimeError) as error:
            name = self.video_ids[video]
            raise StoreError(f"{self.path}: cannot read {name!r} ({error}); {_REMOVE}") from error
        return features if rows is None else features[rows]

    def _read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop: one read at their place in the file where they lie in one piece.

        HDF5's own reading takes five times as long for a video's few rows.
        """
        if self._features_start is None:
            chunked: np.ndarray = self._features[start:stop]
            return chunked
        features = np.empty((stop - start, self._features.shape[1]), self._features.dtype)
        position = self._features_start + start * features[:1].nbytes
        read = os.preadv(self._file.id.get_vfd_handle(), [features.data], position)
        if read != features.nbytes:
            raise OSError(f"{features.nbytes} bytes expected at {position}, {read} found")
        return features

    def problems(self) -> list[str]:
        """Everything wrong with this part: shapes, offsets, order of times, finite values."""
        try:
            return list(self._find_problems())
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            return [f"{self.path}: unreadable ({error})"]

    def _find_problems(self) -> Iterator[str]:
        features, offset, videos = self._features, self.offset, len(self.video_ids)
        rows, dim = features.shape
        if dim != self.identity.feature_dim:
            yield f"{self.path}: rows have {dim} values, identity says {self.identity.feature_dim}"
        if len(set(self.video_ids)) != videos:
            yield f"{self.path}: a video id stands twice"
        if offset.shape != (videos + 1,) or offset[0] != 0 or offset[-1] != rows:
            yield f"{self.path}: video_offset does not span the {rows} rows of {videos} videos"
            return
        if videos and np.diff(offset).min() < 1:
            yield f"{self.path}: a video has no rows"
            return
        for name in ROW_COLUMNS:
            if (shape := self._dataset(name).shape) != (rows,):
                yield f"{self.path}: {name} has shape {shape}, not ({rows},)"
                return
        for name in (*VIDEO_COLUMNS, *VIDEO_TEXT_COLUMNS):
            if (shape := self._dataset(name).shape) != (videos,):
                yield f"{self.path}: {name} has shape {shape}, not ({videos},)"
                return
        for video, name in enumerate(self.video_ids):
            for problem in self.read(video).problems():
                yield f"{self.path}: {name!r}: {problem}"


_REMOVE = "move the file away and extract again: only its videos are redone"


class FeatureStore:
    """A store opened for reading: its committed parts at the time of opening.

        store = FeatureStore("features/resnet101_224")
        store["cooking/v_001"].features      # (T, 2048) float16

    A video that two parts hold (two runs at once) is read from the older part.
    Raises: StoreError if the folder holds no part or its parts disagree on their identity.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        paths = _require_parts(self.path)
        self._location: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Part] = {}
        self._rows: dict[str, int] = {}
        self._source_bytes: dict[str, int] = {}
        identity: StoreIdentity | None = None
        for path_of_part in paths:
            with Part(path_of_part) as part:
                identity = identity or part.identity
                _require_same_identity(identity, part.identity, path_of_part)
                rows, source_bytes = np.diff(part.offset).tolist(), part.source_bytes.tolist()
                for video, video_id in enumerate(part.video_ids):
                    if video_id not in self._location:
                        self._location[video_id] = (path_of_part, video)
                        self._rows[video_id] = rows[video]
                        self._source_bytes[video_id] = source_bytes[video]
        assert identity is not None
        self.identity: StoreIdentity = identity
        self.parts = paths

    @property
    def video_ids(self) -> list[str]:
        """All ids, sorted."""
        return sorted(self._location)

    @property
    def gflops_per_frame(self) -> float:
        return self.identity.gflops_per_frame

    def videos_by_part(self) -> dict[Path, list[int]]:
        """For each part the numbers of the videos that are read from it."""
        videos: dict[Path, list[int]] = {path: [] for path in self.parts}
        for path, video in self._location.values():
            videos[path].append(video)
        return videos

    def rows(self, video_id: str) -> int:
        """T of a video, without reading its features."""
        return self._rows[video_id]

    def source_bytes(self, video_id: str) -> int:
        """Size of the source file when the video was extracted."""
        return self._source_bytes[video_id]

    def __len__(self) -> int:
        return len(self._location)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._location

    def __getitem__(self, video_id: str) -> VideoFeatures:
        part, video = self._find(video_id)
        return part.read(video)

    def read_features(self, video_id: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """(T, D): only the features of a video, or only the wanted rows of it (ascending)."""
        part, video = self._find(video_id)
        return part.read_features(video, rows)

    def _find(self, video_id: str) -> tuple[Part, int]:
        if video_id not in self._location:
            raise KeyError(f"{self.path}: no video {video_id!r} among {len(self)}")
        path, video = self._location[video_id]
        if path not in self._open:
            if len(self._open) >= MAX_OPEN_PARTS:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = Part(path)
        return self._open[path], video

    def close(self) -> None:
        for part in self._open.values():
            part.close()
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when a store travels to another process."""
        return {**self.__dict__, "_open": {}}


def _require_same_identity(
    expected: StoreIdentity, found: StoreIdentity, where: Path, way_out: str = ""
) -> None:
    differences = expected.differences(found)
    if differences:
        raise StoreError(
            f"{where}: another identity than the rest of the store ({'; '.join(differences)}); "
            f"write to another --out, or use the same backbone, weights, fps and precision{way_out}"
        )


def require_identity(store: Path, identity: StoreIdentity) -> None:
    """Refuse to write rows of `identity` into a store that holds another or is claimed for one.

    Raises: StoreError naming the attributes that differ.
    """
    for path in part_paths(store)[:1]:
        with Part(path) as part:
            _require_same_identity(part.identity, identity, store)
    _require_claim(store, identity)


def _require_claim(store: Path, identity: StoreIdentity) -> None:
    claimed, path = _claimed_identity(store), store / CLAIM
    if claimed is not None:
        way_out = "" if part_paths(store) else f"; or remove {path} if no run is at work here"
        _require_same_identity(claimed, identity, path, way_out)


def _claimed_identity(store: Path) -> StoreIdentity | None:
    """The identity in a store's claim; None where no writer has committed anything yet.

    Raises: StoreError if it cannot be read.
    """
    path = store / CLAIM
    if not os.path.isfile(path):
        return None
    try:
        return StoreIdentity.from_attributes(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not a store's identity ({error}); if no run is at work, remove the file: "
            "the next one writes it again"
        ) from error


def _claim(store: Path, identity: StoreIdentity) -> None:
    """Make the store that of `identity`, once and for all writers on all machines.

    Checking the parts is not enough: two writers may both find none. A hard link fails where the
    name is taken and brings the whole file with it, on network file systems too; so, but for a
    file that is whole a moment later, does exclusive creation, where there are no links.

    Raises: StoreError if it is that of another identity; OSError if the claim cannot be written.
    """
    path = store / CLAIM
    if not path.exists():
        require_identity(store, identity)
        attributes = json.dumps(identity.to_attributes(), indent=2, default=np.generic.item)
        temporary = store / f".{CLAIM}-{secrets.token_hex(3)}{TEMPORARY_SUFFIX}"
        try:
            temporary.write_text(attributes, encoding="utf-8")
            _fsync(temporary)
            temporary.chmod(0o444)
            with suppress(FileExistsError):
                _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    _require_claim(store, identity)


def _link(source: Path, target: Path) -> None:
    """Raises: FileExistsError if another was first."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with target.open("xb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class FeatureWriter:
    """Collects videos and commits them as parts. One writer per process; many per store.

        with FeatureWriter("features/resnet101_224", identity) as writer:
            writer.add("cooking/v_001", video)
            writer.commit()

    Leaving the context commits what is left, also on an exception: those videos are complete.
    Raises: StoreError if the folder holds another identity, cannot be written, or the disk is
    full; a part that could not be written whole is never given its name.
    """

    def __init__(self, path: str | os.PathLike[str], identity: StoreIdentity) -> None:
        self.path = Path(path)
        self.identity = identity
        self._videos: dict[str, VideoFeatures] = {}
        require_identity(self.path, identity)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be created ({error.strerror})") from error
        if not os.access(self.path, os.W_OK):
            raise StoreError(f"{self.path}: not writable; choose another --out")
        remove_abandoned_parts(self.path)

    def __len__(self) -> int:
        """Videos added and not yet committed."""
        return len(self._videos)

    def check(self, video_id: str, video: VideoFeatures) -> None:
        """Raises: ValueError if the id or the video cannot be stored."""
        for text in (video_id, video.source_path, video.decoder):
            if "\0" in text or text != text.encode("utf-8", "replace").decode():
                raise ValueError(f"{video_id!r}: {text!r} is not UTF-8 text without NUL")
        if video.features.shape[1] != self.identity.feature_dim:
            raise ValueError(
                f"{video_id!r}: rows have {video.features.shape[1]} values, "
                f"the store's have {self.identity.feature_dim}"
            )
        if video.features.dtype not in (np.float16, np.float32):
            raise ValueError(f"{video_id!r}: features must be float16 or float32")
        for problem in video.problems():
            raise ValueError(f"{video_id!r}: {problem}")

    def add(self, video_id: str, video: VideoFeatures) -> None:
        """Keep one video for the next commit.

        Raises: ValueError if it cannot be stored, as `check` does.
        """
        self.check(video_id, video)
        self._videos[video_id] = video

    def commit(self) -> Path | None:
        """Write the videos added since the last commit as one part; None if there are none."""
        if not self._videos:
            return None
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        name = f"{PART_PREFIX}{stamp}-{secrets.token_hex(3)}{PART_SUFFIX}"
        temporary = self.path / f".{name}{TEMPORARY_SUFFIX}"
        try:
            temporary.write_bytes(self._part())
            _fsync(temporary)
            temporary.chmod(0o444)
            _claim(self.path, self.identity)
            temporary.rename(self.path / name)
            _fsync(self.path)
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"{self.path / name}: could not be written ({error}); {len(self._videos)} videos "
                "are not stored. Free space or mend the folder and run again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._videos.clear()
        return self.path / name

    def _part(self) -> memoryview:
        """The part's bytes. HDF5 writes to memory: a file that it cannot write whole it cannot
        close either, keeps its space on the full disk and may crash the process much later.
        """
        videos = list(self._videos.values())
        offset = np.cumsum([0, *(len(video.features) for video in videos)], dtype=np.int64)
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=("earliest", "v110")) as file:
            for key, value in self.identity.to_attributes().items():
                file.attrs[key] = value
            file.attrs["format"] = FORMAT
            file.attrs["schema_version"] = SCHEMA_VERSION
            file.attrs["created_utc"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            shape = (int(offset[-1]), self.identity.feature_dim)
            precision = np.result_type(*(video.features.dtype for video in videos))
            features = file.create_dataset("features", shape, precision)
            for start, video in zip(offset, videos, strict=False):
                features[start : start + len(video.features)] = video.features
            file["video_offset"] = offset
            text = h5py.string_dtype("utf-8")
            file.create_dataset("video_id", data=list(self._videos), dtype=text)
            for name, dtype in ROW_COLUMNS.items():
                column = np.concatenate([getattr(video, name) for video in videos])
                file[name] = column.astype(dtype)
            for name, dtype in VIDEO_COLUMNS.items():
                file[name] = np.array([getattr(video, name) for video in videos], dtype)
            for name in VIDEO_TEXT_COLUMNS:
                values = [getattr(video, name) for video in videos]
                file.create_dataset(name, data=values, dtype=text)
        return buffer.getbuffer()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.commit()


def describe_store(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a store holds: identity and totals, as plain values; no features are read."""
    store = FeatureStore(path)
    duration_seconds, corrupt_frames = 0.0, 0
    decoders: set[str] = set()
    versions: dict[str, set[str]] = {}
    for part_path, videos in store.videos_by_part().items():
        with Part(part_path) as part:
            duration_seconds += float(part.column("duration_seconds")[videos].sum())
            corrupt_frames += int(part.column("corrupt_frames")[videos].sum())
            decoders |= {name.decode() for name in part.column("decoder")[videos]}
            for library, version in part.identity.versions.items():
                versions.setdefault(library, set()).add(version)
    rows = sum(store.rows(video_id) for video_id in store.video_ids)
    return {
        "store": str(store.path),
        "schema_version": SCHEMA_VERSION,
        **store.identity.to_attributes(),
        "preprocessing": dict(store.identity.preprocessing),
        "versions": {library: ", ".join(sorted(found)) for library, found in versions.items()},
        "parts": len(store.parts),
        "unfinished_parts": [part_path.name for part_path in unfinished_parts(store.path)],
        "videos": len(store),
        "rows": rows,
        "bytes": sum(part_path.stat().st_size for part_path in store.parts),
        "duration_seconds": duration_seconds,
        "gflops_total": rows * store.gflops_per_frame,
        "corrupt_frames": corrupt_frames,
        "decoders": sorted(decoders),
    }


def verify_store(path: str | os.PathLike[str]) -> list[str]:
    """Everything wrong with a store, one line each; empty if it is sound.

    Raises: StoreError if the folder holds no part at all.
    """
    paths = _require_parts(Path(path))
    problems: list[str] = []
    identity: StoreIdentity | None = None
    for part_path in paths:
        try:
            with Part(part_path) as part:
                identity = identity or part.identity
                problems += [
                    f"{part_path}: differs from {paths[0].name} in {difference}"
                    for difference in identity.differences(part.identity)
                ]
                problems += part.problems()
        except StoreError as error:
            problems.append(str(error))
    return problems + _claim_problems(Path(path), identity)


def _claim_problems(store: Path, identity: StoreIdentity | None) -> list[str]:
    try:
        claimed = _claimed_identity(store)
    except StoreError as error:
        return [str(error)]
    differences = identity.differences(claimed) if identity and claimed else []
    return [
        f"{store / CLAIM}: differs from the parts in {difference}; remove it, the next run "
        "writes it again"
        for difference in differences
    ]


def compact_store(path: str | os.PathLike[str], *, rows_per_part: int = 100_000) -> tuple[int, int]:
    """Rewrite a store as few large parts, videos in order of their ids.

    New parts are complete before an old one goes; a crash between leaves some videos in two
    parts, which readers take once. Parts that others commit meanwhile are left as they are.
    Rows of other library versions get parts of their own: a part tells how all its rows came to be.

    Returns: number of parts before and after.
    """
    store = FeatureStore(path)
    new = [
        part
        for versions, video_ids in _videos_by_versions(store)
        for part in _write_again(store, versions, video_ids, rows_per_part)
    ]
    store.close()
    try:
        for old in store.parts:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: an old part cannot be removed ({error.strerror})") from error
    return len(store.parts), len(new)


def _videos_by_versions(store: FeatureStore) -> list[tuple[dict[str, str], list[str]]]:
    """The ids, sorted, that each set of library versions made."""
    groups: dict[str, list[str]] = {}
    for path, videos in store.videos_by_part().items():
        with Part(path) as part:
            versions = json.dumps(dict(part.identity.versions), sort_keys=True)
            groups.setdefault(versions, []).extend(part.video_ids[video] for video in videos)
    return [(json.loads(versions), sorted(ids)) for versions, ids in groups.items() if ids]


def _write_again(
    store: FeatureStore, versions: dict[str, str], video_ids: list[str], rows_per_part: int
) -> list[Path]:
    parts: list[Path | None] = []
    with FeatureWriter(store.path, replace(store.identity, versions=versions)) as writer:
        rows = 0
        for video_id in video_ids:
            writer.add(video_id, store[video_id])
            rows += store.rows(video_id)
            if rows >= rows_per_part:
                parts.append(writer.commit())
                rows = 0
        parts.append(writer.commit())
    return [part for part in parts if part is not None]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
