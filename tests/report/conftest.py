"""What both tests of the HTML report are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.attribution import CLD
from comove.evaluation import LDS, Curve, CurvePoint
from comove.report import Evidence, Origin, Provenance, Suspects, write_report
from comove.trace import Trace

EVIL = "</script><script>alert('1')</script> & \"q\" <!-- \u2028\u2029 {{ 7 * 7 }}"


@pytest.fixture
def evil() -> str:
    """Text that would end a script, start one, or break a quote."""
    return EVIL


@pytest.fixture
def small_trace() -> Trace:
    """A trace of 12 training examples and 4 queries from nowhere."""
    rng = np.random.default_rng(0)
    return Trace.from_arrays(
        train_losses=rng.uniform(0.1, 2, (5, 12)),
        query_losses=rng.uniform(0.1, 2, (5, 4)),
        train_labels=np.arange(12) % 3,
        query_labels=np.arange(4) % 3,
        train_ids=100 + np.arange(12),
        query_ids=7 + np.arange(4),
    )


@pytest.fixture(scope="session")
def lds() -> Callable[..., LDS]:
    """Makes an LDS from nowhere."""
    scores = np.array([0.1, np.nan])
    made = LDS(scores, 0.1, (0.0, 0.2), 1, 0, 0.5, 0.7, "cld", np.arange(2), 50, 2, 0.95, "margin", 0.5)

    def make(**changes: Any) -> LDS:
        return replace(made, **changes)

    return make


@pytest.fixture(scope="session")
def curve() -> Curve:
    """A coreset curve from nowhere."""
    points = [CurvePoint("full data", 1.0, 100, 0, 0.9), CurvePoint("cld", 0.1, 10, 0, 0.5)]
    return Curve(tuple(points), 100, 40, {})


@pytest.fixture
def evil_report(small_trace: Trace, lds: Callable[..., LDS], tmp_path: Path) -> Path:
    """A report of texts whose class names, texts, methods and provenance are markup."""
    scores = replace(CLD().fit(small_trace).attribute(), classes=(EVIL, "b", "c"), method=EVIL)
    ids = (*small_trace.train_ids.tolist(), *small_trace.query_ids.tolist())
    texts = {id_: f"{EVIL} {id_}" for id_ in ids}
    listed = Suspects(EVIL, small_trace.train_ids[:3], np.ones(3), note=EVIL)
    told = Provenance(source=EVIL, command=EVIL, settings={EVIL: EVIL})
    results = [listed, Evidence((lds(method=EVIL, output=EVIL),), told)]
    return write_report(
        tmp_path / "evil.html", small_trace, scores, results, texts=texts, title=EVIL, origin=Origin(EVIL)
    )
