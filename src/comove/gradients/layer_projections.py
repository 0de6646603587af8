r"""phi[b] = P_out D_b P_in', D_b = sum_t d_bt a_bt': two-sided projections of gradients, layer by layer.

The gradient D_b of a layer's weight is a sum, over the positions t of a sequence or a convolution, of outer products of
the gradient d of its output with its input a (1 appended where it has a bias). Both sides are projected before they are
multiplied, so D_b is never formed, and P_in, P_out are of the size of the layer's sides, not of their product (Choe et
al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions", 2024, section 3). The
projection of a side has orthonormal rows in a random direction, scaled so that E[P'P] = I; then E <phi_b, phi_c> =
<D_b, D_c>. A side that is no larger than its projection would be is kept as it is.

Shape legend: B examples, T positions, I inputs of a layer (with the 1), O outputs, K projected dimensions: of one side,
or of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comove.errors import InputError
from comove.gradients.ekfac import Layer, factored_layers
from comove.gradients.per_example import Batches, PerExampleGradients
from comove.gradients.per_sample_rules import CONVOLUTIONS
from comove.gradients.scalars import Values

__all__ = ["LayerProjection", "ProjectedGradients", "project_layer", "random_side"]


def random_side(size: int, kept: int, generator: torch.Generator) -> Tensor:
    """Return P (K, size) in float64 with E[P'P] = I, K = min(kept, size): orthonormal rows times sqrt(size / K).

    Where all is kept P is the identity. Inner products are off by less than with independent Gaussian entries, by
    nothing as K comes to ``size``.
    """
    if kept >= size:
        return torch.eye(size, dtype=torch.float64)
    drawn = torch.randn(size, kept, generator=generator, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(drawn)[0].mT.contiguous()
    return rows.mul_((size / kept) ** 0.5)


def project_layer(layer: Any, x: Tensor, g: Tensor, inputs_KI: Tensor, outputs_KO: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's projected inputs and output gradients position by position, (B, T, K_in) and (B, T, K_out).

    The projected input is the layer itself with P_in in the place of its weight, so that no patches of a convolution
    are written out.

    Args:
        layer: linear (also transformers' ``Conv1D``) or a convolution with ``groups`` 1.
        x: its input (B, ..., I), of a convolution (B, channels, ...).
        g: the gradient of its output.
        inputs_KI: P_in; the last of its columns belongs to the bias where it has one more than the layer inputs.
        outputs_KO: P_out.
    """
    x, g = x.to(inputs_KI), g.to(outputs_KO)
    if isinstance(layer, CONVOLUTIONS):
        filters, shift = _split(inputs_KI, layer.weight[0].numel())
        seen: Tensor = layer._conv_forward(x, filters.reshape(-1, *layer.weight.shape[1:]), shift)
        return seen.flatten(2).mT, (outputs_KO @ g.flatten(2)).mT
    rows, shift = _split(inputs_KI, x.shape[-1])
    size = len(x)
    a_BTK = F.linear(x, rows, shift).reshape(size, -1, len(rows))
    return a_BTK, F.linear(g, outputs_KO).reshape(size, -1, len(outputs_KO))


def _split(inputs_KI: Tensor, inputs: int) -> tuple[Tensor, Tensor | None]:
    """P_in of the inputs, and its column of the 1 that stands for the bias."""
    return inputs_KI[:, :inputs], inputs_KI[:, inputs] if inputs_KI.shape[1] > inputs else None


@dataclass(frozen=True)
class LayerProjection:
    """The projection of one layer's gradients.

    Attributes:
        layer: the layer.
        inputs: P_in (K_in, I).
        outputs: P_out (K_out, O).
    """

    layer: Layer
    inputs: Tensor
    outputs: Tensor

    @property
    def size(self) -> int:
        """K_out K_in."""
        return len(self.outputs) * len(self.inputs)

    def project(self, calls: list[tuple[Tensor, Tensor]], size: int) -> Tensor:
        """Return P_out D P_in', (B, K_out K_in), of a chunk of ``size`` examples.

        Args:
            calls: (input, gradient of the output) of each call of the layer; of one example, rows may be positions.
            size: B.
        """
        total = self.inputs.new_zeros(size, len(self.outputs), len(self.inputs))
        for x, g in calls:
            a_BTK, d_BTK = project_layer(self.layer.module, x, g, self.inputs, self.outputs)
            if size == 1:  # all rows are this one example's
                a_BTK, d_BTK = a_BTK.flatten(0, 1)[None], d_BTK.flatten(0, 1)[None]
            total.baddbmm_(d_BTK.mT, a_BTK)
        return total.flatten(1)


class ProjectedGradients:
    """Projected gradients of a model's linear layers and convolutions, layer after layer in one vector.

    Args:
        gradients: of the model, over the parameters asked for.
        data: examples, of which the ways of taking gradients are checked on a few.
        inputs: K_in, the dimensions kept of each layer's inputs.
        outputs: K_out, of its outputs.
        generator: of the projections.
        batch: examples of a chunk; by default those of ``gradients``.

    Attributes:
        gradients: over the parameters that are projected.
        layers: projections by the layer's name.
        left_out: parameters that are not projected, and why.

    Raises:
        InputError: none of the parameters is a linear layer's or a convolution's.
    """

    def __init__(
        self,
        gradients: PerExampleGradients,
        data: Batches,
        inputs: int,
        outputs: int,
        generator: torch.Generator,
        *,
        batch: int | None = None,
    ) -> None:
        layers, self.left_out = factored_layers(gradients, data, float("inf"))
        if not layers:
            raise InputError(
                "Two-sided projections need linear layers or convolutions, of which the chosen parameters have none: "
                + "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
            )
        self.gradients = PerExampleGradients(
            gradients.model,
            task=gradients.objective.task,
            parameters=[name for each in layers for name in each.names],
            memory=gradients.memory,
            batch=gradients.batch if batch is None else batch,
        )
        self.gradients.check(data)
        like = next(iter(self.gradients.parameters.values())).detach()
        self.layers = {
            each.name: LayerProjection(
                each,
                random_side(each.sides[1], inputs, generator).to(like),
                random_side(each.sides[0], outputs, generator).to(like),
            )
            for each in layers
        }

    @property
    def sections(self) -> dict[str, int]:
        """Entries of the vector by layer, in their order."""
        return {name: each.size for name, each in self.layers.items()}

    @property
    def size(self) -> int:
        """K, of all layers."""
        return sum(self.sections.values())

    def stream(self, data: Batches, values: Values) -> Iterator[Tensor]:
        """Yield projected gradients (B, K) chunk by chunk; a chunk is as many examples as ``gradients.batch``.

        Args:
            data: the examples.
            values: what is differentiated, of outputs and batch, (B,).

        Raises:
            InputError: a layer is used in a way that hooks cannot see.
        """
        step = self.gradients.batch
        for start in range(0, len(data), step):
            batch = data.batch(slice(start, min(start + step, len(data))))
            for rows, calls in self.gradients.layer_calls(batch, values):
                size = rows.stop - rows.start
                with torch.no_grad():
                    parts = [each.project(calls.get(each.layer.module, []), size) for each in self.layers.values()]
                    yield torch.cat(parts, 1)
