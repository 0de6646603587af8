"""Gradient methods on models that hooks and torch.func do not fit: right scores, by plain autograd where need be.

The truth is autograd in float64, one example at a time, with torch's fast path for transformers off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import comove
from comove.attribution import Arnoldi, GradDot, InfluenceCG, TracIn
from comove.attribution.trak import TRAK, trak_scores
from comove.data import ExampleSet, Splits, split
from comove.errors import InputError, NonFiniteError
from comove.gradients.double_backward import TwiceDifferentiable
from comove.gradients.hessian import Hessian
from comove.gradients.per_example import PerExampleGradients
from comove.models import without_fast_path
from comove.training import Recording

VOCABULARY, LENGTH, CLASSES = 11, 6, 3
Float64 = npt.NDArray[np.float64]


def texts(size: int = 40) -> Splits:
    """Sentences of 2 to 6 tokens, 0 is padding."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, VOCABULARY, (size, LENGTH))
    for row, length in zip(tokens, generator.integers(2, LENGTH + 1, size), strict=True):
        row[length:] = 0
    return split(ExampleSet.from_arrays(tokens, np.arange(size) % CLASSES), validation=CLASSES, query=5)


def lengths(x: Tensor) -> Tensor:
    return (x != 0).sum(1)


class Text(nn.Module):
    """An embedding and a head; subclasses say what is between."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, CLASSES)


class SortedByLength(Text):
    """Sorts its batch and sorts it back, as code for packed sequences does."""

    def forward(self, x: Tensor) -> Tensor:
        order = lengths(x).argsort(descending=True, stable=True)
        x = x[order]
        pooled = (self.embedding(x) * (x != 0)[:, :, None]).sum(1) / lengths(x)[:, None]
        return self.head(pooled.tanh())[order.argsort()]  # type: ignore[no-any-return]


class SortedRarely(Text):
    """Moves the shortest sentences to the front: of most batches of a few, nothing moves."""

    def forward(self, x: Tensor) -> Tensor:
        order = (lengths(x) > 2).long().argsort(stable=True)
        return self.head(self.embedding(x[order]).mean(1).tanh()).gather(  # type: ignore[no-any-return]
            0, order.argsort()[:, None].expand(-1, CLASSES)
        )


class Positions(Text):
    """Learned positions of shape (1, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(LENGTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[None]
        return self.head((self.embedding(x) + self.position(places)).tanh().mean(1))  # type: ignore[no-any-return]


class Recurrent(Text):
    kind: Callable[..., nn.RNNBase] = nn.GRU

    def __init__(self) -> None:
        super().__init__()
        self.rnn = self.kind(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0][:, -1])  # type: ignore[no-any-return]


class RNN(Recurrent):
    kind = nn.RNN


class LSTM(Recurrent):
    kind = nn.LSTM


class Packed(Recurrent):
    """A GRU over packed sequences, whose lengths are read into Python."""

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(x), lengths(x).cpu(), batch_first=True, enforce_sorted=False
        )
        return self.head(self.rnn(packed)[1][0])  # type: ignore[no-any-return]


class Encoder(Text):
    """torch's own transformer layers with padding masks."""

    def __init__(self) -> None:
        super().__init__(width=8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encoder(self.embedding(x), src_key_padding_mask=x == 0)
        return self.head(encoded.mean(1))  # type: ignore[no-any-return]


class Attention(Text):
    def __init__(self) -> None:
        super().__init__(width=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        mixed = self.attention(h, h, h, key_padding_mask=x == 0, need_weights=False)[0]
        return self.head(mixed.mean(1))  # type: ignore[no-any-return]


class Checkpointed(Text):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.middle, self.embedding(x).mean(1), use_reentrant=self.reentrant)
        return self.head(h)  # type: ignore[no-any-return]


class CheckpointedReentrant(Checkpointed):
    reentrant = True


class Bag(nn.Module):
    mode = "mean"

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(VOCABULARY, 6, mode=self.mode, padding_idx=0), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x).tanh())  # type: ignore[no-any-return]


class SumBag(Bag):
    mode = "sum"


class MaxBag(Bag):
    mode = "max"


