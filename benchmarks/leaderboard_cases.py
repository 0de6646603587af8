"""Banks of ``benchmarks/quality.py`` for the leaderboard: the scores of its methods, and publishing them.

    python benchmarks/leaderboard_cases.py --data digits --folder STATE            # runs, bank and scores
    python benchmarks/leaderboard_cases.py --data digits --folder STATE --publish  # into benchmarks/banks/

``--publish`` writes what is there of any data set of the quality page, so that of others than digits
``benchmarks/quality.py --data DATA --folder STATE`` computes it. The digits bank has other subsets than the quality
page's (plan seed 41), by which no option of any method was chosen; and the rest of the CLD family.
"""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leaderboard_boards import BANKS, LABELS, RESULTS, boards
from leaderboard_page import write_page
from leaderboard_publish import WHOLE_QUERIES, Given, publish
from quality import CASES, Measured, compute, finished
from quality_cases import Case
from quality_methods import Method, fitted, methods_of

from comove.attribution import CLD, GaussNewton
from comove.evaluation import RetrainingBank, subsets
from comove.training import Training

__all__ = ["OtherSubsets", "card_of", "case_of", "given_of", "methods_for"]

PLAN_SEED = 41
COUNTS = (1, 3, 10)
LEFT_OUT = ("unrolled", "unrolled (Gauss-Newton)", "dattri: Arnoldi")
"""Of digits: two that take hours of three passes an epoch and query, and one whose scores are NaN."""
MOST = {"captum: TracInCP": 1}
KEPT = ("losses", "gradients", "baseline")
"""Kinds of methods whose scores are published beside their ranks, but for ``VARIANTS`` and cheaper settings."""
AVERAGED = GaussNewton(checkpoints=4)
VARIANTS = (CLD(), CLD(correlation="spearman"), CLD(correlation="covariance", common_mode="remove"))

NOT_CHOSEN = (
    "No option of any method was chosen on these subsets. Those of whitened CLD, Gauss-Newton and Bayesian influence "
    "were chosen on other subsets of the same digits, with the same queries."
)
REVIEWS = {
    "source": "sentence polarity data set v1.0 (Pang and Lee, Seeing stars, ACL 2005); no sentence is published here",
    "licence": "none known: for research, cite the paper",
}
DATA: dict[str, dict[str, Any]] = {
    "digits": {
        "source": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning Repository, "
        "1998), the 1,797 test images as scikit-learn has them",
        "licence": "CC BY 4.0",
        "seeds": "data and models 0, subsets 41; attribution runs 0 to 9.",
        "notes": [NOT_CHOSEN],
    },
    "words": REVIEWS,
    "sentences": REVIEWS,
    "characters": {
        "source": "Shakespeare's plays, as in the collection called tiny Shakespeare; no text is published here",
        "licence": "public domain",
    },
}
"""What a card says of the data, by the name of the data set."""
SEEDS = "data and subsets 0; models by their subset and number; attribution runs numbered from 0."


class OtherSubsets(Case):
    """Digits, with other subsets than those of the quality page."""

    def bank(self) -> RetrainingBank:
        """The truth, trained where it is not there yet."""
        plan = subsets.random(0.5, self.subsets, seed=PLAN_SEED)
        made = RetrainingBank.create(self.folder / "bank", self.splits, self.training, subsets=plan, seeds=self.seeds)
        return made.run(executor="serial")


def case_of(name: str, folder: Path, data_dir: Path) -> Case:
    """A data set, kept in a folder."""
    known: Any = CASES[name](folder / name, data_dir)
    if name != "digits":
        return known
    return OtherSubsets(**{**vars(known), "training": Training("mlp", "digits-mlp"), "counts": COUNTS})


def methods_for(case: Case) -> list[Method]:
    """The methods of the quality page; of digits those that take minutes, and the rest of the CLD family."""
    if case.name != "digits":
        return methods_of(case)
    dense = [
        Method(how.label, fitted(lambda case, how=how: how), lambda s: s.rows * s.losses, "as recorded", "losses")
        for how in VARIANTS
    ]
    known = [method for method in methods_of(case) if method.name not in LEFT_OUT]
    solve = next(method for method in known if method.name == GaussNewton().label)
    dense.append(
        replace(
            solve,
            name=AVERAGED.label,
            scores=fitted(lambda case: replace(AVERAGED, cache=str(case.folder / "solved"))),
            epochs=lambda s: AVERAGED.checkpoints * solve.epochs(s),
            most=3,
            note="four checkpoints of each run",
        )
    )
    return [*dense, *(replace(method, further=(), most=MOST.get(method.name, method.most)) for method in known)]


def card_of(case: Case) -> dict[str, Any]:
    """What the card says beside what the bank knows."""
    command = f"python benchmarks/leaderboard_cases.py --data {case.name} --folder STATE"
    first = command if case.name == "digits" else command.replace("leaderboard_cases", "quality")
    about = {"title": case.title, "about": case.about, "command": f"{first}\n{command} --publish"}
    return {**about, "seeds": SEEDS, **DATA[case.name]}


def given_of(measured: Measured, method: Method) -> list[Given]:
    """A method's scores at each number of runs that is there, of a variant at the most; those of the most are kept."""
    counts, name = finished(measured, method), LABELS.get(method.name, method.name)
    if not counts:
        return []
    sizes, training, cost = measured.sizes(), measured.training(), measured.cost(method)
    library = name.partition(":")[0] if method.kind == "peer" else ""
    variant = "chains=" in name or name in [how.label for how in VARIANTS]
    made = []
    for count in counts[-1:] if variant else counts:
        scores, values = measured.summed(method, count)
        runs, seconds = count if method.trains else 0, cost["seconds"]
        if method.trains and seconds is not None:
            seconds = runs * (training + seconds)
        spent = {"epochs": runs * (sizes.epochs + method.epochs(sizes)), "seconds": seconds}
        made.append(
            Given(
                replace(scores, values=np.asarray(values, np.float32)),
                name,
                runs or None,
                {**spent, "memory": cost["peak_memory"]},
                method.note,
                f"{library} {metadata.version(library)}" if library else "",
                method.kind in KEPT and not variant and count == max(counts),
            )
        )
    return made


def main() -> None:
    """Compute, or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(DATA), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="state: runs, bank and scores")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("COMOVE_DATA", "../shared/data")))
    parser.add_argument("--publish", action="store_true", help="write what is there to benchmarks/banks/, and the page")
    parser.add_argument("--whole-queries", type=int, default=WHOLE_QUERIES, help="queries that all scores are kept of")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = case_of(given.data, given.folder, given.data_dir)
    measured, methods = Measured(case), methods_for(case)
    if given.publish:
        made = [one for method in methods for one in given_of(measured, method)]
        publish(case.bank(), BANKS / case.name, card_of(case), made, given.whole_queries)
        write_page(boards(BANKS, RESULTS))
        return
    measured.training()
    case.bank()
    compute(measured, methods, None)


if __name__ == "__main__":
    main()
