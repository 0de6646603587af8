"""Two processes record beside the tests; what needs them comes last."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FIXTURE = "two_processes"


def _needs_two(item: pytest.Item) -> bool:
    return FIXTURE in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder that wait for the two processes behind its others."""
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[place] for place in places), key=_needs_two)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Models this small train many times faster on one thread, and trainers collect garbage at every start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # leave out what the imports made
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _recording(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path] | None]:
    """Start recording as soon as a test of this folder runs, if one will need it: imports take most of its time."""
    if not any(map(_needs_two, request.session.items)):
        yield None
        return
    folder = tmp_path_factory.mktemp("two-processes")
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
    yield process, folder
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def two_processes(_recording: tuple[subprocess.Popen[bytes], Path]) -> Path:
    """The folder with the traces of one process and of two."""
    process, folder = _recording
    code = process.wait(timeout=300)
    assert code == 0, (folder / "errors").read_text()[-4000:]
    return folder
