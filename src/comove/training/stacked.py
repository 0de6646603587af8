"""Many models of one architecture trained at once, their layers side by side in one network.

Every activation carries the G members along its dimension 1: (B, G*C, H, W), (B, G*F). A convolution of all members is
then one grouped convolution, a linear layer one batched matrix product, batch norm is itself (each channel has its own
statistics, running ones included), and whatever treats examples and channels separately (pooling, flattening, ReLU,
sums of branches) needs no change: the forward pass stays the network's own code. What does mix channels
(concatenation, a softmax over dimension 1) is found out by comparing two members with themselves alone.

Each member has its own examples, initial weights, order and augmentation, drawn as :func:`comove.training.fit` draws
them. Its bits depend on its own examples and seed, and on the number of members; not on who they are, nor on its place.

Letters: G members, B batch, N examples a member, C channels, F or I features in, O features out, K classes, Q queries.
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

from comove.errors import InputError
from comove.models import Factory, ModelSpec
from comove.training.augment import flip_crop
from comove.training.loop import Resident, batch_bounds, epoch_plan
from comove.training.randomness import seeded
from comove.training.recipe import Recipe
from comove.training.sgd import SGD

__all__ = ["Member", "Stack", "place_matters", "why_not_stacked"]

SIDE_BY_SIDE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
"""Layers with parameters that can stand side by side."""
RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
COMPARED = 4
"""Examples on which two members are compared with themselves alone."""
EVALUATED = 1024
"""Rows (members times queries) of one evaluation batch."""
ALIGNED = 16
"""Numbers in the widest vector register of today's processors (64 bytes)."""


class Member(NamedTuple):
    """One model to train: (n,) positions of its training examples, and the seed of all its randomness."""

    positions: npt.NDArray[np.int64]
    seed: int


class Stack:
    """G models in one network, trained and evaluated together.

    Args:
        networks: the members' own networks, freshly built on the CPU; the first is consumed.
        recipe: how to train.
        device: where to compute.
    """

    def __init__(self, networks: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        self.members, self.recipe, self.device = len(networks), recipe, device
        self.network = _side_by_side(networks).to(device)
        self.channels_last = _channels_last(self.network, len(networks), recipe, device)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.half = device.type == "cuda" and recipe.precision == "bfloat16"
        self.layers = None if self.half else _perceptron(self.network)
        self.optimizer = SGD(self.network, recipe, {})
        if self.layers is not None:
            for parameter in self.network.parameters():
                parameter.grad = torch.empty_like(parameter)  # written anew in every step

    def train(self, data: Resident, members: Sequence[Member]) -> None:
        """Train all members, which have equally many examples, as ``fit`` trains one."""
        positions_GN = torch.from_numpy(np.stack([member.positions for member in members]).astype(np.int64))
        batches = batch_bounds(positions_GN.shape[1], self.recipe.batch_size)
        self.network.train()
        for epoch in range(self.recipe.epochs):
            where_NG, draws_NG3 = self._plan(positions_GN, [member.seed for member in members], epoch)
            for index, (start, stop) in enumerate(batches):
                draws = None if draws_NG3 is None else draws_NG3[start:stop].flatten(0, 1)
                where = where_NG[start:stop]
                inputs = self.rows(data, where.flatten(), draws)
                lr = self.recipe.lr_at(epoch + (index + 0.5) / len(batches))
                self.step(inputs, data.labels[where], lr)
        self.network.eval()

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
        inputs = inputs.unflatten(0, (-1, self.members))
        if self.channels_last and inputs.ndim == 5:
            return inputs.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        return inputs.flatten(1, 2)

    def logits(self, inputs: Tensor) -> Tensor:
        """Map (B, G*C, ...) to (B, G, K)."""
        outputs: Tensor = self.network(inputs)
        return outputs.view(outputs.shape[0], self.members, -1)

    def step(self, inputs: Tensor, labels_BG: Tensor, lr: float) -> None:
        """Take one step of every member on its own batch."""
        self.optimizer.lr = lr
        smoothing = self.recipe.label_smoothing
        if self.layers is not None:
            _backpropagate(self.layers, inputs.flatten(1), labels_BG, smoothing)
        else:
            self.optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16) if self.half else nullcontext():
                logits_GKB = self.logits(inputs).permute(1, 2, 0)
            total = F.cross_entropy(logits_GKB.float(), labels_BG.T, reduction="sum", label_smoothing=smoothing)
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
            name: (value.unflatten(0, (self.members, -1))[member] if value.ndim else value).to("cpu", copy=True)
            for name, value in state.items()
        }


# --- layers side by side -------------------------------------------------------------------------------------------


class _Linear(nn.Module):
    """y_GOB = W_GOI x_GIB + b_GO1, members side by side in (B, G*I) and (B, G*O); no activation is copied."""

    def __init__(self, layer: nn.Linear, members: int) -> None:
        super().__init__()
        self.members, self.weight, self.bias = members, layer.weight, layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.ndim != 2:
            raise InputError(f"linear layers stand side by side on (B, F) inputs, not on {inputs.ndim} dimensions")
        x_GIB = inputs.view(len(inputs), self.members, -1).permute(1, 2, 0)
        weight_GOI = self.weight.view(self.members, -1, x_GIB.shape[1])
        if self.bias is None:
            y_GOB = torch.bmm(weight_GOI, x_GIB)
        else:
            y_GOB = torch.baddbmm(self.bias.view(self.members, -1, 1), weight_GOI, x_GIB)
        return y_GOB.permute(2, 0, 1).flatten(1)


