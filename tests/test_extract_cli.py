"""The commands of liteeval-extract: what they print, their errors, their exit codes."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import click
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from clips import Clip, steady_times
from damage import damaged_clips
from tqdm import tqdm

from extract.cli import main
from extract.store import FeatureStore, part_paths
from extract.videos import Video, find_videos, take_shard

ROOT = Path(__file__).parent.parent


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("a.mp4", 50), ("b c.mkv", 63), ("d/ü'\"x.mp4", 12)):
        Clip(name, "libx264", steady_times(frames, 25)).build(folder)
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = call("run", folder, "--out", out, "--backbone", "mobilenet_v2@32",
                  "--weights", "mobilenet_v2=random", "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 videos extracted, 6 rows, 0 were stored already, 0 failed" in result.stdout
    return out


@pytest.fixture(scope="module")
def store(out: Path) -> Path:
    return out / "mobilenet_v2_32"


def test_every_command_has_help_with_an_example_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in main.commands.items():
        help_text = call(name, "--help").output
        assert "Example:" in help_text, name
        assert f"liteeval-extract {name}" in help_text, name
        assert f"liteeval-extract {name}" in readme, name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.opts


def test_run_json_is_one_document_on_standard_output(folder: Path, out: Path) -> None:
    result = call("run", folder, "--out", out, "--backbone", "mobilenet_v2@32",
                  "--weights", "mobilenet_v2=random", "--json")  # fmt: skip
    facts = json.loads(result.stdout)
    assert (facts["videos"], facts["already_stored"], facts["failures"]) == (0, 3, 0)


def test_frames_prints_the_sampling(folder: Path) -> None:
    facts = json.loads(call("frames", folder / "b c.mkv", "--fps", 2, "--json").stdout)
    assert facts["frame_index"] == [0, 12, 25, 37, 50, 62]  # 63 frames at 25 fps: 2.52 s
    assert facts["pts_seconds"] == pytest.approx([0, 0.48, 1.0, 1.48, 2.0, 2.48])
    assert facts["duration_seconds"] == pytest.approx(2.52)
    text = call("frames", folder / "b c.mkv").stdout
    assert "2.520 s at 25.000 fps" in text


def test_inspect_tells_identity_and_totals(store: Path) -> None:
    facts = json.loads(call("inspect", store, "--json").stdout)
    assert (facts["backbone"], facts["input_size_px"], facts["weights"]) == (
        "mobilenet_v2", 32, "random:0")  # fmt: skip
    assert (facts["videos"], facts["rows"]) == (3, 6)
    assert facts["preprocessing"]["precision"] == "fp32"
    assert "mobilenet_v2" in call("inspect", store).stdout


def test_verify_passes_and_deep_recomputes(store: Path) -> None:
    assert call("verify", store).stdout.strip() == f"{store}: ok"
    assert call("verify", store, "--deep").exit_code == 0


def test_deep_verification_notices_a_wrong_row(folder: Path, store: Path, tmp_path: Path) -> None:
    from extract.store import FeatureWriter

    good = FeatureStore(store)
    with FeatureWriter(tmp_path / "s", good.identity) as writer:
        for video_id in good.video_ids:
            video = good[video_id]
            video.features[0] = video.features[0][::-1]
            writer.add(video_id, video)
    result = call("verify", tmp_path / "s", "--deep")
    assert result.exit_code == 1
    assert result.stdout.count("row 0 differs from the recomputed one by") == 3


def codec_flags(path: Path) -> bool:
    """Whether plain decoding ends in an error or gives a frame that the codec calls corrupt."""
    try:
        with av.open(str(path)) as container:
            return any(frame.is_corrupt for frame in container.decode(video=0))
    except av.error.InvalidDataError:
        return True


def test_damage_is_kept_and_counted_or_fails_as_asked(tmp_path: Path) -> None:
    path = next(path for path in damaged_clips(tmp_path, 12) if codec_flags(path))
    kept = json.loads(call("frames", path, "--json").stdout)
    assert kept["corrupt_frames"] > 0
    assert len(kept["frame_index"]) >= 1
    assert call("frames", path, "--on-corrupt", "keep").exit_code == 0
    refused = call("frames", path, "--on-corrupt", "fail")
    assert refused.exit_code == 1
    told = rf"{path.name}: [1-9]\d* corrupt frames; get the file anew"
    assert re.search(told, refused.output)
    run = ("run", path, "--backbone", "mobilenet_v2@32", "--weights", "mobilenet_v2=random")
    assert call(*run, "--out", tmp_path / "keep").exit_code == 0
    stored = FeatureStore(tmp_path / "keep/mobilenet_v2_32")[path.stem]
    assert stored.corrupt_frames == kept["corrupt_frames"]
    assert call(*run, "--out", tmp_path / "fail", "--on-corrupt", "fail").exit_code == 3
    assert "corrupt frames" in (tmp_path / "fail/failures.jsonl").read_text()


def test_a_limit_of_duration_is_an_option(folder: Path) -> None:
    assert call("frames", folder / "a.mp4", "--max-duration", 2).exit_code == 0  # 50 frames: 2 s
    refused = call("frames", folder / "a.mp4", "--max-duration", 1.9)
    assert refused.exit_code == 1
    assert "lasts 2.0 s, more than the limit of 1.9 s" in refused.output


def test_frames_ends_a_file_that_blocks_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    result = call("frames", tmp_path / "pipe.mp4", "--timeout", 0.5)
    assert result.exit_code == 1
    assert "pipe.mp4: took longer than its time limit" in result.output


def decodes(process: psutil.Process) -> bool:
    """Whether it has a process at work."""
    return any("spawn_main" in " ".join(child.cmdline()) for child in process.children())


def test_an_interrupt_ends_frames_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    command = [sys.executable, "-m", "extract", "frames", str(tmp_path / "pipe.mp4")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with process:
        while not decodes(psutil.Process(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == "interrupted"


@pytest.mark.parametrize(("precision", "right"), [("fp32", False), ("bf16", True)])
def test_deep_verification_allows_what_the_stores_precision_costs(
    store: Path, tmp_path: Path, precision: str, right: bool
) -> None:
    """Every value 3 % too large: more than float32 may err, less than bfloat16 may."""
    from extract.store import FeatureWriter

    good = FeatureStore(store)
    preprocessing = {**good.identity.preprocessing, "precision": precision}
    identity = replace(good.identity, preprocessing=preprocessing)
    with FeatureWriter(tmp_path / "s", identity) as writer:
        for video_id in good.video_ids:
            video = good[video_id]
            writer.add(video_id, replace(video, features=video.features * np.float16(1.03)))
    result = call("verify", tmp_path / "s", "--deep", "--device", "cpu")
    assert (result.exit_code == 0) is right
    assert right or "by 3.0% of its length; 1% are allowed" in result.stdout


def test_deep_verification_ends_a_source_that_takes_longer_than_its_time(store: Path) -> None:
    result = call("verify", store, "--deep", "--timeout", 0.001)
    assert result.exit_code == 1
    assert result.stdout.count("took longer than its time limit") == 3


def test_deep_verification_needs_the_weights_of_the_store(store: Path, tmp_path: Path) -> None:
    import torch
    import torchvision

    from extract.store import FeatureWriter

    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "w.pth")
    good = FeatureStore(store)
    identity = replace(good.identity, weights="other.pth", weights_sha256="00")
    with FeatureWriter(tmp_path / "s", identity) as writer:
        writer.add("a", good["a"])
    result = call("verify", tmp_path / "s", "--deep", "--weights", f"mobilenet_v2={tmp_path}/w.pth")
    assert result.exit_code == 1
    assert "pass the same with --weights" in result.output


def test_compact_keeps_every_video_and_sorts_them(folder: Path, tmp_path: Path) -> None:
    for name in ("d", "b c.mkv", "a.mp4"):
        call("run", folder / name, "--out", tmp_path, "--backbone", "mobilenet_v2@32",
             "--weights", "mobilenet_v2=random", "--workers", 1)  # fmt: skip
    store = tmp_path / "mobilenet_v2_32"
    before = {i: FeatureStore(store)[i].features for i in FeatureStore(store).video_ids}
    assert len(part_paths(store)) == 3
    assert "3 parts became 1" in call("compact", store).stdout
    after = FeatureStore(store)
    assert after.video_ids == sorted(before)
    for video_id, features in before.items():
        np.testing.assert_array_equal(after[video_id].features, features)
    assert call("verify", store).exit_code == 0


def test_export_to_npy_and_parquet_gives_the_same_rows(store: Path, tmp_path: Path) -> None:
    assert call("export", store, "--format", "npy", "--out", tmp_path / "npy").exit_code == 0
    assert call("export", store, "--format", "parquet", "--out", tmp_path / "p").exit_code == 0
    with (tmp_path / "npy/videos.csv").open(newline="") as file:
        listed = {row["video_id"]: int(row["rows"]) for row in csv.DictReader(file)}
    table = pq.read_table(tmp_path / "p").to_pylist()
    opened = FeatureStore(store)
    assert set(listed) == set(opened.video_ids)
    for video_id in opened.video_ids:
        expected = opened[video_id]
        np.testing.assert_array_equal(np.load(tmp_path / f"npy/{video_id}.npy"), expected.features)
        rows = [row for row in table if row["video_id"] == video_id]
        np.testing.assert_array_equal([row["features"] for row in rows], expected.features)
        assert [row["frame_index"] for row in rows] == expected.frame_index.tolist()


def test_an_export_never_leaves_its_folder(store: Path, tmp_path: Path) -> None:
    from extract.store import FeatureWriter

    good = FeatureStore(store)
    with FeatureWriter(tmp_path / "s", good.identity) as writer:
        writer.add("../../evil", good["a"])
    result = call("export", tmp_path / "s", "--format", "npy", "--out", tmp_path / "x" / "y")
    assert result.exit_code == 1
    assert "would leave the folder" in result.output
    assert not list(tmp_path.rglob("evil.npy"))


def test_failures_are_listed_with_a_command_that_tries_them_again(
    folder: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "v"
    (videos / "sub").mkdir(parents=True)
    (videos / "sub/bad.mp4").write_text("no video")
    (videos / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    run = ("run", videos, "--out", tmp_path / "o", "--backbone", "mobilenet_v2@32",
           "--weights", "mobilenet_v2=random", "--workers", 1)  # fmt: skip
    result = call(*run)
    assert result.exit_code == 3
    assert "failures.jsonl" in result.stdout
    listed = call("failures", tmp_path / "o", "--list", tmp_path / "retry.csv")
    assert "sub/bad" in listed.stdout
    command = shlex.split(listed.stdout.splitlines()[-1])
    assert command[0] == "liteeval-extract"
    assert call(*command[1:]).exit_code == 3  # still bad
    (videos / "sub/bad.mp4").write_bytes((folder / "a.mp4").read_bytes())  # mended
    assert call(*command[1:]).exit_code == 0
    assert FeatureStore(tmp_path / "o/mobilenet_v2_32").video_ids == ["good", "sub/bad"]
    assert json.loads(call("failures", tmp_path / "o", "--json").stdout)["failures"] == []


def test_a_name_that_is_not_utf8_is_one_failure_and_the_rest_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "v"
    videos.mkdir()
    good = (folder / "a.mp4").read_bytes()
    (videos / "good.mp4").write_bytes(good)
    with open(os.fsencode(videos) + b"/caf\xe9.mp4", "wb") as file:  # latin-1
        file.write(good)
    result = call("run", videos, "--out", tmp_path / "o", "--backbone", "mobilenet_v2@32",
                  "--weights", "mobilenet_v2=random", "--workers", 1)  # fmt: skip
    assert result.exit_code == 3, result.output
    assert FeatureStore(tmp_path / "o/mobilenet_v2_32").video_ids == ["good"]
    (line,) = (tmp_path / "o/failures.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert record["video_id"] == r"caf\xe9"
    assert record["path"] == rf"{videos}/caf\xe9.mp4"
    assert "the name is not UTF-8; rename" in record["error"]
    listed = call("failures", tmp_path / "o", "--list", tmp_path / "retry.csv")
    assert "1 not in" in listed.stderr
    assert (tmp_path / "retry.csv").read_text().splitlines() == ["video_id,path"]
    frames = call("frames", os.fsdecode(os.fsencode(videos) + b"/caf\xe9.mp4"))
    assert frames.exit_code == 1
    assert "not UTF-8" in frames.output


def test_shards_split_all_videos_and_none_twice() -> None:
    videos = [Video(f"v{i}", Path(f"v{i}.mp4")) for i in range(1000)]
    shards = [take_shard(videos, i, 7) for i in range(7)]
    assert sorted(v.id for shard in shards for v in shard) == sorted(v.id for v in videos)
    assert all(100 < len(shard) < 190 for shard in shards)  # 143 expected


def test_shards_that_run_at_once_fill_one_store_as_one_run_does(
    folder: Path, out: Path, tmp_path: Path
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "extract", "run", str(folder), "--out", str(tmp_path),
             "--backbone", "mobilenet_v2@32", "--weights", "mobilenet_v2=random", "--workers", "1",
             "--shard", f"{i}/2", "--json"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for i in range(2)
    ]  # fmt: skip
    done = [json.loads(process.communicate(timeout=300)[0])["videos"] for process in processes]
    shards = [take_shard(find_videos([folder]), i, 2) for i in range(2)]
    assert done == [len(shard) for shard in shards]
    assert min(done) > 0
    together, alone = (
        FeatureStore(tmp_path / "mobilenet_v2_32"),
        FeatureStore(out / "mobilenet_v2_32"),
    )
    assert len(together.parts) == 2
    assert together.video_ids == alone.video_ids
    for video_id in alone.video_ids:
        left, right = together[video_id], alone[video_id]
        np.testing.assert_array_equal(left.frame_index, right.frame_index)
        np.testing.assert_array_equal(left.pts_seconds, right.pts_seconds)
        scale = float(np.abs(right.features).max())
        np.testing.assert_allclose(left.features, right.features, atol=1e-3 * scale)
    assert call("verify", tmp_path / "mobilenet_v2_32").exit_code == 0


ODD_NAMES = (" with space ", "quo'te\"s", "new\nline", "ünïcode 视频", "-dash", "--out", "u\u2028s",
             "http:evil", "%d", "a;b&c", "[x]*?", "back\\slash")  # fmt: skip


def test_odd_names_go_through_run_store_failures_retry_and_verify(
    folder: Path, tmp_path: Path
) -> None:
    videos, out = tmp_path / "-v ü", tmp_path / "o\n'"
    (videos / "-sub").mkdir(parents=True)
    good, bad = (folder / "d/ü'\"x.mp4").read_bytes(), b"no video"
    names = {*ODD_NAMES, "-sub/--out"}
    broken = {"new\nline", "u\u2028s", "-sub/--out"}  # few: each is tried twice in a new process
    for name in names:
        (videos / f"{name}.mp4").write_bytes(bad if name in broken else good)
    run = ("run", "--out", out, "--backbone", "mobilenet_v2@32", "--weights",
           "mobilenet_v2=random", "--workers", 1, "--", videos)  # fmt: skip
    assert call(*run).exit_code == 3
    store = out / "mobilenet_v2_32"
    opened = FeatureStore(store)
    assert opened.video_ids == sorted(names - broken)
    for name in names - broken:
        assert opened[name].source_path == str(videos / f"{name}.mp4")
    listed = call("failures", out, "--list", tmp_path / "-retry.csv", "--json")
    facts = json.loads(listed.stdout)
    assert [record["video_id"] for record in facts["failures"]] == sorted(broken)
    for name in broken:
        (videos / f"{name}.mp4").write_bytes(good)  # mended
    assert call(*shlex.split(facts["retry"])[1:]).exit_code == 0
    assert FeatureStore(store).video_ids == sorted(names)
    assert call("verify", store, "--deep", "--sample", len(names)).stdout == f"{store}: ok\n"
    assert call("export", store, "--format", "npy", "--out", tmp_path / "npy").exit_code == 0
    for name in names:
        assert len(np.load(tmp_path / "npy" / f"{name}.npy")) == 1  # 12 frames at 25 fps
    assert json.loads(call("failures", out, "--json").stdout)["failures"] == []


def test_the_scan_tells_how_far_it_is_and_what_it_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(tqdm):  # type: ignore[type-arg]
        def __init__(self, **how: object) -> None:
            super().__init__(**{**how, "delay": 0})

    monkeypatch.setattr("extract.cli.tqdm", Impatient)
    for name in (*(f"{i:02d}.mp4" for i in range(20)), "a.jpg", "b.JPG", "notes"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("video_id,label,split\n")
    result = call("run", tmp_path, "--out", tmp_path / "o", "--backbone", "mobilenet_v2@32",
                  "--labels", tmp_path / "labels.csv")  # fmt: skip
    assert "scan: 20video" in result.stderr
    assert "passed over 4 files that are no videos (2 .jpg, 1 " in result.stderr


def test_the_table_of_backbones_compares_like_with_like() -> None:
    """SlowFast's figure in the paper is for 256 px, its default here is 224."""
    rows = {row["backbone"]: row for row in json.loads(call("backbones", "--json").stdout)}
    slowfast = rows["slowfast_r50@224"]
    assert (slowfast["paper_gflops"], slowfast["paper_input_size_px"]) == (65.71, 256)
    assert slowfast["gflops_at_paper_size"] == pytest.approx(65.71, rel=0.005)
    assert rows["resnet101@224"]["gflops_at_paper_size"] == pytest.approx(7.82, rel=0.005)
    lines = call("backbones").stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("slowfast_r50")]
    assert "65.71 at 256, where we count 65.71" in line
    assert sum("where we count" in line for line in lines) == 1


