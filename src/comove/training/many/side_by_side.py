"""Layers of many models side by side: one network that computes what G networks compute.

Every activation carries the G members along its dimension 1: (B, G*C, H, W), (B, G*F). A convolution of all members is
then one grouped convolution, a linear layer one batched matrix product, batch norm is itself (each channel has its own
statistics, running ones included), and whatever treats examples and channels separately (pooling, flattening, ReLU,
sums of branches) needs no change: the forward pass stays the network's own code.

Letters: G members, B batch, C channels, I features in, O features out, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.errors import InputError
from comove.training.recipe import Recipe

__all__ = ["ALIGNED", "Linear", "backpropagate", "channels_last", "perceptron", "side_by_side", "unfit"]

SIDE_BY_SIDE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
"""Layers with parameters that can stand side by side."""
RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ALIGNED = 16
"""Numbers in the widest vector register of today's processors (64 bytes)."""


def unfit(network: nn.Module) -> str | None:
    """Why the layers of this network cannot stand side by side, as far as can be seen by looking at them."""
    for module in network.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and type(module) not in SIDE_BY_SIDE:
            return f"{type(module).__name__} layers have no form in which many stand side by side"
        if isinstance(module, RANDOM) and module.p > 0:
            return "what dropout draws would depend on the group"
    if len(list(network.named_parameters(remove_duplicate=False))) > len(list(network.parameters())):
        return "layers share parameters"
    return None


class Linear(nn.Module):
    """y_GOB = W_GOI x_GIB + b_GO1, members side by side in (B, G*I) and (B, G*O).

    Matrix products may round differently where a matrix does not begin at a multiple of the register's width. So that a
    member's bits do not depend on its place, I and B are filled up with zeros to multiples of it.
    """

    def __init__(self, layer: nn.Linear, members: int) -> None:
        super().__init__()
        self.members, self.weight, self.bias = members, layer.weight, layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, G*I) to (B, G*O)."""
        if inputs.ndim != 2:
            raise InputError(f"linear layers stand side by side on (B, F) inputs, not on {inputs.ndim} dimensions")
        batch, features = len(inputs), self.weight.shape[1]
        more_B, more_I = -batch % ALIGNED, -features % ALIGNED
        x_GIB = inputs.view(batch, self.members, features).permute(1, 2, 0)
        weight_GOI = self.weight.view(self.members, -1, features)
        if more_B or more_I:
            x_GIB = F.pad(x_GIB, (0, more_B, 0, more_I))
        if more_I:
            weight_GOI = F.pad(weight_GOI, (0, more_I))
        if self.bias is None:
            y_GOB = torch.bmm(weight_GOI, x_GIB)
        else:
            y_GOB = torch.baddbmm(self.bias.view(self.members, -1, 1), weight_GOI, x_GIB)
        return y_GOB[:, :, :batch].permute(2, 0, 1).flatten(1)


def side_by_side(networks: Sequence[nn.Module]) -> nn.Module:
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
                setattr(parent, name, Linear(child, members))
    return root[0]


def channels_last(network: nn.Module, members: int, recipe: Recipe, device: torch.device) -> bool:
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


def perceptron(network: nn.Module) -> list[Linear] | None:
    """The layers of a network of linear layers with ReLU between them; ``None`` for any other, or unaligned sizes."""
    if type(network) is not nn.Sequential or not len(network):
        return None
    flat = type(network[0]) is nn.Flatten and (network[0].start_dim, network[0].end_dim) == (1, -1)
    layers = list(network)[1:] if flat else list(network)
    linear = [module for module in layers[::2] if isinstance(module, Linear) and module.bias is not None]
    plain = len(linear) == len(layers[::2]) and all(type(module) is nn.ReLU for module in layers[1::2])
    aligned = all(layer.weight.shape[1] % ALIGNED == 0 for layer in linear)
    trained = all(parameter.requires_grad for parameter in network.parameters())
    return linear if plain and aligned and trained and len(layers) % 2 else None


@torch.no_grad()
def backpropagate(
    layers: list[Linear], inputs: Tensor, labels_BG: Tensor, smoothing: float, weights_BG: Tensor | None = None
) -> None:
    """Write the gradient of the summed cross-entropies; a sixth faster than autograd on small layers.

    h_l = max(W_l h_(l-1) + b_l, 0);  d_L = w (softmax(h_L) - target) / B, w the losses' weights (by default 1);
    d_(l-1) = W_l^T d_l [h_(l-1) > 0];  dW_l = d_l h_(l-1)^T,  db_l = the sum of d_l over the batch. Rumelhart, Hinton &
    Williams, 1986.
    """
    batch, members = labels_BG.shape
    inputs = F.pad(inputs, (0, 0, 0, -batch % ALIGNED))  # see Linear
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
    if weights_BG is not None:
        delta[:, :, :batch] *= weights_BG.T.unsqueeze(1)
    for layer, weight_GOI in zip(reversed(layers), reversed(weights), strict=True):
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        below = hidden.pop()
        torch.bmm(delta, below.transpose(1, 2), out=layer.weight.grad.view_as(weight_GOI))
        torch.sum(delta, 2, out=layer.bias.grad.view(members, -1))
        if hidden:
            delta = torch.ops.aten.threshold_backward(torch.bmm(weight_GOI.transpose(1, 2), delta), below, 0)
