"""Batches of any structure: tensors whose first axis is the example, in tuples, lists and dictionaries.

A batch is what a user's items collate to. Its tensors (at any depth) all have the same first axis B; anything else in
it, such as a string or a number, belongs to the batch as a whole and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from comove.errors import InputError

__all__ = ["Batch", "batch_size", "concatenate", "map_tensors", "rows_of", "tensors_of"]

Batch: TypeAlias = Any
"""A tensor, or a tuple, list or mapping of batches."""


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Any:
    """Return a batch of the same structure with ``function`` applied to each tensor."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(function, value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [map_tensors(function, part) for part in batch]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """Yield the tensors of a batch in a fixed order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors_of(part)


def batch_size(batch: Batch) -> int:
    """Return B.

    Raises:
        InputError: no tensor in it, a tensor without axes, or tensors of different lengths.
    """
    sizes = {len(tensor) if tensor.ndim else -1 for tensor in tensors_of(batch)}
    if len(sizes) != 1 or -1 in sizes:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in list(tensors_of(batch))[:6]) or "no tensor"
        raise InputError(
            f"A batch must hold tensors whose first axis is the example, all of one length; found {found}. Collate "
            "items to such tensors: ExampleSet(..., collate=)."
        )
    return sizes.pop()


def rows_of(batch: Batch, rows: slice | Tensor | Sequence[int]) -> Batch:
    """Return the examples at these rows, in this order; a slice gives views."""
    if isinstance(rows, slice):
        return map_tensors(lambda tensor: tensor[rows], batch)
    index = torch.as_tensor(rows, dtype=torch.int64)
    return map_tensors(lambda tensor: tensor[index.to(tensor.device)], batch)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of one structure along their first axis; what is no tensor is that of the first.

    Raises:
        InputError: tensors of different shapes; pad them to one length when collating.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        shapes = {tuple(batch.shape[1:]) for batch in batches}
        if len(shapes) > 1:
            raise InputError(
                f"Tensors of shapes {sorted(shapes)[:4]} cannot be joined: pad them to one shape in collate."
            )
        return torch.cat(list(batches))
    if isinstance(first, Mapping):
        return {name: concatenate([batch[name] for batch in batches]) for name in first}
    if isinstance(first, tuple | list):
        parts = [concatenate([batch[at] for batch in batches]) for at in range(len(first))]
        if isinstance(first, list):
            return parts
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first
