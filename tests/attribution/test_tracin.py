"""TracIn, Grad-Dot and Grad-Cos: closed forms with the sign, a naive autograd loop, peers, and their options."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comove.attribution import attributor
from comove.attribution.tracin import GradCos, GradDot, TracIn, projected, similarity, spread
from comove.data import ExampleSet, Splits
from comove.errors import CorruptFileError, InputError, NotFittedError
from comove.gradients.per_example import PerExampleGradients
from comove.models import build_model
from comove.store import read_header
from comove.training import Checkpoint, Recipe, Run, train
from comove.training.run import read_weights, write_weights

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs and labels in memory."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, positions: slice) -> Tensor:
        return self.x[positions]

    def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
        return self.x[positions], self.labels[positions]


def gradients_one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N, parameters) flat loss gradients by a loop of plain autograd."""
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


def naive_terms(run: Run, queries: ExampleSet) -> list[tuple[Checkpoint, Floats, Floats]]:
    """(checkpoint, train gradients, query gradients) in float64, of a run."""
    terms = []
    for checkpoint in run.checkpoints:
        model = run.load_model(checkpoint).double()
        sides = []
        for part in (run.data().train.subset(run.trace.train_ids), queries):
            x, y = part.batch(np.arange(len(part)))
            sides.append(gradients_one_by_one(model, x.double(), y).numpy())
        terms.append((checkpoint, sides[0], sides[1]))
    return terms


def close(found: npt.NDArray[Any], truth: npt.NDArray[Any], relative: float = 1e-4) -> None:
    assert np.abs(found - truth).max() <= relative * np.abs(truth).max()


@pytest.fixture(scope="module")
def terms(run: Run) -> list[tuple[Checkpoint, Floats, Floats]]:
    return naive_terms(run, run.data().query)


def test_logistic_regression_in_closed_form_with_the_sign() -> None:
    """<grad_m, grad_q> = (p_m - e_m).(p_q - e_q) (x_m.x_q + 1) for softmax regression with a bias."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, dtype=torch.float64, generator=generator), torch.arange(30) % 3
    model = nn.Linear(5, 3).double().eval()
    data, asked = Examples(x, y), Examples(x[:4], y[:4])
    residual = model(x).softmax(1) - F.one_hot(y, 3)
    truth = (residual @ residual[:4].T) * (x @ x[:4].T + 1)
    found = similarity(PerExampleGradients(model), data, asked)
    torch.testing.assert_close(found, truth.detach())
    assert (found.diagonal() > 0).all()  # an example like the query, of its label, helps it
    torch.testing.assert_close(
        similarity(PerExampleGradients(model), data, asked, cosine=True).diagonal(), torch.ones(4, dtype=torch.float64)
    )


def test_linear_regression_in_closed_form() -> None:
    """With the squared error as scalar, <grad_m, grad_q> = r_m r_q x_m.x_q."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, dtype=torch.float64, generator=generator), torch.arange(12)
    model = nn.Linear(5, 1, bias=False).double().eval()
    gradients = PerExampleGradients(model, lambda z, target: (z[:, 0] - target).square() / 2)
    residual = model(x)[:, 0].detach() - y
    torch.testing.assert_close(
        similarity(gradients, Examples(x, y), Examples(x[:3], y[:3])),
        residual[:, None] * residual[:3] * (x @ x[:3].T),
    )


def test_a_step_on_a_helpful_example_lowers_the_query_loss(run: Run) -> None:
    scores = GradDot().fit(run).attribute()
    query = int(scores.query_ids[0])
    data, asked = run.data().train, run.examples([query])
    losses = []
    for id_ in (scores.top(1, query=query).ids[0], scores.bottom(1, query=query).ids[0]):
        model = run.load_model().double()
        x, y = data.subset([id_]).batch(np.array([0]))
        xq, yq = asked.batch(np.array([0]))
        x, xq = x.double(), xq.double()
        before = F.cross_entropy(model(xq), yq)
        step = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), step, strict=True):
                parameter.sub_(gradient, alpha=1e-4)
        losses.append((F.cross_entropy(model(xq), yq) - before).item())
    assert losses[0] < 0 < losses[1]


@pytest.mark.parametrize("rate", ["last", "mean"])
def test_tracin_equals_a_loop_of_autograd(run: Run, terms: Any, rate: Any) -> None:
    truth = sum((c.lr if rate == "last" else c.mean_lr) * m @ q.T for c, m, q in terms)
    scores = TracIn(rate=rate).fit(run).attribute(run.data().query.ids)
    close(scores.values, truth)
    assert np.array_equal(scores.train_ids, run.trace.train_ids)
    assert np.array_equal(scores.query_ids, run.data().query.ids)
    assert scores.info["used_checkpoints"] == len(run.checkpoints)


