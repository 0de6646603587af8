"""Jobs in, results delivered; executors by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from comove.errors import InputError
from comove.jobs import Local, RayCluster, Serial, as_executor, run_jobs


def square(_: None) -> Callable[[int], int]:
    return lambda job: job * job


def test_every_result_is_delivered_with_its_job_and_the_jobs_are_counted() -> None:
    done: list[tuple[int, int]] = []
    count = run_jobs([3, 1, 2], square, None, lambda *pair: done.append(pair), executor="serial", description="jobs")
    assert (count, done) == (3, [(3, 9), (1, 1), (2, 4)])


def test_without_jobs_nothing_is_set_up() -> None:
    def setup(_: None) -> Callable[[int], int]:
        raise AssertionError

    assert run_jobs([], setup, None, lambda *_: None, description="jobs") == 0


def test_set_up_and_jobs_run_on_one_torch_thread_and_delivery_does_not() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []

        def setup(_: None) -> Callable[[int], int]:
            seen.append(torch.get_num_threads())
            return lambda job: torch.get_num_threads()

        def deliver(_: int, threads: int) -> None:
            seen.extend([threads, torch.get_num_threads()])

        run_jobs([0], setup, None, deliver, executor=Serial(), description="jobs")
        assert seen == [1, 1, 2]
        with pytest.raises(ZeroDivisionError):
            run_jobs([0], lambda _: lambda job: 1 // job, None, deliver, executor=Serial(), description="jobs")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_job_goes_up_after_the_results_before_it() -> None:
    done: dict[int, float] = {}
    with pytest.raises(ZeroDivisionError):
        run_jobs(
            [2, 1, 0, 3], lambda _: lambda job: 1 / job, None, done.__setitem__, executor="local", description="jobs"
        )
    assert done == {2: 0.5, 1: 1.0}


def test_the_bar_counts_in_units_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    run_jobs([50, 25], square, None, lambda *_: None, description="models", progress=True, size=lambda job: job)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "models" in shown.err
    assert "75 of 75" in shown.err
    run_jobs([50, 25], square, None, lambda *_: None, description="models")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "executor"),
    [
        ({"name": "serial"}, Serial()),
        ({"name": "local"}, Local()),
        ({"name": "local", "workers": 3}, Local(3)),
        ({"name": "ray"}, RayCluster()),
        ({"name": "ray", "address": "auto", "gpus": 0.25}, RayCluster("auto", num_gpus=0.25)),
    ],
)
def test_executors_by_name(arguments: dict[str, Any], executor: object) -> None:
    assert as_executor(**arguments) == executor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "locl"}, "must be serial, local or ray, not 'locl'. Did you mean 'local'?"),
        ({"name": "serial", "workers": 2}, "Only the local executor takes a number of workers"),
        ({"name": "ray", "workers": 2}, "Only the local executor takes a number of workers"),
        ({"name": "local", "address": "auto"}, "Only the ray executor takes an address"),
        ({"name": "serial", "gpus": 1}, "Only the ray executor takes an address and GPUs"),
        ({"name": "ray", "gpus": -1}, "must take some CPUs or GPUs, not 1 and -1"),
        ({"name": "ray", "gpus": 1.5}, "num_gpus=1.5 must be below 1 or whole"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        as_executor(**arguments)