class OffsetBag(Bag):
    """The same bags as one long row and where each begins."""

    def forward(self, x: Tensor) -> Tensor:
        starts = torch.arange(len(x)) * x.shape[1]
        return self.head(self.bag(x.flatten(), starts).tanh())  # type: ignore[no-any-return]


class Capacity(Text):
    """A mixture of two experts that drops what exceeds eleven examples of a batch; no value is read into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def kept(self, chosen: Tensor) -> Tensor:
        return ((chosen.cumsum(0) * chosen).sum(1) <= 11).to(chosen)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1).tanh()
        share = self.gate(h).softmax(1)
        chosen = torch.eye(2, dtype=h.dtype)[share.argmax(1)]
        weight = share * chosen * self.kept(chosen)[:, None]
        return self.head(h) + sum(e(h) * weight[:, i : i + 1] for i, e in enumerate(self.experts))  # type: ignore[no-any-return]


class CapacityRead(Capacity):
    """The same, decided in Python."""

    def kept(self, chosen: Tensor) -> Tensor:
        counts, kept = [0, 0], []
        for expert in chosen.argmax(1).tolist():
            counts[expert] += 1
            kept.append(counts[expert] <= 11)
        return torch.tensor(kept).to(chosen)


class Unlimited(Capacity):
    """What each example sees of :class:`Capacity` when it is alone."""

    def __init__(self, source: Capacity) -> None:
        super().__init__()
        self.load_state_dict(source.state_dict())

    def kept(self, chosen: Tensor) -> Tensor:
        return torch.ones(len(chosen)).to(chosen)


class SlightlyCentred(Text):
    """A little of the batch's mean is taken off."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1).tanh()
        return self.head(h - 0.003 * h.mean(0))  # type: ignore[no-any-return]


class SlightlyShared(Text):
    """A weight is used twice, the second time by a function and hardly."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1)
        return self.head(self.middle(h).tanh() + 0.003 * F.linear(h, self.middle.weight))  # type: ignore[no-any-return]


class Rounded(Text):
    """Activations are rounded to 16 bits on the way, and so are their gradients on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1).tanh()
        return self.head(h.bfloat16().to(h.dtype).tanh())  # type: ignore[no-any-return]


class Branching(Text):
    """Long sentences go another way, decided in Python for the whole batch or for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x).mean(1).tanh()
        return torch.stack(
            [self.other(row) if int(n) > 4 else self.head(row) for row, n in zip(h, lengths(x), strict=True)]
        )


class NumPyInside(Text):
    def forward(self, x: Tensor) -> Tensor:
        weights = torch.from_numpy(1.0 / np.maximum(lengths(x).numpy(), 1)).to(self.head.weight.dtype)
        return self.head(self.embedding(x).sum(1).tanh() * weights[:, None])  # type: ignore[no-any-return]


class Scalars(Text):
    """A temperature: a parameter without a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1).tanh()) * self.temperature  # type: ignore[no-any-return]


class WeightNorm(Text):
    def __init__(self) -> None:
        super().__init__()
        self.middle = weight_norm(nn.Linear(6, 6))
        self.head = weight_norm(self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(x).mean(1)).tanh())  # type: ignore[no-any-return]


