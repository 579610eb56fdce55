"""How close extraction comes to its limit: decode only, networks only, and end to end in one run.

    python -m benchmarks.extract [--device auto] [--backbone mobilenet_v2@112 …] [--repeats 3]

efficiency = end-to-end rows/s ÷ limit, where limit = min(decode, networks) when these run on
different hardware and 1 / (1 / decode + 1 / networks) when they share the CPU. Every figure
is the median of the repeats, which take turns. The clip is real motion repeated to 117 s (360p,
30 fps, H.264 with B-frames) where ../shared/data is present, else drawn.

Without a GPU, `--stand-in RATE` shows how well decoding and networks overlap on different hardware:
the networks are replaced by one that sleeps for as long as RATE rows per second take.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as liteeval-extract does

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from extract.supervise import DecodePool, DecodeTask, Rows, WorkerOptions
from extract.videos import Video

if (
    __name__ != "__mp_main__"
):  # decode processes load this file too, and the commands spare them this
    import torch

    from extract.backbones import Backbone, load_backbone, parse_backbone
    from extract.run import ExtractOptions, _Batcher, autocast, extract_features

SOURCE = Path(__file__).parents[2] / "shared/data/clips/activitynet_v_ZNVhz7ctTq0.mp4"
CLIP_SECONDS = 117
OTHER_EXTRACTOR_SECONDS = 37.2  # ResNet-101 alone on such a clip, 2 CPU cores; measured elsewhere

# Dense bfloat16 multiplications and additions, 10¹² per second, from the makers' data sheets.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312}


def peak_tflops(device: torch.device) -> float | None:
    """The peak of a GPU in bfloat16, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def make_clip(path: Path) -> None:
    """117 s of 480 × 360 at 30 fps, H.264 with B-frames, one key frame in 250."""
    pictures = _source_pictures()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
        for i in range(CLIP_SECONDS * 30):
            frame = av.VideoFrame.from_ndarray(pictures[i % len(pictures)], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _source_pictures() -> list[np.ndarray]:
    if SOURCE.exists():
        with av.open(str(SOURCE)) as container:
            return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (360, 960, 3), dtype=np.uint8)
    return [np.ascontiguousarray(texture[:, 4 * i : 4 * i + 480]) for i in range(120)]


def decode_rate(videos: list[Video], backbones: list[Backbone], workers: int) -> float:
    """Rows per second of decoding and preprocessing alone."""
    inputs = {b.spec.store_name: b.spec.preprocessing for b in backbones}
    options = WorkerOptions(inputs, 1.0)
    tasks = [DecodeTask(v.id, v.path, tuple(inputs)) for v in videos]
    with DecodePool(workers, options) as pool:
        list(pool.run([tasks[0]]))  # the processes are up
        started, rows = time.perf_counter(), 0
        for event in pool.run(tasks):
            if isinstance(event, Rows):
                rows += len(next(iter(event.pixels.values())))
        return rows / (time.perf_counter() - started)


def network_rate(backbones: list[Backbone], device: torch.device, precision: str) -> float:
    """Rows per second of all networks one after the other on prepared batches."""
    seconds_per_row = 0.0
    for backbone in backbones:
        options = ExtractOptions(device=str(device), precision=precision)
        batcher = _Batcher(backbone, device, options)
        extractor = batcher._extractor  # in the form that extraction runs
        shape = batcher._pixels.shape
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        with torch.inference_mode(), autocast(device, precision):
            for _ in range(3):
                extractor(pixels)
            batches = 0
            _synchronize(device)
            started = time.perf_counter()
            while time.perf_counter() - started < 5:
                extractor(pixels)
                _synchronize(device)
                batches += 1
            seconds_per_row += (time.perf_counter() - started) / (batches * len(pixels))
    return 1 / seconds_per_row


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def standing_in(backbones: list[Backbone], rows_per_second: float) -> list[Backbone]:
    """The same backbones, whose networks take that long together and no time of the CPU."""

    class StandIn(torch.nn.Module):
        def __init__(self, feature_dim: int) -> None:
            super().__init__()
            self.feature_dim = feature_dim

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            time.sleep(len(pixels) / rows_per_second / len(backbones))
            return torch.zeros(len(pixels), self.feature_dim)

        def channels_last(self) -> StandIn:
            return self

    return [replace(b, extractor=StandIn(b.feature_dim)) for b in backbones]  # type: ignore[arg-type]


def end_to_end_rate(
    videos: list[Video], backbones: list[Backbone], options: ExtractOptions
) -> float:
    with tempfile.TemporaryDirectory() as out:
        summary = extract_features(videos, Path(out), backbones, options)
    assert summary.videos == len(videos)
    assert summary.failures == 0
    return summary.rows / summary.wall_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--stand-in", type=float, metavar="RATE", help="networks elsewhere, asleep")
    arguments = parser.parse_args()
    names = arguments.backbone or ["mobilenet_v2@112", "resnet101@224"]
    backbones = [load_backbone(parse_backbone(name), "random") for name in names]
    options = ExtractOptions(
        device=arguments.device, precision=arguments.precision, workers=arguments.workers
    )
    if arguments.stand_in:
        # In bf16 no normalisation is folded: there is none.
        workers = arguments.workers or os.cpu_count() or 1
        options = replace(options, device="cpu", precision="bf16", workers=workers)
        backbones = standing_in(backbones, arguments.stand_in)
    device, workers = options.torch_device(), options.worker_count()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        make_clip(path)
        videos = []
        for i in range(arguments.videos):
            copy = Path(folder, f"{i}.mp4")
            os.link(path, copy)
            videos.append(Video(str(i), copy))
        measures: dict[str, Callable[[], float]] = {
            "decode": lambda: decode_rate(videos, backbones, os.cpu_count() or 1),
            "networks": lambda: network_rate(backbones, device, options.precision),
            "end to end": lambda: end_to_end_rate(videos, backbones, options),
        }
        rates: dict[str, list[float]] = {name: [] for name in measures}
        measures["end to end"]()  # warm
        for _ in range(arguments.repeats):
            for name, measure in measures.items():
                rates[name].append(measure())
    decode, networks, whole = (statistics.median(values) for values in rates.values())
    shared = device.type == "cpu" and not arguments.stand_in
    limit = 1 / (1 / decode + 1 / networks) if shared else min(decode, networks)
    machine = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    elif arguments.stand_in:
        machine += ", networks elsewhere (asleep)"
    print(f"{machine}, {workers} decode workers, {' + '.join(names)}, {options.precision}")
    for name, value in (("decode", decode), ("networks", networks), ("limit", limit)):
        print(f"{name:12} {value:8.1f} rows/s")
    print(f"{'end to end':12} {whole:8.1f} rows/s   efficiency {whole / limit:.2f} (goal ≥ 0.90)")
    peak = peak_tflops(device)
    if peak is not None:
        gflops = sum(backbone.gflops_per_frame for backbone in backbones)
        for name, value in (("networks", networks), ("end to end", whole)):
            share = 2e-3 * gflops * value / peak
            print(f"{name:12} {share:8.1%} of the {peak} TFLOP/s of the GPU's bf16 peak")
    if arguments.stand_in:
        return
    seconds = CLIP_SECONDS / whole
    print(
        f"a clip of {CLIP_SECONDS} s takes {seconds:.1f} s, "
        f"{seconds / OTHER_EXTRACTOR_SECONDS:.2f} × the {OTHER_EXTRACTOR_SECONDS} s that another "
        "extractor takes for ResNet-101 alone (goal ≤ 0.65)"
    )


if __name__ == "__main__":
    main()
