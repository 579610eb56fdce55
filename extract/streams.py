"""Rows of a live source: a file, standard input or an address, decoded in a process of its own.

The process can be killed when nothing comes, and what it decodes can harm no other. It is at most
a row or two ahead: while its rows are not taken, it does not read on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from extract.decode import DEMUXERS, DecodeError, DecodeOptions, Source, iter_stream
from extract.preprocess import Preprocessing
from extract.supervise import DecodeLimits, confine, spawning

# What an address may make libavformat open: the protocols of its own kind, and no file.
_PROTOCOLS = {
    "http": "http,https,tcp,tls",
    "https": "https,tcp,tls",
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,tcp,tls",
    "tcp": "tcp",
    "udp": "udp",
}
_STREAM_DEMUXERS = f"{DEMUXERS},hls,rtsp,rtp,sdp,mpjpeg,live_flv"


class StreamError(Exception):
    """A source cannot be opened or gives no more rows; the message says what to do."""


@dataclass(frozen=True)
class StreamRow:
    """The inputs of one row."""

    seconds: float  # since the first frame
    pixels: Mapping[str, np.ndarray]  # input name → row_shape uint8


def find_source(text: str) -> Source:
    """What the user names: `-` is standard input, `scheme://…` an address, else a file.

    Raises: StreamError if it is none of those.
    """
    if text == "-":
        return Source("standard input", "pipe:", "pipe")
    scheme, colon, _ = text.partition("://")
    if not colon:
        path = Path(text)
        if path.is_char_device():
            raise StreamError(
                f"{text}: devices are not read directly; pipe them in, as in `ffmpeg -f v4l2 "
                f"-i {text} -c:v mpeg2video -f mpegts - | liteeval stream - --run …`"
            )
        if not path.exists() or path.is_dir():
            raise StreamError(f"{text}: no such file; expected a file, - or an address")
        return Source(text, "file:" + os.path.abspath(path))
    if scheme.lower() not in _PROTOCOLS:
        raise StreamError(f"{text}: expected an address of {', '.join(_PROTOCOLS)}, found {scheme}")
    return Source(_without_password(text), text, _PROTOCOLS[scheme.lower()], _STREAM_DEMUXERS)


def _without_password(address: str) -> str:
    """The address as messages may show it."""
    place = urlsplit(address).netloc
    return address.replace(f"{place.rpartition('@')[0]}@", "", 1) if "@" in place else address


class StreamReader:
    """Iterates over the rows of a source.

        with StreamReader(find_source("rtsp://…"), inputs, fps=1.0) as rows:
            for row in rows: ...

    Raises: StreamError if the source cannot be opened, or for `timeout_seconds` gives no row.
    """

    def __init__(
        self,
        source: Source,
        inputs: Mapping[str, Preprocessing],
        *,
        fps: float,
        timeout_seconds: float = 30.0,
        decode: DecodeOptions | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        for name, preprocessing in inputs.items():
            if preprocessing.frames != 1:
                raise StreamError(
                    f"{source.name}: the {name} network reads clips of {preprocessing.frames} "
                    "frames around each row; a stream gives single frames"
                )
        self._source, self._timeout_seconds = source, timeout_seconds
        self._arguments = (dict(inputs), fps, decode or DecodeOptions(), limits or DecodeLimits())

    def __enter__(self) -> StreamReader:
        self._connection, theirs = spawning.Pipe(duplex=False)
        # A connection is what travels to a spawned process as an open file.
        piped = self._source.protocols == "pipe"
        feed = Connection(os.dup(0), writable=False) if piped else None
        self._process = spawning.Process(
            target=_serve, args=(theirs, feed, self._source, *self._arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        if feed is not None:
            feed.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def __iter__(self) -> Iterator[StreamRow]:
        while True:
            if not self._connection.poll(self._timeout_seconds):
                raise StreamError(
                    f"{self._source.name}: nothing came for {self._timeout_seconds:g} s; wait "
                    "longer with --timeout"
                )
            try:
                message = self._connection.recv()
            except EOFError:
                self._process.join()
                raise StreamError(
                    f"{self._source.name}: the decoder process died (exit code "
                    f"{self._process.exitcode})"
                ) from None
            if isinstance(message, str):
                raise StreamError(message)
            if message is None:
                return
            yield message


def _serve(
    connection: Connection,
    feed: Connection | None,
    source: Source,
    inputs: dict[str, Preprocessing],
    fps: float,
    decode: DecodeOptions,
    limits: DecodeLimits,
) -> None:
    """Send each row, then None; a message instead if the source cannot be decoded."""
    confine(limits)
    if feed is not None:
        os.dup2(feed.fileno(), 0)
    try:
        try:
            for seconds, frame in iter_stream(source, fps, decode):
                pixels = {name: p.resize_and_crop(frame) for name, p in inputs.items()}
                connection.send(StreamRow(seconds, pixels))
            connection.send(None)
        except DecodeError as error:
            connection.send(str(error))
        except MemoryError:
            connection.send(f"{source.name}: needs more memory than a decoder may take")
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent is gone
