"""``comove check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, say, table, written
from comove.cli.options import TrainingOptions
from comove.display import plain

__all__ = ["check"]


@command
def check(
    methods: Annotated[list[str], typer.Argument(help="Attribution methods, such as cld or trak:proj_dim=256.")],
    task: TrainingOptions,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs and checks.json.", show_default="a temporary one")
    ] = None,
    queries: Annotated[int, typer.Option(min=2, help="Queries in each check.")] = 15,
) -> None:
    """Test methods where the answer is known: copies of queries, wrong labels, a shortcut, shuffled labels.

    Three models are trained. Do not use a method for a question whose check it fails; for other questions it may
    still be right.

    Example: comove check cld trak --out checks/
    """
    from comove.attribution import attributors
    from comove.discovery import parse_method
    from comove.evaluation.sanity import check_methods
    from comove.jobs import Compute

    chosen = [parse_method(method, attributors(), "attribution method") for method in methods]
    splits = task.splits()
    found = check_methods(
        chosen,
        splits,
        task.training_for(splits),
        out=out,
        queries=queries,
        compute=Compute(device=task.device, progress=not task.quiet),
    )
    rows = [
        [
            c.method,
            c.name,
            f"{plain(v.value, 2)} [{plain(v.low, 2)}, {plain(v.high, 2)}]",
            plain(c.expected, 2),
            c.verdict,
        ]
        for c, v in ((one, one.value) for one in found.checks)
    ]
    table(
        "Checks, with 95% intervals over queries",
        ["method", "check", "found", "limit", "verdict"],
        rows,
        plain=2,
        name="checks",
        values=found.rows(),
    )
    for name, question in dict.fromkeys((c.name, c.question) for c in found.checks):
        say(f"{name}: {question}")
    if out is not None:
        written(out, "checks.json", about=", the runs")
