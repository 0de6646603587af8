"""Runs of models trained elsewhere: what is replayed, what every method gives on them, and what is refused."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import comove
from comove import Weights, adopt
from comove.attribution import (
    CLD,
    EKFAC,
    TRAK,
    Arnoldi,
    DataInf,
    GaussNewton,
    GradDot,
    InfluenceCG,
    TracIn,
)
from comove.coreset import select
from comove.data import ExampleSet
from comove.errors import CorruptFileError, FingerprintError, InputError, InputTypeError, NonFiniteError
from comove.tasks import (
    CausalLM,
    Classification,
    MultiLabel,
    PerExample,
    Regression,
    Segmentation,
    SequenceClassification,
    Task,
    per_token,
)

N, Q = 14, 5
Floats = npt.NDArray[np.float64]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tokens(nn.Module):
    """A little transformer block over token ids; logits per position, or of the whole."""

    def __init__(self, outputs: int, whole: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.mix, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.head, self.whole = nn.Linear(8, outputs), whole

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1])[None])
        hidden = self.norm(hidden + torch.tanh(self.mix(hidden)))
        return {"logits": self.head(hidden.mean(1) if self.whole else hidden)}


def numbers(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))


def pictures() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


def items_of(kind: str, size: int, seed: int) -> list[Any]:
    rng = draw(seed)
    ids = torch.randint(0, 11, (size, 6), generator=rng)
    x = torch.randn(size, 4, generator=rng, dtype=torch.float64)
    if kind == "tokens":
        return [{"input_ids": i, "attention_mask": torch.ones(6, dtype=torch.int64)} for i in ids]
    if kind == "labelled tokens":
        return [{"input_ids": i, "labels": int(i.sum()) % 3} for i in ids]
    if kind == "classes":
        return [(v, int(v.argmax())) for v in x]
    if kind == "labels":
        return [(v, (v[:3] > 0).long()) for v in x]
    if kind == "numbers":
        return [(v, v[:2] * 2) for v in x]
    images = torch.randn(size, 1, 5, 5, generator=rng, dtype=torch.float64)
    return [(image, (image[0] > 0).long()) for image in images]


def mine(outputs: Tensor, batch: Any) -> Tensor:
    return F.smooth_l1_loss(outputs, batch[1], reduction="none").sum(1)


CASES: dict[str, tuple[Task, Callable[[], nn.Module], str]] = {
    "classification": (Classification(), lambda: numbers(4), "classes"),
    "multi-label": (MultiLabel(), lambda: numbers(3), "labels"),
    "regression": (Regression(), lambda: numbers(2), "numbers"),
    "causal": (CausalLM(), lambda: Tokens(11, whole=False), "tokens"),
    "sequences": (SequenceClassification(), lambda: Tokens(3, whole=True), "labelled tokens"),
    "segmentation": (Segmentation(), pictures, "pictures"),
    "functions": (
        PerExample(mine, lambda outputs, batch: -mine(outputs, batch), "mine-1"),
        lambda: numbers(2),
        "numbers",
    ),
}


def sets(kind: str) -> tuple[ExampleSet, ExampleSet]:
    collate = torch.utils.data.default_collate
    return (
        ExampleSet(items_of(kind, N, 0), ids=np.arange(100, 100 + N), collate=collate),
        ExampleSet(items_of(kind, Q, 1), ids=np.arange(500, 500 + Q), collate=collate),
    )


def trained(build: Callable[[], nn.Module], task: Task, train: ExampleSet) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model trained by AdamW in a loop of one's own, and its weights along the way."""
    torch.manual_seed(0)
    model = build().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    kept = []
    batch = train.collated(np.arange(len(train)))
    for _ in range(4):
        torch.autograd.backward(task.loss(task.outputs(model, batch), batch).mean())
        optimizer.step()
        optimizer.zero_grad()
        kept.append(copy.deepcopy(model.state_dict()))
    return model.eval(), kept


