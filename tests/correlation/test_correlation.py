"""The CLD core against float64 references, scipy, and the identities it must satisfy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from comove.correlation import constant, pairwise, per_class, sizes, top_k
from comove.correlation.inputs import Side, sides
from comove.correlation.product import panels
from comove.correlation.standardise import Plan
from comove.correlation.top_k_heap import TopK, descending, unpack
from comove.correlation.workers import Workers
from comove.errors import InputError, InputTypeError, NonFiniteError
from comove.ties import tie_order

VALIDATION = [[2.0], [1.4], [1.0], [0.8]]
ABCD = np.array([[2, 1.5, 1.2, 1.1], [2, 1.9, 1.6, 1.1], [1, 1, 1, 1], [1, 0.5, 0.5, 0.6]]).T
OPTIONS: list[dict[str, Any]] = [
    {"correlation": c, "common_mode": m, "row_scaling": r}
    for c in ("pearson", "spearman", "covariance")
    for m in ("keep", "remove")
    for r in ("none", "rms")
]


def best_first(scores_QN: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    """Columns by falling score, equal ones by the hash of id or column: a stable sort of columns in that order."""
    order = tie_order(np.arange(scores_QN.shape[1]) if ids is None else ids)
    return order[np.argsort(-scores_QN[:, order], axis=1, kind="stable")]


def curves(rows: int, columns: int, seed: int = 0, dtype: Any = np.float64) -> Any:
    """Losses that decay together and wobble apart."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-3 * np.arange(rows) / rows)[:, None] * rng.uniform(0.5, 2, columns)
    return (decay + 0.1 * rng.random((rows, columns))).astype(dtype)


def reference(train: Any, query: Any, options: dict[str, Any]) -> Any:
    """The definition, written out in float64 with numpy and scipy, all at once."""
    d, e = np.diff(np.asarray(train, np.float64), axis=0), np.diff(np.asarray(query, np.float64), axis=0)
    if options.get("row_scaling") == "rms":
        rms = np.sqrt((d**2).mean(1, keepdims=True))
        d, e = d / rms, e / rms
    if options.get("common_mode") == "remove":
        d, e = d - d.mean(0), e - e.mean(0)
        mean = d.mean(1, keepdims=True)
        d, e = (x - mean @ np.linalg.lstsq(mean, x, rcond=None)[0] for x in (d, e))
    if options.get("correlation") == "spearman":
        d, e = stats.rankdata(d, axis=0), stats.rankdata(e, axis=0)
    n = d.shape[1]
    if options.get("correlation") == "covariance":
        return np.cov(d.T, e.T)[:n, n:]
    return np.corrcoef(d.T, e.T)[:n, n:]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "BLOCK", {"cpu": 100, "cuda": 100})
    monkeypatch.setattr(sizes, "NARROWEST", 1)
    monkeypatch.setattr(sizes, "PANEL", 300)
    monkeypatch.setattr(sizes, "TILE", dict.fromkeys(("cpu", "cuda"), (8, 5)))
    monkeypatch.setattr(sizes, "FAST_COLUMNS", 3)
    monkeypatch.setattr(sizes, "FAST_ROWS", 4)


