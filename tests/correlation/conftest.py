"""Tiles are shared out among torch's threads, and products among those of the matrix library: two of each here."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _threads(two_threads: None) -> None:
    pass