def autograd(model: nn.Module, task: Task, examples: ExampleSet, what: str) -> tuple[Floats, Floats]:
    """Gradients (M, P) of the loss or of the measured output, and these values (M,): one example at a time."""
    rows, values = [], []
    for place in range(len(examples)):
        batch = examples.collated(np.array([place]))
        value = getattr(task, what)(task.outputs(model, batch), batch)[0]
        found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]
        rows.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
        values.append(float(value.detach()))
    return np.stack(rows), np.array(values)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    task, build, kind = CASES[request.param]
    train, queries = sets(kind)
    model, kept = trained(build, task, train)
    weights = [Weights(state, epoch=place + 1, lr=0.5 / (place + 1)) for place, state in enumerate(kept)]
    run = adopt(model, weights, train, queries, task, out=tmp_path_factory.mktemp("adopted") / "run", device="cpu")
    return run, model, task, train, queries, kept


def test_the_trace_holds_every_examples_loss_at_every_checkpoint(case: tuple[Any, ...]) -> None:
    run, model, task, train, queries, kept = case
    trace = run.trace
    assert trace.train_losses.shape == (4, N)
    model = copy.deepcopy(model)
    for row, state in enumerate(kept):
        model.load_state_dict(state)
        for found, examples in ((trace.train_losses, train), (trace.query_losses, queries)):
            _, expected = autograd(model, task, examples, "loss")
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-7)
    scores = CLD().fit(run).attribute()
    changes = (
        np.diff(trace.train_losses.astype(np.float64), axis=0),
        np.diff(trace.query_losses.astype(np.float64), axis=0),
    )
    expected = np.array([[np.corrcoef(a, b)[0, 1] for b in changes[1].T] for a in changes[0].T])
    np.testing.assert_allclose(scores.values, expected, atol=1e-4)


def test_tracin_and_grad_dot_are_inner_products_of_autograds_gradients(case: tuple[Any, ...]) -> None:
    run, model, task, train, queries, kept = case
    model, total = copy.deepcopy(model), np.zeros((N, Q))
    for place, state in enumerate(kept):
        model.load_state_dict(state)
        product = autograd(model, task, train, "loss")[0] @ autograd(model, task, queries, "loss")[0].T
        total += 0.5 / (place + 1) * product
    scale = np.abs(total).max()
    np.testing.assert_allclose(TracIn().fit(run).attribute().values / scale, total / scale, atol=1e-5)
    np.testing.assert_allclose(GradDot().fit(run).attribute().values, product, atol=1e-5 * np.abs(product).max())


def test_trak_without_a_projection_is_its_formula(case: tuple[Any, ...]) -> None:
    run, model, task, train, queries, _ = case
    few = [name for name, _ in model.named_parameters()][-1]
    phi, _ = autograd(model, task, train, "measure")
    asked, _ = autograd(model, task, queries, "measure")
    wanted = slice(phi.shape[1] - dict(model.named_parameters())[few].numel(), phi.shape[1])
    phi, asked = phi[:, wanted], asked[:, wanted]
    _, losses = autograd(model, task, train, "loss")
    gram = phi.T @ phi
    ridge = 0.1 * np.trace(gram) / len(gram)
    expected = (phi @ np.linalg.solve(gram + ridge * np.eye(len(gram)), asked.T)) * (1 - np.exp(-losses))[:, None]
    found = TRAK(projector="none", ridge=0.1, parameters=few).fit(run).attribute().values
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-4)


