r"""G = 1/N sum_i J_i' H_i J_i = 1/N A' A, A_i = S_i' J_i: the Gauss-Newton matrix, by rows of Jacobians.

J_i is the Jacobian of example i's outputs in the parameters, H_i = S_i S_i' the Hessian of its loss in the outputs.
Each row of A_i is the gradient of a scalar, the sum of the outputs times one column of S_i: R rows an example, by
per-example gradients. Few columns hold nearly all of the curvature of a confident classifier: rotated so that they
come largest first, the leading ones may do. Where a factor is too wide, a few pseudo-gradients stand in for it,
E[u u'] = H_i; they are far noisier.

Shape legend: B examples of a chunk, N examples, K entries of an example's outputs, R rows an example, P parameter
entries, V vectors.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comove.data.batches import Batch, batch_size
from comove.errors import InputError
from comove.gradients.inner_products import flat_rows
from comove.gradients.per_example import BATCH, Batches, Paths, PerExampleGradients, check_finite
from comove.gradients.projections import Layers
from comove.models.outputs import flat_outputs, without_fast_path
from comove.tasks import Task
from comove.training.randomness import generator_for

__all__ = ["JacobianRows"]

MEMORY = 2 << 30
"""Bytes of rows that :meth:`JacobianRows.gram` holds."""
BLOCK = 2048
"""Columns of a symmetric matrix that are computed together."""
WIDEST = 256
"""A factor of more columns is not formed unasked: a few pseudo-gradients stand in for it."""
DRAWS = 8
"""Pseudo-gradients an example in the place of a wide factor."""


@dataclass(frozen=True)
class _Along(Task):
    """The sum of a task's outputs times coefficients (B, K), of batches (batch, coefficients)."""

    task: Task

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        return self.task.outputs(model, batch[0])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        along: Tensor = (flat_outputs(outputs) * batch[1]).sum(1)
        return along


@dataclass(frozen=True)
class _WithoutCoefficients:
    """Examples to check gradients on, for which no coefficients are needed."""

    whole: Batches

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, positions: slice) -> Batch:
        found = self.whole.batch(positions)
        return found, torch.zeros(batch_size(found), 1)


