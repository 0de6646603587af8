"""``comove cost``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, facts, table
from comove.cli.options import open_runs
from comove.cli.own import OwnOptions
from comove.errors import InputError

__all__ = ["cost"]


@command
def cost(
    own: OwnOptions,
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run of your own, to show what it cost.", show_default="the formulas"),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="N, training examples.", show_default="the paper's")
    ] = None,
    q: Annotated[
        int | None, typer.Option("--q", min=1, help="Q, held-out examples.", show_default="the paper's")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="k, size of the coreset.", show_default="the paper's")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="T, of the large model.", show_default="the paper's")
    ] = None,
    proxy_epochs: Annotated[
        int | None, typer.Option(min=1, help="Tp, of the proxy.", show_default="the paper's")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="f, FLOPs of a forward pass of the proxy.", show_default="the paper's")
    ] = None,
    large_flops: Annotated[
        float | None, typer.Option(help="fL, of the large model.", show_default="the paper's")
    ] = None,
    features: Annotated[
        int | None, typer.Option(min=1, help="d, numbers of features an example.", show_default="the paper's")
    ] = None,
    one_unit: Annotated[bool, typer.Option("--one-unit", help="ResNet-18 and -50 both at 2 FLOPs a MAC.")] = False,
    printed: Annotated[bool, typer.Option("--printed", help="Now python benchmarks/paper/appendix_e.py.")] = False,
) -> None:
    """What each coreset method costs by the formulas of the paper's Appendix E, and what a run of yours really cost.

    Without options: the paper's example. What the paper prints of it, and what of that does not follow from its own
    formulas, python benchmarks/paper/appendix_e.py says, in the repository.

    Example: comove cost --n 50000 --q 500 --k 5000 --epochs 30 --proxy-epochs 30 --features 512

    Example: comove cost runs/a
    """
    if printed:
        raise InputError("--printed is now a script of the repository: python benchmarks/paper/appendix_e.py --all")
    if run is not None:
        _measured(run, own)
        return
    from comove.evaluation.costs.formulas import COST_METHODS, PAPER, Scenario
    from comove.evaluation.costs.formulas import cost as cost_of

    given = {"N": n, "Q": q, "k": k, "T": epochs, "Tp": proxy_epochs, "f": flops, "fL": large_flops, "d": features}
    changes = {name: value for name, value in given.items() if value is not None}
    base = PAPER.in_one_unit() if one_unit else Scenario()
    rows = []
    for method in COST_METHODS:
        found = cost_of(method, base, **changes)
        terms = " + ".join(f"{value / 1e15:,.3f} {name}" for name, value in found.flops.items())
        rows.append([method, terms, f"{found.total_flops / 1e15:,.3f}", f"{found.total_bytes / 1e9:,.3f}"])
    title = "Appendix E" + (", in one unit" if one_unit else "") + (", with other sizes" if changes else "")
    table(title, ["method", "terms in PFLOP", "PFLOP", "GB stored"], rows, plain=2, name="costs")


def _measured(path: Path, own: OwnOptions) -> None:
    from comove.evaluation.costs.measured import measured_cost
    from comove.training import Run

    (found,) = open_runs([path], own)
    if not isinstance(found, Run):
        raise InputError(f"{path} is a bare trace; only runs made by comove train know what they cost.")
    facts(f"{found}", measured_cost(found).facts(), name="cost")
