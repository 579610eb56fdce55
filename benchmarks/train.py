"""Step time of LiteEval's training against a plain loop over the same equations.

The plain loop is written as public code writes it: padded (B, T, D) features, and at each step
both projections, both cells, the gate and the blend. Forward, backward, clipping and Adam are
timed for both, turn by turn in one process; every video has T frames, so no side gains from
padding. The gate's share of open frames matters to us alone (backward leaves out rows whose gate
is closed): the ratio is printed for an untrained gate (about half open) and for one as after
training (about 1 frame in 10). On a GPU ours runs twice: with its loop as `fit` runs it, and
captured as CUDA graphs (`fit --capture`).

    python -m benchmarks.train [--videos 32] [--frames 32] [--preset fcvid] [--device cpu]
    python -m benchmarks.train --device cuda --videos 256 --frames 129 [--precision bf16]

On a machine that others use, wall time says little: `OMP_NUM_THREADS=1 ... --clock cpu` does not
count the time spent waiting.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from liteeval_train.config import PRESETS, TrainConfig, resolve_config
from liteeval_train.data import Batch, Sample, collate, with_uniforms
from liteeval_train.loop import CapturedLoop, capture_on_gpu
from liteeval_train.model import LiteEval

COARSE_DIM, FINE_DIM, CLASSES = 1280, 2048, 239
GOALS = {"cpu": 1.6, "cuda": 5.0}


class PlainLiteEval(nn.Module):
    """Equations 1–7 with everything inside the loop."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.project_coarse = _projection(COARSE_DIM, config.coarse_projection)
        self.project_fine = _projection(FINE_DIM, config.fine_projection)
        both = config.coarse_projection + config.fine_projection
        self.coarse_cell = nn.LSTMCell(config.coarse_projection, config.coarse_hidden)
        self.fine_cell = nn.LSTMCell(both, config.fine_hidden)
        self.gate = nn.Linear(config.coarse_projection + 2 * config.fine_hidden, 2)
        self.classifier = nn.Linear(config.fine_hidden, CLASSES)
        with torch.no_grad():
            self.gate.bias[1] += config.gate_bias

    def forward(self, coarse_BTD: Tensor, fine_BTD: Tensor, label_B: Tensor) -> Tensor:
        videos, steps = coarse_BTD.shape[:2]
        coarse = [coarse_BTD.new_zeros(videos, self.config.coarse_hidden) for _ in range(2)]
        fine = [coarse_BTD.new_zeros(videos, self.config.fine_hidden) for _ in range(2)]
        used = []
        for t in range(steps):
            v_c = self.project_coarse(functional.normalize(coarse_BTD[:, t], dim=1))
            v_f = self.project_fine(functional.normalize(fine_BTD[:, t], dim=1))
            coarse = list(self.coarse_cell(v_c, coarse))
            logits = self.gate(torch.cat([v_c, *fine], dim=1))
            gate = functional.gumbel_softmax(logits, tau=1.0, hard=True)[:, 1:]
            read = self.fine_cell(torch.cat([v_c, v_f], dim=1), fine)
            skipped = [
                torch.cat([c, f[:, c.shape[1] :]], dim=1) for c, f in zip(coarse, fine, strict=True)
            ]
            fine = [gate * r + (1 - gate) * s for r, s in zip(read, skipped, strict=True)]
            used.append(gate)
        usage = (torch.cat(used, dim=1).mean(dim=1) - self.config.fine_share_target) ** 2
        loss = functional.cross_entropy(self.classifier(fine[0]), label_B)
        return loss + self.config.usage_weight * usage.mean()


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()
    )


def make_batch(videos: int, frames: int) -> Batch:
    random = np.random.default_rng(0)
    samples = []
    for number in range(videos):
        t = np.arange(frames)
        coarse = random.random((frames, COARSE_DIM)).astype(np.float16)
        fine = random.random((frames, FINE_DIM)).astype(np.float16)
        sample = Sample(str(number), t, t * 1.0, coarse, fine, (number % CLASSES,), number)
        samples.append(with_uniforms(sample, seed=0, epoch=0))
    return collate(samples, classes=CLASSES)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def stepper(
    module: nn.Module,
    loss: Callable[[], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    clock: Callable[[], float],
) -> Callable[[], float]:
    """A training step that returns its seconds."""
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-6, fused=device.type == "cuda")

    def step() -> float:
        start = clock()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    return step


