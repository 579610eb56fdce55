"""GFLOPs of a video: backbones on the frames they saw, plus the head as it ran.

1 multiply-add = 1 FLOP. Matrix products and the backbones are counted; norms, activations and
additions (well under 1 % of either) are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liteeval_train.method import HeadFlops

FLOP_CONVENTION = "1 multiply-add = 1 FLOP"


@dataclass(frozen=True)
class Cost:
    """GFLOPs of one video, by part."""

    coarse: float
    fine: float
    recurrent: float  # projections, recurrent networks, gate and classifier

    @property
    def total(self) -> float:
        return self.coarse + self.fine + self.recurrent


def video_cost(
    *,
    coarse_frames: int,
    fine_frames: int,
    frames_seen: int,
    coarse_gflops: float,
    fine_gflops: float,
    head: HeadFlops,
    read_again: int = 0,
) -> Cost:
    """The cost of one video.

    Args:
        coarse_frames, fine_frames: frames on which each backbone ran.
        frames_seen: steps that the head took.
        coarse_gflops, fine_gflops: of each backbone per frame, as the stores say.
        read_again: steps of the head on fine frames that it had read before; no backbone runs.

    10 frames seen, 2 of them finely, at 0.08 and 7.8 GFLOPs: 0.8 + 15.6, plus the head's.
    """
    fine_steps = fine_frames + read_again
    multiply_adds = frames_seen * head.per_frame + fine_steps * head.per_fine_frame + head.per_video
    return Cost(coarse_frames * coarse_gflops, fine_frames * fine_gflops, multiply_adds / 1e9)
