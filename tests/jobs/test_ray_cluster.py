"""A real Ray cluster of several nodes on this machine: nothing is lost and no bit differs, whatever dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from comove import OwnTraining, RetrainingBank
from comove.attribution import CLD
from comove.attribution.score_blocks import write_scores_in_blocks
from comove.errors import InputError, NonFiniteError
from comove.evaluation import subsets
from comove.jobs import JobLostError, RayCluster, ray_cluster, run_jobs
from comove.trace import Trace

if TYPE_CHECKING:
    from tests.jobs.conftest import Training


def test_what_cannot_be_sent_to_a_cluster_is_refused() -> None:
    pytest.importorskip("ray", reason="the extra comove[ray] is not installed")
    with pytest.raises(InputError, match=r"cannot be sent what the jobs need .*lock.*executor='serial'"):
        run_jobs([1], lambda _: lambda job: job, threading.Lock(), print, executor="ray", description="")


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    pytest.importorskip("ray", reason="the extra comove[ray] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=rf"Nothing answers at 127\.0\.0\.1:{port} .*ray start --head"):
        run_jobs([1], lambda _: lambda job: job, 0, print, executor=RayCluster(f"127.0.0.1:{port}"), description="")


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'comove\[ray\]'"):
        run_jobs([1], lambda _: lambda job: job, None, print, executor="ray", description="")


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[None]:
    """All that Ray writes goes to a folder that is removed."""
    pytest.importorskip("ray", reason="the extra comove[ray] is not installed")
    # Not tmp_path: Ray's sockets lie there, and a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)  # where ray.init writes a token
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # ray.init sets it for the whole process where it is not
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(ray_folder: None) -> Iterator[Any]:
    """A head and two more nodes with a core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, resources={"doomed": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_private_cluster_is_kept_for_a_session_and_ends_with_it(ray_folder: None, training: Training) -> None:
    import ray

    executor = RayCluster()
    with executor.session():
        for seed in (0, 10):  # the second time, the workers are there but must be set up anew
            training.run([(seed + more, 0.0) for more in range(4)], executor)
            assert len({result.setups for result in training.done.values()}) == 1  # none was set up twice
            assert training.equals_one_process()
        assert ray.is_initialized()
        with pytest.raises(InputError, match=r"No node .* 1 CPUs and 99 GPUs .* this machine is all of it"):
            RayCluster(num_gpus=99)._check_room(private=True)
    assert not ray.is_initialized()


def test_a_cluster_that_loses_a_worker_and_a_node_trains_the_same_bits_as_one_process(
    cluster: Any, training: Training
) -> None:
    import ray

    doomed = [node for node in cluster.worker_nodes if "doomed" in node.get_resource_and_label_spec().resources]
    handler = signal.getsignal(signal.SIGTERM)

    def harm(job: tuple[int, float], result: Any) -> None:
        if len(training.done) == 3:
            os.kill(result.process, signal.SIGKILL)
        if len(training.done) == 6:  # with its worker in mid-job
            cluster.remove_node(doomed[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)

    training.run([(seed, 0.5) for seed in range(24)], RayCluster(cluster.address), harm)
    results = training.done.values()
    assert len({result.process for result in results}) >= 3
    assert {result.threads for result in results} == {1}
    assert {result.setups for result in results} == {1}  # once a process, however many jobs
    assert training.equals_one_process()
    assert not ray.is_initialized()  # what it opened, it closed
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.fixture(scope="module")
def session(cluster: Any) -> Iterator[None]:
    """A connection to the cluster that the user opened, and so nobody else may close."""
    import ray

    ray.init(cluster.address, log_to_driver=False)
    yield
    assert ray.is_initialized()
    ray.shutdown()


def test_a_bank_of_ones_own_training_function_has_the_same_bits(session: None, tmp_path: Path) -> None:
    def function(train_ids: Any, seed: int) -> dict[str, Any]:
        return {"loss": np.random.default_rng([seed, *train_ids]).random(5)}

    own, plan = OwnTraining(function, "noise"), subsets.random(0.5, 6)
    banks = [
        RetrainingBank.create(tmp_path / where, range(20), own, subsets=plan, seeds=2, queries=range(50, 55))
        for where in ("ray", "serial")
    ]
    banks[0].run(executor=RayCluster())
    np.testing.assert_array_equal(banks[0].outputs(), banks[1].run(executor="serial").outputs())


def test_an_error_comes_back_whole_and_what_had_arrived_is_delivered(session: None, tmp_path: Path) -> None:
    def setup(folder: Path) -> Callable[[int], int]:
        def job(number: int) -> int:
            warnings.warn("odd input", UserWarning, stacklevel=1)
            if number == 3:
                while len(list(folder.iterdir())) < 5:
                    time.sleep(0.05)
                time.sleep(1.0)  # in which the last of the others arrives
                raise NonFiniteError(f"The loss of model {number} is not finite.")
            (folder / str(number)).touch()
            return -number

        return job

    done: dict[int, int] = {}
    with (
        pytest.warns(UserWarning, match="odd input") as warned,
        pytest.raises(NonFiniteError, match="model 3 is not finite") as raised,
    ):
        run_jobs(range(6), setup, tmp_path, done.__setitem__, executor=RayCluster(), description="")
    assert done == {0: 0, 1: -1, 2: -2, 4: -4, 5: -5}
    assert len(warned) == 1
    assert "In a worker process, job 3" in raised.value.__notes__[0]


def test_ray_is_given_few_tasks_at_a_time(session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "IN_FLIGHT", 4)

    def setup(folder: Path) -> Callable[[int], None]:
        return lambda job: (folder / str(job)).touch()

    done: list[int] = []

    def deliver(job: int, _: None) -> None:
        time.sleep(0.1)
        begun = {int(file.name) for file in tmp_path.iterdir()}
        assert len(begun - set(done)) <= 4
        done.append(job)

    assert run_jobs(range(20), setup, tmp_path, deliver, executor=RayCluster(), description="") == 20
    assert sorted(done) == list(range(20))


def test_blocks_of_scores_over_a_cluster_are_those_of_one_process(session: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = Trace.from_arrays(train_losses=rng.random((8, 3_000)), query_losses=rng.random((8, 20)))
    over_cluster = write_scores_in_blocks(
        tmp_path / "scores.safetensors", CLD(), trace, executor=RayCluster(), block_bytes=4 * 1_024 * 20
    )
    np.testing.assert_array_equal(over_cluster.values, CLD().fit(trace).attribute().values)


def test_a_job_that_kills_its_process_is_given_up_by_name(session: None) -> None:
    def setup(payload: None) -> Callable[[str], int]:
        def job(name: str) -> int:
            if name == "greedy":
                os.kill(os.getpid(), signal.SIGKILL)
            return len(name)

        return job

    done: dict[str, int] = {}
    with pytest.raises(JobLostError, match=r"job greedy after 2 worker processes .* Memory .* likely cause"):
        run_jobs(["a", "greedy"], setup, None, done.__setitem__, executor=RayCluster(retries=1), description="")
    assert done == {"a": 1}


def test_jobs_that_no_node_has_room_for_are_announced(session: None) -> None:
    with pytest.raises(RuntimeWarning, match=r"No node .* has the 1 CPUs and 2 GPUs that a job takes; waiting"):
        run_jobs([1], lambda _: lambda job: job, None, print, executor=RayCluster(num_gpus=2), description="")
