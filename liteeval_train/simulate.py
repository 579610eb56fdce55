"""Pairs of stores in which the right policy is known: read the key frames finely, no others.

Classes come in pairs. Rows of a video are Gaussian noise of unit deviation plus

    coarse rows   context_strength × direction of the pair
                  + hint_strength × one common direction, on key frames only
    fine rows     detail_strength × direction of the class, on key frames only     (needs="detail")
                  detail_strength × direction of the side, on key frames only      (needs="context")

so only key frames tell the two classes of a pair apart, and only the fine backbone sees it. With
needs="context" fine rows say only which of the two sides it is, alike for all pairs; the pair
itself stands in coarse rows, too weak in any one frame, so what the coarse network gathered over
the skipped frames has to reach the prediction: the synchronisation of states does that.

Directions are orthonormal, strengths are in noise deviations.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from extract.store import FeatureWriter, StoreIdentity, VideoFeatures
from liteeval_train.cost import FLOP_CONVENTION
from liteeval_train.data import DataError

COARSE_GFLOPS, FINE_GFLOPS = 0.0822, 7.8014  # of mobilenet_v2@112 and resnet101@224
COARSE_DIM, FINE_DIM = 32, 64
MAX_STRENGTH = 1000  # float16 rows end at 65504


@dataclass(frozen=True)
class Simulation:
    """What to simulate; all of it stands in simulation.json beside the stores."""

    needs: Literal["detail", "context"] = "detail"
    videos: int = 600
    val_share: float = 0.25
    classes: int = 10
    min_frames: int = 20
    max_frames: int = 60
    key_share: float = 0.05
    hint_strength: float = 6.0
    detail_strength: float = 6.0
    context_strength: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2 or self.classes % 2 or self.classes + 1 > COARSE_DIM:
            raise DataError(f"classes must be even, from 2 to {COARSE_DIM - 2}: {self.classes}")
        if not 1 <= self.min_frames <= self.max_frames:
            raise DataError(f"frames must satisfy 1 ≤ {self.min_frames} ≤ {self.max_frames}")
        if not (0 < self.key_share <= 1 and 0 < self.val_share < 1):
            raise DataError("key share must lie in (0, 1], val share in (0, 1)")
        for name in ("hint_strength", "detail_strength", "context_strength"):
            if not 0 <= getattr(self, name) <= MAX_STRENGTH:
                raise DataError(
                    f"{name.replace('_', ' ')} must lie in [0, {MAX_STRENGTH}] deviations of the "
                    f"noise: {getattr(self, name)}"
                )
        if self.videos - self.validation < self.classes:
            raise DataError(
                f"{self.videos} videos leave {self.videos - self.validation} for split train, too "
                f"few for {self.classes} classes; ask for more videos or fewer classes"
            )

    @property
    def validation(self) -> int:
        """How many of the videos are of split val; the others are of split train."""
        return round(self.videos * self.val_share)


def simulate(simulation: Simulation, out: Path) -> None:
    """Write OUT/coarse, OUT/fine, OUT/labels.csv, OUT/key_frames.jsonl and OUT/simulation.json.

    Raises: DataError if `out` holds a simulation already, or cannot be made.
    """
    try:
        if (out / "simulation.json").exists():
            raise DataError(f"{out}: holds a simulation already; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be created ({error.strerror})") from error
    random = np.random.default_rng(simulation.seed)
    directions = {dim: _orthonormal(random, dim) for dim in (COARSE_DIM, FINE_DIM)}
    with (
        FeatureWriter(out / "coarse", _identity(simulation, "coarse")) as coarse,
        FeatureWriter(out / "fine", _identity(simulation, "fine")) as fine,
        (out / "labels.csv").open("w", newline="", encoding="utf-8") as labels,
        (out / "key_frames.jsonl").open("w", encoding="utf-8") as keys,
    ):
        table = csv.writer(labels)
        table.writerow(["video_id", "label", "split"])
        for number in range(simulation.videos):
            label = number % simulation.classes
            coarse_TD, fine_TD, key_T = _draw(simulation, random, directions, label)
            video_id = f"video_{number:05d}"
            coarse.add(video_id, _video(video_id, coarse_TD))
            fine.add(video_id, _video(video_id, fine_TD))
            split = "val" if number < simulation.validation else "train"
            table.writerow([video_id, f"class_{label:03d}", split])
            keys.write(json.dumps({"video_id": video_id, "rows": key_T.tolist()}) + "\n")
    (out / "simulation.json").write_text(json.dumps(asdict(simulation), indent=2))


def key_rows(path: Path) -> dict[str, set[int]]:
    """The key frames of each simulated video, by row of the store."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["video_id"]: set(line["rows"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the key_frames.jsonl of a simulation ({error})") from error


