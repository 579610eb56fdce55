"""A data set's own files → labels.csv, the list of its videos, and a report of what is there.

In the output folder:

    labels.csv       video_id,label,split      the videos found; several labels are joined by |
    videos.csv       video_id,path             the list that liteeval-extract run takes
    missing.txt      listed, but not found     extra.txt: found, but not listed
    duplicates.txt   listed or found more than once: the first is taken
    import.json      the report

A video's id is its path below the folder of videos, without suffix.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from operator import itemgetter
from pathlib import Path, PurePosixPath

from extract.videos import VideoListError, walk_videos
from pipelines.datasets import activitynet, breakfast, fcvid, folders, kinetics, table
from pipelines.datasets.listing import (
    LABEL_SEPARATOR,
    SPLITS,
    DataSet,
    DataSetError,
    Listed,
    Source,
    merge,
    require_annotations,
)

DATASETS: Mapping[str, DataSet] = {
    "activitynet": activitynet.DATASET,
    "fcvid": fcvid.DATASET,
    "kinetics": kinetics.DATASET,
    "breakfast": breakfast.DATASET,
    "folders": folders.DATASET,
    "table": table.DATASET,
}


@dataclass(frozen=True)
class Report:
    """How many videos are listed, and what became of them."""

    dataset: str
    listed: int
    found: int
    missing: int
    without_label: int  # listed, but their labels are not published
    unknown_class: int  # of val and test, with a class that no video of train has
    extra: int  # found, but not listed
    duplicates: int  # listed or found once more
    classes: int
    splits: Mapping[str, int]  # videos of labels.csv
    held_out: int  # videos of train that became val


@dataclass
class Matching:
    """Listed videos with their files, and what is left over. Paths are relative, with suffix."""

    files: dict[Listed, PurePosixPath]
    missing: list[Listed]
    extra: list[PurePosixPath]
    duplicates: list[str]


@dataclass(frozen=True)
class Imported:
    """What an import finds, before anything is written."""

    report: Report
    videos: Sequence[Path]  # those of labels.csv
    contents: Mapping[str, str]  # of the files to write, by name


def import_dataset(name: str, source: Source, out: Path, *, val_share: float = 0.1) -> Report:
    """Write labels.csv, videos.csv and the report; go on with the videos that are there.

    Raises: DataSetError as `examine`, or if `out` cannot be written.
    """
    imported = examine(name, source, val_share=val_share)
    _write(out, imported.contents)
    return imported.report


def examine(name: str, source: Source, *, val_share: float = 0.1) -> Imported:
    """Read the annotations and find the videos.

    Args:
        val_share: where the data set has no split val, the share of train that becomes val; with 0
            its split test becomes val.

    Raises: DataSetError if the annotations cannot be read or no listed video is found.
    """
    dataset = DATASETS[name]
    require_annotations(source, dataset)
    paths = find_files(source.videos)
    stems = [path.with_suffix("") for path in paths]
    listed, repeated = merge(dataset.read(source, list(dict.fromkeys(stems))))
    matching = match(listed, paths, dataset)
    labelled = [video for video in matching.files if video.labels]
    if not labelled:
        raise DataSetError(_nothing_found(source, listed, paths))
    chosen, held_out = choose_val(labelled, val_share=val_share)
    kept = drop_unknown_classes(chosen)
    report = Report(
        dataset=name,
        listed=len(listed),
        found=len(matching.files),
        missing=len(matching.missing),
        without_label=len(matching.files) - len(labelled),
        unknown_class=len(chosen) - len(kept),
        extra=len(matching.extra),
        duplicates=len(repeated) + len(matching.duplicates),
        classes=len({label for video in kept for label in video.labels}),
        splits={split: sum(v.split == split for v in kept) for split in SPLITS},
        held_out=held_out,
    )
    files = {video.path: path for video, path in matching.files.items()}
    located = sorted(((str(files[v.path].with_suffix("")), v) for v in kept), key=itemgetter(0))
    folder = source.videos.absolute()
    return Imported(
        report=report,
        videos=[folder / files[video.path] for _, video in located],
        contents={
            "labels.csv": _csv(
                ("video_id", "label", "split"),
                ((name, LABEL_SEPARATOR.join(v.labels), v.split) for name, v in located),
            ),
            "videos.csv": _csv(
                ("video_id", "path"),
                ((name, str(folder / files[v.path])) for name, v in located),
            ),
            "missing.txt": _lines(video.path for video in matching.missing),
            "extra.txt": _lines(map(str, matching.extra)),
            "duplicates.txt": _lines((*repeated, *matching.duplicates)),
            "import.json": json.dumps(asdict(report), indent=2) + "\n",
        },
    )


def find_files(folder: Path) -> list[PurePosixPath]:
    """The files below a folder that have a video's suffix, relative to it, sorted.

    Hidden files are none.

    Raises: DataSetError if it is no folder, a folder in it cannot be read, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise DataSetError(f"{folder}: no such folder; give the one that holds the videos")
    try:
        visible = [path for path in walk_videos(folder) if not path.name.startswith(".")]
    except VideoListError as error:
        raise DataSetError(str(error)) from error
    found = [PurePosixPath(path.relative_to(folder).as_posix()) for path in visible]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DataSetError(
                f"{os.fsencode(folder / path)!r}: the name is not UTF-8; rename it"
            ) from error
    return sorted(found)


