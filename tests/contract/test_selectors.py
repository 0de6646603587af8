"""What every coreset method must do; methods are discovered, so a new file under coreset/ is checked too."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

import comove.coreset
from comove.coreset import Coreset, ScoreSelector, Selector, select, selector, selectors
from comove.coreset.per_class import PerClass
from comove.data import Ids, Splits
from comove.errors import InputError, NonFiniteError
from comove.store import digest, new_folder, read_arrays, write_manifest
from comove.ties import tie_keys, tie_order
from comove.trace import Trace
from comove.trace.trace import FORMAT_VERSION, anchor_file, row_file, write_anchor, write_examples, write_row
from comove.training import Recipe, Recording, Run, train
from comove.training.sources import Source

METHODS = list(selectors().values())
BALANCED = [method for method in METHODS if method.balanced]
UNBALANCED = [method for method in METHODS if not method.balanced]
SCORING = [method for method in METHODS if issubclass(method, ScoreSelector)]
FROM_TRACES = [method for method in METHODS if method.requires == {"trace"}]
EPOCHS = 30
NAMES = """
cld random herding forgetting aum ccs cal el2n grand moderate d2 craig glister graphcut boundaryset_ccs slocurv tdds
dyn_unc dual per_class
"""
BUDGETS = [1, 2, 37, 200, 0.1, 0.305, 1.0]
SIZES = [
    pytest.param(method, budget, id=f"{method.name}-{budget}")
    for method in METHODS
    for budget in (BUDGETS if method in FROM_TRACES else (37, 1.0))  # what reads weights takes seconds each time
]


def each(methods: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def shares(counts: list[int], total: int) -> list[int]:
    """Largest remainder in exact fractions, ties by the hash of the class."""
    quotas = [Fraction(count * total, sum(counts)) for count in counts]
    floors = [int(quota) for quota in quotas]
    keys = tie_keys(np.arange(len(counts))).tolist()
    order = sorted(range(len(counts)), key=lambda c: (floors[c] - quotas[c], keys[c]))
    for c in order[: total - sum(floors)]:
        floors[c] += 1
    return floors


@pytest.fixture(scope="module")
def runs(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    """Two runs that recorded everything any method reads."""
    folder = tmp_path_factory.mktemp("recorded")
    recipe, recording = Recipe(epochs=EPOCHS, batch_size=32, lr=0.05), Recording(anchors=(10, -1))
    return tuple(train(small_digits, "mlp", recipe, seed, folder / str(seed), recording=recording) for seed in range(2))


@pytest.fixture(scope="module")
def run(runs: tuple[Run, ...]) -> Run:
    return runs[0]


@pytest.fixture(scope="module")
def trace(run: Run) -> Trace:
    return run.trace


@pytest.fixture(scope="module")
def coresets(runs: tuple[Run, ...]) -> Callable[..., Coreset]:
    """``coresets(method, budget)``: what a method keeps of the first run, selected once for all tests that read it."""
    return cache(lambda method, budget: method().select(runs[0], budget))


def rewritten(trace: Trace, order: Ids, folder: Path, *, labels: bool = True) -> Trace:
    """The trace on disk with its training examples in another order, or only some of them."""
    assert trace.path is not None

    def moved(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {name: values[order] if name.startswith("train") else values for name, values in arrays.items()}

    for part in ("rows", "anchors"):
        new_folder(folder / part)
    kept = {name: values for name, values in trace.examples.items() if labels or not name.endswith("labels")}
    manifest = {"mode": trace.mode, "rows": len(trace.rows), "id": "another"}
    write_examples(folder, moved(kept), manifest)
    for row in trace.rows:
        if row.anchor:
            write_anchor(folder, row.index, moved(read_arrays(anchor_file(trace.path, row.index))), manifest)
        write_row(folder, row, moved(read_arrays(row_file(trace.path, row.index))), manifest)
    write_manifest(folder, "trace", FORMAT_VERSION, manifest)
    return Trace.load(folder)


def losses_only(trace: Trace) -> Trace:
    losses = {"train_losses": trace.train_losses, "query_losses": trace.query_losses}
    return Trace.from_arrays(**losses, **trace.examples)


def as_many(method: type[Selector], runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """The runs, as many as the method is defined for."""
    return runs[:1] if method.one_run else runs


def class_counts(trace: Trace) -> list[int]:
    assert trace.train_labels is not None
    return [int(count) for count in np.bincount(trace.train_labels)]


def test_every_method_of_the_paper_is_discovered() -> None:
    assert set(NAMES.split()) <= set(selectors())
    assert BALANCED
    assert UNBALANCED
    assert len(SCORING) > 5


@each(METHODS)
def test_builds_with_no_arguments_and_by_name(method: type[Selector]) -> None:
    assert method() == selector(method.name)


@each(METHODS)
def test_says_what_it_is_and_what_it_reads(method: type[Selector]) -> None:
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", method.name)
    for line in (method.summary, method.cost):
        assert line
        assert "\n" not in line
    assert isinstance(method.requires, frozenset)
    assert method.requires
    assert method.requires <= {"trace", "checkpoints", "bank"}
    assert all(isinstance(value, bool) for value in (method.balanced, method.greedy, method.one_run))
    assert inspect.getdoc(method)
    assert method.select is Selector.select


@each(METHODS)
def test_is_frozen(method: type[Selector]) -> None:
    made = method()
    for name in [*(field.name for field in dataclasses.fields(made)), "anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 0)


@pytest.mark.filterwarnings("ignore:.* keeps none of")
@pytest.mark.parametrize(("method", "budget"), SIZES)
def test_the_coreset_has_exactly_the_size_asked_for_from_the_candidates(
    method: type[Selector], budget: float, runs: tuple[Run, ...]
) -> None:
    trace = runs[0].trace
    coreset = method().select(as_many(method, runs), budget)
    assert len(coreset) == (budget if isinstance(budget, int) else round(budget * trace.train_ids.size))
    assert np.unique(coreset.ids).size == len(coreset)
    assert np.isin(coreset.ids, trace.train_ids).all()
    assert coreset.n_candidates == trace.train_ids.size
    assert coreset.scores.dtype == coreset.weights.dtype == np.float32


@each(METHODS)
def test_labels_are_those_of_the_chosen_ids(
    method: type[Selector], trace: Trace, coresets: Callable[..., Coreset]
) -> None:
    coreset = coresets(method, 60)
    assert trace.train_labels is not None
    truth = dict(zip(trace.train_ids.tolist(), trace.train_labels.tolist(), strict=True))
    assert coreset.labels is not None
    assert coreset.labels.tolist() == [truth[id_] for id_ in coreset.ids.tolist()]
    assert sum(coreset.per_class.values()) == 60


@each(METHODS)
def test_the_same_call_gives_the_same_coreset(method: type[Selector], runs: tuple[Run, ...]) -> None:
    given = as_many(method, runs)
    first, second = (method().select(given, 0.2) for _ in range(2))
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.scores, second.scores)
    by_name = select(method.name, given, budget=0.2)
    np.testing.assert_array_equal(by_name.ids, first.ids)
    np.testing.assert_array_equal(select(method(), given, 0.2).ids, first.ids)


@each([method for method in METHODS if method.one_run])
def test_several_runs_are_refused_where_no_average_is_defined(method: type[Selector], runs: tuple[Run, ...]) -> None:
    with pytest.raises(InputError, match=f"{method.name} is defined for one run, got 2"):
        method().select(runs, 10)


@each(METHODS)
def test_selecting_leaves_runs_and_budgets_untouched(method: type[Selector], run: Run) -> None:
    files = {file: (digest(file.read_bytes().hex()), file.stat().st_mtime_ns) for file in files_of(run.path)}
    if method.balanced:
        budget = {0: 3, 4: 2}
        method().select(run, budget)
        assert budget == {0: 3, 4: 2}
    else:
        method().select(run, 20)
    assert files == {file: (digest(file.read_bytes().hex()), file.stat().st_mtime_ns) for file in files_of(run.path)}


@each(METHODS)
def test_what_losses_alone_do_not_allow_is_told_with_what_to_record(method: type[Selector], trace: Trace) -> None:
    try:
        coreset = method().select(losses_only(trace), 20)
    except InputError as error:
        assert re.search(r"Recording\((fields|anchors)=|checkpoints=", str(error)), error  # noqa: PT017
        assert re.match(r"[a-z0-9_]+ needs ", str(error)), error  # noqa: PT017
    else:
        assert len(coreset) == 20
        assert method.requires == {"trace"}


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.filterwarnings("ignore:.* keeps none of")
@each(BALANCED)
@pytest.mark.parametrize("total", [1, 7, 33, 60, 199])
def test_a_total_is_shared_among_classes_by_largest_remainder(method: type[Selector], total: int, run: Run) -> None:
    expected = shares(class_counts(run.trace), total)
    found = method().select(run, total).per_class
    assert [found.get(label, 0) for label in range(10)] == expected


@each(BALANCED)
def test_class_budgets_are_kept_as_a_sequence_an_array_or_a_mapping(method: type[Selector], run: Run) -> None:
    asked = [3, 0, 1, 2, 0, 5, 1, 1, 1, 4]
    expected = {label: count for label, count in enumerate(asked) if count}
    for budget in (asked, tuple(asked), np.array(asked), dict(enumerate(asked)), expected):
        assert method().select(run, budget).per_class == expected  # type: ignore[arg-type]


@each([method for method in BALANCED if method in FROM_TRACES])
def test_training_labels_are_required_by_name(method: type[Selector], trace: Trace, tmp_path: Path) -> None:
    unlabelled = rewritten(trace, np.arange(200), tmp_path / "trace", labels=False)
    with pytest.raises(InputError, match=f"{method.name}.*training labels"):
        method().select(unlabelled, 10)


@each(METHODS)
def test_any_method_picks_class_by_class_within_per_class(method: type[Selector], run: Run) -> None:
    asked = {0: 3, 3: 1, 5: 7, 9: class_counts(run.trace)[9]}
    coreset = PerClass(method()).select(run, asked)
    assert coreset.per_class == asked
    assert np.unique(coreset.ids).size == len(coreset)


@each([method for method in METHODS if method.greedy])
def test_greedy_smaller_budgets_are_prefixes_of_larger_ones(method: type[Selector], run: Run) -> None:
    small, large = (method().select(run, {4: k} if method.balanced else k).ids for k in (4, 12))
    np.testing.assert_array_equal(small, large[:4])


@each([method for method in METHODS if not method.greedy])
def test_other_coresets_are_sorted_by_score_and_ties_by_the_hash_of_the_id(
    method: type[Selector], coresets: Callable[..., Coreset]
) -> None:
    coreset = coresets(method, 60)
    keys = list(zip((-coreset.scores).tolist(), tie_keys(coreset.ids).tolist(), strict=True))
    assert keys == sorted(keys)


@each(UNBALANCED)
def test_class_budgets_are_refused_where_classes_do_not_matter(method: type[Selector], run: Run) -> None:
    with pytest.raises(InputError, match="does not pick class by class"):
        method().select(run, {0: 3})


@each(SCORING)
def test_what_is_kept_scores_at_least_as_high_as_what_is_left(
    method: type[ScoreSelector], run: Run, coresets: Callable[..., Coreset]
) -> None:
    made, trace = method(), run.trace
    assert trace.train_labels is not None
    scores, coreset = made.scores(run), coresets(method, 60)
    assert scores.shape == trace.train_ids.shape
    kept = np.isin(trace.train_ids, coreset.ids)
    groups = [trace.train_labels == label for label in range(10)] if method.balanced else [np.ones(200, bool)]
    for group in groups:
        if (group & kept).any() and (group & ~kept).any():
            assert scores[group & kept].min() >= scores[group & ~kept].max()
    by_id = dict(zip(trace.train_ids.tolist(), scores.tolist(), strict=True))
    assert coreset.scores.tolist() == [by_id[id_] for id_ in coreset.ids.tolist()]


@each(FROM_TRACES)
def test_the_choice_moves_with_the_ids_when_training_columns_are_shuffled(
    method: type[Selector], trace: Trace, tmp_path: Path
) -> None:
    order = np.random.default_rng(8).permutation(200)
    found = [method().select(given, 45) for given in (trace, rewritten(trace, order, tmp_path / "trace"))]
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)


@each(METHODS)
@pytest.mark.parametrize("suffix", [".safetensors", ".csv"])
def test_a_coreset_saves_and_loads(
    method: type[Selector], suffix: str, tmp_path: Path, coresets: Callable[..., Coreset]
) -> None:
    coreset = coresets(method, 60)
    file = tmp_path / "new" / f"{coreset.method}{suffix}"
    coreset.save(file)
    loaded = Coreset.load(file)
    for name in ("ids", "scores", "weights", "labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(coreset, name))
        assert getattr(loaded, name).dtype == getattr(coreset, name).dtype
    assert loaded.method == coreset.method
    assert loaded.per_class == coreset.per_class
    if suffix == ".safetensors":
        assert (loaded.n_candidates, loaded.classes) == (coreset.n_candidates, coreset.classes)
        assert dict(loaded.info) == dict(coreset.info)


@each(METHODS)
def test_options_are_json_and_stand_in_the_coreset(method: type[Selector], runs: tuple[Run, ...]) -> None:
    made = method()
    given = as_many(method, runs)
    info = dict(made.select(given, 10).info)
    assert json.loads(json.dumps(info)) == info
    assert {field.name for field in dataclasses.fields(made)} <= set(info)
    assert set(made.options) == {field.name for field in dataclasses.fields(made)}
    assert info["runs"] == len(given)


@each(METHODS)
def test_runs_of_different_training_sets_are_refused(method: type[Selector], trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same training examples"):
        method().select([trace, rewritten(trace, np.arange(199), tmp_path / "trace")], 10)


def test_the_docstring_of_every_module_of_methods_opens_with_an_equation() -> None:
    checked = 0
    for entry in pkgutil.iter_modules(comove.coreset.__path__):
        module = importlib.import_module(f"comove.coreset.{entry.name}")
        if any(method.__module__ == module.__name__ for method in METHODS):
            first = (module.__doc__ or "").strip().partition("\n")[0]
            assert re.search(r"\S.* (=|~|<-) \S", first), f"{module.__name__} opens with {first!r}"
            checked += 1
    assert checked >= 10


# --- the template, with scores given ------------------------------------------------------------------------------

GIVEN = {10: 1.0, 7: 3.0, 9: 3.0, 3: 2.0, 8: 3.0, 1: 2.0}  # id: score
GIVEN_LABELS = [0, 0, 0, 1, 1, 1]


@dataclasses.dataclass(frozen=True)
class Given(ScoreSelector):
    """Scores by id."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "scores given"
    cost: ClassVar[str] = "nothing"

    broken: int | None = None

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        ids = sources[0].trace.train_ids.tolist()
        return np.array([np.nan if id_ == self.broken else GIVEN[id_] for id_ in ids], np.float32)


