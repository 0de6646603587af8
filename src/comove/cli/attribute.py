"""``comove attribute``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from comove.cli.app import command, draw, print_ranking, say
from comove.cli.options import Runs, open_banks, open_runs
from comove.cli.own import OwnOptions
from comove.display import counted
from comove.errors import InputError

__all__ = ["attribute"]


@command
def attribute(
    runs: Runs,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for METHOD.safetensors, METHOD-top.csv and METHOD-influence.png; other methods' stay."
        ),
    ],
    own: OwnOptions,
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

    Example: comove attribute mine:run --method tracin --out scores/
    """
    from comove.attribution import CLD, attributors
    from comove.attribution.queries import choose_queries
    from comove.data import positions_of
    from comove.discovery import parse_method
    from comove.evaluation.lds_benchmark.benchmark import file_name
    from comove.jobs import as_executor
    from comove.store import new_folder
    from comove.training.sources import as_bank, as_sources

    chosen = parse_method(method, attributors(), "attribution method")
    if blocks is not None:
        as_executor(blocks)  # refuses an unknown one before anything is written
        if not isinstance(chosen, CLD):
            raise InputError(f"Only cld computes scores block by block; leave out --blocks for {chosen.name}.")
    banked = "bank" in chosen.requires
    sources = open_banks(runs, method) if banked else open_runs(runs, own)
    first = as_bank(sources, method) if banked else as_sources(sources, frozenset(), method)[0].trace
    wanted = list(dict.fromkeys(query_id)) if query_id else choose_queries(first, queries)
    positions_of(wanted, first.query_ids, "query ids")  # refuses unknown ones before anything is written
    new_folder(out)
    name = file_name(chosen.label)
    file = out / f"{name}.safetensors"
    if blocks is None:
        scores = chosen.fit(sources).attribute(wanted)
        scores.save(file)
    else:
        scores = _in_blocks(file, chosen, sources, wanted, blocks)
    top = min(top, scores.train_ids.size)
    _write_top(scores, top, out / f"{name}-top.csv")
    print_ranking(scores, int(scores.query_ids[0]), min(top, 5))
    figure = _attribution_figure(sources[0], scores, out / f"{name}-influence.png")
    say("")
    if left_out := scores.info.get("not_scored"):
        say(f"{left_out:,} training examples have no score: {method} knows nothing of them.", "Note:", "yellow")
    say(_told(scores))
    written = [file.name, f"{name}-top.csv (of each query the {top} that help and hurt most)"]
    say(f"Written to {out}/: {', '.join([*written, *([figure.name] if figure else [])])}")


def _told(scores: Any) -> str:
    """What the scores are, in a line; how they were made stands in their file."""
    size = f"{counted(scores.train_ids.size, 'training example')} x {counted(scores.query_ids.size, 'query')}"
    runs = scores.info.get("runs", 1)
    return f"{scores.method}: {size}{f', the mean of {runs} runs' if runs > 1 else ''}; positive = helps."


def _in_blocks(file: Path, method: Any, sources: Any, queries: list[int], executor: str) -> Any:
    from comove.attribution.score_blocks import write_scores_in_blocks
    from comove.jobs import as_executor

    return write_scores_in_blocks(file, method, sources, queries, executor=as_executor(executor), progress=True)


def _write_top(scores: Any, k: int, path: Path) -> None:
    import pandas as pd

    from comove.store import write_bytes

    parts = []
    for query in scores.query_ids.tolist():
        for side, ranking in (("helps", scores.top(k, query=query)), ("hurts", scores.bottom(k, query=query))):
            part = ranking.to_pandas()
            part.insert(0, "rank", range(1, len(part) + 1))
            part.insert(0, "side", side)
            part.insert(0, "query_id", query)
            parts.append(part)
    table = pd.concat(parts).rename(columns={"id": "train_id"})
    write_bytes(path, table.to_csv(index=False).encode())


def _attribution_figure(source: object, scores: Any, path: Path) -> Path | None:
    from comove.training import Run

    if not isinstance(source, Run):
        return draw(None, path)
    return draw(lambda: scores.plot(scores.query_ids[:8].tolist(), splits=source.data()), path)
