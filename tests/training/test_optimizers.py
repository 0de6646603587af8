"""Our SGD is torch.optim.SGD bit for bit, our AdamW is torch.optim.AdamW, and clipping is that of torch.nn.utils."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from comove.training import Recipe
from comove.training.optimizers import SGD, AdamW, Optimizer, clip_gradients, optimizer_for


class _Net(nn.Module):
    """A layer that is used always, one that is used in odd steps only, one never, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = nn.Linear(7, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)

    def forward(self, x: torch.Tensor, odd: bool) -> torch.Tensor:
        hidden = torch.tanh(self.always(x))
        hidden = self.sometimes(hidden) if odd else hidden
        return self.frozen(hidden)  # type: ignore[no-any-return]


def _net() -> _Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return _Net()


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.0, False, 0.01), (0.9, False, 0.0), (0.9, False, 5e-4), (0.9, True, 0.0), (0.9, True, 5e-4)],
)
def test_twenty_steps_equal_torch_optim_sgd_bit_for_bit(momentum: float, nesterov: bool, weight_decay: float) -> None:
    ours, theirs, start = _net(), _net(), _net()
    recipe = Recipe(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    own = SGD(ours, recipe, {})
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x, y = torch.randn(6, 7, generator=generator), torch.randn(6, 3, generator=generator)
        own.lr = reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        for net, optimizer in ((ours, own), (theirs, reference)):
            optimizer.zero_grad()
            torch.autograd.backward((net(x, step % 2 == 1) - y).square().mean())
            optimizer.step()
    for (name, a), b, before in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, before) == name.startswith(("never", "frozen")), name


@pytest.mark.parametrize(
    ("betas", "eps", "weight_decay", "clip_norm"),
    [((0.9, 0.999), 1e-8, 0.0, None), ((0.8, 0.95), 1e-3, 0.1, None), ((0.9, 0.999), 1e-8, 0.01, 0.05)],
)
def test_twenty_steps_equal_torch_optim_adamw(
    betas: tuple[float, float], eps: float, weight_decay: float, clip_norm: float | None
) -> None:
    ours, theirs, start = _net().double(), _net().double(), _net().double()
    recipe = Recipe(optimizer="adamw", betas=betas, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm)
    own = optimizer_for(ours, recipe, {})
    assert isinstance(own, AdamW)
    reference = torch.optim.AdamW(theirs.parameters(), betas=betas, eps=eps, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x, y = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (7, 3))
        own.lr = reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        for net in (ours, theirs):
            net.zero_grad()
            torch.autograd.backward((net(x, step % 2 == 1) - y).square().mean())
        if clip_norm is not None:
            assert torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm) > clip_norm
        own.step()
        reference.step()
    for (name, a), b, before in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=name)
        assert torch.equal(a, before) == name.startswith(("never", "frozen")), name


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_clipped_gradients_are_those_of_torch_and_of_members_each_their_own(norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, members = [(6, 3), (6,), (2, 4, 3, 3)], 3
    alone = [[torch.randn(s, generator=generator) * 4**member for s in shapes] for member in range(members)]
    alone[1][0].zero_()
    side_by_side = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    side_by_side[2] = side_by_side[2].contiguous(memory_format=torch.channels_last)
    clip_gradients(side_by_side, norm, members)
    for member, gradients in enumerate(alone):
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, norm)
        clip_gradients(gradients, norm)
        for parameter, own, together in zip(parameters, gradients, side_by_side, strict=True):
            torch.testing.assert_close(own, parameter.grad)
            torch.testing.assert_close(together.chunk(members)[member], parameter.grad)


def test_a_scalar_parameter_is_clipped_too() -> None:
    gradients = [torch.tensor(3.0), torch.tensor([4.0])]
    clip_gradients(gradients, 1.0)
    torch.testing.assert_close(torch.cat([gradient.view(1) for gradient in gradients]), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        Recipe(lr=0.1, optimizer="adamw", weight_decay=0.1, clip_norm=0.1),
    ],
)
def test_momentum_saved_and_given_back_continues_to_the_same_bits(recipe: Recipe) -> None:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    whole, halves = _net(), _net()

    def steps(net: _Net, optimizer: Optimizer) -> None:
        for _ in range(5):
            optimizer.zero_grad()
            torch.autograd.backward(net(x, True).square().mean())
            optimizer.step()

    one = optimizer_for(whole, recipe, {})
    steps(whole, one)
    steps(whole, one)
    first = optimizer_for(halves, recipe, {})
    steps(halves, first)
    saved = {name: buffer.clone() for name, buffer in first.momentum().items()}
    steps(halves, optimizer_for(halves, recipe, saved))
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)


def test_momentum_names_trainable_parameters_and_is_empty_without_momentum() -> None:
    names = {name for name, parameter in _net().named_parameters() if parameter.requires_grad}
    assert set(SGD(_net(), Recipe(), {}).momentum()) == names
    assert SGD(_net(), Recipe(momentum=0.0), {}).momentum() == {}


def test_the_momentum_passed_in_is_not_changed() -> None:
    net = _net()
    given = {name: torch.ones_like(parameter) for name, parameter in net.named_parameters()}
    optimizer = SGD(net, Recipe(momentum=0.9), given)
    torch.autograd.backward(net(torch.ones(2, 7), True).sum())
    optimizer.step()
    assert all(bool((value == 1).all()) for value in given.values())
