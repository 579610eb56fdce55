"""Probe and decode: the frames on display at t = 0, 1, 2, … s, and no work for any other.

A packet pass without decoding gives a video's timeline. From it follow the frames that are
wanted, and with them the packets that need not be decoded at all:

- a non-reference frame nobody wants (the codec's own skip_frame, switched per packet);
- everything behind the last wanted frame of a group of pictures, up to the next key frame.

Both leave every wanted pixel as full sequential decoding gives it. Where the packets do not tell
the truth (missing timestamps, damage, a stream that starts without a key frame), or a wanted
frame does not come out, the timeline is taken from decoding every frame instead.

This file is the only one that imports a decoding library. Each call opens the file anew, decodes
on one thread and never reaches beyond the file: demuxers and protocols are allow-listed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from extract.sampling import Timeline, row_frames

DECODERS = ("auto", "pyav")
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,nut,"
    "ivf,rm,dv,wtv,h264,hevc,m4v,obu,apng,amv,swf,yuv4mpegpipe"
)
T = TypeVar("T")

MAX_PIXELS = 16384 * 16384 - 1
MAX_DURATION_SECONDS = 48 * 3600.0

# Codecs in which libavcodec discards a non-reference frame before it touches any state.
_SKIPS_NON_REFERENCE = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}


class DecodeError(Exception):
    """A video cannot be decoded; the message names the file and what was found."""


class PacketsMislead(DecodeError):
    """The packets announced a frame that did not come out of the decoder."""


@dataclass(frozen=True)
class SampledFrames:
    """The frames of one video, one row per 1 / fps seconds."""

    frames: np.ndarray  # (T, H, W, 3) uint8 RGB, upright
    pts_seconds: np.ndarray  # (T,) float64, from the first displayed frame on
    frame_index: np.ndarray  # (T,) int64, in order of presentation
    duration_seconds: float
    source_fps: float
    decoder: str
    corrupt_frames: int

    def __post_init__(self) -> None:
        rows = len(self.frames)
        if self.frames.ndim != 4 or self.pts_seconds.shape != (rows,):
            raise ValueError(f"rows differ: {self.frames.shape}, {self.pts_seconds.shape}")

    def __repr__(self) -> str:
        return (
            f"SampledFrames(frames {self.frames.shape}, {self.duration_seconds:.3f} s at "
            f"{self.source_fps:.3f} fps, decoder {self.decoder})"
        )


@dataclass
class Packets:
    """The video packets of a file in order of decoding, without the end-of-stream marker."""

    pts: list[int | None] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    discard: list[bool] = field(default_factory=list)
    clean_key: list[bool] = field(default_factory=list)  # decoding may start here afresh
    temporal_layers: int = 1
    corrupt: bool = False


@dataclass(frozen=True)
class Video:
    """A probed video: its timeline, and how to decode frames of it.

    Attributes:
        timeline: every displayed frame, in order of presentation.
        source_fps: average frame rate.
        packets: what the packets announced; None where decoding had to tell the timeline.
        pts: (N,) int64, each displayed frame's in the stream's time base; empty without packets.
        corrupt_frames: what the codec flagged; 0 where nothing was decoded yet.
    """

    path: Path
    timeline: Timeline
    source_fps: float
    codec: str
    packets: Packets | None = None
    pts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    corrupt_frames: int = 0


# --- opening -------------------------------------------------------------------------------


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, decoding on one thread.

    Raises: DecodeError if the file cannot be opened or holds no acceptable video stream.
    """
    try:
        container = av.open(
            "file:" + os.path.abspath(path),
            container_options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
            metadata_errors="replace",
        )
    except av.FFmpegError as error:
        raise DecodeError(f"{path}: not a readable video ({_reason(path, error)})") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or _is_cover_art(stream):
            raise DecodeError(f"{path}: no video stream (audio only?)")
        _check_size(path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1
        yield container, stream


def _is_cover_art(stream: VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _reason(path: Path, error: av.FFmpegError) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, av.error.InvalidDataError):
        return "invalid or truncated data, or no known video container"
    if isinstance(error, av.error.ArgumentError):
        return "this kind of file is not on the list of allowed video containers"
    return error.strerror or str(error)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"{path}: frames of {width} × {height} pixels, more than the limit of {MAX_PIXELS}"
        )


# --- probing -------------------------------------------------------------------------------


