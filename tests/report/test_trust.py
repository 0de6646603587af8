"""How far a method can be trusted: its LDS on these data, or the command that measures it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import typer

from comove import cli
from comove.attribution import Scores
from comove.evaluation import LDS
from comove.report import Evidence, Provenance
from comove.report.trust import lds_command, trust_of
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source, as_sources

TRAINED = (
    "comove train --dataset 'my photos' --model resnet9 --width 0.125 --anchors 3 -1 --seed 2 --quiet --out runs/a"
)


def scores(method: str) -> Scores:
    return Scores(np.zeros((2, 2), np.float32), np.arange(2), np.arange(2), method)


@pytest.fixture
def source(run: Run) -> Source:
    return as_sources(run, frozenset({"trace"}), "test")[0]


def trained(source: Source, command: str | None) -> Source:
    """The same run, as if this command had trained it."""
    assert source.run is not None
    return replace(source, run=replace(source.run, manifest={**source.run.manifest, "command": command}))


def test_the_lds_at_the_ratio_nearest_to_a_half_is_told_for_every_output_beside_the_control(
    source: Source, lds: Callable[..., LDS]
) -> None:
    results = [lds(alpha=alpha, mean=alpha, method="trak") for alpha in (0.3, 0.6, 0.9)]
    results += [lds(alpha=0.6, mean=0.05, method="same-class-control"), lds(alpha=0.3, output="correct", method="trak")]
    told = trust_of("trak", scores("trak"), [Evidence(tuple(results))], source)["lds"]
    assert [(one["output"], one["alpha"]) for one in told] == [("margin", 0.6), ("correct", 0.3)]
    assert told[0]["mean"] == 0.6
    assert told[0]["interval"] == (0.0, 0.2)
    assert told[0]["share"] == pytest.approx(0.6 / 0.7)
    assert (told[0]["same"], told[1]["same"]) == (0.05, None)
    control = trust_of("x", scores("same-class-control"), [Evidence(tuple(results))], source)["lds"]
    assert control[0]["same"] is None


def test_an_lds_of_models_trained_in_another_way_says_so(source: Source, lds: Callable[..., LDS]) -> None:
    assert source.run is not None
    own = {name: source.run.manifest[name] for name in ("model", "recipe")}
    recipe = dict(own["recipe"])

    def other(**settings: Any) -> bool:
        evidence = Evidence((lds(),), Provenance(settings=settings))
        return bool(trust_of("cld", scores("cld"), [evidence], source)["lds"][0]["other"])

    assert not other()
    assert not other(**own)
    assert not other(recipe={name: value for name, value in recipe.items() if name != "lr"})  # of an older version
    assert other(**{**own, "recipe": {**recipe, "lr": 0.123}})
    assert other(**{**own, "model": {**own["model"], "name": "another"}})


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("trak", "trak"),
        ("cld(transform=log-odds, whiten=0.03)", "cld:transform=log-odds:whiten=0.03"),
    ],
)
def test_the_command_trains_as_the_run_was_trained_and_the_command_line_takes_it(
    source: Source, method: str, word: str
) -> None:
    command = lds_command(scores(method), trained(source, TRAINED))
    assert command is not None
    words = shlex.split(command)
    assert words == [
        *("comove", "lds", "--dataset", "my photos", "--model", "resnet9", "--width", "0.125", "--seed", "2"),
        *("--methods", word, "--out", "lds/"),
    ]
    group: Any = typer.main.get_command(cli.app)
    context = group.commands["lds"].make_context("lds", words[2:])
    assert context.params["methods"] == [word]
    assert context.params["width"] == 0.125


@pytest.mark.parametrize("noted", [None, "comove train --dataset 'a", "comove train --dataset digits --out ..."])
def test_a_run_whose_command_does_not_say_it_is_named_by_its_data_and_model(source: Source, noted: str | None) -> None:
    command = lds_command(scores("trak"), trained(source, noted))
    assert command == "comove lds --dataset digits --model mlp --methods trak --out lds/"


@pytest.mark.parametrize("method", ["someones-own", "trak(unknown=3)", "tracin(parameters=('a', 'b'))"])
def test_where_no_command_would_measure_this_none_is_named(source: Source, method: str) -> None:
    assert trust_of(method, scores(method), [], trained(source, TRAINED)) == {}


def test_a_bare_trace_names_no_command(small_trace: Trace) -> None:
    source = as_sources(small_trace, frozenset({"trace"}), "test")[0]
    assert trust_of("cld", scores("cld"), [], source) == {}