@dataclasses.dataclass(frozen=True)
class GivenBalanced(Given):
    """The same, class by class."""

    balanced: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Counting(Given):
    """Counts how often its scores are computed."""

    prepared: ClassVar[int] = 0

    def _scores(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        type(self).prepared += 1
        return super()._scores(sources)


@pytest.fixture
def six() -> Trace:
    losses = np.random.default_rng(0).random((4, 6))
    return Trace.from_arrays(train_losses=losses, query_losses=losses, train_ids=list(GIVEN), train_labels=GIVEN_LABELS)


def test_ties_go_by_the_hash_of_the_id_not_the_earlier_position_nor_the_lower_id(six: Trace) -> None:
    three, two = np.array([7, 8, 9]), np.array([1, 3])
    threes, twos = three[tie_order(three)].tolist(), two[tie_order(two)].tolist()
    assert Given().select(six, 2).ids.tolist() == threes[:2]
    assert Given().select(six, 5).ids.tolist() == [*threes, *twos]
    first = next(id_ for id_ in threes if id_ != 8)  # of class 0
    assert set(GivenBalanced().select(six, [1, 2]).ids.tolist()) == {first, 8, twos[0]}
    assert GivenBalanced().select(six, {1: 1}).ids.tolist() == [8]


def test_a_nan_score_is_an_error_that_names_the_id(six: Trace) -> None:
    with pytest.raises(NonFiniteError, match=r"given: 1 scores are NaN or infinite, the first of id 3\."):
        Given(broken=3).select(six, 2)


def test_the_label_shows_options_that_are_no_defaults(six: Trace) -> None:
    assert Given().select(six, 2).method == "given"
    assert Given(broken=77).select(six, 2).method == "given(broken=77)"


# --- ties and classes --------------------------------------------------------------------------------------------

LEVEL: dict[str, dict[str, Any]] = {"dual": {"sampling": "none"}, "dyn_unc": {}, "ccs": {"beta": 0.2}}
"""Options with which a method can choose among examples that are all alike."""


@pytest.fixture(scope="module")
def alike(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The trace with every training example like the first, ten classes of 20; and it in other orders and with ids
    dealt out otherwise: ``by class`` (ids 0 ... 199 run class by class), ``shuffled`` (the same in other positions)."""
    assert trace.path is not None

    def level(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {
            name: np.ascontiguousarray(np.broadcast_to(values[:1], values.shape))
            if name.startswith("train.")
            else values
            for name, values in arrays.items()
        }

    assert trace.train_ids.size == 200
    made = {}
    for name, order in {"by class": np.arange(200), "shuffled": np.random.default_rng(5).permutation(200)}.items():
        folder = tmp_path_factory.mktemp("alike")
        for part in ("rows", "anchors"):
            new_folder(folder / part)
        examples = {name: values for name, values in trace.examples.items() if not name.startswith("train")}
        examples |= {"train_ids": order, "train_labels": order // 20}
        manifest = {"mode": trace.mode, "rows": len(trace.rows), "id": name}
        write_examples(folder, examples, manifest)
        for row in trace.rows:
            if row.anchor:
                write_anchor(folder, row.index, level(read_arrays(anchor_file(trace.path, row.index))), manifest)
            write_row(folder, row, level(read_arrays(row_file(trace.path, row.index))), manifest)
        write_manifest(folder, "trace", FORMAT_VERSION, manifest)
        made[name] = Trace.load(folder)
    return made


@each(FROM_TRACES)
def test_among_examples_that_are_all_alike_no_class_is_favoured_by_its_ids(
    method: type[Selector], alike: dict[str, Trace]
) -> None:
    chosen = method(**LEVEL.get(method.name, {})).select(alike["by class"], 60)
    again = method(**LEVEL.get(method.name, {})).select(alike["shuffled"], 60)
    assert again.ids.tolist() == chosen.ids.tolist()
    kept = np.bincount(chosen.ids // 20, minlength=10)
    if method.balanced:
        assert kept.tolist() == [6] * 10
        within = np.concatenate([chosen.ids[chosen.labels == label] % 20 for label in range(10)])
        assert abs(within.mean() - 9.5) < 3 * np.sqrt(33.25 / 60)  # not the first six of each class: 2.5
    elif method.name not in ("glister", "grand"):  # whose gradients hold the label, so that examples differ by class
        assert kept.max() <= 13  # of a draw of 60 out of 200: mean 6, deviation 2
        assert (kept > 0).sum() >= 9


def test_coresets_of_several_sizes_are_those_of_each_size_alone_and_share_what_is_computed_once(six: Trace) -> None:
    asked: list[Any] = [2, 0.5, 6]
    found = Given().select_each(six, asked)
    for coreset, budget in zip(found, asked, strict=True):
        alone = Given().select(six, budget)
        assert coreset.ids.tolist() == alone.ids.tolist()
        assert coreset.info == alone.info
    Counting.prepared = 0
    assert [len(coreset) for coreset in Counting().select_each(six, asked)] == [2, 3, 6]
    assert Counting.prepared == 1
    with pytest.raises(InputError, match="A budget must be from 1 to the 6 training examples, got 7"):
        Counting().select_each(six, [2, 7])
    assert Counting.prepared == 1  # sizes are checked before anything is computed


def test_a_name_can_hold_options_also_those_of_a_method_within(six: Trace) -> None:
    assert selector("ccs:score=(el2n:first=5):beta=0.1") == selector("ccs", score="el2n:first=5", beta=0.1)
    assert selector("random:seed=3", seed=4) == selector("random", seed=4)
    assert select("random:seed=3", six, 2).ids.tolist() == select("random", six, 2, seed=3).ids.tolist()


@each(BALANCED)
def test_classes_that_a_total_leaves_out_are_said(method: type[Selector], run: Run) -> None:
    with pytest.warns(UserWarning, match=r"a budget of 4 .* keeps none of 6 of 10 classes"):
        coreset = method().select(run, 4)
    left_out = coreset.info["classes_left_out"]
    assert sorted([*left_out, *coreset.per_class]) == list(range(10))
    assert "classes_left_out" not in method().select(run, 199).info
    asked = {0: 2, 3: 1, 5: 0}  # a number for each class is the user's own word
    assert "classes_left_out" not in method().select(run, asked).info


def test_a_long_tail_of_one_example_each_does_not_keep_the_lower_classes() -> None:
    losses = np.random.default_rng(0).random((4, 300))
    trace = Trace.from_arrays(train_losses=losses, query_losses=losses[:, :1], train_labels=np.arange(300))
    with pytest.warns(UserWarning, match="keeps none of 270 of 300 classes"):
        kept = select("per_class", trace, 30).labels
    assert kept is not None
    assert abs(kept.mean() - 149.5) < 3 * 86.6 / np.sqrt(30)