def probe(path: str | os.PathLike[str]) -> Video:
    """Read the timeline of a video from its packets, or by decoding where these mislead.

    Raises: DecodeError if nothing in the file can be decoded or a limit is exceeded.
    """
    path = Path(path)
    with _open_video(path) as (container, stream):
        packets = _read_packets(container, stream)
        timeline, pts = _timeline_from_packets(packets, container, stream)
        fps, codec = float(_frame_rate(stream)), stream.codec_context.codec.canonical_name
    if timeline is None:
        return probe_by_decoding(path)
    _check_duration(path, timeline)
    return Video(path, timeline, fps, codec, packets, pts)


def probe_by_decoding(path: str | os.PathLike[str]) -> Video:
    """Read the timeline from the frames that full sequential decoding gives."""
    path = Path(path)
    corrupt = 0
    with _open_video(path) as (container, stream):
        fps, codec = float(_frame_rate(stream)), stream.codec_context.codec.canonical_name
        stamps = _FrameStamps(stream, trust_pts=not _has_useless_timestamps(container, stream))
        for frame in _decode_all(container, stream):
            corrupt += frame is None or frame.is_corrupt
            if frame is not None:
                stamps.add(frame)
        timeline = stamps.timeline()
    if timeline is None:
        raise DecodeError(f"{path}: no frame can be decoded")
    _check_duration(path, timeline)
    return Video(path, timeline, fps, codec, corrupt_frames=int(corrupt))


def _frame_rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _check_duration(path: Path, timeline: Timeline) -> None:
    if timeline.duration_seconds > MAX_DURATION_SECONDS:
        raise DecodeError(
            f"{path}: lasts {timeline.duration_seconds:.0f} s, more than the limit of "
            f"{MAX_DURATION_SECONDS:.0f} s; its timestamps are likely damaged"
        )


def _read_packets(container: InputContainer, stream: VideoStream) -> Packets:
    packets = Packets()
    codec = stream.codec_context.codec.canonical_name
    for packet in _demux(container, stream):
        packets.pts.append(packet.pts)
        packets.duration.append(packet.duration or 0)
        packets.key.append(packet.is_keyframe)
        packets.discard.append(packet.is_discard)
        packets.corrupt |= packet.is_corrupt
        clean = packet.is_keyframe
        if codec == "h264" and clean:
            clean = _first_slice_header(packet, stream, _h264_slice_type) == _H264_IDR
        elif codec == "hevc":
            layer = _first_slice_header(packet, stream, _hevc_temporal_layer) or 0
            packets.temporal_layers = max(packets.temporal_layers, layer + 1)
        packets.clean_key.append(clean)
    return packets


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Packets with data; a read error in the middle of a damaged file ends them."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


_H264_IDR = 5


def _h264_slice_type(header: int, _: int) -> int | None:
    """nal_unit_type if this NAL unit is a coded slice, else None."""
    kind = header & 0x1F
    return kind if 1 <= kind <= 5 else None


def _hevc_temporal_layer(header: int, second: int) -> int | None:
    """nuh_temporal_id if this NAL unit is a coded slice, else None."""
    return (second & 7) - 1 if (header >> 1) & 0x3F < 32 else None


def _first_slice_header(packet: Packet, stream: VideoStream, classify: object) -> int | None:
    """What `classify` says of the first slice NAL unit of an H.264 or HEVC packet."""
    data = memoryview(packet)
    extradata = stream.codec_context.extradata or b""
    for position in _nal_units(data, length_prefixed=extradata[:1] == b"\x01"):
        if position + 1 < len(data):
            found = classify(data[position], data[position + 1])  # type: ignore[operator]
            if found is not None:
                return int(found)
    return None


def _nal_units(data: memoryview, *, length_prefixed: bool) -> Iterator[int]:
    """Start of each NAL unit: behind a 4-byte length (mp4, mkv) or a start code (Annex B)."""
    if length_prefixed:
        position = 0
        while position + 4 < len(data):
            yield position + 4
            position += 4 + int.from_bytes(data[position : position + 4], "big")
        return
    raw = bytes(data)
    position = raw.find(b"\x00\x00\x01")
    while position >= 0:
        yield position + 3
        position = raw.find(b"\x00\x00\x01", position + 3)


