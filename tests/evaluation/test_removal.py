"""What is removed: the highest scores, or what controls draw; and that equal removed sets are retrained once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from comove.attribution import Scores
from comove.attribution.scores import named_scores
from comove.data import ExampleSet, Ids, Splits
from comove.errors import CorruptFileError, InputError, InputTypeError
from comove.evaluation.prediction_brittleness import models as removal_models
from comove.evaluation.prediction_brittleness.models import BankRetraining, FullData
from comove.evaluation.prediction_brittleness.removal import Removal, plan_removal
from comove.ties import tie_order

N, Q = 30, 6


def splits_of(ids: Ids) -> Splits:
    """30 training examples whose class is id % 3, and 6 queries 900 ... 905 of classes 0 1 2 0 1 2."""
    train = ExampleSet.from_arrays(np.zeros((N, 2), np.float32), ids % 3, ids=ids, classes=list("abc"))
    queries = np.arange(900, 900 + Q)
    query = ExampleSet.from_arrays(np.zeros((Q, 2), np.float32), queries % 3, ids=queries, classes=list("abc"))
    return Splits(train, None, query)


IDS = np.arange(100, 100 + N)
SPLITS = splits_of(IDS)


def scores_of(values: object, name: str = "m", ids: Ids = IDS) -> Scores:
    return Scores(np.asarray(values, np.float32), ids, np.arange(900, 900 + Q), name)


def planned(*scores: Scores, k: int = 12, splits: Splits = SPLITS, **changes: Any) -> Removal:
    options: dict[str, Any] = {"queries": None, "controls": True, "seed": 0, **changes}
    return plan_removal(named_scores(scores), splits, k, **options)


RANDOM = np.random.default_rng(0).normal(size=(N, Q))


# --- methods ----------------------------------------------------------------------------------------------------------


def test_a_method_removes_what_its_scores_rank_first() -> None:
    found = planned(scores_of(RANDOM))
    assert found.names == ("m", "random removal", "same-class removal")
    assert found.controls == ("random removal", "same-class removal")
    for q in range(Q):
        assert found.orders[0, q].tolist() == scores_of(RANDOM).top(12, query=900 + q).ids.tolist()


def test_ties_go_by_the_hash_of_the_id_whatever_the_order_of_the_examples() -> None:
    order = np.random.default_rng(1).permutation(N)
    tied = (np.arange(N) >= 20).astype(float)[:, None].repeat(Q, 1)
    plain, shuffled = (
        planned(scores_of(tied)),
        planned(scores_of(tied[order], ids=IDS[order]), splits=splits_of(IDS[order])),
    )
    first, rest = np.arange(120, 130), np.arange(100, 120)
    assert plain.orders[0, 0].tolist() == [*first[tie_order(first)], *rest[tie_order(rest)][:2]]
    np.testing.assert_array_equal(plain.orders, shuffled.orders)
    np.testing.assert_array_equal(plain.in_class, shuffled.in_class)


def test_queries_may_be_some_of_those_scored_in_any_order() -> None:
    whole, some = planned(scores_of(RANDOM)), planned(scores_of(RANDOM), queries=[904, 901])
    np.testing.assert_array_equal(some.orders, whole.orders[:, [4, 1]])
    assert some.query_labels.tolist() == [904 % 3, 901 % 3]


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_are_the_same_beside_any_methods_queries_and_k() -> None:
    one = planned(scores_of(RANDOM))
    other = planned(scores_of(-RANDOM, "a"), scores_of(RANDOM, "b"), k=5, queries=[903])
    np.testing.assert_array_equal(one.orders[-2:, 3, :5], other.orders[-2:, 0])


def test_a_control_never_removes_an_example_twice_and_queries_and_seeds_differ() -> None:
    found = planned(scores_of(RANDOM), k=N - 2)
    for order in found.orders.reshape(-1, N - 2):
        assert np.unique(order).size == N - 2
    assert (found.orders[1, 0] != found.orders[1, 1]).any()
    assert (found.orders[1, 0] != planned(scores_of(RANDOM), k=N - 2, seed=1).orders[1, 0]).any()


def test_same_class_removal_takes_the_whole_class_before_any_other() -> None:
    found = planned(scores_of(RANDOM), k=15)
    for q, label in enumerate(found.query_labels):
        assert (found.orders[2, q, :10] % 3 == label).all()
        assert (found.orders[2, q, 10:] % 3 != label).all()
        assert found.in_class[2, q].tolist() == [*range(1, 11), 10, 10, 10, 10, 10]


def test_random_removal_takes_every_example_equally_often() -> None:
    firsts = np.array([planned(scores_of(RANDOM), k=3, seed=s).orders[1, 0] for s in range(600)])
    counts = np.unique(firsts, return_counts=True)[1]
    assert counts.size == N
    assert ((counts - 60.0) ** 2 / 60.0).sum() < 60  # chi-square, 29 degrees: beyond the 99.9th percentile


def test_a_class_is_emptied_when_as_many_of_it_are_removed_as_there_are() -> None:
    found = planned(scores_of(RANDOM), k=15)
    assert not found.empties_class(9).any()
    assert found.empties_class(10)[2].all()
    assert not found.empties_class(10)[1].any()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, N - 1, N])
def test_at_least_two_examples_must_stay(k: int) -> None:
    with pytest.raises(InputError, match=f"k must be from 1 to N - 2 = 28.*got {k}"):
        planned(scores_of(RANDOM), k=k)


def test_scores_of_other_examples_or_queries_are_refused() -> None:
    with pytest.raises(InputError, match="m: scores of 29 examples, but 30 are trained on"):
        planned(scores_of(RANDOM).subset(train_ids=IDS[1:]))
    with pytest.raises(InputError, match="Unknown train ids"):
        planned(scores_of(RANDOM, ids=IDS + 1))
    with pytest.raises(InputError, match="Unknown ids"):
        planned(scores_of(RANDOM), queries=[7])
    with pytest.raises(InputError, match="Unknown query ids: 901"):
        planned(scores_of(RANDOM), scores_of(RANDOM, "b").subset(query_ids=[900]), queries=[900, 901])
    with pytest.raises(InputError, match="At least one query"):
        planned(scores_of(RANDOM), queries=[])


def test_scores_need_names_of_their_own() -> None:
    a, b = scores_of(RANDOM), scores_of(-RANDOM)
    assert list(named_scores({"x": a, "y": b})) == ["x", "y"]
    assert list(named_scores(a)) == ["m"]
    with pytest.raises(InputError, match=r"names of their own.*got m, m"):
        named_scores([a, b])
    with pytest.raises(InputError, match="other names than random removal and same-class removal, got random removal"):
        planned(scores_of(RANDOM, "random removal"))
    with pytest.raises(InputError, match="got none"):
        named_scores([])
    with pytest.raises(InputTypeError, match="got ndarray"):
        named_scores([a, RANDOM])  # type: ignore[list-item]


# --- retraining -------------------------------------------------------------------------------------------------------


class FakeBank:
    """Logits (C, R, Q, 2) that tell which subset, model and query they are of."""

    def __init__(self, masks: Any, models: int, keys: Sequence[int]) -> None:
        self.masks, self.models, self.keys = masks, models, keys

    def part(self, rows: Sequence[int]) -> FakeBank:
        return FakeBank(self.masks[list(rows)], self.models, [self.keys[row] for row in rows])

    def logits(self) -> Any:
        key, r, q = np.meshgrid(self.keys, range(self.models), range(Q), indexing="ij")
        return np.stack([1000.0 * key + 10 * r + q, -np.ones(key.shape)], -1).astype(np.float32)


def fake_retraining(planned_for: list[Any]) -> BankRetraining:
    def plan(chosen: Any, models: int) -> Any:
        masks = chosen.masks_for(IDS)
        planned_for.append(masks)
        return FakeBank(masks, models, [int(IDS[~mask].sum()) for mask in masks])

    return BankRetraining(plan, lambda bank: bank)


def test_equal_removed_sets_are_trained_once_and_every_query_reads_its_own_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removal_models, "SETS_AT_ONCE", 2)
    sets = [[100, 101], [102], [101, 100], [103], [102], [104, 105]]
    queries = [0, 1, 2, 3, 1, 5]
    planned_for: list[Any] = []
    found = fake_retraining(planned_for).without([np.array(ids) for ids in sets], queries, 3)
    assert len(planned_for[0]) == 4
    for place, (ids, query) in enumerate(zip(sets, queries, strict=True)):
        assert found[place, :, 0].tolist() == [1000 * sum(ids) + 10 * r + query for r in range(3)]


def test_a_result_that_is_lost_after_training_is_no_prediction() -> None:
    class Damaged(FakeBank):
        def part(self, rows: Sequence[int]) -> FakeBank:
            return self

        def logits(self) -> Any:
            return np.full((1, 1, Q, 2), np.nan, np.float32)

    retraining = BankRetraining(lambda chosen, models: Damaged(None, 1, [0]), lambda bank: bank)  # type: ignore[arg-type,return-value]
    with pytest.raises(CorruptFileError, match="run the same call again"):
        retraining.without([np.array([100])], [0], 1)
    with pytest.raises(CorruptFileError, match="run the same call again"):
        retraining.full(1)


class Full:
    """Models of the full data that predict what they are told, (models, Q)."""

    def __init__(self, predicted: object) -> None:
        self.predicted = np.asarray(predicted)

    def full(self, models: int) -> Any:
        return np.eye(3, dtype=np.float32)[self.predicted[:models]]

    def without(self, removed: object, queries: object, models: int) -> Any:
        raise AssertionError


def test_some_models_of_the_full_data_vote_and_others_tell_the_noise() -> None:
    labels = np.array([0, 1])
    found = FullData.train(
        Full([[0, 1], [0, 2], [0, 2], [1, 2], [1, 1], [0, 1], [9, 9]][:6]), labels, voting=3, seeds=2
    )
    assert found.voting.tolist() == [[0, 1], [0, 2], [0, 2]]
    assert found.again.tolist() == [[1, 2], [1, 1], [0, 1]]
    assert found.prediction.tolist() == [0, 2]
    more = FullData.train(Full(np.zeros((6, 2), int)), labels, voting=1, seeds=5)
    assert (len(more.voting), len(more.again)) == (1, 5)
    for wrong in ({"voting": 0, "seeds": 1}, {"voting": 1, "seeds": 0}):
        with pytest.raises(InputError, match="must be a whole number from 1 on"):
            FullData.train(Full([[0, 1]]), labels, **wrong)