def test_influence_solves_with_the_hessian_of_the_mean_loss(case: tuple[Any, ...]) -> None:
    run, model, task, train, queries, _ = case
    name = [name for name, _ in model.named_parameters()][-1]
    batch = train.collated(np.arange(N))
    parameter = dict(model.named_parameters())[name]

    def mean_loss(value: Tensor) -> Tensor:
        def forward(call: nn.Module) -> Tensor:
            mean: Tensor = task.loss(task.outputs(call, batch), batch).mean()
            return mean

        return _with(model, name, value, forward)

    value = parameter.detach().clone().requires_grad_()
    gradient = torch.autograd.grad(mean_loss(value), value, create_graph=True)[0].reshape(-1)
    rows = [torch.autograd.grad(entry, value, retain_graph=True)[0].reshape(-1) for entry in gradient]
    hessian = torch.stack(rows).numpy()
    g_train, g_query = (_columns(model, task, part, name) for part in (train, queries))
    expected = g_train @ np.linalg.solve(hessian + 0.5 * np.eye(len(hessian)), g_query.T)
    found = InfluenceCG(damping=0.5, tolerance=1e-9, parameters=name).fit(run).attribute().values
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-5)
    found = Arnoldi(rank=4, arnoldi_dim=10, hessian_examples=N, parameters=name).fit(run).attribute().values
    assert np.isfinite(found).all()


def test_ekfac_solves_with_its_factors_between_autograds_gradients(case: tuple[Any, ...]) -> None:
    run, model, task, train, queries, _ = case
    fitted = EKFAC(damping=0.01).fit(run)
    scores = fitted.attribute()
    factors = fitted._fitted[1][0].factors
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert set(factors.parameters) | set(factors.left_out) == set(sizes)

    def gradients(examples: ExampleSet, what: str) -> dict[str, Tensor]:
        whole = torch.split(torch.from_numpy(autograd(model, task, examples, what)[0]), list(sizes.values()), 1)
        named = {n: part.reshape(-1, *p.shape) for (n, p), part in zip(model.named_parameters(), whole, strict=True)}
        return {name: named[name] for name in factors.parameters}

    solved, own = factors.solve(gradients(queries, "measure"), 0.01), gradients(train, "loss")
    expected = -sum((own[name].flatten(1) @ solved[name].flatten(1).mT).numpy() for name in own)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5 * np.abs(expected).max())
    assert all(name in scores.info["left_out"] for name in factors.left_out)


def _with(model: nn.Module, name: str, value: Tensor, forward: Callable[[nn.Module], Tensor]) -> Tensor:
    owner_name, _, kind = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    kept = owner._parameters.pop(kind)
    setattr(owner, kind, value)
    try:
        return forward(model)
    finally:
        delattr(owner, kind)
        owner._parameters[kind] = kept


def _columns(model: nn.Module, task: Task, examples: ExampleSet, name: str) -> Floats:
    rows, _ = autograd(model, task, examples, "loss")
    start = 0
    for known, parameter in model.named_parameters():
        if known == name:
            return rows[:, start : start + parameter.numel()]
        start += parameter.numel()
    raise AssertionError(name)


def test_new_examples_are_explained_and_coresets_selected(case: tuple[Any, ...]) -> None:
    run, _, task, _, queries, _ = case
    again = TracIn().fit(run).attribute(queries).values
    np.testing.assert_allclose(again, TracIn().fit(run).attribute().values, rtol=1e-4, atol=1e-6)
    fresh = CLD().fit(run).attribute(queries).values
    np.testing.assert_allclose(fresh, CLD().fit(run).attribute().values, atol=1e-4)
    if task.labels(queries.collated(np.arange(2))) is None:
        assert run.trace.manifest["classes"] == ["all examples"]
        assert len(select("cld", run, budget=5)) == 5
    assert len(select("random", run, budget=6)) == 6


# --- classification: what the library's own runs give ---------------------------------------------------------------


def test_an_adopted_classifier_has_the_scores_of_the_run_it_was(run: comove.Run) -> None:
    kept = [Weights(one.path, epoch=one.epoch, lr=one.lr, step=one.step) for one in run.checkpoints if one.epoch]
    data = run.data()
    network = run.load_model()
    adopted = adopt(network, kept, data.train, data.query, validation=data.validation, trace=run.trace, device="cpu")
    for method in (CLD(), TracIn(), GradDot(), Arnoldi(rank=5, arnoldi_dim=8)):
        if isinstance(method, TracIn):
            continue  # the run's first checkpoint, before training, is not among the weights
        expected = method.fit(run).attribute().values
        np.testing.assert_array_equal(method.fit(adopted).attribute().values, expected)


