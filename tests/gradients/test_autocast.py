"""A forward pass under autocast: gradients in float32, by the fast ways, equal to plain autograd's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comove import ExampleSet, Weights, adopt
from comove.attribution import CLD, TRAK, TracIn
from comove.coreset import select
from comove.data.batches import batch_size, rows_of
from comove.errors import InputError, InputTypeError
from comove.gradients.per_example import PerExampleGradients
from comove.tasks import Autocast, Classification, Regression, SequenceClassification, Task, classifies

N = 12
ROUNDING = 2e-2
"""bfloat16 has eight bits: 0.4 % for each rounding, of which a gradient passes several."""


class Own(nn.Module):
    """A parameter of its own, for which no rule is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, 16), nn.Parameter(torch.ones(16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(torch.tanh(self.first(x)) * self.scale)
        return made


def numbers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def pictures() -> nn.Module:
    parts = (
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
    )
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **size)
    made: nn.Module = BertForSequenceClassification(config)
    return made


def batch_of(kind: str) -> Any:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % 3
    if kind == "pictures":
        return torch.randn(N, 3, 8, 8, generator=draw), labels
    if kind == "bert":
        mask = torch.ones(N, 8, dtype=torch.int64)
        mask[::2, 5:] = 0
        ids = torch.randint(0, 20, (N, 8), generator=draw)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return torch.randn(N, 6, generator=draw), labels


CASES: dict[str, tuple[Callable[[], nn.Module], Task, str]] = {
    "numbers": (numbers, Classification(), "per-sample rules"),
    "pictures": (pictures, Classification(), "per-sample rules"),
    "own": (Own, Classification(), "torch.func"),
    "bert": (bert, SequenceClassification(), "per-sample rules"),
}


@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_those_of_autograd_under_the_same_autocast_in_float32(kind: str) -> None:
    build, task, way = CASES[kind]
    if kind == "bert" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    torch.manual_seed(0)
    model, batch = build().eval(), batch_of(kind)
    stream = PerExampleGradients(model, "loss", task=Autocast(task))
    found = stream(batch)
    assert stream.paths.way == way, stream.paths
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    differs = 0.0
    for row in range(batch_size(batch)):
        one = rows_of(batch, slice(row, row + 1))
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(task.outputs(model, one), one)[0]
        plain = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        exact = torch.autograd.grad(task.loss(task.outputs(model, one), one)[0], list(model.parameters()))
        ours = torch.cat([found[name][row].flatten() for name, _ in model.named_parameters()])
        truth, full = (torch.cat([part.flatten() for part in parts if part is not None]) for parts in (plain, exact))
        assert float((ours - truth).norm()) <= ROUNDING * float(truth.norm())
        differs = max(differs, float((truth - full).norm() / full.norm()))
    assert differs > 1e-4  # or autocast was not in use


def test_an_adopted_run_is_replayed_and_explained_under_autocast(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (x, y) = numbers(), batch_of("numbers")
    optimizer, kept = torch.optim.SGD(model.parameters(), lr=0.5), []
    for epoch in range(1, 7):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        torch.save(model.state_dict(), tmp_path / f"{epoch}.pt")
        kept.append(Weights(tmp_path / f"{epoch}.pt", epoch, lr=0.5))
    train, queries = ExampleSet.from_arrays(x[:9], y[:9]), ExampleSet.from_arrays(x[9:], y[9:])
    runs = [
        adopt(model, kept, train, queries, task, device="cpu")
        for task in (Autocast(Classification()), Classification())
    ]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = nn.functional.cross_entropy(model(x[:9]).float(), y[:9], reduction="none")
    np.testing.assert_allclose(runs[0].trace.train_losses[-1], expected.numpy(), rtol=1e-2)
    assert runs[0].task.name == "Autocast(Classification(), bfloat16)"
    for method in (CLD(), TracIn(), TRAK(projector="none", ridge=0.1, parameters="3.bias")):
        mixed, single = (method.fit(run).attribute().values for run in runs)
        assert mixed.dtype == np.float32
        assert np.abs(mixed - single).max() > 0
        assert np.corrcoef(mixed.ravel(), single.ravel())[0, 1] > 0.98
    assert len(select("herding", runs[0], budget=4)) == 4  # features and probabilities were kept
    logits = runs[0].class_logits(train)
    assert logits is not None
    assert logits.dtype == torch.float32


def test_what_autocast_wraps_is_said_and_checked() -> None:
    assert classifies(Autocast(SequenceClassification()))
    assert not classifies(Autocast(Regression()))
    with pytest.raises(InputError, match="dtype must be one of bfloat16, float16"):
        Autocast(Regression(), "float32")
    for wrong in ("regression", Autocast(Regression())):
        with pytest.raises(InputTypeError, match="task must be another Task"):
            Autocast(wrong)  # type: ignore[arg-type]
    double = numbers().double()
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(
        Autocast(Classification()).outputs(double, (x, torch.zeros(2))), double(x), rtol=0, atol=0
    )