class Flattened(Text):
    """One layer sees the real tokens of all examples in one long row."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        mask = x != 0
        out = torch.zeros_like(h)
        out[mask] = self.middle(h[mask]).tanh()
        return self.head(out.sum(1))  # type: ignore[no-any-return]


class SparseEmbedding(Text):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1).tanh())  # type: ignore[no-any-return]


MODELS: tuple[type[nn.Module], ...] = (
    SortedByLength,
    SortedRarely,
    Positions,
    Recurrent,
    RNN,
    LSTM,
    Packed,
    Encoder,
    Attention,
    Checkpointed,
    CheckpointedReentrant,
    Bag,
    SumBag,
    MaxBag,
    OffsetBag,
    Capacity,
    CapacityRead,
    Rounded,
    SlightlyCentred,
    SlightlyShared,
    Branching,
    NumPyInside,
    Scalars,
    WeightNorm,
    Flattened,
)
NO_HESSIAN = (CheckpointedReentrant,)


def trained(kind: type[nn.Module], splits: Splits) -> comove.Run:
    recipe, recording = {"epochs": 2, "lr": 0.2, "batch_size": 8}, Recording(anchors=())
    return comove.train(splits, lambda num_classes, input_shape: kind(), recipe, device="cpu", recording=recording)


def gradients_of(
    model: nn.Module, data: ExampleSet, scalar: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Float64:
    """(N, P): the gradients one example at a time."""
    rows = []
    with without_fast_path():
        for position in range(len(data)):
            x, y = data.batch(np.array([position]))
            model.zero_grad()
            scalar(model(x), y).sum().backward()  # type: ignore[no-untyped-call]
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            rows.append(torch.cat([g.flatten() for g in flat]))
    found: Float64 = torch.stack(rows).numpy()
    return found


def error(found: npt.NDArray[Any], true: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", MODELS)
def test_scores_equal_those_of_autograd_one_example_at_a_time(kind: type[nn.Module]) -> None:
    splits = texts()
    run = trained(kind, splits)
    model = run.load_model().double()
    train, query = gradients_of(model, splits.train), gradients_of(model, splits.query)
    dots = GradDot().fit(run)
    whole = dots.attribute(splits.query.ids)
    assert error(whole.values, train @ query.T) < 1e-5, whole.info["gradients"]
    single = dots.attribute(splits.query.ids[:1])  # one query, for which a fault of the batch would not show
    assert error(single.values, train @ query[:1].T) < 1e-5, single.info["gradients"]


def margin_of(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (p / (1 - p)).log()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", [SortedByLength, LSTM, Encoder, Branching, Scalars])
def test_trak_features_and_rates_of_tracin_are_right(kind: type[nn.Module]) -> None:
    splits = texts()
    run = trained(kind, splits)
    model = run.load_model().double()
    phi, asked = gradients_of(model, splits.train, margin_of), gradients_of(model, splits.query, margin_of)
    with torch.no_grad(), without_fast_path():
        logits = torch.cat([model(splits.train.batch(np.array([i]))[0]) for i in range(len(splits.train))])
    p = logits.softmax(1)[torch.arange(len(logits)), torch.from_numpy(splits.train.labels)]
    true = trak_scores(torch.from_numpy(phi), torch.from_numpy(asked), 1 - p, ridge=0.3).numpy()
    found = TRAK(projector="none", proj_dim=None).fit(run) if phi.shape[1] <= len(phi) else None
    if found is not None:
        assert error(found.attribute(splits.query.ids).values, true) < 1e-3
    total = np.zeros((len(splits.train), len(splits.query)))
    for kept in run.checkpoints:
        there = run.load_model(kept).double()
        total += kept.lr * gradients_of(there, splits.train) @ gradients_of(there, splits.query).T
    assert error(TracIn().fit(run).attribute(splits.query.ids).values, total) < 1e-4


def hessian_of(model: nn.Module, data: ExampleSet) -> Tensor:
    """(P, P) by torch.autograd.functional over the mean loss."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        own = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        x, y = data.batch(np.arange(len(data)))
        mean: Tensor = F.cross_entropy(torch.func.functional_call(model, own, (x,)), y)
        return mean

    with without_fast_path(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found: Tensor = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    return found


class WrittenOut(nn.Module):
    """:class:`WeightNorm` in elementary operations, with its parameters in the same order."""

    def __init__(self, source: WeightNorm) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in source.parameters()])
        self.names = [name for name, _ in source.named_parameters()]

    def forward(self, x: Tensor) -> Tensor:
        p = dict(zip(self.names, self.values, strict=True))

        def weight(layer: str) -> Tensor:
            g, v = (p[f"{layer}.parametrizations.weight.original{i}"] for i in (0, 1))
            return g * v / v.square().sum(1, keepdim=True).sqrt()  # type: ignore[no-any-return]

        h = F.linear(p["embedding.weight"][x].mean(1), weight("middle"), p["middle.bias"]).tanh()
        return F.linear(h, weight("head"), p["head.bias"])


