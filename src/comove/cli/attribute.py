"""``comove attribute``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from comove.cli.app import command, one_line, print_ranking, say
from comove.cli.options import Runs, open_banks, open_runs
from comove.errors import InputError

__all__ = ["attribute"]


@command
def attribute(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Folder for scores, top.csv and a figure.")],
    method: Annotated[str, typer.Option(help="A method, with options as cld:correlation=spearman.")] = "cld",
    queries: Annotated[int, typer.Option(min=1, help="How many recorded queries, spread over classes.")] = 20,
    query_id: Annotated[list[int] | None, typer.Option(help="A query's id; may be given several times.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many training examples to list for each query.")] = 10,
) -> None:
    """Score every training example for queries: which help the prediction, which hurt it (positive = helps).

    Example: comove attribute runs/a runs/b --method cld --queries 20 --top 10 --out scores/
    """
    from comove.attribution import attributors
    from comove.demo import choose_queries
    from comove.discovery import parse_method
    from comove.evaluation.lds.benchmark import file_name
    from comove.sources import as_bank, as_sources
    from comove.store import new_folder

    chosen = parse_method(method, attributors(), "attribution method")
    banked = "bank" in chosen.requires
    sources = open_banks(runs, method) if banked else open_runs(runs)
    new_folder(out)
    first = as_bank(sources, method) if banked else as_sources(sources, frozenset(), method)[0].trace
    wanted = query_id or choose_queries(first, queries)
    scores = chosen.fit(sources).attribute(wanted)
    top = min(top, scores.train_ids.size)
    scores.save(out / f"{file_name(scores.method)}.safetensors")
    _top_csv(scores, top, out / "top.csv")
    print_ranking(scores, int(scores.query_ids[0]), min(top, 5))
    figure = _attribution_figure(sources[0], scores, out)
    say(f"\n{scores}\nWritten to {out}/: scores, top.csv" + (f", {figure.name}" if figure else ""))


def _top_csv(scores: Any, k: int, path: Path) -> None:
    import pandas as pd

    parts = []
    for query in scores.query_ids.tolist():
        for side, ranking in (("helps", scores.top(k, query=query)), ("hurts", scores.bottom(k, query=query))):
            part = ranking.to_pandas()
            part.insert(0, "rank", range(1, len(part) + 1))
            part.insert(0, "side", side)
            part.insert(0, "query_id", query)
            parts.append(part)
    pd.concat(parts).rename(columns={"id": "train_id"}).to_csv(path, index=False)


def _attribution_figure(source: object, scores: Any, out: Path) -> Path | None:
    from comove.report import influence_grid, save_figure
    from comove.training import Run

    if not isinstance(source, Run):
        return None
    try:
        splits = source.data()
        return save_figure(influence_grid(scores, splits, scores.query_ids[:8].tolist()), out / "influence.png")
    except InputError as error:
        say(one_line(error), "No figure:", "yellow")
        return None
