"""failures.jsonl: one line per video that could not be done, and what to do about it."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from extract.store import FeatureStore, part_paths

FAILURES = "failures.jsonl"


def append_failure(
    out: Path, video_id: str, path: Path, *, stage: str, error: str, attempts: int
) -> None:
    """Add one line; several processes may do so at once."""
    record = {
        "video_id": video_id,
        "path": str(path),
        "stage": stage,
        "error": error,
        "attempts": attempts,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with (out / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def open_failures(out: Path) -> list[dict[str, Any]]:
    """The last failure of each video that some store below `out` still lacks, by id."""
    try:
        lines = (out / FAILURES).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
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


def _parse(line: str) -> dict[str, Any] | None:
    """A record; None for a line that a crash cut short."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "video_id" in record else None


def stores_below(out: Path) -> list[Path]:
    """Folders directly below `out` that hold parts."""
    return sorted({path.parent for path in out.glob("*/part-*.h5")} & set(out.iterdir()))


def write_retry_list(failures: list[dict[str, Any]], path: Path) -> None:
    """A list of videos that `liteeval-extract run` takes, with the ids they had."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "path"])
        for failure in failures:
            table.writerow([failure["video_id"], Path(failure["path"]).absolute()])


def retry_command(out: Path, retry_list: Path) -> str:
    """The command that tries them again; its options must be those of the first run."""
    backbones = []
    for store in stores_below(out):
        assert part_paths(store)
        identity = FeatureStore(store).identity
        backbones.append(f"--backbone {identity.backbone}@{identity.input_size_px}")
    chosen = " ".join(backbones) or "--backbone …"
    return f"liteeval-extract run {retry_list} --out {out} {chosen}"
