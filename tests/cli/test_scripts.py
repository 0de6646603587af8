"""Commands in scripts: JSON and tables on standard output, quiet ones, signals, closed pipes, threads and devices."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer.main
from tests.fork_server import STRICT, Warm
from typer.testing import CliRunner

from comove import cli
from comove.cli.app import command_of, say
from comove.coreset import Coreset
from comove.evaluation import RetrainingBank, subsets
from comove.retraining.own import OwnTraining
from comove.training import Run, loop

SMALL = ("--limit", "200", "--held-out", "40", "--epochs", "2")
RUN = STRICT + "from comove.cli import run; run()"
READS = {"methods", "doctor", "bank status", "bank merge", "bank compact", "bank import", "bank export"}


def comove_(*words: object) -> Any:
    """Run a command in this process; its ``exit_code``, ``stdout`` and ``stderr``."""
    made = CliRunner().invoke(cli.app, [str(word) for word in words])
    if made.exception is not None and not isinstance(made.exception, SystemExit):
        raise made.exception
    return made


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and its name, those of groups with that of the group."""
    for name, one in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        inside = getattr(one, "commands", None)
        yield from [(name, one)] if inside is None else ((f"{name} {part}", two) for part, two in inside.items())


NAMES = [name for name, _ in commands()]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_the_options_of_scripts(name: str) -> None:
    text = comove_(*name.split(), "--help").stdout
    for option in ("--json", "--quiet", *(() if name in READS else ("--threads", "--device"))):
        assert option in text, option


@pytest.mark.parametrize("name", NAMES)
def test_every_option_tells_its_default(name: str) -> None:
    silent = []
    for entry in dict(commands())[name].params:
        shown = getattr(entry, "show_default", None)
        is_switch = getattr(entry, "is_flag", False)
        if entry.name != "help" and not entry.required and not is_switch and not isinstance(shown, str):
            silent += [] if entry.default not in (None, "", [], ()) else [entry.opts[0]]
    assert silent == []


def document(*words: object) -> Any:
    """What a command prints with ``--json``, which must be one document."""
    made = comove_(*words, "--json")
    assert made.exit_code == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["command"] == str(words[0 if words[0] != "bank" else 1])
    return found


def test_json_is_the_result_of_every_kind_of_command(runs: tuple[Run, ...], tmp_path: Path) -> None:
    first, second = (run.path for run in runs)
    assert document("train", *SMALL, "--out", tmp_path / "run")["run"]["rows"] == 3
    chosen = document("coreset", first, "--budget", "0.1", "--out", tmp_path / "c.csv")
    assert chosen["ids"] == Coreset.load(tmp_path / "c.csv").ids.tolist()
    assert sum(row["kept"] for row in chosen["classes"]) == 20
    assert chosen["written"] == [str(tmp_path / "c.csv")]
    rows = document("stability", first, second, "--budgets", "0.2", "--epochs", 3)["between_seeds"]
    assert 0 <= rows[0]["overlap"] <= 1
    cleaned = document("clean", first, "--methods", "aum", "loss", "--top", 3, "--out", tmp_path / "clean")
    assert [row["id"] for row in cleaned["suspects"]] == pd.read_csv(tmp_path / "clean/suspicion.csv")["id"][
        :3
    ].tolist()
    assert document("cost")["costs"][0]["PFLOP"] > 0
    assert "mlp" in document("methods")["known"]["Models"]
    assert document("methods", "cld")["attribution_method"]["options"].startswith("correlation=")
    assert "python" in document("doctor")["doctor"]
    aligned = document(
        "diagnose", first, "--methods", "random", "--budget", "0.2", "--checkpoints", 1, "--out", tmp_path / "d"
    )
    assert {row["trajectory"] for row in aligned["alignment"]} >= {"full data"}
    assert document("report", first, "--queries", 3, "--out", tmp_path / "r.html")["written"] == [
        str(tmp_path / "r.html")
    ]


def test_json_of_a_benchmark_its_bank_and_a_curve(run: Run, tmp_path: Path) -> None:
    counts = ("--subsets", 4, "--seeds", 1, "--runs", 1, "--executor", "serial", "--out", tmp_path)
    found = document("lds", *SMALL, "--methods", "cld", *counts)
    table = pd.read_csv(tmp_path / "lds.csv")
    assert [row["mean"] for row in found["lds"]] == pytest.approx(table["mean"].tolist())
    assert [row["method"] for row in found["lds"]] == table["method"].tolist()
    assert found["retrained"] == {"now": 4, "reused": 0}
    assert document("bank", "status", tmp_path / "bank")["status"]["trained"] == 4
    assert document("bank", "work", tmp_path / "bank")["trained"] == {"now": 0, "models": 4}
    words = ("--methods", "random", "--budgets", "0.2", "--seeds", 1, "--executor", "serial")
    curve = document("curve", run.path, *words, "--out", tmp_path / "curve")
    assert {row["method"] for row in curve["curve"]} == {"full data", "random"}
    assert curve["smallest_shares"][0]["method"] == "random"


def test_an_error_leaves_standard_output_empty(run: Run, tmp_path: Path) -> None:
    made = comove_("coreset", run.path, "--method", "nothing", "--out", tmp_path / "c.csv", "--json")
    assert (made.exit_code, made.stdout) == (2, "")
    assert made.stderr.startswith("Error: ")


