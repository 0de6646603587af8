"""The methods of ``benchmarks/quality.py``, and what each costs in forward-backward epochs.

A forward pass counts a third of a forward and backward pass, as in the paper's Appendix E; the gradient of one
example counts one forward and backward pass of it, a product with the Hessian two. Only passes through the network
count: factorisations and matrix products beside it show in the seconds.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ekfac as beside
import numpy as np
import numpy.typing as npt
import peers
import torch
from quality_cases import Case, Sentences

import attribution as side_by_side
from comove.attribution import (
    CLD,
    EKFAC,
    TRAK,
    Arnoldi,
    Attributor,
    BayesianInfluence,
    DataInf,
    GaussNewton,
    GradDot,
    RandomControl,
    Representer,
    SameClassControl,
    Scores,
    Source,
    TracIn,
    Unrolled,
)
from comove.models import penultimate
from comove.tasks import Classification
from comove.training import Run
from comove.training.run import read_weights

__all__ = ["Kind", "Method", "Sizes", "methods_of"]

Kind = Literal["losses", "gradients", "peer", "baseline", "control"]


@dataclass(frozen=True)
class Sizes:
    """What costs depend on: examples, queries, rows of curvature an example, epochs of a run, rows recorded."""

    n: int
    q: int
    curvature: int
    epochs: int
    rows: int
    augmented: bool

    @property
    def gradients(self) -> float:
        """The gradients of all training examples and queries once."""
        return 1 + self.q / self.n

    @property
    def losses(self) -> float:
        """The losses of all training examples and queries once."""
        return self.gradients / 3


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: its own.
        scores: of the runs given.
        epochs: forward-backward epochs a run, beside its training.
        formula: the same in words.
        kind: what it needs, or whose it is.
        joint: whether several runs are more than the mean of their scores, so that it is fitted on all at once.
        trains: whether it needs trained runs.
        note: said on the page.
        most: runs at most, of the numbers of the data set.
        further: more numbers of runs.
    """

    name: str
    scores: Callable[[Case, Sequence[Run]], Scores]
    epochs: Callable[[Sizes], float]
    formula: str
    kind: Kind = "gradients"
    joint: bool = False
    trains: bool = True
    note: str = ""
    most: int = 10
    further: tuple[int, ...] = ()


def fitted(method: Callable[[Case], Attributor]) -> Callable[[Case, Sequence[Run]], Scores]:
    """A method of ours."""
    return lambda case, runs: method(case).fit(list(runs)).attribute()


EXPLORED: dict[str, tuple[dict[str, Any], ...]] = {
    "digits": ({}, {"chains": 4}, {"chains": 4, "steps": 375}),
    "cifar10": (
        {"chains": 8, "steps": 300, "localization": 30.0, "step_size": 1e-4},
        {
            "chains": 8,
            "steps": 300,
            "every": 10,
            "inverse_temperature": 1000.0,
            "localization": 300.0,
            "step_size": 1e-4,
        },
    ),
}
"""Options of Bayesian influence: the defaults and cheaper ones; smaller steps for the larger network."""


def losses_only(case: Case) -> list[Method]:
    """Methods that see recorded losses."""

    def explored(how: BayesianInfluence, batch: int = 32) -> Callable[[Sizes], float]:
        return lambda s: how.chains * how.steps * batch / s.n + how.exploration.draws * s.losses

    def bayesian(**options: Any) -> Method:
        how, label = BayesianInfluence(**options), BayesianInfluence(**options).label
        found = fitted(lambda case: BayesianInfluence(**options, cache=str(case.folder / "explored")))
        return Method(label, found, explored(how), "chains x steps x batch / N + draws x (1 + Q/N) / 3", "losses")

    white = CLD(whiten=0.03, transform="log-odds")
    return [
        Method(
            "cld (paper)",
            fitted(lambda case: CLD(rows="epochs")),
            lambda s: (s.epochs + 1) * s.losses,
            "rows x (1 + Q/N) / 3: losses recorded after each epoch",
            "losses",
        ),
        Method(
            "cld (whitened log odds)",
            fitted(lambda case: white),
            lambda s: s.rows * s.losses,
            "rows x (1 + Q/N) / 3: losses recorded within epochs too",
            "losses",
            note="its ridge was chosen on digits; on a bank of digits other than the reported one ridges of .001, .01, "
            ".03 and .1 give .295, .285, .276 and .258, so it is not the best even there",
        ),
        *(bayesian(**options) for options in EXPLORED.get(case.name, EXPLORED["digits"])),
    ]