def _side_by_side(networks: Sequence[nn.Module]) -> nn.Module:
    """Turn the first network into all of them: parameters and buffers concatenated, convolutions grouped."""
    members = len(networks)
    for modules in zip(*(network.modules() for network in networks), strict=True):
        wide = modules[0]
        for name, value in list(wide.named_parameters(recurse=False)):
            joined = torch.cat([getattr(module, name).detach() for module in modules])
            setattr(wide, name, nn.Parameter(joined, requires_grad=value.requires_grad))
        for name, value in list(wide.named_buffers(recurse=False)):
            if value.ndim:  # the count of batches seen is the same for all
                setattr(wide, name, torch.cat([getattr(module, name) for module in modules]))
        if isinstance(wide, nn.Conv1d | nn.Conv2d):
            wide.groups *= members
        elif isinstance(wide, nn.GroupNorm):
            wide.num_groups *= members
    root = nn.Sequential(networks[0])
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _Linear(child, members))
    return root[0]


def _channels_last(network: nn.Module, members: int, recipe: Recipe, device: torch.device) -> bool:
    """Whether to put the channels last: on a CPU that is fastest for many groups of few channels, whatever the recipe.

    Batch norm's gradient rounds channels in full vector registers differently from the rest, so that a member's bits
    would depend on its place; therefore only where there is no rest.
    """
    modules = list(network.modules())
    if not any(isinstance(module, nn.Conv2d) for module in modules) or device.type != "cpu":
        return recipe.channels_last
    widths = [module.num_features for module in modules if isinstance(module, nn.BatchNorm2d)]
    return all(width * members % ALIGNED == 0 for width in widths)


# --- fully connected networks, by hand -----------------------------------------------------------------------------


def _perceptron(network: nn.Module) -> list[_Linear] | None:
    """The layers of a network that is nothing but linear layers with ReLU between them; ``None`` for any other."""
    if type(network) is not nn.Sequential:
        return None
    flat = type(network[0]) is nn.Flatten and (network[0].start_dim, network[0].end_dim) == (1, -1)
    layers = list(network)[1:] if flat else list(network)
    linear = [module for module in layers[::2] if isinstance(module, _Linear) and module.bias is not None]
    plain = len(linear) == len(layers[::2]) and all(type(module) is nn.ReLU for module in layers[1::2])
    trained = all(parameter.requires_grad for parameter in network.parameters())
    return linear if plain and trained and len(layers) % 2 else None


@torch.no_grad()
def _backpropagate(layers: list[_Linear], inputs: Tensor, labels_BG: Tensor, smoothing: float) -> None:
    """Write the gradient of the summed cross-entropies; a sixth faster than autograd on small layers.

    h_l = max(W_l h_(l-1) + b_l, 0);  d_L = (softmax(h_L) - target) / B,  d_(l-1) = W_l^T d_l [h_(l-1) > 0];
    dW_l = d_l h_(l-1)^T,  db_l = the sum of d_l over the batch. Rumelhart, Hinton & Williams, 1986.
    """
    batch, members = labels_BG.shape
    inputs = F.pad(inputs, (0, 0, 0, -batch % ALIGNED))  # products of aligned matrices round alike for every member
    hidden = [inputs.view(len(inputs), members, -1).permute(1, 2, 0)]  # each (G, F, B)
    weights = [layer.weight.view(members, -1, layer.weight.shape[1]) for layer in layers]
    for layer, weight_GOI in zip(layers, weights, strict=True):
        if layer is not layers[0]:
            hidden[-1].relu_()
        hidden.append(torch.baddbmm(layer.bias.view(members, -1, 1), weight_GOI, hidden[-1]))
    delta = hidden.pop().softmax(1)
    if smoothing:
        delta -= smoothing / delta.shape[1]
    labels_G1B = labels_BG.T.unsqueeze(1)
    delta.scatter_add_(1, labels_G1B, delta.new_full((), smoothing - 1).expand(labels_G1B.shape))
    delta /= batch
    delta[:, :, batch:] = 0
    for layer, weight_GOI in zip(reversed(layers), reversed(weights), strict=True):
        assert layer.weight.grad is not None and layer.bias.grad is not None
        below = hidden.pop()
        torch.bmm(delta, below.transpose(1, 2), out=layer.weight.grad.view_as(weight_GOI))
        torch.sum(delta, 2, out=layer.bias.grad.view(members, -1))
        if hidden:
            delta = torch.ops.aten.threshold_backward(torch.bmm(weight_GOI.transpose(1, 2), delta), below, 0)


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
    networks = [spec.build(seed, factory) for seed in (0, 1)]
    return _unfit(networks[0]) or _difference(networks, train, recipe)


def _unfit(network: nn.Module) -> str | None:
    for module in network.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and type(module) not in SIDE_BY_SIDE:
            return f"{type(module).__name__} layers have no form in which many stand side by side"
        if isinstance(module, RANDOM) and module.p > 0:
            return "what dropout draws would depend on the group"
    if len(list(network.named_parameters(remove_duplicate=False))) > len(list(network.parameters())):
        return "layers share parameters"
    return None


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
                    logits_BK = network.train(training)(train.inputs(positions[member::2]))
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

    Some kernels round differently where a matrix does not begin at a multiple of their register's width. One member is
    put in every place, trained for two steps (a full batch and the last one) and evaluated: all must come out alike.
    """
    start, stop = batch_bounds(size, recipe.batch_size)[-1]
    member = Member(np.arange(min(size, recipe.batch_size + stop - start)), 0)
    stack = Stack([spec.build(0, factory)] * group, recipe.with_changes(epochs=1), train.device)
    stack.train(train, [member] * group)
    outcomes = [stack.predict(train.part(member.positions[:2]))]
    outcomes += [value.unflatten(0, (group, -1)) for value in stack.network.state_dict().values() if value.ndim]
    return any(not torch.equal(outcome.nan_to_num(), outcome[:1].nan_to_num().expand_as(outcome)) for outcome in outcomes)
