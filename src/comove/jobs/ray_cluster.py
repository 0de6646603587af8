"""Jobs as tasks of a Ray cluster: nodes and GPUs that come and go.

The driver (this process) puts the set-up and the payload into the cluster once, keeps a bounded number of tasks in
flight and takes results as they come, so only the driver needs to see the folder that results are written to. Ray
begins a task again elsewhere when its worker or node dies, and ends the tasks of a driver that dies.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from comove.errors import InputError
from comove.jobs.base import Executor, JobLostError, Results, Work, check_retries, job_lost
from comove.jobs.job_result import Outcome, collect
from comove.jobs.serialization import Parts, from_bytes, pack, to_bytes
from comove.jobs.worker import do_ray_job, import_path

if TYPE_CHECKING:
    from types import ModuleType

    from ray import ObjectRef

__all__ = ["RayCluster"]

IN_FLIGHT = 1_000
"""Tasks known to Ray at a time: enough for any cluster, few enough for its memory however many jobs there are."""
_CONNECT_SECONDS = 20.0


@dataclass(frozen=True)
class RayCluster(Executor):
    """Tasks on a Ray cluster (Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018).

    Every node needs comove and what the jobs import, in the driver's versions. A session that the caller has opened
    with ``ray.init`` is used and left open; one that is opened here is closed at the end.

    Args:
        address: of a running cluster: ``"auto"`` for the one this machine belongs to, ``"host:6379"``, or
            ``"ray://host:10001"`` from outside. By default the environment's ``RAY_ADDRESS``, else a private cluster on
            this machine.
        num_cpus: cores that a job takes; it computes on one thread all the same.
        num_gpus: GPUs that a job takes; 0.25 puts four jobs on one.
        retries: how often a job is begun again after its worker or node died.

    Raises:
        InputError: Ray is not installed, or a number is out of range.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    retries: int = 3

    def __post_init__(self) -> None:
        check_retries(self.retries)
        if self.num_cpus < 0 or self.num_gpus < 0 or self.num_cpus == self.num_gpus == 0:
            raise InputError(f"A job must take some CPUs or GPUs, not {self.num_cpus} and {self.num_gpus}.")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise InputError(f"Ray divides one GPU, not several: num_gpus={self.num_gpus} must be below 1 or whole.")

    def results(self, work: Work) -> Results:
        """Yield (index, result) as they are done."""
        ray = _import_ray()
        shared = to_bytes(_packed(work))
        with self.session():
            reference = ray.put(np.frombuffer(shared, np.uint8))
            del shared
            yield from _Flight(self._task(), work.jobs, reference, self.retries).results()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Stay connected, or keep the private cluster: it takes seconds to open, and its workers stay warm."""
        _import_ray()
        with _session(self.address) as private:
            self._check_room(private)
            yield

    def _task(self) -> Callable[..., Any]:
        import ray

        # Ray would end the process after every task on a GPU: with max_calls=0 it keeps it, and its set-up.
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_retries": self.retries, "max_calls": 0}
        task: Callable[..., Any] = ray.remote(**options)(do_ray_job).remote
        return task

    def _check_room(self, private: bool) -> None:
        """Say so when no node could take a job: Ray would wait in silence."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= self.num_cpus and node.get("GPU", 0) >= self.num_gpus for node in nodes):
            return
        message = (
            f"No node of the Ray cluster has the {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs that a job takes"
        )
        if private:
            raise InputError(f"{message}, and this machine is all of it: ask for less, or give the address of another.")
        warnings.warn(f"{message}; waiting for one to join.", RuntimeWarning, stacklevel=2)


class _Flight:
    """The tasks of one run: some waiting, a bounded number known to Ray."""

    def __init__(self, task: Callable[..., Any], jobs: Sequence[Any], shared: ObjectRef, retries: int) -> None:
        self._task, self._jobs, self._shared, self._retries = task, jobs, shared, retries
        self._run = uuid.uuid4().hex
        here = os.path.abspath(os.curdir)
        self._last = "" if here in import_path()[:-1] else here  # in the path by the user's own wish: left where it is
        self._waiting = iter(range(len(jobs)))
        self._flying: dict[ObjectRef, int] = {}
        self._warned: set[Any] = set()

    def results(self) -> Results:
        import ray

        try:
            while self._launch():
                yield from self._land(ray.wait(list(self._flying), num_returns=1)[0])
                yield from self._land(self._landed())
        finally:
            for task in self._flying:
                ray.cancel(task, force=True)

    def _launch(self) -> int:
        """Hand tasks to Ray up to the bound, and return how many it has."""
        while len(self._flying) < IN_FLIGHT and (index := next(self._waiting, None)) is not None:
            task = self._task(self._run, self._shared, to_bytes(pack(self._jobs[index])), self._last)
            self._flying[task] = index
        return len(self._flying)

    def _landed(self) -> list[ObjectRef]:
        import ray

        flying = list(self._flying)
        return ray.wait(flying, num_returns=len(flying), timeout=0)[0] if flying else []

    def _land(self, tasks: Iterable[ObjectRef]) -> Results:
        for task in tasks:
            index = self._flying.pop(task)
            try:
                result = collect(self._outcome(task, index), self._jobs[index], self._warned)
            except Exception:
                yield from self._good()
                raise
            yield index, result

    def _good(self) -> Results:
        """Yield the results that have come back, and nothing else: an error is about to go up."""
        for task in self._landed():
            index = self._flying.pop(task)
            try:
                outcome = self._outcome(task, index)
            except JobLostError:
                continue
            if outcome.error is None:
                yield index, outcome.result

    def _outcome(self, task: ObjectRef, index: int) -> Outcome:
        import ray
        from ray import exceptions as failures

        try:
            outcome = from_bytes(ray.get(task))
        except (failures.WorkerCrashedError, failures.NodeDiedError, failures.OutOfMemoryError) as error:
            raise job_lost(f"job {self._jobs[index]}", self._retries + 1, _first_line(error)) from error
        except failures.RayTaskError as error:  # outside the job, whose own errors are in the outcome
            raise InputError(
                "A node of the Ray cluster could not run comove; install it there, with all that the jobs import, in "
                f"the driver's versions. It said: {_first_line(error)}"
            ) from error
        except failures.RayError as error:
            raise JobLostError(f"The Ray cluster failed job {self._jobs[index]}: {_first_line(error)}") from error
        assert isinstance(outcome, Outcome)
        return outcome


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"The ray executor needs the package ray, which cannot be imported ({error}): pip install 'comove[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def _packed(work: Work) -> Parts:
    try:
        return pack((work.setup, work.payload))
    except Exception as error:  # pickling raises what it likes
        raise InputError(
            f"The cluster cannot be sent what the jobs need ({_first_line(error)}); define it in a module, or run "
            "with executor='serial'."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _check_reachable(address: str) -> None:
    """Refuse ``host:port`` where nothing listens; Ray itself would try for nine minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Nothing answers at {address} ({error}); give the address that `ray start --head` printed there."
        ) from error


@contextmanager
def _session(address: str | None) -> Iterator[bool]:
    """Be connected while the block runs; yields whether the cluster is a private one, which ends with the block."""
    import ray

    if ray.is_initialized():
        yield False
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(where)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"No Ray cluster could be reached or started at address {where!r}: {error}") from error
    try:
        yield where == "local"
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init had put its own
