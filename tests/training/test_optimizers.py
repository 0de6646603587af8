"""Our SGD is torch.optim.SGD, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from comove.training import Recipe
from comove.training.optimizers import SGD


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


def test_momentum_saved_and_given_back_continues_to_the_same_bits() -> None:
    recipe = Recipe(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    whole, halves = _net(), _net()

    def steps(net: _Net, optimizer: SGD) -> None:
        for _ in range(5):
            optimizer.zero_grad()
            torch.autograd.backward(net(x, True).square().mean())
            optimizer.step()

    one = SGD(whole, recipe, {})
    steps(whole, one)
    steps(whole, one)
    first = SGD(halves, recipe, {})
    steps(halves, first)
    saved = {name: buffer.clone() for name, buffer in first.momentum().items()}
    steps(halves, SGD(halves, recipe, saved))
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
