"""The methods of ``benchmarks/quality.py``, and what each costs in forward-backward epochs.

A forward pass counts a third of a forward and backward pass, as in the paper's Appendix E; the gradient of one
example counts one forward and backward pass of it, a product with the Hessian two. Only passes through the network
count: factorisations and matrix products beside it show in the seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import quality_peers as theirs
import torch
from quality_cases import Case
from quality_texts import OwnLoop, ReviewCase

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
from comove.data import ExampleSet
from comove.training import Run

__all__ = ["Kind", "Method", "Sizes", "methods_of"]

Kind = Literal["losses", "gradients", "combined", "peer", "baseline", "control"]


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
        parts: the methods whose standardized scores it is the mean of; then ``scores`` is not called.
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
    parts: tuple[Method, ...] = ()


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
"""Options of Bayesian influence: the defaults and cheaper ones; smaller steps for the larger networks."""
EXPLORED |= dict.fromkeys(("sentences", "characters"), EXPLORED["cifar10"][:1])
SOLVED: dict[str, tuple[dict[str, Any], str]] = {
    "cifar10": (
        {"share": 0.8, "solver": "woodbury"},
        "three rows of curvature an image, .8 of it, instead of the default's .97: for time",
    ),
    "characters": ({"draws": 4}, "4 pseudo-gradients a sequence instead of the default's 8: for time"),
}
"""Options of Gauss-Newton influence that are not its defaults, and why."""
FACTORLESS = {
    "words": "the word vectors have no factors and are left out",
    **dict.fromkeys(("sentences", "characters"), "embeddings and layer norms have no factors and are left out"),
}
"""What EK-FAC does not see."""


def losses_only(case: Case) -> list[Method]:
    """Methods that see recorded losses."""

    def explored(how: BayesianInfluence, batch: int = 32) -> Callable[[Sizes], float]:
        return lambda s: how.chains * how.steps * batch / s.n + how.exploration.draws * s.losses

    def bayesian(**options: Any) -> Method:
        how, label = BayesianInfluence(**options), BayesianInfluence(**options).label
        found = fitted(lambda case: BayesianInfluence(**options, cache=str(case.folder / "explored")))
        formula, most = "chains x steps x batch / N + draws x (1 + Q/N) / 3", 1 if isinstance(case, OwnLoop) else 10
        return Method(label, found, explored(how), formula, "losses", most=most)

    transform, told = ("log-odds", " log odds") if case.splits.train.classes else ("none", "")
    return [
        Method(
            "cld (paper)",
            fitted(lambda case: CLD(rows="epochs")),
            lambda s: (s.epochs + 1) * s.losses,
            "rows x (1 + Q/N) / 3: losses recorded after each epoch",
            "losses",
        ),
        Method(
            f"cld (whitened{told})",
            fitted(lambda case: CLD(whiten=0.03, transform=transform)),
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
    left = FACTORLESS.get(case.name, "")
    fewer, reason = SOLVED.get(case.name, ({}, ""))
    once = "1 + Q/N"
    return [
        *(adam_steps() if isinstance(case, OwnLoop) else []),
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
            most=1 if isinstance(case, OwnLoop) else 10,
        ),
        Method(
            GaussNewton(**fewer).label,
            fitted(lambda case: GaussNewton(**fewer, cache=str(case.folder / "solved"))),
            lambda s: 1 / 3 + 2 * s.curvature / 3 + (4 if s.augmented else 1) + s.q / s.n,
            "a backward pass a class but one (of characters 4), (1 + 2 (C - 1)) / 3, and 1 + Q/N (4 + Q/N where "
            "augmented)",
            note=reason,
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


def adam_steps() -> list[Method]:
    """TracIn with the steps that AdamW took, of runs that kept its state."""
    return [
        Method(
            "tracin (Adam's steps)",
            fitted(lambda case: TracIn(optimizer_state=True)),
            lambda s: s.epochs * s.gradients,
            "as tracin",
            note="gradients divided by the roots of Adam's second moments",
        )
    ]


def controls() -> list[Method]:
    """Rankings that know no model."""
    return [
        Method(made().name, fitted(lambda case, made=made: made()), lambda s: 0.0, "0", "control", trains=False, most=1)
        for made in (RandomControl, SameClassControl)
    ]


# --- other libraries -----------------------------------------------------------------------------------------------


def other_libraries() -> list[Method]:
    """Peers, with the options that they come with but for the dimension of TRAK's projection, which is ours."""
    once = "as trak"
    return [
        Method(
            "traker: TRAK",
            theirs.traker,
            lambda s: s.gradients,
            once,
            "peer",
            note="without a ridge, its default",
        ),
        Method(
            "dattri: TRAK",
            theirs.dattri_trak,
            lambda s: s.gradients,
            once,
            "peer",
            note="without a ridge, its default",
        ),
        Method(
            "dattri: Arnoldi",
            theirs.dattri_arnoldi,
            lambda s: 100 * 2 * 128 / s.n + s.gradients,
            "as arnoldi",
            "peer",
        ),
        Method(
            "captum: TracInCP",
            theirs.captum_tracin,
            lambda s: s.epochs * s.gradients,
            "as tracin",
            "peer",
            most=1,
        ),
        Method(
            "kronfluence: EK-FAC",
            theirs.kronfluence_scores,
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


def as_scores(case: Case, values: npt.NDArray[Any], name: str, signed: bool) -> Scores:
    """Similarities as scores; signed: texts of the query's class help, of another class hurt."""
    splits = case.splits
    if signed:
        values = values * np.where(splits.train.labels[:, None] == splits.query.labels[None], 1, -1)
    ids = {"train_ids": splits.train.ids, "query_ids": splits.query.ids}
    return Scores.from_arrays(values.astype(np.float32), method=name, **ids)


def text_similarity(signed: bool) -> Callable[[Case, Sequence[Run]], Scores]:
    """BM25."""
    return lambda case, runs: as_scores(case, bm25(*case.documents()), "bm25", signed)  # type: ignore[attr-defined]


def embeddings(run: Run, examples: ExampleSet) -> npt.NDArray[np.float32]:
    """What the text models' last layer sees, of length 1, (N, F); where it sees one vector a token, their mean."""
    seen: list[torch.Tensor] = []
    model = run.load_model()
    model.get_submodule("out").register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    with torch.no_grad():
        run.task.outputs(model, examples.collated(np.arange(len(examples))))
    features = seen[0] if seen[0].ndim == 2 else seen[0].mean(1)
    found: npt.NDArray[np.float32] = torch.nn.functional.normalize(features, dim=1).numpy()
    return found


def embedding_similarity(signed: bool) -> Callable[[Case, Sequence[Run]], Scores]:
    """Cosine of the inputs of the last layer."""

    def scores(case: Case, runs: Sequence[Run]) -> Scores:
        train, query = (embeddings(runs[0], part) for part in (case.splits.train, case.splits.query))
        return as_scores(case, train @ query.T, "embeddings", signed)

    return scores


def baselines(case: Case) -> list[Method]:
    """Similarity of texts; of those with classes also with the sign of the class."""
    found = []
    for signed in (False, True) if case.splits.train.classes else (False,):
        end = ", by label" if signed else ""
        free, once = (lambda s: 0.0), (lambda s: s.losses)
        found += [
            Method(f"BM25{end}", text_similarity(signed), free, "0", "baseline", trains=False, most=1),
            Method(f"embeddings{end}", embedding_similarity(signed), once, "(1 + Q/N) / 3: features", "baseline"),
        ]
    return found


PARTNERS = {
    "digits": "bayesian-influence",
    "cifar10": "cld (whitened log odds)",
    "words": "BM25, by label",
    "sentences": "BM25, by label",
    "characters": "BM25",
}
"""What the scores of Gauss-Newton influence are averaged with: the best method that differentiates nothing."""


def averaged(case: Case, methods: Sequence[Method]) -> list[Method]:
    """The mean of two methods' standardized scores, in equal parts."""
    solved = next(method for method in methods if method.name.startswith("gauss-newton"))
    partner = next((method for method in methods if method.name == PARTNERS[case.name]), None)
    if partner is None:
        return []
    parts = (solved, partner)
    return [
        Method(
            " + ".join(method.name.split("(solver")[0].split("(draws")[0] for method in parts),
            not_called,
            lambda s: sum(method.epochs(s) for method in parts if method.trains),
            "the sum of both",
            "combined",
            note="`Scores.mean([...], standardize=True)`; the pair was chosen by this page's figures",
            parts=parts,
        )
    ]


def not_called(case: Case, runs: Sequence[Run]) -> Scores:
    """The scores of a method that is made from others' scores."""
    raise AssertionError("made from the scores of its parts")


ADAMW = "its derivation is that of gradient descent, and AdamW trained"
REPLAY = "it replays steps of comove's own SGD, and a loop of its own trained"
PRICE = "16 chains x 1,500 steps: more than all other methods together"
LEFT_OUT: dict[str, dict[str, str]] = {
    "words": dict.fromkeys(
        ("dattri: TRAK", "dattri: Arnoldi", "captum: TracInCP", "BM25", "embeddings"),
        "see the transformer below, which this model came before",
    )
    | dict.fromkeys(("unrolled", "unrolled (Gauss-Newton)"), "three passes an epoch and query: 12,000 epochs a run"),
    "sentences": {"source": ADAMW, "unrolled": REPLAY, "unrolled (Gauss-Newton)": REPLAY, "bayesian-influence": PRICE},
    "characters": {
        "source": ADAMW,
        "unrolled": REPLAY,
        "unrolled (Gauss-Newton)": REPLAY,
        "bayesian-influence": PRICE,
        "representer": "it has one row of features an example, and a language model one a token",
        "same-class-control": "no classes",
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
    found += baselines(case) if isinstance(case, OwnLoop | ReviewCase) else []
    known = [method for method in found if method.name not in LEFT_OUT.get(case.name, {})]
    return [*known, *averaged(case, known)]
