"""Runs trained elsewhere: the folder opened again from its paths, and the optimizer's states behind TracIn's step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comove import ExampleSet, Run, Splits, Trace, Weights, adopt
from comove.attribution import CLD, TracIn
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError
from comove.tasks import PerExample, Regression
from comove.training import open_adopted
from comove.training.optimizer_state import step_factors

N, Q = 12, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)).double()


def pairs(size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [(row, row[:2] * 2) for row in x]


def sets() -> tuple[ExampleSet, ExampleSet]:
    collate = torch.utils.data.default_collate
    return ExampleSet(pairs(N, 0), collate=collate), ExampleSet(pairs(Q, 1), collate=collate)


def trained(folder: Path, optimizer_of: Any, steps: int = 3) -> list[tuple[Path, Path]]:
    """Files of weights and of the optimizer's state after each step."""
    model, (train, _) = network(), sets()
    x, y = train.collated(np.arange(N))
    optimizer, files = optimizer_of(model), []
    for step in range(1, steps + 1):
        torch.autograd.backward((model(x) - y).square().sum(1).mean() / 2)
        optimizer.step()
        optimizer.zero_grad()
        files.append((folder / f"e{step}.pt", folder / f"e{step}-optimizer.pt"))
        torch.save(model.state_dict(), files[-1][0])
        torch.save(optimizer.state_dict(), files[-1][1])
    return files


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.03, betas=(0.8, 0.95), eps=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    return trained(tmp_path_factory.mktemp("trained"), adamw)


def adopted(files: list[tuple[Path, Path]], out: Path | None = None, lr: float | None = None) -> Run:
    weights = [Weights(one, lr=lr, optimizer_state=state) for one, state in files]
    return adopt(network, weights, *sets(), Regression(), out=out, device="cpu")


# --- the preconditioned step ----------------------------------------------------------------------------------------


def gradients(model: nn.Module, examples: ExampleSet) -> list[dict[str, Tensor]]:
    found = []
    for place in range(len(examples)):
        x, y = examples.collated(np.array([place]))
        loss = (model(x) - y).square().sum() / 2
        names = [name for name, _ in model.named_parameters()]
        found.append(dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True)))
    return found


