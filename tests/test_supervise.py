"""Decode processes that hang, die or run out of memory harm no other video."""

import os
import re
import signal
import time
from dataclasses import replace
from fractions import Fraction
from multiprocessing import Pipe
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from clips import Clip, read_number, steady_times
from damage import damaged_clips, time_limit

from extract import supervise
from extract.decode import DecodeOptions
from extract.preprocess import Preprocessing
from extract.sampling import first_rows
from extract.supervise import (
    SLOTS_PER_WORKER,
    Decoded,
    DecodeLimits,
    DecodePool,
    DecodeTask,
    Event,
    Failed,
    Rows,
    Started,
    WorkerOptions,
)

WHOLE = Preprocessing(64, 64, (0.5,) * 3, (0.5,) * 3)


def options(**limits: float) -> WorkerOptions:
    return WorkerOptions(inputs={"x": WHOLE}, fps=5.0, limits=DecodeLimits(**limits))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [
        Clip(f"{n}.mp4", "libx264", steady_times(n, 25), width=64).build(folder)
        for n in (10, 25, 60)
    ]


def task(path: Path) -> DecodeTask:
    return DecodeTask(path.name, path, ("x",))


def collect(events: list[Event], video_id: str) -> np.ndarray:
    """All rows of one video, put where their numbers say."""
    rows: np.ndarray | None = None
    for event in events:
        if event.video_id == video_id and isinstance(event, Started):
            rows = np.zeros((event.rows, 64, 64, 3), np.uint8)
        elif event.video_id == video_id and isinstance(event, Rows):
            assert rows is not None
            rows[event.first : event.first + len(event.pixels["x"])] = event.pixels["x"]
    assert rows is not None
    return rows


def copied(event: Event) -> Event:
    """Rows are valid only until the next event."""
    if isinstance(event, Rows):
        return replace(event, pixels={k: v.copy() for k, v in event.pixels.items()})
    return event


def run(paths: list[Path], opts: WorkerOptions, workers: int = 2) -> list[Event]:
    with DecodePool(workers, opts) as pool:
        return [copied(event) for event in pool.run(task(path) for path in paths)]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_video_ends_once_with_its_right_rows(clips: list[Path], workers: int) -> None:
    events = run(clips, options(), workers)
    for path, frames in zip(clips, (10, 25, 60), strict=True):
        (end,) = [e for e in events if isinstance(e, Decoded) and e.video_id == path.name]
        assert end.frame_index.tolist() == list(range(0, frames, 5))  # 25 fps at 5 rows a second
        rows = collect(events, path.name)
        assert [_left_bits(row) for row in rows] == [_left_bits_of(n) for n in range(0, frames, 5)]


