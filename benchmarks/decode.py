"""CPU time of sampling one frame a second, against decord, torchcodec and plain PyAV.

    python -m benchmarks.decode                    makes the clips, takes some minutes
    python -m benchmarks.decode --runs 5 --json

Every decoder is given one thread and opens the file anew each time. Runs are interleaved, the
median counts. "frames differ" marks a decoder that did not give the frames of full sequential
decoding. Clips: the ActivityNet clip of ../shared/data/clips four times over where it is at hand,
else a moving synthetic scene, encoded with PyAV. Clips of 10 minutes are sampled every 10 s and
every minute: there, seeking saves reading, and a column shows our own decoder without it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import click
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from extract import decode
from extract.sampling import row_frames

SOURCE = Path(__file__).parents[1].parent / "shared/data/clips/activitynet_v_ZNVhz7ctTq0.mp4"
FPS = 30
Sampler = Callable[[Path, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BenchClip:
    name: str
    codec: str
    height: int
    repeats: int
    options: dict[str, str]
    seconds_per_row: int = 1
    loops: int = 1  # of the encoded pictures: packets are copied

    def build(self, folder: Path, scene: list[VideoFrame]) -> Path:
        path = folder / self.name
        self._encode(path, scene)
        if self.loops > 1:
            looped = folder / f"looped-{self.name}"
            copy_packets(path, looped, self.loops)
            return looped
        return path

    def _encode(self, path: Path, scene: list[VideoFrame]) -> None:
        width = round(scene[0].width * self.height / scene[0].height / 2) * 2
        reformatter = VideoReformatter()
        with av.open(str(path), "w") as container:
            stream = container.add_stream(self.codec, rate=FPS, options=self.options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, self.height, "yuv420p"
            for number, frame in enumerate(scene * self.repeats):
                small = reformatter.reformat(frame, width, self.height, "yuv420p")
                small.pts, small.time_base = number, Fraction(1, FPS)
                small.pict_type = PictureType.NONE  # or the source's key frames are taken over
                container.mux(stream.encode(small))
            container.mux(stream.encode(None))


def copy_packets(source: Path, target: Path, times: int) -> None:
    """The video of one file, `times` times over, without encoding it again."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        stream = given.streams.video[0]
        copy = container.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        span = sum(packet.duration or 0 for packet in packets)
        for loop in range(times):
            for packet in packets:
                again = Packet(bytes(packet))
                again.pts, again.dts = (
                    (packet.pts or 0) + loop * span,
                    (packet.dts or 0) + loop * span,
                )
                again.duration, again.time_base = packet.duration, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                container.mux(again)


def bench_clips() -> Iterator[BenchClip]:
    for height, repeats in ((240, 4), (360, 4), (720, 2)):
        for group in (250, 48):
            parameters = f"keyint={group}:bframes=3:b-adapt=0:ref=3:scenecut=0"
            options = {"preset": "veryfast", "x264-params": parameters}
            yield BenchClip(f"h264-{height}p-gop{group}.mp4", "libx264", height, repeats, options)
    closed = {"preset": "veryfast", "x264-params": "keyint=48:bframes=3:open-gop=0:scenecut=0"}
    for seconds in (10, 60):
        name = f"h264-360p-10min-every-{seconds}s.mp4"
        yield BenchClip(name, "libx264", 360, 1, closed, seconds_per_row=seconds, loops=43)
    hevc = {"preset": "ultrafast", "x265-params": "bframes=4:open-gop=0:log-level=none"}
    yield BenchClip("hevc-360p.mp4", "libx265", 360, 2, hevc)
    vp9 = {"deadline": "realtime", "cpu-used": "8", "g": "128"}
    yield BenchClip("vp9-360p.webm", "libvpx-vp9", 360, 2, vp9)


def load_scene() -> list[VideoFrame]:
    """The pictures to encode: real motion where the clip is at hand."""
    if SOURCE.exists():
        with av.open(str(SOURCE)) as container:
            return list(container.decode(video=0))
    click.echo(f"{SOURCE} is absent: a synthetic scene instead", err=True)
    y, x = np.mgrid[:360, :480]
    scene = []
    for t in range(420):
        waves = np.sin((x + 3 * t) / 23) + np.sin((y - 2 * t) / 17) + np.sin((x + y + 5 * t) / 41)
        noise = np.random.default_rng(t).normal(0, 4, y.shape)
        grey = np.clip(128 + 40 * waves + noise, 0, 255).astype(np.uint8)
        scene.append(VideoFrame.from_ndarray(np.stack([grey] * 3, -1), format="rgb24"))
    return scene


