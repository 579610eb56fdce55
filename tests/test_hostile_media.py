"""A media file reaches no other file and no network, bursts no memory and hangs nothing.

Each attack is shown to work on a library that is let do as it likes, or names a file that exists
and must stay closed and a socket that must see no connection.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Clip, steady_times
from test_decode_cases import h264

from extract import decode

ROOT = Path(__file__).parents[1]
FUZZ_SECONDS = 60
MUTANTS = 40


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on this machine that must see no connection."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        yield server


def connections(server: socket.socket) -> int:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return 0
    return 1 + connections(server)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A sound video that must not be opened, though another file names it."""
    return h264("sentinel.mp4").build(tmp_path)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "hls-master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
    "hls-key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:9,\n{target}\n',
    "ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        "<Period><AdaptationSet><Representation id='1' mimeType='video/mp4'>"
        "<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "m3u-in-smil": '<smil><body><video src="{target}"/></body></smil>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
    "srt": "1\n00:00:00,000 --> 00:00:09,000\n{target}\n",
    "ass": "[Script Info]\nTitle: {target}\n[Events]\nDialogue: 0,0:00:00.00,0:00:09.00,a\n",
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
    "rtsp-redirect": "RTSPtextRTSP://127.0.0.1:{port}/x\n[Reference]\nRef1={target}\n",
    "text": "{target}\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "txt"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_file_that_names_another_is_refused(
    kind: str, suffix: str, sentinel: Path, listener: socket.socket, tmp_path: Path
) -> None:
    port = listener.getsockname()[1]
    for target in (
        str(sentinel),
        sentinel.name,
        f"file:{sentinel}",
        f"http://127.0.0.1:{port}/video.mp4",
        f"concat:{sentinel}|{sentinel}",
        f"subfile,,start,0,end,999,,:{sentinel}",
    ):
        path = tmp_path / f"{kind}.{suffix}"
        path.write_text(PLAYLISTS[kind].format(target=target, port=port))
        with pytest.raises(decode.DecodeError, match="not a readable video"):
            decode.sample_frames(path)
    assert connections(listener) == 0


def test_the_playlists_would_work_if_they_were_let(sentinel: Path, tmp_path: Path) -> None:
    """The refusals above are ours: without the allow-lists a playlist does open the other file."""
    path = tmp_path / "open.mp4"
    path.write_text(PLAYLISTS["ffconcat"].format(target=sentinel.name))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.width == 96


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:{port}/a.mp4", "tcp://127.0.0.1:{port}", "concat:a|b", "pipe:0"]
)
def test_a_name_is_always_the_name_of_a_file(name: str, listener: socket.socket) -> None:
    with pytest.raises(decode.DecodeError, match="No such file"):
        decode.probe(name.format(port=listener.getsockname()[1]))
    assert connections(listener) == 0


