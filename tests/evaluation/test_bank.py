"""The retraining bank: independent jobs, resumable to the same bits after a real kill, and matched by ids."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comove.attribution import Scores
from comove.data import ExampleSet, Splits
from comove.errors import CorruptFileError, FingerprintError, InputError, NonFiniteError
from comove.evaluation import RetrainingBank, linear_datamodeling_score, subsets
from comove.training import Recipe, fit
from comove.training.randomness import derived_seed

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)
PLAN = subsets.random(0.5, 5, seed=1)


def create(folder: Path, data: Splits, **changes: object) -> RetrainingBank:
    plain: dict[str, object] = {"model": "mlp", "recipe": RECIPE, "subsets": PLAN, "seeds": 2}
    return RetrainingBank.create(folder, data, **{**plain, **changes})  # type: ignore[arg-type]


def results_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and time of writing of every finished result (the header's seconds left out)."""
    from safetensors import safe_open

    found = {}
    for file in sorted((folder / "results").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            found[file.name] = (opened.get_tensor("logits").tobytes(), file.stat().st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def bank(small_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> RetrainingBank:
    """Five halves x two seeds, finished; read only."""
    return create(tmp_path_factory.mktemp("bank") / "bank", small_digits).run()


def shuffled_scores(bank: RetrainingBank, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(bank.train_ids.size), rng.permutation(bank.query_ids.size)
    values = rng.normal(size=(rows.size, columns.size)).astype(np.float32)
    return Scores(values, bank.train_ids[rows], bank.query_ids[columns], "shuffled")


# --- what a job is ------------------------------------------------------------------------------------------------


def test_masks_hold_exactly_half_and_name_ids(bank: RetrainingBank, small_digits: Splits) -> None:
    np.testing.assert_array_equal(bank.masks, PLAN.masks(200))
    assert (bank.masks.sum(1) == 100).all()
    np.testing.assert_array_equal(bank.train_ids, small_digits.train.ids)
    np.testing.assert_array_equal(bank.query_ids, small_digits.query.ids)
    np.testing.assert_array_equal(bank.query_labels, small_digits.query.labels)


def test_each_model_is_trained_from_its_own_seed_on_its_own_subset(bank: RetrainingBank, small_digits: Splits) -> None:
    from comove.models import ModelSpec

    spec = ModelSpec.of("mlp", num_classes=10, input_shape=(1, 8, 8))
    for subset, number in ((0, 0), (3, 1)):
        seed = derived_seed(0, "bank", subset, number)
        model = spec.build(seed)
        fit(model, small_digits.train.subset(bank.train_ids[bank.masks[subset]]), RECIPE, seed=seed)
        with torch.no_grad():
            expected = model(torch.stack([small_digits.query[i][0] for i in range(40)])).numpy()
        np.testing.assert_allclose(bank.logits()[subset, number], expected, rtol=1e-5, atol=1e-6)


def test_any_subset_of_jobs_trained_first_gives_the_same_logits(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    other = create(tmp_path / "bank", small_digits).run()
    for name in ("00004-001", "00000-000", "00002-000"):
        (other.path / "results" / f"{name}.safetensors").unlink()
    assert other.pending == [(0, 0), (2, 0), (4, 1)]
    other.run()
    assert other.pending == []
    assert {k: v[0] for k, v in results_of(other.path).items()} == {k: v[0] for k, v in results_of(bank.path).items()}


def test_more_subsets_and_seeds_leave_the_first_ones_as_they_were(
    bank: RetrainingBank, small_digits: Splits, tmp_path: Path
) -> None:
    larger = create(tmp_path / "bank", small_digits, subsets=subsets.random(0.5, 6, seed=1), seeds=3).run()
    np.testing.assert_array_equal(larger.logits()[:5, :2], bank.logits())


def test_all_seeds_and_subsets_differ(bank: RetrainingBank) -> None:
    flat = bank.logits().reshape(10, -1)
    assert np.unique(flat, axis=0).shape[0] == 10


def test_another_seed_gives_another_bank(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits, seed=1, seeds=1).run()
    assert not (other.logits()[:, 0] == bank.logits()[:, 0]).any()


def test_some_queries_only(bank: RetrainingBank, small_digits: Splits, tmp_path: Path) -> None:
    ids = small_digits.query.ids[[7, 3]]
    some = create(tmp_path / "bank", small_digits, queries=ids, seeds=1).run()
    np.testing.assert_array_equal(some.query_ids, ids)
    np.testing.assert_allclose(some.logits()[:, 0], bank.logits()[:, 0][:, [7, 3]], rtol=1e-5, atol=1e-6)


# --- interrupted --------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from comove.datasets import load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe

rename = Path.replace
def replace(self, target):
    done = list(Path(target).parent.glob("*.safetensors"))
    if Path(target).parent.name == "results" and len(done) == 4:
        os.kill(os.getpid(), signal.SIGKILL)  # the fifth result is written beside its name, and never renamed
    return rename(self, target)

bank = RetrainingBank.create(
    sys.argv[1], load_dataset("digits", limit=200, queries=40), "mlp",
    Recipe(epochs=2, batch_size=32, lr=0.05), subsets=subsets.random(0.5, 5, seed=1), seeds=2,
)
Path.replace = replace
bank.run()
"""


def test_a_killed_bank_goes_on_and_ends_with_the_same_bits(bank: RetrainingBank, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], check=False, capture_output=True, text=True, env={**os.environ}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = results_of(folder)
    assert len(before) == 4
    (cut_off,) = (file.name for file in (folder / "results").iterdir() if file.suffix == ".tmp")
    assert not any(cut_off.startswith(f".{name}") for name in before)  # its final name is not taken
    resumed = RetrainingBank.load(folder)  # the built-in digits are loaded again by name
    assert len(resumed.pending) == 6
    assert np.isnan(resumed.outputs()[[job[0] for job in resumed.pending], [job[1] for job in resumed.pending]]).all()
    resumed.run()
    after = results_of(folder)
    assert {name: after[name] for name in before} == before  # not even written again
    assert {name: value[0] for name, value in after.items()} == {
        name: value[0] for name, value in results_of(bank.path).items()
    }


def test_a_finished_bank_trains_nothing(bank: RetrainingBank) -> None:
    before = results_of(bank.path)
    bank.run()
    RetrainingBank.load(bank.path).run()
    assert results_of(bank.path) == before


def test_pending_models_are_nan_and_only_they(small_digits: Splits, bank: RetrainingBank, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits).run()
    (other.path / "results" / "00001-000.safetensors").unlink()
    for kind in ("margin", "correct", "loss", "probability", "predicted"):
        values = other.outputs(kind)
        assert values.shape == (5, 2, 40)
        assert np.argwhere(np.isnan(values).all(-1)).tolist() == [[1, 0]]
        assert np.isnan(values).sum() == 40
    with pytest.raises(NonFiniteError, match=r"1 of 10 models are NaN for every query \(subset 1 seed 0\)"):
        other.lds(shuffled_scores(other))
    assert "9 of 10 models trained" in repr(other)


def test_an_empty_bank_is_all_pending(small_digits: Splits, tmp_path: Path) -> None:
    planned = create(tmp_path / "bank", small_digits)
    assert planned.pending == planned.jobs
    assert len(planned.jobs) == 10
    assert np.isnan(planned.logits()).all()


def test_a_truncated_result_says_to_delete_it(small_digits: Splits, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits, seeds=1).run()
    file = other.path / "results" / "00002-000.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CorruptFileError, match=r"00002-000\.safetensors .* truncated .*delete it and run"):
        other.logits()
    file.unlink()
    assert np.isfinite(other.run().logits()).all()


def test_a_diverging_model_is_an_error_that_keeps_what_was_finished(small_digits: Splits, tmp_path: Path) -> None:
    other = create(tmp_path / "bank", small_digits, recipe=dataclasses.replace(RECIPE, lr=1e30))
    with pytest.raises(NonFiniteError, match=r"subset 0, seed 0 diverged .* lower the learning rate"):
        other.run()
    assert len(other.pending) == 10


# --- what belongs to a bank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, lr=0.1)}, r"recipe\.lr was 0\.05, now 0\.1"),
        ({"subsets": subsets.random(0.5, 6, seed=1)}, r"subsets\.count was 5, now 6"),
        ({"seeds": 3}, r"seeds was 2, now 3"),
        ({"seed": 1}, r"seed was 0, now 1"),
        ({"model_options": {"hidden": [8]}}, r"model\.options was .* now \{'hidden': \[8\]\}"),
    ],
)
def test_another_bank_in_the_folder_is_refused_and_says_what_differs(
    changes: dict[str, object], message: str, bank: RetrainingBank, small_digits: Splits
) -> None:
    with pytest.raises(FingerprintError, match=message):
        create(bank.path, small_digits, **changes)


def test_other_data_are_refused(bank: RetrainingBank, digits: Splits) -> None:
    with pytest.raises(FingerprintError, match="another data set"):
        RetrainingBank.load(bank.path, dataset=digits)


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="is not a folder"):
        RetrainingBank.load(tmp_path / "none")


def test_no_seed_is_refused(small_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seeds must be at least 1, got 0"):
        create(tmp_path / "bank", small_digits, seeds=0)


def linear(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A user's own factory."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def test_own_data_and_an_own_factory_must_be_passed_again(images: ExampleSet, tmp_path: Path) -> None:
    import comove

    own = comove.split(images, validation=0.1, query=0.2)
    made = create(tmp_path / "bank", own, model=linear, subsets=subsets.random(0.5, 2), seeds=1)
    with pytest.raises(InputError, match=r"data of your own .*pass it again as dataset="):
        RetrainingBank.load(made.path).run()
    with pytest.raises(InputError, match="pass the factory again"):
        RetrainingBank.load(made.path, dataset=own).run()
    assert np.isfinite(RetrainingBank.load(made.path, dataset=own, model=linear).run().logits()).all()


def test_an_own_factory_may_be_named(images: ExampleSet, tmp_path: Path) -> None:
    import comove

    own = comove.split(images, validation=0.1, query=0.2)
    named = f"{linear.__module__}:linear"
    by_name, by_itself = (
        create(tmp_path / folder, own, model=model, subsets=subsets.random(0.5, 2), seeds=1).run()
        for folder, model in (("named", named), ("itself", linear))
    )
    np.testing.assert_array_equal(by_name.logits(), by_itself.logits())
    assert RetrainingBank.load(by_name.path, dataset=own, model=named).run().pending == []


# --- LDS against the bank -----------------------------------------------------------------------------------------


def test_lds_matches_scores_by_ids_whatever_their_order(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    rows = [scores.train_ids.tolist().index(id_) for id_ in bank.train_ids]
    columns = [scores.query_ids.tolist().index(id_) for id_ in bank.query_ids]
    expected = linear_datamodeling_score(scores.values[rows][:, columns], bank.masks, bank.outputs("margin"))
    found = bank.lds(scores)
    np.testing.assert_allclose(found.per_query, expected.per_query, equal_nan=True)
    np.testing.assert_array_equal(found.query_ids, bank.query_ids)
    assert (found.method, found.subsets, found.seeds) == ("shuffled", 5, 2)
    by_position = linear_datamodeling_score(scores.values, bank.masks, bank.outputs("margin"))
    assert not np.allclose(by_position.per_query, expected.per_query)


def test_the_sign_of_the_loss_is_turned(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    matched = scores.subset(train_ids=bank.train_ids, query_ids=bank.query_ids)
    expected = linear_datamodeling_score(matched, bank.masks, -bank.outputs("loss"))
    np.testing.assert_array_equal(bank.lds(scores, "loss").per_query, expected.per_query)
    np.testing.assert_array_equal(bank.lds(scores, "margin").per_query.shape, (40,))


def test_a_method_that_helps_the_margin_helps_by_every_output(small_digits: Splits, bank: RetrainingBank) -> None:
    labels = dict(zip(small_digits.train.ids.tolist(), small_digits.train.labels.tolist(), strict=True))
    same = np.array([labels[id_] for id_ in bank.train_ids])[:, None] == bank.query_labels
    noise = 1e-3 * np.random.default_rng(0).random(same.shape)
    scores = Scores((same + noise).astype(np.float32), bank.train_ids, bank.query_ids, "same class")
    for output in ("margin", "probability", "loss"):
        assert bank.lds(scores, output).mean > 0


def test_scores_that_lack_ids_or_have_others_are_refused(bank: RetrainingBank) -> None:
    scores = shuffled_scores(bank)
    with pytest.raises(InputError, match="Unknown train ids"):
        bank.lds(scores.subset(train_ids=scores.train_ids[1:]))
    with pytest.raises(InputError, match="Unknown query ids"):
        bank.lds(scores.subset(query_ids=scores.query_ids[1:]))
    more = Scores(np.zeros((201, 40), np.float32), np.append(scores.train_ids, -1), scores.query_ids, "more")
    with pytest.raises(InputError, match="201 training ids, the bank 200"):
        bank.lds(more)


def test_a_predicted_class_is_nothing_to_hold_scores_to(bank: RetrainingBank) -> None:
    with pytest.raises(InputError, match="got 'predicted'"):
        bank.lds(shuffled_scores(bank), "predicted")