# --- decoders: path and indices in, (T, H, W, 3) uint8 out -----------------------------------


def with_ours(path: Path, wanted: np.ndarray) -> np.ndarray:
    """As sample_frames does, for any rate."""
    return np.stack(
        decode.decode_video(path, lambda video: list(decode.iter_frames(video, wanted)))
    )


def with_ours_unsought(path: Path, wanted: np.ndarray) -> np.ndarray:
    with mock.patch.object(decode, "SEEK_PACKETS", sys.maxsize):
        return with_ours(path, wanted)


def with_plain_pyav(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Decode every frame in order, convert those that are wanted."""
    keep = set(wanted.tolist())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack(
            [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(stream))
                if index in keep
            ]
        )


def with_decord(path: Path, wanted: np.ndarray) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return np.asarray(reader.get_batch(wanted.tolist()).asnumpy())


def with_torchcodec(path: Path, wanted: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
    return np.asarray(decoder.get_frames_at(wanted.tolist()).data.numpy())


OURS = "liteeval"
SAMPLERS: dict[str, Sampler] = {
    OURS: with_ours,
    "decord": with_decord,
    "torchcodec": with_torchcodec,
    "pyav": with_plain_pyav,
    "without seeks": with_ours_unsought,
}


def importable() -> dict[str, Sampler]:
    """The decoders that load here; a message for each that does not."""
    found = {}
    for name, sampler in SAMPLERS.items():
        try:
            if name == "decord":
                import decord  # noqa: F401
            elif name == "torchcodec":
                import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            click.echo(f"{name} left out: {str(error).splitlines()[0]}", err=True)
            continue
        found[name] = sampler
    return found


# --- measuring -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One decoder on one clip, median over the runs."""

    cpu_seconds: float
    wall_seconds: float
    frames: str  # "same", "differ" from full sequential decoding, or the error


def measure(
    path: Path, samplers: dict[str, Sampler], runs: int, seconds_per_row: int
) -> dict[str, Measured]:
    full = decode.probe_by_decoding(path)
    wanted = np.unique(row_frames(full.timeline, 1 / seconds_per_row))
    expected = np.stack(list(decode.iter_frames(full, wanted)))
    cpu: dict[str, list[float]] = {name: [] for name in samplers}
    wall: dict[str, list[float]] = {name: [] for name in samplers}
    frames: dict[str, str] = {}
    for _ in range(runs):
        for name, sampler in samplers.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            try:
                pixels = sampler(path, wanted)
            except Exception as error:  # another library's failure is a result
                frames[name] = f"failed: {type(error).__name__}"
                continue
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
            frames.setdefault(name, "same" if np.array_equal(pixels, expected) else "differ")
    nothing = [float("nan")]
    return {
        name: Measured(
            statistics.median(cpu[name] or nothing),
            statistics.median(wall[name] or nothing),
            frames[name],
        )
        for name in samplers
    }


def format_row(name: str, results: dict[str, Measured]) -> str:
    ours = results[OURS].cpu_seconds
    cells = [f"| {name} | {ours:.3f} / {results[OURS].wall_seconds:.3f}"]
    others = {key: value for key, value in results.items() if key != OURS}
    for measured in others.values():
        note = "" if measured.frames == "same" else f" ({measured.frames})"
        cells.append(f"{measured.cpu_seconds:.3f} / {measured.wall_seconds:.3f}{note}")
    cells += [f"{ours / measured.cpu_seconds:.2f}" for measured in others.values()]
    return " | ".join(cells) + " |"


def format_head(samplers: dict[str, Sampler]) -> str:
    others = [name for name in samplers if name != OURS]
    columns = ["clip", *(f"{name} CPU / wall s" for name in (OURS, *others))]
    columns += [f"CPU: {OURS} ÷ {name}" for name in others]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


@click.command(help=__doc__)
@click.option("--runs", default=5, show_default=True, help="Runs per decoder and clip.")
@click.option("--only", default="", help="Only clips whose name holds this.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def main(runs: int, only: str, as_json: bool) -> None:
    samplers, scene = importable(), load_scene()
    document = {}
    if not as_json:
        click.echo(format_head(samplers))
    with tempfile.TemporaryDirectory() as folder:
        for clip in (clip for clip in bench_clips() if only in clip.name):
            path = clip.build(Path(folder), scene)
            results = measure(path, samplers, runs, clip.seconds_per_row)
            document[clip.name] = {name: vars(result) for name, result in results.items()}
            if not as_json:
                click.echo(format_row(clip.name, results))
    if as_json:
        click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