def test_replayed_statistics_of_a_classifier_are_those_recorded(run: comove.Run, tmp_path: Path) -> None:
    kept = [Weights(one.path, epoch=one.epoch, lr=one.lr) for one in run.checkpoints if one.epoch]
    data = run.data()
    made = adopt(run.load_model(), kept, data.train, data.query, out=tmp_path / "a", device="cpu")
    rows = [one.row for one in run.checkpoints if one.epoch]
    for field in ("loss", "margin_logit", "el2n"):
        expected = run.trace.read("train", field, rows=rows)
        np.testing.assert_allclose(made.trace.read("train", field), expected, rtol=1e-4, atol=1e-5)
    features = made.trace.features("train")
    assert features.shape[0] == len(data.train)
    assert len(select("herding", made, budget=20)) == 20


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simple() -> tuple[nn.Module, list[dict[str, Tensor]], ExampleSet, ExampleSet]:
    train, queries = sets("numbers")
    model, kept = trained(lambda: numbers(2), Regression(), train)
    return model, kept, train, queries


@pytest.mark.parametrize("kind", ["pt", "checkpoint", "safetensors", "folder", "dictionary", "prefixed"])
def test_weights_are_read_from_every_kind_of_file(kind: str, simple: Any, tmp_path: Path) -> None:
    model, kept, train, queries = simple
    sources: list[Any] = []
    for place, state in enumerate(kept):
        file = tmp_path / f"e{place}"
        if kind == "pt":
            torch.save(state, file := file.with_suffix(".pt"))
        elif kind == "checkpoint":
            torch.save({"epoch": place, "state_dict": state, "loss": 0.5}, file := file.with_suffix(".ckpt"))
        elif kind == "safetensors":
            save_file(state, file := file.with_suffix(".safetensors"))
        elif kind == "folder":
            file.mkdir()
            save_file(state, file / "model.safetensors")
        elif kind == "prefixed":
            torch.save({f"module.{name}": tensor for name, tensor in state.items()}, file := file.with_suffix(".pth"))
        sources.append(state if kind == "dictionary" else file)
    run = adopt(lambda: numbers(2).double(), sources, train, queries, Regression(), device="cpu")
    expected = adopt(model, kept, train, queries, Regression(), device="cpu")
    np.testing.assert_array_equal(run.trace.train_losses, expected.trace.train_losses)
    assert [one.epoch for one in run.checkpoints] == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r"learning rates: give them, Weights\(\.\.\., lr=\)"):
        TracIn().fit(run).attribute()


def test_a_replay_that_was_interrupted_goes_on_and_other_weights_are_refused(
    simple: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept, train, queries = simple
    from comove.training import adopt as module_function

    assert module_function is adopt
    import importlib

    module = importlib.import_module("comove.training.adopt")
    written: list[int] = []
    write_row = module.write_row

    def stop(folder: Path, row: Any, arrays: Any, manifest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(row.index)
        write_row(folder, row, arrays, manifest)

    monkeypatch.setattr(module, "write_row", stop)
    with pytest.raises(KeyboardInterrupt):
        adopt(model, kept, train, queries, Regression(), out=tmp_path / "r", device="cpu")
    monkeypatch.setattr(module, "write_row", write_row)
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "r/trace/rows").iterdir()}
    assert len(times) == 2
    run = adopt(model, kept, train, queries, Regression(), out=tmp_path / "r", device="cpu")
    assert {name: (tmp_path / "r/trace/rows" / name).stat().st_mtime_ns for name in times} == times
    whole = adopt(model, kept, train, queries, Regression(), device="cpu")
    np.testing.assert_array_equal(run.trace.train_losses, whole.trace.train_losses)
    with pytest.raises(FingerprintError, match="another run"):
        adopt(model, kept[:3], train, queries, Regression(), out=tmp_path / "r", device="cpu")
    with pytest.raises(InputError, match=r"call of comove\.adopt"):
        comove.Run.load(tmp_path / "r")
    assert comove.Trace.load(tmp_path / "r/trace").train_losses.shape == (4, N)