def test_quiet_keeps_the_result_and_warnings_only(runs: tuple[Run, ...], tmp_path: Path) -> None:
    words = ("attribute", runs[0].path, "--queries", 2, "--out", tmp_path)
    loud, quiet = comove_(*words), comove_(*words, "--quiet")
    assert quiet.stdout == loud.stdout != ""
    assert (quiet.stderr, loud.stderr.count("\n")) == ("", 4)
    noted = comove_("stability", runs[0].path, "--budgets", "0.2", "--epochs", 3, "--quiet")
    assert noted.stderr == "Note: One run says nothing about seeds: give runs of several.\n"


@pytest.mark.filterwarnings("default")
def test_quiet_keeps_the_warnings_of_other_libraries() -> None:
    group = typer.Typer()

    @command_of(group)
    def warns() -> None:
        """Warn as NumPy does."""
        say("a remark")
        warnings.warn("overflow in exp", RuntimeWarning, stacklevel=1)

    made = CliRunner().invoke(group, ["--quiet"])
    assert made.exit_code == 0
    assert "Warning: " in made.stderr
    assert "RuntimeWarning: overflow in exp" in made.stderr
    assert "a remark" not in made.stderr


def test_one_table_goes_to_standard_output_where_there_is_one(run: Run, tmp_path: Path) -> None:
    made = comove_("coreset", run.path, "--budget", "0.1", "--out", "-")
    assert made.exit_code == 0, made.stderr
    comove_("coreset", run.path, "--budget", "0.1", "--out", tmp_path / "c.csv")
    written = pd.read_csv(tmp_path / "c.csv").drop(columns="check")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(made.stdout)), written)
    (tmp_path / "piped.csv").write_text(made.stdout)
    assert Coreset.load(tmp_path / "piped.csv").ids.tolist() == written["id"].tolist()
    both = comove_("coreset", run.path, "--out", "-", "--json")
    assert (both.exit_code, both.stdout) == (2, "")
    folder = comove_("clean", run.path, "--out", "-")
    assert folder.exit_code == 2
    assert "--out - is for commands that write one table (attribute, coreset)" in folder.stderr


def test_threads_and_device_are_those_asked_for_while_the_command_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def note(*arguments: object) -> Any:
        seen.append((torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], loop.resolve_device("auto").type))
        raise KeyboardInterrupt

    monkeypatch.setattr("comove.cli.coreset.open_runs", note)
    before = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
    words = ("coreset", run.path, "--out", tmp_path / "c.csv", "--threads")
    assert comove_(*words, 2, "--device", "cpu").exit_code == 130
    assert seen == [(2, "2", "cpu")]
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == before
    assert comove_(*words, 0).exit_code == 2
    assert "Unknown device 'gpu'" in comove_(*words, 1, "--device", "gpu").stderr


def test_a_batch_system_s_signal_ends_like_ctrl_c_and_the_same_command_goes_on(warm: Warm, tmp_path: Path) -> None:
    words = ["train", "--limit", "600", "--held-out", "40", "--epochs", "20", "--batch-size", "8", "--out"]
    process = warm.start(RUN, *words, tmp_path, "-q")
    deadline = time.monotonic() + 60
    while not (tmp_path / "trace/rows/000003.safetensors").exists():
        assert time.monotonic() < deadline, warm.errors.read_text()
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    assert warm.wait() == 130
    told = warm.errors.read_text()
    assert told == "Interrupted. What was finished is kept; run the same command again to go on.\n"
    assert not Run.load(tmp_path).finished
    assert comove_(*words, tmp_path, "-q").exit_code == 0


CLOSED = """
import os, sys
def close(stream):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, stream)
for stream in map(int, sys.argv.pop(1).split(",")):
    close(stream)
"""


@pytest.mark.parametrize("streams", ["1", "1,2"])
@pytest.mark.parametrize("json", [True, False])
def test_a_reader_that_has_left_costs_nothing_but_what_is_printed(
    streams: str, json: bool, run: Run, warm: Warm, tmp_path: Path
) -> None:
    words = ("attribute", run.path, "--queries", 2, *(["--json"] if json else []), "--out", tmp_path / "out")
    warm.start(CLOSED + RUN, streams, *words)
    assert warm.wait() == 0, warm.errors.read_text()
    assert "Traceback" not in warm.errors.read_text()
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"cld.safetensors", "cld-top.csv", "cld-influence.png"}


def test_training_goes_on_when_the_reader_of_its_log_has_left(warm: Warm, tmp_path: Path) -> None:
    warm.start(CLOSED + RUN, "1,2", "train", *SMALL, "--out", tmp_path)
    assert warm.wait() == 0
    assert Run.load(tmp_path).finished


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode there")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_standard_output_cannot_take_is_written_out(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "caf\udce9\u00d7"
    RetrainingBank.create(
        folder,
        [1, 2, 3],
        training=OwnTraining(lambda ids, seed: {}, name="x"),
        subsets=subsets.random(0.5, 2),
        queries=[5],
    )
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["comove", "bank", "status", str(folder)])
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding, "strict"))
    with pytest.raises(SystemExit) as ended:
        cli.run()
    sys.stdout.flush()
    assert ended.value.code in (None, 0)
    assert r"caf\udce9" in printed.getvalue().decode()
