"""``comove cost``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comove.cli.app import command, facts, note, table
from comove.cli.options import open_runs
from comove.cli.own import OwnOptions
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.evaluation.costs.formulas import Scenario

__all__ = ["cost"]

RUNS_OR_PAPER = "those of RUN, else the paper's"
UNITS = {"GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15}


@dataclass(frozen=True)
class SizeOptions:
    """Sizes that the formulas go by."""

    n: Annotated[int | None, typer.Option("--n", min=1, help="N, training examples.", show_default=RUNS_OR_PAPER)] = (
        None
    )
    q: Annotated[int | None, typer.Option("--q", min=1, help="Q, held-out examples.", show_default=RUNS_OR_PAPER)] = (
        None
    )
    k: Annotated[int | None, typer.Option("--k", min=1, help="k, size of the coreset.", show_default="10 % of N")] = (
        None
    )
    epochs: Annotated[
        int | None, typer.Option(min=1, help="T, of the model trained on the coreset.", show_default=RUNS_OR_PAPER)
    ] = None
    proxy_epochs: Annotated[int | None, typer.Option(min=1, help="Tp, of the proxy.", show_default=RUNS_OR_PAPER)] = (
        None
    )
    flops: Annotated[
        float | None,
        typer.Option(help="f, FLOPs of a forward pass of the proxy.", show_default=RUNS_OR_PAPER),
    ] = None
    large_flops: Annotated[
        float | None,
        typer.Option(help="fL, of the model trained on the coreset.", show_default=RUNS_OR_PAPER),
    ] = None
    features: Annotated[
        int | None, typer.Option(min=1, help="d, numbers of features an example.", show_default=RUNS_OR_PAPER)
    ] = None

    @property
    def changes(self) -> dict[str, float]:
        """The sizes that were given, by the paper's symbols."""
        given = {
            "N": self.n,
            "Q": self.q,
            "k": self.k if self.k or not self.n else max(1, self.n // 10),
            "T": self.epochs,
            "Tp": self.proxy_epochs,
            "f": self.flops,
            "fL": self.large_flops,
            "d": self.features,
        }
        return {name: value for name, value in given.items() if value is not None}


@command
def cost(
    own: OwnOptions,
    sizes: SizeOptions,
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run of your own.", show_default="the paper's example"),
    ] = None,
    one_unit: Annotated[bool, typer.Option("--one-unit", help="ResNet-18 and -50 both at 2 FLOPs a MAC.")] = False,
    printed: Annotated[bool, typer.Option("--printed", help="Now python benchmarks/paper/appendix_e.py.")] = False,
) -> None:
    """What a run of yours cost, and what each coreset method would cost on it (the paper's Appendix E).

    The formulas take the run's own sizes: its model is the proxy and what is trained on the coreset, 10 % of the data
    is kept; the options change these. Without a run: the paper's example, 10 % of ImageNet-1k with ResNet-18 as the
    proxy of ResNet-50.

    Example: comove cost runs/a

    Example: comove cost runs/a --k 500 --large-flops 8e9

    Example: comove cost --n 50000 --q 500 --k 5000 --epochs 30 --proxy-epochs 30 --features 512
    """
    if printed:
        raise InputError("--printed is now a script of the repository: python benchmarks/paper/appendix_e.py --all")
    if run is None:
        _of_the_paper(sizes, one_unit)
    elif one_unit:
        raise InputError("--one-unit is about the paper's two models; a run's FLOPs are counted in one unit anyway.")
    else:
        _of_a_run(run, own, sizes)


def _of_the_paper(sizes: SizeOptions, one_unit: bool) -> None:
    from comove.evaluation.costs.formulas import PAPER

    title = "The paper's example (Appendix E)" + (", in one unit" if one_unit else "")
    title += ", with other sizes" if sizes.changes else ""
    _print_formulas(title, PAPER.in_one_unit() if one_unit else PAPER, sizes)
    note("comove cost RUN says what a run of yours cost, and fills these formulas with its sizes.")


def _of_a_run(path: Path, own: OwnOptions, sizes: SizeOptions) -> None:
    from comove.evaluation.costs.measured import measured_cost, scenario_of
    from comove.training import Run

    (found,) = open_runs([path], own)
    if not isinstance(found, Run):
        raise InputError(f"{path} is a bare trace; only runs made by comove train know what they cost.")
    measured = measured_cost(found)
    facts(f"{found}", measured.facts(), name="cost")
    if found.trace.rows[-1].epoch < 2:
        note("The formulas of Appendix E are for runs of two epochs or more.")
        return
    scenario = scenario_of(found, measured)
    k = sizes.changes.get("k", scenario.k)
    _print_formulas(f"\nTo select {k:,} examples and train on them, by Appendix E", scenario, sizes)


def _print_formulas(title: str, scenario: Scenario, sizes: SizeOptions) -> None:
    """A row a method: its terms, their sum, the sum over that of training on everything, and what it stores."""
    from comove.evaluation.costs.formulas import COST_METHODS
    from comove.evaluation.costs.formulas import cost as cost_of

    costs = [cost_of(method, scenario, **sizes.changes) for method in COST_METHODS]
    name = next((name for name, size in reversed(UNITS.items()) if size <= costs[0].total_flops), "GFLOP")
    unit, (stored, size) = UNITS[name], ("GB", 1e9) if name == "PFLOP" else ("MB", 1e6)
    rows = [
        [
            one.method,
            " + ".join(f"{value / unit:,.3f} {term}" for term, value in one.flops.items()),
            f"{one.total_flops / unit:,.3f}",
            f"{one.total_flops / costs[0].total_flops:.2f}",
            f"{one.total_bytes / size:,.3f}",
        ]
        for one in costs
    ]
    head = ["method", f"terms in {name}", name, "of training on all", f"{stored} stored"]
    table(title, head, rows, plain=2, name="costs")
