"""A small training job, and the truth that every executor is held to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from comove.jobs import Executor, Serial, run_jobs

Job = tuple[int, float]
"""A seed, and seconds to sleep first."""


class Result(NamedTuple):
    weights: npt.NDArray[np.float32]
    process: int
    threads: int
    setups: int


@dataclass
class Training:
    """Jobs that train a small network from a seed; ``result[job]`` after :meth:`run`."""

    setup: Callable[[Any], Callable[[Any], Any]]
    payload: dict[str, Any]
    done: dict[Job, Result] = field(default_factory=dict)

    def run(self, jobs: list[Job], executor: Executor, deliver: Callable[[Job, Result], None] | None = None) -> None:
        self.done = {}

        def keep(job: Job, result: Any) -> None:
            self.done[job] = Result(*result)
            if deliver is not None:
                deliver(job, self.done[job])

        assert run_jobs(jobs, self.setup, self.payload, keep, executor=executor, description="models") == len(jobs)

    def equals_one_process(self) -> bool:
        """Whether what was done equals, to the bit, what one process does."""
        one = Training(self.setup, self.payload)
        one.run([(seed, 0.0) for seed, _ in self.done], Serial())
        return [result.weights.tobytes() for _, result in sorted(self.done.items())] == [
            result.weights.tobytes() for _, result in sorted(one.done.items())
        ]


@pytest.fixture(scope="module", autouse=True)
def _threads(two_threads: None) -> None:
    """Two threads here, as against one in a worker."""


@pytest.fixture
def training() -> Training:
    """Training jobs; their functions are local, so they travel by value, as those of a script or a notebook do."""
    setups = 0

    def setup(payload: dict[str, Any]) -> Callable[[Job], Any]:
        nonlocal setups
        setups += 1
        inputs, labels = payload["inputs"], torch.from_numpy(payload["labels"])

        def train(job: Job) -> Any:
            seed, seconds = job
            time.sleep(seconds)
            generator = torch.Generator().manual_seed(seed)
            first = (0.1 * torch.randn(300, 64, generator=generator)).requires_grad_()
            last = (0.1 * torch.randn(64, 10, generator=generator)).requires_grad_()
            for _ in range(5):
                loss = torch.nn.functional.cross_entropy(torch.tanh(inputs @ first) @ last, labels)
                for weight, slope in zip((first, last), torch.autograd.grad(loss, (first, last)), strict=True):
                    weight.data -= 0.5 * slope
            weights = torch.cat((first.detach().flatten(), last.detach().flatten())).numpy()
            return weights, os.getpid(), torch.get_num_threads(), setups

        return train

    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.standard_normal((2_000, 300)).astype(np.float32))
    return Training(setup, {"inputs": inputs, "labels": generator.integers(0, 10, 2_000)})
