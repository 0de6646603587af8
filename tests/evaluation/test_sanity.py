"""Planted examples: where they are put, what a method that knows them scores, and what the controls score."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from comove.attribution import Attributor, RandomControl, SameClassControl, Scores
from comove.attribution.base import Queries
from comove.data import ExampleSet, Splits
from comove.data.builtin import load_dataset
from comove.errors import InputError
from comove.evaluation.sanity import _hits, _rank, check_methods, plant, stamp
from comove.training import Recipe, Training

SHORT = Training("mlp", Recipe(epochs=3, batch_size=64, lr=0.05))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_dataset("digits", limit=300)


@dataclass(frozen=True)
class Nearest(Attributor):
    """The nearest in pixels, of the query's own label: it knows all that is planted, and nothing of the model."""

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "distance in pixels"
    cost: ClassVar[str] = "none"

    def _fit(self, sources: tuple[Any, ...]) -> Any:
        return sources

    def _scores(self, state: Any, queries: Queries) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        run = state[0].run
        train, asked = run.data().train, run.examples(queries.ids)
        x, q = (part.raw(np.arange(len(part))).flatten(1).double() for part in (train, asked))
        near = 1 / (1 + torch.cdist(x, q)).numpy()
        return np.where(train.labels[:, None] == asked.labels, near, -near).astype(np.float32), {}


def test_planted_examples_are_where_the_result_says(digits: Splits) -> None:
    made = plant(digits, seed=3, queries=5)
    train, query = made.splits.train, made.splits.query
    assert len(train) == len(digits.train) + 10
    for given, same in ((made.copies, True), (made.mislabelled, False)):
        assert len(given) == 5
        for of, copy in given.items():
            source, planted = query.positions([of]), train.positions([copy])
            assert torch.equal(query.raw(source), train.raw(planted))
            assert (query.labels[source] == train.labels[planted]).all() == same
    changed = [i for i in digits.train.ids if not _same(digits.train, train, i)]
    np.testing.assert_array_equal(np.sort(changed), np.sort(made.stamped))
    assert np.unique(train.labels[train.positions(made.stamped)]).size == 1
    assert not set(made.stamped_queries) & ({*made.copies} | {*made.mislabelled})
    again = plant(digits, seed=3, queries=5)
    assert again.splits.fingerprint == made.splits.fingerprint
    assert plant(digits, seed=4, queries=5).splits.fingerprint != made.splits.fingerprint


def _same(one: ExampleSet, other: ExampleSet, id_: int) -> bool:
    return torch.equal(one.raw(one.positions([id_])), other.raw(other.positions([id_])))


def test_a_stamp_is_a_corner_of_an_image_or_the_last_features_of_a_vector() -> None:
    images = stamp(torch.zeros(2, 3, 16, 16), torch.full((1,), 9.0))
    assert images.sum() == 2 * 3 * 4 * 9
    assert (images[..., -2:, -2:] == 9).all()
    vectors = stamp(torch.zeros(2, 30), torch.full((1,), 5.0))
    assert (vectors[:, -3:] == 5).all()
    assert vectors.sum() == 2 * 3 * 5


def test_who_knows_the_planted_passes_and_the_controls_do_not(digits: Splits, tmp_path: Path) -> None:
    found = check_methods([Nearest(), RandomControl(), SameClassControl()], digits, SHORT, out=tmp_path, queries=12)
    passed = {(check.method, check.name): check.passed for check in found.checks}
    assert passed["nearest", "planted copies"]
    assert passed["nearest", "wrong labels"]
    assert not passed["nearest", "randomised labels"]  # its scores hardly change where the model learnt nothing
    assert not any(verdict for (method, _), verdict in passed.items() if method == "random-control")
    assert not passed["same-class-control", "planted copies"]
    assert not passed["same-class-control", "shortcut"]
    assert not found.passed
    written = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert len(written) == len(found.to_pandas()) == 12
    assert str(found).count("\n") == 11


def test_equal_scores_at_the_edge_count_in_part_whatever_their_ids() -> None:
    values = np.array([[3.0], [1.0], [1.0], [1.0], [1.0], [0.0]])
    scores = Scores.from_arrays(values, train_ids=[5, 1, 2, 3, 4, 0], query_ids=[9], method="ties")
    for wanted in ([1, 2], [3, 4]):  # one place is left for four: each of them counts a quarter
        assert _hits(scores, 9, np.array(wanted)) == pytest.approx(0.25)
    assert _hits(scores, 9, np.array([5, 0])) == pytest.approx(0.5)
    assert _rank(scores, 9, 3) == pytest.approx(1 + 1.5)


def test_what_cannot_be_planted_into_is_refused(digits: Splits) -> None:
    with pytest.raises(InputError, match="need 6000 queries"):
        plant(digits, queries=2000)
    items = ExampleSet([{"x": torch.zeros(3)}] * 4)
    with pytest.raises(InputError, match="pairs of input and label"):
        plant(Splits(items, None, ExampleSet([{"x": torch.zeros(3)}] * 4, ids=[7, 8, 9, 10])))
    with pytest.raises(InputError, match="computed from retrained models"):
        check_methods(["datamodels"], digits)
