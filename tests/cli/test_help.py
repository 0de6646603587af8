"""Help pages: whole at every width, options in groups, a plain phrase for each."""

from __future__ import annotations

import re

import pytest
from tests.cli.test_scripts import NAMES, commands, comove_

from comove.cli.groups import EVERY, ORDER
from comove.cli.help import COMMANDS
from comove.cli.help import NAMES as NAME_WIDTH
from comove.cli.output import out_console

TITLES = ["Options:", *(f"{name}:" for name in ORDER if name)]


@pytest.fixture(params=[50, 80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Letters a line of the terminal."""
    monkeypatch.setattr(out_console, "width", request.param)
    return int(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_its_terminal_and_says_everything(name: str, width: int) -> None:
    page = comove_(*name.split(), "--help").stdout
    lines = page.splitlines()
    assert "…" not in page
    for line in lines:  # an example, or the name of an option, is not broken: it is to be copied
        is_whole = re.match(r"  (comove |-)", line) is not None or " " not in line[NAME_WIDTH + 4 :]
        assert len(line) <= width or is_whole, line
    said = " ".join(page.split())
    for entry in dict(commands())[name].params:
        about = " ".join((getattr(entry, "help", None) or "").split())
        assert about in said, entry.name
        assert about.endswith("."), about


@pytest.mark.parametrize("name", NAMES)
def test_options_stand_in_groups_those_of_the_command_first(name: str) -> None:
    lines = comove_(*name.split(), "--help").stdout.splitlines()
    found = [line for line in lines if line in TITLES]
    assert found == sorted(found, key=TITLES.index)
    assert found[-1] == f"{EVERY}:"
    every = lines[lines.index(f"{EVERY}:") :]
    assert set(re.findall(r"--[a-z]+", " ".join(every))) == {"--quiet", "--json", "--help"}


def test_the_usage_names_what_is_needed_and_values_have_names() -> None:
    page = comove_("attribute", "--help").stdout
    assert "attribute RUNS... --out PATH [OPTIONS]" in page
    for shown in ("--queries N ", "--query-id N... ", "--image PATH... ", "--label TEXT... ", "  --device TEXT "):
        assert shown in page
    assert "[default: 20]" in page
    assert "coreset RUN --out PATH" in comove_("coreset", "--help").stdout
    assert "--budget SHARE|NUMBER" in comove_("coreset", "--help").stdout
    controls = " ".join(comove_("lds", "--help").stdout.split())
    assert "--controls, --no-controls" in controls
    assert "same-class control. [default: --controls]" in controls


def test_the_first_page_names_every_command_once_by_what_it_is_for(width: int) -> None:
    lines = comove_("--help").stdout.splitlines()
    assert max(map(len, lines)) <= width
    named = [name for names in COMMANDS.values() for name in names]
    assert len(set(named)) == len(named)
    assert set(named) == {name.split()[0] for name in NAMES}
    assert "Commands:" not in lines
    assert [line.split()[0] for line in lines if re.match(r"  [a-z]", line)] == named
    assert [line for line in lines if line[:-1] in COMMANDS] == [f"{title}:" for title in COMMANDS]


def test_a_group_lists_its_commands() -> None:
    lines = comove_("bank", "--help").stdout.splitlines()
    found = [line.split()[0] for line in lines[lines.index("Commands:") :] if re.match(r"  [a-z]", line)]
    assert found == [name.split()[1] for name in NAMES if name.startswith("bank ")]