def point_elsewhere(path: Path, name: str) -> None:
    """Give an mp4 an alias as data reference: its samples are in the file `name` beside it."""
    place = f"/anywhere/{name}".encode()
    place += b"\0" * (len(place) % 2)
    body = b"".join(
        [
            b"\0" * 10,
            struct.pack(">B27s", 1, b"v"),  # volume
            b"\0" * 12,
            struct.pack(">B63s", len(name), name.encode()),
            b"\0" * 16,
            struct.pack(">HH", 1, 1),  # one folder up from here, one down to there
            b"\0" * 16,
            struct.pack(">HH", 2, len(place)) + place,  # the absolute path
            struct.pack(">HH", 0xFFFF, 0) + b"\0" * 32,
        ]
    )
    entry = struct.pack(">I4sI", 12 + len(body), b"alis", 0) + body
    content = path.read_bytes()
    start = content.index(b"url \0\0\0\1") - 4
    grown = bytearray(content[:start] + entry + content[start + 12 :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = grown.index(kind) - 4
        size = int.from_bytes(grown[at : at + 4], "big") + len(entry) - 12
        grown[at : at + 4] = size.to_bytes(4, "big")
    path.write_bytes(grown)


class OpenWatch:
    """Counts how often a file is opened, by whomever, as Linux tells."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), self.IN_OPEN) >= 0

    def __enter__(self) -> OpenWatch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def opened(self) -> bool:
        try:
            return len(os.read(self._fd, 4096)) > 0
        except BlockingIOError:
            return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")
def test_an_external_data_reference_is_not_followed(sentinel: Path, tmp_path: Path) -> None:
    path = h264("outside.mp4").build(tmp_path)
    point_elsewhere(path, sentinel.name)
    with OpenWatch(sentinel) as watch:
        with av.open(str(path), container_options={"enable_drefs": "1"}):
            assert watch.opened()  # it would work if it were let
        with pytest.raises(decode.DecodeError):
            decode.sample_frames(path)
        assert not watch.opened()


@pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_playlist_opens_the_file_it_names(kind: str, sentinel: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLISTS[kind].format(target=sentinel.name, port=9))
    with OpenWatch(sentinel) as watch:
        with pytest.raises(decode.DecodeError):
            decode.sample_frames(path)
        assert not watch.opened()


# --- bombs ---------------------------------------------------------------------------------


def test_a_picture_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = h264("large.mp4", width=320, height=240).build(tmp_path)
    assert decode.sample_frames(path, max_pixels=320 * 240).frames.shape[1:3] == (240, 320)
    with pytest.raises(decode.DecodeError, match="320 × 240 pixels, more than the limit of 76799"):
        decode.sample_frames(path, max_pixels=320 * 240 - 1)


@pytest.mark.parametrize("container", ["h264", "ts"])
def test_a_picture_that_grows_above_the_limit_on_the_way_is_refused(
    container: str, tmp_path: Path
) -> None:
    small = h264(f"small.{container}", 30).build(tmp_path)
    large = h264(f"large.{container}", 30, width=640, height=480).build(tmp_path)
    path = tmp_path / f"growing.{container}"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(decode.DecodeError, match="640 × 480 pixels, more than the limit of 20000"):
        decode.sample_frames(path, 5, max_pixels=20_000)


def test_a_header_that_lies_small_does_not_let_a_large_picture_pass(tmp_path: Path) -> None:
    path = h264("liar.mp4", width=640, height=480).build(tmp_path)
    content = path.read_bytes()
    entry = content.index(b"avc1", content.index(b"stsd")) + 4 + 24
    assert content[entry : entry + 4] == struct.pack(">HH", 640, 480)
    path.write_bytes(content[:entry] + struct.pack(">HH", 16, 16) + content[entry + 4 :])
    with pytest.raises(decode.DecodeError, match="640 × 480 pixels, more than the limit of 20000"):
        decode.sample_frames(path, max_pixels=20_000)


def claim_size(path: Path, width: int, height: int) -> Path:
    """Overwrite the size of 320 × 256 pixels in a Matroska header."""
    content = path.read_bytes()
    for element, found, claimed in ((b"\xb0\x82", 320, width), (b"\xba\x82", 256, height)):
        old, new = (element + struct.pack(">H", size) for size in (found, claimed))
        assert content.count(old) == 1
        content = content.replace(old, new)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("side", "found"), [(16384, "no frame|16384 × 16384"), (8192, "8192 × 8192")]
)
def test_a_claim_above_the_limit_is_refused(side: int, found: str, tmp_path: Path) -> None:
    """FFV1 has its size from the container alone. FFmpeg itself balks at 16384 × 16384."""
    clip = Clip("bomb.mkv", "ffv1", steady_times(5, 25), width=320, height=256)
    path = claim_size(clip.build(tmp_path), side, side)
    assert decode.MAX_PIXELS < 16384 * 16384
    with pytest.raises(decode.DecodeError, match=rf"bomb\.mkv: .*({found})"):
        decode.sample_frames(path, max_pixels=min(decode.MAX_PIXELS, side * side - 1))


def test_a_header_that_lies_large_does_no_harm(tmp_path: Path) -> None:
    path = h264("boaster.mkv", width=320, height=256).build(tmp_path)
    line = run_limited(claim_size(path, 16384, 16384), seconds=20, memory_bytes=100 << 20)
    assert line.startswith(("rows 5", "error "))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_real_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """12000 × 12000 grey pixels, 144 MB a frame, in a small file."""
    path = tmp_path / "bomb.mov"
    frame = av.VideoFrame(12000, 12000, "gray")
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    frame.pts = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 12000, 12000, "gray"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 4 << 20
    line = run_limited(path, seconds=20, memory_bytes=100 << 20, max_pixels=4096 * 4096)
    assert "12000 × 12000 pixels, more than the limit of 16777216" in line


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_want_of_memory_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = h264("large.mp4", 3, width=4096, height=2304).build(tmp_path)
    assert run_limited(path, seconds=30, memory_bytes=2 << 30).startswith("rows 1")
    line = run_limited(path, seconds=30, memory_bytes=48 << 20)
    assert line.startswith("error ")
    assert "memory" in line


def row_bomb(folder: Path, seconds: int) -> Path:
    """Two frames, so many seconds apart."""
    times = (Fraction(0), Fraction(seconds))
    return h264("bomb.mkv", times=times, time_base=Fraction(1, 1000)).build(folder)


def test_a_video_that_claims_to_last_for_ever_is_refused(tmp_path: Path) -> None:
    path = row_bomb(tmp_path, 60 * 3600)
    message = r"lasts 216000\.0 s, more than the limit of 86400\.0 s.*raise --max-duration"
    with pytest.raises(decode.DecodeError, match=message):
        decode.sample_frames(path)
    with pytest.raises(decode.DecodeError, match=message):
        decode.probe_by_decoding(path)
    sampled = decode.sample_frames(path, 1 / 3600, max_duration_seconds=61 * 3600)
    assert sampled.frame_index.tolist() == [0] * 60 + [1]


def test_rows_that_would_fill_the_memory_are_an_error_that_says_so(tmp_path: Path) -> None:
    path = row_bomb(tmp_path, 20 * 3600)
    # 72,000 seconds and the last frame's at 25 rows a second, each of 96 × 64 × 3 bytes.
    message = r"18000\d\d rows of 96 × 64 pixels take 33\.2 GB"
    with pytest.raises(decode.DecodeError, match=message):
        decode.sample_frames(path, 25)
    with pytest.raises(decode.DecodeError, match=r"at 1000 rows a second are 72000\d\d\d rows"):
        decode.sample_frames(path, 1000)


def test_few_frames_are_little_work_however_long_they_claim_to_be_shown(tmp_path: Path) -> None:
    passes: list[float] = []
    decode.decode_video(row_bomb(tmp_path, 20 * 3600), lambda video: None, on_pass=passes.append)
    assert passes == [20.0]  # two frames of 10 s at most


def test_a_file_of_very_many_streams_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crowd.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(300)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
    with pytest.raises(decode.DecodeError, match="256 streams or more"):
        decode.sample_frames(path)


# --- fuzz ----------------------------------------------------------------------------------

CHILD = """
import resource, sys
from pathlib import Path
from extract import decode
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]),) * 2)
for line in sys.stdin:
    try:
        frames = decode.sample_frames(line.rstrip("\\n"), 2, max_pixels=int(sys.argv[2])).frames
        print("rows", len(frames), flush=True)
    except decode.DecodeError as error:
        print("error", str(error).replace("\\n", " "), flush=True)
    except MemoryError:
        print("error out of memory", flush=True)
