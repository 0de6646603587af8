r"""G ~ U (Lambda) U', U = U_A x U_S: eigenvalue-corrected Kronecker factors of the Gauss-Newton matrix, layer by layer.

With a the input of a layer (1 appended where it has a bias) and d the gradient of its output for a pseudo-target drawn
from the model, U_A and U_S are the eigenvectors of A = E[a a'] and S = E[d d'], and Lambda_jk = E[(u_S,j' D u_A,k)^2]
where D = sum_t d_t a_t' is an example's whole gradient, over the positions t of a sequence or a convolution. Nothing is
assumed independent in Lambda: it is the exact diagonal of the layer's Gauss-Newton matrix in this basis (George et al.,
"Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", NeurIPS 2018; Grosse et al., 2023).

Shape legend: B examples, T positions, I inputs of a layer (with the column of ones), O outputs, Q directions.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from comove.data.batches import Batch
from comove.errors import CorruptFileError, InputError, NonFiniteError
from comove.gradients.forward_checks import Uses, parameter_uses
from comove.gradients.per_example import Batches, PerExampleGradients, mask_of
from comove.gradients.per_sample_rules import CONVOLUTIONS, is_transposed_linear, patches
from comove.gradients.scalars import flat_outputs
from comove.store import as_array, new_folder, read_arrays, read_header, set_aside, write_arrays
from comove.store.results import load_result, save_result
from comove.training.randomness import derived_seed, generator_for

__all__ = [
    "EKFACFactors",
    "Layer",
    "LayerFactors",
    "eigenvalue_sums",
    "ekfac_factors",
    "factored_layers",
    "layer_positions",
    "mean_factors",
]

KIND = "ekfac-factors"
LARGEST_SIDE = 16_384
"""Layers with more inputs or outputs are left out: their factors alone would take gigabytes, and hours to decompose."""
MEMORY = 256 << 20
"""Bytes that one layer's inputs at all positions, or its per-example gradients, may take."""
UNFINISHED = "unfinished.safetensors"
SAVE_SECONDS = 30.0
"""How often unfinished sums are written to disk: what a killed process computes again at most."""

Layout: TypeAlias = Literal["linear", "transposed", "convolution"]
Function: TypeAlias = Callable[[Tensor], Tensor]
"""A function of eigenvalues (O, I), entry by entry."""
Sums: TypeAlias = dict[str, Tensor]
"""Float64 sums over examples, by "layer/what"."""


# --- the mathematics -----------------------------------------------------------------------------------------------


