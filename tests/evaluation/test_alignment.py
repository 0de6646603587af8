"""Gradients of a coreset against the validation gradient: equal to autograd one by one, and the limits one can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comove.attribution.tracin import run_gradients
from comove.data import Splits
from comove.errors import InputError
from comove.evaluation import diagnose
from comove.evaluation.alignment import Alignment, Diagnosis, alignment, class_means
from comove.plots import save_figure
from comove.training import Resident, Run

CPU = torch.device("cpu")


def _gradient(model: torch.nn.Module, data: Resident, positions: list[int]) -> torch.Tensor:
    """The mean loss gradient of some examples, flat, by autograd."""
    model.zero_grad()
    whole = data.inputs(slice(0, len(data)))
    torch.autograd.backward(F.cross_entropy(model(whole[positions]), data.labels[positions]))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_cosines_and_distance_are_those_of_autograd(run: Run, small_digits: Splits) -> None:
    assert small_digits.validation is not None
    validation = Resident(small_digits.validation, CPU)
    coreset = Resident(small_digits.train.subset(small_digits.train.ids[:25]), CPU)
    checkpoint = run.checkpoints[2]
    found = alignment(run_gradients(run, checkpoint), coreset, validation, 10)
    model = run.load_model(checkpoint)
    target = _gradient(model, validation, list(range(len(validation))))
    own = [_gradient(model, coreset, [m]) for m in range(25)]
    classes = [
        _gradient(model, validation, torch.nonzero(validation.labels == label).flatten().tolist())
        for label in coreset.labels
    ]
    mean = torch.stack(own).mean(0)
    np.testing.assert_allclose(found["cosine"], [float(F.cosine_similarity(g, target, 0)) for g in own], atol=1e-5)
    expected = [float(F.cosine_similarity(g, c, 0)) for g, c in zip(own, classes, strict=True)]
    np.testing.assert_allclose(found["own_class"], expected, atol=1e-5)
    assert found["distance"] == pytest.approx(float((mean - target).norm() / target.norm()), rel=1e-4)
    assert found["mean_cosine"] == pytest.approx(float(F.cosine_similarity(mean, target, 0)), abs=1e-5)


def test_the_validation_set_itself_is_at_distance_zero(run: Run, small_digits: Splits) -> None:
    assert small_digits.validation is not None
    validation = Resident(small_digits.validation, CPU)
    found = alignment(run_gradients(run, run.checkpoints[-1]), validation, validation, 10)
    assert found["distance"] == pytest.approx(0, abs=1e-4)
    assert found["mean_cosine"] == pytest.approx(1, abs=1e-5)


def test_a_class_without_validation_examples_gives_no_own_cosine(run: Run, small_digits: Splits) -> None:
    assert small_digits.validation is not None
    kept = small_digits.validation.ids[small_digits.validation.labels != 3]
    validation = Resident(small_digits.validation.subset(kept), CPU)
    coreset = Resident(small_digits.train, CPU)
    gradients = run_gradients(run, run.checkpoints[-1])
    own = np.asarray(alignment(gradients, coreset, validation, 10)["own_class"])
    assert (np.isnan(own) == (small_digits.train.labels == 3)).all()
    assert int(class_means(gradients, validation, 10)[1][3]) == 0


def test_diagnose_follows_each_coreset_along_both_trainings_and_keeps_what_it_trained(run: Run, tmp_path: Path) -> None:
    found = diagnose(run, ["cld", "random"], 0.3, checkpoints=3, out=tmp_path)
    assert found.methods == ("cld", "random")
    for method in found.methods:
        assert [row.epoch for row in found.of(method, "full data")] == [
            row.epoch for row in found.of(method, "coreset")
        ]
        assert all(row.drift == 0 for row in found.of(method, "full data"))
        assert all(row.drift > 0 for row in found.of(method, "coreset"))
    assert diagnose(run, ["cld", "random"], 0.3, checkpoints=3, out=tmp_path).rows == found.rows  # opened, not trained
    assert save_figure(found.plot(), tmp_path / "d.png").stat().st_size > 10_000
    assert len(found.to_pandas()) == 12
    assert "along coreset" in repr(found)


def test_a_coreset_of_everything_is_trained_as_the_run_was(run: Run) -> None:
    found = diagnose(run, ["random"], 1.0, checkpoints=2)
    for mine, theirs in zip(found.of("random", "coreset"), found.of("random", "full data"), strict=True):
        assert mine.drift == 0
        assert mine.mean == theirs.mean


def test_verdicts_judge_each_lemma_by_its_rows() -> None:
    def row(method: str, trajectory: Any, mean: float, distance: float) -> Alignment:
        return Alignment(method, trajectory, 1, mean, mean, mean, mean, mean, distance, mean)

    rows = [
        row("cld", "full data", 0.2, 0.5),
        row("cld", "full data", 0.4, 0.5),
        row("cld", "coreset", -0.1, 0.9),
        row("random", "full data", 0.1, 0.7),
        row("random", "coreset", 0.1, 0.7),
    ]
    said = Diagnosis(tuple(rows), 0.1, {}).verdicts()
    assert said[0] == (
        "Lemma 1, cld: holds along the training on everything: mean cosine +0.30 (random +0.10), positive at 2 of 2 "
        "checkpoints."
    )
    assert said[1].startswith("Lemma 2, cld: does not hold along the training on the coreset: mean cosine -0.10")
    assert said[2] == (
        "Lemma 3, cld: does not hold: the mean gradient is 0.90 of the validation gradient's norm away from it, that "
        "of a random coreset 0.70."
    )
    assert said[-1] == "Lemma 3, random: the mean gradient is 0.70 of the validation gradient's norm away from it."


def test_bad_input_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="at least one coreset method"):
        diagnose(run, [])
    with pytest.raises(InputError, match="at least one coreset method and one checkpoint"):
        diagnose(run, ["cld"], checkpoints=0)
