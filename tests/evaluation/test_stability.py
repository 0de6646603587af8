"""Agreement of coresets across seeds and along training: known limits, and equality with what scipy computes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from comove.coreset import select
from comove.coreset.cld import CLDCoreset
from comove.errors import InputError
from comove.evaluation.coreset_curves.stability import EarlyRows, Stability, agreement, early_epochs, stability
from comove.training import Run


def test_a_run_agrees_with_itself(run: Run) -> None:
    found = stability([run, run], "cld", 0.2)
    assert (found.mean_absolute_error, found.overlap) == (0, 1)
    assert found.spearman == pytest.approx(1)


def test_two_seeds_are_compared_as_by_hand(runs: tuple[Run, ...]) -> None:
    found = stability(runs, "cld", 0.2)
    a, b = (CLDCoreset().scores(run) for run in runs)
    kept = [set(select("cld", run, 0.2).ids.tolist()) for run in runs]
    assert found.mean_absolute_error == pytest.approx(np.abs(a.astype(np.float64) - b).mean())
    assert found.spearman == pytest.approx(spearmanr(a, b).statistic)
    assert found.overlap == len(kept[0] & kept[1]) / 40
    assert (found.method, found.runs) == ("cld", 2)


def test_the_papers_claim_of_1e_minus_5_between_seeds_is_not_what_independent_seeds_give(runs: tuple[Run, ...]) -> None:
    assert (stability(runs).mean_absolute_error or 0) > 1e-3


def test_a_greedy_method_has_an_overlap_alone(runs: tuple[Run, ...]) -> None:
    found = stability(runs, "herding", 0.2)
    assert found.mean_absolute_error is None
    assert 0 < found.overlap < 1


def test_all_epochs_are_the_final_choice_and_fewer_are_not(run: Run) -> None:
    found = early_epochs(run, [6, 2, 4], 0.2)
    assert [epoch for epoch, _, _ in found.rows] == [2, 4, 6]
    assert found.rows[-1][1] == pytest.approx(1)
    assert found.rows[-1][2] == 1
    assert found.rows[0][2] < 1
    rows = [row.index for row in run.trace.rows if row.epoch <= 4]
    part = CLDCoreset(first=4).scores(run)
    assert found.rows[1][1] == pytest.approx(spearmanr(part, CLDCoreset().scores(run)).statistic)
    assert len(rows) == 5
    assert list(found.to_pandas().columns) == ["epoch", "spearman", "overlap"]


def test_the_epochs_needed_are_those_after_the_last_that_was_not_enough() -> None:
    found = EarlyRows(((2, 0.5, 0.6), (4, 0.8, 0.95), (6, 0.9, 0.8), (8, 1.0, 0.92), (10, 1.0, 1.0)), 0.1)
    assert found.epochs_needed(0.9) == 8
    assert found.epochs_needed(0.5) == 2
    assert EarlyRows(((2, 0.5, 0.6),), 0.1).epochs_needed() is None


@pytest.mark.parametrize(
    ("overlap", "beyond", "advice"),
    [(0.1, 0.0, "mostly due to its seed"), (0.55, 0.5, "several runs"), (0.91, 0.9, "one run is enough")],
)
def test_a_verdict_goes_by_what_is_shared_beyond_chance(overlap: float, beyond: float, advice: str) -> None:
    found = Stability("cld", 3, 0.1, None, None, overlap)
    assert found.beyond_chance == pytest.approx(beyond)
    assert f"{overlap:.0%} of the same examples, {beyond:.0%} beyond chance" in found.verdict
    assert advice in found.verdict
    assert Stability("cld", 2, 1.0, None, None, 1.0).beyond_chance == 1


def test_a_verdict_says_how_many_epochs_are_enough() -> None:
    assert "7 of 9 epochs give 90 %" in EarlyRows(((3, 0.5, 0.6), (7, 0.9, 0.95), (9, 1.0, 1.0)), 0.1).verdict
    assert "no fewer than 9 epochs" in EarlyRows(((3, 0.5, 0.6), (9, 1.0, 1.0)), 0.1).verdict


def test_constant_scores_have_no_rank_correlation() -> None:
    error, rank = agreement(np.zeros(5), np.arange(5.0))
    assert error == 2
    assert np.isnan(rank)


def test_bad_input_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="several seeds; got 1"):
        stability([run])
    with pytest.raises(InputError, match="at least 2 epochs"):
        early_epochs(run, [1, 4])
    with pytest.raises(InputError, match="at least 2 epochs"):
        early_epochs(run, [])
    with pytest.raises(InputError, match="first must be"):
        CLDCoreset(first=0)