class WrittenBag(nn.Module):
    """:class:`Bag` in elementary operations."""

    def __init__(self, source: Bag) -> None:
        super().__init__()
        self.mode = source.mode
        self.table, self.head = nn.Parameter(source.bag.weight.detach().clone()), source.head

    def forward(self, x: Tensor) -> Tensor:
        rows, kept = self.table[x], (x != 0)[:, :, None]
        if self.mode == "max":
            return self.head(torch.where(kept, rows, -torch.inf).amax(1).tanh())  # type: ignore[no-any-return]
        pooled = (rows * kept).sum(1) / (kept.sum(1) if self.mode == "mean" else 1)
        return self.head(pooled.tanh())  # type: ignore[no-any-return]


def written_out(model: nn.Module) -> nn.Module:
    """The same function of one example, without what torch differentiates wrongly or what a batch changes."""
    if isinstance(model, WeightNorm):
        return WrittenOut(model)
    if isinstance(model, Bag):
        return WrittenBag(model)
    return Unlimited(model) if isinstance(model, Capacity) else model


@pytest.mark.parametrize(
    "kind",
    [
        Positions,
        Recurrent,
        LSTM,
        Attention,
        Bag,
        SumBag,
        MaxBag,
        OffsetBag,
        CapacityRead,
        Branching,
        Scalars,
        WeightNorm,
    ],
)
def test_influence_equals_the_solve_with_the_whole_hessian(kind: type[nn.Module]) -> None:
    splits = texts(24)
    run = trained(kind, splits)
    model = run.load_model().double()
    train, query = gradients_of(model, splits.train), gradients_of(model, splits.query)
    hessian = hessian_of(written_out(model).double(), splits.train).numpy()
    true = train @ np.linalg.solve(hessian + 2 * np.eye(len(hessian)), query.T)
    found = InfluenceCG(damping=2.0, tolerance=1e-8, max_steps=500).fit(run).attribute(splits.query.ids)
    assert error(found.values, true) < 1e-5, found.info
    values, vectors = np.linalg.eigh(hessian)
    top = np.argsort(-np.abs(values))[:2]
    true = (train @ vectors[:, top] / values[top]) @ (query @ vectors[:, top]).T
    if (values[top] > 0).all():
        krylov = Arnoldi(rank=2, arnoldi_dim=60, hessian_examples=len(splits.train)).fit(run)
        assert error(krylov.attribute(splits.query.ids).values, true) < 1e-2


def test_a_model_that_casts_is_computed_in_its_own_precision() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(LENGTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.float())  # type: ignore[no-any-return]

    x = np.random.default_rng(0).normal(size=(30, LENGTH)).astype(np.float32)
    splits = split(ExampleSet.from_arrays(x, np.arange(30) % CLASSES), validation=CLASSES, query=4)
    run = trained(Casts, splits)
    model = run.load_model()
    train, query = gradients_of(model, splits.train), gradients_of(model, splits.query)
    hessian = hessian_of(model, splits.train).numpy().astype(np.float64)
    true = train @ np.linalg.solve(hessian + np.eye(len(hessian)), query.T)
    found = InfluenceCG(damping=1.0, tolerance=1e-6).fit(run).attribute(splits.query.ids)
    assert error(found.values, true) < 1e-4
    assert found.info["precision"].startswith("float32, since")


# --- refusals ----------------------------------------------------------------------------------------------------


def test_dropout_by_hand_is_refused_and_its_module_is_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.3)

    class Net(Text):
        def __init__(self) -> None:
            super().__init__()
            self.noisy = Noisy()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.noisy(self.embedding(x).mean(1)))  # type: ignore[no-any-return]

    model, before = Net().eval(), torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"noisy \(Noisy\) is where they come to differ.*F\.dropout"):
        PerExampleGradients(model)(torch.ones(4, LENGTH, dtype=torch.long), torch.arange(4) % CLASSES)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["random", "numpy.random"])
