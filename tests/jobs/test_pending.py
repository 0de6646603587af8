"""Jobs are done when their files are there: what was interrupted goes on with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from comove.jobs import run_pending
from comove.store import write_json


def run_in(
    folder: Path, jobs: list[int], *, fail_at: int | None = None, progress: bool = False
) -> tuple[int, list[int]]:
    done: list[int] = []

    def work(job: int) -> None:
        if job == fail_at:
            raise KeyboardInterrupt
        done.append(job)
        write_json(folder / f"{job}.json", {"job": job})

    count = run_pending(jobs, lambda job: folder / f"{job}.json", work, description="jobs", progress=progress)
    return count, done


def test_every_job_runs_once_in_order(tmp_path: Path) -> None:
    assert run_in(tmp_path, [3, 1, 2]) == (3, [3, 1, 2])
    assert run_in(tmp_path, [3, 1, 2]) == (0, [])


def test_an_interrupted_run_goes_on_with_what_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, [0, 1, 2, 3], fail_at=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.json", "1.json"]
    assert run_in(tmp_path, [0, 1, 2, 3]) == (2, [2, 3])


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    run_in(tmp_path, [0, 1, 2])
    (tmp_path / "1.json").unlink()
    assert run_in(tmp_path, [0, 1, 2]) == (1, [1])


def test_the_bar_is_shown_only_when_asked_for_and_there_is_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(tmp_path, [0])
    run_in(tmp_path, [0], progress=True)
    assert capsys.readouterr() == ("", "")
    run_in(tmp_path, [0, 1, 2], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "jobs" in shown.err
    assert "2/2" in shown.err
