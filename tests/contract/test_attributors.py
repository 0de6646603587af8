"""What every attribution method must do; methods are discovered, so a new file under attribution/ is checked too."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import comove.attribution
from comove.attribution import Attributor, Scores, attributor, attributors
from comove.attribution.tracin import TracIn
from comove.data import ExampleSet, Ids, Splits
from comove.discovery import build
from comove.errors import InputError, InputTypeError, NotFittedError
from comove.store import digest
from comove.trace import Trace
from comove.training import Recipe, Run, train

METHODS = list(attributors().values())
READING_RUNS = [method for method in METHODS if "bank" not in method.requires]  # the others are fitted on a bank
TRACE_ONLY = [method for method in METHODS if method.requires == {"trace"}]
SIGNED = [method for method in READING_RUNS if method.name != "random-control"]

FEWER_DRAWS = {"bayesian-influence": {"chains": 4, "steps": 60}}
"""Options of methods that by default take more time than a contract needs."""


def quick(method: type[Attributor]) -> Attributor:
    """The method, with its defaults where these take no time."""
    return method(**FEWER_DRAWS.get(method.name, {}))


every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_run_method = pytest.mark.parametrize("method", READING_RUNS, ids=lambda method: method.name)
every_trace_method = pytest.mark.parametrize("method", TRACE_ONLY, ids=lambda method: method.name)
every_signed_method = pytest.mark.parametrize("method", SIGNED, ids=lambda method: method.name)


def folder_state(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's bytes and time of writing."""
    return {
        str(file.relative_to(folder)): (digest(file.read_bytes().hex()), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def bare(trace: Trace, order: Ids | None = None) -> Trace:
    """The trace in memory, its training columns in another order."""
    assert trace.train_labels is not None
    chosen = np.arange(trace.train_ids.size) if order is None else order
    return Trace.from_arrays(
        train_losses=trace.train_losses[:, chosen],
        train_ids=trace.train_ids[chosen],
        train_labels=trace.train_labels[chosen],
        query_losses=trace.query_losses,
        query_ids=trace.query_ids,
        query_labels=trace.query_labels,
        validation_ids=trace.validation_ids,
    )


@pytest.fixture(scope="module")
def fitted_methods(runs: tuple[Run, ...]) -> Callable[[type[Attributor]], Attributor]:
    """Each method fitted once on the runs, for the tests that only ask it."""
    return cache(lambda method: quick(method).fit(runs))


@pytest.fixture
def fitted(method: type[Attributor], fitted_methods: Callable[[type[Attributor]], Attributor]) -> Attributor:
    return fitted_methods(method)


@pytest.fixture(scope="module")
def all_scores(
    fitted_methods: Callable[[type[Attributor]], Attributor],
) -> Callable[[type[Attributor]], Scores]:
    return cache(lambda method: fitted_methods(method).attribute())


@pytest.fixture
def scores(method: type[Attributor], all_scores: Callable[[type[Attributor]], Scores]) -> Scores:
    """What each method says of all queries, made once."""
    return all_scores(method)


def test_the_methods_of_the_paper_and_both_controls_are_discovered() -> None:
    assert {"cld", "random-control", "same-class-control"} <= set(attributors())
    assert list(attributors()) == sorted(attributors())


@every_method
def test_builds_with_no_arguments_and_by_name(method: type[Attributor]) -> None:
    assert method() == attributor(method.name) == build(method.name, attributors(), "attribution method", {})
    assert getattr(comove.attribution, method.__name__) is method
    assert method.__name__ in dir(comove.attribution)


@every_method
def test_says_what_it_is_and_what_it_reads(method: type[Attributor]) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", method.name)
    for line in (method.summary, method.cost):
        assert line
        assert "\n" not in line
    assert isinstance(method.requires, frozenset)
    assert method.requires
    assert method.requires <= {"trace", "checkpoints", "bank"}
    assert inspect.getdoc(method)


@every_method
def test_is_frozen(method: type[Attributor]) -> None:
    assert dataclasses.is_dataclass(method)
    made = method()
    for name in [*(field.name for field in dataclasses.fields(made)), "anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 0)


@every_method
def test_overrides_neither_fit_nor_attribute(method: type[Attributor]) -> None:
    assert method.fit is Attributor.fit
    assert method.attribute is Attributor.attribute


@every_method
def test_attribute_before_fit_is_refused(method: type[Attributor]) -> None:
    with pytest.raises(NotFittedError, match=rf"{method.__name__}\(\)\.fit\(runs\)\.attribute"):
        method().attribute()


@every_run_method
def test_fit_returns_a_fitted_copy_and_leaves_self_alone(method: type[Attributor], runs: tuple[Run, ...]) -> None:
    made = quick(method)
    fitted = made.fit(runs)
    assert type(fitted) is method
    assert fitted is not made
    with pytest.raises(NotFittedError):
        made.attribute()


@every_run_method
def test_a_second_fit_does_not_reach_into_the_first(method: type[Attributor], runs: tuple[Run, ...]) -> None:
    first = quick(method).fit(runs[0])
    before = first.attribute().values.copy()
    first.fit(runs[1])
    np.testing.assert_array_equal(first.attribute().values, before)


@every_run_method
def test_fit_and_attribute_leave_runs_and_manifests_untouched(method: type[Attributor], runs: tuple[Run, ...]) -> None:
    before = [(folder_state(run.path), json.dumps(dict(run.manifest))) for run in runs]
    quick(method).fit(runs).attribute()
    assert [(folder_state(run.path), json.dumps(dict(run.manifest))) for run in runs] == before


@every_run_method
def test_refit_gives_the_same_values(method: type[Attributor], runs: tuple[Run, ...], scores: Scores) -> None:
    again = quick(method).fit(runs).attribute()
    np.testing.assert_array_equal(again.values, scores.values)
    assert again.info == scores.info


@every_run_method
def test_scores_are_train_by_query_in_the_order_of_the_ids(
    method: type[Attributor], trace: Trace, scores: Scores
) -> None:
    np.testing.assert_array_equal(scores.train_ids, trace.train_ids)
    np.testing.assert_array_equal(scores.query_ids, trace.explained_ids)
    assert scores.values.shape == (trace.train_ids.size, trace.explained_ids.size)
    assert scores.values.dtype == np.float32
    assert np.isfinite(scores.values).all()
    assert scores.method == quick(method).label
    assert method().label == method.name
    assert trace.train_labels is not None
    np.testing.assert_array_equal(scores.train_labels, trace.train_labels)


@every_run_method
def test_validation_examples_are_left_out_unless_asked_for(fitted: Attributor, scores: Scores, trace: Trace) -> None:
    assert not np.isin(scores.query_ids, trace.validation_ids).any()
    asked = fitted.attribute(trace.validation_ids[:2])
    np.testing.assert_array_equal(asked.query_ids, trace.validation_ids[:2])


@every_run_method
def test_some_queries_are_the_columns_of_all_in_the_order_asked(fitted: Attributor, scores: Scores) -> None:
    asked = scores.query_ids[[7, 2, 11]]
    part = fitted.attribute(asked.tolist())
    np.testing.assert_array_equal(part.query_ids, asked)
    rounding = 1e-5 * np.abs(scores.values).max()
    np.testing.assert_allclose(part.values, scores.values[:, [7, 2, 11]], rtol=1e-5, atol=rounding)
    assert part.query_labels is not None
    assert scores.query_labels is not None
    np.testing.assert_array_equal(part.query_labels, scores.query_labels[[7, 2, 11]])
    np.testing.assert_allclose(
        fitted.attribute(int(asked[0])).values[:, 0], part.values[:, 0], rtol=1e-5, atol=rounding
    )


@every_trace_method
def test_scores_move_with_their_ids_when_training_columns_are_shuffled(method: type[Attributor], trace: Trace) -> None:
    order = np.random.default_rng(3).permutation(trace.train_ids.size)
    straight, shuffled = (method().fit(bare(trace, o)).attribute() for o in (None, order))
    np.testing.assert_array_equal(shuffled.train_ids, trace.train_ids[order])
    back = shuffled.subset(train_ids=trace.train_ids)
    np.testing.assert_allclose(back.values, straight.values, rtol=1e-5, atol=1e-6)


@every_trace_method
def test_a_bare_trace_serves_methods_that_need_no_more(method: type[Attributor], run: Run) -> None:
    from_run, from_trace = method().fit(run).attribute(), method().fit(bare(run.trace)).attribute()
    np.testing.assert_array_equal(from_run.values, from_trace.values)


@every_run_method
def test_runs_of_different_training_sets_are_refused(method: type[Attributor], trace: Trace) -> None:
    other = bare(trace, np.arange(trace.train_ids.size - 1))
    with pytest.raises(InputError, match="same training examples"):
        method().fit([bare(trace), other])


@every_run_method
def test_runs_that_label_the_same_ids_differently_are_refused(method: type[Attributor], trace: Trace) -> None:
    assert trace.train_labels is not None
    relabelled = Trace.from_arrays(
        train_losses=trace.train_losses,
        train_ids=trace.train_ids,
        train_labels=(trace.train_labels + 1) % 10,
        query_losses=trace.query_losses,
        query_ids=trace.query_ids,
    )
    with pytest.raises(InputError, match="different labels"):
        method().fit([bare(trace), relabelled])


@every_run_method
@pytest.mark.parametrize("given", [None, 3, [1, 2], {"a": 1}])
def test_what_is_no_run_is_refused(method: type[Attributor], given: object) -> None:
    with pytest.raises(InputTypeError, match="Expected a Run, a Trace or a sequence"):
        method().fit(given)  # type: ignore[arg-type]


@every_run_method
def test_no_run_at_all_is_refused(method: type[Attributor]) -> None:
    with pytest.raises(InputError, match="at least one run"):
        method().fit([])


@every_run_method
def test_unknown_queries_are_named(fitted: Attributor, trace: Trace) -> None:
    with pytest.raises(InputError, match=r"Unknown query ids .*ExampleSet.*: 99999; 237"):
        fitted.attribute([int(trace.query_ids[0]), 99_999])


@every_run_method
@pytest.mark.parametrize("queries", [[], [1.5], [[1]], ["a"], [True]])
def test_queries_that_are_no_distinct_ids_are_refused(fitted: Attributor, queries: object) -> None:
    with pytest.raises(InputError, match="distinct integer ids"):
        fitted.attribute(queries)  # type: ignore[arg-type]


@every_run_method
def test_a_repeated_query_is_refused(fitted: Attributor, trace: Trace) -> None:
    id_ = int(trace.query_ids[0])
    with pytest.raises(InputError, match="distinct"):
        fitted.attribute([id_, id_])


@every_run_method
def test_scores_save_and_load_whole(scores: Scores, tmp_path: Path) -> None:
    scores.save(tmp_path / "new" / "scores.safetensors")
    loaded = Scores.load(tmp_path / "new" / "scores.safetensors")
    for name in ("values", "train_ids", "query_ids", "train_labels", "query_labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
    assert (loaded.method, loaded.classes) == (scores.method, scores.classes)
    assert dict(loaded.info) == dict(scores.info)


@every_run_method
def test_options_are_json_and_stand_in_the_scores(
    method: type[Attributor], runs: tuple[Run, ...], scores: Scores
) -> None:
    made, info = quick(method), scores.info
    assert json.loads(json.dumps(made.options)) == made.options
    assert json.loads(json.dumps(dict(info))) == dict(info)
    assert {name: info[name] for name in made.options} == made.options
    assert info["runs"] == len(runs)


@pytest.mark.parametrize("allowed", [True, False])
def test_tensorfloat_is_off_while_a_method_works_and_afterwards_as_before(
    allowed: bool, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Looking(TracIn):
        def _fit(self, *arguments: Any) -> Any:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super()._fit(*arguments)

        def _scores(self, *arguments: Any) -> Any:
            seen.append(torch.backends.cudnn.allow_tf32)
            raise ZeroDivisionError

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    with pytest.raises(ZeroDivisionError):
        Looking().fit(runs).attribute()
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_the_docstring_of_every_module_of_methods_opens_with_an_equation() -> None:
    checked = 0
    for entry in pkgutil.iter_modules(comove.attribution.__path__):
        module = importlib.import_module(f"comove.attribution.{entry.name}")
        if any(method.__module__ == module.__name__ for method in METHODS):
            first = (module.__doc__ or "").strip().partition("\n")[0]
            assert re.search(r"\S.* (=|~|<-) \S", first), f"{module.__name__} opens with {first!r}"
            checked += 1
    assert checked >= 3


# --- the sign, where it can be proved -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SignProblem:
    """Logistic regression on two clouds; for each query a twin of it, and a twin with the other label.

    The gradient of the log-loss is (p - e_y) x. For the twin it is the query's own; with two classes p - e_y and
    p - e_{1-y} point opposite ways, so the mislabelled twin's is a negative multiple of it: a step (or any positive
    definite preconditioning of it) on the twin lowers the query's loss, one on the mislabelled twin raises it.
    """

    run: Run
    twins: tuple[tuple[int, int, int], ...]  # query id, helping id, hurting id


@pytest.fixture(scope="module")
def sign_problem(tmp_path_factory: pytest.TempPathFactory) -> SignProblem:
    generator = torch.Generator().manual_seed(5)
    n, features = 60, 5
    labels = np.arange(n) % 2
    inputs = torch.randn(n, features, generator=generator) + 1.5 * torch.from_numpy(2.0 * labels - 1).float()[:, None]
    ids = 1000 - 7 * np.arange(n)  # neither sorted nor positions
    queries, rest = slice(0, 4), slice(4, n - 8)
    helping, hurting = np.arange(n - 8, n - 4), np.arange(n - 4, n)
    inputs[helping] = inputs[hurting] = inputs[queries].clone()
    labels[helping], labels[hurting] = labels[queries], 1 - labels[queries]
    train_rows = np.concatenate([hurting, np.arange(n)[rest], helping])

    def part(rows: Ids | slice) -> ExampleSet:
        return ExampleSet.from_arrays(inputs[rows], labels[rows], ids=ids[rows], classes=["left", "right"])

    splits = Splits(part(train_rows), None, part(queries))
    recipe = Recipe(epochs=12, batch_size=16, lr=0.05, momentum=0.0)
    folder = tmp_path_factory.mktemp("sign") / "run"
    run = train(splits, "mlp", recipe, 0, folder, model_options={"hidden": []})
    triples = zip(ids[queries].tolist(), ids[helping].tolist(), ids[hurting].tolist(), strict=True)
    return SignProblem(run, tuple(triples))


def test_the_sign_problem_is_what_it_claims(sign_problem: SignProblem) -> None:
    trace, model = sign_problem.run.trace, sign_problem.run.load_model()
    assert [tuple(p.shape) for p in model.parameters()] == [(2, 5), (2,)]
    for query, helping, hurting in sign_problem.twins:
        own = trace.query_losses[:, trace.query_ids == query][:, 0]
        twin, enemy = (trace.train_losses[:, trace.train_ids == id_][:, 0] for id_ in (helping, hurting))
        np.testing.assert_allclose(twin, own, atol=1e-6)
        np.testing.assert_allclose(np.exp(-enemy) + np.exp(-own), 1, atol=1e-5)


@every_signed_method
def test_what_provably_helps_scores_above_what_provably_hurts(
    method: type[Attributor], sign_problem: SignProblem
) -> None:
    scores = method().fit(sign_problem.run).attribute()
    for query, helping, hurting in sign_problem.twins:
        helps, hurts = scores.subset(train_ids=[helping, hurting], query_ids=[query]).values[:, 0]
        assert helps > hurts
        assert helps > 0
        assert hurts <= 0