def test_weights_that_change_afterwards_are_noticed(simple: Any, tmp_path: Path) -> None:
    model, kept, train, queries = simple
    files = [tmp_path / f"e{place}.pt" for place in range(4)]
    for file, state in zip(files, kept, strict=True):
        torch.save(state, file)
    adopt(model, files, train, queries, Regression(), out=tmp_path / "run", device="cpu")
    run = adopt(model, files, train, queries, Regression(), out=tmp_path / "run", device="cpu")
    torch.save(kept[0], files[3])
    with pytest.raises(FingerprintError, match="other weights than when"):
        run.load_model()


class Code:
    """What only unpickling can make."""


def test_what_does_not_fit_is_refused_in_one_line(simple: Any, tmp_path: Path) -> None:
    model, kept, train, queries = simple
    task = Regression()

    def refused(error: type[Exception], match: str, weights: Any = kept, **changes: Any) -> None:
        given: dict[str, Any] = {"model": model, "train": train, "queries": queries, "task": task, **changes}
        with pytest.raises(error, match=match) as raised:
            adopt(given["model"], weights, given["train"], given["queries"], given["task"], device="cpu")
        assert "\n" not in str(raised.value)

    torch.save(model, tmp_path / "whole.pt")
    refused(CorruptFileError, r"reading it would run code.*state_dict\(\)", [tmp_path / "whole.pt"])
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    refused(CorruptFileError, r"broken\.pt", [tmp_path / "broken.pt"])
    refused(CorruptFileError, "does not exist", [tmp_path / "absent.pt"])
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    refused(CorruptFileError, "no state dict", [tmp_path / "empty.pt"])
    lacking = {name: tensor for name, tensor in kept[-1].items() if name != "2.bias"}
    refused(InputError, r"does not fit the model: it lacks 2\.bias", [lacking])
    refused(InputError, "it has extra besides", [{**kept[-1], "extra": torch.zeros(1)}])
    refused(InputError, "does not fit the model: size mismatch", [{**kept[-1], "2.bias": torch.zeros(7)}])
    refused(
        InputError, "in the order of training; their epochs", [Weights(kept[0], epoch=2), Weights(kept[1], epoch=1)]
    )
    refused(InputError, "at least one checkpoint", [])
    refused(InputTypeError, "sequence of checkpoints", kept[0])
    refused(InputTypeError, "task must be a Task", task="regression")
    refused(InputTypeError, "must be a torch.nn.Module", model=3)
    refused(InputError, "no targets", train=ExampleSet([torch.zeros(4).double()] * 3))
    mixing = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)).double()
    refused(InputError, "keeps no running statistics", [mixing.state_dict()], model=mixing)
    nan = copy.deepcopy(kept[1])
    nan["2.bias"][0] = math.nan
    refused(NonFiniteError, r"NaN or infinite at checkpoint 2, of ids 100", [kept[0], nan, kept[2]])
    reduced = PerExample(lambda outputs, batch: F.mse_loss(outputs, batch[1]), name="r")
    refused(InputError, "one number per example", task=reduced)
    with pytest.raises(InputError, match="lr must not be negative"):
        Weights(kept[0], lr=-1.0)
    other = comove.Trace.from_arrays(train_losses=np.ones((3, 4)), query_losses=np.ones((3, Q)))
    with pytest.raises(
        InputError,
        match=r"other training examples: the ids in it are 0, 1, 2 and 1 more; .* ExampleSet\(examples, ids=\.\.\.\)",
    ):
        adopt(model, kept, train, queries, task, trace=other, device="cpu")