def own_gradients(case: Case) -> list[Method]:
    """Methods of ours that differentiate."""
    left = "the word vectors have no factors and are left out" if case.name == "sentences" else ""
    fewer = {"share": 0.8, "solver": "woodbury"} if case.name == "cifar10" else {}
    once = "1 + Q/N"
    return [
        Method(
            "trak",
            fitted(lambda case: TRAK()),
            lambda s: s.gradients,
            once,
            joint=True,
            further=(30, 100) if case.name == "digits" else (),
        ),
        Method("grad-dot", fitted(lambda case: GradDot()), lambda s: s.gradients, once),
        Method(
            "tracin", fitted(lambda case: TracIn()), lambda s: s.epochs * s.gradients, "checkpoints x (1 + Q/N): all"
        ),
        Method(
            "arnoldi",
            fitted(lambda case: Arnoldi()),
            lambda s: 100 * 2 * 128 / s.n + s.gradients,
            "100 products of 128 examples, 2 x 100 x 128 / N, and 1 + Q/N",
        ),
        Method(
            GaussNewton(**fewer).label,
            fitted(lambda case: GaussNewton(**fewer, cache=str(case.folder / "solved"))),
            lambda s: 1 / 3 + 2 * s.curvature / 3 + (4 if s.augmented else 1) + s.q / s.n,
            "a backward pass a class but one (of text 8), (1 + 2 (C - 1)) / 3, and 1 + Q/N (4 + Q/N where augmented)",
            note="three rows of curvature an image, .8 of it, instead of the default's .97: for time" if fewer else "",
        ),
        Method(
            "ekfac",
            fitted(lambda case: EKFAC()),
            lambda s: 2 + s.gradients,
            "2 for the factors and their eigenvalues, and 1 + Q/N",
            note=left,
        ),
        Method(
            "source",
            fitted(lambda case: Source()),
            lambda s: 6 * (2 + s.gradients),
            "6 checkpoints x (3 + Q/N)",
            note=left,
        ),
        Method("datainf", fitted(lambda case: DataInf()), lambda s: 4 + s.q / s.n, "4 + Q/N: four passes of gradients"),
        Method(
            "representer",
            fitted(lambda case: Representer()),
            lambda s: s.losses,
            "(1 + Q/N) / 3: features; the last layer is fitted beside the network",
        ),
        Method(
            "unrolled",
            fitted(lambda case: Unrolled()),
            lambda s: 2 * s.epochs + 3 * s.epochs * s.q,
            "2 trainings, and 3 x epochs x Q",
            note="one model's derivative, meant for a truth of the same seed; here held to models of other seeds",
            most=1,
        ),
        Method(
            "unrolled (Gauss-Newton)",
            fitted(lambda case: Unrolled(curvature="gauss-newton")),
            lambda s: 2 * s.epochs + 3 * s.epochs * s.q,
            "as unrolled",
            note="as unrolled",
            most=3,
        ),
    ]


def controls() -> list[Method]:
    """Rankings that know no model."""
    return [
        Method(made().name, fitted(lambda case, made=made: made()), lambda s: 0.0, "0", "control", trains=False, most=1)
        for made in (RandomControl, SameClassControl)
    ]


# --- other libraries -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfRun(side_by_side.Setting):
    """What the functions of ``benchmarks/peers.py`` take, of a run that is there."""

    recorded: Run | None = None

    @property
    def run(self) -> Run:  # type: ignore[override]
        """The run."""
        assert self.recorded is not None
        return self.recorded

    @property
    def weights(self) -> list[Any]:  # type: ignore[override]
        """Every checkpoint after the first epoch, with its learning rate."""
        return [(read_weights(kept.path), kept.lr) for kept in self.run.checkpoints if kept.epoch > 0]


def staged(make: Callable[..., peers.Stages]) -> Callable[[Case, Sequence[Run]], Scores]:
    """Scores by a function of ``benchmarks/peers.py``."""

    def scores(case: Case, runs: Sequence[Run]) -> Scores:
        (run,) = runs
        with tempfile.TemporaryDirectory() as folder:
            setting = OfRun(Path(folder), None, 0, 0, 100, run)
            found: Any = None
            for _, stage in make(setting, len(setting.train_xy[1]), 100):
                found = stage()
        return as_scores(run, torch.as_tensor(found).detach().numpy())

    return scores


def as_scores(run: Run, values: npt.NDArray[Any]) -> Scores:
    """Rows as in the trace, columns as the queries lie in the data."""
    ids = {"train_ids": run.trace.train_ids, "query_ids": run.data().query.ids}
    return Scores.from_arrays(values.astype(np.float32), method="peer", **ids)


def kronfluence_scores(case: Case, runs: Sequence[Run]) -> Scores:
    """EK-FAC of all linear layers and convolutions, by kronfluence as it comes."""
    (run,) = runs
    setting = OfRun(Path(), None, 0, 0, 0, run)
    model = run.load_model()
    layers = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    given = beside.Setting(
        model, Classification(), beside.Held(setting.train_xy), beside.Held(setting.query_xy), beside.drawn
    )
    _, found = beside.theirs(given, layers, 100)
    return as_scores(run, found.numpy())


