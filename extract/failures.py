"""failures.jsonl: one line per video that could not be done, and what to do about it."""

from __future__ import annotations

import csv
import json
import os
import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from extract.store import FeatureStore, StoreError
from extract.videos import printable

FAILURES = "failures.jsonl"
PUBLISHED = ("torchvision ", "timm ", "pytorchvideo ")  # how stores name published weights


def append_failure(
    out: Path, video_id: str, path: Path, *, stage: str, error: str, attempts: int
) -> None:
    """Add one line, on a line of its own whatever a crash left; several processes may do so."""
    record = {
        "video_id": video_id,
        "path": printable(os.path.abspath(path)),
        "stage": stage,
        "error": printable(error),
        "attempts": attempts,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        with (out / FAILURES).open("a+b") as file:
            begun = file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"
            line = json.dumps(record, ensure_ascii=False) + "\n"
            file.write(b"\n" * bool(begun) + line.encode())
    except OSError as error:
        raise StoreError(f"{out / FAILURES}: cannot be written ({error.strerror})") from error


def open_failures(out: Path) -> list[dict[str, Any]]:
    """The last failure of each video that some store below `out` still lacks, by id.

    Raises: StoreError if failures.jsonl or a store cannot be read.
    """
    try:
        lines = (out / FAILURES).read_bytes().split(b"\n")  # names may hold other ends of lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{out / FAILURES}: cannot be read ({error.strerror})") from error
    last: dict[str, dict[str, Any]] = {}
    for line in lines:
        record = _parse(line)
        if record is not None:
            last[record["video_id"]] = record
    held = [set(FeatureStore(store).video_ids) for store in stores_below(out)]
    return [
        record
        for video_id, record in sorted(last.items())
        if not held or any(video_id not in ids for ids in held)
    ]


def _parse(line: bytes) -> dict[str, Any] | None:
    """A record; None for a line that a crash cut short."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and record.keys() >= {"video_id", "path", "error", "attempts"}
    return record if whole else None


def stores_below(out: Path) -> list[Path]:
    """Folders directly below `out` that hold parts."""
    return sorted({path.parent for path in out.glob("*/part-*.h5")} & set(out.iterdir()))


def write_retry_list(failures: list[dict[str, Any]], path: Path) -> int:
    """A list of videos that `liteeval-extract run` takes, with the ids they had.

    Returns: how many are left out, because no file has the path that failed: it is gone, or its
    name is not UTF-8.
    """
    listed = [failure for failure in failures if os.path.exists(failure["path"])]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["video_id", "path"])
            table.writerows([failure["video_id"], failure["path"]] for failure in listed)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
    return len(failures) - len(listed)


def retry_command(out: Path, retry_list: Path) -> str | None:
    """The command that tries them again, with what the stores say of the first run.

    None if no store tells. A weights file is known by its name alone: its folder is the user's.
    """
    name = str(retry_list)
    listed = os.path.join(".", name) if name.startswith("-") else name  # no option
    words = ["liteeval-extract", "run", listed, "--out", str(out)]
    stores = stores_below(out)
    for store in stores:
        identity = FeatureStore(store).identity
        backbone = f"{identity.backbone}@{identity.input_size_px}"
        words += ["--backbone", backbone]
        if identity.weights.startswith("random:"):
            words += ["--weights", f"{backbone}=random"]
        elif not identity.weights.startswith(PUBLISHED):
            words += ["--weights", f"{backbone}={identity.weights}"]
        shared = ["--fps", repr(identity.sample_fps)]
        shared += ["--precision", str(identity.preprocessing.get("precision", "fp32"))]
    return shlex.join(words + shared) if stores else None
