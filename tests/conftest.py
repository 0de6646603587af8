"""Fixtures shared by all tests. Runs are trained once a session; CIFAR-10 is looked for, never downloaded."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before they are read: see two_threads

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import comove
from comove.data import ExampleSet, Splits
from comove.data.builtin import find_cifar10, load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Run, Training, train
from tests.fork_server import Warm

REPOSITORY = Path(__file__).parents[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """At the end of the run, name each reason for a skipped test, and how many tests it skipped."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    if reasons:
        terminalreporter.section("skipped tests, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5} {reason}")


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Torch and the matrix library on two threads, for tests in which threads matter.

    All else runs on one, subprocesses included: several test processes of several threads each wait for one another.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Splits:
    """The digits splits: 1,400 train, 197 validation, 200 query."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def small_digits() -> Splits:
    """Digits with 200 training examples, 40 queries."""
    return load_dataset("digits", limit=200, queries=40)


@pytest.fixture(scope="session")
def short_recipe() -> Recipe:
    """Six epochs."""
    return Recipe(epochs=6, batch_size=32, lr=0.05)


@pytest.fixture(scope="session")
def runs(small_digits: Splits, short_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    """Two finished runs of an MLP on small digits, all checkpoints kept."""
    folder = tmp_path_factory.mktemp("runs")
    return tuple(train(small_digits, "mlp", short_recipe, seed, folder / str(seed)) for seed in range(2))


@pytest.fixture(scope="session")
def small_bank(small_digits: Splits, short_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """A finished bank on small digits: 16 halves x 2 seeds; read only."""
    folder = tmp_path_factory.mktemp("small-bank")
    plan = subsets.random(0.5, 16)
    return RetrainingBank.create(folder, small_digits, Training("mlp", short_recipe), subsets=plan, seeds=2).run()


@pytest.fixture(scope="session")
def run(runs: tuple[Run, ...]) -> Run:
    """The first of them."""
    return runs[0]


@pytest.fixture(scope="session")
def trace(run: Run) -> comove.Trace:
    """Its trace."""
    return run.trace


@pytest.fixture
def images() -> ExampleSet:
    """40 random 8-bit RGB images of 4 classes with ids 1000, 1001, ..."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=generator)
    return ExampleSet.from_arrays(pixels, np.arange(40) % 4, ids=1000 + np.arange(40), classes=list("abcd"))


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    """Where real CIFAR-10 lies: ``$COMOVE_DATA``, or ``../shared/data`` beside the repository."""
    for folder in (os.environ.get("COMOVE_DATA"), REPOSITORY.parent / "shared" / "data"):
        if folder and find_cifar10(folder):
            return Path(folder)
    pytest.skip("CIFAR-10 was not found: set COMOVE_DATA to its folder")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that forks children which run code; see :class:`Warm`."""
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.stop()