def test_noise_of_python_and_numpy_is_refused_and_their_states_are_left(draw: Callable[[], float]) -> None:
    class Net(Text):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1) + 0.1 * draw())  # type: ignore[no-any-return]

    model, before = Net().eval(), (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    with pytest.raises(InputError, match="draws random numbers"):
        PerExampleGradients(model)(torch.ones(4, LENGTH, dtype=torch.long), torch.arange(4) % CLASSES)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002


def test_products_with_the_hessian_hold_where_activations_are_rounded() -> None:
    splits = texts(24)
    run = trained(Rounded, splits)
    model = run.load_model().double()
    train, query = gradients_of(model, splits.train), gradients_of(model, splits.query)
    hessian = hessian_of(model, splits.train).numpy()
    true = train @ np.linalg.solve(hessian + 2 * np.eye(len(hessian)), query.T)
    found = InfluenceCG(damping=2.0, tolerance=1e-4).fit(run).attribute(splits.query.ids)
    assert error(found.values, true) < 1e-2, found.info


def test_complex_parameters_are_refused_and_the_real_form_is_told() -> None:
    class Net(Text):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.ones(6, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.embedding(x).mean(1) * self.phase).abs())  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"'phase' is torch.complex64.*view_as_complex"):
        PerExampleGradients(Net().eval())


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_by_offsets_are_written_out_as_torch_computes_them(mode: str, last: bool) -> None:
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    entries, starts = torch.tensor([1, 0, 4, 2, 2, 0, 3]), torch.tensor([0, 2, 2, 5, 7][: 5 if last else 4])
    weights = torch.rand(7, dtype=torch.float64) if mode == "sum" else None
    options: dict[str, Any] = {"mode": mode, "include_last_offset": last, "padding_idx": 0}
    expected = F.embedding_bag(entries, table, starts, per_sample_weights=weights, **options)
    with TwiceDifferentiable():
        found = F.embedding_bag(entries, table, starts, per_sample_weights=weights, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), table)[0] for y in (found, expected)))


def test_a_gradient_that_is_not_finite_names_its_example_in_every_method() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 5, bias=False), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            length = h.square().sum(1, keepdim=True).sqrt()  # of zeros: no derivative
            return self.head(torch.cat([h, length], 1))  # type: ignore[no-any-return]

    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    ids = np.arange(30) + 500
    healthy = split(ExampleSet.from_arrays(x, np.arange(30) % CLASSES, ids=ids), validation=CLASSES, query=4)
    run = trained(Norm, healthy)
    broken = int(healthy.train.ids[7])
    x[broken - 500] = 0
    splits = split(ExampleSet.from_arrays(x, np.arange(30) % CLASSES, ids=ids), validation=CLASSES, query=4)
    object.__setattr__(run, "dataset", splits)
    for method in (GradDot(), TracIn(), TRAK(proj_dim=8), GradDot(projection=8), InfluenceCG(damping=1.0)):
        with pytest.raises(NonFiniteError, match=rf"\b{broken}\b"):
            method.fit(run).attribute(splits.query.ids)
    with pytest.raises(NonFiniteError, match=rf"\b{broken}\b"):
        GradDot().fit(run).self_influence()


