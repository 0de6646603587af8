"""What the documentation says: every method has its page, snippets run as they stand, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from comove.attribution import attributors
from comove.coreset import selectors
from tests.fork_server import STRICT, Warm

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {name: (name, method) for name, method in attributors().items()} | {
    f"coreset-{name}": (name, method) for name, method in selectors().items()
}
SECTIONS = ("Needs", "Cost", "Use it when", "Do not use it when", "Know", "Reference")


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == {*PAGES, "index"}
    listed = set((DOCS / "methods/index.md").read_text(encoding="utf-8").splitlines())
    assert set(PAGES) <= listed


@pytest.mark.parametrize("page", PAGES)
def test_a_methods_page_names_its_class_and_says_everything(page: str) -> None:
    name, method = PAGES[page]
    text = (DOCS / "methods" / f"{page}.md").read_text(encoding="utf-8")
    assert f"`--method {name}`" in text
    module, _, cls = re.findall(r"`~(comove[\w.]+)`", text)[0].rpartition(".")
    assert getattr(importlib.import_module(module), cls) is method
    assert text.count("$$") == 2
    for section in SECTIONS:
        assert f"**{section}" in text
    needs = text.split("**Needs.**")[1].split("**Cost")[0].lower()
    assert ("checkpoint" in needs) >= ("checkpoints" in method.requires)
    assert ("bank" in needs) >= ("bank" in method.requires)


FEWER = {"random(0.5, 40)": "random(0.5, 12)", '["cld", "random", "ccs"], [0.1, 0.3]': '["cld", "ccs"], [0.1]'}
"""The retrainings of the tutorial take half a minute; so many run the same code."""


@pytest.mark.parametrize("page", ["tutorial", "own", "pictures"])
def test_snippets_run_one_after_another(page: str, warm: Warm, tmp_path: Path) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    assert code
    for many, few in FEWER.items() if page == "tutorial" else ():
        assert code.count(many) == 1
        code = code.replace(many, few)
    (tmp_path / "snippets.py").write_text(code, encoding="utf-8")
    warm.run(STRICT + "import runpy; runpy.run_path('snippets.py', run_name='__main__')", cwd=tmp_path)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="the documentation is built with comove[docs]")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "doctrees")]
    program = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "html")]
    made = subprocess.run(program, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "html/methods/trak.html").exists()