@pytest.mark.parametrize("method", ["el2n", "herding", "aum", "forgetting"])
def test_coreset_methods_say_what_a_replay_has(method: str, simple: Any) -> None:
    model, kept, train, queries = simple
    run = adopt(model, kept, train, queries, Regression(), device="cpu")
    with pytest.raises(
        InputError, match=r"trained elsewhere \(Regression\(\)\).*Choose a method that reads losses"
    ) as raised:
        select(method, run, budget=5)
    assert "comove.train" not in str(raised.value)


def test_retraining_says_that_it_needs_the_users_own_function(simple: Any) -> None:
    model, kept, train, queries = simple
    run = adopt(model, kept, train, queries, Regression(), device="cpu")
    with pytest.raises(InputError, match="training=OwnTraining"):
        _ = run.recipe
    assert "4 checkpoints trained elsewhere" in repr(run)


def test_both_sets_may_be_numbered_from_zero() -> None:
    train, queries = (ExampleSet(items_of("classes", size, seed)) for size, seed in ((N, 0), (Q, 1)))
    model = numbers(4)
    run = adopt(model, [model.state_dict()], train, queries, device="cpu")
    assert GradDot().fit(run).attribute().values.shape == (N, Q)


def test_only_the_parameters_asked_for_are_differentiated(simple: Any) -> None:
    model, kept, train, queries = simple
    run = adopt(model, kept, train, queries, Regression(), device="cpu")
    whole = sum(GradDot(parameters=f"{part}.*").fit(run).attribute().values for part in (0, 2))
    np.testing.assert_allclose(whole, GradDot().fit(run).attribute().values, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"no parameter 'haed\.\*'"):
        GradDot(parameters="haed.*").fit(run).attribute()
    with pytest.raises(InputError, match="parameters must be a name or pattern"):
        GradDot(parameters=[])


def test_a_report_and_a_ranking_by_loss_are_made_of_any_task(simple: Any, tmp_path: Path) -> None:
    from comove.evaluation import rank_labels
    from comove.report import write_report

    model, kept, train, queries = simple
    run = adopt(model, [Weights(state, lr=0.1) for state in kept], train, queries, Regression(), device="cpu")
    page = write_report(tmp_path / "report.html", [run], {"cld": CLD().fit(run).attribute()})
    assert "all examples" in page.read_text(encoding="utf-8")
    order = rank_labels(run, ["loss"]).to_pandas()
    assert len(order) == N


