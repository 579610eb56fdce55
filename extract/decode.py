"""Probe and decode: the frames on display at t = 0, 1, 2, … s, and no work for any other.

A packet pass without decoding gives a video's timeline. From it follow the frames that are
wanted, and with them the packets that need not be decoded at all:

- a non-reference frame nobody wants (the codec's own skip_frame, switched per packet);
- everything behind the last wanted frame of a group of pictures, up to the next key frame.

Both leave every wanted pixel as full sequential decoding gives it. A key frame is one that the
bitstream says is one, for some containers flag every packet. Where key frames are indexed and the
next packet is far, it is sought, which saves reading; it must be that very packet. Where the
packets do not tell the truth (missing timestamps, damage, a stream that starts without a key
frame), or a wanted frame does not come out, the timeline is taken from decoding every frame.

This file is the only one that imports a decoding library. Each call opens the file anew, decodes
on one thread and never reaches beyond the file: demuxers and protocols are allow-listed, and
references to other files are not followed. The size of a picture is bounded before it is decoded.

decord is offered for those who want it, where the packets prove that it gives the same frames:
it takes closed groups and constant sizes for granted and is wrong without a word elsewhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from extract.bitstream import Bitstream
from extract.sampling import TOLERANCE_SECONDS, Timeline, row_count, row_frames
from extract.videos import printable

DECODERS = ("auto", "decord", "pyav")
ON_CORRUPT = ("keep", "fail")
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,nut,"
    "ivf,rm,dv,wtv,h264,hevc,m4v,obu,apng,amv,swf,yuv4mpegpipe"
)
MAX_PIXELS = 16384 * 16384 - 1
MAX_DURATION_SECONDS = 24 * 3600.0
MAX_ROWS = 1 << 21  # of one video: 24 hours at 24 a second
MAX_SAMPLED_BYTES = 16 << 30
MAX_FRAME_SECONDS = 10.0
MAX_STREAMS = 256
_DRAIN = Packet()  # without data: the codec gives what it still holds
T = TypeVar("T")

# Codecs in which libavcodec discards a non-reference frame before it touches any state.
_SKIPS_NON_REFERENCE = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}


class DecodeError(Exception):
    """A video cannot be decoded; the message names the file and what was found."""


class PacketsMislead(DecodeError):
    """The packets announced a frame that did not come out of the decoder."""


@dataclass(frozen=True)
class DecodeOptions:
    """What is decoded how; travels with a probed video."""

    decoder: str = "auto"  # the fastest exact way, "pyav", or "decord" where it is exact
    on_corrupt: str = "keep"  # use what the codec makes of damaged frames, or "fail"
    max_pixels: int = MAX_PIXELS  # of one frame
    max_duration_seconds: float = MAX_DURATION_SECONDS

    def __post_init__(self) -> None:
        for name, value, known in (
            ("decoder", self.decoder, DECODERS),
            ("on_corrupt", self.on_corrupt, ON_CORRUPT),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def codec_max_pixels(self) -> int:
        """The bound inside the codec, which counts the margin that is coded and cut away."""
        return min(2 * self.max_pixels + 65536, MAX_PIXELS)


DEFAULTS = DecodeOptions()


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
    dts: list[int | None] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    discard: list[bool] = field(default_factory=list)
    clean_key: list[bool] = field(default_factory=list)  # the bitstream says so too
    temporal_layers: int = 1
    in_band_headers: bool = False  # H.264: the picture may change its size on the way
    corrupt: bool = False

    def likely_seconds(self, tick_seconds: float, period_seconds: float) -> float:
        """How much video this may be, by number and by times, whatever these are worth."""
        times = [pts for pts in self.pts if pts is not None]
        span = (max(times) - min(times)) * tick_seconds if times else 0.0
        return _believable(max(span, len(self.pts) * period_seconds), len(self.pts))

    def ascend(self) -> bool:
        """Whether the times of decoding do, so that no second count of time begins on the way."""
        known = [dts for dts in self.dts if dts is not None]
        return all(before <= after for before, after in pairwise(known))


@dataclass(frozen=True)
class Video:
    """A probed video: its timeline, and how to decode frames of it.

    Attributes:
        timeline: every displayed frame, in order of presentation.
        source_fps: average frame rate.
        packets: what the packets announced; None where decoding had to tell the timeline.
        pts: (N,) int64, each displayed frame's in the stream's time base; empty without packets.
        corrupt_frames: what the codec flagged; 0 where nothing was decoded yet.
        decoder: what `iter_frames` decodes with, "pyav" or "decord".
    """

    path: Path
    timeline: Timeline
    source_fps: float
    codec: str
    packets: Packets | None = None
    pts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    corrupt_frames: int = 0
    decoder: str = "pyav"
    options: DecodeOptions = DEFAULTS

    @property
    def likely_seconds(self) -> float:
        """How much work the video is, in seconds of common video."""
        return _believable(self.timeline.duration_seconds, len(self.timeline))


def _believable(seconds: float, frames: int) -> float:
    """Few frames are little work, however long each of them claims to be shown."""
    return min(seconds, frames * MAX_FRAME_SECONDS)


# --- opening -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What is opened, and what opening it may touch."""

    name: str  # as messages show it
    url: str  # as libavformat reads it
    protocols: str = "file"
    demuxers: str = DEMUXERS


