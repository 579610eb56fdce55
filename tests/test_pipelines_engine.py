"""The local engine with real processes: done, failed, interrupted, killed, locked."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import jobs as jobs_module
from pipelines.engines.local import (
    ALL_JOBS,
    Choice,
    Lock,
    ThisMachine,
    lock,
    run_jobs,
    visible_gpus,
)
from pipelines.jobs import Job, JobError, Layout
from pipelines.plan import job_states
from pipelines.stamps import Stamp

TOOL = """\
import os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as all our commands do
action, path = sys.argv[1], Path(sys.argv[2])
with path.open("a") as file:
    print(action, file=file)
print("printed by", action)
if action == "sleep":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        with path.open("a") as file:
            print("saved", file=file)
        sys.exit(130)
if action.startswith("meet"):  # until the other one is here too
    me = path.with_name(action)
    me.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    other = path.with_name({"meet-a": "meet-b", "meet-b": "meet-a"}[action])
    end = time.monotonic() + 30
    while not other.exists():
        time.sleep(0.02)
        if time.monotonic() > end:
            sys.exit("alone")
if action == "slow":  # until the engine knows that "fail" has failed
    stamp = path.with_name("jobs") / "fail.json"
    while not (stamp.exists() and '"exit_code": 1' in stamp.read_text()):
        time.sleep(0.02)
    time.sleep(0.5)
sys.exit({"fail": 1, "misuse": 2, "some": 3}.get(action, 0))
"""
RUNNER = """\
import signal, sys
from pathlib import Path
from pipelines.engines.local import ThisMachine, lock, run_jobs
from pipelines.jobs import COMMANDS, Job, Layout

COMMANDS["tool"] = "tool"
layout = Layout(Path(sys.argv[1]))
count = int(sys.argv[2])
sleep = ("tool", "sleep", str(layout.out / "diary"))
gpus = int((sys.argv + ["1"])[3])
jobs = [Job("sleep" if i == 0 else f"sleep-{i}", sleep, gpus=gpus) for i in range(count)]
signal.signal(signal.SIGTERM, signal.default_int_handler)
with lock(layout.out) as lock_file:
    try:
        run_jobs(jobs, layout, place=ThisMachine(lock_file, jobs=count), log=print)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An output folder, and a package `tool` whose commands the jobs run."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "tool.py").write_text(TOOL)
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), root]))
    monkeypatch.setitem(jobs_module.COMMANDS, "tool", "tool")
    return Layout(tmp_path / "out")


def tool(layout: Layout, action: str, *, after: tuple[str, ...] = ()) -> Job:
    return Job(action, ("tool", action, str(layout.out / "diary")), depends_on=after)


def run(
    layout: Layout, *jobs: Job, choice: Choice = ALL_JOBS, gpus: tuple[str, ...] = ()
) -> tuple[int, tuple[str, ...]]:
    with lock(layout.out) as lock_file:
        place = ThisMachine(lock_file, gpus=gpus)
        outcome = run_jobs(jobs, layout, place=place, log=lambda line: None, choice=choice)
    return outcome.ran, outcome.with_failures


def diary(layout: Layout) -> list[str]:
    path = layout.out / "diary"
    return path.read_text().split() if path.exists() else []


