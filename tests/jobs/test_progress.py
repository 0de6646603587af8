"""Progress: silent unless asked for, on the error stream; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import re

import pytest

from comove.jobs.progress import log_line, progress_bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stream is a terminal, as rich believes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_nothing_is_printed_unless_the_bar_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 3, shown=False) as advance:
        advance(3)
    log_line("epoch 1", shown=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("terminal")
def test_the_bar_goes_to_the_error_stream_with_its_count_and_the_description_as_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("training [red]mlp[/red]", 7, shown=True) as advance:
        advance(3)
        advance(4)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training [red]mlp[/red]" in err
    assert "7/7" in err


def test_without_a_terminal_there_are_about_twenty_lines_and_the_last_says_all(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("retraining [red]", 205, shown=True) as advance:
        for _ in range(41):
            advance(5)
    out, err = capfd.readouterr()
    assert out == ""
    counts = [int(count) for count in re.findall(r"^retraining \[red\]: (\d+) of 205, 0 s", err, re.MULTILINE)]
    assert len(counts) == len(err.splitlines())
    assert 15 <= len(counts) <= 21
    assert counts[-1] == 205
    assert "left" not in err.splitlines()[-1]


@pytest.mark.usefixtures("terminal")
def test_what_has_lines_of_its_own_has_a_bar_on_a_terminal_and_no_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 2, shown=True, lines=False) as advance:
        advance(2)
        log_line("epoch 1", shown=True)
    told = capfd.readouterr().err
    assert "2/2" in told
    assert "epoch" not in told


def test_a_caller_writes_its_own_lines_into_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 2, shown=True, lines=False) as advance:
        advance(2)
        log_line("epoch [bold]1", shown=True)
    assert capfd.readouterr().err == "epoch [bold]1\n"


@pytest.mark.usefixtures("terminal")
def test_an_error_inside_the_block_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress_bar("work", 2, shown=True) as advance:
            advance(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "1/2" in capfd.readouterr().err