def _open_video(
    path: Path, options: DecodeOptions
) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
    """Raises: DecodeError as `_open_source` does, or if the name cannot be told to it."""
    name = os.path.abspath(path)
    if printable(name) != name:
        raise DecodeError(f"{printable(path)}: the name is not UTF-8; rename it")
    return _open_source(Source(str(path), "file:" + name), options)


@contextmanager
def _open_source(
    source: Source, options: DecodeOptions
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, decoding on one thread.

    Raises: DecodeError if it cannot be opened or holds no acceptable video stream.
    """
    path = source.name
    try:
        container = av.open(
            source.url,
            container_options={
                "protocol_whitelist": source.protocols,
                "format_whitelist": source.demuxers,
                "enable_drefs": "0",
                "max_streams": str(MAX_STREAMS),
            },
            options={"max_pixels": str(options.codec_max_pixels), "threads": "1"},
            metadata_errors="replace",
        )
    except av.FFmpegError as error:
        raise DecodeError(f"{path}: not a readable video ({_reason(Path(path), error)})") from error
    with container:
        if len(container.streams) >= MAX_STREAMS:  # the demuxer stops there
            raise DecodeError(f"{path}: {MAX_STREAMS} streams or more, no sound video")
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or _is_cover_art(stream):
            raise DecodeError(f"{path}: no video stream (audio only?)")
        context = stream.codec_context
        if context is None:
            raise DecodeError(f"{path}: no decoder for this kind of video stream")
        _check_size(path, context.width, context.height, options)
        context.thread_count = 1
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


def _check_size(path: Path | str, width: int, height: int, options: DecodeOptions) -> None:
    if width * height > options.max_pixels:
        raise DecodeError(
            f"{path}: frames of {width} × {height} pixels, more than the limit of "
            f"{options.max_pixels}"
        )


def _check_refusal(
    path: Path | str, error: av.FFmpegError, context: VideoCodecContext, options: DecodeOptions
) -> None:
    """Raises: DecodeError if the codec refused a packet for its size or for want of memory."""
    _check_size(path, context.width, context.height, options)
    if isinstance(error, MemoryError):
        raise DecodeError(f"{path}: needs more memory than there is to decode") from error


# --- probing -------------------------------------------------------------------------------


def _ignore(seconds: float) -> None:
    pass


def probe(
    path: str | os.PathLike[str],
    options: DecodeOptions = DEFAULTS,
    on_pass: Callable[[float], object] = _ignore,
) -> Video:
    """Read the timeline of a video from its packets, or by decoding where these mislead.

    Args:
        on_pass: told before a pass that decodes how many seconds of video that may be.

    Raises: DecodeError if nothing in the file can be decoded, a limit is exceeded, there is
        damage that may not be kept, or decord is asked for and would not be exact.
    """
    path = Path(path)
    with _open_video(path, options) as (container, stream):
        packets = _read_packets(container, stream)
        timeline, pts = _timeline_from_packets(packets, container, stream)
        fps, codec = float(_frame_rate(stream)), stream.codec_context.codec.canonical_name
        objection = _decord_objection(packets, timeline, container, stream)
        likely_seconds = packets.likely_seconds(float(stream.time_base or 0), 1 / fps)
    decoder = _choose_decoder(path, options, objection)
    # Only decoding everything sees all damage.
    if timeline is None or options.on_corrupt == "fail":
        on_pass(likely_seconds)
        return probe_by_decoding(path, options)
    _check_duration(path, timeline.duration_seconds, options)
    return Video(path, timeline, fps, codec, packets, pts, decoder=decoder, options=options)


def probe_by_decoding(path: str | os.PathLike[str], options: DecodeOptions = DEFAULTS) -> Video:
    """Read the timeline from the frames that full sequential decoding gives.

    Raises: DecodeError as `probe` does.
    """
    path = Path(path)
    _choose_decoder(path, options, "its packets do not tell when each frame is shown")
    corrupt = 0
    with _open_video(path, options) as (container, stream):
        fps, codec = float(_frame_rate(stream)), stream.codec_context.codec.canonical_name
        stamps = _FrameStamps(stream, trust_pts=not _has_useless_timestamps(container, stream))
        for frame in _decode_all(path, options, container, stream):
            corrupt += frame is None or frame.is_corrupt
            if frame is not None:
                stamps.add(frame)
                _check_duration(path, stamps.end_seconds, options)
        timeline = stamps.timeline()
    if timeline is None:
        raise DecodeError(f"{path}: no frame can be decoded")
    if corrupt and options.on_corrupt == "fail":
        raise DecodeError(
            f"{path}: {corrupt} corrupt frames; get the file anew, or allow them (on_corrupt keep)"
        )
    return Video(path, timeline, fps, codec, corrupt_frames=int(corrupt), options=options)


def decode_video(
    path: str | os.PathLike[str],
    use: Callable[[Video], T],
    options: DecodeOptions = DEFAULTS,
    on_pass: Callable[[float], object] = _ignore,
) -> T:
    """What `use` makes of a probed video; made anew from full decoding where the packets mislead.

    Args:
        on_pass: told before each pass that decodes how many seconds of video that may be.

    Raises: DecodeError as `probe` does, and whatever else `use` raises.
    """
    video = probe(path, options, on_pass)
    try:
        on_pass(video.likely_seconds)
        return use(video)
    except PacketsMislead:
        on_pass(video.likely_seconds)
        video = probe_by_decoding(path, options)
        on_pass(video.likely_seconds)
        return use(video)


def _frame_rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _check_duration(path: Path, seconds: float, options: DecodeOptions) -> None:
    if seconds > options.max_duration_seconds:
        raise DecodeError(
            f"{path}: lasts {seconds:.1f} s, more than the limit of "
            f"{options.max_duration_seconds:.1f} s; its timestamps are likely damaged, or raise "
            "--max-duration"
        )


def _read_packets(container: InputContainer, stream: VideoStream) -> Packets:
    packets = Packets()
    codec = stream.codec_context.codec
    extradata = stream.codec_context.extradata or b""
    bitstream = Bitstream(codec.canonical_name, extradata, intra_only=codec.intra_only)
    for packet in _demux(container, stream):
        if packet is None:
            packets.corrupt = True
            break
        data = memoryview(packet)
        packets.pts.append(packet.pts)
        packets.dts.append(packet.dts)
        packets.duration.append(packet.duration or 0)
        packets.key.append(packet.is_keyframe)
        packets.discard.append(packet.is_discard)
        packets.corrupt |= packet.is_corrupt
        packets.clean_key.append(packet.is_keyframe and bitstream.starts_afresh(data))
        if bitstream.codec == "h264" and packet.is_keyframe:
            packets.in_band_headers |= bitstream.has_h264_headers(data)
        elif bitstream.codec == "hevc":
            packets.temporal_layers = max(packets.temporal_layers, bitstream.hevc_layer(data) + 1)
    return packets


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """Packets with data; None for a read error in the middle of a damaged file, which ends them."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        yield None


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
    if _has_useless_timestamps(container, stream) or not packets.ascend():
        return None, empty
    order = np.argsort(np.array(pts, np.int64), kind="stable")
    ticks = np.array(pts, np.int64)[order]
    first_key_is_first = packets.discard[0] or pts[0] == ticks[0]
    if (np.diff(ticks) <= 0).any() or not first_key_is_first or stream.time_base is None:
        return None, empty
    if int(ticks[-1]) - int(ticks[0]) > EXACT_TICKS:
        return None, empty
    last = packets.duration[shown[int(order[-1])]] * stream.time_base
    seconds = (ticks - ticks[0]) * float(stream.time_base)
    duration = seconds[-1] + float(last or 1 / _frame_rate(stream))
    return Timeline(seconds, float(duration)), ticks


EXACT_TICKS = 1 << 53  # float64 tells whole numbers apart up to here
MAX_STEP_BACK_SECONDS = 1.0  # a time further back begins a new count


class _FrameStamps:
    """Presentation times of frames as they leave the decoder, mended where they are no use."""

    def __init__(self, stream: VideoStream, *, trust_pts: bool) -> None:
        self._time_base = float(stream.time_base or Fraction(1, 90000))
        self._period = float(1 / _frame_rate(stream))
        self._trust_pts = trust_pts
        self._origin: int | None = None
        self._seconds: list[float] = []
        self._last_duration = 0.0

    @property
    def end_seconds(self) -> float:
        """When the last frame ends."""
        if not self._seconds:
            return 0.0
        step = (self._last_duration if self._trust_pts else 0.0) or self._period
        return max(self._seconds[-1] + step, math.nextafter(self._seconds[-1], math.inf))

    def add(self, frame: VideoFrame) -> None:
        """A frame without a later time than the one before follows it; far back, with all after it.

        Recordings that were joined, or that a camera began anew, start to count again.
        """
        seconds = after = self.end_seconds
        if self._trust_pts and frame.pts is not None:
            if self._origin is None or self._steps_back(frame.pts):
                self._origin = frame.pts - round(after / self._time_base)
            seconds = self._seconds_of(frame.pts)
        if self._seconds and seconds <= self._seconds[-1]:
            seconds = after
        self._seconds.append(seconds)
        self._last_duration = (frame.duration or 0) * self._time_base

    def _steps_back(self, pts: int) -> bool:
        behind_seconds = self._seconds[-1] - self._seconds_of(pts) if self._seconds else 0.0
        return behind_seconds > MAX_STEP_BACK_SECONDS

    def _seconds_of(self, pts: int) -> float:
        assert self._origin is not None
        return (pts - self._origin) * self._time_base

    def timeline(self) -> Timeline | None:
        return Timeline(np.array(self._seconds), self.end_seconds) if self._seconds else None


# --- decoding ------------------------------------------------------------------------------


def iter_frames(video: Video, wanted: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """The frames with the wanted indices (ascending, each once) as (H, W, 3) uint8 RGB, upright.

    Raises: PacketsMislead (a DecodeError) if a wanted frame does not come out as announced;
        `decode_video` then decodes everything.
    """
    indices = np.asarray(wanted, np.int64)
    if video.decoder == "decord":
        yield from _decode_with_decord(video, indices)
        return
    decode = _decode_counting if video.packets is None else _decode_skipping
    reformatter = VideoReformatter()
    for frame in decode(video, indices):
        yield _to_rgb(video, frame, reformatter)


def _decode_counting(video: Video, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Decode everything and count the frames that come out."""
    remaining = iter(wanted.tolist())
    target = next(remaining, None)
    with _open_video(video.path, video.options) as (container, stream):
        decoded = _decode_all(video.path, video.options, container, stream)
        frames = (frame for frame in decoded if frame is not None)
        for index, frame in enumerate(frames):
            if target is None:
                return
            if index == target:
                yield frame
                target = next(remaining, None)
    if target is not None:
        raise DecodeError(f"{video.path}: frame {target} could not be decoded a second time")


def _decode_all(
    path: Path | str, options: DecodeOptions, container: InputContainer, stream: VideoStream
) -> Iterator[VideoFrame | None]:
    """Every frame in order of presentation; None for each packet the demuxer or codec refused.

    Raises: DecodeError if the codec refused a picture for its size or for want of memory.
    """
    for packet in chain(_demux(container, stream), [_DRAIN]):
        if packet is None:
            yield None
            continue
        flagged = packet is not _DRAIN and packet.is_corrupt
        try:
            for frame in stream.codec_context.decode(packet):
                flagged &= not frame.is_corrupt  # or it would count twice
                yield frame
        except av.FFmpegError as error:
            _check_refusal(path, error, stream.codec_context, options)
            flagged = True
        if flagged:
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
    with _open_video(video.path, video.options) as (container, stream):
        context = stream.codec_context
        reader = _PacketReader(container, stream, packets)
        mode = DECODE
        for i, action in enumerate(plan):
            if action == DROP:
                continue
            try:
                if i in restarts:
                    yield from context.decode(None)
                    context.flush_buffers()
                packet = reader.read(i, may_seek=i in restarts)
                if packet is None:
                    yield None
                    return
                if skips and action != mode:
                    context.skip_frame = "NONREF" if action == REFERENCE_ONLY else "DEFAULT"
                    mode = action
                yield from context.decode(packet)
            except av.FFmpegError as error:
                _check_refusal(video.path, error, context, video.options)
                yield None
        try:
            yield from context.decode(None)
        except av.FFmpegError:
            yield None


class _PacketReader:
    """The packets of a probed stream by number, ascending; far ones are sought, not read up to.

    A packet counts only with the timestamp it had when the stream was probed, so a seek that went
    astray is noticed.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, packets: Packets) -> None:
        self._container = container
        self._stream = stream
        self._packets = packets
        self._coming = _demux(container, stream)
        self._position = 0  # number of the packet that comes next
        self._seeks = bool(SEEKING & set(container.format.name.split(",")))

    def read(self, number: int, *, may_seek: bool) -> Packet | None:
        """None at a read error, or if another packet comes than was probed.

        Args:
            may_seek: whether the decoder holds nothing, for seeking empties it.
        """
        dts = self._packets.dts[number]
        far = number - self._position >= SEEK_PACKETS
        if may_seek and far and self._seeks and dts is not None:
            return self._seek(number, dts)
        packet = next(islice(self._coming, number - self._position, None), None)
        self._position = number + 1
        expected = self._packets.pts[number]
        return packet if packet is not None and packet.pts == expected else None

    def _seek(self, number: int, dts: int) -> Packet | None:
        """Read on from the key frame at or before a time of decoding."""
        self._container.seek(dts, stream=self._stream)
        self._coming = _demux(self._container, self._stream)
        self._position = number + 1
        wanted = (self._packets.pts[number], dts)
        for packet in self._coming:
            if packet is None or (packet.dts is not None and packet.dts > dts):
                return None
            if (packet.pts, packet.dts) == wanted:
                return packet
        return None


DROP, REFERENCE_ONLY, DECODE = range(3)
SEEKING = {"mov", "matroska"}  # containers with an index of key frames
SEEK_PACKETS = 128  # reading that many takes longer than one seek


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
        assert key_pts is not None  # or there would be no timeline from packets
        leading = [i for i in range(start + 1, stop) if (packets.pts[i] or 0) < key_pts]
        last = max((i for i in range(start, stop) if plan[i] == DECODE), default=start - 1)
        if not keep_whole and last + 1 < stop:
            plan[last + 1 : stop] = [DROP] * (stop - last - 1)
            restarts.add(stop)
        wants_leading = any(plan[i] == DECODE for i in leading)
        # Leading pictures may refer to leading ones of the group before, if nothing trails those.
        passes_on = keep_whole and bool(leading) and len(leading) == stop - start - 1
        keep_whole = wants_leading or passes_on
        if not keep_whole and start:
            for i in leading:
                plan[i] = DROP
    return plan, restarts


def _to_rgb(video: Video, frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """(H, W, 3) uint8, turned upright by the rotation the file carries."""
    _check_size(video.path, frame.width, frame.height, video.options)
    return _upright(frame, reformatter)


def _upright(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


# --- decord --------------------------------------------------------------------------------


def _choose_decoder(path: Path, options: DecodeOptions, objection: str | None) -> str:
    """PyAV unless decord is asked for by name: benchmarks/decode.py found no file it is faster on.

    Raises: DecodeError if decord is asked for and would not be exact.
    """
    if options.decoder != "decord":
        return "pyav"
    if options.on_corrupt == "fail":
        objection = objection or "it does not tell which frames are corrupt"
    if objection is not None:
        raise DecodeError(
            f"{path}: decord would not give the right frames, or nothing proves that it does: "
            f"{objection}; use the decoder pyav or auto"
        )
    return "decord"


def _decord_objection(
    packets: Packets, timeline: Timeline | None, container: InputContainer, stream: VideoStream
) -> str | None:
    """Why decord cannot be trusted with this file; None if its packets prove that it can."""
    context, codec = stream.codec_context, stream.codec_context.codec.canonical_name
    containers = {"mov", "mp4", "matroska", "webm"} & set(container.format.name.split(","))
    shown = [pts for pts in packets.pts if pts is not None]
    objections = {
        "its packets do not tell when each frame is shown": timeline is None,
        f"it is wrong in the container {container.format.name}": not containers,
        f"only H.264 is proved, not {codec}: decord fails at times on HEVC, and no packet of the "
        "others proves a constant size": codec != "h264",
        "it shows frames that an edit list cuts away": any(packets.discard),
        "the size of the picture may change on the way": packets.in_band_headers,
        "it chooses among several video streams by its own rule": len(container.streams.video) > 1,
        f"the pixels of {context.pix_fmt} are converted in another way": context.pix_fmt
        not in ("yuv420p", "yuvj420p"),
        "odd sizes are converted in another way": bool(context.width % 2 or context.height % 2),
        "groups of pictures are open: it seeks to key frames that need what came before": (
            packets.key != packets.clean_key or _has_leading_pictures(packets, shown)
        ),
    }
    return next((reason for reason, holds in objections.items() if holds), None)


def _has_leading_pictures(packets: Packets, pts: list[int]) -> bool:
    """Whether a picture that follows a key frame in the file is shown before it."""
    key_pts = None
    for is_key, time in zip(packets.key, pts, strict=False):
        key_pts = time if is_key else key_pts
        if key_pts is not None and time < key_pts:
            return True
    return False


def _decode_with_decord(video: Video, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The wanted frames from decord, once its list of frames and first picture are confirmed."""
    try:
        import decord
    except ImportError as error:
        raise DecodeError(
            "the decoder decord is not installed: pip install decord2, or use the decoder auto"
        ) from error
    try:
        reader = decord.VideoReader(os.path.abspath(video.path), num_threads=1)
        yield from _read_in_order(video, reader, set(wanted.tolist()))
    except decord.DECORDError as error:
        raise DecodeError(f"{video.path}: decord failed ({error}); use the decoder auto") from error


def _read_in_order(video: Video, reader: Any, wanted: set[int]) -> Iterator[np.ndarray]:
    """Every frame up to the last wanted one: its skips and seeks lose frames on a busy machine."""
    for index in range(max(wanted, default=-1) + 1):
        try:
            picture = reader.next().asnumpy()
        except StopIteration:
            raise DecodeError(
                f"{video.path}: decord ended before frame {index}; use the decoder auto"
            ) from None
        if index == 0:
            _confirm_decord(video, reader, picture)
        if index in wanted:
            yield picture


def _confirm_decord(video: Video, reader: Any, theirs: np.ndarray) -> None:
    """Compare decord's list of frames and its first picture with the packets and PyAV's.

    Raises: DecodeError if they differ.
    """
    times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    timeline = video.timeline.pts_seconds
    first = next(_decode_skipping(video, np.array([0])))
    if len(times) != len(timeline) or np.abs(times - times[0] - timeline).max() > 1e-3:
        what = "lists other frames than the file holds"
    elif first.rotation:
        what = "does not turn the picture upright"
    elif theirs.shape != (first.height, first.width, 3):  # narrow ones come with four channels
        what = f"gives pictures of shape {theirs.shape}"
    elif not np.array_equal(theirs, _to_rgb(video, first, VideoReformatter())):
        what = "shows another first picture"
    else:
        return
    raise DecodeError(f"{video.path}: decord {what}; use the decoder pyav or auto")


# --- sampling ------------------------------------------------------------------------------


def sample_frames(
    path: str | os.PathLike[str],
    fps: float = 1.0,
    *,
    decoder: str = "auto",
    on_corrupt: str = "keep",
    max_pixels: int = MAX_PIXELS,
    max_duration_seconds: float = MAX_DURATION_SECONDS,
) -> SampledFrames:
    """The frames on display at t = 0, 1 / fps, 2 / fps, … s after the first displayed frame.

    Args:
        path: a video file.
        fps: rows per second.
        decoder: "auto" takes the fastest exact way; "pyav" and "decord" force one.
        on_corrupt: "keep" uses what the codec makes of damaged frames and counts them.
        max_pixels: frames with more are refused.
        max_duration_seconds: longer videos are refused.

    Raises: DecodeError if the file cannot be decoded, or not exactly by the decoder asked for, or
        if its frames would take more than MAX_SAMPLED_BYTES; ValueError on a bad fps, decoder or
        on_corrupt.
    """
    options = DecodeOptions(decoder, on_corrupt, max_pixels, max_duration_seconds)

    def sample(video: Video) -> SampledFrames:
        rows = wanted_frames(video, fps)
        return SampledFrames(
            frames=_stack_rows(video, rows),
            pts_seconds=video.timeline.pts_seconds[rows],
            frame_index=rows,
            duration_seconds=video.timeline.duration_seconds,
            source_fps=video.source_fps,
            decoder=video.decoder,
            corrupt_frames=video.corrupt_frames,
        )

    return decode_video(path, sample, options)


def wanted_frames(video: Video, fps: float) -> np.ndarray:
    """(T,) int64: the index of each row's frame.

    Raises: DecodeError if there would be more than MAX_ROWS.
    """
    seconds = video.timeline.duration_seconds
    if (rows := row_count(seconds, fps)) > MAX_ROWS:
        raise DecodeError(
            f"{video.path}: {seconds:.0f} s at {fps:g} rows a second are {rows} rows, more than "
            f"{MAX_ROWS}; sample at a lower rate (--fps)"
        )
    return row_frames(video.timeline, fps)


def _stack_rows(video: Video, rows: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8: each frame decoded once, in all its rows."""
    stacked = np.empty(0, np.uint8)
    wanted, first_rows, repeats = np.unique(rows, return_index=True, return_counts=True)
    frames = iter_frames(video, wanted)
    for frame, row, count in zip(frames, first_rows.tolist(), repeats.tolist(), strict=True):
        if row == 0:
            _check_room(video.path, len(rows), frame)
            stacked = np.empty((len(rows), *frame.shape), np.uint8)
        if frame.shape != stacked.shape[1:]:
            raise DecodeError(
                f"{video.path}: the picture size changes; extract its features instead"
            )
        stacked[row : row + count] = frame
    return stacked


def _check_room(path: Path, rows: int, frame: np.ndarray) -> None:
    needed, (height, width, _) = rows * frame.nbytes, frame.shape
    if needed > MAX_SAMPLED_BYTES:
        raise DecodeError(
            f"{path}: {rows} rows of {width} × {height} pixels take {needed / 1e9:.1f} GB, more "
            f"than {MAX_SAMPLED_BYTES / 1e9:.1f}; sample at a lower rate, or extract its features"
        )


def describe_samples(
    path: str | os.PathLike[str],
    fps: float = 1.0,
    options: DecodeOptions = DEFAULTS,
    on_pass: Callable[[float], object] = _ignore,
) -> dict[str, Any]:
    """What `sample_frames` gives, without the pixels, as plain values; decodes all the same."""

    def describe(video: Video) -> dict[str, Any]:
        rows = wanted_frames(video, fps)
        sizes = [frame.shape[:2] for frame in iter_frames(video, np.unique(rows))]
        return {
            "path": str(path),
            "fps": fps,
            "width": sizes[0][1],
            "height": sizes[0][0],
            "pts_seconds": video.timeline.pts_seconds[rows].tolist(),
            "frame_index": rows.tolist(),
            "duration_seconds": video.timeline.duration_seconds,
            "source_fps": video.source_fps,
            "decoder": video.decoder,
            "corrupt_frames": video.corrupt_frames,
        }

    return decode_video(path, describe, options, on_pass)


# --- streams -------------------------------------------------------------------------------


def iter_stream(
    source: Source, fps: float, options: DecodeOptions = DEFAULTS
) -> Iterator[tuple[float, np.ndarray]]:
    """The rows of a source that may never end, as they come.

    Row k is the frame on display k / fps seconds after the first, as in a store; it is known when
    the next frame comes or the source ends. Every frame is decoded, one is held.

    Yields: the row's presentation time in seconds, and (H, W, 3) uint8 RGB, upright.
    Raises: DecodeError if the source cannot be opened or gives no frame.
    """
    path, reformatter, row = source.name, VideoReformatter(), 0
    shown: VideoFrame | None = None
    with _open_source(source, options) as (container, stream):
        clock = _StreamClock(stream, trust_pts=not _has_useless_timestamps(container, stream))
        for frame in _decode_all(path, options, container, stream):
            if frame is None:
                continue
            _check_size(path, frame.width, frame.height, options)
            before, now = clock.seconds, clock.advance(frame)
            while shown is not None and row / fps + TOLERANCE_SECONDS < now:
                yield before, _upright(shown, reformatter)
                row += 1
            shown = frame
        if shown is None:
            raise DecodeError(f"{path}: no frame can be decoded")
        for _ in range(row, row_count(clock.seconds + clock.last_duration, fps)):
            yield clock.seconds, _upright(shown, reformatter)


MAX_GAP_SECONDS = 60.0


class _StreamClock:
    """Seconds since the first frame, ascending whatever the timestamps do.

    A time that goes back, or ahead by more than a minute, starts a new count: streams wrap around
    and reconnect.
    """

    def __init__(self, stream: VideoStream, *, trust_pts: bool) -> None:
        self.seconds = 0.0
        self._time_base = float(stream.time_base or Fraction(1, 90000))
        self._period = float(1 / _frame_rate(stream))
        self.last_duration = self._period
        self._trust_pts = trust_pts
        self._origin: int | None = None
        self._frames = 0

    def advance(self, frame: VideoFrame) -> float:
        """The time of the next frame."""
        earliest = self.seconds + self._period if self._frames else 0.0
        seconds = earliest
        if self._trust_pts and frame.pts is not None:
            if self._origin is not None:
                seconds = (frame.pts - self._origin) * self._time_base
            if self._origin is None or not 0 < seconds - self.seconds <= MAX_GAP_SECONDS:
                seconds = earliest
                self._origin = frame.pts - round(earliest / self._time_base)
            if frame.duration:
                self.last_duration = frame.duration * self._time_base
        self.seconds, self._frames = seconds, self._frames + 1
        return seconds
