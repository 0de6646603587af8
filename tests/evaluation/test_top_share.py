"""Top-share removal: what is removed, what is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comove import Compute, OwnTraining, Scores
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.errors import InputError
from comove.evaluation.prediction_brittleness.top_share import top_share_removal
from comove.training import Recipe, Training

SHORT = Training("mlp", Recipe(epochs=3, batch_size=64, lr=0.05))
QUERIES = 6


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_dataset("digits", limit=200)


def scores_of(digits: Splits, seed: int = 0) -> Scores:
    """The nearest of the own class in pixels score highest."""
    queries = digits.query.subset(digits.query.ids[:QUERIES])
    x, q = (part.raw(np.arange(len(part))).flatten(1).double().numpy() for part in (digits.train, queries))
    near = -((x[:, None] - q) ** 2).sum(-1) / 1e3 + 10 * (digits.train.labels[:, None] == queries.labels)
    values = near + 1e-3 * np.random.default_rng(seed).normal(size=near.shape)
    return Scores.from_arrays(values, train_ids=digits.train.ids, query_ids=queries.ids, method="near")


def test_rises_are_those_of_models_without_the_highest_scored(digits: Splits, tmp_path: Path) -> None:
    scores = scores_of(digits)
    groups = {"first": scores.query_ids[:1], "both": scores.query_ids[1:3]}
    ids = np.sort(digits.train.ids)
    seen: list[tuple[int, ...]] = []

    def trained(train_ids: Any, seed: int) -> dict[str, Any]:
        gone = np.setdiff1d(ids, train_ids)
        seen.append(tuple(gone.tolist()))
        return {"loss": np.full(len(digits.query), gone.sum() + 0.5 * seed) + np.arange(len(digits.query))}

    mine = OwnTraining(trained, name="sums-1", higher={"loss": False})
    found = top_share_removal(
        scores, 0.05, dataset=digits, out=tmp_path, groups=groups, training=mine, seeds=2,
        compute=Compute("serial"),
    )  # fmt: skip
    assert found.methods == ("near", "random removal", "same-class removal")
    assert found.removed == 10
    sums = scores.subset(train_ids=ids).values
    for g, columns in enumerate(([0], [1, 2])):
        top = ids[np.argsort(-sums[:, columns].sum(1), kind="stable")[:10]]
        assert tuple(sorted(top.tolist())) in seen
        np.testing.assert_allclose(found.rises[0, g], top.sum() + np.array([-0.25, 0.25]))
    np.testing.assert_allclose(found.noise, [[0.75, 1.25]] * 2)
    same = found.rises[2, 0].mean()
    assert any(np.isclose(same, sum(gone)) for gone in seen)
    label = digits.query.labels[digits.query.positions(scores.query_ids[:1])]
    gone = next(gone for gone in seen if np.isclose(sum(gone), same))
    assert (digits.train.labels[digits.train.positions(list(gone))] == label).all()


def test_removing_what_is_near_hurts_more_than_removing_at_random(digits: Splits, tmp_path: Path) -> None:
    found = top_share_removal(scores_of(digits), 0.05, dataset=digits, out=tmp_path, training=SHORT, seeds=2)
    assert found.output == "loss"
    assert found.rise("near").value > found.rise("random removal").value
    assert len(found.to_pandas()) == 4
    assert (tmp_path / "top-share.csv").exists()
    assert str(found).startswith("TopShare(10 examples removed, 6 groups, loss)")
    again = top_share_removal(scores_of(digits), 0.05, dataset=digits, out=tmp_path, training=SHORT, seeds=2)
    np.testing.assert_array_equal(again.rises, found.rises)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.001}, "removes 0; from 1 to 198 can go"),
        ({"share": 1.0}, "removes 200"),
        ({"groups": {}}, "there must be a group"),
        ({"groups": {"none": []}}, "at least one query"),
        ({"groups": {"a": [10**6]}}, "query ids"),
    ],
)
def test_what_cannot_be_removed_or_asked_is_refused(
    options: dict[str, Any], message: str, digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        top_share_removal(scores_of(digits), dataset=digits, out=tmp_path, training=SHORT, **options)