def _has_useless_timestamps(container: InputContainer, stream: VideoStream) -> bool:
    """AVI stores no presentation times: with reordered frames only their order counts."""
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _timeline_from_packets(
    packets: Packets, container: InputContainer, stream: VideoStream
) -> tuple[Timeline | None, np.ndarray]:
    """The timeline the packets announce, and its pts; None where they cannot be trusted."""
    empty = np.empty(0, np.int64)
    shown = [i for i, discard in enumerate(packets.discard) if not discard]
    pts = [packets.pts[i] for i in shown]
    if not shown or packets.corrupt or None in pts or not packets.key[0]:
        return None, empty
    if _has_useless_timestamps(container, stream):
        return None, empty
    order = np.argsort(np.array(pts, np.int64), kind="stable")
    ticks = np.array(pts, np.int64)[order]
    first_key_is_first = packets.discard[0] or pts[0] == ticks[0]
    if (np.diff(ticks) <= 0).any() or not first_key_is_first or stream.time_base is None:
        return None, empty
    last = packets.duration[shown[int(order[-1])]] * stream.time_base
    seconds = (ticks - ticks[0]) * float(stream.time_base)
    duration = seconds[-1] + float(last or 1 / _frame_rate(stream))
    return Timeline(seconds, float(duration)), ticks


class _FrameStamps:
    """Presentation times of frames as they leave the decoder, mended where they are no use."""

    def __init__(self, stream: VideoStream, *, trust_pts: bool) -> None:
        self._time_base = float(stream.time_base or Fraction(1, 90000))
        self._period = float(1 / _frame_rate(stream))
        self._trust_pts = trust_pts
        self._origin: int | None = None
        self._seconds: list[float] = []
        self._last_duration = 0.0

    def add(self, frame: VideoFrame) -> None:
        """A frame without a later time than the one before follows it by one period."""
        after = self._seconds[-1] + self._period if self._seconds else 0.0
        seconds = after
        if self._trust_pts and frame.pts is not None:
            if self._origin is None:
                self._origin = frame.pts - round(after / self._time_base)
            seconds = (frame.pts - self._origin) * self._time_base
        if self._seconds and seconds <= self._seconds[-1]:
            seconds = after
        self._seconds.append(seconds)
        self._last_duration = (frame.duration or 0) * self._time_base

    def timeline(self) -> Timeline | None:
        if not self._seconds:
            return None
        last = self._last_duration if self._trust_pts else 0.0
        return Timeline(np.array(self._seconds), self._seconds[-1] + (last or self._period))


# --- decoding ------------------------------------------------------------------------------


