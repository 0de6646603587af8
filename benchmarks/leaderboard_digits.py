"""The digits bank of the leaderboard, and the scores of the methods held to it.

    python benchmarks/leaderboard_digits.py --folder STATE            # runs, bank, scores: minutes of one thread
    python benchmarks/leaderboard_digits.py --folder STATE --publish  # into benchmarks/banks/digits, and the page

The data, the network and the runs are those of ``benchmarks/quality.py``; the subsets are others (plan seed 41), by
which no option of any method was chosen.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leaderboard_boards import BANKS, LABELS, RESULTS, boards
from leaderboard_page import write_page
from leaderboard_publish import Given, publish
from quality import Measured, compute, finished
from quality_cases import CASES, Case
from quality_methods import Method, fitted, methods_of

from comove.attribution import CLD
from comove.evaluation import RetrainingBank, subsets

__all__ = ["Fresh", "digits", "methods_for"]

PLAN_SEED = 41
COUNTS = (1, 3, 10)
LEFT_OUT = ("unrolled", "unrolled (Gauss-Newton)", "dattri: Arnoldi")
"""Two that take hours of three passes an epoch and query, and one whose scores are NaN here."""
MOST = {"gauss-newton": 3, "captum: TracInCP": 1}
KEPT = ("losses", "gradients")
"""Kinds of methods whose scores are published beside their ranks, but for ``VARIANTS`` and cheaper settings."""
NOT_CHOSEN = (
    "No option of any method was chosen on these subsets. Those of whitened CLD, Gauss-Newton and Bayesian influence "
    "were chosen on other subsets of the same digits, with the same queries."
)
CARD = {
    "title": "Digits",
    "about": "MLP 64-64-64-10 (8,970 parameters) on 1,400 digits of 8 x 8 pixels, 30 epochs (recipe digits-mlp); the "
    "200 queries are others; each subset is a random half.",
    "source": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998), "
    "the 1,797 test images as scikit-learn has them",
    "licence": "CC BY 4.0",
    "command": "python benchmarks/leaderboard_digits.py --folder STATE\n"
    "python benchmarks/leaderboard_digits.py --folder STATE --publish",
    "seeds": "data and models 0, subsets 41 (random-0.5-41); attribution runs 0 to 9.",
    "notes": [NOT_CHOSEN],
}
VARIANTS = (CLD(), CLD(correlation="spearman"), CLD(correlation="covariance", common_mode="remove"))


class Fresh(Case):
    """Digits, with subsets of their own."""

    def bank(self) -> RetrainingBank:
        """The truth, trained where it is not there yet."""
        plan = subsets.random(0.5, self.subsets, seed=PLAN_SEED)
        made = RetrainingBank.create(self.folder / "bank", self.splits, self.training, subsets=plan, seeds=self.seeds)
        return made.run(executor="serial")


def digits(folder: Path) -> Fresh:
    """The case, kept in a folder."""
    known: Any = CASES["digits"](folder, Path())
    return Fresh(**{**vars(known), "counts": COUNTS})


def methods_for(case: Case) -> list[Method]:
    """The methods of the quality page that take minutes, and the rest of the CLD family."""
    dense = [
        Method(how.label, fitted(lambda case, how=how: how), lambda s: s.rows * s.losses, "as recorded", "losses")
        for how in VARIANTS
    ]
    known = [method for method in methods_of(case) if method.name not in LEFT_OUT]
    return [*dense, *(replace(method, further=(), most=MOST.get(method.name, method.most)) for method in known)]


# --- publishing -----------------------------------------------------------------------------------------------------


def given_of(measured: Measured, method: Method) -> list[Given]:
    """A method's scores at each number of runs that is there, of a variant at the most; those of the most are kept."""
    sizes, training = measured.sizes(), measured.training()
    cost, counts = measured.cost(method), finished(measured, method)
    name = LABELS.get(method.name, method.name)
    library = name.partition(":")[0] if method.kind == "peer" else ""
    variant = "chains=" in name or name in [how.label for how in VARIANTS]
    made = []
    for count in counts[-1:] if variant else counts:
        scores, values = measured.summed(method, count)
        runs = count if method.trains else 0
        seconds = runs * (training + cost["seconds"]) if method.trains else cost["seconds"]
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
    parser.add_argument("--folder", type=Path, required=True, help="state: runs, bank and scores")
    parser.add_argument("--publish", action="store_true", help="write what is there to benchmarks/banks/digits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = digits(given.folder)
    measured, methods = Measured(case), methods_for(case)
    if given.publish:
        publish(case.bank(), BANKS / "digits", CARD, [one for method in methods for one in given_of(measured, method)])
        write_page(boards(BANKS, RESULTS))
        return
    measured.training()
    case.bank()
    compute(measured, methods, None)


if __name__ == "__main__":
    main()
