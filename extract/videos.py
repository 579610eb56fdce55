"""Folders, lists and CSV files in; videos with ids out.

The id of a video is its path relative to the folder given, without suffix, `/` as separator.
Files that are given one by one or by a list are relative to the folder of the list, or, where
they lie outside of it, known by their name. A name that is not UTF-8 is listed in a printable form;
decoding refuses that one video.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# fmt: off
SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".avc", ".avi", ".dif", ".divx", ".dv",
    ".f4v", ".flv", ".gif", ".h264", ".h265", ".h26l", ".hevc", ".ismv", ".ivf", ".m1v", ".m2p",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg",
    ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".swf", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
))
# fmt: on
MACOS_COMPANION = "._"  # attributes of the file of that name, on disks that cannot keep them
LISTS = frozenset({".txt", ".csv"})


class VideoListError(Exception):
    """The videos cannot be listed; the message says which argument and what to give instead."""


@dataclass(frozen=True)
class Video:
    """One source file and the id its rows are stored under."""

    id: str
    path: Path


def find_videos(
    sources: Iterable[str | os.PathLike[str]],
    *,
    on_found: Callable[[], object] = lambda: None,
    on_skipped: Callable[[str], object] = lambda name: None,
) -> list[Video]:
    """All videos in folders, list files (.txt, one path a line; .csv, column `path`) and files.

    Args:
        on_found: called once per video, to show progress.
        on_skipped: called with the name of each file in a folder that is taken for no video.

    Returns: videos sorted by id.
    Raises: VideoListError if a source is missing or two files would get one id.
    """
    found: dict[str, Video] = {}
    for source in sources:
        for video in _expand(Path(source), on_skipped):
            on_found()
            other = found.setdefault(video.id, video)
            if other is not video and other.path.resolve() != video.path.resolve():
                raise VideoListError(
                    f"two files would get the id {video.id!r}: {other.path} and {video.path}; "
                    "rename one or extract them to different outputs"
                )
    return [found[video_id] for video_id in sorted(found)]


def take_shard(videos: list[Video], index: int, count: int) -> list[Video]:
    """The videos of shard `index` (from 0) of `count`, by a hash of the id alone.

    Raises: VideoListError unless 0 ≤ index < count.
    """
    if not 0 <= index < count:
        raise VideoListError(f"shard {index}/{count}: expected i/n with 0 ≤ i < n")
    return [v for v in videos if zlib.crc32(v.id.encode()) % count == index]


def _expand(source: Path, on_skipped: Callable[[str], object]) -> Iterator[Video]:
    if os.path.isdir(source):
        yield from (_video(path, source) for path in walk_videos(source, on_skipped))
    elif not os.path.isfile(source):
        raise VideoListError(f"{source}: no such file or folder")
    elif source.suffix.lower() in LISTS:
        yield from _read_list(source)
    else:
        yield _video(source, source.parent)


def walk_videos(
    folder: Path, on_skipped: Callable[[str], object] = lambda name: None
) -> Iterator[Path]:
    """Files with a video's suffix at any depth; a folder that links reach twice is entered once.

    Raises: VideoListError if a folder cannot be read: its videos would go missing without a word.
    """
    entered: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and not name.startswith(MACOS_COMPANION):
                yield Path(parent, name)
            else:
                on_skipped(name)


def _unreadable(error: OSError) -> None:
    raise VideoListError(
        f"{error.filename}: cannot be read ({error.strerror}); make it readable, or move it away"
    ) from error


def _read_list(path: Path) -> Iterator[Video]:
    entries: list[tuple[str, str | None]]
    if path.suffix.lower() == ".csv":
        rows = _read_table(path, "path")
        entries = [(row["path"], row.get("video_id") or None) for row in rows]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # names may hold U+2028
        except (OSError, UnicodeDecodeError) as error:
            raise VideoListError(f"{path}: not a list of paths ({error})") from error
        entries = [(line, None) for line in lines if line.strip()]
    for entry, video_id in entries:
        video = path.parent / entry
        if "\0" in (video_id or ""):
            raise VideoListError(f"{path}: {video_id!r} cannot be an id: it has a NUL character")
        if not os.path.isfile(video):
            raise VideoListError(f"{path}: lists {entry!r}, but there is no file {video}")
        yield Video(video_id, video) if video_id else _video(video, path.parent)


def _video(path: Path, root: Path) -> Video:
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts:
        relative = Path(path.name)
    return Video(printable(relative.with_suffix("").as_posix()), path)


def printable(path: str | os.PathLike[str]) -> str:
    """A path as valid UTF-8, its other bytes as \\xNN; no file need have that name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_labelled_ids(path: str | os.PathLike[str]) -> list[str]:
    """The column video_id of a labels.csv.

    Raises: VideoListError if the file or the column is missing.
    """
    return [row["video_id"] for row in _read_table(Path(path), "video_id")]


def _read_table(path: Path, column: str) -> list[dict[str, str]]:
    """The rows of a CSV file; `column` is there and never empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VideoListError(f"{path}: cannot be read as CSV ({error})") from error
    if column not in (reader.fieldnames or ()):
        raise VideoListError(
            f"{path}: expected a column named {column}, found {reader.fieldnames}; "
            f"write a header line with {column}"
        )
    for number, row in enumerate(rows, start=2):
        if not row[column]:
            raise VideoListError(f"{path}: line {number} has no {column}")
    return rows