def test_grad_dot_and_grad_cos_are_the_last_checkpoint(run: Run, terms: Any) -> None:
    _, m, q = terms[-1]
    ids = run.data().query.ids
    close(GradDot().fit(run).attribute(ids).values, m @ q.T)
    cosines = (m @ q.T) / np.linalg.norm(m, axis=1)[:, None] / np.linalg.norm(q, axis=1)
    found = GradCos().fit(run).attribute(ids).values
    close(found, cosines)
    assert np.abs(found).max() <= 1 + 1e-5
    last = run.checkpoints[-1].lr
    close(TracIn(checkpoints=1).fit(run).attribute(ids).values, last * (m @ q.T))


def test_vanishing_gradients_have_cosine_zero() -> None:
    model = nn.Linear(2, 2, bias=False).eval()
    data = Examples(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    found = similarity(PerExampleGradients(model), data, data, cosine=True)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("method", [TracIn(checkpoints=2), GradDot(), GradCos()])
def test_runs_are_averaged(runs: tuple[Run, ...], method: Any) -> None:
    both, single = method.fit(runs).attribute(), [method.fit(one).attribute() for one in runs]
    close(both.values, (single[0].values + single[1].values) / 2, 1e-6)


@pytest.mark.parametrize("method", [TracIn(checkpoints=2), GradCos(), TracIn(checkpoints=2, projection=64)])
def test_new_queries_equal_recorded_ones(run: Run, method: Any) -> None:
    recorded = run.data().query
    known = method.fit(run).attribute(recorded.ids[:7])
    x, y = recorded.subset(recorded.ids[:7]).batch(np.arange(7))
    new = ExampleSet.from_arrays(x, y.numpy(), ids=900_000 + np.arange(7), classes=recorded.classes)
    found = method.fit(run).attribute(new)
    close(found.values, known.values, 1e-5)
    assert found.query_ids.tolist() == list(range(900_000, 900_007))


def test_query_blocks_change_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GradCos().fit(run).attribute().values
    monkeypatch.setattr("comove.attribution.tracin.QUERY_BYTES", 1)
    ids = run.trace.explained_ids[:3]
    close(GradCos().fit(run).attribute(ids).values, whole[:, :3], 1e-5)


def test_the_last_layer_only(run: Run) -> None:
    model = run.load_model()
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    sides = []
    for part in (run.data().train.subset(run.trace.train_ids), run.examples(run.trace.explained_ids)):
        x, y = part.batch(np.arange(len(part)))
        rows = []
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [layer.weight, layer.bias])]))
        sides.append(torch.stack(rows).numpy())
    close(GradDot(last_layer=True).fit(run).attribute().values, sides[0] @ sides[1].T)


@pytest.mark.parametrize("method", [GradDot, GradCos, TracIn])
def test_a_projection_comes_near_and_nearer_with_more_dimensions(run: Run, method: Any) -> None:
    fewer = {"checkpoints": 2} if method is TracIn else {}
    exact = method(**fewer).fit(run).attribute().values
    short, long = (method(projection=k, **fewer) for k in (32, 1024))
    near = [option.fit(run).attribute().values for option in (short, long)]
    errors = [np.abs(found - exact).mean() for found in near]
    correlation = np.corrcoef(near[1].ravel(), exact.ravel())[0, 1]
    assert correlation > 0.97
    assert errors[1] < errors[0] / 3  # 1 / sqrt(32), and luck


def test_projections_are_unbiased_and_repeatable() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double().eval()
    data = Examples(torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3)
    gradients = PerExampleGradients(model)
    exact = similarity(gradients, data, data)
    draws = torch.stack([(f := projected(gradients, data, 16, seed)) @ f.T for seed in range(100)])
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / 10 + 1e-12)
    assert error.max() < 5
    assert torch.equal(projected(gradients, data, 16, 3), projected(gradients, data, 16, 3))
    assert not torch.equal(projected(gradients, data, 16, 3), projected(gradients, data, 16, 4))


@pytest.mark.parametrize("method", [TracIn(), GradDot()])
def test_self_influence_is_the_score_of_an_example_for_itself(runs: tuple[Run, ...], method: Any) -> None:
    train_set = runs[0].data().train
    fitted = method.fit(runs)
    x, y = train_set.batch(np.arange(20))
    again = ExampleSet.from_arrays(x, y.numpy(), ids=900_000 + np.arange(20), classes=train_set.classes)
    itself = fitted.attribute(again).subset(train_ids=train_set.ids[:20]).values.diagonal()
    places = [runs[0].trace.train_ids.tolist().index(id_) for id_ in train_set.ids[:20]]
    found = fitted.self_influence()
    assert found.shape == runs[0].trace.train_ids.shape
    close(found[places], itself)
    assert (found >= 0).all()
    with pytest.raises(NotFittedError):
        method.self_influence()


def test_cosines_define_no_self_influence(run: Run) -> None:
    with pytest.raises(InputError, match="grad-cos does not define self-influence"):
        GradCos().fit(run).self_influence()


