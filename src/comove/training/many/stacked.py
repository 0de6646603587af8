"""Many models of one architecture trained at once, their layers side by side in one network.

Each member has its own examples, initial weights, order and augmentation, drawn as :func:`comove.training.fit` draws
them. Its bits depend on its own examples and seed, and on the number of members; not on who they are, nor on its place.
What cannot be trained like that (dropout, layers that mix channels) is found out, by looking at the layers and by
comparing two members side by side with themselves alone.

Letters: G members, B batch, N examples a member, C channels, K classes, Q queries.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.models import Factory, ModelSpec, logits_of, put_channels_last
from comove.training.augment import flip_crop
from comove.training.ema import EMA
from comove.training.loop import Resident, batch_bounds, epoch_plan
from comove.training.many.side_by_side import ALIGNED, backpropagate, channels_last, perceptron, side_by_side, unfit
from comove.training.optimizers import optimizer_for
from comove.training.randomness import seeded
from comove.training.recipe import Recipe

__all__ = ["Member", "Stack", "place_matters", "why_not_stacked"]

COMPARED = 4
"""Examples on which two members are compared with themselves alone."""
EVALUATED = 1024
"""Rows (members times queries) of one evaluation batch."""


class Member(NamedTuple):
    """One model to train: (n,) positions of its training examples, and the seed of all its randomness.

    ``loss_weights`` (n,) are what their losses count, by default 1; see :func:`comove.training.loop.mean_loss`.
    """

    positions: npt.NDArray[np.int64]
    seed: int
    loss_weights: npt.NDArray[np.float32] | None = None


class Stack:
    """G models in one network, trained and evaluated together.

    Args:
        networks: the members' own networks, freshly built on the CPU; the first is consumed.
        recipe: how to train.
        device: where to compute.
    """

    def __init__(self, networks: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        self.members, self.recipe, self.device = len(networks), recipe, device
        self.network = side_by_side(networks).to(device)
        self.channels_last = channels_last(self.network, len(networks), recipe, device)
        if self.channels_last:
            put_channels_last(self.network)
        self.half = device.type == "cuda" and recipe.precision == "bfloat16"
        self.layers = None if self.half else perceptron(self.network)
        self.optimizer = optimizer_for(self.network, recipe, {}, len(networks))
        if self.layers is not None:
            for parameter in self.network.parameters():
                parameter.grad = torch.empty_like(parameter)  # written anew in every step

    def train(self, data: Resident, members: Sequence[Member]) -> None:
        """Train all members, which have equally many examples, as ``fit`` trains one."""
        positions_GN = torch.from_numpy(np.stack([member.positions for member in members]).astype(np.int64))
        batches = batch_bounds(positions_GN.shape[1], self.recipe)
        weights_NG = self._loss_weights(len(data), members)
        average = None if self.recipe.ema is None else EMA(self.network, self.recipe.ema)
        self.network.train()
        for epoch in range(self.recipe.epochs):
            where_NG, draws_NG3 = self._plan(positions_GN, [member.seed for member in members], epoch)
            for index, (start, stop) in enumerate(batches):
                draws = None if draws_NG3 is None else draws_NG3[start:stop].flatten(0, 1)
                where = where_NG[start:stop]
                inputs = self.rows(data, where.flatten(), draws)
                lr = self.recipe.lr_at(epoch + (index + 0.5) / len(batches))
                weights_BG = None if weights_NG is None else weights_NG.gather(0, where)
                self.step(inputs, data.labels[where], lr, weights_BG)
                if average is not None:
                    average.update(epoch * len(batches) + index + 1)
        if average is not None:
            average.swap()
        self.network.eval()

    def _loss_weights(self, size: int, members: Sequence[Member]) -> Tensor | None:
        """What the loss of each of ``size`` examples counts for each member (size, G); ``None`` where all count 1."""
        if all(member.loss_weights is None for member in members):
            return None
        weights_NG = torch.ones(size, len(members))
        for place, member in enumerate(members):
            if member.loss_weights is not None:
                weights_NG[torch.from_numpy(member.positions), place] = torch.from_numpy(member.loss_weights)
        return weights_NG.to(self.device)

    def _plan(self, positions_GN: Tensor, seeds: Sequence[int], epoch: int) -> tuple[Tensor, Tensor | None]:
        """Every member's examples in the epoch's order (N, G), and their flips and shifts (N, G, 3)."""
        plans = [epoch_plan(positions_GN.shape[1], self.recipe, seed, epoch) for seed in seeds]
        where_NG = torch.stack([positions[order] for positions, (order, _) in zip(positions_GN, plans, strict=True)], 1)
        draws = [draws[order] for order, draws in plans if draws is not None]
        return where_NG.to(self.device), torch.stack(draws, 1).to(self.device) if draws else None

    def rows(self, data: Resident, positions: Tensor, draws: Tensor | None = None) -> Tensor:
        """Fetch examples, the members' next to each other: (B*G,) positions to (B, G*C, ...) inputs."""
        inputs = data.inputs(positions)
        if draws is not None:
            inputs = flip_crop(inputs, draws, self.recipe.crop_padding)
        inputs = inputs.view(-1, self.members, *inputs.shape[1:])
        if self.channels_last and inputs.ndim == 5:
            return inputs.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        return inputs.flatten(1, 2)

    def logits(self, inputs: Tensor) -> Tensor:
        """Map (B, G*C, ...) to (B, G, K)."""
        outputs = logits_of(self.network(inputs))
        return outputs.view(outputs.shape[0], self.members, -1)

    def step(self, inputs: Tensor, labels_BG: Tensor, lr: float, weights_BG: Tensor | None = None) -> None:
        """Take one step of every member on its own batch, whose losses count as the weights say (by default 1)."""
        self.optimizer.lr = lr
        smoothing = self.recipe.label_smoothing
        if self.layers is not None:
            backpropagate(self.layers, inputs.flatten(1), labels_BG, smoothing, weights_BG)
        else:
            self.optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16) if self.half else nullcontext():
                logits_GKB, labels_GB = self.logits(inputs).permute(1, 2, 0), labels_BG.T
                if weights_BG is None:
                    total = F.cross_entropy(logits_GKB, labels_GB, reduction="sum", label_smoothing=smoothing)
                else:
                    each = F.cross_entropy(logits_GKB, labels_GB, reduction="none", label_smoothing=smoothing)
                    total = (each * weights_BG.T).sum()
            torch.autograd.backward(total / len(labels_BG))
        self.optimizer.step()

    def predict(self, query: Resident) -> Tensor:
        """Return the logits (G, Q, K) float32 of all members on the CPU."""
        size = max(ALIGNED, EVALUATED // self.members)
        last = len(query) - 1
        parts = []
        with torch.no_grad():
            for start in range(0, len(query), size):  # all batches are full, the last one by repetition: see ALIGNED
                positions = torch.arange(start, start + size, device=self.device).clamp_(max=last)
                parts.append(self.logits(self.rows(query, positions.repeat_interleave(self.members))))
        return torch.cat(parts)[: len(query)].transpose(0, 1).float().cpu()

    def weights(self, member: int) -> dict[str, Tensor]:
        """A copy of one member's parameters and buffers, named and shaped as in its own network, on the CPU."""
        state = self.network.state_dict()
        return {
            name: (value.chunk(self.members)[member] if value.ndim else value).to("cpu", copy=True)
            for name, value in state.items()
        }


# --- what can be stacked -------------------------------------------------------------------------------------------


def why_not_stacked(
    spec: ModelSpec, train: Resident, recipe: Recipe, factory: str | Factory | None = None
) -> str | None:
    """Return why these models cannot be trained side by side, or ``None`` when they can.

    Besides looking at the layers, it puts two members with different weights and examples side by side and compares
    their logits, in training and in evaluation mode, with those of each alone.
    """
    if train.device.type == "cuda" and recipe.precision == "float16":
        return "the loss scale of float16 would be shared by the members of a group"
    if recipe.early_stop_patience is not None:
        return "early stopping would end the members of a group after different epochs"
    networks = [spec.build(seed, factory) for seed in (0, 1)]
    return unfit(networks[0]) or _difference(networks, train, recipe)


def _difference(networks: list[nn.Module], train: Resident, recipe: Recipe) -> str | None:
    alone = [copy.deepcopy(network).to(train.device) for network in networks]
    positions = torch.arange(2 * COMPARED, device=train.device) % len(train)
    try:
        with torch.no_grad(), seeded(0, device=train.device):
            stack = Stack(networks, recipe, train.device)
            for training in (True, False):
                stack.network.train(training)
                logits_BGK = stack.logits(stack.rows(train, positions))
                for member, network in enumerate(alone):
                    logits_BK = logits_of(network.train(training)(train.inputs(positions[member::2])))
                    close = 1e-2 * float(logits_BK.abs().max())
                    if not torch.allclose(logits_BGK[:, member], logits_BK, rtol=1e-2, atol=close, equal_nan=True):
                        return "side by side they would not compute what each computes alone"
    except Exception as error:  # whatever a network of the user's own may raise, it can still be trained one by one
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def place_matters(
    spec: ModelSpec, train: Resident, recipe: Recipe, group: int, size: int, factory: str | Factory | None = None
) -> bool:
    """Whether a member's bits depend on its place among ``group`` members of ``size`` examples.

    A user's own layers may round elements in full vector registers differently from the rest. One member is put in
    every place, trained for two epochs of two batches, as large as the first and the last, and evaluated: all must come
    out alike. Asked on a CPU only: many kernels of a GPU add in whatever order, so bits are not promised there.
    """
    if train.device.type != "cpu":
        return False
    bounds = batch_bounds(size, recipe)
    both = sum(stop - start for start, stop in (bounds[0], bounds[-1]))
    member = Member(np.arange(min(size, both)), 0)
    stack = Stack([spec.build(0, factory)] * group, recipe.shortened(2), train.device)
    stack.train(train, [member] * group)
    outcomes = [stack.predict(train.part(member.positions[:2]))]
    outcomes += [value.reshape(group, -1) for value in stack.network.state_dict().values() if value.ndim]
    numbers = [outcome.nan_to_num() for outcome in outcomes]  # diverged alike is alike
    return not all(torch.equal(value, value[:1].expand_as(value)) for value in numbers)