def test_labels_choose_the_videos_and_missing_ones_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("video_id,label,split\na,x,train\ngone,y,val\n")
    result = call("run", folder, "--out", tmp_path / "o", "--backbone", "mobilenet_v2@32",
                  "--weights", "mobilenet_v2=random", "--labels", tmp_path / "labels.csv",
                  "--workers", 1)  # fmt: skip
    assert result.exit_code == 0
    assert "1 of 2 videos have no file, first 'gone'" in result.stderr
    assert FeatureStore(tmp_path / "o/mobilenet_v2_32").video_ids == ["a"]


def test_verify_passes_over_files_beside_the_stores(store: Path, out: Path) -> None:
    (out / "failures.jsonl").touch()
    result = call("verify", *sorted(out.iterdir()))
    assert result.exit_code == 0
    assert result.stdout.strip() == f"{store}: ok"


def test_verify_tells_of_every_store_beside_one_that_holds_nothing(
    store: Path, tmp_path: Path
) -> None:
    """As a run leaves it whose videos all failed."""
    empty = tmp_path / "mobilenet_v2_48"
    empty.mkdir()
    for stores in ((empty, store), (store, empty)):
        result = call("verify", *stores, "--deep")
        assert result.exit_code == 1
        assert f"{store}: ok\n" in result.stdout
        assert f"{empty}: 1 problems\n  {empty}: no feature store here" in result.stdout
    facts = json.loads(call("verify", empty, store, "--json").stdout)
    assert facts["problems"][str(store)] == []
    assert len(facts["problems"][str(empty)]) == 1


