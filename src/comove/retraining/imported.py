"""A bank of arrays: ground truth that was made elsewhere, with nothing left to train.

Shape legend: C rows as given, R models a row, S different subsets, M models, N train, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.checks import as_array, as_ids, as_labels, as_real
from comove.data import Ids
from comove.errors import InputError, InputTypeError, NonFiniteError, some
from comove.retraining.compact import Compact, StackedResults
from comove.retraining.contents import OWN
from comove.retraining.files import Key, bank_fingerprint
from comove.retraining.model_index import PlanNotes, Rows
from comove.retraining.own import check_names, lower_names
from comove.store import digest

__all__ = ["DEFAULT_NAME", "imported"]

DEFAULT_NAME = "imported"
"""Of the plan of subsets, and of the training where no other name is given."""


def imported(
    masks: object, outputs: object, examples: Mapping[str, object], higher: Mapping[str, bool], name: str
) -> Compact:
    """The parts of a bank; arguments and errors as of :meth:`RetrainingBank.from_arrays`.

    Args:
        masks: (C, N).
        outputs: by name, (C, Q) or (C, R, Q).
        examples: ids and labels by the names that a bank has for them, ``None`` for what is not given.
        higher: by output, whether more of it is better.
        name: of the training.
    """
    masks_CN = _checked_masks(masks)
    given = outputs if isinstance(outputs, Mapping) else {"measure": outputs}
    check_names(list(given), "Outputs")
    found = {str(one): _checked_output(values, len(masks_CN), one) for one, values in given.items()}
    shapes = {array.shape for array in found.values()}
    if len(shapes) > 1:
        raise InputError(f"All outputs must be of the same models and queries, got shapes {some(sorted(shapes))}.")
    if unknown := sorted(set(higher) - set(found)):
        raise InputError(f"higher names outputs that are not there: {some(unknown)}; there are {some(sorted(found))}.")
    _, n_seeds, n_queries = shapes.pop()
    sides = _side(examples, "train", masks_CN.shape[1]) | _side(examples, "query", n_queries)
    rows, place = _index(masks_CN, n_seeds, sides["train_ids"])
    identity: dict[str, Any] = {
        "dataset": {"name": name, "source": {}, "fingerprint": digest(sides["train_ids"])},
        "query_ids": sides["query_ids"].tolist(),
        "classes": [],
        OWN: {"name": name, "lower": list(lower_names(higher)), "outputs": sorted(found), "task": None},
    }
    identity["fingerprint"] = bank_fingerprint(identity)
    stacked = {one: array.reshape(-1, n_queries) for one, array in found.items()}
    return Compact(identity, sides, rows, StackedResults(place, tuple(stacked), lambda: stacked))


def _checked_masks(masks: object, what: str = "masks") -> npt.NDArray[np.bool_]:
    """Return masks as (C, N) booleans.

    Raises:
        InputError: another number of dimensions, none, or other numbers than 0 and 1.
        InputTypeError: other than numbers.
    """
    array = as_array(masks, what)
    if array.dtype.kind not in "biuf":
        raise InputTypeError(f"{what} must be booleans, or 0 and 1; got an array of {array.dtype}.")
    if array.ndim != 2 or not array.size:
        raise InputError(f"{what} must be (models, training examples), got shape {array.shape}.")
    if array.dtype.kind != "b":
        for row in array:  # one at a time: the array may be mapped from a file, and large
            if (bad := row[(row != 0) & (row != 1)]).size:
                raise InputError(f"{what} must be 0 or 1 (the example is in the subset), found {bad[0]}.")
    return np.asarray(array, np.bool_)


def _checked_output(values: object, count: int, name: object) -> npt.NDArray[Any]:
    """One output as (C, R, Q), float64 or float32."""
    array = as_real(values, f"outputs {name!r}")
    if array.ndim not in (2, 3) or len(array) != count or not array.size:
        raise InputError(
            f"outputs {name!r} must be (models, queries) or (models, seeds, queries) for {count} rows of masks, got "
            f"shape {array.shape}."
        )
    kind = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    plain = np.ascontiguousarray(array if array.ndim == 3 else array[:, None], kind)
    if bad := int(np.count_nonzero(~np.isfinite(plain))):
        raise NonFiniteError(
            f"outputs {name!r} are NaN or infinite in {bad:,} of {plain.size:,} places: leave out models that are not "
            "finished or have diverged."
        )
    return plain


def _side(examples: Mapping[str, object], side: str, size: int) -> dict[str, Ids]:
    """Ids and, where there are any, labels of one side."""
    ids, labels = examples.get(f"{side}_ids"), examples.get(f"{side}_labels")
    found = np.arange(size) if ids is None else as_ids(ids, f"{side}_ids")
    if found.size != size:
        raise InputError(f"{side}_ids must be one for each of {size} examples, got {found.size}.")
    given = {} if labels is None else {f"{side}_labels": as_labels(labels, f"{side}_labels", size)}
    return {f"{side}_ids": found, **given}


def _index(masks_CN: npt.NDArray[np.bool_], n_seeds: int, train_ids: Ids) -> tuple[Rows, dict[Key, int]]:
    """The different subsets, in the order of their first rows, and where each model's outputs stand (row by row)."""
    row_of: dict[bytes, int] = {}
    first: list[int] = []
    models: list[list[int]] = []
    for row, packed in enumerate(np.packbits(masks_CN, axis=1)):
        subset = row_of.setdefault(packed.tobytes(), len(first))
        if subset == len(first):
            first.append(row)
            models.append([])
        models[subset] += range(row * n_seeds, (row + 1) * n_seeds)
    notes = PlanNotes(DEFAULT_NAME, {"kind": DEFAULT_NAME, "count": len(first)}, False)
    counts_S = np.array([len(several) for several in models], np.int64)
    rows = Rows(masks_CN[first], counts_S, np.zeros(len(first), np.int64), (notes,), train_ids)
    return rows, {key: models[subset][seed] for (subset, seed), key in rows.keys().items()}
