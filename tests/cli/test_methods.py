"""``comove methods`` on terminals and in pipes, and what it tells of one method."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from comove import cli
from comove.attribution import attributors
from comove.coreset import selectors


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let tables be printed as on a terminal of so many columns, without colours."""

    def of_width(columns: int) -> None:
        console = Console(force_terminal=True, color_system=None, width=columns)
        monkeypatch.setattr(importlib.import_module("comove.cli.output"), "out_console", console)

    return of_width


def rows(text: str) -> Iterator[tuple[Any, str]]:
    """Each method with the (first) line of its row."""
    kinds: tuple[Mapping[str, Any], ...] = (attributors(), selectors())
    for known, part in zip(kinds, text.split("\nCoreset methods\n"), strict=True):
        for name, method in known.items():
            yield method, next(line for line in part.splitlines() if line.split(" ")[0] == name)


def words_of(text: str) -> str:
    return " ".join(text.split())


def test_on_80_columns_no_line_is_longer_and_nothing_is_cut(terminal: Callable[[int], None]) -> None:
    terminal(80)
    result = comove_("methods")
    assert max(map(len, result.stdout.split("Models ")[0].splitlines())) <= 80
    assert "…" not in result.stdout
    for method, row in rows(result.stdout):
        _, needs, summary = row.split(maxsplit=2)
        assert needs in {"trace", "checkpoints", "bank"} & method.requires
        assert summary.strip() in method.summary
    assert "what it costs" not in result.stdout
    assert "comove methods NAME shows the cost and options of a method" in result.stderr


def test_a_folded_summary_is_whole(terminal: Callable[[int], None]) -> None:
    terminal(80)
    lines = comove_("methods").stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("datamodels "))
    folded = [lines[start].split(maxsplit=2)[2], *(line for line in lines[start + 1 :][:1] if line.startswith(" "))]
    assert words_of(" ".join(folded)) == attributors()["datamodels"].summary


def test_a_wide_terminal_shows_what_a_pipe_does(terminal: Callable[[int], None]) -> None:
    piped = comove_("methods")
    terminal(400)
    wide = comove_("methods")
    assert words_of(wide.stdout) == words_of(piped.stdout)
    assert "comove methods NAME" not in piped.stderr + wide.stderr
    for method, row in rows(wide.stdout):
        assert method.summary in row
        assert method.cost in row


@pytest.mark.parametrize("name", ["trak", "cld", "random", "same-class-control"])
def test_of_one_method_everything_is_told(name: str) -> None:
    result = comove_("methods", name)
    assert result.exit_code == 0, result.stderr
    kinds = [known[name] for known in (attributors(), selectors()) if name in known]
    assert len(kinds) == (2 if name == "cld" else 1)
    for method in kinds:
        for text in (method.summary, method.cost, ", ".join(sorted(method.requires)), inspect.getdoc(method)):
            assert str(text) in result.stdout
        package, _, cls = next(
            line for line in result.stdout.split() if line.endswith(f".{method.__name__}")
        ).rpartition(".")
        assert getattr(importlib.import_module(package), cls) is method
    assert "what it costs" not in result.stdout  # no list


def test_an_unknown_method_suggests_the_nearest_of_either_kind() -> None:
    for word, near in (("tark", "'trak'"), ("forgeting", "'forgetting'")):
        result = comove_("methods", word)
        assert result.exit_code == 2
        assert f"Unknown method {word!r}. Did you mean {near}" in result.stderr
