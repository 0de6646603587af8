"""Every figure that the paper's Appendix E prints for its example, beside what its own formulas give.

python benchmarks/paper/appendix_e.py [--all]: those that do not follow from their formulas; with --all every figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from comove.evaluation.costs.formulas import COST_METHODS, PAPER, RESNET18_MACS, RESNET50_MACS, Scenario, cost

RESNET18_PARAMETERS = 11_689_512


@dataclass(frozen=True)
class Printed:
    """A figure of the paper.

    Attributes:
        where: the method, and what the figure is of.
        printed: as in the paper, in ``unit``.
        recomputed: from the formula, in ``unit``, unrounded.
        unit: PFLOP (1e15), GB (1e9 bytes), B, or a plain number.
        why: where the two differ, what explains it.
    """

    where: str
    printed: str
    recomputed: float
    unit: str
    why: str = ""

    @property
    def as_printed(self) -> str:
        """The recomputed value, rounded to as many digits as the printed one."""
        return f"{self.recomputed:,.{len(self.printed.partition('.')[2])}f}"

    @property
    def agrees(self) -> bool:
        """Whether that is the printed one."""
        return self.as_printed == self.printed


WITH_WEIGHTS = "the formula plus 4p bytes (.047 GB, the proxy's weights), a term that the formula lacks"
ROUNDED = "a sum of addends that were rounded first"


def _totals() -> list[Printed]:
    printed = {
        "herding": "905.031",
        "forgetting": "560.122",
        "aum": "902.724",
        "cal": "344.634",
        "el2n": "3,360.725",
        "grand": "6,472.507",
        "moderate": "905.031",
        "d2": "905.031",
        "craig": "902.724",
        "glister": "60,297.481",
        "graphcut": "905.031",
        "boundaryset_ccs": "1,248.648",
        "slocurv": "978.827",
        "tdds": "1,525.387",
        "dyn_unc": "902.724",
        "dual": "625.985",
        "cld": "904.821",
    }
    return [
        Printed(f"{method}, compute", text, cost(method).total_flops / 1e15, "PFLOP", ROUNDED)
        for method, text in printed.items()
    ]


def _terms() -> list[Printed]:
    printed = (
        ("3 N Tp f, train the proxy", "622.663", "herding", "train the proxy"),
        ("N f, features", "2.306", "herding", "features"),
        ("3 k T fL, train on the coreset", "280.061", "herding", "train on the coreset"),
        ("forgetting, 3 N T_early fL", "311.178", "forgetting", "watch the large model"),
        ("forgetting, EL2N, GraNd, 3 k T_late fL", "248.943", "forgetting", "train on the coreset"),
        ("cal, 3 k Tp f", "62.267", "cal", "train the proxy on k"),
        ("EL2N, GraNd, 3 N T_early R fL", "3,111.782", "el2n", "watch the large model"),
        ("glister, selections", "60,017.420", "glister", "select again and again"),
        ("boundaryset_ccs, 3 N K f", "345.924", "boundaryset_ccs", "adversarial steps"),
        ("slocurv, 3 N (R + 1) f", "76.103", "slocurv", "curvature"),
        ("dual, 3 N T_early f", "345.924", "dual", "train the proxy early"),
        ("cld, Q Tp f", "2.097", "cld", "losses of the queries"),
    )
    why = "248.943554 was cut, not rounded"
    return [
        Printed(where, text, cost(method).flops[term] / 1e15, "PFLOP", why) for where, text, method, term in printed
    ]


def _bytes() -> list[Printed]:
    gigabytes = {
        "herding": "763.692",
        "cal": "763.739",
        "moderate": "763.739",
        "d2": "763.692",
        "craig": "7.671",
        "forgetting": "0.005",
        "aum": "0.005",
        "el2n": "0.005",
        "grand": "0.005",
        "boundaryset_ccs": "0.005",
        "slocurv": "0.011",
        "tdds": "0.051",
        "dyn_unc": "0.051",
        "dual": "0.051",
        "cld": "0.461",
    }
    exact = {
        "forgetting": "5,073,420",
        "glister": "51,248",
        "slocurv": "11,094,540",
        "tdds": "50,734,200",
        "cld": "461,220,120",
    }
    found = [
        Printed(f"{method}, storage", text, cost(method).total_bytes / 1e9, "GB", WITH_WEIGHTS)
        for method, text in gigabytes.items()
    ]
    found += [Printed(f"{method}, storage", text, cost(method).total_bytes, "B") for method, text in exact.items()]
    kernel = cost("graphcut").total_bytes
    half = (kernel - 4 * PAPER.N) / 2  # N (N - 1) / 2 pairs
    found.append(Printed("graphcut, storage, full kernel", "6,434.944", kernel / 1e9, "GB", WITH_WEIGHTS))
    found.append(Printed("graphcut, storage, half the kernel", "3,217.493", half / 1e9, "GB", WITH_WEIGHTS))
    return found


def printed_figures() -> list[Printed]:
    """Every figure of the example, and the constants it starts from, recomputed."""
    constants = [
        Printed("p, parameters of ResNet-18", "11,689,128", RESNET18_PARAMETERS, "", "torchvision's has 11,689,512"),
        Printed("p_large, parameters of ResNet-50", "25,557,032", 25_557_032, ""),
    ]
    return [*constants, *_terms(), *_totals(), *_bytes()]


def unreproduced() -> list[Printed]:
    """The figures that do not follow from their own formulas, to the printed digit."""
    return [figure for figure in printed_figures() if not figure.agrees]


def negligible(method: str, s: Scenario = PAPER) -> dict[str, float]:
    """Multiply-adds by term that the paper calls negligible, so that one can see whether they are."""
    greedy = (s.N * s.k + s.N * math.log(1 / s.epsilon)) * (s.F + s.C)
    terms: dict[str, dict[str, float]] = {
        "herding": {"herding updates N d k": s.N * s.d * s.k},
        "cal": {"nearest neighbours N k d": s.N * s.k * s.d},
        "moderate": {"distances N d": s.N * s.d, "medians N log N": s.N * math.log2(s.N)},
        "d2": {"exact graph N^2 d": s.N**2 * s.d, "sampling k": s.k * s.neighbours},
        "craig": {"stochastic greedy A (N k + N ln 1/eps) (F + C)": s.Tp / s.gamma * greedy},
        "graphcut": {"greedy N^2 k": s.N**2 * s.k, "kernel N^2 d": s.N**2 * s.d},
        "cld": {"correlations N T": s.N * s.Tp},
    }
    return terms.get(method, {})


COMPARED = ("herding", "cld", "dual")


def notes() -> list[str]:
    """What follows arithmetically, but from inputs that do not fit together."""
    small, large = PAPER.f / RESNET18_MACS, PAPER.fL / RESNET50_MACS
    herding, cld, dual = (f"{cost(name, PAPER.in_one_unit()).total_flops / 1e15:,.3f}" for name in COMPARED)
    updates, greedy, kernel = (
        f"{value / 1e15:.1f}e15" for name in ("herding", "graphcut") for value in negligible(name).values()
    )
    clean = cost("cld", clean_pass=True)
    units = (
        f"Two units are mixed: f is {small:.3f} times ResNet-18's multiply-accumulates, fL {large:.3f} times "
        f"ResNet-50's. In one unit (2 FLOPs each) herding costs {herding}, CLD {cld} and DUAL {dual} PFLOP."
    )
    width = (
        "d is the input's size (224 x 224 x 3), though called the features'; with the 512 that the same network gives "
        f"CRAIG, herding stores {cost('herding', d=512).total_bytes / 1e9:.3f} GB."
    )
    left_out = (
        f"With that d the terms called negligible are not: herding's updates are {updates} multiply-adds, graph cut's "
        f"{greedy} and its kernel {kernel}."
    )
    unlike = (
        "Forgetting, EL2N and GraNd watch the large model and then train it for 80 epochs, the others a proxy and 90: "
        "not like for like."
    )
    passes = (
        "Algorithm 1 needs T + 1 rows, and the authors' code runs a clean pass over the data each epoch: CLD then "
        f"costs {clean.total_flops / 1e15:,.3f} PFLOP and {clean.total_bytes / 1e6:,.1f} MB."
    )
    return [units, width, left_out, unlike, passes]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="The figures printed in Appendix E, recomputed.")
    parser.add_argument("--all", action="store_true", help="also the figures that follow from their formulas")
    figures, wrong = printed_figures(), unreproduced()
    print(f"{len(wrong)} of {len(figures)} printed figures do not follow from their formulas")
    for figure in figures if parser.parse_args(arguments).all else wrong:
        why = "" if figure.agrees else figure.why
        print(
            f"{figure.where:42} {figure.printed:>13} {figure.unit:5} recomputed {figure.as_printed:>13}  {why}".rstrip()
        )
    print("called negligible, in 1e15 multiply-adds:")
    for method in COST_METHODS:
        for term, value in negligible(method).items():
            print(f"{method:12} {term:48} {value / 1e15:12,.3g}")
    print(*(f"- {note}" for note in notes()), sep="\n")


if __name__ == "__main__":
    main()
