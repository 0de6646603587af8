"""PerClass: any selector, class by class; and how greedy picks of several classes are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from comove.coreset import Picks, Selector, select, selector
from comove.coreset.base import Positions
from comove.coreset.ccs import CCS
from comove.coreset.cld import CLDCoreset
from comove.coreset.el2n import EL2N
from comove.coreset.grand import GraNd
from comove.coreset.per_class import PerClass
from comove.coreset.random import RandomCoreset
from comove.errors import InputError, InputTypeError
from comove.ties import tie_order
from comove.trace import Trace
from comove.training import Run
from comove.training.sources import Source

LABELS = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]


@dataclass(frozen=True)
class Descending(Selector):
    """Greedy: picks the greatest position first; the score is how many were picked before, per candidate."""

    name: ClassVar[str] = "descending"
    summary: ClassVar[str] = "the last first"
    greedy: ClassVar[bool] = True
    one_run: ClassVar[bool] = True

    def _prepare(self, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
        return sources[0].trace.train_ids.astype(np.float32)

    def _pick(self, prepared: npt.NDArray[np.float32], candidates: Positions, k: int) -> Picks:
        kept = candidates[::-1][:k]
        note = {"candidates": int(candidates.size), "same": 5}
        return Picks(kept, np.arange(k, dtype=np.float32), prepared[kept], note)


@pytest.fixture
def ten(recorded: Callable[..., Trace]) -> Trace:
    return recorded(el2n=np.random.default_rng(0).random((12, 10)), labels=LABELS, ids=np.arange(10) * 3)


def test_scores_are_those_of_the_selector_and_each_class_keeps_its_highest(ten: Trace) -> None:
    scores = EL2N().scores(ten)
    coreset = PerClass("el2n").select(ten, 4)
    expected = []
    for label, k in ((0, 2), (1, 1), (2, 1)):  # coresets.md section 0: counts (5, 3, 2), k = 4 -> (2, 1, 1)
        own = [position for position in range(10) if LABELS[position] == label]
        expected += sorted(own, key=lambda position: -scores[position])[:k]
    assert sorted(coreset.ids.tolist()) == sorted(3 * position for position in expected)
    assert coreset.scores.tolist() == sorted(scores[expected].tolist(), reverse=True)
    assert coreset.per_class == {0: 2, 1: 1, 2: 1}


def test_class_budgets_are_possible_for_methods_that_have_none(ten: Trace) -> None:
    assert PerClass("el2n").select(ten, {1: 3, 2: 1}).per_class == {1: 3, 2: 1}
    with pytest.raises(InputError, match="the budget of class 2 is 3, but it holds 2".capitalize()):
        PerClass("el2n").select(ten, {2: 3})


def test_a_method_that_is_class_balanced_stays_as_it_is(run: Run) -> None:
    plain, wrapped = CLDCoreset().select(run, 37), PerClass(CLDCoreset()).select(run, 37)
    np.testing.assert_array_equal(plain.ids, wrapped.ids)
    np.testing.assert_array_equal(plain.scores, wrapped.scores)


def test_greedy_classes_are_merged_at_an_even_pace(ten: Trace) -> None:
    coreset = PerClass(Descending()).select(ten, {0: 4, 1: 2, 2: 1})
    # paces: class 0 at 1/4, 2/4, 3/4, 1; class 1 at 1/2, 1; class 2 at 1; ties by the hash of the id
    half, end = np.array([9, 21]), np.array([3, 18, 27])
    assert coreset.ids.tolist() == [12, *half[tie_order(half)], 6, *end[tie_order(end)]]
    assert coreset.weights.tolist() == coreset.ids.tolist()
    picked = {12: 0, 9: 1, 6: 2, 3: 3, 21: 0, 18: 1, 27: 0}
    assert coreset.scores.tolist() == [picked[id_] for id_ in coreset.ids.tolist()]


@pytest.mark.parametrize("k", [3, 7, 10])
def test_every_prefix_of_merged_greedy_picks_is_as_balanced_as_can_be(k: int, ten: Trace) -> None:
    coreset = PerClass(Descending()).select(ten, k)
    quotas = coreset.per_class
    assert coreset.labels is not None
    for size in range(1, k + 1):
        counts = {label: int((coreset.labels[:size] == label).sum()) for label in quotas}
        reached = max(counts[label] / quotas[label] for label in quotas)
        # no class is further ahead than the class just served: one more pick would overtake it, or draw level
        assert all((counts[label] + 1) / quotas[label] >= reached for label in quotas)


def test_greedy_picks_of_all_examples_at_once_keep_their_order(ten: Trace) -> None:
    assert Descending().select(ten, 3).ids.tolist() == [27, 24, 21]


def test_what_classes_noted_stands_once_or_by_class(ten: Trace) -> None:
    info = PerClass(Descending()).select(ten, {0: 1, 2: 1}).info
    assert info["same"] == 5
    assert info["candidates"] == {"0": 5, "2": 2}
    assert Descending().select(ten, 3).info["candidates"] == 10


def test_it_takes_on_what_the_selector_within_needs(run: Run, runs: tuple[Run, ...]) -> None:
    assert PerClass("random").requires == {"trace"}
    assert PerClass(GraNd(gradient="full")).requires == {"trace", "checkpoints"}
    with pytest.raises(InputError, match="per_class needs checkpoints"):
        PerClass(GraNd(gradient="full")).select(run.trace, 10)
    assert not PerClass("random").greedy
    assert PerClass(Descending()).greedy
    with pytest.raises(InputError, match="per_class is defined for one run, got 2"):
        PerClass(Descending()).select(runs, 10)


def test_it_is_named_after_the_selector_within(ten: Trace) -> None:
    assert PerClass().label == "per_class(random)"
    assert PerClass(EL2N(first=5)).label == str(PerClass("el2n:first=5")) == "per_class(el2n(first=5))"
    coreset = select("per_class", ten, 4, selector="el2n:first=5")
    assert coreset.method == "per_class(el2n(first=5))"
    assert coreset.info["selector"] == "el2n(first=5)"


def test_names_and_selectors_are_the_same_thing() -> None:
    assert PerClass() == PerClass("random") == PerClass(RandomCoreset()) == selector("per_class")
    assert PerClass("random:seed=4") == PerClass(RandomCoreset(4)) != PerClass()


def test_seeds_are_raised_within_too(ten: Trace) -> None:
    for made, raised in (
        (RandomCoreset(2), RandomCoreset(5)),
        (PerClass("random:seed=2"), PerClass("random:seed=5")),
        (PerClass("dual"), PerClass("dual:seed=3")),
        (CCS(score="random", seed=1), CCS(score="random:seed=3", seed=4)),
    ):
        assert made.seeded
        assert made.reseeded(3) == raised
        assert made.reseeded(0) == made
    for fixed in (EL2N(), PerClass("el2n")):
        assert not fixed.seeded
        assert fixed.reseeded(3) == fixed


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("el2m", InputError, r"Unknown coreset method 'el2m'\. Did you mean 'el2n'"),
        ("el2n:frist=3", InputError, r"'el2n' has no option 'frist'\. Did you mean 'first'"),
        (3, InputTypeError, "per_class: selector must be a coreset method or its name, got 3"),
        (EL2N, InputTypeError, "must be a coreset method or its name"),
    ],
)
def test_what_is_no_selector_is_refused_when_built(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PerClass(given)
