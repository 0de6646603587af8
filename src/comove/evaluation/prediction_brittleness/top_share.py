r"""drop(g) = loss of a query group g by models without its most helpful share of the training data, less that by all.

A query, or a group of queries whose scores are added up, is asked which share of the training data (1 %) helps it most;
that share is removed, the model is trained again, and the group's loss is compared. The larger the rise the better the
method knew. Random removal and removal from the group's own classes stand beside it.

Shape suffixes: M methods and controls, G groups, N training examples, R models per removed set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comove.attribution.scores import Scores, SomeScores, named_scores
from comove.checks import as_ids, real_number, whole_number
from comove.data import ExampleSet, Ids, MapDataset, Splits
from comove.data.builtin import as_splits
from comove.display import html_table
from comove.errors import InputError
from comove.evaluation.estimate import Estimate, mean_with_interval
from comove.evaluation.prediction_brittleness.models import training_and_seed
from comove.evaluation.prediction_brittleness.removal import CONTROLS
from comove.jobs import Compute
from comove.models import Factory
from comove.retraining import subsets
from comove.retraining.bank import RetrainingBank
from comove.retraining.own import OwnTraining
from comove.store import write_json
from comove.store.results import as_plain, freeze, write_table
from comove.ties import highest
from comove.training import Training

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TopShare", "top_share_removal"]


@dataclass(frozen=True, eq=False, repr=False)
class TopShare:
    """How far losses rise where the most helpful share of the training data is removed.

    Attributes:
        methods: names of the methods, then of the controls.
        groups: names of the query groups.
        share: of the training examples that was removed.
        removed: how many that is.
        output: what was measured of a query: ``"loss"``, or an own training function's output.
        rises: (M, G, R) of the group's mean loss (or the drop of an output of which more is better).
        noise: (G, R) the same for as many other models of all training examples: what retraining alone does.
    """

    methods: tuple[str, ...]
    groups: tuple[str, ...]
    share: float
    removed: int
    output: str
    rises: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        freeze(self, {"rises": self.rises, "noise": self.noise})

    def rise(self, method: str) -> Estimate:
        """The mean rise over groups and models, with a bootstrap interval over groups.

        Raises:
            InputError: an unknown method.
        """
        if method not in self.methods:
            raise InputError(f"No method {method!r} here, only {', '.join(self.methods)}.")
        return mean_with_interval(self.rises[self.methods.index(method)])

    def rows(self) -> list[dict[str, Any]]:
        """One row a method, after one for nothing removed."""
        own = [("nothing removed", mean_with_interval(self.noise)), *((name, self.rise(name)) for name in self.methods)]
        return [{"method": name, "rise": value, "low": low, "high": high} for name, (value, low, high) in own]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame of :meth:`rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        rows = [[row[name] for name in ("method", "rise", "low", "high")] for row in self.rows()]
        title = f"Rise of the {self.output} without the {self.share:.2%} of the training data that helps most"
        return html_table(title, ["method", "rise", "low", "high"], rows)

    def __repr__(self) -> str:
        lines = [f"{row['method']}: {row['rise']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in self.rows()]
        return "\n".join(
            [f"TopShare({self.removed} examples removed, {len(self.groups)} groups, {self.output})", *lines]
        )


def top_share_removal(
    scores: SomeScores,
    share: float = 0.01,
    *,
    dataset: str | Splits | ExampleSet | MapDataset,
    out: str | os.PathLike[str],
    groups: Mapping[str, Sequence[int] | Ids] | None = None,
    training: Training | OwnTraining | str | Factory | None = None,
    seeds: int = 5,
    compute: Compute | None = None,
) -> TopShare:
    """Remove the share of the training data that helps each query group most, retrain, and compare the group's loss.

    Every model is kept in the bank ``out/bank`` as soon as it is trained: an interrupted call goes on.

    Args:
        scores: of one method or of several, each of all training examples; a mapping names them.
        share: of the training examples to remove.
        dataset: as for :func:`comove.train`.
        out: a folder: ``bank/``, ``top-share.csv``, ``top-share.json``.
        groups: name -> query ids, whose scores are added up; by default each scored query by itself.
        training: how models are trained; its seed is also that of the controls.
        seeds: R, models per removed set.
        compute: where models are trained.

    Raises:
        InputError: a share that removes nothing, or leaves fewer than two examples; unknown queries; scores that lack
            training examples or have the name of a control.
        FingerprintError: ``out`` holds a bank of other data, another model, recipe, seed or other queries.
    """
    named, splits, folder = named_scores(scores), as_splits(dataset), Path(out)
    how, seed = training_and_seed(training)
    ids = np.sort(splits.train.ids)
    count = round(real_number(share, "share") * ids.size)
    if not 1 <= count <= ids.size - 2:
        raise InputError(
            f"A share of {share:g} of {ids.size} training examples removes {count}; from 1 to {ids.size - 2} can go."
        )
    whole_number(seeds, "seeds", 1)
    asked = next(iter(named.values())).query_ids
    given = groups if groups is not None else {str(query): [query] for query in asked.tolist()}
    chosen = {name: as_ids(of, f"queries of group {name!r}") for name, of in given.items()}
    if not chosen or not all(of.size for of in chosen.values()):
        raise InputError("Each group needs at least one query, and there must be a group.")
    orders = _removed(named, splits, chosen, count, seed)
    queries = None if isinstance(how, OwnTraining) else np.unique(np.concatenate(list(chosen.values())))
    without = subsets.without([of for part in orders.values() for of in part])
    where = compute or Compute()

    def trained(plan: subsets.SubsetPlan, models: int) -> RetrainingBank:
        bank = RetrainingBank.create(folder / "bank", splits, how, subsets=plan, seeds=models, queries=queries)
        return bank.run(executor=where.on(), device=where.device, progress=where.progress)

    result = _measured(trained(subsets.everything(), 2 * seeds), trained(without, seeds), orders, chosen, share)
    write_table(folder / "top-share.csv", result.to_pandas())
    write_json(folder / "top-share.json", {"rows": as_plain(result.rows()), "share": share, "groups": as_plain(chosen)})
    return result


def _removed(
    named: Mapping[str, Scores], splits: Splits, groups: Mapping[str, Ids], count: int, seed: int
) -> dict[str, list[Ids]]:
    """For each method and control, the ids that are removed for each group."""
    train = splits.train
    ids = np.sort(train.ids)
    if set(named) & set(CONTROLS):
        raise InputError(f"Scores must have other names than {' and '.join(CONTROLS)}.")
    orders: dict[str, list[Ids]] = {}
    for name, item in named.items():
        if item.train_ids.size != ids.size:
            raise InputError(f"{name}: scores of {item.train_ids.size} examples, but {ids.size} are trained on.")
        sums = [
            item.subset(train_ids=ids, query_ids=of).values.astype(np.float64).sum(1).astype(np.float32)
            for of in groups.values()
        ]
        orders[name] = [ids[highest(sum_N, ids, count)] for sum_N in sums]
    rngs = np.random.default_rng([seed, 0x70B5]).spawn(len(groups))
    orders[CONTROLS[0]] = [rng.choice(ids, count, replace=False) for rng in rngs]
    if train.labelled and splits.query.labelled:
        labels = train.labels[train.positions(ids)]
        orders[CONTROLS[1]] = [
            _of_classes(ids, labels, np.unique(splits.query.subset(of).labels), count, rng)
            for of, rng in zip(groups.values(), rngs, strict=True)
        ]
    return orders


def _of_classes(ids: Ids, labels: Ids, classes: Ids, count: int, rng: np.random.Generator) -> Ids:
    """``count`` random ids of these classes; where they are used up, of others."""
    own = np.isin(labels, classes)
    return np.concatenate([rng.permutation(ids[own]), rng.permutation(ids[~own])])[:count]


def _measured(
    full: RetrainingBank,
    left: RetrainingBank,
    orders: Mapping[str, list[Ids]],
    groups: Mapping[str, Ids],
    share: float,
) -> TopShare:
    """Compare the groups' outputs with those of models of all training examples."""
    output = "loss" if "loss" in full.output_names else full.default_output
    sign = -1 if full.higher_is_better(output) else 1
    place = {id_: column for column, id_ in enumerate(full.query_ids.tolist())}
    columns = [[place[id_] for id_ in of.tolist()] for of in groups.values()]

    def means(part: RetrainingBank) -> npt.NDArray[np.float64]:  # (C, R, G)
        values_CRQ = sign * part.outputs(output)
        return np.stack([values_CRQ[..., own].mean(-1) for own in columns], -1)

    all_RG, left_CRG = means(full)[0], means(left)
    seeds = left_CRG.shape[1]
    whole_G = all_RG[:seeds].mean(0)
    own = np.arange(len(groups))
    rises_MGR = left_CRG.reshape(len(orders), len(groups), seeds, len(groups))[:, own, :, own] - whole_G[:, None, None]
    removed = next(iter(orders.values()))[0].size
    noise_GR = (all_RG[seeds : 2 * seeds] - whole_G).T
    return TopShare(tuple(orders), tuple(groups), share, removed, output, rises_MGR.swapaxes(0, 1), noise_GR)