def measure(
    config: TrainConfig, batch: Batch, repeats: int, dtype: torch.dtype, clock: Callable[[], float]
) -> tuple[dict[str, float], float]:
    """Median seconds per step of the plain loop and of ours, and the share of open gates."""
    device = batch.coarse_ND.device
    frames = batch.packing.lengths[0]
    plain = PlainLiteEval(config).to(device)
    coarse_BTD = batch.coarse_ND.reshape(frames, -1, COARSE_DIM).transpose(0, 1).contiguous()
    fine_BTD = batch.fine_ND.reshape(frames, -1, FINE_DIM).transpose(0, 1).contiguous()
    label_B = batch.labels_BK.argmax(dim=1)
    losses: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "plain loop": (plain, lambda: plain(coarse_BTD, fine_BTD, label_B))
    }
    for name in ("ours", "ours, captured") if device.type == "cuda" else ("ours",):
        ours = LiteEval(config, coarse_dim=COARSE_DIM, fine_dim=FINE_DIM, classes=CLASSES)
        ours.to(device)
        if name == "ours, captured":
            videos = len(batch.packing.lengths)
            ours.captured = CapturedLoop(capture_on_gpu, steps=frames, videos=videos)
        losses[name] = ours, functools.partial(_loss, ours, batch)
    steps = {name: stepper(*pair, device, dtype, clock) for name, pair in losses.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            elapsed = step()
            if repeat:  # the first is a warm-up
                seconds[name].append(elapsed)
    with torch.no_grad():
        ours.captured = None  # whose memory the next gate needs
        gc.collect()
        share = float(ours(batch, progress=0.0).parts["fine_share"])
    return {name: statistics.median(times) for name, times in seconds.items()}, share


def _loss(ours: LiteEval, batch: Batch) -> Tensor:
    return ours(batch, progress=0.0).loss


def matrix_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Multiply-adds per second of a large product, best of four."""
    a, b = (torch.randn(3072, 3072, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = clock()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 3072**3 / best


def dense_multiply_adds(config: TrainConfig, videos: int, frames: int) -> float:
    """Of a training step with every row computed: forward once, backward twice that."""
    with torch.device("meta"):
        head = LiteEval(
            config, coarse_dim=COARSE_DIM, fine_dim=FINE_DIM, classes=CLASSES
        ).head_flops()
    rows = videos * frames
    return 3.0 * (rows * (head.per_frame + head.per_fine_frame) + videos * head.per_video)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--preset", choices=list(PRESETS), default="fcvid")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: on a busy one")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    batch = make_batch(options.videos, options.frames).to(device)
    print(
        f"{options.preset}: {options.videos} videos of {options.frames} frames, {device}, "
        f"{options.precision}, {torch.get_num_threads()} threads, {options.clock} time, "
        f"torch {torch.__version__}"
    )
    clock, dtype = CLOCKS[options.clock], PRECISIONS[options.precision]
    peak = matrix_peak(device, dtype, clock)
    for name, bias in (("untrained gate", 0.0), ("gate as after training", -2.5)):
        torch.manual_seed(0)
        config = resolve_config(preset=options.preset, settings=[f"gate_bias={bias}"])
        seconds, share = measure(config, batch, options.repeats, dtype, clock)
        plain = seconds.pop("plain loop")
        print(f"{name} ({share:.0%} open): plain loop {plain:.3f} s a step")
        for ours, time_of_step in seconds.items():
            used = dense_multiply_adds(config, options.videos, options.frames) / time_of_step / peak
            print(
                f"  {ours} {time_of_step:.3f} s, ratio {plain / time_of_step:.2f} "
                f"(goal {GOALS[device.type]}); dense count of the step at {used:.0%} of the "
                "matrix peak"
            )


if __name__ == "__main__":
    main()
