"""What every attribution method computed from a retraining bank must do; discovered, like the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comove.attribution import Attributor, Scores, attributors
from comove.data import Splits
from comove.errors import InputError, InputTypeError
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Run, Training

METHODS = [method for method in attributors().values() if "bank" in method.requires]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(scope="module")
def leave_one_out_bank(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Three models that each lack one example, and one seed more of each; read only."""
    plan = subsets.leave_one_out(small_digits.train.ids[:3])
    folder = tmp_path_factory.mktemp("loo")
    return RetrainingBank.create(folder, small_digits, Training("mlp", Recipe(epochs=2)), subsets=plan, seeds=2).run()


@pytest.fixture
def bank(method: type[Attributor], small_bank: RetrainingBank, leave_one_out_bank: RetrainingBank) -> RetrainingBank:
    """The kind of bank the method is made for."""
    return leave_one_out_bank if method.name == "leave-one-out" else small_bank


def test_the_methods_of_the_issue_are_found() -> None:
    assert {"fz", "datamodels", "leave-one-out"} <= {method.name for method in METHODS}


@every_method
def test_scores_are_train_by_query_with_the_banks_ids(method: type[Attributor], bank: RetrainingBank) -> None:
    scores = method().fit(bank).attribute()
    assert scores.values.dtype == np.float32
    np.testing.assert_array_equal(scores.query_ids, bank.query_ids)
    np.testing.assert_array_equal(scores.query_labels, bank.query_labels)
    assert set(scores.train_ids.tolist()) <= set(bank.train_ids.tolist())
    assert scores.train_ids.size + scores.info["not_scored"] == bank.train_ids.size
    assert scores.info["fitted_on"] == bank.digests
    assert scores.classes == tuple("0123456789")


@every_method
def test_fit_leaves_self_unfitted_and_gives_the_same_twice(method: type[Attributor], bank: RetrainingBank) -> None:
    made = method()
    first, second = (made.fit(bank).attribute().values for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not hasattr(made, "_fitted")


@every_method
def test_some_queries_are_the_columns_of_all(method: type[Attributor], bank: RetrainingBank) -> None:
    fitted = method().fit(bank)
    chosen = bank.query_ids[[7, 2]]
    np.testing.assert_array_equal(fitted.attribute(chosen).values, fitted.attribute().subset(query_ids=chosen).values)


@every_method
def test_saved_and_loaded_they_know_what_they_were_fitted_on(
    method: type[Attributor], bank: RetrainingBank, tmp_path: Path
) -> None:
    method().fit(bank).attribute().save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert loaded.info["fitted_on"] == bank.digests
    if bank.masks.shape[0] > 3:
        with pytest.raises(InputError, match="was fitted on 16 of the 16 subsets"):
            bank.lds(loaded)


@every_method
def test_runs_are_refused(method: type[Attributor], run: Run) -> None:
    with pytest.raises(InputTypeError, match="from a retraining bank"):
        method().fit(run)


@every_method
def test_self_influence_is_refused_where_it_is_not_defined(method: type[Attributor], bank: RetrainingBank) -> None:
    with pytest.raises(InputError, match="does not define self-influence"):
        method().fit(bank).self_influence()