def test_spread_always_takes_the_last(run: Run) -> None:
    kept = run.checkpoints
    assert spread(kept, "all") == kept == spread(kept, 99)
    for number in range(1, len(kept) + 1):
        chosen = spread(kept, number)
        assert len(set(chosen)) == number
        assert chosen[-1] == kept[-1]
        assert list(chosen) == sorted(chosen, key=lambda checkpoint: checkpoint.epoch)


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small ResNet-9 trained on random images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8, generator=generator)
    examples = ExampleSet.from_arrays(pixels, np.arange(24) % 4, ids=1000 + np.arange(24), classes=list("abcd"))
    splits = Splits(examples.subset(examples.ids[:16]), None, examples.subset(examples.ids[16:]))
    recipe, folder = Recipe(epochs=1, batch_size=8, lr=0.05), tmp_path_factory.mktemp("images") / "run"
    return train(splits, "resnet9", recipe, 0, folder, model_options={"width": 0.1})


def test_tracin_on_a_batch_norm_resnet9_equals_a_loop_of_autograd(image_run: Run) -> None:
    truth = sum(c.lr * m @ q.T for c, m, q in naive_terms(image_run, image_run.data().query))
    scores = TracIn().fit(image_run).attribute(image_run.data().query.ids)
    close(scores.values, np.asarray(truth))
    assert "per-sample rules" in scores.info["gradients"]


@pytest.mark.filterwarnings("ignore")
def test_tracin_equals_dattri_on_a_batch_norm_resnet9(image_run: Run) -> None:
    reason = "dattri, the independent implementation, is a test-only dependency"
    tracin = pytest.importorskip("dattri.algorithm.tracin", reason=reason)
    task = pytest.importorskip("dattri.task", reason=reason)
    model = build_model("resnet9", num_classes=4, input_shape=(3, 12, 12), width=0.1).eval()
    weights = [read_weights(checkpoint.path) for checkpoint in image_run.checkpoints]

    def loss(parameters: Any, pair: Any) -> Tensor:
        x, y = pair
        return F.cross_entropy(torch.func.functional_call(model, parameters, x[None]), y[None])

    loaders = []
    for part in (image_run.data().train.subset(image_run.trace.train_ids), image_run.data().query):
        x, y = part.batch(np.arange(len(part)))
        loaders.append(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8))
    made = task.AttributionTask(loss_func=loss, model=model, checkpoints=weights)
    rates = torch.tensor([checkpoint.lr for checkpoint in image_run.checkpoints])
    peer = tracin.TracInAttributor(
        task=made, weight_list=rates, normalized_grad=False, projector_kwargs={"proj_type": "identity"}, device="cpu"
    )
    truth = peer.attribute(*loaders).detach().numpy()
    close(TracIn().fit(image_run).attribute(image_run.data().query.ids).values, truth)


@pytest.mark.filterwarnings("ignore")
def test_tracin_equals_captum_on_convolution_and_linear() -> None:
    reason = "captum, the independent implementation, is a test-only dependency"
    captum = pytest.importorskip("captum.influence", reason=reason)
    torch.manual_seed(0)
    # No batch norm: captum's sample-wise gradients leave its parameters out without a word.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()
    x, y = torch.randn(20, 3, 6, 6), torch.arange(20) % 4
    peer = captum.TracInCP(
        model,
        torch.utils.data.TensorDataset(x, y),
        ["only"],
        checkpoints_load_func=lambda model, path: 0.25,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=5,
        sample_wise_grads_per_batch=True,
    )
    truth = peer.influence((x[:6], y[:6])).T.numpy()
    close(0.25 * similarity(PerExampleGradients(model), Examples(x, y), Examples(x[:6], y[:6])).numpy(), truth)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="rate must be one of last, mean"):
        TracIn(rate="first")  # type: ignore[arg-type]
    for wrong in (0, -1, "some", True):
        with pytest.raises(InputError, match="checkpoints must be 'all' or a whole number from 1 on"):
            TracIn(checkpoints=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="projection must be a whole number"):
        GradDot(projection=-1)
    with pytest.raises(InputError, match="seed"):
        GradCos(seed=-1)
    assert [type(attributor(name)) for name in ("tracin", "grad-dot", "grad-cos")] == [TracIn, GradDot, GradCos]


def test_bad_sources_and_queries_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs checkpoints"):
        TracIn().fit(run.trace)
    width = run.model_spec.input_shape
    outside = ExampleSet.from_arrays(torch.zeros(2, *width), np.array([0, 10]))
    with pytest.raises(InputError, match="labels below 10"):
        TracIn(checkpoints=1).fit(run).attribute(outside)
    with pytest.raises(InputError, match="inputs"):
        TracIn(checkpoints=1).fit(run).attribute(ExampleSet.from_arrays(torch.zeros(2, 3), np.array([0, 1])))


def test_a_checkpoint_of_another_architecture_is_refused(run: Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "run")
    spoilt = Run.load(copied, dataset=run.data())
    last = spoilt.checkpoints[-1]
    head = {name: getattr(last, name) for name in ("epoch", "step", "row", "lr", "mean_lr")}
    other = build_model("mlp", num_classes=10, input_shape=run.model_spec.input_shape, hidden=(5,)).state_dict()
    write_weights(last.path, other, {**read_header(last.path)[1], **head})
    with pytest.raises(CorruptFileError, match="does not hold the weights"):
        TracIn(checkpoints=1).fit(spoilt).attribute()
