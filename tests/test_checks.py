"""Every public way in against every kind of junk: right to the last number, or one clear error of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from comove.attribution import Scores as TypedScores
from comove.checks import as_array, as_ids, as_labels, as_real, as_tensor, check_seed, real_number, whole_number
from comove.coreset import select
from comove.correlation import pairwise, per_class, top_k
from comove.correlation.streaming import StreamingCLD
from comove.data import ExampleSet, split
from comove.errors import InputError, InputTypeError
from comove.evaluation import linear_datamodeling_score, subsets
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.evaluation.prediction_brittleness.benchmark import checked_ks
from comove.evaluation.prediction_brittleness.models import check_models
from comove.evaluation.prediction_brittleness.removal import check_k
from comove.retraining.files import planned
from comove.trace import Recorder, Trace

Scores: Any = TypedScores  # called with what its types do not allow
REFUSED = (InputError, InputTypeError)
RNG = np.random.default_rng(0)
LOSSES = RNG.integers(1, 60, (6, 4)) / 8  # eighths: exact in every float type there is
VECTOR = LOSSES[0]
IDS = np.array([11, 3, 40, 7])
LABELS = np.array([1, 0, 2, 1])
MASKS = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1]], bool)
OUTPUTS = RNG.integers(1, 60, (5, 3)) / 8
Convert = Callable[[np.ndarray], Any]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Nothing is cast with a warning of NumPy or torch: each of these is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "trace", train_ids=IDS, query_ids=[100])


def observed(recorder: Recorder, **given: Any) -> Any:
    recorder.observe(IDS, **given)
    side = recorder._sides["train"]
    return torch.cat([value.double().flatten() for _, value in sorted(side.buffers.items())]).numpy()


# --- what arrays come as -----------------------------------------------------------------------------------------


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def reversed_twice(array: np.ndarray) -> np.ndarray:
    """The same numbers, backwards in memory."""
    back = array[tuple(slice(None, None, -1) for _ in array.shape)].copy()
    return back[tuple(slice(None, None, -1) for _ in array.shape)]


def read_only(array: np.ndarray) -> np.ndarray:
    own = array.copy()
    own.flags.writeable = False
    return own


def in_pandas(array: np.ndarray) -> Any:
    """With an index that is no 0 ... N-1, which must not move anything."""
    index = list(range(len(array)))[::-1]
    return pd.Series(array, index=index) if array.ndim == 1 else pd.DataFrame(array, index=index)


RIGHT: dict[str, Convert] = {
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "negative strides": reversed_twice,
    "column order": np.asfortranarray,
    "read-only": read_only,
    "tensor": tensor,
    "negated lazily": lambda a: torch._neg_view(-tensor(a)),
    "lists": lambda a: a.tolist(),
    "list of arrays": list,
    "list of tensors": lambda a: list(tensor(a)),
    "tuple of tensors with a graph": lambda a: tuple(
        row.requires_grad_() if row.is_floating_point() else row for row in tensor(a)
    ),
    "nothing masked": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    "pandas": in_pandas,
}
RIGHT_FLOATS: dict[str, Convert] = {
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "longdouble": lambda a: a.astype(np.longdouble),
    "bfloat16": lambda a: tensor(a).bfloat16(),
    "half tensor": lambda a: tensor(a).half(),
    "with a graph": lambda a: tensor(a).requires_grad_(),
    "computed with a graph": lambda a: tensor(a).requires_grad_() * 1,
}
RIGHT_INTEGERS: dict[str, Convert] = {
    "int8": lambda a: a.astype(np.int8),
    "uint8": lambda a: a.astype(np.uint8),
    "unsigned 64-bit": lambda a: a.astype(np.uint64),
    "int32 tensor": lambda a: tensor(a).int(),
    "big-endian int16": lambda a: a.astype(">i2"),
}


def quantized(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it will do without them one day
        return torch.quantize_per_tensor(tensor(array).float(), 0.5, 0, torch.quint8)


def structured(array: np.ndarray) -> np.ndarray:
    out = np.zeros(array.shape, [("a", float), ("b", int)])
    out["a"] = array
    return out


def masked(array: np.ndarray) -> Any:
    mask = np.zeros(array.shape, bool)
    mask.flat[1] = True
    return np.ma.masked_array(array, mask)


def objects(array: np.ndarray, what: Any) -> np.ndarray:
    out = array.astype(object)
    out.flat[0] = what
    return out


WRONG: dict[str, Convert] = {
    "complex": lambda a: a.astype(complex),
    "complex with an imaginary part": lambda a: a + 1j,
    "complex tensor": lambda a: tensor(a).to(torch.complex64),
    "conjugated lazily": lambda a: torch.conj(tensor(a).to(torch.complex64) * 1j),
    "strings": lambda a: a.astype(str),
    "bytes": lambda a: a.astype("S8"),
    "dates": lambda a: a.astype(np.int64).astype("datetime64[D]"),
    "time differences": lambda a: a.astype(np.int64).astype("timedelta64[s]"),
    "structured": structured,
    "masked": masked,
    "None among objects": lambda a: objects(a, None),
    "Decimal": lambda a: objects(a, Decimal("1.5")),
    "beyond 64 bits": lambda a: objects(a, 2**70),
    "sparse": lambda a: tensor(a).to_sparse(),
    "quantized": quantized,
    "without values": lambda a: torch.empty(a.shape, device="meta"),
    "a function": lambda a: len,
    "None": lambda a: float,
    "a mapping": lambda a: {"a": 1},
}
WRONG_INTEGERS: dict[str, Convert] = {
    "floats": lambda a: a.astype(float),
    "float tensor": lambda a: tensor(a).float(),
    "booleans": lambda a: a > 5,
    "boolean tensor": lambda a: tensor(a) > 5,
    "above 2^63": lambda a: a.astype(np.uint64) + np.uint64(2**63),
    "tensor above 2^63": lambda a: torch.from_numpy(a.astype(np.uint64) + np.uint64(2**63)),
    "one-hot": lambda a: np.eye(50, dtype=int)[a],
    "fractions": lambda a: a + 0.5,
    "a share missing": lambda a: np.where(a > 5, a, np.nan),
}


# --- real numbers ------------------------------------------------------------------------------------------------

REALS: dict[str, tuple[np.ndarray, Callable[[Any, Any], Any]]] = {
    "trace, train losses": (
        LOSSES,
        lambda v, _: Trace.from_arrays(train_losses=v, query_losses=LOSSES).train_losses,
    ),
    "trace, query losses": (
        LOSSES,
        lambda v, _: Trace.from_arrays(train_losses=LOSSES, query_losses=v).query_losses,
    ),
    "scores": (LOSSES, lambda v, _: Scores(v, range(6), IDS, "m").values),
    "pairwise, train": (LOSSES, lambda v, _: pairwise(v, LOSSES)),
    "pairwise, query": (LOSSES, lambda v, _: pairwise(LOSSES, v)),
    "top_k": (LOSSES, lambda v, _: top_k(v, LOSSES, 2)[1]),
    "per_class": (LOSSES, lambda v, _: per_class(v, LABELS, LOSSES, LABELS)),
    "recorder, loss": (VECTOR, lambda v, recorder: observed(recorder, loss=v)),
    "recorder, logits": (LOSSES[:4, :3], lambda v, recorder: observed(recorder, logits=v, labels=LABELS)),
    "recorder, features": (
        LOSSES[:4, :3],
        lambda v, recorder: observed(recorder, logits=LOSSES[:4, :3], labels=LABELS, features=v),
    ),
    "streaming": (VECTOR, lambda v, _: streamed(v)),
    "LDS, scores": (LOSSES[:4, :3], lambda v, _: lds(scores=v)),
    "LDS, outputs": (OUTPUTS, lambda v, _: lds(outputs=v)),
    "examples": (LOSSES, lambda v, _: ExampleSet.from_arrays(v, [0, 1] * 3).batch(np.arange(6))[0].numpy()),
}


def streamed(first: Any) -> Any:
    stream = StreamingCLD(LABELS, [0, 1, 2])
    for row in (first, *LOSSES[1:]):
        stream.update(row, LOSSES[2, :3])
    return stream._train.first


def lds(**given: Any) -> Any:
    whole = {"scores": LOSSES[:4, :3], "masks": MASKS, "outputs": OUTPUTS, **given}
    return linear_datamodeling_score(**whole, bootstrap=0).per_query


@pytest.mark.parametrize("entry", REALS)
@pytest.mark.parametrize("kind", [*RIGHT, *RIGHT_FLOATS])
def test_real_numbers_of_any_kind_are_read_as_plain_ones_are(entry: str, kind: str, recorder: Recorder) -> None:
    plain, call = REALS[entry]
    found = np.asarray(call({**RIGHT, **RIGHT_FLOATS}[kind](plain), recorder), np.float64)
    again = Recorder(recorder.path.parent / "again", train_ids=IDS, query_ids=[100])
    np.testing.assert_array_equal(found, np.asarray(call(plain, again), np.float64))


@pytest.mark.parametrize("entry", REALS)
@pytest.mark.parametrize("kind", WRONG)
def test_what_are_no_real_numbers_is_refused(entry: str, kind: str, recorder: Recorder) -> None:
    plain, call = REALS[entry]
    with pytest.raises(REFUSED):
        call(WRONG[kind](plain), recorder)


@pytest.mark.parametrize("entry", [entry for entry in REALS if "LDS" not in entry and entry != "examples"])
@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
def test_booleans_are_no_losses_and_no_scores(entry: str, kind: str, recorder: Recorder) -> None:
    plain, call = REALS[entry]
    given = {"array": plain > 3, "tensor": tensor(plain > 3), "list": (plain > 3).tolist()}[kind]
    with pytest.raises(REFUSED, match="real numbers"):
        call(given, recorder)


@pytest.mark.parametrize("entry", REALS)
def test_rows_of_unequal_length_and_arrays_of_no_or_too_many_dimensions_are_refused(
    entry: str, recorder: Recorder
) -> None:
    _, call = REALS[entry]
    for junk in ([[1.0, 2.0], [1.0]], np.float64(1.0), 3, [], np.zeros((0, 3)), np.zeros((2, 2, 2, 2))):
        if entry == "examples" and np.ndim(np.asarray(junk, object)) == 4:
            continue
        with pytest.raises(REFUSED):
            call(junk, recorder)


# --- ids and labels ----------------------------------------------------------------------------------------------

SCORES = Scores(LOSSES[:4], IDS, [1, 2, 5, 8], "m")
EXAMPLES = ExampleSet.from_arrays(LOSSES[:4], LABELS, ids=IDS, classes=list("abc"))
NEW: dict[str, Callable[[Any], Any]] = {
    "trace, train ids": lambda v: Trace.from_arrays(train_losses=LOSSES, query_losses=LOSSES, train_ids=v).train_ids,
    "trace, query ids": lambda v: Trace.from_arrays(train_losses=LOSSES, query_losses=LOSSES, query_ids=v).query_ids,
    "scores, train ids": lambda v: Scores(LOSSES[:4], v, range(4), "m").train_ids,
    "scores, query ids": lambda v: Scores(LOSSES, range(6), v, "m").query_ids,
    "top_k": lambda v: np.sort(top_k(LOSSES, LOSSES, 4, train_ids=v)[0][0]),
    "pairwise": lambda v: pairwise(LOSSES, LOSSES, train_ids=v)[0] * 0 + IDS,
    "streaming": lambda v: StreamingCLD(LABELS, LABELS, train_ids=v)._train_ids,
    "examples": lambda v: ExampleSet.from_arrays(LOSSES[:4], LABELS, ids=v).ids,
    "subset": lambda v: EXAMPLES.subset(v).ids,
    "without": lambda v: subsets.without([v]).removed[0],
    "only": lambda v: subsets.only([v]).kept[0],
    "leave one out": lambda v: subsets.leave_one_out(v).ids,
}
KNOWN: dict[str, Callable[[Any], Any]] = {
    "positions": lambda v: EXAMPLES.ids[EXAMPLES.positions(v)],
    "scores, a part": lambda v: SCORES.subset(train_ids=v).train_ids,
}
SORTED = {"top_k"}


@pytest.mark.parametrize("entry", [*NEW, *KNOWN])
@pytest.mark.parametrize("kind", [*RIGHT, *RIGHT_INTEGERS])
def test_ids_of_any_kind_of_whole_number_are_kept(entry: str, kind: str) -> None:
    found = {**NEW, **KNOWN}[entry]({**RIGHT, **RIGHT_INTEGERS}[kind](IDS))
    expected = np.sort(IDS) if entry in SORTED else IDS
    assert np.asarray(found).astype(np.int64).tolist() == expected.tolist()


@pytest.mark.parametrize("entry", [*NEW, *KNOWN])
@pytest.mark.parametrize("kind", [*WRONG, *WRONG_INTEGERS])
def test_what_are_no_ids_is_refused(entry: str, kind: str) -> None:
    with pytest.raises(REFUSED):
        {**NEW, **KNOWN}[entry]({**WRONG, **WRONG_INTEGERS}[kind](IDS))


@pytest.mark.parametrize("entry", NEW)
def test_ids_given_twice_are_refused(entry: str) -> None:
    with pytest.raises(REFUSED, match="unique"):
        NEW[entry]([11, 3, 11, 7])


@pytest.mark.parametrize("kind", [*WRONG, *WRONG_INTEGERS])
def test_a_recorder_refuses_ids_and_labels_that_are_none(kind: str, tmp_path: Path, recorder: Recorder) -> None:
    convert = {**WRONG, **WRONG_INTEGERS}[kind]
    with pytest.raises(REFUSED):
        Recorder(tmp_path / "a", train_ids=convert(IDS), query_ids=[100])
    with pytest.raises(REFUSED):
        Recorder(tmp_path / "b", train_ids=IDS, query_ids=[100], train_labels=convert(LABELS))
    with pytest.raises(REFUSED):
        recorder.observe(convert(IDS), loss=VECTOR)
    with pytest.raises(REFUSED):
        recorder.observe(IDS, logits=LOSSES[:4, :3], labels=convert(LABELS))


def trace_labels(labels: Any) -> Any:
    return Trace.from_arrays(train_losses=LOSSES, query_losses=LOSSES, train_labels=labels).train_labels


CLASSES: dict[str, Callable[[Any], Any]] = {
    "trace": trace_labels,
    "scores": lambda v: Scores(LOSSES[:4], IDS, range(4), "m", train_labels=v).train_labels,
    "examples": lambda v: ExampleSet.from_arrays(LOSSES[:4], v).labels,
    "other labels": lambda v: EXAMPLES.with_labels(v).labels,
    "per_class": lambda v: per_class(LOSSES, v, LOSSES, LABELS) * 0 + LABELS,
    "streaming": lambda v: StreamingCLD(v, LABELS)._codes,
}


@pytest.mark.parametrize("entry", CLASSES)
@pytest.mark.parametrize("kind", [*RIGHT, *RIGHT_INTEGERS])
def test_labels_of_any_kind_of_whole_number_are_kept(entry: str, kind: str) -> None:
    found = CLASSES[entry]({**RIGHT, **RIGHT_INTEGERS}[kind](LABELS))
    assert np.asarray(found).astype(np.int64).tolist() == LABELS.tolist()


@pytest.mark.parametrize("entry", CLASSES)
@pytest.mark.parametrize("kind", [*WRONG, *WRONG_INTEGERS])
def test_what_are_no_labels_is_refused(entry: str, kind: str) -> None:
    with pytest.raises(REFUSED):
        CLASSES[entry]({**WRONG, **WRONG_INTEGERS}[kind](LABELS))


def test_results_own_their_ids_and_labels() -> None:
    ids, labels = IDS.copy(), LABELS.copy()
    trace = Trace.from_arrays(train_losses=LOSSES, query_losses=LOSSES, train_ids=ids, train_labels=labels)
    ids[0], labels[0] = 99, 0
    assert trace.train_ids.tolist() == IDS.tolist()
    assert trace_labels(LABELS).tolist() == LABELS.tolist()
    assert trace.train_labels is not None
    assert trace.train_labels.tolist() == LABELS.tolist()


# --- counts, seeds and budgets -----------------------------------------------------------------------------------

SUSPICION = Suspicion(IDS, LABELS, {"el2n": VECTOR})
COUNTS: dict[str, Callable[[Any], Any]] = {
    "top": lambda v: len(SCORES.top(v, query=5)),
    "bottom": lambda v: len(SCORES.bottom(v, query=5)),
    "top_k": lambda v: top_k(LOSSES, LOSSES, v)[0].shape[1],
    "random subsets": lambda v: len(subsets.random(0.5, v).masks(8)),
    "removals": lambda v: 4 - subsets.removals(SCORES, v).masks_for(IDS)[0].sum(),
    "several removals": lambda v: 4 - subsets.removals(SCORES, [v]).masks_for(IDS)[0].sum(),
    "most suspicious": lambda v: len(SUSPICION.most(v)),
    "ks": lambda v: checked_ks(v)[0],
    "several ks": lambda v: checked_ks([v])[0],
    "a bank's seeds": lambda v: int(planned(subsets.everything(), IDS, v, False)[0].seeds[0]),
}
NO_COUNTS = [2.5, 2.0, True, "2", b"2", None, 2j, np.float64(2), np.True_, np.array([[2]]), torch.tensor(2.0)]
NO_COUNTS += [
    torch.tensor(True),
    2**70,
    -1,
    Decimal(2),
    float("nan"),
    np.datetime64("2020-01-01"),
    np.ma.masked,
    {2: 2},
]


@pytest.mark.parametrize("entry", COUNTS)
@pytest.mark.parametrize(
    "count", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), np.array(2, ">i4")], ids=repr
)
def test_whole_numbers_of_any_kind_count(entry: str, count: Any) -> None:
    assert COUNTS[entry](count) == 2


@pytest.mark.parametrize("entry", COUNTS)
@pytest.mark.parametrize("count", NO_COUNTS, ids=repr)
def test_what_is_no_count_is_refused_and_never_cut(entry: str, count: Any) -> None:
    with pytest.raises(REFUSED):
        COUNTS[entry](count)


@pytest.mark.parametrize("seeds", [1.5, True, "1", None, 0, -1])
def test_numbers_of_models_are_whole(seeds: Any) -> None:
    for given in ((seeds, 1), (1, seeds)):
        with pytest.raises(REFUSED, match="seeds must be a whole number"):
            check_models(*given)
    with pytest.raises(REFUSED, match="k must be"):
        check_k(seeds, 2)


@pytest.mark.parametrize("seed", [1.5, 1.0, True, "1", None, -1, 2**64, np.float64(1), np.array([1]), 1j], ids=repr)
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: check_seed(seed, "m"),
        lambda: subsets.random(0.5, 4, seed),
        lambda: split(ExampleSet.from_arrays(LOSSES, [0, 1] * 3), query=2, seed=seed),
        lambda: linear_datamodeling_score(LOSSES[:4, :3], MASKS, OUTPUTS, seed=seed),
    ]
    for call in calls:
        with pytest.raises(REFUSED, match="seed"):
            call()


@pytest.mark.parametrize("budget", [True, 2.5, "0.1", None, np.nan, 0, -1, 1j, 5, 2**70, {0: 2.5}, {0: True}, {1.5: 1}])
@pytest.mark.parametrize("method", ["random", "per_class"])
def test_what_is_no_budget_is_refused(method: str, budget: Any) -> None:
    trace = Trace.from_arrays(train_losses=LOSSES, query_losses=LOSSES, train_labels=LABELS, query_labels=LABELS)
    with pytest.raises(REFUSED):
        select(method, trace, budget)
    of_numpy: tuple[Any, Any] = np.float32(1.0), np.int64(4)
    assert [len(select(method, trace, amount)) for amount in of_numpy] == [4, 4]


# --- the checks themselves ---------------------------------------------------------------------------------------


def test_messages_say_what_must_hold_what_was_found_and_what_to_do() -> None:
    with pytest.raises(InputTypeError, match=r"^x must be real numbers .* got complex128\. Take the real part"):
        as_real(np.ones(2) * 1j, "x")
    with pytest.raises(InputTypeError, match="structured array with the fields a, b"):
        as_real(structured(VECTOR), "x")
    with pytest.raises(InputError, match=r"x must have no masked entries, got 1 of 4: .*\.filled\(value\)"):
        as_real(masked(VECTOR), "x")
    with pytest.raises(InputTypeError, match=r"dense tensor .* kind sparse_coo; .*to_dense"):
        as_array(tensor(VECTOR).to_sparse(), "x")
    with pytest.raises(InputError, match=f"x must fit into 64-bit signed integers, found {2**63 + 40}"):
        as_ids(IDS.astype(np.uint64) + np.uint64(2**63), "x")
    with pytest.raises(InputError, match=r"one-hot: take \.argmax\(1\)"):
        as_labels(np.eye(3, dtype=int), "x")
    with pytest.raises(InputTypeError, match=r"k must be a whole number from 1 to 9, got 2\.5"):
        whole_number(2.5, "k", 1, 9)
    with pytest.raises(InputError, match="k must be a whole number from 1 to 9, got 10"):
        whole_number(10, "k", 1, 9)
    with pytest.raises(InputError, match="x must be finite, got inf"):
        real_number(np.inf, "x")


def test_a_tensor_is_taken_as_it_is_and_longdouble_as_float64() -> None:
    given = torch.ones(3)
    assert as_tensor(given, "x") is not None
    assert as_tensor(given, "x").data_ptr() == given.data_ptr()
    assert as_tensor(np.longdouble(1.5) * np.ones(2), "x").dtype is torch.float64
    assert as_tensor(np.array(3.0), "x").shape == ()
    assert not as_tensor(torch.ones(2, requires_grad=True), "x").requires_grad
    assert not as_tensor(torch._neg_view(torch.ones(2)), "x").is_neg()


def test_integers_beyond_float64_stay_exact() -> None:
    large = np.array([2**53, 2**53 + 1, 2**62 + 1])
    examples = ExampleSet.from_arrays(LOSSES[:3], [0, 1, 0], ids=large)
    assert examples.positions(large.astype(np.uint64)).tolist() == [0, 1, 2]
    assert examples.positions(2**53 + 1).tolist() == [1]


# --- outputs to fill, subclasses, numbers beside booleans ------------------------------------------------------------


def test_an_output_must_have_memory_of_its_own() -> None:
    tensor = torch.from_numpy(LOSSES)
    expected = pairwise(LOSSES, LOSSES)
    shared = LOSSES.astype(np.float32)
    bad = {
        "expanded or broadcast": (LOSSES, np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (4, 4), (0, 4))),
        "share memory": (shared, shared[:4, :4]),
        "without a gradient": (tensor, torch.empty(4, 4, requires_grad=True)),
        "lazily negated": (tensor, torch.zeros(4, 4, dtype=torch.complex64).conj().imag),
        "or broadcast": (tensor, torch.empty(1, 4).expand(4, 4)),
    }
    for match, (losses, out) in bad.items():
        with pytest.raises(InputError, match=match):
            pairwise(losses, losses, out=out)
    for own in (np.zeros((4, 4), np.float32).T, np.zeros((4, 4), np.float32)[::-1, ::-1]):
        np.testing.assert_array_equal(pairwise(LOSSES, LOSSES, out=own), expected)


def test_an_array_whose_operators_mean_something_else_is_read_as_numbers() -> None:
    class Other(np.ndarray):
        def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    np.testing.assert_array_equal(pairwise(LOSSES.view(Other), LOSSES.view(Other)), pairwise(LOSSES, LOSSES))


def test_what_no_float64_holds_is_infinite_without_a_warning() -> None:
    large = LOSSES.astype(np.longdouble) * np.longdouble("1e400")
    with pytest.raises(REFUSED, match="inf"):  # an infinite value, where long doubles are no doubles
        pairwise(large, LOSSES)


@pytest.mark.parametrize("values", [[True, 3], [[1.5, 2.0], [False, 1.0]], (np.True_, 2.5)])
def test_booleans_among_numbers_are_not_read_as_zero_and_one(values: Any) -> None:
    with pytest.raises(InputTypeError, match="must not mix booleans with numbers"):
        as_array(values)
    assert as_array([True, False]).dtype == bool


def test_a_masked_number_is_no_number() -> None:
    with pytest.raises(InputTypeError):
        real_number(np.ma.masked, "x")