def test_a_temporary_run_leaves_no_folder_behind(simple: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept, train, queries = simple
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = adopt(model, kept, train, queries, Regression(), device="cpu")
    assert len(list(tmp_path.iterdir())) == 1
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    nan = copy.deepcopy(kept[1])
    nan["2.bias"][0] = math.nan
    with pytest.raises(NonFiniteError):
        adopt(model, [kept[0], nan, kept[2]], train, queries, Regression(), device="cpu")
    gc.collect()
    assert list(tmp_path.iterdir()) == []


# --- language models, token by token ---------------------------------------------------------------------------------


def test_scores_of_tokens_are_autograds_and_average_to_their_sequences(tmp_path: Path) -> None:
    task, train = CausalLM(), sets("tokens")[0]
    items = items_of("tokens", 3, 1)
    items[1]["attention_mask"][4:] = 0
    queries = ExampleSet(items, ids=[7, 8, 12], collate=torch.utils.data.default_collate)
    model, kept = trained(lambda: Tokens(11, whole=False), task, train)
    run = adopt(model, [Weights(state, lr=0.5) for state in kept], train, queries, task, device="cpu")
    tokens = per_token(queries)
    assert tokens.ids.tolist() == [71, 72, 73, 74, 75, 81, 82, 83, 121, 122, 123, 124, 125]
    found = TracIn().fit(run).attribute(tokens)
    whole = TracIn().fit(run).attribute(queries).values
    for column, id_ in enumerate(queries.ids):
        np.testing.assert_allclose(found.values[:, tokens.ids // 10 == id_].mean(1), whole[:, column], atol=1e-6)
    model.load_state_dict(kept[-1])
    one = queries.collated(np.array([2]))
    log_p = task.outputs(model, one)[0, 3].log_softmax(-1)[one["input_ids"][0, 4]]
    truth = torch.cat([g.reshape(-1) for g in torch.autograd.grad(-log_p, list(model.parameters()))]).numpy()
    expected = autograd(model, task, train, "loss")[0] @ truth
    columns = GradDot().fit(run).attribute(tokens).values[:, tokens.ids == 124][:, 0]
    np.testing.assert_allclose(columns, expected, atol=1e-6 * np.abs(expected).max() + 1e-9)
    batch = tokens.collated(np.array([11]))
    p = log_p.detach().exp()
    torch.testing.assert_close(task.measure(task.outputs(model, batch), batch)[0], torch.log(p / (1 - p)))
    assert CLD().fit(run).attribute(tokens).values.shape == (N, 13)
    assert TRAK(proj_dim=4).fit(run).attribute(tokens).values.shape == (N, 13)


def test_tokens_need_dictionaries_and_something_that_counts() -> None:
    with pytest.raises(InputError, match="batches are dictionaries with 'input_ids'"):
        per_token(ExampleSet([torch.arange(4)] * 3))
    with pytest.raises(InputError, match="no token counts"):
        per_token(ExampleSet([{"input_ids": torch.arange(4), "labels": torch.full((4,), -100)}] * 3))
    far = ExampleSet([{"input_ids": torch.arange(4)}] * 2, ids=[0, 2**62])
    with pytest.raises(InputError, match="ids are too large"):
        per_token(far)


# --- other precisions -----------------------------------------------------------------------------------------------


def token_sets(size: int = 40) -> tuple[ExampleSet, ExampleSet]:
    ids = torch.randint(0, 11, (size, 6), generator=draw(7))
    return ExampleSet(list(ids[:-4])), ExampleSet(list(ids[-4:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "method",
    [
        GradDot(),
        DataInf(),
        EKFAC(damping=1e9),
        GaussNewton(solver="woodbury"),
        TracIn(),
    ],
)
def test_weights_in_half_precision_give_the_scores_of_the_same_weights_in_float32(
    method: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comove.attribution.gauss_newton_solvers.DOUBLE_ROWS", 8)
    torch.manual_seed(0)
    narrow = Tokens(11, whole=False).to(dtype)
    wide = copy.deepcopy(narrow).float()
    train, queries = token_sets()
    found, expected = (
        method.fit(
            adopt(model, [Weights(model.state_dict(), epoch=1, lr=0.1)], train, queries, CausalLM(), device="cpu")
        ).attribute()
        for model in (narrow, wide)
    )
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-5 * np.abs(expected.values).max())


def test_examples_in_half_precision_are_told_apart_and_gradients_warn() -> None:
    items = [
        (x.to(torch.bfloat16), y) for x, y in zip(torch.randn(9, 4, generator=draw(0)), [0, 1, 2] * 3, strict=True)
    ]
    collate = torch.utils.data.default_collate
    train = ExampleSet(items, collate=collate)
    as_float = ExampleSet([(x.float(), y) for x, y in items], collate=collate)
    assert train.fingerprint != as_float.fingerprint
    model = numbers(3).to(torch.bfloat16)
    run = adopt(model, [model.state_dict()], train, ExampleSet(items[:3], ids=[20, 21, 22], collate=collate))
    with pytest.warns(RuntimeWarning, match=r"Gradients are taken in torch\.bfloat16"):
        GradDot().fit(run).attribute()


def test_another_precision_of_weights_than_of_examples_is_refused_in_a_line() -> None:
    model = numbers(3).double()
    train, queries = (ExampleSet.from_arrays(torch.randn(6, 4, generator=draw(0)), [0, 1, 2] * 2) for _ in range(2))
    with pytest.raises(InputError, match=r"computes in torch\.float64 and the examples are torch\.float32"):
        adopt(model, [model.state_dict()], train, queries)
