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
    blocks: Annotated[
        str | None,
        typer.Option(help="For scores larger than memory (cld): compute them block by block, serial, local or ray."),
    ] = None,
) -> None:
    """Score every training example for queries: which help the prediction, which hurt it (positive = helps).

    With --blocks the same command goes on after an interruption.

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
    file = out / f"{file_name(chosen.label)}.safetensors"
    if blocks is None:
        scores = chosen.fit(sources).attribute(wanted)
        scores.save(file)
    else:
        scores = _in_blocks(file, chosen, sources, wanted, blocks)
    top = min(top, scores.train_ids.size)
    _top_csv(scores, top, out / "top.csv")
    print_ranking(scores, int(scores.query_ids[0]), min(top, 5))
    figure = _attribution_figure(sources[0], scores, out)
    say(f"\n{scores}\nWritten to {out}/: scores, top.csv" + (f", {figure.name}" if figure else ""))


def _in_blocks(file: Path, method: Any, sources: Any, queries: list[int], executor: str) -> Any:
    from comove.attribution import CLD
    from comove.attribution.blocks import write_scores_in_blocks
    from comove.execution import as_executor

    if not isinstance(method, CLD):
        raise InputError(f"Only cld computes scores block by block; leave out --blocks for {method.name}.")
    return write_scores_in_blocks(file, method, sources, queries, executor=as_executor(executor), progress=True)


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
