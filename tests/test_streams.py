"""Live sources give the rows that files give, and open nothing else."""

import http.server
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import psutil
import pytest
from clips import Clip, read_number, steady_times

from extract.decode import DecodeError, Source, iter_stream
from extract.preprocess import Preprocessing
from extract.streams import StreamError, StreamReader, find_source

SMALL = {"x": Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3)}
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "12"}
UNEVEN = tuple(Fraction(t, 100) for t in (0, 3, 10, 11, 50, 90, 100, 101, 180, 260, 263))
CLIPS = [
    Clip("closed.mp4", "libx264", steady_times(60, 25), options=B_FRAMES),
    Clip("open.ts", "libx264", steady_times(60, 25), options=B_FRAMES),
    Clip("uneven.mkv", "libx264", UNEVEN, time_base=Fraction(1, 100), options=B_FRAMES),
    Clip("useless_times.avi", "libx264", steady_times(60, 25), options=B_FRAMES),
    Clip("vp9.webm", "libvpx-vp9", steady_times(40, 25)),
    Clip("one.mp4", "libx264", steady_times(1, 25)),
]


def file_source(path: Path) -> Source:
    return Source(str(path), f"file:{path}")


def read(text: str, **options) -> list:
    with StreamReader(find_source(text), SMALL, fps=1.0, **options) as rows:
        return list(rows)


@pytest.mark.parametrize("fps", [1, Fraction(5, 2), 30])
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_rows_are_the_frames_on_display(clip: Clip, fps: Fraction, tmp_path: Path) -> None:
    rows = list(iter_stream(file_source(clip.build(tmp_path)), float(fps)))
    assert [read_number(frame) for _, frame in rows] == clip.rows(Fraction(fps))
    expected = [float(clip.shown_seconds[number]) for number in clip.rows(Fraction(fps))]
    assert [seconds for seconds, _ in rows] == pytest.approx(expected, abs=1e-6)


def test_time_goes_on_where_timestamps_start_again(tmp_path: Path) -> None:
    part = Clip("part.ts", "libx264", steady_times(50, 25)).build(tmp_path).read_bytes()
    (tmp_path / "twice.ts").write_bytes(part + part)
    rows = list(iter_stream(file_source(tmp_path / "twice.ts"), 1.0))
    assert [read_number(frame) for _, frame in rows] == [0, 25, 0, 25]
    assert [seconds for seconds, _ in rows] == pytest.approx([0, 1, 2, 3], abs=1e-6)


def test_a_leap_of_hours_is_no_thousand_rows(tmp_path: Path) -> None:
    times = (*steady_times(25, 25), *(t + 7200 for t in steady_times(25, 25)))
    clip = Clip("leap.ts", "mpeg2video", times, options={"bf": "0"})
    rows = list(iter_stream(file_source(clip.build(tmp_path)), 1.0))
    assert [read_number(frame) for _, frame in rows] == [0, 25]


def test_a_file_and_standard_input_give_the_same(tmp_path: Path) -> None:
    path = Clip("clip.ts", "libx264", steady_times(60, 25), width=64).build(tmp_path)
    from_file = read(str(path))
    with path.open("rb") as file, standard_input(file.fileno()):
        from_input = read("-")
    assert len(from_file) == 3
    for one, other in zip(from_file, from_input, strict=True):
        assert one.seconds == other.seconds
        assert (one.pixels["x"] == other.pixels["x"]).all()


@contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    kept = os.dup(0)
    os.dup2(descriptor, 0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """Serves tmp_path on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def playlist(segment: str) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{segment}\n#EXT-X-ENDLIST\n"


def test_an_address_may_name_further_addresses_but_no_file(website: str, tmp_path: Path) -> None:
    path = Clip("clip.ts", "libx264", steady_times(60, 25), width=64).build(tmp_path)
    (tmp_path / "good.m3u8").write_text(playlist("clip.ts"))
    (tmp_path / "evil.m3u8").write_text(playlist(f"file://{path}"))
    assert len(read(f"{website}/clip.ts")) == 3
    assert len(read(f"{website}/good.m3u8")) == 3
    with pytest.raises(StreamError, match=r"evil\.m3u8"):
        read(f"{website}/evil.m3u8")
    with pytest.raises(StreamError, match="404"):
        read(f"{website}/none.ts")


def test_a_local_playlist_opens_nothing(website: str, tmp_path: Path) -> None:
    Clip("clip.ts", "libx264", steady_times(60, 25), width=64).build(tmp_path)
    (tmp_path / "local.m3u8").write_text(playlist(f"{website}/clip.ts"))
    with pytest.raises(StreamError, match="not on the list of allowed video containers"):
        read(str(tmp_path / "local.m3u8"))


def test_silence_ends_the_wait() -> None:
    reading, writing = os.pipe()
    with (
        standard_input(reading),
        pytest.raises(StreamError, match=r"nothing came for 1\.5 s; wait longer with --timeout"),
    ):
        read("-", timeout_seconds=1.5)
    os.close(reading)
    os.close(writing)


def test_no_process_stays_behind_and_a_killed_one_is_told(tmp_path: Path) -> None:
    path = Clip("clip.ts", "libx264", steady_times(900, 25), width=64).build(tmp_path)
    before = set(psutil.Process().children(recursive=True))
    with StreamReader(find_source(str(path)), SMALL, fps=25.0) as rows:
        next(iter(rows))
        rows._process.kill()
        with pytest.raises(StreamError, match=r"process died \(exit code -9\)"):
            list(rows)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no/such/file.mp4", "no such file; expected a file, - or an address"),
        ("file:///etc/passwd", "expected an address of http"),
        ("/dev/null", "pipe them in"),
    ],
)
def test_what_is_no_source_is_refused(text: str, message: str) -> None:
    with pytest.raises(StreamError, match=re.escape(message)):
        find_source(text)


def test_messages_hide_passwords() -> None:
    source = find_source("rtsp://user:secret@camera.local:554/door")
    assert source.name == "rtsp://camera.local:554/door"
    assert "secret" in source.url


def test_a_source_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=re.escape("noise.mp4: not a readable video")):
        list(iter_stream(file_source(tmp_path / "noise.mp4"), 1.0))


def test_a_network_that_reads_clips_is_refused() -> None:
    clip = Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3, frames=32)
    with pytest.raises(StreamError, match="a stream gives single frames"):
        StreamReader(find_source("-"), {"fine": clip}, fps=1.0)


def test_decoding_a_long_stream_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    part = Clip("part.ts", "mpeg2video", steady_times(500, 25), width=64).build(tmp_path)
    long = tmp_path / "long.ts"
    long.write_bytes(part.read_bytes() * 30)  # 15,000 frames
    used = []
    with StreamReader(find_source(str(long)), SMALL, fps=1.0) as rows:
        process = psutil.Process(rows._process.pid)
        for number, _ in enumerate(rows):
            if number in (100, 590):
                used.append(process.memory_info().rss)
    assert number == 599
    assert used[1] - used[0] < 4 << 20  # 15,000 frames of 64 × 64 in YUV are 92 MB
