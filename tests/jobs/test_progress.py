"""Progress bars: silent unless asked for, on the error stream, and literal about their description."""

from __future__ import annotations

import pytest

from comove.jobs.progress import progress_bar


def test_nothing_is_printed_unless_the_bar_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 3, shown=False) as advance:
        advance(3)
    assert capfd.readouterr() == ("", "")


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


def test_an_error_inside_the_block_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress_bar("work", 2, shown=True) as advance:
            advance(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "1/2" in capfd.readouterr().err
