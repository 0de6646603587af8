"""Which subsets an LDS benchmark is about: of a bank to be made, or of one that is there.

Shape legend: C subsets, N train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from comove.checks import check_seed
from comove.data import Ids, Splits
from comove.errors import InputError
from comove.lds.against_bank import alpha_of
from comove.models import ModelSpec
from comove.retraining.bank import RetrainingBank
from comove.retraining.imported import DEFAULT_NAME as IMPORTED
from comove.retraining.subsets import RandomSubsets, SubsetPlan, leave_one_out
from comove.store import check_fingerprint
from comove.training import Recipe, Training

__all__ = [
    "at_alphas",
    "by_alpha",
    "check_bank",
    "checked_plans",
    "fit_plan",
    "listed",
    "parts_of",
    "plans_of",
    "union",
]

FEWEST_SUBSETS = 3
"""The rank correlation of two subsets is always 1 or -1."""


def plans_of(alphas: Sequence[float | str], count: int, train_ids: Ids, seed: int = 0) -> list[SubsetPlan]:
    """Plan ``count`` subsets for each sampling ratio; ``"loo"`` or 1 is the paper's last one, (N-1)/N.

    There each subset lacks one training example; the ``count`` examples are chosen at random, and more of them are the
    same ones and further ones, so that a bank is extended by them.

    A ratio given twice counts once.

    Raises:
        InputError: a ratio that is neither above 0 and at most 1 nor ``"loo"``, more subsets than training examples.
    """
    plans = [_plan_of(alpha, count, train_ids, seed) for alpha in alphas]
    return list({plan.name: plan for plan in plans}.values())


def _ratio(alpha: float | str) -> float:
    try:
        return 1.0 if alpha == "loo" else float(alpha)
    except ValueError:
        raise InputError(f"alpha must be a number above 0 and at most 1, or loo; got {alpha!r}.") from None


def _plan_of(alpha: float | str, count: int, train_ids: Ids, seed: int) -> SubsetPlan:
    ratio = _ratio(alpha)
    if ratio != 1:
        return RandomSubsets(ratio, count, seed)
    check_seed(seed, "subsets")
    if count > train_ids.size:
        raise InputError(f"There are {train_ids.size} training examples to leave out, asked for {count} subsets.")
    return leave_one_out(np.random.default_rng([seed, 0x100]).permutation(train_ids)[:count])


def listed(value: Any) -> list[Any]:
    """A sequence as a list; anything else, text too, as a list of one."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def checked_plans(subsets: SubsetPlan | Sequence[SubsetPlan], train_ids: Ids) -> list[SubsetPlan]:
    """The plans of a bank to be made, after a look at each."""
    plans = listed(subsets)
    if not plans or not all(hasattr(plan, "masks_for") for plan in plans):
        raise InputError("Say which subsets to retrain on, such as subsets.random(0.5, 100), or give a bank.")
    for plan in plans:
        _check_count(plan.name, len(plan.masks_for(train_ids)))
    return plans


def _check_count(name: str, count: int) -> None:
    if count < FEWEST_SUBSETS:
        raise InputError(f"An LDS needs at least {FEWEST_SUBSETS} subsets of a kind, the plan {name} has {count}.")


def by_alpha(parts: Sequence[RetrainingBank]) -> list[RetrainingBank]:
    """The parts, the lowest sampling ratio first."""
    for part in parts:
        _check_count(" and ".join(part.plans), len(part.masks))
    alphas = [alpha_of(part) for part in parts]
    if not alphas or len(set(alphas)) < len(alphas):
        raise InputError(f"An LDS benchmark needs plans of different sampling ratios, got {alphas}.")
    return sorted(parts, key=alpha_of)


def at_alphas(bank: RetrainingBank, alphas: Sequence[float | str]) -> RetrainingBank:
    """Restrict a bank to the random subsets of these sampling ratios; ``"loo"`` or 1 is its leave-one-out plan.

    Raises:
        InputError: a ratio that the bank does not have, or that is no number.
    """
    parts = [part for alpha in alphas for part in ([bank.at(_ratio(alpha))] if _ratio(alpha) != 1 else _left_out(bank))]
    if not parts:
        raise InputError(f"The bank {bank.path} has no leave-one-out subsets, only {', '.join(bank.plans)}.")
    return union(bank, parts)


def _left_out(bank: RetrainingBank) -> list[RetrainingBank]:
    """The largest leave-one-out plan, if there is one."""
    plans = [bank.plan(name) for name in bank.plans if name.startswith("leave-one-out")]
    return sorted(plans, key=lambda part: len(part.masks))[-1:]


def parts_of(bank: RetrainingBank) -> list[RetrainingBank]:
    """The random subsets of each sampling ratio, the largest leave-one-out plan, and what was imported."""
    theirs = [bank.plan(IMPORTED)] if IMPORTED in bank.plans else []
    parts = [*(bank.at(alpha) for alpha in bank.alphas), *_left_out(bank), *theirs]
    if not parts:
        raise InputError(f"The bank {bank.path} has neither random nor leave-one-out subsets: {', '.join(bank.plans)}.")
    return parts


def union(bank: RetrainingBank, parts: Sequence[RetrainingBank]) -> RetrainingBank:
    """The bank restricted to the subsets of these parts: nothing else in it is to be trained."""
    wanted = {digest for part in parts for digest in part.digests}
    return bank.part([row for row, digest in enumerate(bank.digests) if digest in wanted])


def fit_plan(bank: RetrainingBank, count: int, alpha: float | None) -> RandomSubsets:
    """Other subsets than the bank's, at the sampling ratio that tells most about single examples."""
    plans = listed(bank.manifest["subsets"])
    if alpha is None:
        alpha = min(bank.alphas, key=lambda ratio: (round(abs(ratio - 0.5), 9), ratio), default=0.5)
    return RandomSubsets(alpha, count, 1 + max(int(plan.get("seed", 0)) for plan in plans))


def check_bank(
    bank: RetrainingBank,
    splits: Splits,
    training: Training | None,
) -> None:
    """Refuse other data, or another way of training (unless ``None``), than the bank's: they stand for the runs'."""
    found, where = bank.manifest["dataset"]["fingerprint"], bank.path
    check_fingerprint("data set", found=found, expected=splits.fingerprint, where=where)
    if training is None:
        return
    spec = ModelSpec.from_json(bank.manifest["model"])
    if ":" in spec.name and training.model is None:
        raise InputError(f"The models of {where} are made by {spec.name}: give that factory again, as model.")
    options = training.options or dict(spec.options)
    asked, recipe, _ = replace(training, model=training.model or spec.name, options=options).resolve(splits)
    ours, theirs = {"model": asked.to_json()}, {"model": spec.to_json()}
    if training.recipe is not None:
        ours["recipe"], theirs["recipe"] = asdict(recipe), asdict(Recipe.from_json(bank.manifest["recipe"]))
    unlike = [
        f"{part}.{key} {theirs[part].get(key)!r}, not {value!r}"
        for part, wanted in ours.items()
        for key, value in wanted.items()
        if theirs[part].get(key) != value
    ]
    if unlike:
        raise InputError(f"The models of {where} were made with {', '.join(unlike)}: leave that out.")
