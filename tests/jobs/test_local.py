"""Worker processes: the same bits as one process, and nothing lost, nobody left over, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from comove.errors import InputError, NonFiniteError
from comove.jobs import JobLostError, Local, local, run_jobs

if TYPE_CHECKING:
    from tests.jobs.conftest import Training

PATIENCE = 60.0
"""Seconds; waiting ends as soon as what is waited for is there, and a busy machine is slow."""


def alive(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(processes: list[int], seconds: float) -> bool:
    """Whether all of them end within that time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, processes))


# --- the same bits, whoever does it --------------------------------------------------------------------------------


def test_workers_train_the_same_bits_as_one_process_even_when_some_are_killed(training: Training) -> None:
    killed: list[int] = []

    def kill_two(job: tuple[int, float], result: Any) -> None:
        if len(training.done) in (2, 4):
            killed.append(result.process)
            os.kill(result.process, signal.SIGKILL)

    before = torch.get_num_threads()
    training.run([(seed, 0.2) for seed in range(12)], Local(2), kill_two)
    results = training.done.values()
    workers = {result.process for result in results}
    assert os.getpid() not in workers
    assert len(killed) == 2
    assert 3 <= len(workers) <= 4
    assert {result.threads for result in results} == {1}
    assert {result.setups for result in results} == {1}  # once a process, however many jobs
    assert gone(list(workers), PATIENCE)
    assert training.equals_one_process()
    assert torch.get_num_threads() == before


def test_jobs_stay_in_this_process_where_workers_do_not_pay(training: Training) -> None:
    training.run([(seed, 0.0) for seed in range(4)], Local())
    assert {result.process for result in training.done.values()} == {os.getpid()}
    assert {result.threads for result in training.done.values()} == {1}
    assert training.equals_one_process()


def test_jobs_begin_here_and_go_on_in_workers_once_these_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START_SECONDS", 0.0)
    monkeypatch.setattr(local, "usable_cpus", lambda: 2)

    def setup(slow: int) -> Callable[[int], int]:
        def job(number: int) -> int:
            time.sleep(0.5 * (os.getpid() == slow))
            return os.getpid()

        return job

    order: list[int] = []
    run_jobs(range(200), setup, os.getpid(), lambda _, process: order.append(process), executor=Local(), description="")
    here = order.count(os.getpid())
    assert order[0] == os.getpid()
    assert 1 <= here < 200
    assert len(set(order)) in (2, 3)


def test_a_job_that_writes_to_a_shared_array_changes_it_for_no_other_process() -> None:
    def setup(shared: Any) -> Callable[[int], tuple[int, float]]:
        def job(number: int) -> tuple[int, float]:
            shared["array"] += 1
            shared["tensor"] += 1
            time.sleep(0.05)
            return os.getpid(), float(shared["array"][0]) * float(shared["tensor"][-1])

        return job

    shared: dict[str, Any] = {"array": np.zeros(5_000), "tensor": torch.zeros(5_000)}
    counts: dict[int, list[float]] = {}
    run_jobs(
        range(40),
        setup,
        shared,
        lambda _, result: counts.setdefault(result[0], []).append(result[1]),
        executor=Local(2),
        description="",
    )
    for seen in counts.values():
        assert seen == [number**2 for number in range(1, len(seen) + 1)]
    assert shared["array"].sum() == shared["tensor"].sum() == 0


def test_a_worker_whose_jobs_take_more_and_more_memory_is_kept() -> None:
    def setup(_: None) -> Callable[[int], int]:
        held = []

        def job(number: int) -> int:
            held.append(np.ones(number * 50_000_000, np.uint8))
            time.sleep(0.6)
            return os.getpid()

        return job

    processes: set[int] = set()
    run_jobs(range(5), setup, None, lambda _, pid: processes.add(pid), executor=Local(1), description="")
    assert len(processes) == 1


@pytest.mark.parametrize(
    ("left", "seconds", "cpus", "workers"),
    [(100, 1.0, 2, 2), (100, 1.0, 64, 64), (10, 1.0, 64, 10), (100, 0.1, 2, 0), (1000, 1.0, 1, 0), (0, 9.0, 2, 0)],
)
def test_workers_are_started_when_they_end_sooner(left: int, seconds: float, cpus: int, workers: int) -> None:
    assert local._paying_workers(cpus, left, seconds, start_seconds=6.0) == workers


def test_jobs_that_fill_the_only_gpu_stay_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    allocations = iter(range(1000))
    monkeypatch.setattr(local, "START_SECONDS", 0.0)
    monkeypatch.setattr(local, "usable_cpus", lambda: 8)
    monkeypatch.setattr(local, "_gpus", lambda: 1)
    monkeypatch.setattr(local, "_gpu_allocations", lambda: next(allocations))
    monkeypatch.setattr(local, "pack", lambda _: pytest.fail("a worker was started"))
    done: list[int] = []
    run_jobs(
        range(5), lambda _: lambda job: time.sleep(0.05), None, lambda job, _: done.append(job), description="models"
    )
    assert done == list(range(5))


def test_what_cannot_be_sent_is_done_here_and_the_warning_says_why() -> None:
    done: dict[int, int] = {}
    with pytest.warns(RuntimeWarning, match=r"in this process, as .* cannot be sent .*lock"):
        run_jobs(
            [1, 2],
            lambda payload: lambda job: os.getpid(),
            threading.Lock(),
            done.__setitem__,
            executor=Local(2),
            description="",
        )
    assert done == {1: os.getpid(), 2: os.getpid()}


# --- errors, warnings, prints --------------------------------------------------------------------------------------


