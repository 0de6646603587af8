r"""S = sum_q abs(d1_q) sign(d1_q) sign(d2_q) / sum_q abs(d1_q): how smooth training is.

(Engstrom, Ilyas, Chen, Feldmann, Moses, Madry, "Optimizing ML Training with Metagradient Descent", arXiv 2503.13751,
2025: empirical metasmoothness, theirs over the trained weights, here over what is measured.) d1 is the change of what
is measured of the queries when some examples' weights in the loss are lowered half-way, d2 the further change when they
are lowered to the end. Where training is smooth both go the same way, and a derivative
(:class:`comove.attribution.Unrolled`) tells of removals; where it is not, no derivative can.

Shape legend: N train, Q queries, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.attribution.scores import Scores
from comove.checks import check_seed, real_number, whole_number
from comove.data import Ids, positions_of
from comove.display import plain
from comove.errors import InputError
from comove.models.measured_outputs import output_of
from comove.training import Member, Resident, Run, engines_for, resolve_device, train_many

__all__ = ["Metasmoothness", "metasmoothness", "sign_agreement"]


def sign_agreement(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return ``sum |first| sign(first) sign(second) / sum |first|``, in [-1, 1]; NaN where nothing changes at first."""
    total = np.abs(first).sum()
    return float((first * np.sign(second)).sum() / total) if total else float("nan")


@dataclass(frozen=True)
class Metasmoothness:
    """How smoothly training answers a change of its examples' weights.

    Attributes:
        value: mean over directions of the weighted sign agreement, from -1 to 1. Above about .9 a derivative can be
            trusted for removals of this size; near 0 it says nothing.
        per_direction: (D,), of each random set of examples.
        correlation: of the changes half-way and from there to the end, over queries, mean over directions.
        predicted: correlation of the change to the end with what ``scores`` predict, likewise; NaN without scores.
        removed: examples in a set.
    """

    value: float
    per_direction: npt.NDArray[np.float64]
    correlation: float
    predicted: float
    removed: int

    def __repr__(self) -> str:
        sets = f"{len(self.per_direction)} sets of {self.removed} examples"
        known = "" if np.isnan(self.predicted) else f", predicted changes correlate {plain(self.predicted)}"
        return f"Metasmoothness({plain(self.value)} over {sets}, correlation {plain(self.correlation)}{known})"


def metasmoothness(
    run: Run,
    *,
    share: float = 0.01,
    directions: int = 7,
    seed: int = 0,
    queries: Ids | None = None,
    scores: Scores | None = None,
    device: str = "auto",
) -> Metasmoothness:
    """Measure how smoothly a run's training answers the removal of a few examples, by 2 D + 1 retrainings.

    All of them have the run's initial weights, batches and augmentation; in direction d the weights of a random set of
    examples are 1/2 and 0, and what is measured is the margin. Nothing of the run but its recipe, seed and data is
    used, so a short call tells before unrolling whether it is worth it.

    Args:
        run: made by :func:`comove.train`.
        share: of the training examples in a set; at least one.
        directions: D; with 7 the models fill one group of those that train side by side.
        seed: of the sets.
        queries: ids of held-out examples; by default those that attribution explains.
        scores: of these queries, whose predictions of the changes are then compared with them as well.
        device: where to train.

    Raises:
        InputError: a share outside (0, 1), no direction, a run trained elsewhere, scores without a training example or
            query.
    """
    if not 0 < real_number(share, "share") < 1:
        raise InputError(f"share must be in (0, 1), got {share}.")
    count, seed = whole_number(directions, "directions", 1), check_seed(seed, "metasmoothness")
    where = resolve_device(device)
    train = Resident(run.data().train, where)
    ids = run.trace.explained_ids if queries is None else np.asarray(queries)
    asked = run.examples(ids)
    removed = max(1, round(share * len(train)))
    sets_DN = np.zeros((count, len(train)), np.bool_)
    for number, row_N in enumerate(sets_DN):
        row_N[np.random.default_rng([seed, 0x5E75, number]).choice(len(train), removed, replace=False)] = True
    outputs = _outputs(run, train, Resident(asked, where), _weights(sets_DN))
    full_Q, half_DQ, none_DQ = outputs[0], outputs[1 : count + 1], outputs[count + 1 :]
    first_DQ, second_DQ = half_DQ - full_Q, none_DQ - half_DQ
    per_D = np.array([sign_agreement(*pair) for pair in zip(first_DQ, second_DQ, strict=True)])
    predicted = float("nan")
    if scores is not None:
        rows = positions_of(train.examples.ids, scores.train_ids, "training ids")
        columns = positions_of(ids, scores.query_ids, "query ids")
        guess_DQ = -(sets_DN.astype(np.float64) @ scores.values[np.ix_(rows, columns)])
        predicted = _mean_correlation(guess_DQ, none_DQ - full_Q)
    return Metasmoothness(float(per_D.mean()), per_D, _mean_correlation(first_DQ, second_DQ), predicted, removed)


def _weights(sets_DN: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """(2 D + 1, N): all present, then each set half-way, then each set gone."""
    sets = sets_DN.astype(np.float32)
    return np.concatenate([np.ones_like(sets[:1]), 1 - sets / 2, 1 - sets])


def _outputs(run: Run, train: Resident, queries: Resident, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(M, Q) margins of models trained like the run, with these weights (M, N) on the losses."""
    recipe, spec, splits = run.recipe, run.model_spec, run.data()
    engine = engines_for(spec, splits.train, recipe, run.factory).on(train.device.type)
    validation = None if recipe.early_stop_patience is None else splits.validation
    trained = train_many(
        spec,
        train,
        queries,
        [Member(np.arange(len(train)), run.seed, row_N) for row_N in weights],
        recipe,
        engine=engine,
        factory=run.factory,
        validation=None if validation is None else Resident(validation, train.device),
    )
    return np.stack([output_of(one.logits, queries.examples.labels, "margin") for one in trained])


def _mean_correlation(one_DQ: npt.NDArray[Any], other_DQ: npt.NDArray[Any]) -> float:
    pairs = zip(one_DQ, other_DQ, strict=True)
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))