def other_libraries() -> list[Method]:
    """Peers, with the options that they come with but for the dimension of TRAK's projection, which is ours."""

    def trak(library: Callable[..., peers.Stages]) -> Callable[[Case, Sequence[Run]], Scores]:
        return staged(library)

    once = "as trak"
    return [
        Method(
            "traker: TRAK",
            trak(lambda *given: peers.plain_traker(512, 0.0, True, *given)),
            lambda s: s.gradients,
            once,
            "peer",
            note="without a ridge, its default",
        ),
        Method(
            "dattri: TRAK",
            trak(lambda *given: peers.dattri_trak(512, 0.0, *given)),
            lambda s: s.gradients,
            once,
            "peer",
            note="without a ridge, its default",
        ),
        Method(
            "dattri: Arnoldi",
            staged(lambda *given: peers.dattri_arnoldi(50, *given)),
            lambda s: 100 * 2 * 128 / s.n + s.gradients,
            "as arnoldi",
            "peer",
        ),
        Method(
            "captum: TracInCP",
            staged(lambda *given: peers.captum_tracin(True, *given)),
            lambda s: s.epochs * s.gradients,
            "as tracin",
            "peer",
            most=1,
        ),
        Method(
            "kronfluence: EK-FAC",
            kronfluence_scores,
            lambda s: 2 + s.gradients,
            "as ekfac",
            "peer",
            note="damping .1 of the mean eigenvalue, its heuristic; linear layers and convolutions only",
        ),
    ]


# --- baselines of text ---------------------------------------------------------------------------------------------


def bm25(documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Okapi BM25 (k1 1.2, b .75) of each document for each query, (N, Q).   (Robertson and Zaragoza, 2009, eq. 3.15)"""
    counts = [Counter(words) for words in documents]
    holding = Counter(word for words in counts for word in words)
    length = np.array([len(words) for words in documents], np.float64)
    norm = 1.2 * (0.25 + 0.75 * length / length.mean())
    scores = np.zeros((len(documents), len(queries)))
    for column, query in enumerate(queries):
        for word in set(query) & holding.keys():
            times = np.array([words[word] for words in counts])
            rarity = np.log(1 + (len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
            scores[:, column] += rarity * times * 2.2 / (times + norm)
    return scores


def by_label(case: Case, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Similar sentences of the query's class help, of the other class hurt."""
    same = case.splits.train.labels[:, None] == case.splits.query.labels[None]
    return values * np.where(same, 1, -1)


def text_similarity(case: Case, runs: Sequence[Run]) -> Scores:
    """BM25, signed by the class."""
    assert isinstance(case, Sentences)
    words, size = case.texts[0], len(case.splits.train)
    ids = {"train_ids": case.splits.train.ids, "query_ids": case.splits.query.ids}
    found = by_label(case, bm25(words[:size], words[size:])).astype(np.float32)
    return Scores.from_arrays(found, method="bm25", **ids)


def embedding_similarity(case: Case, runs: Sequence[Run]) -> Scores:
    """Cosine of the inputs of the last layer, signed by the class."""
    (run,) = runs
    model, rows = run.load_model().eval(), []
    for part in (case.splits.train, case.splits.query):
        with torch.no_grad(), penultimate(model) as last:
            model(part.batch(np.arange(len(part)))[0])
            rows.append(torch.nn.functional.normalize(last.features, dim=1).numpy())
    ids = {"train_ids": case.splits.train.ids, "query_ids": case.splits.query.ids}
    found = by_label(case, rows[0] @ rows[1].T).astype(np.float32)
    return Scores.from_arrays(found, method="embeddings", **ids)


def baselines() -> list[Method]:
    """Similarity of texts."""
    return [
        Method("BM25, by label", text_similarity, lambda s: 0.0, "0", "baseline", trains=False, most=1),
        Method("embeddings, by label", embedding_similarity, lambda s: s.losses, "(1 + Q/N) / 3: features", "baseline"),
    ]


LEFT_OUT: dict[str, dict[str, str]] = {
    "characters": {
        "cld (whitened log odds)": "the loss of a sequence is a mean over tokens, no log of a probability",
        "source": "its derivation is that of SGD, and AdamW trained",
        "unrolled": "likewise",
        "unrolled (Gauss-Newton)": "likewise",
        "representer": "one row of features an example",
        "same-class-control": "no classes",
        **dict.fromkeys(
            ("traker: TRAK", "dattri: TRAK", "dattri: Arnoldi", "captum: TracInCP", "kronfluence: EK-FAC"),
            "prepared here for classifiers",
        ),
    },
    "cifar10": {
        "bayesian-influence": "400 epochs a run, an hour",
        "gauss-newton": "its default holds .97 of the curvature: more rows, for which there was no time",
        "unrolled": "three passes an epoch and query: 9,000 epochs a run",
        "unrolled (Gauss-Newton)": "likewise",
    },
}
"""Methods that are not run on a data set, and why."""


def methods_of(case: Case) -> list[Method]:
    """The methods held to a data set."""
    found = [*losses_only(case), *own_gradients(case), *other_libraries(), *controls()]
    found += baselines() if isinstance(case, Sentences) else []
    return [method for method in found if method.name not in LEFT_OUT.get(case.name, {})]
