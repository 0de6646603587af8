r"""What a model is trained to do: its loss on each example, and the output that attribution explains.

.. math:: f(x, \theta) = \log \frac{p}{1 - p}, \qquad p = e^{-\ell(x, \theta)}

is the measured output unless a task says otherwise: with cross-entropy p is the probability of the label, and f TRAK's
margin (Park et al., ICML 2023, eq. 8). A batch is what the user's items collate to: a tensor, a tuple, or a dictionary;
tuples are (inputs, targets), dictionaries are passed to the model by keyword without their ``labels``.

Shape legend: B examples, C classes, T positions of a sequence, K outputs, H W pixels.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.checks import check_text
from comove.data import ExampleSet
from comove.data.batches import Batch, batch_size, map_tensors
from comove.discovery import check_choice
from comove.errors import InputError, InputTypeError, NonFiniteError, some
from comove.models.output_curvature import hessian_factors, output_hessians, softmax_draws, softmax_factors, uniform
from comove.models.outputs import logits_of

__all__ = [
    "Autocast",
    "CausalLM",
    "Classification",
    "MultiLabel",
    "PerExample",
    "Regression",
    "Segmentation",
    "SequenceClassification",
    "Task",
    "TaskForward",
    "call_arguments",
    "check_task",
    "classifies",
    "log_odds",
    "per_token",
    "targets_of",
]

TARGETS = ("labels", "label")
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LOOKED_AT = 256
"""Sequences whose tokens are counted at a time."""
POSITION = "explained_position"
"""The entry of a batch that says which token of each sequence is explained (:func:`per_token`)."""
IGNORED = -100
"""Targets of this value do not count (torch's convention)."""


def log_odds(loss_B: Tensor) -> Tensor:
    """Return log p / (1 - p) with p = exp(-loss), (B,): exact also where p rounds to 1."""
    return -loss_B - torch.log(-torch.expm1(-loss_B))


class Task(ABC):
    """Per-example loss and measured output of a model; subclasses are frozen dataclasses.

    A task is used on models in evaluation mode. Both functions must treat examples independently of each other.
    """

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Return what one forward pass gives: for a tuple ``model(batch[0])``, for a dictionary ``model(**batch)``.

        Of a dictionary the entries ``labels`` and ``label`` are left out, and what the model's ``forward`` does not
        take. Outputs with ``logits`` (transformers) give these.
        """
        args, named = call_arguments(model, batch)
        return logits_of(model(*args, **named))

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the training loss of each example, (B,), unreduced."""

    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the output that attribution explains, (B,), larger is better; by default log odds of exp(-loss)."""
        return log_odds(self.loss(outputs, batch))

    def labels(self, batch: Batch) -> Tensor | None:
        """Return the examples' classes (B,), or ``None`` where the task has none: all examples are then one group."""
        return None

    def error_probability(self, outputs: Any, batch: Batch) -> Tensor:
        """Return 1 - p with p = exp(-loss), (B,): the weight of each example's gradient in TRAK."""
        return -torch.expm1(-self.loss(outputs, batch))

    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """Return S (B, K, R) with S S' the Hessian of each example's loss in its K outputs; the outputs are detached.

        K counts the outputs as :func:`comove.models.outputs.flat_outputs` lines them up. By default by autograd.

        Raises:
            InputError: the loss is not convex in the outputs.
        """
        return hessian_factors(output_hessians(self.loss, outputs, batch), self.name)

    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return u (B, K) with E[u u'] the Hessian of each example's loss in its K outputs, drawn anew in each call.

        Where the loss is a negative log likelihood, u is its gradient in the outputs at a target drawn from the model.

        Raises:
            InputError: the loss is not convex in the outputs.
        """
        factor_BKR = self.output_curvature(outputs, batch)
        drawn_BR = _normal(factor_BKR[:, 0], generator)
        return (factor_BKR @ drawn_BR[:, :, None])[:, :, 0]

    @property
    def precision(self) -> torch.dtype | None:
        """The type of numbers that layers compute in where it is not that of the weights (:class:`Autocast`)."""
        return None

    @property
    def name(self) -> str:
        """The task and its options, as they enter fingerprints."""
        options = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({options})"


class TaskForward(nn.Module):
    """A task's forward pass as a module of the batch alone, whose parameters ``functional_call`` replaces."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Any:
        """The task's outputs of the batch."""
        return self.task.outputs(self.model, batch)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, precision and place of ``like``; the same on every device."""
    drawn = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(like)


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model's forward pass takes."""
    given = {name: value for name, value in batch.items() if name not in (*TARGETS, POSITION)}
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return given
    names = {parameter.name for parameter in parameters}
    taken = {name: value for name, value in given.items() if name in names}
    if not taken:
        raise InputError(
            f"The model's forward takes {some(sorted(names))}, and the batch has {some(list(given))}: name the entries "
            "alike in collate, or write Task.outputs."
        )
    return taken


def call_arguments(model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model is called with: a dictionary's entries by keyword, the first entry of a tuple, or a tensor.

    Raises:
        InputError: the model's ``forward`` takes none of the dictionary's entries.
    """
    if isinstance(batch, Mapping):
        return (), _taken(model, batch)
    return (batch[0] if isinstance(batch, tuple | list) else batch,), {}


def targets_of(batch: Batch) -> Tensor:
    """Return the targets of a batch: the second entry of a tuple, ``labels`` (or ``label``) of a dictionary.

    Raises:
        InputError: there are none.
    """
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in TARGETS if name in batch), None)
        what = f"a dictionary with {some(list(batch))}"
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        what = "a tensor alone" if isinstance(batch, Tensor) else f"{type(batch).__name__} of {len(batch)}"
    if not isinstance(found, Tensor):
        raise InputError(
            f"The batch has no targets: this task reads them from (inputs, targets) or from 'labels', and the batch is "
            f"{what}. Collate items so, or write a Task of your own (PerExample)."
        )
    return found


# --- ready-made tasks --------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label] (B,) of logits (B, C) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return z_y - logsumexp(other z) (B,), the logit of the correct probability (Park et al., ICML 2023, eq. 8)."""
    target = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    own = torch.where(target, logits, 0).sum(1)
    return own - torch.where(target, -torch.inf, logits).logsumexp(1)


class _OneClass(Task):
    """Cross-entropy of logits (B, C) and labels (B,)."""

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy, (B,) nats."""
        return cross_entropy(outputs, targets_of(batch))

    @final
    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """z_y - logsumexp of the other logits, (B,): the log odds of the label's probability."""
        return margin(outputs, targets_of(batch))

    @final
    def labels(self, batch: Batch) -> Tensor:
        """The labels, (B,)."""
        return targets_of(batch)

    @final
    def error_probability(self, outputs: Any, batch: Batch) -> Tensor:
        """1 - p of the label, (B,), exact for small values."""
        return torch.sigmoid(-margin(outputs, targets_of(batch)))

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """S (B, C, C - 1) with S S' = diag(p) - p p'."""
        return softmax_factors(outputs.detach())

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draws p - e_y (B, C) with y drawn from p."""
        return softmax_draws(outputs.detach(), generator)


@dataclass(frozen=True)
class Classification(_OneClass):
    """One of C classes, from batches (inputs, labels): cross-entropy; the margin is measured."""


@dataclass(frozen=True)
class SequenceClassification(_OneClass):
    """One of C classes, from batches of transformers (a dictionary with ``labels``): as :class:`Classification`."""


@dataclass(frozen=True)
class MultiLabel(Task):
    """Several of K labels at once: the mean binary cross-entropy over labels of logits (B, K), targets 0 or 1."""

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean binary cross-entropy over the labels, (B,) nats."""
        targets = targets_of(batch).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").flatten(1).mean(1)

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """S (B, K, K) = diag(sqrt(p (1 - p) / K))."""
        logits_BK = outputs.detach().flatten(1)
        return torch.diag_embed((logits_BK.sigmoid() * (-logits_BK).sigmoid() / logits_BK.shape[1]).sqrt())

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """(p - y) / sqrt(K) (B, K) with each label y drawn from p."""
        p_BK = outputs.detach().flatten(1).sigmoid()
        drawn = uniform(p_BK.shape, generator, p_BK) < p_BK
        u_BK: Tensor = (p_BK - drawn.to(p_BK)) / p_BK.shape[1] ** 0.5
        return u_BK


@dataclass(frozen=True)
class Regression(Task):
    """Real targets (B,) or (B, K): half the squared error, summed over K; its negative is measured.

    Half the squared error is the negative log likelihood of a Gaussian of variance 1 up to a constant, so exp(-loss) is
    no probability; log odds of it would grow without bound as the error vanishes.
    """

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Half the squared error, (B,)."""
        targets = targets_of(batch).to(outputs.dtype)
        if outputs.numel() != targets.numel():
            raise InputError(f"Outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in number.")
        errors: Tensor = outputs - targets.reshape(outputs.shape)
        return errors.square().reshape(len(errors), -1).sum(1) / 2

    @final
    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """The negative loss, (B,)."""
        return -self.loss(outputs, batch)

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """The identity, (B, K, K)."""
        flat_BK = outputs.detach().reshape(len(outputs), -1)
        return torch.diag_embed(torch.ones_like(flat_BK))

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Standard normal numbers, (B, K)."""
        return _normal(outputs.detach().reshape(len(outputs), -1), generator)


def _blocks(factors_BTCR: Tensor) -> Tensor:
    """Return matrices (B, T C, T R) with these blocks on the diagonal."""
    size, blocks, rows, columns = factors_BTCR.shape
    whole = factors_BTCR.new_zeros(size, blocks, rows, blocks, columns)
    at = torch.arange(blocks, device=factors_BTCR.device)
    whole[:, at, :, at] = factors_BTCR.transpose(0, 1)
    return whole.reshape(size, blocks * rows, blocks * columns)


@dataclass(frozen=True)
class CausalLM(Task):
    """Next-token prediction; each sequence is one example.

    Logits at position t predict the token at t + 1. Tokens of value -100, and those where ``attention_mask`` is 0, do
    not count. Without ``labels`` the inputs (``input_ids``, or the tensor itself) are the targets.

    A batch of :func:`per_token` is of single tokens: loss and measured output are those of one token of each sequence.

    Attributes:
        reduction: ``"mean"`` over a sequence's predicted tokens, or their ``"sum"``: the sequence's log likelihood.
        position: explain the prediction of this one token (its place in the sequence, from 1 on) instead of the whole
            sequence; the training loss stays that of the whole.
    """

    reduction: str = "mean"
    position: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.reduction, ("mean", "sum"), "reduction", "CausalLM")
        if self.position is not None and self.position < 1:
            raise InputError(f"CausalLM: position must be from 1 on (nothing predicts token 0), got {self.position}.")

    @final
    def counted(self, batch: Batch) -> Tensor:
        """Return which tokens from the second on count, (B, T - 1)."""
        counted = self._targets(batch)[:, 1:] != IGNORED
        if isinstance(batch, Mapping) and "attention_mask" in batch:
            counted = counted & (batch["attention_mask"][:, 1:] != 0)
        return counted

    @final
    def token_losses(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each predicted token (B, T - 1), 0 where none counts, and which count."""
        targets, counted = self._targets(batch)[:, 1:], self.counted(batch)
        wanted = torch.where(counted, targets, 0)
        losses = F.cross_entropy(outputs[:, :-1].transpose(1, 2), wanted, reduction="none")
        return torch.where(counted, losses, torch.zeros_like(losses)), counted

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean (or sum) over the predicted tokens, (B,) nats; of one token where the batch says which."""
        losses, counted = self.token_losses(outputs, batch)
        if (places := _explained(batch)) is not None:
            return losses.gather(1, places[:, None] - 1)[:, 0]
        total = losses.sum(1)
        return total / counted.sum(1).clamp(min=1) if self.reduction == "mean" else total

    @final
    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """The log odds of exp(-loss), of the sequence or of one token, (B,)."""
        if self.position is None or _explained(batch) is not None:
            return log_odds(self.loss(outputs, batch))
        losses, _ = self.token_losses(outputs, batch)
        if self.position > losses.shape[1]:
            raise InputError(f"position {self.position} is beyond sequences of {losses.shape[1] + 1} tokens.")
        return log_odds(losses[:, self.position - 1])

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """S (B, T V, (T - 1) (V - 1)) of T tokens and V words: one block a predicted token; large beyond toy models."""
        factors = softmax_factors(outputs[:, :-1].detach()) * self._weights(outputs, batch).sqrt()[:, :, None, None]
        return F.pad(_blocks(factors), (0, 0, 0, outputs.shape[2]))  # the last position predicts nothing

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draws p - e_y (B, T V) with y drawn from p for each token, times the root of the token's weight."""
        drawn = softmax_draws(outputs[:, :-1].detach(), generator) * self._weights(outputs, batch).sqrt()[:, :, None]
        return F.pad(drawn, (0, 0, 0, 1)).flatten(1)

    def _weights(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weight of each predicted token's loss in the example's, (B, T - 1)."""
        counted = self.counted(batch).to(outputs.dtype)
        return counted / counted.sum(1, keepdim=True).clamp(min=1) if self.reduction == "mean" else counted

    @staticmethod
    def _targets(batch: Batch) -> Tensor:
        if isinstance(batch, Mapping) and not any(name in batch for name in TARGETS):
            if "input_ids" not in batch:
                raise InputError(f"CausalLM reads 'labels' or 'input_ids'; the batch has {some(list(batch))}.")
            return torch.as_tensor(batch["input_ids"])
        if isinstance(batch, Tensor) or (isinstance(batch, tuple | list) and len(batch) == 1):
            return batch if isinstance(batch, Tensor) else torch.as_tensor(batch[0])
        return targets_of(batch)


def _explained(batch: Batch) -> Tensor | None:
    """Which token of each sequence is explained (B,), where the batch is of single tokens."""
    return batch.get(POSITION) if isinstance(batch, Mapping) else None


def per_token(examples: ExampleSet, task: CausalLM | None = None) -> ExampleSet:
    """Return queries of single tokens: one example for each token that a sequence's loss counts.

    Scores of them have one column a token, whose loss and measured output are those of that token given all before it.
    With :class:`CausalLM`'s mean the scores of linear methods (TracIn, influence) average to the sequence's own.

    >>> scores = TracIn().fit(run).attribute(per_token(queries))  # doctest: +SKIP

    Args:
        examples: sequences, whose batches are dictionaries (``input_ids``, perhaps ``attention_mask`` and ``labels``).
        task: says which tokens count; by default :class:`CausalLM`.

    Returns:
        As many examples as tokens that count; their ids are the sequence's id with the token's place (from 1 on) as its
        last digits: with sequences of 18 tokens, token 4 of sequence 7 is 704.

    Raises:
        InputError: batches that are no dictionaries, no token that counts, ids that grow beyond 64 bits.
    """
    task, tokens, collate = task or CausalLM(), [], examples.collate
    first = examples.collated(np.arange(1))
    if collate is None or not isinstance(first, Mapping):
        raise InputError("per_token needs sequences whose batches are dictionaries with 'input_ids': collate them so.")
    for start in range(0, len(examples), LOOKED_AT):
        places = np.arange(start, min(start + LOOKED_AT, len(examples)))
        counted = task.counted(examples.collated(places))
        tokens += [(start + row, place + 1) for row, place in counted.nonzero().tolist()]
    digits = 10 ** len(str(max((place for _, place in tokens), default=0)))
    if not tokens or int(examples.ids.max()) >= np.iinfo(np.int64).max // digits:
        raise InputError(f"per_token: {'the ids are too large; give others' if tokens else 'no token counts'}.")
    items = _Tokens(examples, collate, tokens)
    ids = [int(examples.ids[at]) * digits + place for at, place in tokens]
    return ExampleSet(items, ids=ids, collate=items.together, name=f"tokens of {examples.name}")


@dataclass(frozen=True)
class _Tokens:
    """Items (a sequence's item, a token's place), and how these are put together."""

    examples: ExampleSet
    collate: Callable[[list[Any]], Batch]
    tokens: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        at, place = self.tokens[index]
        return self.examples[at], place

    def together(self, items: list[tuple[Any, int]]) -> Batch:
        """The sequences' batch, and which token of each is explained."""
        return {**self.collate([item for item, _ in items]), POSITION: torch.tensor([place for _, place in items])}


@dataclass(frozen=True)
class Segmentation(Task):
    """A class for each pixel: mean cross-entropy over pixels of logits (B, C, H, W) and targets (B, H, W).

    Attributes:
        ignore: pixels of this value do not count.
    """

    ignore: int = 255

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean over the pixels that count, (B,) nats."""
        targets = targets_of(batch)
        counted = targets != self.ignore
        losses = F.cross_entropy(outputs, torch.where(counted, targets, 0), reduction="none")
        return (losses * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """S (B, C H W, H W (C - 1)): one block a pixel; large beyond tiny images."""
        factors_BTCR = softmax_factors(self._pixels(outputs)) * self._weights(outputs, batch).sqrt()[:, :, None, None]
        size, pixels, classes, _ = factors_BTCR.shape
        blocks = _blocks(factors_BTCR).reshape(size, pixels, classes, -1)
        return blocks.transpose(1, 2).reshape(size, classes * pixels, -1)

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draws p - e_y (B, C H W) with y drawn from p for each pixel, times the root of the pixel's weight."""
        drawn_BTC = softmax_draws(self._pixels(outputs), generator) * self._weights(outputs, batch).sqrt()[:, :, None]
        return drawn_BTC.mT.flatten(1)

    @staticmethod
    def _pixels(outputs: Tensor) -> Tensor:
        """Logits (B, H W, C)."""
        return outputs.detach().flatten(2).mT

    def _weights(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weight of each pixel's loss in the example's, (B, H W)."""
        counted = (targets_of(batch) != self.ignore).flatten(1).to(outputs.dtype)
        return counted / counted.sum(1, keepdim=True).clamp(min=1)

    @final
    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Return logits; torchvision's segmentation models give them as ``out``."""
        args, named = call_arguments(model, batch)
        found = model(*args, **named)
        return found["out"] if isinstance(found, Mapping) and "out" in found else logits_of(found)


@dataclass(frozen=True, init=False)
class PerExample(Task):
    """Any two functions of (outputs, batch); the name enters fingerprints, so change it when a function changes.

    Attributes:
        function: returns the loss of each example, (B,).
        measured: returns what is explained, (B,), larger is better; by default the log odds of exp(-loss).
        title: names the pair of functions.
        forward: instead of the default forward pass, of (model, batch).
    """

    function: Callable[[Any, Batch], Tensor]
    measured: Callable[[Any, Batch], Tensor] | None = None
    title: str = "mine"
    forward: Callable[[nn.Module, Batch], Any] | None = None

    def __init__(
        self,
        loss: Callable[[Any, Batch], Tensor],
        measure: Callable[[Any, Batch], Tensor] | None = None,
        name: str = "mine",
        outputs: Callable[[nn.Module, Batch], Any] | None = None,
    ) -> None:
        for function, what in ((loss, "loss"), (measure, "measure"), (outputs, "outputs")):
            if not callable(function) and (what == "loss" or function is not None):
                raise InputTypeError(f"PerExample: {what} must be a function, got {type(function).__name__}.")
        check_text([name], "PerExample: name")
        for attribute, value in (("function", loss), ("measured", measure), ("title", name), ("forward", outputs)):
            object.__setattr__(self, attribute, value)

    @final
    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Return what the forward pass gives: ``forward``'s, or as of every task."""
        return super().outputs(model, batch) if self.forward is None else self.forward(model, batch)

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The user's loss, (B,)."""
        return self.function(outputs, batch)

    @final
    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """The user's measured output, (B,)."""
        return log_odds(self.loss(outputs, batch)) if self.measured is None else self.measured(outputs, batch)

    @property
    def name(self) -> str:
        """``PerExample(name)``."""
        return f"PerExample({self.title})"


@dataclass(frozen=True)
class Autocast(Task):
    """Another task, with its forward pass under ``torch.autocast``, as a model in mixed precision was trained.

    The weights stay as they are, so that gradients are of their type; layers compute in ``dtype`` where torch does so
    (matrix products, convolutions), and outputs come back in float32. Models in float64 are left alone.

    Attributes:
        task: what the model was trained to do.
        dtype: ``"bfloat16"``; or ``"float16"``, whose gradients may vanish (training scales the loss against that).
    """

    task: Task
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_choice(self.dtype, tuple(PRECISIONS), "dtype", "Autocast")
        if not isinstance(self.task, Task) or isinstance(self.task, Autocast):
            raise InputTypeError(f"Autocast: task must be another Task of comove.tasks, got {self.task!r}.")

    @final
    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The task's outputs, computed under autocast, in float32."""
        device = next(model.parameters()).device.type
        with torch.autocast(device, PRECISIONS[self.dtype]):
            found = self.task.outputs(model, batch)
        return map_tensors(lambda part: part.float() if part.dtype in PRECISIONS.values() else part, found)

    @final
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The task's loss, (B,)."""
        return self.task.loss(outputs, batch)

    @final
    def measure(self, outputs: Any, batch: Batch) -> Tensor:
        """The task's measured output, (B,)."""
        return self.task.measure(outputs, batch)

    @final
    def labels(self, batch: Batch) -> Tensor | None:
        """The task's classes."""
        return self.task.labels(batch)

    @final
    def error_probability(self, outputs: Any, batch: Batch) -> Tensor:
        """The task's weights, (B,)."""
        return self.task.error_probability(outputs, batch)

    @final
    def output_curvature(self, outputs: Any, batch: Batch) -> Tensor:
        """The task's factors, (B, K, R)."""
        return self.task.output_curvature(outputs, batch)

    @final
    def pseudo_gradients(self, outputs: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The task's pseudo-gradients, (B, K)."""
        return self.task.pseudo_gradients(outputs, batch, generator)

    @property
    def precision(self) -> torch.dtype:
        """``dtype``."""
        return PRECISIONS[self.dtype]

    @property
    def name(self) -> str:
        """The task's name within ``Autocast(...)``."""
        return f"Autocast({self.task.name}, {self.dtype})"


def classifies(task: Task) -> bool:
    """Whether a task is cross-entropy over the logits (B, C) of one class out of several, under autocast or not."""
    return isinstance(task.task if isinstance(task, Autocast) else task, _OneClass)


# --- checks ------------------------------------------------------------------------------------------------------


def check_values(values: Tensor, size: int, what: str, task: Task) -> Tensor:
    """Check and return what a task computed of a batch of ``size`` examples.

    Raises:
        InputTypeError: no tensor.
        InputError: not one number per example.
        NonFiniteError: NaN or infinite.
    """
    if not isinstance(values, Tensor):
        raise InputTypeError(f"{task.name}: {what} must return a tensor, got {type(values).__name__}.")
    if tuple(values.shape) != (size,):
        hint = ' Use reduction="none" and reduce over all axes but the first.' if values.ndim != 1 else ""
        raise InputError(
            f"{task.name}: {what} must return one number per example, ({size},), got {tuple(values.shape)}.{hint}"
        )
    bad = (~torch.isfinite(values.detach())).nonzero()[:, 0].tolist()
    if bad:
        raise NonFiniteError(
            f"{task.name}: {what} is NaN or infinite for {len(bad)} of {size} examples, rows {some(bad)}."
        )
    return values


def check_task(task: Task, model: nn.Module, batch: Batch) -> None:
    """Run a task once on a batch, with gradients, before anything long begins.

    Raises:
        InputTypeError: no :class:`Task`.
        InputError: a loss or measured output that is reduced over examples, or through which no gradient flows;
            targets missing from the batch.
        NonFiniteError: values that are NaN or infinite.
    """
    if not isinstance(task, Task):
        raise InputTypeError(f"task must be a Task of comove.tasks, got {type(task).__name__}.")
    size = batch_size(batch)
    with torch.enable_grad():
        found = task.outputs(model, batch)
        for what, function in (("loss", task.loss), ("measure", task.measure)):
            values = check_values(function(found, batch), size, what, task)
            if not values.requires_grad:
                raise InputError(
                    f"{task.name}: no gradient flows through {what} to the model's parameters: it was computed under "
                    "no_grad, through detach(), argmax or numpy, or all parameters are frozen."
                )
    classes = task.labels(batch)
    if classes is not None and tuple(classes.shape) != (size,):
        raise InputError(
            f"{task.name}: labels must return one class per example, ({size},), got {tuple(classes.shape)}."
        )
