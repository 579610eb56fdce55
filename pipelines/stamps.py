"""Which jobs are done: the stamps that they leave, and the hashes in them.

One rule: a job is done if it has ended well, what it made is there, and neither its command nor
anything that it reads has changed since it started. The hash over command and all that it reads
is its digest. When it ends, what it made is hashed; a job after it that reads this takes the hash
from there. Both stand in its stamp, OUT/jobs/NAME.json. So a job that runs again and makes the
same leaves all that follows done.

Videos count by path and size, as extraction knows them; a feature store by its parts, which never
change; every other file by its content. Paths in OUT count relative to it: it may be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from extract.videos import VideoListError, find_videos, walk_videos
from pipelines.jobs import Job, JobError, Layout, write_text

SOME_VIDEOS_FAILED = 3
ENDED_WELL = (0, SOME_VIDEOS_FAILED)
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stamp:
    """What is known of a job's last start, and how it ended."""

    digest: str  # of its command and all that it read
    exit_code: int | None  # None: started, not ended
    seconds: float = 0.0
    command: str = ""
    utc: str = ""  # of the start
    forced: bool = False  # the user had asked for it
    made: dict[str, str] = field(default_factory=dict)  # path, relative to OUT → hash

    @property
    def ended_well(self) -> bool:
        return self.exit_code in ENDED_WELL

    @classmethod
    def read(cls, path: Path) -> Stamp | None:
        """None if there is none, or none that can be understood: then the job runs again."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def digest(job: Job, layout: Layout) -> str:
    """Hash over the command and all that the job reads.

    What a job before it made is taken from that job's stamp, so that large files are read once.
    """
    stamps = (Stamp.read(layout.stamp(name)) for name in job.depends_on)
    made = {path: found for stamp in stamps if stamp for path, found in stamp.made.items()}
    names = {path: _relative(str(path), layout) for path in job.inputs}
    content = {
        "argv": [_relative(word, layout) for word in job.argv],
        "inputs": {name: made.get(name) or _hash_file(path) for path, name in names.items()},
        "videos": _list_videos(job.videos, layout) if job.videos else [],
    }
    return _hash(content)


def hash_outputs(job: Job, layout: Layout) -> dict[str, str]:
    """What a job has made: path, relative to OUT → hash."""
    return {_relative(str(path), layout): _hash_output(path) for path in job.outputs}


def _relative(text: str, layout: Layout) -> str:
    """A word of a command in which OUT stands for the output folder."""
    return re.sub(rf"{re.escape(str(layout.out))}(?=/|$)", "OUT", text)


def is_done(job: Job, layout: Layout, wanted: str) -> bool:
    """Whether it ended well with this digest and what it made is there."""
    stamp = Stamp.read(layout.stamp(job.name))
    return (
        stamp is not None
        and stamp.ended_well
        and stamp.digest == wanted
        and all(path.exists() for path in job.outputs)
    )


def set_aside(job: Job, layout: Layout, wanted: str, *, forced: bool = False) -> list[Path]:
    """Move to OUT/old what an earlier start of the job left, unless this start goes on with it.

    It goes on if the digest is the same. If the user forces it, it starts over all the same, unless
    the last start was forced too and was interrupted.

    Returns: where to.
    Raises: JobError if it cannot be moved.
    """
    stamp = Stamp.read(layout.stamp(job.name))
    same = stamp is None or stamp.digest == wanted
    if forced and not (same and stamp and stamp.forced and stamp.exit_code is None):
        return move_aside(job.replaces or job.outputs, layout.out, layout.old)
    return [] if same else move_aside(job.replaces, layout.out, layout.old)


def move_aside(paths: Iterable[Path], root: Path, old: Path) -> list[Path]:
    """Move those paths below `root` that exist to a new folder in `old`; returns where to.

    Raises: JobError if one cannot be moved.
    """
    folder = old / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    moved = []
    for path in filter(os.path.lexists, paths):
        target = folder / path.relative_to(root)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)  # copies where OUT spans two file systems
        except OSError as error:
            raise JobError(
                f"{path}: cannot be moved to {target} ({error.strerror}); move it away yourself "
                "and run again"
            ) from error
        moved.append(target)
    return moved


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    """Hash of a file's content; that it cannot be read is a content too."""
    try:
        status = path.stat()
        return _hash_content(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return f"unreadable: {error.strerror}"


@cache
def _hash_content(path: Path, size: int, mtime_ns: int) -> str:
    """Read once in a process as long as size and time stay."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _hash_output(path: Path) -> str:
    """Of a store its parts count by name, of another folder all files."""
    from extract.store import part_paths  # loads numpy: not for every command line

    if not path.is_dir():
        return _hash_file(path)
    parts = [part.name for part in part_paths(path)]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _hash(parts or [(str(file.relative_to(path)), _hash_file(file)) for file in files])


def _list_videos(source: Path, layout: Layout) -> list[tuple[str, str, int]]:
    """Id, if a list gives it, path and size of each video in a folder or list, sorted."""
    try:
        if source.is_dir():
            named = [("", path) for path in walk_videos(source)]
        else:
            named = [(video.id, video.path) for video in find_videos([source])]
        return sorted((i, _relative(str(path), layout), path.stat().st_size) for i, path in named)
    except (OSError, VideoListError) as error:
        return [("unreadable", str(error), 0)]