def match(listed: Sequence[Listed], paths: Sequence[PurePosixPath], dataset: DataSet) -> Matching:
    """Find the file of each listed video by its name, and by its folders as far as both tell them.

    Listed `a/x` is the file x.mp4, a/x.mp4 or more/a/x.mp4, but not b/x.mp4, unless names are
    unique; listed `x` is any of them. Of several files the one is taken that shares most folders,
    then the first in order of their paths.
    """
    by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path in paths:
        by_name[dataset.fold_name(path.stem)].append(path)
    result = Matching({}, [], [], [])
    owner: dict[PurePosixPath, Listed] = {}
    seen: set[PurePosixPath] = set()
    for video in listed:
        wanted = PurePosixPath(video.path)
        same_name = by_name.get(dataset.fold_name(wanted.name), [])
        fitting = [p for p in same_name if dataset.unique_names or _fit(wanted, p, dataset)]
        fitting.sort(key=lambda p: -_shared_folders(wanted, p, dataset))
        free = [path for path in fitting if path not in owner]
        seen.update(fitting)
        if free:
            owner[free[0]] = video
            result.files[video] = free[0]
        elif fitting:
            result.duplicates.append(f"{video.path} (its file is that of {owner[fitting[0]].path})")
        else:
            result.missing.append(video)
    result.duplicates += [str(path) for path in paths if path in seen and path not in owner]
    result.extra += [path for path in paths if path not in seen]
    return result


def _fit(listed: PurePosixPath, file: PurePosixPath, dataset: DataSet) -> bool:
    """Whether the folders of the shorter path are the last ones of the longer."""
    fewest = min(len(listed.parts), len(file.parts)) - 1
    return _shared_folders(listed, file, dataset) == fewest


def _shared_folders(listed: PurePosixPath, file: PurePosixPath, dataset: DataSet) -> int:
    """How many folders next above the two files have the same names."""
    pairs = zip(reversed(listed.parts[:-1]), reversed(file.parts[:-1]), strict=False)
    same = (dataset.fold_name(a) == dataset.fold_name(b) for a, b in pairs)
    return len(list(takewhile(bool, same)))


def choose_val(listed: Sequence[Listed], *, val_share: float) -> tuple[list[Listed], int]:
    """Make a split val where there is none; returns the videos, and how many of train it took.

    Which groups are held out is told by a hash of their names: it does not depend on what else is
    there. A class always keeps a video in train.
    """
    if any(video.split == "val" for video in listed):
        return list(listed), 0
    if val_share == 0:
        return [replace(v, split="val") if v.split == "test" else v for v in listed], 0
    groups: dict[str, list[Listed]] = defaultdict(list)
    for video in listed:
        if video.split == "train":
            groups[video.group or video.path].append(video)
    left = Counter(label for members in groups.values() for v in members for label in v.labels)
    held_out: set[str] = set()
    for group in sorted(groups, key=_fraction):
        if held_out and _fraction(group) >= val_share:
            break
        lost = Counter(label for video in groups[group] for label in video.labels)
        if all(left[label] > count for label, count in lost.items()):
            left -= lost
            held_out.add(group)
    taken = {video for group in held_out for video in groups[group]}
    return [replace(v, split="val") if v in taken else v for v in listed], len(taken)


def _fraction(group: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6], "big") / 2**48


def drop_unknown_classes(listed: Sequence[Listed]) -> list[Listed]:
    """Without the videos of val and test that have a class which is not in train, if there is one.

    What nobody can learn nobody can be asked for; that happens where videos are missing.
    """
    known = {label for video in listed if video.split == "train" for label in video.labels}
    return [video for video in listed if not known or known.issuperset(video.labels)]


def _nothing_found(source: Source, listed: Sequence[Listed], paths: Sequence[PurePosixPath]) -> str:
    if not paths:
        return f"{source.videos}: no video in this folder or below it"
    if not listed:
        return (
            f"{source.videos}: none of {len(paths)} files, such as {paths[0]}, is of the data set"
        )
    return (
        f"{source.videos}: none of the {len(listed)} listed videos with a label is there; "
        f"expected a file such as {listed[0].path}.mp4, found {len(paths)}, such as {paths[0]}"
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _write(out: Path, contents: Mapping[str, str]) -> None:
    """Write the files; labels.csv and videos.csv, which others read, are never seen half-written.

    Raises: DataSetError if they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            temporary = out / f".{name}.tmp"
            temporary.write_text(content, encoding="utf-8", newline="")
            os.replace(temporary, out / name)
    except OSError as error:
        raise DataSetError(f"{out}: cannot be written ({error.strerror})") from error