"""


def run_limited(
    *paths: Path, seconds: float, memory_bytes: int, max_pixels: int = decode.MAX_PIXELS
) -> str:
    """Sample each path in one child process: a line for each, "rows N" or "error …"."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(memory_bytes), str(max_pixels)],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


SEEDS = [
    h264("seed.mp4", 20),
    h264("seed.mkv", 20),
    h264("seed.ts", 20),
    h264("seed.avi", 20),
    Clip("seed.webm", "libvpx", steady_times(20, 25), options={"deadline": "realtime"}),
    Clip(
        "seed-hevc.mp4", "libx265", steady_times(20, 25), options={"x265-params": "log-level=none"}
    ),
    Clip("seed.mpg", "mpeg2video", steady_times(20, 25), options={"bf": "2"}),
    Clip("seed.mov", "mpeg4", steady_times(20, 25), options={"bf": "2"}),
]


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Change, cut out, double or overwrite a few short stretches, more often near the headers."""
    mutant = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        reach = len(mutant) if random.random() < 0.5 else min(len(mutant), 600)
        at, length = int(random.integers(reach)), int(random.integers(1, 9))
        piece = random.integers(0, 256, length, dtype=np.uint8).tobytes()
        match int(random.integers(5)):
            case 0:
                mutant[at] ^= 1 << int(random.integers(8))
            case 1:
                mutant[at : at + length] = piece
            case 2:
                del mutant[at : at + length]
            case 3:
                mutant[at:at] = mutant[at : at + 64]
            case 4:
                mutant[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(mutant)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("clip", SEEDS, ids=lambda clip: clip.name)
def test_mutants_end_as_rows_or_as_an_error(clip: Clip, tmp_path: Path) -> None:
    content = clip.build(tmp_path).read_bytes()
    random = np.random.default_rng(sum(clip.name.encode()))
    paths = []
    for number in range(MUTANTS):
        paths.append(tmp_path / f"mutant-{number}.{clip.suffix}")
        paths[-1].write_bytes(mutate(content, random))
    lines = run_limited(*paths, seconds=FUZZ_SECONDS, memory_bytes=1 << 30).splitlines()
    assert len(lines) == MUTANTS
    assert all(line.startswith(("rows ", "error ")) for line in lines)
    assert any(line.startswith("rows ") for line in lines)