def _left_bits(picture: np.ndarray) -> list[bool]:
    """The eight bits in the first 64 columns of an index-coded picture."""
    return [
        bool(picture[16 * (i % 4) + 8, 16 * (i // 4) + 8].mean() > 128) for i in range(0, 16, 2)
    ]


def _left_bits_of(number: int) -> list[bool]:
    return [bool(number >> bit & 1) for bit in range(8)]


def test_a_file_that_blocks_for_ever_is_killed_and_the_others_go_on(
    clips: list[Path], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    started = time.monotonic()
    events = run([pipe, *clips], options(timeout_seconds=1.0))
    assert time.monotonic() - started < 30
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert failed.video_id == "pipe.mp4"
    assert "time limit" in failed.error
    assert failed.attempts == 2
    assert len([e for e in events if isinstance(e, Decoded)]) == 3


def growing_clips(folder: Path) -> list[Path]:
    """Clips that are refused half-way, where their picture grows above the limit of pixels."""
    sizes = [{}, {"width": 640, "height": 480}]
    parts = [
        Clip(f"part-{i}.h264", "libx264", steady_times(30, 25), **size).build(folder)
        for i, size in enumerate(sizes)
    ]
    paths = [folder / f"growing-{i}.h264" for i in range(2 * SLOTS_PER_WORKER)]
    for path in paths:
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return paths


def test_more_damaged_videos_than_a_worker_has_slots_all_end(tmp_path: Path) -> None:
    damaged = damaged_clips(tmp_path, 3 * SLOTS_PER_WORKER)
    growing = growing_clips(tmp_path)
    opts = replace(options(), decode=DecodeOptions(max_pixels=20_000))
    with time_limit(60):
        events = run([*damaged, *growing, *damaged], opts, workers=1)
    ends = [event for event in events if isinstance(event, Decoded | Failed)]
    assert len(ends) == 2 * len(damaged) + len(growing)
    failed = {event.video_id for event in ends if isinstance(event, Failed)}
    assert failed == {path.name for path in growing}
    starts = [e for e in events if isinstance(e, Started) and e.video_id.startswith("damaged")]
    assert len(starts) - 2 * len(damaged) > SLOTS_PER_WORKER  # so many began anew


def spin(rows: int, wanted: int) -> np.ndarray:
    """For a video of twelve rows: native code without an end, which keeps the interpreter."""
    if rows == 12:
        re.match("(a+)+$", "a" * 80 + "b")
    return np.arange(rows)


def test_a_worker_that_spins_in_native_code_is_killed_and_its_video_given_up(
    clips: list[Path],
) -> None:
    opts = replace(options(timeout_seconds=1.0, timeout_factor=0.0), select=spin)
    with time_limit(60):
        events = run(clips, opts, workers=1)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert (failed.video_id, failed.attempts) == ("60.mp4", 2)  # 60 frames, every fifth: 12 rows
    assert "time limit" in failed.error
    assert {e.video_id for e in events if isinstance(e, Decoded)} == {"10.mp4", "25.mp4"}


def four_hours(path: Path) -> Path:
    """14,400 frames, one a second: 240 of them, 60 times over."""
    clip = Clip("minutes.mp4", "mpeg4", steady_times(240, 1), Fraction(1), {"g": "240"}, width=64)
    with av.open(str(clip.build(path.parent))) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        packets = [bytes(packet) for packet in source.demux(stream) if packet.size]
        for number in range(60 * len(packets)):
            packet = av.Packet(packets[number % len(packets)])
            packet.pts = packet.dts = number
            packet.time_base, packet.duration = Fraction(1), 1
            packet.is_keyframe, packet.stream = number % len(packets) == 0, copied
            target.mux(packet)
    return path


def test_a_video_of_four_hours_takes_no_more_memory_than_its_first_minutes(tmp_path: Path) -> None:
    """All its rows would be 14,400 × 64 × 64 × 3 bytes: 177 MB."""
    path = four_hours(tmp_path / "long.mp4")
    taken_bytes, rows = [], 0
    with DecodePool(1, replace(options(), fps=1.0)) as pool:
        both = [psutil.Process(), psutil.Process(pool._workers[0].process.pid)]
        for event in pool.run([task(path)]):
            if isinstance(event, Rows):
                rows += len(event.pixels["x"])
                taken_bytes.append(sum(process.memory_info().rss for process in both))
    assert rows == 14_400
    assert max(taken_bytes) - taken_bytes[10] < 40 << 20


B_FRAMES = {"bf": "2", "g": "12"}


@pytest.mark.parametrize(
    ("name", "codec", "options_", "on_corrupt"),
    [("ill-timed.avi", "mpeg4", B_FRAMES, "keep"), ("timed.mp4", "libx264", {}, "fail")],
)
def test_where_decoding_tells_the_times_the_limit_follows_the_videos_length(
    name: str,
    codec: str,
    options_: dict[str, str],
    on_corrupt: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """250 frames at 25 fps are 10 s: at 30 s per second, 300 to decode it all and 300 for rows."""
    path = Clip(name, codec, steady_times(250, 25), options=options_, width=64).build(tmp_path)
    limits = DecodeLimits(timeout_seconds=20.0, timeout_factor=30.0)
    opts = replace(options(), limits=limits, decode=DecodeOptions(on_corrupt=on_corrupt))
    alarms = []

    def note(which: int, seconds: float) -> tuple[float, float]:
        alarms.append(round(seconds))
        return 0.0, 0.0

    monkeypatch.setattr("extract.supervise.signal.setitimer", note)
    ours, theirs = Pipe()
    service = supervise._Service(theirs, bytearray(opts.memory_bytes), opts)
    with ours, theirs:
        service.answer(task(path))
    waits = [0, 0]  # around the wait for each of two slots
    assert alarms == [20, 300, 300, *waits, *waits, 0]


def test_more_rows_than_any_use_has_are_refused(tmp_path: Path) -> None:
    """Two frames, 23 hours apart, at 100 rows a second: 8,280,000 rows and those of the last."""
    times = (Fraction(0), Fraction(23 * 3600))
    clip = Clip("bomb.mkv", "libx264", times, time_base=Fraction(1, 1000), width=64)
    (failed,) = run([clip.build(tmp_path)], replace(options(), fps=100.0), workers=1)
    assert isinstance(failed, Failed)
    assert "are 828000" in failed.error
    assert "a lower rate (--fps)" in failed.error


def test_waiting_for_a_slow_reader_is_not_held_against_a_video(tmp_path: Path) -> None:
    path = Clip("long.mp4", "libx264", steady_times(800, 25), width=64).build(tmp_path)
    with DecodePool(1, options(timeout_seconds=1.5, timeout_factor=0.0)) as pool:
        events = []
        for event in pool.run([task(path)]):
            events.append(type(event))
            if isinstance(event, Rows):
                time.sleep(0.5)  # more than the limit in all: there are five blocks of 32 rows
    assert events[-1] is Decoded
    assert events.count(Rows) == 5


def test_a_stopped_video_gives_few_more_rows_and_the_next_gives_all(
    clips: list[Path], tmp_path: Path
) -> None:
    path = Clip("long.mp4", "libx264", steady_times(800, 25), width=64).build(tmp_path)
    opts = replace(options(), max_rows=100, select=first_rows, block_rows=1)
    blocks = {path.name: 0, clips[2].name: 0}
    ends = []
    with DecodePool(1, opts) as pool:
        for event in pool.run([task(path), task(clips[2])]):
            if isinstance(event, Started) and event.video_id == path.name:
                assert event.rows == 100
            if isinstance(event, Rows):
                blocks[event.video_id] += 1
                pool.stop(path.name)  # again and again: only the first counts
            ends += [event.video_id] if isinstance(event, Decoded) else []
    assert ends == [path.name, clips[2].name]
    assert blocks[path.name] <= 2 * SLOTS_PER_WORKER
    assert blocks[clips[2].name] == 12


def test_a_worker_that_is_killed_gets_its_video_done_by_another(tmp_path: Path) -> None:
    path = Clip("long.mp4", "libx264", steady_times(800, 25), width=64).build(tmp_path)
    events: list[Event] = []
    with DecodePool(1, options()) as pool:
        for event in pool.run([task(path)]):
            if isinstance(event, Rows) and not any(isinstance(e, Rows) for e in events):
                for child in psutil.Process().children(recursive=True):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.send_signal(signal.SIGKILL)
            events.append(copied(event))
    assert [type(e) for e in events].count(Started) == 2
    assert isinstance(events[-1], Decoded)
    rows = collect(events, path.name)
    assert [_left_bits(row) for row in rows] == [_left_bits_of(n) for n in range(0, 800, 5)]


def test_a_video_that_needs_too_much_memory_fails_alone(clips: list[Path], tmp_path: Path) -> None:
    huge = Clip("huge.mp4", "libx264", steady_times(2, 25), width=4096, height=4096)
    opts = options(memory_bytes=120 << 20)
    events = run([huge.build(tmp_path), clips[0]], opts, workers=1)
    (failed,) = [e for e in events if isinstance(e, Failed)]
    assert failed.video_id == "huge.mp4"
    assert [e.video_id for e in events if isinstance(e, Decoded)] == ["10.mp4"]


def test_a_worker_is_replaced_after_its_share_of_videos(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.supervise.VIDEOS_PER_WORKER", 1)
    pids = set()
    with DecodePool(1, options()) as pool:
        for event in pool.run(task(path) for path in clips):
            if isinstance(event, Decoded):
                pids.add(pool._workers[0].process.pid)
    assert len(pids) == len(clips)


def test_no_process_stays_behind(clips: list[Path]) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    run(clips, options())
    after = {
        p.pid
        for p in psutil.Process().children(recursive=True)
        if "spawn_main" in " ".join(p.cmdline())
    }
    assert after <= before


def test_the_clips_do_carry_their_numbers() -> None:
    """The reading above agrees with the one of the clips' own module."""
    from clips import draw_number

    for number in (0, 5, 77, 255):
        grey = draw_number(number)
        assert _left_bits(np.stack([grey] * 3, axis=2)) == _left_bits_of(number)
        assert read_number(np.stack([grey] * 3, axis=2)) == number