def test_a_second_derivative_that_is_wrong_shows_in_a_matrix_that_is_not_symmetric() -> None:
    class Half(torch.autograd.Function):
        """x^3 whose second derivative autograd gets wrong: the gradient is not a function of x to it."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            x, w = ctx.saved_tensors
            return g * w.detach(), (g * x).sum(0)  # the derivative in w of the first is lost

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.scale, self.head = nn.Linear(4, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Half.apply(self.first(x), self.scale))  # type: ignore[no-any-return]

    class Data:
        x, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3

        def __len__(self) -> int:
            return 6

        def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
            return self.x[positions], self.labels[positions]

    torch.manual_seed(0)
    with pytest.raises(InputError, match="not symmetric"):
        Hessian(PerExampleGradients(Net().eval()), Data())


def test_recorded_losses_are_those_that_have_a_gradient() -> None:
    splits = texts()
    run = trained(Encoder, splits)
    model = run.load_model()
    x, y = splits.query.batch(np.arange(len(splits.query)))
    losses = F.cross_entropy(model(x), y, reduction="none")  # with gradients, so not on torch's fast path
    at = [list(run.trace.query_ids).index(i) for i in splits.query.ids]
    np.testing.assert_allclose(run.trace.query_losses[-1][at], losses.detach().numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (SortedByLength, "torch.func"),
        (Branching, "one example at a time"),
        (NumPyInside, "one example at a time"),
        (Packed, "one example at a time"),
        (CheckpointedReentrant, "one example at a time"),
    ],
)
def test_the_way_taken_is_said_with_the_reason(kind: type[nn.Module], way: str) -> None:
    torch.manual_seed(0)
    splits = texts()
    stream = PerExampleGradients(kind().double().eval())
    x, y = splits.train.batch(np.arange(8))
    stream(x, y)
    assert stream.paths.way == way
    assert stream.paths.refused[0][0] == "per-sample rules"
    assert all(why in str(stream.paths) for _, why in stream.paths.refused)


def test_a_way_refused_in_a_later_chunk_gives_way_to_the_next() -> None:
    class Late(Text):
        """Its layer sees the examples in another order only where a sentence is short."""

        def forward(self, x: Tensor) -> Tensor:
            short = (lengths(x) < 3).any().long()
            order = (torch.arange(len(x)) + short) % len(x)
            return self.head(self.embedding(x[order]).mean(1))[order.argsort()]  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Late().double().eval()
    x = torch.full((30, LENGTH), 3)
    x += torch.arange(30)[:, None] % 5
    x[20, 2:] = 0
    data = ExampleSet.from_arrays(x.numpy(), np.arange(30) % CLASSES)
    true = gradients_of(model, data)

    class Data:
        labels = torch.from_numpy(data.labels)

        def __len__(self) -> int:
            return 30

        def batch(self, positions: slice) -> tuple[Tensor, Tensor]:
            return x[positions], self.labels[positions]

    class Long(Data):
        """What the check sees: no short sentence."""

        def __len__(self) -> int:
            return 15

    stream = PerExampleGradients(model, batch=5, check_on=Long())
    found = stream.collect(Data())
    assert error(torch.cat([part.flatten(1) for part in found.values()], 1).numpy(), true) < 1e-9
    assert stream.paths.way != "per-sample rules"
    again = PerExampleGradients(model, batch=5, check_on=Long())
    directions = {name: part[:3] for name, part in found.items()}
    assert error(again.inner_products(Data(), directions).numpy(), true @ true[:3].T) < 1e-9


class CutsPadding(nn.Module):
    """Logits per position, only as far as the longest sentence of the batch goes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        longest = int(attention_mask.sum(1).max())
        return self.head(torch.tanh(self.embed(input_ids[:, :longest])))  # type: ignore[no-any-return]


def test_outputs_whose_width_depends_on_the_batch_are_computed_one_example_at_a_time() -> None:
    from comove.tasks import PerExample

    torch.manual_seed(0)
    model = CutsPadding().double().eval()
    ids = torch.randint(0, 7, (9, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([2, 3, 6, 4, 5, 6, 2, 3, 4])[:, None]).long()
    task = PerExample(lambda outputs, batch: outputs.square().flatten(1).sum(1), name="all positions")
    stream = PerExampleGradients(model, task=task)
    batch = {"input_ids": ids, "attention_mask": mask}
    found = stream(batch)
    assert stream.batches_matter
    for row in range(9):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        value = task.loss(task.outputs(model, one), one).sum()
        for name, true in zip(found, torch.autograd.grad(value, list(model.parameters())), strict=True):
            torch.testing.assert_close(found[name][row], true)
    weights = stream.evaluate(batch, task.error_probability)
    assert weights.shape == (9, 1)


def test_one_short_sentence_among_many_is_among_those_that_the_ways_are_checked_on() -> None:
    from comove.tasks import PerExample

    torch.manual_seed(0)
    model = CutsPadding().double().eval()
    ids = torch.randint(0, 7, (220, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[151, 2:] = 0  # beyond the first chunk, and none of the evenly spread ones

    class Sentences:
        def __len__(self) -> int:
            return 220

        def batch(self, positions: slice) -> dict[str, Tensor]:
            return {"input_ids": ids[positions], "attention_mask": mask[positions]}

    task = PerExample(lambda outputs, batch: outputs.square().flatten(1).sum(1), name="all positions")
    stream = PerExampleGradients(model, task=task)
    found = stream.collect(Sentences())
    one = {"input_ids": ids[151:152], "attention_mask": mask[151:152]}
    value = task.loss(task.outputs(model, one), one).sum()
    for name, true in zip(found, torch.autograd.grad(value, list(model.parameters())), strict=True):
        torch.testing.assert_close(found[name][151], true)