@pytest.fixture
def torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what an accelerator would run, on the CPU."""
    monkeypatch.setattr(Side, "xp", torch)


# ------------------------------------------------------------------------------------------------- what the scores are


def test_hand_checked_example_pairwise_and_per_class() -> None:
    expected = [1.0, -1.0, 0.0, 0.933257]
    np.testing.assert_allclose(pairwise(ABCD, VALIDATION)[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(per_class(ABCD, [3] * 4, VALIDATION, [3]), expected, atol=1e-6)
    ids, _ = top_k(ABCD, VALIDATION, 2, train_ids=[10, 20, 30, 40])
    assert ids.tolist() == [[10, 40]]
    assert constant(ABCD).tolist() == [False, False, True, False]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_equals_its_float64_definition(options: dict[str, Any]) -> None:
    train, query = curves(13, 30), curves(13, 9, seed=1)
    scores = pairwise(train, query, **options)
    assert scores.dtype == np.float32
    assert scores.shape == (30, 9)
    np.testing.assert_allclose(scores, reference(train, query, options), atol=2e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("torch_path")
def test_accelerator_code_equals_the_float64_definition(options: dict[str, Any]) -> None:
    train, query = torch.from_numpy(curves(13, 30)), torch.from_numpy(curves(13, 9, seed=1))
    scores = pairwise(train, query, **options)
    np.testing.assert_allclose(scores.numpy(), reference(train, query, options), atol=2e-6)
    ids, best = top_k(train, query, 7, **options)
    order = best_first(scores.numpy().T)[:, :7]
    assert np.array_equal(ids.numpy(), order)
    assert np.array_equal(best.numpy(), np.take_along_axis(scores.numpy().T, order, 1))


@pytest.mark.usefixtures("torch_path")
def test_accelerator_per_class_and_constant_equal_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    train, query = torch.from_numpy(curves(13, 30)), torch.from_numpy(curves(13, 9, seed=1))
    train[:, 4] = 1.0
    labels, query_labels = torch.arange(30) % 3, torch.arange(9) % 3
    there, flat = per_class(train, labels, query, query_labels), constant(train)
    monkeypatch.undo()
    np.testing.assert_allclose(there.numpy(), per_class(train, labels, query, query_labels).numpy(), atol=1e-6)
    assert torch.equal(flat, constant(train))
    assert flat.nonzero().tolist() == [[4]]


def test_pearson_and_spearman_equal_scipy_with_ties() -> None:
    rng = np.random.default_rng(3)
    train, query = rng.integers(0, 4, (9, 20)).cumsum(0), rng.integers(0, 4, (9, 6)).cumsum(0)
    for name, oracle in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = [[oracle(a, b).statistic for b in np.diff(query, axis=0).T] for a in np.diff(train, axis=0).T]
        np.testing.assert_allclose(pairwise(train, query, correlation=name), expected, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [3, 4, 91, 10_001])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_agrees_with_float64_at_any_scale_and_length(rows: int, scale: float) -> None:
    train, query = scale * curves(rows, 12, seed=4), scale * curves(rows, 5, seed=5)
    expected = reference(train, query, {})
    np.testing.assert_allclose(pairwise(train, query), expected, atol=1e-5)
    labels = np.arange(12) % 5
    diagonal = expected[np.arange(12), labels]
    np.testing.assert_allclose(per_class(train, labels, query, np.arange(5)), diagonal, atol=1e-5)
    rounded = train.astype(np.float32), query.astype(np.float32)
    expected = reference(*rounded, {})[np.arange(12), labels]
    np.testing.assert_allclose(per_class(rounded[0], labels, rounded[1], np.arange(5)), expected, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_agrees_with_float64_on_long_flat_tails(offset: float) -> None:
    rows = 400
    train, query = (offset + np.maximum(curves(rows, n, seed=6) - 1.0, 0.0) for n in (40, 7))
    moving = ~constant(train)
    assert 0 < moving.sum() <= 40
    for name in ("pearson", "spearman"):
        expected = reference(train[:, moving], query, {"correlation": name})
        np.testing.assert_allclose(pairwise(train, query, correlation=name)[moving], expected, atol=1e-5)


@pytest.mark.parametrize("rows", [300, 10_001])
def test_a_tail_of_many_tiny_differences_is_not_rounded_away(rows: int) -> None:
    """Each entry of the tail is below a float32 rounding of the sum; together they are not."""
    rng = np.random.default_rng(8)
    tail = 1.6e-4 * rng.choice([-1.0, 1.0], (rows - 2, 1)).cumsum(0)
    losses = 5 + np.vstack([np.zeros((2, 300)), tail - 1 + 1e-5 * rng.standard_normal((rows - 2, 300)).cumsum(0)])
    expected = reference(losses, losses[:, :200], {})
    np.testing.assert_allclose(pairwise(losses, losses[:, :200]), expected, atol=2e-6)
    labels = np.arange(300) % 200
    scores = per_class(losses, labels, losses[:, :200], np.arange(200))
    np.testing.assert_allclose(scores, expected[np.arange(300), labels], atol=3e-6)


@pytest.mark.parametrize(("dtype", "ripple"), [(np.float32, 1e-4), (np.float64, 1e-6)])
def test_per_class_agrees_where_differences_are_nearly_all_alike(dtype: Any, ripple: float) -> None:
    """A straight line with a ripple far below its slope: the case that float32 differences cannot carry."""
    rng = np.random.default_rng(7)
    ramp = np.linspace(50, 1, 60)[:, None]
    train, query = ((ramp * (1 + ripple * rng.random((60, n)))).astype(dtype) for n in (30, 1))
    scores = per_class(train, np.zeros(30, int), query, [0])
    np.testing.assert_allclose(scores, reference(train, query, {})[:, 0], atol=1e-6)


def test_covariance_of_large_losses_stays_precise_and_overflow_is_refused() -> None:
    train, query = 1e15 * curves(20, 6), 1e-9 * curves(20, 4, seed=1)
    expected = reference(train, query, {"correlation": "covariance"})
    np.testing.assert_allclose(pairwise(train, query, correlation="covariance"), expected, rtol=1e-4, atol=1e-1)
    with pytest.raises(InputError, match="fit in float32"):
        pairwise(1e25 * train, train, correlation="covariance")


def test_removing_the_common_mode_is_the_correlation_of_least_squares_residuals() -> None:
    train, query = curves(25, 15), curves(25, 6, seed=1)
    mean = (np.diff(train, axis=0) - np.diff(train, axis=0).mean(0)).mean(1)
    design = np.column_stack([np.ones(24), mean])

    def residuals(losses: Any) -> Any:
        change = np.diff(losses, axis=0)
        return change - design @ np.linalg.lstsq(design, change, rcond=None)[0]

    expected = np.corrcoef(residuals(train).T, residuals(query).T)[:15, 15:]
    np.testing.assert_allclose(pairwise(train, query, common_mode="remove"), expected, atol=2e-6)


def test_common_mode_multiples_of_the_mean_score_zero_and_cancelling_means_remove_nothing() -> None:
    shape = curves(30, 1, seed=2)
    multiples = shape * np.array([0.5, 1.0, 3.0])
    query = np.hstack([7 * shape, curves(30, 2, seed=3)])
    assert not pairwise(multiples, query, common_mode="remove").any()
    wobble = curves(30, 6, seed=4)
    cancelling = np.hstack([wobble, -wobble])
    np.testing.assert_array_equal(pairwise(cancelling, query, common_mode="remove"), pairwise(cancelling, query))


def test_row_scaling_equals_scaling_the_differences_by_hand_and_keeps_rows_of_zeros() -> None:
    train, query = curves(20, 15), curves(20, 6, seed=1)
    train[8] = train[7]  # one row of training differences is all zero
    rms = np.sqrt((np.diff(train, axis=0) ** 2).mean(1))
    rms[rms == 0] = 1
    by_hand = [np.vstack([np.zeros(x.shape[1]), (np.diff(x, axis=0) / rms[:, None]).cumsum(0)]) for x in (train, query)]
    np.testing.assert_allclose(pairwise(train, query, row_scaling="rms"), pairwise(*by_hand), atol=1e-6)


def test_row_scaling_undoes_any_rescaling_of_the_rows() -> None:
    train, query = curves(20, 15), curves(20, 6, seed=1)
    factor = np.random.default_rng(5).uniform(0.01, 100, 19)[:, None]
    stretched = [np.vstack([x[:1], x[:1] + (factor * np.diff(x, axis=0)).cumsum(0)]) for x in (train, query)]
    expected = pairwise(train, query, row_scaling="rms", correlation="covariance")
    np.testing.assert_allclose(pairwise(*stretched, row_scaling="rms", correlation="covariance"), expected, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_constant_columns_score_exactly_zero(options: dict[str, Any]) -> None:
    train, query = curves(12, 6), curves(12, 3, seed=1)
    train[:, 2] = 0.7
    query[:, 1] = 1e4
    scores = pairwise(train, query, **options)
    if options["common_mode"] == "keep" and options["row_scaling"] == "none":
        assert not scores[2].any()
    if options["row_scaling"] == "none":
        assert not scores[:, 1].any()
    assert np.isfinite(scores).all()
    assert scores[0, 0] != 0


def test_differences_equal_within_rounding_count_as_constant() -> None:
    line = np.linspace(1e4, 0.1, 40)[:, None]  # equal steps, but for float64 rounding
    assert np.ptp(np.diff(line, axis=0)) > 0
    losses = np.hstack([line, curves(40, 1), line + 1e-6 * curves(40, 1)])
    assert constant(losses).tolist() == [True, False, False]
    assert not pairwise(losses, curves(40, 2))[0].any()
    assert per_class(losses, [0, 0, 0], curves(40, 1), [0]).tolist()[0] == 0
    assert per_class(losses, [0, 0, 0], line, [0]).tolist() == [0, 0, 0]


def test_per_class_equals_correlation_with_the_mean_of_the_class() -> None:
    train, query = curves(11, 50), curves(11, 20, seed=1)
    labels, query_labels = np.arange(50) % 4 * 1000 - 7, np.arange(20) % 5 * 1000 - 7
    scores = per_class(train, labels, query, query_labels)
    for i in range(50):
        mean = np.diff(query, axis=0)[:, query_labels == labels[i]].mean(1)
        assert scores[i] == pytest.approx(stats.pearsonr(np.diff(train[:, i]), mean).statistic, abs=1e-6)
    wide = per_class(train, labels * 10**12, query, query_labels * 10**12)
    np.testing.assert_array_equal(wide, scores)


# --------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_block_and_tile_sizes_change_no_score(options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    train, query = curves(20, 70), curves(20, 23, seed=1)
    labels = np.arange(70) % 5
    whole, classes = pairwise(train, query, **options), per_class(train, labels, query, np.arange(23) % 5)
    flat = constant(train)
    request.getfixturevalue("small_tiles")
    np.testing.assert_allclose(pairwise(train, query, **options), whole, atol=1e-6)
    np.testing.assert_allclose(per_class(train, labels, query, np.arange(23) % 5), classes, atol=1e-6)
    np.testing.assert_array_equal(constant(train), flat)


@given(rows=st.integers(3, 8), n=st.integers(1, 40), q=st.integers(1, 12), levels=st.integers(2, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_top_k_equals_a_sort_by_score_then_hash(rows: int, n: int, q: int, levels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    train, query = rng.integers(0, levels, (rows, n)), rng.integers(0, levels, (rows, q))  # few levels: many ties
    with pytest.MonkeyPatch.context() as patch:
        tile = data.draw(st.tuples(st.sampled_from([4, 16, 512]), st.sampled_from([4, 8, 8192])))
        patch.setattr(sizes, "TILE", {"cpu": tile})
        patch.setattr(sizes, "PANEL", data.draw(st.sampled_from([64, 1 << 25])))
        scores = pairwise(train, query).T
        ids, best = top_k(train, query, k)
    order = best_first(scores)[:, :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, order, 1))
    assert (ids.dtype, best.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_top_k_equals_pairwise_over_several_tiles(options: dict[str, Any]) -> None:
    train, query = curves(31, 2500, dtype=np.float32), curves(31, 60, seed=1, dtype=np.float32)
    names = np.random.default_rng(0).permutation(10**6)[:2500]
    scores = pairwise(train, query, **options).T
    ids, best = top_k(train, query, 40, train_ids=names, **options)
    order = best_first(scores, names)[:, :40]
    np.testing.assert_array_equal(ids, names[order])
    np.testing.assert_array_equal(best, np.take_along_axis(scores, order, 1))


@pytest.mark.parametrize("path", ["numpy", "torch_path"])
def test_scores_equal_once_clipped_or_but_for_the_sign_of_zero_tie_to_the_lower_rank(
    path: str, request: pytest.FixtureRequest
) -> None:
    over = np.nextafter(np.float32(1), np.float32(2))
    tile = np.array([[1, -over, -0.0], [over, -1, 0.0], [0.5, -1, -0.0], [1, -over, 0.0]], np.float32)
    if path != "numpy":
        request.getfixturevalue(path)
    ranks = np.array([3, 0, 2, 1])
    best = TopK(sides(GOOD, GOOD, None, None)[0], 3, 2, 1.0, ranks if path == "numpy" else torch.from_numpy(ranks))
    best.look(0, tile if path == "numpy" else torch.from_numpy(tile))
    best.settle()
    ids, scores = unpack(descending(torch.as_tensor(best.keys_BK).numpy()))
    assert ids.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert scores.tolist() == [[1, 1], [-1, -1], [0, 0]]


def test_top_k_of_perfectly_opposed_columns_keeps_them_by_their_hash() -> None:
    line = curves(6, 1)
    train = np.hstack([-s * line for s in np.linspace(1, 3, 700)])
    scores = pairwise(train, line)
    order = best_first(scores.T)[:, :4]
    np.testing.assert_array_equal(top_k(train, line, 4)[0], order)


@pytest.mark.parametrize("names", [None, np.arange(3000) * 7 - 9])
def test_top_k_with_every_score_equal_keeps_columns_by_their_hash_whatever_their_order(names: Any) -> None:
    ids, scores = top_k(np.ones((4, 3000)), curves(4, 11), 5, train_ids=names)
    known = np.arange(3000) if names is None else names
    assert ids.tolist() == [known[tie_order(known)][:5].tolist()] * 11
    assert not scores.any()
    order = np.random.default_rng(0).permutation(3000)
    assert top_k(np.ones((4, 3000)), curves(4, 11), 5, train_ids=known[order])[0].tolist() == ids.tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_examples_and_queries_permutes_the_scores(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    train, query = curves(14, 40), curves(14, 17, seed=1)
    p, r = rng.permutation(40), rng.permutation(17)
    expected = pairwise(train, query, **options)[p][:, r]
    np.testing.assert_allclose(pairwise(train[:, p], query[:, r], **options), expected, atol=1e-6)
    labels, query_labels = np.arange(40) % 3, np.arange(17) % 3
    moved = per_class(train[:, p], labels[p], query[:, r], query_labels[r])
    np.testing.assert_allclose(moved, per_class(train, labels, query, query_labels)[p], atol=1e-6)


def test_pearson_ignores_offset_and_positive_scale_and_turns_sign_with_a_negative_one() -> None:
    train, query = curves(14, 20), curves(14, 5, seed=1)
    np.testing.assert_allclose(pairwise(3 * train + 5, query), pairwise(train, query), atol=1e-6)
    np.testing.assert_allclose(pairwise(-train, query), -pairwise(train, query), atol=1e-6)


def test_correlations_of_a_column_with_itself_are_one_and_none_exceeds_it() -> None:
    train = curves(50, 300)
    scores = pairwise(train, train)
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-6)
    assert np.abs(scores).max() <= 1
    assert per_class(train, np.arange(300), train, np.arange(300)).max() <= 1
    assert top_k(train, train, 3)[1].max() <= 1


def test_thread_count_does_not_change_the_scores() -> None:
    train, query = curves(20, 40_000, dtype=np.float32), curves(20, 8, seed=1, dtype=np.float32)
    labels, before = np.arange(40_000) % 8, torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((per_class(train, labels, query, np.arange(8)), pairwise(train, query)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- input kinds


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_numpy_dtypes_equal_their_float64_values(dtype: Any) -> None:
    train, query = (50 * curves(12, 9)).astype(dtype), (50 * curves(12, 4, seed=1)).astype(dtype)
    exact = train.astype(np.float64), query.astype(np.float64)
    np.testing.assert_array_equal(pairwise(train, query), pairwise(*exact))
    labels = np.arange(9) % 4
    expected = per_class(exact[0], labels, exact[1], np.arange(4))
    np.testing.assert_allclose(per_class(train, labels, query, np.arange(4)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_torch_in_torch_out_and_equal_to_numpy(dtype: torch.dtype) -> None:
    train = torch.from_numpy(50 * curves(12, 9)).to(dtype)
    query = torch.from_numpy(50 * curves(12, 4, seed=1)).to(dtype)
    if dtype.is_floating_point:
        train.requires_grad_()
    exact = train.detach().double().numpy(), query.double().numpy()
    labels = torch.arange(9) % 4
    scores, classes = pairwise(train, query), per_class(train, labels, query, torch.arange(4))
    ids, best = top_k(train, query, 3, train_ids=torch.arange(9) + 100)
    assert all(isinstance(x, torch.Tensor) and not x.requires_grad for x in (scores, classes, ids, best))
    np.testing.assert_array_equal(scores.numpy(), pairwise(*exact))
    np.testing.assert_allclose(classes.numpy(), per_class(exact[0], labels, exact[1], np.arange(4)), atol=1e-6)
    np.testing.assert_array_equal(ids.numpy(), top_k(*exact, 3)[0] + 100)


def test_lists_and_mixed_kinds_equal_arrays() -> None:
    train, query = curves(12, 9), curves(12, 4, seed=1)
    expected = pairwise(train, query)
    listed = pairwise(train.tolist(), query.tolist())
    assert isinstance(listed, np.ndarray)
    np.testing.assert_array_equal(listed, expected)
    mixed = pairwise(train, torch.from_numpy(query))
    assert isinstance(mixed, torch.Tensor)
    np.testing.assert_array_equal(mixed.numpy(), expected)


def test_read_only_memory_maps_in_and_a_npy_map_out(tmp_path: Path) -> None:
    train, query = curves(12, 70, dtype=np.float32), curves(12, 23, seed=1, dtype=np.float32)
    np.save(tmp_path / "train.npy", train)
    out = np.lib.format.open_memmap(tmp_path / "scores.npy", mode="w+", dtype=np.float32, shape=(70, 23))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returned = pairwise(np.load(tmp_path / "train.npy", mmap_mode="r"), query, out=out)
    assert returned is out
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), pairwise(train, query))


def test_out_may_be_a_strided_view_or_a_tensor() -> None:
    train, query = curves(12, 70), curves(12, 23, seed=1)
    space = np.full((70, 46), 9, np.float32)
    assert pairwise(train, query, out=space[:, ::2]).base is space
    np.testing.assert_allclose(space[:, ::2], pairwise(train, query), atol=1e-6)
    assert (space[:, 1::2] == 9).all()
    tensor = torch.empty(70, 23)
    assert pairwise(torch.from_numpy(train), torch.from_numpy(query), out=tensor) is tensor
    np.testing.assert_allclose(tensor.numpy(), pairwise(train, query), atol=1e-6)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("path", ["numpy", "torch_path"])
def test_inputs_are_never_changed(make: Any, path: str, request: pytest.FixtureRequest) -> None:
    if path != "numpy":
        request.getfixturevalue(path)
    train, query = make(curves(12, 9)), make(curves(12, 4, seed=1))
    labels, query_labels = make(np.arange(9) % 4), make(np.arange(4))
    before = [np.asarray(x).copy() for x in (train, query, labels, query_labels)]
    for options in OPTIONS:
        pairwise(train, query, **options)
        top_k(train, query, 2, **options)
    per_class(train, labels, query, query_labels)
    constant(train)
    for now, then in zip((train, query, labels, query_labels), before, strict=True):
        np.testing.assert_array_equal(np.asarray(now), then)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["train", "query"])
def test_a_non_finite_loss_is_named_by_side_row_and_example(value: float, side: str) -> None:
    train, query = curves(6, 40, dtype=np.float32), curves(6, 40, seed=1, dtype=np.float32)
    (train if side == "train" else query)[3, 17] = value
    labels, ids = np.zeros(40, int), np.arange(40) + 500
    calls: list[Any] = [
        lambda **k: pairwise(train, query, **k),
        lambda **k: per_class(train, labels, query, labels, **k),
        lambda **k: top_k(train, query, 2, **k),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError, match=rf"{side} losses.*found {value} at row 3, column 17"):
            call()
        with pytest.raises(NonFiniteError, match=rf"{side} losses.* at row 3, id 517"):
            call(train_ids=ids, query_ids=ids)


def test_constant_names_a_non_finite_loss_and_losses_too_large_to_square_are_refused() -> None:
    losses = curves(6, 4)
    losses[5, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 5, id 30"):
        constant(losses, ids=[10, 20, 30, 40])
    losses[5, 2] = 1e200
    with pytest.raises(InputError, match=r"below 1e\+150; found 1e\+200 at row 5, column 2"):
        constant(losses)


GOOD = np.ones((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pairwise(np.ones((2, 3)), np.ones((2, 3))), InputError, "at least 3 recorded rows"),
        (lambda: pairwise(np.ones(5), GOOD), InputError, r"train losses must have the shape.*found \(5,\)"),
        (lambda: pairwise(GOOD, np.ones((4, 0))), InputError, "query losses must have the shape"),
        (lambda: pairwise(GOOD, np.ones((5, 3))), InputError, "found 4 rows for train and 5 for query"),
        (lambda: pairwise(GOOD.astype(str), GOOD), InputTypeError, "train losses must be real numbers"),
        (lambda: pairwise(GOOD, GOOD * 1j), InputTypeError, "query losses must be real numbers"),
        (lambda: pairwise(torch.ones(4, 3, dtype=torch.bool), GOOD), InputTypeError, "real numbers .*got bool"),
        (lambda: pairwise([[1.0, 2.0], [1.0]], GOOD), InputError, "rectangular"),
        (lambda: pairwise(GOOD, GOOD, correlation="pearsn"), InputError, "Did you mean 'pearson'"),  # type: ignore[arg-type]
        (lambda: pairwise(GOOD, GOOD, common_mode=True), InputError, "common_mode must be one of 'keep', 'remove'"),  # type: ignore[arg-type]
        (lambda: top_k(GOOD, GOOD, 1, row_scaling="std"), InputError, "row_scaling must be one of"),  # type: ignore[arg-type]
        (lambda: pairwise(GOOD, GOOD, out=[[0.0]]), InputTypeError, "out must be a NumPy array"),
        (lambda: pairwise(GOOD, GOOD, out=np.ones((3, 3))), InputError, "float32 .*float64"),
        (lambda: pairwise(GOOD, GOOD, out=np.ones((3, 2), np.float32)), InputError, r"shape \(3, 3\)"),
        (lambda: pairwise(GOOD, GOOD, out=torch.ones(3, 3)), InputError, "of the kind of the losses"),
        (lambda: pairwise(GOOD, GOOD, out=np.broadcast_to(np.float32(0), (3, 3))), InputError, "read-only"),
        (lambda: top_k(GOOD, GOOD, 0), InputError, "k must be a whole number from 1 to 3, got 0"),
        (lambda: top_k(GOOD, GOOD, 4), InputError, "got 4"),
        (lambda: top_k(GOOD, GOOD, 1.5), InputTypeError, "k must be a whole number"),  # type: ignore[arg-type]
        (lambda: top_k(GOOD, GOOD, True), InputTypeError, "k must be a whole number"),
        (lambda: top_k(GOOD, GOOD, 1, train_ids=[1, 2]), InputError, r"train ids must have the shape \(3,\)"),
        (lambda: top_k(GOOD, GOOD, 1, train_ids=["a", "b", "c"]), InputTypeError, "train ids must be integers"),
        (lambda: per_class(GOOD, [0, 1, 2], GOOD, [0, 0, 5]), InputError, r"class\(es\) 1, 2\."),
        (lambda: per_class(GOOD, [0, 0, 10**9], GOOD, [0, -(10**9), 5]), InputError, r"class\(es\) 1000000000\."),
        (lambda: per_class(GOOD, [0.0, 1.0, 2.0], GOOD, [0, 1, 2]), InputTypeError, "train labels must be integers"),
        (lambda: per_class(GOOD, [0, 0, 0], GOOD, [0]), InputError, r"query labels must have the shape \(3,\)"),
        (lambda: per_class(GOOD, [[0, 0, 0]], GOOD, [0, 0, 0]), InputError, r"found \(1, 3\)"),
    ],
)
def test_wrong_arguments_are_refused_with_what_must_hold_and_what_was_found(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_memory_beside_the_output_is_bounded_by_the_panels(small_tiles: None) -> None:
    """No array of unit columns is wider than a panel: what bounds memory whatever N and Q."""
    side, _ = sides(curves(11, 200), curves(11, 200), None, None)
    widths = [panel.unit.shape[1] for panel in panels(side, Plan(), 8, Workers(None, 1))]
    assert max(widths) * 10 <= 300
    assert sum(widths) == 200
