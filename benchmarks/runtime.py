"""Two settings under which liteeval-extract runs its networks on the CPU, each against its absence.

    python -m benchmarks.runtime [--backbone resnet101@224] [--rounds 5]

freed memory: glibc keeps freed activations (extract.run.keep_freed_memory); else every batch faults
its memory in again. Compared by the network's own processor time, kernel included, on one thread.

OMP_WAIT_POLICY=PASSIVE: threads that wait for the others sleep; else they spin and take the cores
of the decode processes. Compared by the time in which some batches and the fixed work of as many
busy processes as there are cores less one are done.

Processes with and without the setting take turns; the medians count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

BATCH = 8
GFLOPS = 200  # of a network in one process
LOOPS = 20_000_000  # of a busy process: about a second


def network_seconds(backbone: str, *, keep: bool, threads: int, beside: int) -> float:
    """Seconds for some batches: processor time, or wall time beside busy processes."""
    import torch

    from extract.backbones import load_backbone, parse_backbone
    from extract.run import keep_freed_memory

    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    loaded = load_backbone(parse_backbone(backbone), "random")
    extractor = loaded.extractor.to(memory_format=torch.channels_last)
    shape = (BATCH, *loaded.spec.preprocessing.row_shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    clock = time.perf_counter if beside else time.process_time
    with torch.inference_mode():
        extractor(pixels)
        started = clock()
        workers = [multiprocessing.Process(target=_decode_like_work) for _ in range(beside)]
        for worker in workers:
            worker.start()
        for _ in range(round(GFLOPS / (BATCH * loaded.gflops_per_frame))):
            extractor(pixels)
        for worker in workers:
            worker.join()
        return clock() - started


def _decode_like_work() -> None:
    """Plain arithmetic on one core."""
    total = 0
    for i in range(LOOPS):
        total += i


def in_a_process(backbone: str, variant: str) -> float:
    """The settings must stand before torch is loaded."""
    environment = dict(os.environ)
    environment.pop("OMP_WAIT_POLICY", None)
    if variant == "passive":
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    command = [sys.executable, "-m", "benchmarks.runtime", "--backbone", backbone, "--one", variant]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(result.stdout)


def _one(backbone: str, variant: str) -> float:
    cores = len(os.sched_getaffinity(0))
    if variant in ("kept", "returned"):
        return network_seconds(backbone, keep=variant == "kept", threads=1, beside=0)
    return network_seconds(backbone, keep=True, threads=cores, beside=max(1, cores - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backbone", default="resnet101@224")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=["kept", "returned", "passive", "spinning"])
    arguments = parser.parse_args()
    if arguments.one:
        print(_one(arguments.backbone, arguments.one))
        return
    for title, setting, absence in (
        ("freed memory kept by glibc", "kept", "returned"),
        ("OMP_WAIT_POLICY=PASSIVE beside busy processes", "passive", "spinning"),
    ):
        seconds: dict[str, list[float]] = {setting: [], absence: []}
        for _ in range(arguments.rounds):
            for variant, values in seconds.items():
                values.append(in_a_process(arguments.backbone, variant))
        with_it, without = (statistics.median(values) for values in seconds.values())
        print(
            f"{title}, {arguments.backbone}: {with_it:.2f} s against {without:.2f} s, "
            f"ratio {with_it / without:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
