"""LITEEVAL-RL: the same network, its gate learned by REINFORCE instead of Gumbel-softmax.

    reward = correct − λ (usage − γ)²            one per video
    loss   = CE(p[T], y) − w_p mean_b sum_t log π(B[t]) (reward − v[t])
             + mean_b mean_t (v[t] − reward)² − w_e entropy

v is a linear baseline on the output h_f[t−1] that the gate sees, and passes no gradient on. What
is sampled carries none either: cross-entropy trains classifier, recurrent networks and projections
as if B were given. The policy term trains the gate and, through the states that the gate reads,
the recurrent networks and projections too. The gate is sampled from its own softmax: there is no
temperature, and noise_scale has no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.config import TrainConfig
from liteeval_train.data import Batch
from liteeval_train.losses import classification_loss, fine_share
from liteeval_train.method import TrainingStep
from liteeval_train.metrics import in_top
from liteeval_train.model import OPEN, LiteEval, sample_gate


class LiteEvalRL(LiteEval):
    """Evaluation is LiteEval's."""

    def __init__(
        self, config: TrainConfig, *, coarse_dim: int, fine_dim: int, classes: int
    ) -> None:
        super().__init__(config, coarse_dim=coarse_dim, fine_dim=fine_dim, classes=classes)
        self.value = nn.Linear(config.fine_hidden, 1)

    @staticmethod
    def sample(logits_B2: Tensor, noise_B2: Tensor, temperature: float | Tensor) -> Tensor:
        """A sample of the gate without gradient."""
        return sample_gate(logits_B2.detach(), noise_B2, 1.0)

    def forward(self, batch: Batch, *, progress: float) -> TrainingStep:
        passed, projected = self._train_pass(batch, temperature=1.0, noise_scale=1.0)
        used_N, gate_N2 = passed.used_N, passed.logits_N2
        share_B = fine_share(used_N, batch.video_N, batch.lengths_B)
        logits_BK = self.classifier(passed.outputs(batch.last_B))
        classification = classification_loss(logits_BK, batch.labels_BK)
        gap_B = (share_B - self.config.fine_share_target).square()
        reward_B = (
            in_top(logits_BK, batch.labels_BK, 1).float() - self.usage_weight(progress) * gap_B
        )
        seen_NH = passed.outputs(batch.before_N).detach()  # by the gates of later frames
        first_BH = seen_NH.new_zeros(len(batch.lengths_B), seen_NH.shape[1])
        value_N = self.value(torch.cat([first_BH, seen_NH]))[:, 0]
        advantage_N = reward_B.detach()[batch.video_N] - value_N
        log_policy_N2 = functional.log_softmax(gate_N2, dim=1)
        log_chosen_N = torch.where(used_N > 0.5, log_policy_N2[:, OPEN], log_policy_N2[:, 1 - OPEN])
        videos = len(batch.lengths_B)
        policy = -(log_chosen_N * advantage_N.detach()).sum() / videos
        per_frame_N = 1 / (batch.lengths_B[batch.video_N] * videos)  # mean over frames, then videos
        entropy = -((log_policy_N2.exp() * log_policy_N2).sum(dim=1) * per_frame_N).sum()
        value = (advantage_N.square() * per_frame_N).sum()
        frames = self.frames(projected, batch)
        loss = classification + frames + self.config.policy_weight * policy + value
        return TrainingStep(
            loss - self.config.entropy_weight * entropy,
            {
                "classification": classification.detach(),
                "frame_loss": frames.detach(),
                "reward": reward_B.detach().mean(),
                "fine_share": share_B.detach().mean(),
            },
        )
