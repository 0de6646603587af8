"""CLD on recorded and replayed queries: hand-checked values, options that reach the core, and honest refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from comove.attribution.cld import CLD, chosen_rows, log_odds_of, replay_losses
from comove.attribution.score_blocks import write_scores_in_blocks
from comove.correlation import pairwise
from comove.data import ExampleSet, Splits, positions_of
from comove.errors import InputError, NonFiniteError
from comove.trace import Trace
from comove.training import Recipe, Recording, Run, train

# coresets.md, section 1: A moves as the query does, B against it, C not at all, D half-heartedly
QUERY = [2.0, 1.4, 1.0, 0.8]
TRAIN = {30: [2.0, 1.5, 1.2, 1.1], 10: [2.0, 1.9, 1.6, 1.1], 20: [0.7, 0.7, 0.7, 0.7], 5: [1.0, 0.5, 0.5, 0.6]}
EXPECTED = {30: 1.0, 10: -1.0, 20: 0.0, 5: 0.933257}


@pytest.fixture
def example() -> Trace:
    train_losses, query_losses = np.array(list(TRAIN.values())).T, np.array([QUERY, QUERY[::-1], [1.0] * 4]).T
    return Trace.from_arrays(
        train_losses=train_losses, query_losses=query_losses, train_ids=list(TRAIN), query_ids=[70, 60, 50]
    )


@pytest.fixture(scope="module")
def dense_run(small_digits: Splits, short_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Rows every two steps, and a checkpoint every second epoch."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    recording = Recording(every=2)
    return train(small_digits, "mlp", short_recipe, 3, folder, recording=recording, checkpoints=2)


def test_the_hand_checked_example_comes_out(example: Trace) -> None:
    scores = CLD().fit(example).attribute([70])
    for id_, value in EXPECTED.items():
        assert scores.values[scores.train_ids == id_][0, 0] == pytest.approx(value, abs=1e-6)


def test_against_scipy_on_differences(trace: Trace) -> None:
    scores = CLD().fit(trace).attribute()
    train_TN, query_TQ = (
        np.diff(losses.astype(np.float64), axis=0) for losses in (trace.train_losses, trace.query_losses)
    )
    places = [trace.query_ids.tolist().index(id_) for id_ in scores.query_ids]
    for n, q in itertools.product([0, 17, 199], [0, 9, 39]):
        expected = stats.pearsonr(train_TN[:, n], query_TQ[:, places[q]]).statistic
        assert scores.values[n, q] == pytest.approx(expected, abs=1e-5)


def test_constant_trajectories_score_zero_and_are_counted(example: Trace) -> None:
    scores = CLD().fit([example, example]).attribute()
    assert (scores.column(50) == 0).all()
    assert (scores.values[scores.train_ids == 20] == 0).all()
    assert scores.info["constant_train"] == 2  # one in each run
    assert scores.info["constant_queries"] == 2
    assert CLD().fit(example).attribute([70]).info["constant_queries"] == 0


def test_several_runs_give_the_mean_of_their_scores(runs: tuple[Run, ...]) -> None:
    singles = [CLD().fit(run).attribute().values.astype(np.float64) for run in runs]
    both = CLD().fit(runs).attribute()
    np.testing.assert_allclose(both.values, np.mean(singles, axis=0), atol=1e-6)
    assert np.abs(singles[0] - singles[1]).max() > 0.1
    assert both.info["runs"] == 2


OPTIONS: list[dict[str, Any]] = [
    {"correlation": "spearman"},
    {"correlation": "covariance"},
    {"common_mode": "remove"},
    {"row_scaling": "rms"},
    {"correlation": "covariance", "common_mode": "remove", "row_scaling": "rms"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_reach_the_core_and_change_the_scores(options: dict[str, Any], trace: Trace) -> None:
    scores = CLD(**options).fit(trace).attribute(trace.query_ids)
    expected = pairwise(trace.train_losses, trace.query_losses, **options)
    np.testing.assert_array_equal(scores.values, expected)
    assert np.abs(scores.values - CLD().fit(trace).attribute(trace.query_ids).values).max() > 1e-3
    assert {name: scores.info[name] for name in options} == options
    assert scores.method == f"cld({', '.join(f'{name}={value}' for name, value in options.items())})"


@pytest.mark.parametrize("option", ["correlation", "common_mode", "row_scaling", "rows"])
def test_a_misspelt_option_is_refused_when_built(option: str) -> None:
    right = {"correlation": "spearman", "common_mode": "remove", "row_scaling": "rms", "rows": "epochs"}[option]
    CLD(**{option: right})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"cld: {option} must be one of .*got '{right[:-1]}x'.*Did you mean '{right}'"):
        CLD(**{option: right[:-1] + "x"})  # type: ignore[arg-type]


# --- rows ---------------------------------------------------------------------------------------------------------


def test_epoch_rows_are_those_at_the_ends_of_epochs(dense_run: Run) -> None:
    trace = dense_run.trace
    whole = [row.index for row in trace.rows if row.epoch in range(7)]
    assert len(trace.rows) > len(whole) == 7
    assert chosen_rows(trace, "epochs") == whole
    assert chosen_rows(trace, "all") == list(range(len(trace.rows)))


def test_rows_epochs_equals_a_trace_that_holds_no_others(dense_run: Run) -> None:
    trace = dense_run.trace
    rows = chosen_rows(trace, "epochs")
    sparse = Trace.from_arrays(
        train_losses=trace.read("train", rows=rows),
        query_losses=trace.read("query", rows=rows),
        train_ids=trace.train_ids,
        query_ids=trace.query_ids,
    )
    expected = CLD().fit(sparse).attribute(trace.explained_ids).values
    np.testing.assert_array_equal(CLD(rows="epochs").fit(dense_run).attribute().values, expected)
    assert np.abs(CLD(rows="all").fit(dense_run).attribute().values - expected).max() > 1e-3


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_say_how_many_are_needed(rows: int, example: Trace) -> None:
    short = Trace.from_arrays(train_losses=example.train_losses[:rows], query_losses=example.query_losses[:rows])
    with pytest.raises(InputError, match=rf"at least 3 recorded rows .*found \({rows}, 4\)"):
        CLD().fit(short).attribute()


# --- replay -------------------------------------------------------------------------------------------------------


def test_replayed_losses_are_the_recorded_ones(run: Run, small_digits: Splits) -> None:
    trace, query = run.trace, small_digits.query
    replayed, rows = replay_losses(run, query)
    assert rows == [row.index for row in trace.rows]
    columns = [trace.query_ids.tolist().index(id_) for id_ in query.ids]
    recorded = trace.query_losses[:, columns]
    np.testing.assert_allclose(replayed, recorded, rtol=1e-6, atol=1e-6)


def test_replayed_queries_score_as_the_recorded_ones(runs: tuple[Run, ...], small_digits: Splits) -> None:
    fitted = CLD().fit(runs)
    some = small_digits.query.ids[[5, 30, 2]]
    replayed, recorded = fitted.attribute(small_digits.query.subset(some)), fitted.attribute(some)
    np.testing.assert_array_equal(replayed.query_ids, some)
    np.testing.assert_allclose(replayed.values, recorded.values, atol=2e-5)
    np.testing.assert_array_equal(replayed.query_labels, recorded.query_labels)


def test_a_training_example_asked_about_anew_correlates_perfectly_with_itself(run: Run, small_digits: Splits) -> None:
    ids = small_digits.train.ids[[3, 100]]
    scores = CLD().fit(run).attribute(small_digits.train.subset(ids))
    for id_ in ids:
        assert scores.subset(train_ids=[id_], query_ids=[id_]).values[0, 0] == pytest.approx(1, abs=1e-4)


def test_examples_never_seen_are_answered_from_their_losses_at_the_checkpoints(run: Run, small_digits: Splits) -> None:
    query = small_digits.query
    inverted = 1 - torch.stack([query[i][0] for i in range(4)])
    new = ExampleSet.from_arrays(inverted, query.labels[:4], ids=[-1, -2, -3, -4], classes=query.classes)
    losses_TQ: npt.NDArray[np.float32] = np.array(
        [
            torch.nn.functional.cross_entropy(
                run.load_model(checkpoint)(inverted), torch.from_numpy(new.labels), reduction="none"
            ).detach()
            for checkpoint in run.checkpoints
        ]
    )
    scores = CLD().fit(run).attribute(new)
    assert scores.query_ids.tolist() == [-1, -2, -3, -4]
    np.testing.assert_allclose(scores.values, pairwise(run.trace.train_losses, losses_TQ), atol=1e-5)


def test_replay_pairs_each_checkpoint_with_the_row_recorded_at_that_moment(
    dense_run: Run, small_digits: Splits
) -> None:
    query = small_digits.query
    losses, rows = replay_losses(dense_run, query)
    trace = dense_run.trace
    assert [trace.rows[row].epoch for row in rows] == [0, 2, 4, 6]
    columns = [trace.query_ids.tolist().index(id_) for id_ in query.ids]
    np.testing.assert_allclose(losses, trace.query_losses[rows][:, columns], rtol=1e-6, atol=1e-6)
    expected = pairwise(trace.read("train", rows=rows), losses)
    np.testing.assert_array_equal(CLD().fit(dense_run).attribute(query).values, expected)


def test_replay_from_a_bare_trace_is_refused(trace: Trace, small_digits: Splits) -> None:
    with pytest.raises(InputError, match=r"replayed from checkpoints: fit on runs .* not on bare traces"):
        CLD().fit(trace).attribute(small_digits.query)


def test_replay_without_enough_checkpoints_is_refused_and_recorded_queries_still_work(
    small_digits: Splits, short_recipe: Recipe, tmp_path: Path
) -> None:
    run = train(small_digits, "mlp", replace(short_recipe, epochs=2), 0, tmp_path / "run", checkpoints="last")
    with pytest.raises(InputError, match=r"at least 3 checkpoints, .* keeps 1: train with checkpoints='all'"):
        CLD().fit(run).attribute(small_digits.query)
    assert CLD().fit(run).attribute().values.shape == (200, 40)


def test_new_examples_of_another_shape_or_of_unknown_classes_are_refused(run: Run, small_digits: Splits) -> None:
    with pytest.raises(InputError, match=r"must have inputs \(1, 8, 8\)"):
        CLD().fit(run).attribute(ExampleSet.from_arrays(torch.zeros(2, 1, 9, 9), [0, 1]))
    with pytest.raises(InputError, match=r"labels below 10, got .* labels up to 10"):
        CLD().fit(run).attribute(ExampleSet.from_arrays(torch.zeros(2, 1, 8, 8), [0, 10]))


def test_a_new_example_with_a_broken_input_is_named(run: Run) -> None:
    broken = torch.zeros(2, 1, 8, 8)
    broken[1] = torch.nan
    with pytest.raises(NonFiniteError, match="query example with id 78"):
        CLD().fit(run).attribute(ExampleSet.from_arrays(broken, [0, 1], ids=[77, 78]))


# --- log odds and whitening ---


def test_log_odds_are_those_of_the_probability() -> None:
    p = np.array([[0.3, 0.9], [0.5, 1e-6], [0.999, 0.2]])
    np.testing.assert_allclose(log_odds_of(-np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    assert np.isfinite(log_odds_of(np.zeros(3))).all()
    with pytest.raises(InputError, match="below 0"):
        log_odds_of(np.array([-0.5]))


def test_whitened_log_odds_are_the_dense_formula(trace: Trace) -> None:
    scores = CLD(transform="log-odds", whiten=0.1).fit(trace).attribute()
    columns = positions_of(scores.query_ids, trace.query_ids, "query ids")
    train, query = (np.diff(log_odds_of(losses), axis=0) for losses in (trace.train_losses, trace.query_losses))
    train, query = train - train.mean(0), (query - query.mean(0))[:, columns]
    gram = train @ train.T
    gram = gram / (np.trace(gram) / len(gram)) + 0.1 * np.eye(len(gram))
    expected = train.T @ np.linalg.solve(gram, query) / (len(train) - 1)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_whitened_scores_come_out_of_core_too(trace: Trace, tmp_path: Path) -> None:
    method = CLD(transform="log-odds", whiten=0.1)
    whole = method.fit(trace).attribute()
    blocks = write_scores_in_blocks(tmp_path / "scores.safetensors", method, trace)
    np.testing.assert_array_equal(blocks.values, whole.values)


@pytest.mark.parametrize("other", [{"correlation": "spearman"}, {"common_mode": "remove"}, {"row_scaling": "rms"}])
def test_whitening_replaces_the_correlation(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="whiten replaces"):
        CLD(whiten=0.1, **other)
    with pytest.raises(InputError, match="whiten must be"):
        CLD(whiten=0.0)