def layer_positions(layer: Any, x: Tensor, g: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """Return a layer's input and output gradient position by position, (B, T, I) and (B, T, O), perhaps as views.

    Args:
        layer: linear (also transformers' ``Conv1D``): x (B, ..., I); or a convolution with ``groups`` 1: x
            (B, channels, ...), whose positions are those of its output and whose inputs are patches.
        x: its input.
        g: the gradient of its output.
        bias: whether a 1 is appended to the input.
    """
    size = len(x)
    if not isinstance(layer, CONVOLUTIONS):
        a_BTI = x.reshape(size, -1, x.shape[-1])
        if bias:
            a_BTI = torch.cat([a_BTI, a_BTI.new_ones(*a_BTI.shape[:2], 1)], 2)
        return a_BTI, g.reshape(size, -1, g.shape[-1])
    inner, inputs = x.ndim - 2, layer.weight[0].numel()
    # As (inputs, B, places) whole rows are copied, and products need no second copy.
    seen = patches(layer, x).movedim(0, 1 + inner)
    a_IBT = x.new_ones(inputs + bias, size, seen.shape[2 + inner :].numel())
    a_IBT[:inputs].view(seen.shape).copy_(seen)
    return a_IBT.permute(1, 2, 0), g.flatten(2).mT


def eigenvalue_sums(a_BTI: Tensor, g_BTO: Tensor, inputs_II: Tensor, outputs_OO: Tensor) -> Tensor:
    """Return sum_b (U_S' D_b U_A)^2 (O, I), entry by entry, with D_b = sum_t g_bt a_bt'.

    In whichever order is cheapest: with one position D is an outer product, and so is its square.

    Args:
        a_BTI: inputs.
        g_BTO: gradients of outputs.
        inputs_II: U_A, eigenvectors in columns.
        outputs_OO: U_S.
    """
    (_, positions, inputs), outputs = a_BTI.shape, g_BTO.shape[2]
    if positions == 1:
        return (g_BTO[:, 0] @ outputs_OO).square_().mT @ (a_BTI[:, 0] @ inputs_II).square_()
    if positions * (inputs**2 + outputs**2) < inputs * outputs * (inputs + outputs):
        rotated_BOI = (g_BTO @ outputs_OO).mT @ (a_BTI @ inputs_II)
    else:
        rotated_BOI = outputs_OO.mT @ (g_BTO.mT @ a_BTI) @ inputs_II
    return rotated_BOI.square_().sum(0)


@dataclass(frozen=True)
class LayerFactors:
    """The factors of one layer.

    Attributes:
        layout: how the layer holds its weight.
        weight: the weight's name in the model.
        bias: that of the bias, where it is the last column.
        inputs: U_A (I, I), eigenvectors in columns.
        outputs: U_S (O, O).
        eigenvalues: Lambda (O, I).
    """

    layout: Layout
    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor

    def solve(self, directions: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """Return U (Lambda + damping)^-1 U' v of the layer's parameters, name -> (Q, parameter shape)."""
        return self.apply(directions, lambda eigenvalues: 1 / (eigenvalues + damping))

    def apply(self, directions: Mapping[str, Tensor], function: Function) -> dict[str, Tensor]:
        """Return U function(Lambda) U' v of the layer's parameters, name -> (Q, parameter shape)."""
        weight = directions[self.weight]
        v_QOI = weight.mT if self.layout == "transposed" else weight.flatten(2)
        if self.bias is not None:
            v_QOI = torch.cat([v_QOI, directions[self.bias][:, :, None]], 2)
        inputs, outputs = self.inputs.to(v_QOI), self.outputs.to(v_QOI)
        rotated_QOI = outputs.mT @ v_QOI @ inputs
        rotated_QOI *= function(self.eigenvalues).to(v_QOI)
        made_QOI = outputs @ rotated_QOI @ inputs.mT
        found = {}
        if self.bias is not None:
            found[self.bias] = made_QOI[:, :, -1]
            made_QOI = made_QOI[:, :, :-1]
        found[self.weight] = made_QOI.mT if self.layout == "transposed" else made_QOI.reshape(weight.shape)
        return found


# --- the result ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EKFACFactors:
    """The factors of a model's layers, and what was left out.

    Attributes:
        layers: by the layer's name.
        left_out: parameters without factors, and why.
        examples: the number of examples they are means over.
    """

    layers: Mapping[str, LayerFactors]
    left_out: Mapping[str, str]
    examples: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that have factors."""
        return tuple(name for each in self.layers.values() for name in (each.weight, each.bias) if name is not None)

    @property
    def mean_eigenvalue(self) -> float:
        """The mean of Lambda over all layers: of the diagonal of the Gauss-Newton matrix over their parameters."""
        total = sum(each.eigenvalues.sum().item() for each in self.layers.values())
        return total / sum(each.eigenvalues.numel() for each in self.layers.values())

    def dampings(self, share: float) -> dict[str, float]:
        """Return by layer this share of the layer's mean eigenvalue; 1 where all its gradients vanish."""
        means = {name: each.eigenvalues.mean().item() for name, each in self.layers.items()}
        return {name: share * mean if mean > 0 else 1.0 for name, mean in means.items()}

    def solve(self, directions: Mapping[str, Tensor], damping: float | Mapping[str, float]) -> dict[str, Tensor]:
        """Return (G + damping I)^-1 v with this approximation of G, a positive definite operator.

        Parameters without factors are divided by the mean eigenvalue plus the damping (of several, their mean): right
        in scale for a preconditioner, no more.

        Args:
            directions: name -> (Q, parameter shape), of all parameters with factors and perhaps of others.
            damping: above 0, of all layers, or by the layer's name.

        Returns:
            name -> (Q, parameter shape), as they came.

        Raises:
            InputError: a damping that is not above 0, or a parameter that is missing.
        """
        by_layer = dict(damping) if isinstance(damping, Mapping) else dict.fromkeys(self.layers, float(damping))
        if not all(value > 0 for value in by_layer.values()):
            raise InputError(f"damping must be above 0, got {damping}.")
        if absent := [name for name in self.parameters if name not in directions]:
            raise InputError(f"directions must hold every parameter with factors; {absent[0]!r} is missing.")
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            found |= layer.solve(directions, by_layer[name])
        rest = self.mean_eigenvalue + sum(by_layer.values()) / len(by_layer)
        return {name: found[name] if name in found else given / rest for name, given in directions.items()}

    def apply(self, directions: Mapping[str, Tensor], function: Function) -> dict[str, Tensor]:
        """Return function(G) v with this approximation of G, of the parameters that have factors.

        Args:
            directions: name -> (Q, parameter shape), of all parameters with factors.
            function: of the eigenvalues, entry by entry.
        """
        return {k: v for layer in self.layers.values() for k, v in layer.apply(directions, function).items()}

    def to(self, device: torch.device | str) -> EKFACFactors:
        """Return the same factors on a device."""
        moved = {
            name: replace(each, **{what: getattr(each, what).to(device) for what in ARRAYS})
            for name, each in self.layers.items()
        }
        return replace(self, layers=moved)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = {
            f"{name}/{what}": as_array(getattr(each, what)) for name, each in self.layers.items() for what in ARRAYS
        }
        layers = {name: [each.layout, each.weight, each.bias] for name, each in self.layers.items()}
        header = {"layers": layers, "left_out": dict(self.left_out), "examples": self.examples}
        save_result(path, KIND, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EKFACFactors:
        """Read what :meth:`save` wrote.

        Raises:
            CorruptFileError: the file is missing, truncated, changed or something else.
        """
        header, arrays = load_result(path, KIND, {"layers": dict, "left_out": dict, "examples": int})
        layers = {
            name: LayerFactors(*kept, *(torch.from_numpy(np.array(arrays[f"{name}/{what}"])) for what in ARRAYS))
            for name, kept in header["layers"].items()
        }
        return cls(layers, header["left_out"], header["examples"])


ARRAYS = ("inputs", "outputs", "eigenvalues")


# --- which layers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution of a model, and the names of its parameters.

    Attributes:
        name: the layer's name in the model.
        module: the layer.
        weight: its weight's name.
        bias: its bias's, where that is asked for.
    """

    name: str
    module: nn.Module
    weight: str
    bias: str | None

    @property
    def names(self) -> list[str]:
        """Names of its parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def sides(self) -> tuple[int, int]:
        """Its outputs, and its inputs with the 1 appended where it has a bias."""
        outputs, inputs = _sides(self.module)
        return outputs, inputs + (self.bias is not None)

    @property
    def layout(self) -> Layout:
        """How it holds its weight."""
        if isinstance(self.module, CONVOLUTIONS):
            return "convolution"
        return "transposed" if is_transposed_linear(self.module) else "linear"

    def bytes_of(self, size: int, g: Tensor) -> int:
        """What one call's inputs at all positions, or the gradients of ``size`` examples, take at most."""
        outputs, inputs = _sides(self.module)
        positions = g.numel() // outputs
        return g.element_size() * max(positions * (inputs + 1), size * inputs * outputs)

    def positions(self, x: Tensor, g: Tensor, size: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inputs (B, T, I) and output gradients (B, T, O) of a call of ``size`` examples; padding is no input."""
        a_BTI, g_BTO = layer_positions(self.module, x, g, bias=self.bias is not None)
        if size == 1:  # all rows are this one example's
            a_BTI, g_BTO = a_BTI.flatten(0, 1)[None], g_BTO.flatten(0, 1)[None]
        if mask is not None and mask.shape == a_BTI.shape[:2]:
            a_BTI = a_BTI * mask[:, :, None].to(a_BTI)
        return a_BTI, g_BTO


def _sides(module: Any) -> tuple[int, int]:
    """Outputs and inputs, without the bias."""
    rows, columns = module.weight.shape[0], module.weight[0].numel()
    return (columns, rows) if is_transposed_linear(module) else (rows, columns)


def factored_layers(
    gradients: PerExampleGradients, data: Batches, largest: float | None = None
) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers that have factors, and the parameters left out with the reason.

    Args:
        gradients: over the parameters that are asked for.
        data: examples, of which the first ones are passed until every layer was called: a mixture of experts calls
            others for every example.
        largest: how many inputs or outputs a layer may have; by default 16,384.
    """
    model, uses = gradients.model, parameter_uses(gradients.model, gradients.parameters)
    largest = LARGEST_SIDE if largest is None else largest
    called = _called(
        gradients, data, {module for each in uses.values() for _, module, _ in each if _is_factored(module)}
    )
    names = {id(parameter): name for name, parameter in gradients.parameters.items()}
    left_out = {name: why for name in uses if (why := _obstacle(name, uses, called, largest))}
    layers = []
    for path, module in model.named_modules():
        own = {kind: names.get(id(each)) for kind, each in module.named_parameters(recurse=False)}
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not None and weight not in left_out and _is_factored(module):
            layers.append(Layer(path, module, weight, None if bias in left_out else bias))
    covered = {name for each in layers for name in each.names}
    left_out |= {name: "its layer's weight is left out" for name in uses if name not in covered | left_out.keys()}
    return layers, {name: left_out[name] for name in uses if name in left_out}


def _called(gradients: PerExampleGradients, data: Batches, wanted: set[nn.Module]) -> set[nn.Module]:
    """Which of some layers are called, by the first of the examples if they all are, else by any of them."""
    called: set[nn.Module] = set()
    handles = [each.register_forward_hook(lambda module, *_: called.add(module)) for each in wanted]
    ends = [0, *range(1, len(data), gradients.batch), len(data)]
    try:
        for start, stop in itertools.pairwise(ends):
            gradients.evaluate(data.batch(slice(start, stop)), lambda outputs, _: flat_outputs(outputs))
            if called == wanted:
                break
    finally:
        for handle in handles:
            handle.remove()
    return called


def _is_factored(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, *CONVOLUTIONS) or is_transposed_linear(module)


def _obstacle(name: str, uses: Uses, called: set[nn.Module], largest: float) -> str:
    """Why a parameter has no factors, or nothing."""
    if len(uses[name]) > 1:
        return "shared by several layers"
    ((_, module, _),) = uses[name]
    kind = type(module).__name__
    if not _is_factored(module):
        return f"no factors for {kind}"
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return "a convolution of groups"
    if module not in called:
        return f"its {kind} is not called"
    if (side := max(_sides(module))) > largest:
        return f"a {kind} with a side of {side}, above {largest:g}"
    return ""


# --- fitting -------------------------------------------------------------------------------------------------------


def ekfac_factors(
    gradients: PerExampleGradients, data: Batches, *, seed: int = 0, folder: str | os.PathLike[str] | None = None
) -> EKFACFactors:
    """Return the factors of a model's linear and convolution layers, by two passes over the examples.

    Args:
        gradients: of the model, over the parameters asked for; its task draws the pseudo-targets, its chunk size is
            that of the passes.
        data: N examples.
        seed: of the pseudo-targets.
        folder: where finished factors are kept, and the sums of an unfinished pass every 30 seconds, so that a killed
            process goes on there. It must be of this model, data and seed alone.

    Returns:
        Means over the examples, in the parameters' precision, on their device.

    Raises:
        InputError: no layer has factors; the loss is not convex in the outputs.
        NonFiniteError: a gradient is NaN or infinite.
    """
    finished = None if folder is None else new_folder(folder) / "factors.safetensors"
    if finished is not None and finished.exists():
        try:
            return EKFACFactors.load(finished).to(next(iter(gradients.parameters.values())).device)
        except CorruptFileError as error:
            _put_aside(finished, error)
    fit, left_out = _fit_of(gradients, data, seed, None if finished is None else finished.with_name(UNFINISHED))
    found = _complete(fit.run(), gradients, left_out, len(data))
    if finished is not None:
        found.save(finished)
        fit.forget()
    return found


def mean_factors(models: Sequence[Callable[[], PerExampleGradients]], data: Batches, *, seed: int = 0) -> EKFACFactors:
    """Return the factors of the mean Gauss-Newton matrix of several checkpoints of one model.

    A and S are means over the checkpoints, too, and Lambda in their basis; so it is as if each example were seen at
    every checkpoint (Bae et al., "Training Data Attribution via Approximate Unrolled Differentiation", 2024).

    Args:
        models: for each checkpoint what makes its gradients; called twice, so that one model is held at a time.
        data: N examples.
        seed: of the pseudo-targets; each checkpoint draws its own.

    Raises:
        InputError: as :func:`ekfac_factors`.
    """
    seeds = [seed, *(derived_seed(seed, "checkpoint", place) for place in range(1, len(models)))]
    sums: Sums = {}
    for make, own in zip(models, seeds, strict=True):
        _add(sums, _fit_of(make(), data, own, None)[0].sums(0))
    bases = _bases(sums)
    eigenvalues: Sums = {}
    for make, own in zip(models, seeds, strict=True):
        gradients = make()
        fit, left_out = _fit_of(gradients, data, own, None)
        fit.bases = bases
        _add(eigenvalues, fit.sums(1))
    means = {key: total / len(models) for key, total in eigenvalues.items()}
    return _complete(fit.factors(means), gradients, left_out, len(data))


def _add(sums: Sums, more: Sums) -> None:
    for key, term in more.items():
        sums[key] = sums[key] + term if key in sums else term


def _bases(sums: Sums) -> Sums:
    return {key: torch.linalg.eigh(total)[1].contiguous() for key, total in sums.items()}


def _fit_of(gradients: PerExampleGradients, data: Batches, seed: int, file: Path | None) -> tuple[_Fit, dict[str, str]]:
    """The fit of a model's factors, and the parameters left out of it."""
    layers, left_out = factored_layers(gradients, data)
    if not layers:
        raise InputError(
            "EK-FAC needs linear layers or convolutions, of which the chosen parameters have none: "
            + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    names = [name for each in layers for name in each.names]
    own = PerExampleGradients(
        gradients.model, task=gradients.objective.task, parameters=names, memory=gradients.memory, batch=gradients.batch
    )
    return _Fit(own, data, layers, seed, file), left_out


def _complete(
    fitted: dict[str, LayerFactors], gradients: PerExampleGradients, left_out: dict[str, str], examples: int
) -> EKFACFactors:
    """The factors, and every parameter asked for that is in none of them with the reason."""
    covered = {name for each in fitted.values() for name in (each.weight, each.bias)} | left_out.keys()
    unseen = {name: "the outputs do not depend on it" for name in gradients.parameters if name not in covered}
    return EKFACFactors(fitted, left_out | unseen, examples)


PLACE = ("stage", "examples", "chunk")
"""Where an unfinished fit is: the pass, the examples done, and how many are taken at once."""


def _put_aside(file: Path, error: CorruptFileError) -> None:
    warnings.warn(f"{error} It is set aside as {set_aside(file)}, and computed again.", stacklevel=3)


@dataclass
class _Fit:
    """The two passes over the examples, resumable at every chunk."""

    gradients: PerExampleGradients
    data: Batches
    layers: list[Layer]
    seed: int
    file: Path | None
    bases: Sums = field(default_factory=dict)

    def run(self) -> dict[str, LayerFactors]:
        self.gradients.check(self.data)
        stage, done, kept = self._kept()
        if stage == 0:
            self.bases = _bases(self._pass(0, done, kept))
            done, kept = 0, {}
            self._write(1, 0, kept)
        self._leave_out_unseen()
        return self.factors(self._pass(1, done, kept))

    def _leave_out_unseen(self) -> None:
        self.layers = [each for each in self.layers if f"{each.name}/inputs" in self.bases]

    def sums(self, stage: int) -> Sums:
        """The sums of one pass, from its beginning."""
        self.gradients.check(self.data)
        if stage == 1:
            self._leave_out_unseen()
        return self._pass(stage, 0, {})

    def factors(self, eigenvalues: Sums) -> dict[str, LayerFactors]:
        """The layers' factors, from the sums of the second pass."""
        like = next(iter(self.gradients.parameters.values())).detach()
        return {
            each.name: LayerFactors(
                each.layout,
                each.weight,
                each.bias,
                self.bases[f"{each.name}/inputs"].to(like),
                self.bases[f"{each.name}/outputs"].to(like),
                (eigenvalues[f"{each.name}/eigenvalues"] / len(self.data)).to(like),
            )
            for each in self.layers
        }

    def _pass(self, stage: int, done: int, sums: Sums) -> Sums:
        step, written = self.gradients.chunk_size, time.monotonic()
        for start in range(done, len(self.data), step):
            stop = min(start + step, len(self.data))
            batch = self.data.batch(slice(start, stop))
            drawing = generator_for(self.seed, "pseudo-targets", stage, start)  # resumed or not, the same
            mask = mask_of(batch)
            for rows, calls in self.gradients.layer_calls(batch, self._values(drawing)):
                size, own = rows.stop - rows.start, None if mask is None else mask[rows]
                for layer in self.layers:
                    for key, term in self._terms(stage, layer, calls.get(layer.module, []), size, own):
                        sums[key] = term.double() if key not in sums else sums[key].add_(term)
            if time.monotonic() - written >= SAVE_SECONDS:
                self._write(stage, stop, sums)
                written = time.monotonic()
        for key, total in sums.items():
            if not bool(torch.isfinite(total).all()):
                self.gradients.squared_norms(self.data)  # an error that names the examples, where theirs are the reason
                raise NonFiniteError(f"The factors of {key} are NaN or infinite: check the checkpoint and its losses.")
        return sums

    def _values(self, generator: torch.Generator) -> Any:
        task = self.gradients.objective.task

        def values(outputs: Any, batch: Batch) -> Tensor:
            drawn_BK = task.pseudo_gradients(outputs, batch, generator)
            return (flat_outputs(outputs) * drawn_BK).sum(1)

        return values

    def _terms(
        self, stage: int, layer: Layer, calls: list[tuple[Tensor, Tensor]], size: int, mask: Tensor | None
    ) -> Iterator[tuple[str, Tensor]]:
        """What a chunk adds to a layer's sums, some examples after another as memory has it."""
        if not calls:
            return
        need = sum(layer.bytes_of(size, g) for _, g in calls)
        step = max(1, size * MEMORY // max(1, need))
        for start in range(0, size, step):
            rows = slice(start, start + step) if size > 1 else slice(None)  # of one example, rows may be positions
            own = None if mask is None else mask[rows]
            pairs = [layer.positions(x[rows], g[rows], len(range(size)[rows]), own) for x, g in calls]
            a_BTI, g_BTO = (sides[0] if len(pairs) == 1 else torch.cat(sides, 1) for sides in zip(*pairs, strict=True))
            if stage == 0:
                for what, side in (("inputs", a_BTI), ("outputs", g_BTO)):
                    flat = side.flatten(0, 1)
                    yield f"{layer.name}/{what}", flat.mT @ flat
            else:
                bases = [self.bases[f"{layer.name}/{what}"].to(a_BTI) for what in ("inputs", "outputs")]
                yield f"{layer.name}/eigenvalues", eigenvalue_sums(a_BTI, g_BTO, *bases)

    # --- on disk ---

    def _kept(self) -> tuple[int, int, Sums]:
        """The pass, the examples done, and the sums so far."""
        if self.file is None or not self.file.exists():
            return 0, 0, {}
        try:
            _, header = read_header(self.file)
            arrays = read_arrays(self.file)
        except CorruptFileError as error:
            _put_aside(self.file, error)
            return 0, 0, {}
        stage, examples, chunk = (int(header.get(name, 0)) for name in PLACE)
        if chunk != self.gradients.chunk_size:  # other draws: from the beginning
            return 0, 0, {}
        device = next(iter(self.gradients.parameters.values())).device
        tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
        self.bases = {name[6:]: each for name, each in tensors.items() if name.startswith("basis/")}
        return stage, examples, {name[4:]: each for name, each in tensors.items() if name.startswith("sum/")}

    def _write(self, stage: int, examples: int, sums: Sums) -> None:
        if self.file is not None:
            named = {f"basis/{key}": each for key, each in self.bases.items()} | {
                f"sum/{k}": v for k, v in sums.items()
            }
            arrays = {name: as_array(each) for name, each in named.items()}
            place = zip(PLACE, (stage, examples, self.gradients.chunk_size), strict=True)
            write_arrays(self.file, arrays, dict(place))

    def forget(self) -> None:
        """Delete the unfinished sums."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