def iter_frames(video: Video, wanted: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """The frames with the wanted indices (ascending, each once) as (H, W, 3) uint8 RGB, upright.

    Raises: PacketsMislead (a DecodeError) if a wanted frame does not come out as announced;
        `probe_by_decoding` then tells the truth.
    """
    decode = _decode_counting if video.packets is None else _decode_skipping
    frames = decode(video, np.asarray(wanted, np.int64))
    for frame in frames:
        yield _to_rgb(video.path, frame)


def _decode_counting(video: Video, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Decode everything and count the frames that come out."""
    remaining = iter(wanted.tolist())
    target = next(remaining, None)
    with _open_video(video.path) as (container, stream):
        frames = (frame for frame in _decode_all(container, stream) if frame is not None)
        for index, frame in enumerate(frames):
            if target is None:
                return
            if index == target:
                yield frame
                target = next(remaining, None)
    if target is not None:
        raise DecodeError(f"{video.path}: frame {target} could not be decoded a second time")


def _decode_all(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | None]:
    """Every frame in order of presentation; None for each packet the codec refused."""
    for packet in _demux(container, stream):
        try:
            yield from stream.codec_context.decode(packet)
        except av.FFmpegError:
            yield None
    try:
        yield from stream.codec_context.decode(None)
    except av.FFmpegError:
        yield None


def _decode_skipping(video: Video, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Decode only what the wanted frames need; check that exactly they come out."""
    expected = iter(video.pts[wanted].tolist())
    target = next(expected, None)
    for frame in _decode_actions(video, wanted):
        if frame is None or frame.is_corrupt or frame.pts is None:
            raise PacketsMislead(f"{video.path}: damaged")
        if target is None:
            return
        if frame.pts > target:
            raise PacketsMislead(f"{video.path}: the frame at pts {target} does not come out")
        if frame.pts == target:
            yield frame
            target = next(expected, None)
    if target is not None:
        raise PacketsMislead(f"{video.path}: the frame at pts {target} does not come out")


def _decode_actions(video: Video, wanted: np.ndarray) -> Iterator[VideoFrame | None]:
    """Frames in order of presentation, unwanted ones among them; None where the codec failed."""
    packets = video.packets
    assert packets is not None
    plan, restarts = plan_packets(packets, video.pts[wanted])
    skips = video.codec in _SKIPS_NON_REFERENCE and packets.temporal_layers == 1
    with _open_video(video.path) as (container, stream):
        context = stream.codec_context
        mode = DECODE
        for i, (action, packet) in enumerate(zip(plan, _demux(container, stream), strict=False)):
            if action == DROP:
                continue
            try:
                if i in restarts:
                    yield from context.decode(None)
                    context.flush_buffers()
                if skips and action != mode:
                    context.skip_frame = "NONREF" if action == REFERENCE_ONLY else "DEFAULT"
                    mode = action
                yield from context.decode(packet)
            except av.FFmpegError:
                yield None
        try:
            yield from context.decode(None)
        except av.FFmpegError:
            yield None


DROP, REFERENCE_ONLY, DECODE = range(3)


def plan_packets(packets: Packets, wanted_pts: np.ndarray) -> tuple[list[int], set[int]]:
    """What to do with each packet: DROP it, decode it if others refer to it, or DECODE it.

    A group runs from one clean key frame to the next. Behind its last wanted frame nothing is
    decoded, unless frames wanted in the next group are shown before that group's key frame:
    those refer back. If they are not wanted, they are dropped together with what they refer to.

    Returns: the action for each packet, and the key frames before which the decoder must be
        emptied and restarted, because packets of the group before them were dropped.
    """
    wanted = set(wanted_pts.tolist())
    plan = [DECODE if pts in wanted else REFERENCE_ONLY for pts in packets.pts]
    restarts = set()
    starts = [i for i, clean in enumerate(packets.clean_key) if clean or i == 0]
    stops = [*starts[1:], len(plan)]
    keep_whole = False  # whether the group that follows refers back into this one
    for start, stop in zip(reversed(starts), reversed(stops), strict=True):
        key_pts = packets.pts[start]
        assert key_pts is not None
        leading = [i for i in range(start + 1, stop) if (packets.pts[i] or 0) < key_pts]
        last = max((i for i in range(start, stop) if plan[i] == DECODE), default=start - 1)
        if not keep_whole and last + 1 < stop:
            plan[last + 1 : stop] = [DROP] * (stop - last - 1)
            restarts.add(stop)
        keep_whole = any(plan[i] == DECODE for i in leading)
        if not keep_whole and start:
            for i in leading:
                plan[i] = DROP
    return plan, restarts


def _to_rgb(path: Path, frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, turned upright by the rotation the file carries."""
    _check_size(path, frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def sample_frames(
    path: str | os.PathLike[str], fps: float = 1.0, *, decoder: str = "auto"
) -> SampledFrames:
    """The frames on display at t = 0, 1 / fps, 2 / fps, … s after the first displayed frame.

    Args:
        path: a video file.
        fps: rows per second.
        decoder: "auto" takes the fastest exact way; "pyav" forces PyAV.

    Raises: DecodeError if the file cannot be decoded; ValueError on a bad fps or decoder.
    """
    video, frames = _sample(path, fps, decoder, keep=lambda frame: frame)
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError(f"{path}: the picture size changes; extract its features instead")
    rows = row_frames(video.timeline, fps)
    return SampledFrames(
        frames=np.stack(frames)[np.unique(rows, return_inverse=True)[1]],
        pts_seconds=video.timeline.pts_seconds[rows],
        frame_index=rows,
        duration_seconds=video.timeline.duration_seconds,
        source_fps=video.source_fps,
        decoder="pyav",
        corrupt_frames=video.corrupt_frames,
    )


def describe_samples(
    path: str | os.PathLike[str], fps: float = 1.0, *, decoder: str = "auto"
) -> dict[str, Any]:
    """What `sample_frames` gives, without the pixels, as plain values; decodes all the same."""
    video, shapes = _sample(path, fps, decoder, keep=lambda frame: frame.shape)
    rows = row_frames(video.timeline, fps)
    return {
        "path": str(path),
        "fps": fps,
        "width": shapes[0][1],
        "height": shapes[0][0],
        "pts_seconds": video.timeline.pts_seconds[rows].tolist(),
        "frame_index": rows.tolist(),
        "duration_seconds": video.timeline.duration_seconds,
        "source_fps": video.source_fps,
        "decoder": "pyav",
        "corrupt_frames": video.corrupt_frames,
    }


def _sample(
    path: str | os.PathLike[str], fps: float, decoder: str, keep: Callable[[np.ndarray], T]
) -> tuple[Video, list[T]]:
    """A probed video and `keep` of each of its wanted frames, each frame once."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
    video = probe(path)
    try:
        wanted = np.unique(row_frames(video.timeline, fps))
        return video, [keep(frame) for frame in iter_frames(video, wanted)]
    except PacketsMislead:
        video = probe_by_decoding(path)
        wanted = np.unique(row_frames(video.timeline, fps))
        return video, [keep(frame) for frame in iter_frames(video, wanted)]