@pytest.fixture(params=[1])
def sleeper(layout: Layout, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A run in another process whose job is, or jobs are, in the middle of their work."""
    runner = layout.out.parent / "path" / "runner.py"
    runner.write_text(RUNNER)
    count = request.param
    process = subprocess.Popen([sys.executable, str(runner), str(layout.out), str(count)])
    wait_until(lambda: diary(layout) == ["sleep"] * count)
    yield process
    process.kill()
    process.wait()


def wait_until(condition: object, *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_jobs_run_once_and_only_what_is_stale_runs_again(layout: Layout) -> None:
    first, second = tool(layout, "first"), tool(layout, "second", after=("first",))
    assert run(layout, first, second) == (2, ())
    assert run(layout, first, second) == (0, ())
    layout.stamp("second").unlink()
    assert run(layout, first, second) == (1, ())
    assert diary(layout) == ["first", "second", "second"]


@pytest.mark.parametrize(("action", "code"), [("fail", 1), ("misuse", 2)])
def test_a_failed_job_stops_the_run_and_is_tried_again(
    layout: Layout, action: str, code: int
) -> None:
    for _ in range(2):
        with pytest.raises(JobError, match=rf"^{action} failed \(exit code {code}\)"):
            run(layout, tool(layout, action), tool(layout, "next"))
    assert diary(layout) == [action, action]


def test_keep_going_runs_all_that_does_not_need_what_failed(layout: Layout) -> None:
    jobs = (
        tool(layout, "fail"),
        tool(layout, "next", after=("fail",)),
        tool(layout, "last", after=("next",)),
        tool(layout, "other"),
    )
    with pytest.raises(JobError) as caught:
        run(layout, *jobs, choice=Choice(keep_going=True))
    assert diary(layout) == ["fail", "other"]
    failed, first, second = str(caught.value).splitlines()
    assert failed.startswith("fail failed (exit code 1)")
    assert first == "next was not run: it needs fail"
    assert second == "last was not run: it needs next"


def test_only_runs_the_jobs_named_and_what_they_need(layout: Layout) -> None:
    jobs = (
        tool(layout, "first"),
        tool(layout, "second", after=("first",)),
        tool(layout, "third"),
    )
    assert run(layout, *jobs, choice=Choice(only=("sec*",))) == (2, ())
    assert run(layout, *jobs) == (1, ())
    assert diary(layout) == ["first", "second", "third"]


def test_a_forced_job_starts_over_and_what_reads_the_same_from_it_stays_done(
    layout: Layout,
) -> None:
    made = (layout.out / "diary",)
    jobs = (
        dataclasses.replace(tool(layout, "first"), outputs=made),
        dataclasses.replace(tool(layout, "second", after=("first",)), inputs=made),
    )
    run(layout, *jobs)
    assert run(layout, *jobs, choice=Choice(force=("first",))) == (1, ())
    assert diary(layout) == ["first"]  # a new diary: the old one was moved away
    assert run(layout, *jobs) == (0, ())
    longer = dataclasses.replace(jobs[0], argv=("tool", "longer", str(made[0])))
    assert run(layout, longer, jobs[1]) == (2, ())


def test_status_tells_what_runs_now_and_what_was_interrupted(
    layout: Layout, sleeper: subprocess.Popen[bytes]
) -> None:
    jobs = [tool(layout, "sleep"), tool(layout, "next", after=("sleep",))]
    assert [state.state for state in job_states(jobs, layout)] == ["running", "to do"]
    sleeper.send_signal(signal.SIGINT)
    sleeper.wait(timeout=20)
    states = job_states(jobs, layout)
    assert [(state.state, state.why) for state in states] == [
        ("interrupted", "goes on where it stopped"),
        ("to do", "after sleep"),
    ]


def test_status_tells_which_job_failed(layout: Layout) -> None:
    jobs = [tool(layout, "fail"), tool(layout, "next", after=("fail",))]
    with pytest.raises(JobError):
        run(layout, *jobs)
    states = job_states(jobs, layout)
    assert [(state.state, state.why) for state in states] == [
        ("failed", "exit code 1; the next run tries it again"),
        ("to do", "after fail"),
    ]


def test_a_job_some_of_whose_videos_failed_is_done_and_stays_known_as_such(
    layout: Layout,
) -> None:
    jobs = tool(layout, "some"), tool(layout, "next", after=("some",))
    assert run(layout, *jobs) == (2, ("some",))
    assert run(layout, *jobs) == (0, ("some",))


def test_videos_that_failed_are_tried_again_when_the_user_asks_for_it(layout: Layout) -> None:
    jobs = tool(layout, "some"), tool(layout, "next", after=("some",))
    run(layout, *jobs)
    assert run(layout, *jobs, choice=Choice(retry_failed=True)) == (1, ("some",))
    assert diary(layout) == ["some", "next", "some"]


def test_a_job_without_its_output_is_a_failure(layout: Layout) -> None:
    job = Job("first", ("tool", "first", str(layout.out / "diary")), outputs=(layout.out / "x",))
    with pytest.raises(JobError, match=r"ended well, but .*/x is not there"):
        run(layout, job)


def test_what_a_job_prints_is_kept_only_if_it_ends_well(layout: Layout) -> None:
    table = layout.out / "table.txt"
    for action in ("good", "fail"):
        job = Job(action, ("tool", action, str(layout.out / "diary")), stdout=table)
        if action == "good":
            run(layout, job)
        else:
            with pytest.raises(JobError):
                run(layout, job)
    assert table.read_text() == "printed by good\n"


@pytest.mark.parametrize("sleeper", [1], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_the_job_once_and_is_waited_for(
    layout: Layout, sleeper: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    sleeper.send_signal(number)
    assert sleeper.wait(timeout=20) == 130
    assert diary(layout) == ["sleep", "saved"]
    stamp = Stamp.read(layout.stamp("sleep"))
    assert stamp is not None
    assert stamp.exit_code is None


def test_a_run_that_a_script_started_in_the_background_ends_its_jobs_too(layout: Layout) -> None:
    """A shell without job control has SIGINT ignored by what it starts with &."""
    runner = layout.out.parent / "path" / "runner.py"
    runner.write_text(RUNNER)
    line = f"{sys.executable} {runner} {layout.out} 1 & echo $! > {layout.out}.pid; wait"
    shell = subprocess.Popen(["sh", "-c", line])
    wait_until(lambda: diary(layout) == ["sleep"])
    os.kill(int(Path(f"{layout.out}.pid").read_text()), signal.SIGTERM)
    wait_until(lambda: diary(layout) == ["sleep", "saved"])
    shell.wait(timeout=20)


@pytest.mark.parametrize("sleeper", [2], indirect=True)
def test_an_interrupt_reaches_all_jobs_that_run_and_all_are_waited_for(
    layout: Layout, sleeper: subprocess.Popen[bytes]
) -> None:
    sleeper.send_signal(signal.SIGINT)
    assert sleeper.wait(timeout=20) == 130
    assert diary(layout) == ["sleep", "sleep", "saved", "saved"]


def test_jobs_run_side_by_side_each_on_its_own_gpu(layout: Layout) -> None:
    """Where there is no GPU their names stand for them: what a job sees is its environment."""
    jobs = tool(layout, "meet-a"), tool(layout, "meet-b"), tool(layout, "last", after=("meet-a",))
    assert run(layout, *jobs, gpus=("3", "7")) == (3, ())
    assert {(layout.out / name).read_text() for name in ("meet-a", "meet-b")} == {"3", "7"}
    assert layout.messages("meet-a").read_text() == "printed by meet-a\n"


def test_a_job_on_all_gpus_waits_until_all_are_idle(layout: Layout) -> None:
    alone = dataclasses.replace(tool(layout, "some"), gpus=None)
    assert run(layout, tool(layout, "first"), alone, gpus=("3", "7")) == (2, ("some",))
    stamps = [Stamp.read(layout.stamp(name)) for name in ("first", "some")]
    first, some = (stamp.utc for stamp in stamps if stamp)
    assert first < some
    assert diary(layout) == ["first", "some"]


def test_more_gpus_than_the_machine_has_are_refused(layout: Layout) -> None:
    job = dataclasses.replace(tool(layout, "first"), gpus=4)
    with pytest.raises(JobError, match=r"^first wants 4 GPUs and this machine has 2; "):
        run(layout, job, gpus=("0", "1"))
    assert diary(layout) == []


def test_a_failure_is_told_when_the_jobs_beside_it_have_ended(layout: Layout) -> None:
    jobs = tool(layout, "fail"), tool(layout, "slow"), tool(layout, "next", after=("slow",))
    with pytest.raises(JobError, match=rf"its messages are in {layout.messages('fail')}"):
        run(layout, *jobs, gpus=("0", "1"))
    assert sorted(diary(layout)) == ["fail", "slow"]


def test_a_job_on_two_gpus_is_two_processes_of_torchrun(layout: Layout) -> None:
    assert run(layout, dataclasses.replace(tool(layout, "first"), gpus=2)) == (1, ())
    assert diary(layout) == ["first", "first"]


def test_a_process_of_torchrun_that_fails_is_told_without_torchs_traceback(
    layout: Layout, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobError, match=r"^misuse failed \(exit code 2\)"):
        run(layout, dataclasses.replace(tool(layout, "misuse"), gpus=2))
    messages = capfd.readouterr().err
    assert "failed: " in messages.splitlines()[-1]
    assert "Traceback" not in messages


def test_an_interrupt_of_torchrun_is_no_traceback(layout: Layout) -> None:
    runner, messages = layout.out.parent / "path" / "runner.py", layout.out.parent / "messages"
    runner.write_text(RUNNER)
    with messages.open("wb") as file:
        command = [sys.executable, str(runner), str(layout.out), "1", "2"]
        process = subprocess.Popen(command, stderr=file, stdout=file)
    wait_until(lambda: diary(layout) == ["sleep", "sleep"], seconds=100)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 130
    assert diary(layout) == ["sleep", "sleep", "saved", "saved"]
    assert "Traceback" not in messages.read_text()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("0,1", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
        ("GPU-8932f937, MIG-5c89", ["GPU-8932f937", "MIG-5c89"]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


def test_a_folder_in_use_is_refused_until_its_run_has_ended(
    layout: Layout, sleeper: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(JobError, match=rf"in use by another run \(process {sleeper.pid}\)"):
        run(layout, tool(layout, "next"))
    sleeper.send_signal(signal.SIGINT)
    sleeper.wait(timeout=20)
    assert run(layout, tool(layout, "next")) == (1, ())


def test_a_killed_run_holds_its_folder_as_long_as_its_job_lives_and_no_longer(
    layout: Layout, sleeper: subprocess.Popen[bytes]
) -> None:
    sleeper.kill()
    sleeper.wait()
    (job,) = [pid for pid in _processes() if str(layout.out / "diary") in _command(pid)]
    with pytest.raises(JobError, match=rf"in use by sleep \(process {job}\), left by a run that"):
        run(layout, tool(layout, "next"))
    os.kill(job, signal.SIGKILL)
    wait_until(lambda: _is_free(layout))
    assert run(layout, tool(layout, "next")) == (1, ())


def _is_free(layout: Layout) -> bool:
    try:
        with lock(layout.out):
            return True
    except JobError:
        return False


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(JobError, match=r"not writable .*; choose another --out"),
        lock(tmp_path / "file" / "out"),
    ):
        pass


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """`status` and `plan` take it, to see whether a run holds it."""
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(other, fcntl.LOCK_UN)).start()
        with lock(tmp_path):
            pass


def test_the_lock_of_a_full_disk_is_taken_all_the_same(tmp_path: Path) -> None:
    """/dev/full takes no byte; who holds the lock is then not told."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        Lock(full).name_holder(1, "job")
