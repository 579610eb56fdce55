"""Would a backbone be faster if its network were rewritten before it runs?

    python -m benchmarks.networks [--device cpu] [--backbone mobilenet_v2@112 …] [--seconds 2]

Images per second of the same batch in each form, taking turns, the median of the rounds:

    eager           the network as published
    channels last   weights in the order of NHWC: what liteeval-extract runs on a GPU
    fused           and each normalisation folded into the convolution before it: on a CPU
    compiled        and by torch.compile; on a GPU with CUDA graphs
    frozen          compiled with the weights as constants (CPU)

Beside them how far features lie from the eager ones, as a share of their length, and the seconds
that the first batch takes more than the later ones. On the CPU one thread works and its own time
counts, whatever else the machine does. On a GPU networks run in bfloat16 and the share of its peak
is printed (1 multiply-add = 2 of its operations).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.extract import peak_tflops
from extract.backbones import Backbone, load_backbone, parse_backbone
from extract.run import autocast, default_batch_size, keep_freed_memory

ROUNDS = 5
Network = Callable[[Tensor], Tensor]


def forms(backbone: Backbone, device: torch.device) -> dict[str, Callable[[], Network]]:
    """How to make each form of a network."""

    def eager() -> nn.Module:
        return copy.deepcopy(backbone.extractor).to(device)

    def channels_last() -> nn.Module:
        return eager().to(memory_format=torch.channels_last)

    def fused() -> nn.Module:
        extractor = eager()
        extractor.network = fuse(extractor.network)
        return extractor.to(memory_format=torch.channels_last)

    def compiled() -> Network:
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        return torch.compile(channels_last(), mode=mode)

    def frozen() -> Network:
        return torch.compile(channels_last(), options={"freezing": True})

    made: dict[str, Callable[[], Network]] = {
        "eager": eager,
        "channels last": channels_last,
        "fused": fused,
        "compiled": compiled,
    }
    return made if device.type == "cuda" else {**made, "frozen": frozen}


def images_per_second(network: Network, pixels: Tensor, seconds: float) -> float:
    clock = time.perf_counter if pixels.is_cuda else time.process_time
    batches, started = 0, clock()
    while clock() - started < seconds:
        network(pixels)
        _synchronize(pixels)
        batches += 1
    return batches * len(pixels) / (clock() - started)


def _first_batch(network: Network, pixels: Tensor) -> tuple[Tensor, float]:
    """(N, D) features and the seconds the first call took more than the second."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        features = network(pixels).float().clone()
        _synchronize(pixels)
        seconds.append(time.perf_counter() - started)
    return features, seconds[0] - seconds[1]


def _synchronize(pixels: Tensor) -> None:
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)


def measure(backbone: Backbone, device: torch.device, precision: str, seconds: float) -> None:
    """Print a line for each form."""
    shape = backbone.spec.preprocessing.row_shape
    batch = default_batch_size(shape, device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
    pixels = pixels.to(device)
    networks: dict[str, Network] = {}
    facts: dict[str, tuple[float, float]] = {}
    expected: Tensor | None = None
    with torch.inference_mode(), autocast(device, precision):
        for name, make in forms(backbone, device).items():
            try:
                networks[name] = make()
                features, warm_up = _first_batch(networks[name], pixels)
            except Exception as error:  # a network that cannot be rewritten is a result
                networks.pop(name, None)
                print(f"  {name:14} failed: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            expected = features if expected is None else expected
            gap = (features - expected).norm(dim=1) / expected.norm(dim=1)
            facts[name] = (float(gap.max()), warm_up)
        rates: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(ROUNDS):
            for name, network in networks.items():
                rates[name].append(images_per_second(network, pixels, seconds / ROUNDS))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{backbone.spec}, batches of {batch}, {precision}, {device.type}")
    for name, rate in medians.items():
        gap, warm_up = facts[name]
        line = (
            f"  {name:14} {rate:9.1f} images/s  {rate / medians['channels last']:5.2f} ×  "
            f"differs by {gap:.1e}  first batch +{warm_up:.1f} s"
        )
        peak = peak_tflops(device)
        if peak is not None:
            line += f"  {2e-3 * backbone.gflops_per_frame * rate / peak:.1%} of peak"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--seconds", type=float, default=5.0, help="per form")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    precision = "fp32"
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()  # as liteeval-extract does
    else:
        precision = "bf16"
    for name in arguments.backbone or ["mobilenet_v2@112", "resnet101@224"]:
        measure(load_backbone(parse_backbone(name), "random"), device, precision, arguments.seconds)


if __name__ == "__main__":
    main()