def key_frame_shares(
    reads: Mapping[str, set[int]], keys: Mapping[str, set[int]], rows: Mapping[str, int]
) -> dict[str, float]:
    """Shares of all key frames and of all other frames that were read finely.

    Args:
        reads: rows read finely of each video. keys: its key rows. rows: how many it has.

    One video of 10 rows, keys {2, 5}, reads {2, 3}: 1/2 of key frames, 1/8 of the others.
    """
    hits = sum(len(reads[video] & keys[video]) for video in reads)
    others = sum(len(reads[video] - keys[video]) for video in reads)
    all_keys = sum(len(keys[video]) for video in reads)
    all_rows = sum(rows[video] for video in reads)
    return {
        "key_frames_read": hits / all_keys,
        "other_frames_read": others / max(1, all_rows - all_keys),
    }


def _orthonormal(random: np.random.Generator, dim: int) -> np.ndarray:
    """(dim, dim): rows are directions."""
    basis, _ = np.linalg.qr(random.standard_normal((dim, dim)))
    return basis


def _draw(
    simulation: Simulation,
    random: np.random.Generator,
    directions: dict[int, np.ndarray],
    label: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse rows (T, D_c), fine rows (T, D_f) and key rows of one video."""
    s = simulation
    frames = int(random.integers(s.min_frames, s.max_frames + 1))
    count = max(1, round(s.key_share * frames))
    key = np.sort(random.choice(frames, size=count, replace=False))
    coarse = random.standard_normal((frames, COARSE_DIM))
    fine = random.standard_normal((frames, FINE_DIM))
    coarse_directions, fine_directions = directions[COARSE_DIM], directions[FINE_DIM]
    coarse += s.context_strength * coarse_directions[label // 2]
    coarse[key] += s.hint_strength * coarse_directions[-1]
    fine[key] += s.detail_strength * fine_directions[label if s.needs == "detail" else label % 2]
    return coarse, fine, key


def _video(video_id: str, rows: np.ndarray) -> VideoFeatures:
    frames = len(rows)
    return VideoFeatures(
        features=rows.astype(np.float16),
        pts_seconds=np.arange(frames, dtype=np.float64),
        frame_index=np.arange(frames, dtype=np.int64),
        duration_seconds=float(frames),
        source_fps=1.0,
        source_path=f"simulated/{video_id}",
        source_bytes=0,
        decoder="simulated",
    )


def _identity(simulation: Simulation, name: str) -> StoreIdentity:
    """Stores of two simulations are as different as those of two networks."""
    dim, gflops = (COARSE_DIM, COARSE_GFLOPS) if name == "coarse" else (FINE_DIM, FINE_GFLOPS)
    made_by = json.dumps(asdict(simulation), sort_keys=True)
    return StoreIdentity(
        backbone=f"simulated_{name}",
        input_size_px=1,
        weights="simulated",
        weights_sha256=hashlib.sha256(made_by.encode()).hexdigest(),
        preprocessing={},
        sample_fps=1.0,
        feature_dim=dim,
        gflops_per_frame=gflops,
        flop_convention=FLOP_CONVENTION,
        parameters=0,
    )