def test_an_error_comes_back_whole_and_what_had_arrived_is_delivered(tmp_path: Path) -> None:
    def setup(folder: Path) -> Callable[[int], int]:
        def job(number: int) -> int:
            (folder / str(number)).touch()
            while number < 2 and not (folder / str(1 - number)).exists():
                time.sleep(0.01)  # until both workers are there
            print("printed by a job")  # noqa: T201  # must not get between the messages
            warnings.warn("odd input", UserWarning, stacklevel=1)
            if number == 3:
                raise NonFiniteError(f"The loss of model {number} is not finite.")
            return os.getpid()

        return job

    done: dict[int, int] = {}

    def deliver(number: int, process: int) -> None:
        if not done:
            time.sleep(1.0)  # in which the other jobs end, and one fails
        done[number] = process

    with (
        pytest.warns(UserWarning, match="odd input") as warned,
        pytest.raises(NonFiniteError, match=r"model 3 is not finite") as raised,
    ):
        run_jobs(range(6), setup, tmp_path, deliver, executor=Local(2), description="")
    assert set(done) == {0, 1, 2, 4, 5}
    assert len(warned) == 1
    assert "In a worker process, job 3" in raised.value.__notes__[0]
    # Which file a function sent by value names depends on cloudpickle; the line and the function do not.
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(source) if 'raise NonFiniteError(f"The loss of model' in text)
    assert f", line {line}, in job\n" in raised.value.__notes__[0]
    assert gone(list(done.values()), PATIENCE)


def test_a_job_that_kills_its_process_is_given_up_by_name_and_the_others_are_done() -> None:
    def setup(payload: None) -> Callable[[str], int]:
        def job(name: str) -> int:
            if name == "greedy":
                sys.stderr.write("cannot allocate")
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return os.getpid()

        return job

    done: dict[str, int] = {}
    with pytest.raises(
        JobLostError, match=r"(?s)job greedy after 2 worker .* SIGKILL.*cannot allocate.*Memory.*executor='serial'"
    ):
        run_jobs(["a", "greedy", "b"], setup, None, done.__setitem__, executor=Local(1, retries=1), description="")
    assert set(done) == {"a", "b"}


def test_workers_pause_for_a_slow_delivery_and_end_when_it_fails(tmp_path: Path) -> None:
    def setup(folder: Path) -> Callable[[int], int]:
        def job(number: int) -> int:
            (folder / str(number)).touch()
            return os.getpid()

        return job

    workers: list[int] = []

    def deliver(_: int, process: int) -> None:
        time.sleep(0.5)
        workers.append(process)
        assert len(list(tmp_path.iterdir())) <= len(workers) + 3
        if len(workers) == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_jobs(range(50), setup, tmp_path, deliver, executor=Local(1), description="")
    assert gone(workers, PATIENCE)


# --- scripts -------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time, pathlib
sys.path.insert(0, {modules!r})
import a_module_beside
from comove.jobs import Local, run_jobs

print("imported", flush=True)

class Factory:
    def build(self, job):
        return a_module_beside.double(job)

def setup(factory):
    def do(job):
        sys.stdin.read()
        pathlib.Path(f"job-{{job}}").write_text(str(os.getpid()))
        while not pathlib.Path("go").exists():  # in mid-job until the test says go
            sum(range(1000))
        return factory.build(job)
    return do

done = {{}}
run_jobs([0, 1, 2], setup, Factory(), done.__setitem__, executor=Local({workers}), description="")
print(sorted(done.items()), flush=True)
"""


class Scripts:
    """Scripts as users write them, without a main guard, each in a folder and a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, workers: int) -> tuple[subprocess.Popen[str], Path]:
        folder = self.folder / str(len(self.started))
        modules = folder / "modules"
        modules.mkdir(parents=True)
        (modules / "a_module_beside.py").write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
        (folder / "temporary").mkdir()
        (folder / "script.py").write_text(SCRIPT.format(modules=str(modules), workers=workers), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "temporary")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process, folder


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    yield scripts
    for process in scripts.started:
        process.kill()
        process.communicate()


def worker_in_mid_job(folder: Path) -> int:
    """Wait for the first job to begin, and return the process that does it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for file in folder.glob("job-*"):
            if text := file.read_text(encoding="ascii"):
                return int(text)
        time.sleep(0.05)
    raise AssertionError("no job began")


def test_a_script_without_a_main_guard_ends_well_and_its_workers_end_with_it_however_it_ends(scripts: Scripts) -> None:
    (finishing, folder), (interrupted, other), (killed, third) = (scripts.start(workers) for workers in (1, 1, 1))
    first, second, last = (worker_in_mid_job(place) for place in (folder, other, third))

    os.killpg(interrupted.pid, signal.SIGINT)  # as Ctrl-C in a terminal does: the driver and the workers
    killed.kill()
    assert gone([second, last], PATIENCE)
    assert list((third / "temporary").iterdir()) == []  # the last worker took the shared arrays away
    assert interrupted.wait(PATIENCE) == -signal.SIGINT
    assert interrupted.communicate()[1].rstrip().endswith("KeyboardInterrupt")

    (folder / "go").touch()
    printed, errors = finishing.communicate(timeout=60)
    assert (printed, errors) == ("imported\n[(0, 0), (1, 2), (2, 4)]\n", "")
    assert gone([first], PATIENCE)
    assert [*(folder / "temporary").iterdir(), *(other / "temporary").iterdir()] == []


# --- arguments -----------------------------------------------------------------------------------------------------


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="workers must be at least 1, not 0"):
        Local(0)
    with pytest.raises(InputError, match="retries must be 0 or more, not -1"):
        Local(retries=-1)