def test_deep_verification_refuses_weights_of_no_store(store: Path) -> None:
    result = call("verify", store, "--deep", "--weights", "resnet101=x.pth")
    assert result.exit_code == 2
    assert "--weights resnet101=x.pth: no store here is of it (mobilenet_v2@32)" in result.output


def test_deep_verification_of_one_store_that_cannot_hides_no_other(
    store: Path, tmp_path: Path
) -> None:
    from extract.store import FeatureWriter

    good = FeatureStore(store)
    identity = replace(good.identity, weights="w.pth", input_size_px=48)
    other = tmp_path / "mobilenet_v2_48"
    with FeatureWriter(other, identity) as writer:
        writer.add("a", good["a"])
    gone = tmp_path / "gone.pth"
    result = call("verify", other, store, "--deep", "--weights", f"mobilenet_v2@48={gone}")
    assert result.exit_code == 1
    assert f"{other}: 1 problems\n  {gone}: cannot be read" in result.stdout
    assert f"{store}: ok\n" in result.stdout


@pytest.fixture
def read_only(store: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a store in it, on a disk that nobody may write to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        if os.geteuid() == 0:
            pytest.skip("may not mount a file system, and root may write to any folder")
        shutil.copytree(store, disk / store.name)
        for folder in (disk / store.name, disk):
            folder.chmod(0o555)
        yield disk
        for folder in (disk, disk / store.name):
            folder.chmod(0o755)
        return
    shutil.copytree(store, disk / store.name)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_may_only_be_read_is_told_before_any_work_and_is_read(
    folder: Path, read_only: Path, tmp_path: Path
) -> None:
    for size, message in (("32", "not writable"), ("48", "cannot be created")):
        result = call("run", folder, "--out", read_only, "--backbone", f"mobilenet_v2@{size}",
                      "--weights", "mobilenet_v2=random")  # fmt: skip
        assert result.exit_code == 1, result.output
        assert message in result.output
        assert isinstance(result.exception, SystemExit)
    store = read_only / "mobilenet_v2_32"
    for command in (("inspect", store), ("verify", store, "--deep"), ("failures", read_only)):
        assert call(*command).exit_code == 0
    assert call("export", store, "--format", "npy", "--out", tmp_path / "npy").exit_code == 0
    compacted = call("compact", store)
    assert compacted.exit_code == 1
    assert "not writable" in compacted.output


def test_verify_tells_unfinished_parts_and_calls_them_no_problem(store: Path) -> None:
    unfinished = store / ".part-20261122T201500-aaaaaa.h5.tmp"
    unfinished.write_bytes(b"half")
    try:
        result = call("verify", store)
        facts = json.loads(call("verify", store, "--json").stdout)
    finally:
        unfinished.unlink()
    assert result.exit_code == 0
    assert f"unfinished: {unfinished.name}, last written 0.0 h ago" in result.stdout
    assert facts == {
        "problems": {str(store): []},
        "unfinished_parts": {str(store): [unfinished.name]},
        "ok": True,
    }


def test_an_interrupt_before_the_loop_is_130(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "extract", "run", str(folder), "--out", str(tmp_path / "o"),
               "--backbone", "dpn107", "--weights", "dpn107=random"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors


RANDOM = ("--weights", "mobilenet_v2=random")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "{empty}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2"), 1, "no video file"),
        (("run", "{tmp}/no", "--out", "{tmp}/o", "--backbone", "mobilenet_v2"), 1, "no such file"),
        (("run", "{videos}", "--out", "{tmp}/o", "--backbone", "nonet"), 2, "unknown backbone"),
        (("run", "{videos}", "--out", "{tmp}/o"), 2, "Missing option '--backbone'"),
        (
            ("run", "{videos}", "--out", "{file}/o", "--backbone", "mobilenet_v2@32", *RANDOM),
            1,
            "cannot be created",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--shard", "x"),
            2,
            "expected I/N",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--shard", "3/3"),
            2,
            "count from 0 to 3",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--device", "qpu",
             *RANDOM),
            2,
            "not available",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "timm:resnet18.xxx"),
            2,
            "Invalid pretrained tag",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--weights",
             "mobilenet_v2={file}"),
            1,
            "file.mp4",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--labels",
             "{bytes}"),
            1,
            "cannot be read as CSV",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--labels",
             "{header}"),
            1,
            "nothing below the header",
        ),
        (("run", "x" * 300, "--out", "{tmp}/o", "--backbone", "mobilenet_v2"), 1, "no such file"),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone",
             "timm:volo_d4_448.sail_in1k"),
            2,
            "crops that lie inside the picture",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--fps", "nan"),
            2,
            "'--fps': nan is not a number",
        ),
        (
            ("run", "{videos}", "--out", "{tmp}/o", "--backbone", "mobilenet_v2", "--timeout",
             "inf"),
            2,
            "'--timeout': inf is not in the range",
        ),
        (("frames", "{file}", "--fps", "nan"), 2, "'--fps': nan is not a number"),
        (("inspect", "x" * 300), 1, "no feature store here"),
        (
            ("run", "{videos}", "--out", "x" * 300, "--backbone", "mobilenet_v2@32", *RANDOM),
            1,
            "cannot be created",
        ),
        (("failures", "{empty}", "--list", "{tmp}/no/x.csv"), 1, "cannot be written"),
        (("verify", "{file}"), 1, "a store is a folder"),
        (("frames", "{file}"), 1, "not a readable video"),
        (("frames", "{tmp}/gone.mp4"), 1, "gone.mp4"),
        (("inspect", "{empty}"), 1, "no feature store here"),
        (("verify", "{empty}"), 1, "no feature store here"),
        (("compact", "{empty}"), 1, "no feature store here"),
        (("nonsense",), 2, "No such command"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_an_exit_code(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file.mp4"
    empty.mkdir()
    file.write_text("hi")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "header.csv").write_text("video_id,label,split\n")
    names = {"empty": empty, "tmp": tmp_path, "videos": folder, "file": file,
             "bytes": tmp_path / "bytes", "header": tmp_path / "header.csv"}  # fmt: skip
    result = call(*(a.format(**names) for a in arguments))
    assert result.exit_code == code, result.output
    assert message in result.output
    assert isinstance(result.exception, SystemExit), result.exception