class JacobianRows:
    """Streams the rows A_i = S_i' J_i of examples, whose outer products sum to the Gauss-Newton matrix.

    Args:
        model: as of :class:`PerExampleGradients`.
        task: whose loss has the Hessian H_i in the outputs; it must be convex in them.
        check_on: examples among which those are that the faster ways are checked on, best the training examples.
        parameters: names or glob patterns; by default every trainable one.
        draws: pseudo-gradients an example in the place of the factor's columns; ``None``: the factor, where it has at
            most 256 columns, else 8 of them.
        seed: of the pseudo-gradients.
        batch: the largest chunk.

    Attributes:
        size: P.
        count: R, rows an example.

    Raises:
        InputError: a loss that is not convex in the outputs; as of :class:`PerExampleGradients`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        check_on: Batches,
        *,
        parameters: str | Collection[str] | None = None,
        draws: int | None = None,
        seed: int = 0,
        batch: int = BATCH,
    ) -> None:
        checked = _WithoutCoefficients(check_on)
        self.gradients = PerExampleGradients(
            model, "loss", task=_Along(task), parameters=parameters, batch=batch, check_on=checked
        )
        self._model, self._task, self._checked, self._seed = model, task, checked, seed
        self.size, self.count, self.draws = self.gradients.size, 0, draws
        self._leads, self._share = False, 1.0
        if draws is None:
            self.count = self._columns(check_on.batch(slice(0, 1)), 0).shape[1]
            self.draws = DRAWS if self.count > WIDEST else None
        self.count = self.draws or self.count

    def leading(self, data: Batches, share: float) -> JacobianRows:
        """Return the same with the fewest leading rows an example that hold ``share`` of the curvature in the outputs.

        Curvature is the trace of H_i, summed over ``data``; pseudo-gradients stay as they are.
        """
        if self.draws is not None or share >= 1:
            return self
        batches = (data.batch(slice(start, min(start + BATCH, len(data)))) for start in range(0, len(data), BATCH))
        held_R = torch.stack([_rotated(self._columns(batch, 0)).square().sum((0, 2)) for batch in batches]).sum(0)
        shares_R = held_R.cumsum(0) / held_R.sum().clamp(min=torch.finfo(held_R.dtype).tiny)
        made = copy.copy(self)
        made.count = min(self.count, int((shares_R < share).sum()) + 1)
        made._leads, made._share = True, float(shares_R[made.count - 1])
        return made

    @property
    def factors(self) -> str:
        """What the rows are made of, in words."""
        if self.draws is not None:
            return f"{self.draws} pseudo-gradients an example"
        if self._leads:
            return f"{self.count} leading rows an example, {self._share:.1%} of the curvature in the outputs"
        return f"exact, {self.count} rows an example"

    @property
    def paths(self) -> Paths:
        """How gradients are computed."""
        return self.gradients.paths

    def stream(self, data: Batches, start: int = 0) -> Iterator[tuple[slice, Iterator[Layers]]]:
        """Yield (positions, rows) chunk by chunk; rows yields R times (name, (B, parameter shape)) of each parameter.

        The same data give the same rows each time, pseudo-gradients too. ``start`` is that of a chunk.

        Raises:
            InputError: an example with more columns than the first one has.
        """
        for first in range(start, len(data), self.step):
            part = slice(first, min(first + self.step, len(data)))
            batch = data.batch(part)
            yield part, self._rows(batch, self._columns(batch, first))

    def seconds_per_pass(self, data: Batches) -> float:
        """Return how long a pass over the rows of all examples takes, from that of a first chunk."""
        self.gradients.check(self._checked)
        start = time.perf_counter()
        next(self.chunks(data))
        return (time.perf_counter() - start) * len(data) / min(self.step, len(data))

    @property
    def step(self) -> int:
        """Examples of a chunk."""
        self.gradients.check(self._checked)
        return 1 if self.gradients.batches_matter else self.gradients.chunk_size

    def chunks(self, data: Batches, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, A (B R, P)) chunk by chunk, an example's rows beside each other.

        Raises:
            NonFiniteError: a row is NaN or infinite; its example's id is named.
        """
        for part, rows in self.stream(data, start):
            whole_BRP = self._weight.new_empty(part.stop - part.start, self.count, self.size)
            for place, row in enumerate(rows):
                torch.cat([flat_rows(found) for _, found in row], 1, out=whole_BRP[:, place])
            check_finite({"Jacobian": whole_BRP}, data, range(part.start, part.stop))
            yield part, whole_BRP.flatten(0, 1)

    def matrix(self, data: Batches) -> Tensor:
        """Return the Gauss-Newton matrix of the mean loss, (P, P), in the parameters' precision."""
        total_PP = self._weight.new_zeros(self.size, self.size)
        for _, rows_MP in self.chunks(data):
            for first in range(0, self.size, BLOCK):  # the lower triangle: half the work
                block = slice(first, first + BLOCK)
                total_PP[first:, block].addmm_(rows_MP[:, first:].T, rows_MP[:, block], alpha=1 / len(data))
        return _mirrored(total_PP)

    def gram(self, data: Batches, memory: int = MEMORY) -> Tensor:
        """Return A A' / N, (N R, N R): the same matrix's other side.

        Args:
            data: N examples.
            memory: bytes of rows held at once; with less of it the rows of later examples are computed more often.
        """
        held = max(1, memory // (self.step * self._row_bytes)) * self.step
        gram_MM = self._weight.new_zeros(len(data) * self.count, len(data) * self.count)
        for start in range(0, len(data), held):
            kept: list[Tensor] = []
            for part, rows_MP in self.chunks(data, start):
                if part.start < start + held:
                    kept.append(rows_MP)
                first, below = start * self.count, slice(part.start * self.count, part.stop * self.count)
                for others_MP in kept:
                    beside = slice(first, first := first + len(others_MP))
                    torch.addmm(
                        gram_MM[below, beside], rows_MP, others_MP.T, alpha=1 / len(data), out=gram_MM[below, beside]
                    )
        return _mirrored(gram_MM)

    @property
    def _row_bytes(self) -> int:
        return self.count * self.size * self._weight.element_size()

    @property
    def _weight(self) -> Tensor:
        return next(iter(self.gradients.parameters.values())).detach()

    def _rows(self, batch: Batch, columns_BRK: Tensor) -> Iterator[Layers]:
        for row in range(self.count):
            yield self.gradients.one_by_one((batch, columns_BRK[:, row]))

    def _columns(self, batch: Batch, start: int) -> Tensor:
        """The columns of S, or pseudo-gradients over sqrt(R), (B, R, K)."""
        with torch.no_grad(), without_fast_path():
            outputs = self._task.outputs(self._model, batch)
            if self.draws is None:
                columns_BRK = self._task.output_curvature(outputs, batch).mT
                columns_BRK = _rotated(columns_BRK)[:, : self.count] if self._leads else columns_BRK
            else:
                drawing = generator_for(self._seed, "pseudo-gradients", start)
                drawn = [self._task.pseudo_gradients(outputs, batch, drawing) for _ in range(self.draws)]
                columns_BRK = torch.stack(drawn, 1) / self.draws**0.5
        missing = self.count - columns_BRK.shape[1]
        if self.count and missing < 0:
            raise InputError(
                f"Examples have outputs of different sizes, {columns_BRK.shape[1]} columns of curvature where the "
                f"first has {self.count}: give a number of pseudo-gradients instead, draws=8."
            )
        return torch.nn.functional.pad(columns_BRK, (0, 0, 0, missing)) if missing > 0 else columns_BRK


def _rotated(columns_BRK: Tensor) -> Tensor:
    """Rotate an example's rows, which leaves their outer products' sum as it is, so that they come largest first."""
    rotation_BRR = torch.linalg.eigh(columns_BRK @ columns_BRK.mT)[1].flip(2)
    rotated: Tensor = rotation_BRR.mT @ columns_BRK
    return rotated


def _mirrored(lower: Tensor) -> Tensor:
    """Copy the lower triangle of a matrix over its upper one."""
    for first in range(0, len(lower), BLOCK):
        block = slice(first, first + BLOCK)
        lower[block, first + BLOCK :] = lower[first + BLOCK :, block].T
        corner = lower[block, block]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return lower
