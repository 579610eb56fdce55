"""A stream's rows are predicted as the rows of a video are, one by one, without end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner

from extract.streams import StreamReader, StreamRow, find_source
from extract.videos import find_videos
from liteeval_train.data import first_rows
from liteeval_train.evaluate import open_split, trace_videos
from pipelines.cli import main
from pipelines.live import LiveRun, open_live
from pipelines.stream import LiveStream

TOLERANCE = 0.01  # float16 in stores; trained scores lie between 0 and 1


def stream_rows(live: LiveRun, path: Path) -> list[StreamRow]:
    with StreamReader(find_source(str(path)), live.inputs, fps=live.fps) as rows:
        return list(rows)


@pytest.mark.parametrize("method", ["liteeval", "lstm+cf", "uniform"])
def test_each_row_gets_the_scores_that_stored_features_give(live_runs: Path, method: str) -> None:
    live = open_live(live_runs / method, device="cpu")
    run, classes = live.run, live.run.info.classes
    videos = open_split(run.info, "val", max_frames=999, select=first_rows)
    traces, _ = trace_videos(
        run.method, videos, classes=len(classes), batch_videos=8, device=run.device, every_step=True
    )
    paths = {video.id: video.path for video in find_videos([live_runs / "clips"])}
    for trace in traces[:2]:
        rows = stream_rows(live, paths[trace.sample.video_id])
        updates = list(LiveStream(live).follow(rows))
        scores_TK = trace.step_scores_TK
        if method == "uniform":  # whose step scores are each frame's own
            scores_TK = scores_TK.cumsum(0) / torch.arange(1, len(scores_TK) + 1)[:, None]
        best_T = zip(scores_TK, updates, strict=True)
        chosen_T = [float(scores_K[classes.index(u.label)]) for scores_K, u in best_T]
        assert [update.score for update in updates] == pytest.approx(chosen_T, abs=TOLERANCE)
        assert chosen_T == pytest.approx(scores_TK.max(dim=1).values.tolist(), abs=TOLERANCE)
        assert [update.gate_open for update in updates] == trace.used_T.tolist()
        assert [update.seconds for update in updates] == trace.sample.pts_seconds.tolist()


def test_costs_add_up_and_only_open_rows_reach_the_fine_network(live_runs: Path) -> None:
    live = open_live(live_runs / "liteeval", device="cpu")
    rows = stream_rows(live, find_videos([live_runs / "clips"])[0].path)
    follower = LiveStream(live)
    updates = list(follower.follow(rows))
    summary = follower.summary()
    opened = np.cumsum([update.gate_open for update in updates])
    assert 0 < opened[-1] < len(rows)
    assert live.fine.rows == opened[-1] == summary.fine_rows
    assert live.coarse.rows == len(rows) == summary.rows
    shares = opened / np.arange(1, len(rows) + 1)
    assert [update.fine_share for update in updates] == pytest.approx(shares)
    info, head = live.run.info, live.run.method.head_flops()
    per_row = info.coarse.identity["gflops_per_frame"] + (head.per_frame + head.per_video) / 1e9
    per_fine = info.fine.identity["gflops_per_frame"] + head.per_fine_frame / 1e9
    expected = per_row * np.arange(1, len(rows) + 1) + per_fine * opened
    assert [update.gflops for update in updates] == pytest.approx(expected)
    assert summary.gflops_all_fine == pytest.approx(len(rows) * (per_row + per_fine))


def test_after_a_reset_a_stream_is_as_new(live_runs: Path) -> None:
    live = open_live(live_runs / "liteeval", device="cpu")
    rows = stream_rows(live, find_videos([live_runs / "clips"])[0].path)  # of 4 per second
    follower = LiveStream(live, reset_seconds=1.0)
    updates = list(follower.follow(rows[:10]))
    assert follower.summary().resets == 2
    anew = list(LiveStream(live).follow(rows[4:8]))
    assert [(u.label, u.score) for u in updates[4:8]] == [(u.label, u.score) for u in anew]
    on = list(LiveStream(live).follow(rows[:10]))
    assert [u.score for u in updates[:4]] == [u.score for u in on[:4]]
    assert updates[4].score != on[4].score


def test_memory_does_not_grow_with_the_stream(live_runs: Path) -> None:
    live = open_live(live_runs / "liteeval", device="cpu")
    networks = {name: lambda _: torch.randn(1, 1280) for name in ("coarse", "fine")}
    live = replace(live, **networks)
    follower, used = LiveStream(live), []
    for number in range(1500):
        pixels = {name: np.full((192, 192, 3), number % 256, np.uint8) for name in networks}
        follower.take(StreamRow(float(number), pixels))
        if number in (500, 1499):
            used.append(psutil.Process().memory_info().rss)
    assert used[1] - used[0] < 32 << 20  # the inputs of 1,000 rows are 221 MB


def test_an_agent_follows_no_stream(live_runs: Path) -> None:
    arguments = ["stream", "-", "--run", str(live_runs / "fastforward"), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "fastforward chooses among all frames" in result.output


def test_a_file_to_its_end_as_json_lines(live_runs: Path) -> None:
    clip = find_videos([live_runs / "clips"])[0].path
    arguments = ["stream", str(clip), "--run", str(live_runs / "liteeval"), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    *updates, last = map(json.loads, result.stdout.splitlines())
    assert last["summary"]["rows"] == len(updates)
    assert set(updates[0]) == {
        "seconds", "label", "score", "gate_open", "fine_share", "gflops", "lag_seconds",
    }  # fmt: skip
    text = CliRunner().invoke(main, arguments).stdout.splitlines()
    assert len(text) == len(updates) + 1
    assert updates[-1]["label"] in text[-2]


def test_an_interrupt_ends_an_endless_stream_with_a_summary(
    live_runs: Path, tmp_path: Path
) -> None:
    """Standard input stays open for ever; the last line tells of the rows that came."""
    endless = tmp_path / "endless.ts"
    mpegts(find_videos([live_runs / "clips"])[0].path, endless)
    arguments = ["stream", "-", "--run", str(live_runs / "liteeval"), "--device", "cpu", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    process.stdin.write(endless.read_bytes())
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 130
    assert first["seconds"] == 0
    lines = rest.splitlines()
    assert json.loads(lines[-1])["summary"]["rows"] == len(lines)


def mpegts(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