def expected(files: list[tuple[Path, Path]], lr: float | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores (N, Q) and self-influence (N,) written out from Adam's formula, in float64."""
    total, own = np.zeros((N, Q)), np.zeros(N)
    for weights, state_file in files:
        model = network()
        model.load_state_dict(torch.load(weights, weights_only=True))
        state = torch.load(state_file, weights_only=True)
        rate = 0.03 if lr is None else lr
        factor = {}
        for place, (name, _) in enumerate(model.named_parameters()):
            one = state["state"][place]
            factor[name] = rate / ((one["exp_avg_sq"] / (1 - 0.95 ** one["step"].item())).sqrt() + 1e-6)
        train, queries = (gradients(model, part) for part in sets())
        for m, mine in enumerate(train):
            own[m] += sum(float((mine[name] ** 2 * factor[name]).sum()) for name in mine)
            for q, theirs in enumerate(queries):
                total[m, q] += sum(float((mine[name] * factor[name] * theirs[name]).sum()) for name in mine)
    return total, own


@pytest.mark.parametrize("lr", [None, 0.5])
def test_tracin_takes_adams_own_step(files: list[tuple[Path, Path]], lr: float | None) -> None:
    fitted = TracIn(optimizer_state=True).fit(adopted(files, lr=lr))
    scores, own = expected(files, lr)
    np.testing.assert_allclose(fitted.attribute().values, scores, atol=1e-5 * np.abs(scores).max())
    np.testing.assert_allclose(fitted.self_influence(), own, rtol=1e-5)
    projection = TracIn(optimizer_state=True, projection=4000).fit(adopted(files, lr=lr)).attribute().values
    assert np.corrcoef(projection.ravel(), scores.ravel())[0, 1] > 0.98
    with pytest.raises(InputError, match="learning rates"):
        TracIn().fit(adopted(files)).attribute()


def groups(model: nn.Module, named: bool = False) -> list[dict[str, Any]]:
    """As transformers' Trainer makes them: what is decayed comes first."""
    pairs = list(model.named_parameters())
    kept = [(name, p) for name, p in pairs if p.ndim > 1], [(name, p) for name, p in pairs if p.ndim < 2]
    return [
        {"params": part if named else [p for _, p in part], "weight_decay": decay}
        for part, decay in zip(kept, (0.1, 0.0), strict=True)
    ]


@pytest.mark.parametrize("named", [False, True])
def test_states_of_two_groups_find_their_parameters(named: bool, tmp_path: Path) -> None:
    ((weights, state),) = trained(tmp_path, lambda model: torch.optim.AdamW(groups(model, named), lr=0.1), steps=1)
    model = network()
    model.load_state_dict(torch.load(weights, weights_only=True))
    found = step_factors(model, {"optimizer": torch.load(state, weights_only=True), "epoch": 3})
    before, (train, _) = network(), sets()
    x, y = train.collated(np.arange(N))
    torch.autograd.backward((before(x) - y).square().sum(1).mean() / 2)
    for name, parameter in before.named_parameters():
        assert parameter.grad is not None
        # After one step v_hat is the squared gradient: Adam's first step is the sign of the gradient times lr.
        torch.testing.assert_close(found[name], (0.1 / (parameter.grad.abs() + 1e-8)).float(), rtol=1e-4, atol=0)


def test_states_that_tell_nothing_of_adams_step_are_refused(files: list[tuple[Path, Path]], tmp_path: Path) -> None:
    def score(states: list[Any]) -> None:
        weights = [Weights(one, lr=0.1, optimizer_state=state) for (one, _), state in zip(files, states, strict=True)]
        run = adopt(network, weights, *sets(), Regression(), device="cpu")
        TracIn(optimizer_state=True).fit(run).attribute()

    kept = [torch.load(state, weights_only=True) for _, state in files]
    with pytest.raises(InputError, match="state at epoch 2 is not known; give it for every checkpoint"):
        score([kept[0], None, kept[2]])
    plain = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    torch.autograd.backward(network()(torch.zeros(1, 3, dtype=torch.float64)).sum())
    plain.param_groups[0]["params"][0].grad = torch.ones_like(plain.param_groups[0]["params"][0])
    plain.step()
    with pytest.raises(InputError, match="no second moments"):
        score([plain.state_dict()] * 3)
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(InputError, match=r"of 2 parameters fits the model's 6 in no known order.*named_parameters"):
        score([other.state_dict()] * 3)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(CorruptFileError, match="holds no optimizer's state_dict"):
        score([tmp_path / "none.pt"] * 3)
    with pytest.raises(InputTypeError, match="optimizer_state is a path"):
        Weights(files[0][0], optimizer_state=adamw(network()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be true or false"):
        TracIn(optimizer_state="adam")


def test_a_run_of_comoves_own_loop_keeps_no_optimizer_states(run: Run) -> None:
    with pytest.raises(InputError, match="keeps no optimizer state at its checkpoints"):
        TracIn(optimizer_state=True).fit(run).attribute()


# --- the folder, opened again ---------------------------------------------------------------------------------------


def test_a_folder_opens_with_the_weights_at_the_paths_that_it_noted(tmp_path: Path) -> None:
    made = adopted(trained(tmp_path, adamw), tmp_path / "run", lr=0.1)
    data = Splits(sets()[0], None, sets()[1], ids_apart=False)
    for given in (data, sets(), (sets()[0], None, sets()[1])):
        again = open_adopted(tmp_path / "run", network, given, Regression(), device="cpu")
        for method in (CLD(), TracIn(), TracIn(optimizer_state=True)):
            np.testing.assert_array_equal(method.fit(again).attribute().values, method.fit(made).attribute().values)
    shutil.move(tmp_path, moved := tmp_path.with_name("moved"))  # weights beside it go with it
    again = open_adopted(moved / "run", network, sets(), Regression(), device="cpu")
    assert [one.path.parent for one in again.checkpoints] == [moved] * 3
    assert again.manifest["fingerprint"] == made.manifest["fingerprint"]
    with pytest.raises(FingerprintError, match=r"made with the task Regression\(\), not PerExample\(mine\): give"):
        open_adopted(moved / "run", network, sets(), PerExample(Regression().loss, name="mine"), device="cpu")
    with pytest.raises(FingerprintError, match=r"dataset\.fingerprint"):
        open_adopted(moved / "run", network, (sets()[0], sets()[0]), Regression(), device="cpu")
    with pytest.raises(InputTypeError, match=r"Splits, \(train, queries\)"):
        open_adopted(moved / "run", network, sets()[:1], Regression(), device="cpu")
    shutil.copy(moved / "e1.pt", moved / "e2.pt")
    with pytest.raises(FingerprintError, match=r"adopted\.weights"):
        open_adopted(moved / "run", network, sets(), Regression(), device="cpu")
    (moved / "e2.pt").unlink()
    with pytest.raises(CorruptFileError, match=r"e2\.pt does not exist"):
        open_adopted(moved / "run", network, sets(), Regression(), device="cpu")


def test_weights_that_moved_alone_are_noted_at_the_next_adoption(tmp_path: Path) -> None:
    files = trained(tmp_path, adamw)
    adopted(files, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    moved = [tuple(Path(shutil.move(file, tmp_path / "elsewhere")) for file in pair) for pair in files]
    adopted(moved, tmp_path / "run")  # type: ignore[arg-type]
    again = open_adopted(tmp_path / "run", network, sets(), Regression(), device="cpu")
    assert {one.path.parent.name for one in again.checkpoints} == {"elsewhere"}


def test_what_was_in_memory_leads_nowhere(files: list[tuple[Path, Path]], tmp_path: Path) -> None:
    states = [torch.load(file, weights_only=True) for file, _ in files]
    adopt(network, states, *sets(), Regression(), out=tmp_path / "a", device="cpu")
    with pytest.raises(InputError, match="made from weights in memory, which no path leads to"):
        open_adopted(tmp_path / "a", network, sets(), Regression())
    trace = adopted(files).trace
    weights = [Weights(file) for file, _ in files]
    arrays = Trace.from_arrays(train_losses=trace.train_losses, query_losses=trace.query_losses)
    adopt(network, weights, *sets(), Regression(), trace=arrays, out=tmp_path / "b", device="cpu")
    with pytest.raises(InputError, match="made from a trace in memory"):
        open_adopted(tmp_path / "b", network, sets(), Regression())
    trace.save(tmp_path / "trace")
    made = adopt(network, weights, *sets(), Regression(), trace=tmp_path / "trace", out=tmp_path / "c", device="cpu")
    again = open_adopted(tmp_path / "c", network, sets(), Regression(), device="cpu")
    np.testing.assert_array_equal(CLD().fit(again).attribute().values, CLD().fit(made).attribute().values)
