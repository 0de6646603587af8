"""The two controls: chance, and what labels alone give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from comove.attribution import Attributor, RandomControl, SameClassControl
from comove.data import Splits
from comove.discovery import parse_method
from comove.errors import InputError
from comove.trace import Trace
from comove.training import Run


def trace_of(n: int, q: int, **options: object) -> Trace:
    rng = np.random.default_rng(1)
    return Trace.from_arrays(train_losses=rng.random((3, n)), query_losses=rng.random((3, q)), **options)


def test_a_random_column_depends_on_the_seed_and_the_query_id_only() -> None:
    few = trace_of(50, 3, query_ids=[-5, 9, 2**62])
    many = trace_of(50, 40, query_ids=[9, *range(100, 138), -5])
    first, second = RandomControl().fit(few).attribute(), RandomControl().fit([many, many]).attribute()
    for id_ in (9, -5):
        np.testing.assert_array_equal(first.column(id_), second.column(id_))
        np.testing.assert_array_equal(RandomControl().fit(many).attribute([id_]).values[:, 0], first.column(id_))
    assert np.unique(second.values).size == second.values.size
    other = RandomControl(seed=1).fit(few).attribute()
    assert not np.isin(other.values, first.values).any()


def test_random_scores_are_standard_normal_and_independent_across_queries() -> None:
    values = RandomControl().fit(trace_of(2000, 50)).attribute().values.astype(np.float64)
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    correlations = np.corrcoef(values.T)[np.triu_indices(50, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, None])
def test_a_seed_that_is_no_whole_number_is_refused_when_built(seed: object) -> None:
    with pytest.raises(InputError, match="random-control: seed must be a whole number"):
        RandomControl(seed=seed)


def test_same_class_is_exactly_label_equality() -> None:
    trace = trace_of(6, 3, train_labels=[0, 1, 2, 0, 1, 7], query_labels=[0, 7, 5], query_ids=[4, 5, 6])
    values = SameClassControl().fit(trace).attribute().values
    np.testing.assert_array_equal(values, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_same_class_reads_the_labels_of_the_queries_asked_for(runs: tuple[Run, ...]) -> None:
    trace = runs[0].trace
    assert trace.query_labels is not None
    assert trace.train_labels is not None
    wanted = trace.query_ids[[30, 2, 200]]
    scores = SameClassControl().fit(runs).attribute(wanted)
    np.testing.assert_array_equal(scores.values, trace.train_labels[:, None] == trace.query_labels[None, [30, 2, 200]])


def test_new_examples_need_no_recording_for_either_control(run: Run, small_digits: Splits) -> None:
    new = small_digits.train.subset(small_digits.train.ids[:5])
    scores = SameClassControl().fit(run).attribute(new)
    np.testing.assert_array_equal(scores.values[:5], new.labels[:, None] == new.labels[None])
    assert RandomControl().fit(run).attribute(new).values.shape == (200, 5)


def test_same_class_without_labels_says_which_are_missing() -> None:
    with pytest.raises(InputError, match="needs training labels"):
        SameClassControl().fit(trace_of(4, 2))
    with pytest.raises(InputError, match="needs the queries' labels"):
        SameClassControl().fit(trace_of(4, 2, train_labels=[0, 0, 1, 1])).attribute()


def test_the_command_line_spelling_builds_the_same_control() -> None:
    among: dict[str, type[Attributor]] = {"random-control": RandomControl}
    assert parse_method("random-control:seed=3", among, "attribution method") == RandomControl(seed=3)
