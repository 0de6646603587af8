"""What both tests of the HTML report are made of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove.attribution import CLD
from comove.evaluation import LDS, Curve, CurvePoint
from comove.report import Evidence, Origin, Provenance, Suspects, write_report
from comove.trace import Trace

CHROMIUM = os.environ.get("COMOVE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
Open = Callable[..., Any]
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("No chromium was found: install it, or name it in COMOVE_CHROMIUM")
    with sync_api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open a file in a new window; at the end no page may have had an error or asked for anything but itself."""
    faults: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_(path: Path, anchor: str = "", width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.extend([message.text] * (message.type == "error")))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri() + anchor)
        return page

    yield open_
    for context in contexts:
        for page in context.pages:
            if page.locator("#fault").count() and page.locator("#fault").is_visible():
                faults.append(page.locator("#fault").inner_text())
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
