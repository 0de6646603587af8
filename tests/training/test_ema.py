"""The moving average of weights: its formula, what it leaves alone, and that it goes in and out to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from comove.training.ema import EMA


class _Net(nn.Module):
    """A trained, a tied and a frozen layer, batch norm, and a mask with infinite entries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2).requires_grad_(False)
        self.tied.weight, self.norm = self.first.weight, nn.BatchNorm1d(3)
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def _moved(net: _Net, by: float) -> None:
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point() and not name.startswith(("frozen", "mask")):
                value += by


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_the_average_is_that_of_its_formula_and_the_weights_come_back_to_the_bit() -> None:
    net, decay = _Net(), 0.4
    average = EMA(net, decay)
    expected = {name: value.double() for name, value in _copy(net).items()}
    for step in range(1, 6):
        _moved(net, 0.37)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        for name, value in _copy(net).items():
            if not name.startswith(("frozen", "mask")) and value.is_floating_point():
                expected[name] = d * expected[name] + (1 - d) * value.double()
    weights = _copy(net)
    with average.in_model():
        held = _copy(net)
    for name, value in weights.items():
        assert torch.equal(net.state_dict()[name], value), name
        torch.testing.assert_close(held[name].double(), expected[name], msg=name)
    assert not torch.equal(held["norm.running_var"], weights["norm.running_var"])
    assert held["mask"].tolist() == [0.0, -torch.inf]
    assert net.tied.weight is net.first.weight


def test_an_average_goes_on_from_what_a_run_keeps_to_the_same_bits() -> None:
    whole, resumed = _Net(), _Net()
    resumed.load_state_dict(whole.state_dict())
    first, half = EMA(whole, 0.9), EMA(resumed, 0.9)
    for step in (1, 2):
        for net, average in ((whole, first), (resumed, half)):
            _moved(net, 0.3)
            average.update(step)
    again = _Net()
    with half.in_model():
        again.load_state_dict(resumed.state_dict())
        second = EMA(again, 0.9, half.other)
    for net, average in ((whole, first), (again, second)):
        _moved(net, -0.1)
        average.update(3)
        average.swap()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
