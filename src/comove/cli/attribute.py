"""``comove attribute``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, draw, note, one_table, print_ranking, result, say, table, write_table_out, written
from comove.cli.named import Named, called, named_examples, told_columns
from comove.cli.options import Runs, open_banks, open_runs, parse_methods
from comove.cli.output import STDOUT
from comove.cli.own import OwnOptions
from comove.display import counted, plain_score
from comove.errors import InputError, some

if TYPE_CHECKING:
    import pandas as pd

    from comove.attribution import Attributor, Scores
    from comove.attribution.pictures import Pictures

__all__ = ["attribute"]

PRINTED = 5
"""Training examples printed at either end."""
DRAWN = 8
"""Queries in a figure."""


@dataclass(frozen=True)
class QueryOptions:
    """What is asked about: recorded queries, or pictures."""

    queries: Annotated[int, typer.Option(min=1, help="Number of recorded queries, taken evenly from the classes.")] = 20
    query_id: Annotated[
        list[int] | None,
        typer.Option(help="Ids of the queries.", show_default="chosen by --queries"),
    ] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="Pictures of your own (files or folders), in place of recorded queries.",
            show_default="none",
        ),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="The class to explain: one for all pictures, or one each.",
            show_default="the class that the runs predict",
        ),
    ] = None

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: pictures and recorded queries at once; a label without a picture.
        """
        if self.image and self.query_id:
            raise InputError("--image asks about pictures, --query-id about recorded queries: give one of them.")
        if self.label and not self.image:
            raise InputError("--label is the class of a picture: give --image; recorded queries have their labels.")


@command
@one_table
def attribute(
    runs: Runs,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for METHOD.safetensors, METHOD-top.csv and METHOD-influence.png; or - to write "
            "only the table, to standard output."
        ),
    ],
    own: OwnOptions,
    asked: QueryOptions,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            help="Attribution methods, such as cld trak; options as cld:correlation=spearman.",
            show_default="cld",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Training examples listed for each query, at either end.")] = 10,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Executor for scores larger than memory, computed block by block (cld): serial, local or ray.",
            show_default="all at once",
        ),
    ] = None,
) -> None:
    """Score how much each training example helps (positive) or hurts (negative) the predictions on queries.

    Queries are recorded held-out examples, or pictures of your own (--image). With --blocks, the same command goes on
    after an interruption.

    Example: comove attribute runs/a runs/b --methods cld trak --queries 20 --top 10 --out scores/

    Example: comove attribute runs/a --image cat.png --label cat --out cat/

    Example: comove attribute mine:run --method tracin --out scores/
    """
    asked.check()
    chosen = parse_methods(method, ["cld"], controls=False)
    if method == ["all"]:
        chosen = [one for one in chosen if "bank" not in one.requires]
    if blocks is not None:
        _check_blocks(blocks, chosen, asked, out)
    sources, wanted = _asked(runs, own, asked, chosen)
    if out != STDOUT:
        from comove.store import new_folder

        new_folder(out)
    named = {} if "bank" in chosen[0].requires else named_examples(sources)
    found, tables, files = [], [], []
    for one in chosen:
        found.append(_scores(one, sources, wanted, out, blocks))
        tables.append(_table(found[-1], top, wanted, named))
        if out != STDOUT:
            files += _write(found[-1], tables[-1], None if "text" in named else sources[0], wanted, out)
    _print(found, tables, wanted, min(top, PRINTED), out, named)
    if out != STDOUT:
        written(out, *files)


def _check_blocks(blocks: str, chosen: Sequence[Attributor], asked: QueryOptions, out: Path) -> None:
    """Refuse an unknown executor and what has no blocks, before anything is written."""
    from comove.attribution import CLD
    from comove.jobs import as_executor

    as_executor(blocks)
    for one in chosen:
        if not isinstance(one, CLD):
            raise InputError(f"Only cld computes scores block by block; leave out --blocks for {one.name}.")
    if asked.image or out == STDOUT:
        raise InputError("--blocks writes scores of recorded queries to a folder: leave out --image and --out -.")


def _asked(
    paths: Sequence[Path], own: OwnOptions, asked: QueryOptions, chosen: Sequence[Attributor]
) -> tuple[Any, Pictures | list[int]]:
    """Open runs or a bank, and what is asked about; unknown queries are refused before anything is written."""
    from comove.attribution.pictures import check_answers_pictures, open_pictures
    from comove.attribution.queries import choose_queries
    from comove.data import positions_of
    from comove.training.sources import as_bank, as_sources

    banked = [one for one in chosen if "bank" in one.requires]
    if asked.image:
        check_answers_pictures(banked, ())
    if banked and len(banked) < len(chosen):
        others = next(one for one in chosen if one not in banked)
        raise InputError(f"{banked[0].name} is computed from a bank, {others.name} from runs: give a command to each.")
    sources = open_banks(paths, banked[0].name) if banked else open_runs(paths, own)
    if asked.image:
        check_answers_pictures(chosen, sources)
        return sources, open_pictures(sources, asked.image, asked.label or ())
    first = as_bank(sources, chosen[0].name) if banked else as_sources(sources, frozenset(), chosen[0].name)[0].trace
    wanted = list(dict.fromkeys(asked.query_id)) if asked.query_id else choose_queries(first, asked.queries)
    positions_of(wanted, first.query_ids, "query ids")
    return sources, wanted


def _scores(method: Any, sources: Any, wanted: Pictures | list[int], out: Path, blocks: str | None) -> Scores:
    """Compute the scores of one method, and write them where there is a folder."""
    from comove.attribution.score_blocks import write_scores_in_blocks
    from comove.jobs import as_executor

    file = _file(method.label, out)
    if blocks is not None:
        assert isinstance(wanted, list)
        return write_scores_in_blocks(file, method, sources, wanted, executor=as_executor(blocks), progress=True)
    fitted = method.fit(sources)
    found: Scores
    found = fitted.attribute(wanted) if isinstance(wanted, list) else wanted.noted(fitted.attribute(wanted.examples))
    if out != STDOUT:
        found.save(file)
    return found


def _file(label: str, out: Path) -> Path:
    from comove.evaluation.lds_benchmark.benchmark import file_name

    return out / f"{file_name(label)}.safetensors"


def _table(scores: Scores, k: int, wanted: Pictures | list[int], named: Named) -> pd.DataFrame:
    """A row for each query, side and rank; with files, lines and texts where they are known."""
    table = scores.both_ends(min(k, scores.train_ids.size))
    table = table.assign(**told_columns(named, table["train_id"].tolist()))
    if "file" in named and isinstance(wanted, list):
        table["query_file"] = [named["file"].get(int(query), "") for query in table["query_id"]]
    if not isinstance(wanted, list):
        table.insert(1, "picture", table["query_id"].map(wanted.names))
    return table


def _write(scores: Scores, table: pd.DataFrame, source: Any, wanted: Pictures | list[int], out: Path) -> list[str]:
    """Write the table and the figure of one method; returns the names of its files."""
    from comove.store.results import write_table

    file = _file(scores.method, out)
    write_table(out / f"{file.stem}-top.csv", table)
    figure = _figure(source, scores, wanted, out / f"{file.stem}-influence.png")
    return [file.name, f"{file.stem}-top.csv", *([figure.name] if figure else [])]


def _print(
    found: Sequence[Scores],
    tables: Sequence[pd.DataFrame],
    wanted: Pictures | list[int],
    k: int,
    out: Path,
    named: Named,
) -> None:
    """Print what helps and hurts the first query most, by every method, and what the scores are."""
    import pandas as pd

    whole = pd.concat([one.assign(method=scores.method) for one, scores in zip(tables, found, strict=True)])
    result("top", whole)
    if not isinstance(wanted, list):
        result("pictures", wanted.rows())
    if out == STDOUT:
        write_table_out((whole if len(found) > 1 else tables[0]).to_csv(index=False))
    query = int(found[0].query_ids[0])
    k = min(k, *(scores.train_ids.size for scores in found))
    names = {} if isinstance(wanted, list) else wanted.names
    if len(found) == 1:
        print_ranking(found[0], query, k, names.get(query, ""), named)
    else:
        _side_by_side(found, query, k, names.get(query) or called(named, query), named)
    say("")
    if (others := found[0].query_ids.size - 1) and out != STDOUT:
        more = counted(others, "more query" if isinstance(wanted, list) else "more picture")
        where = some(f"{_file(scores.method, out).stem}-top.csv" for scores in found)
        say(f"{more}, and up to {tables[0]['rank'].max()} training examples at either end, in {where}.")
    if not isinstance(wanted, list):
        for line in wanted.lines():
            say(line)
    for scores in found:
        if left_out := scores.info.get("not_scored"):
            note(f"{left_out:,} training examples have no score by {scores.method}.")
        say(_told(scores))


def _side_by_side(found: Sequence[Scores], query: int, k: int, name: str, named: Named) -> None:
    """A column a method: the file or else id, the class and the score of the examples that help and hurt a query."""
    files = named.get("file", {})
    for title, side in (("help", "top"), ("hurt", "bottom")):
        columns = [getattr(scores, side)(k, query=query) for scores in found]
        cells = [
            [
                f"{_who(files.get(id_, str(id_)), label)} {plain_score(score)}"
                for (id_, score), label in zip(column, column.class_names(), strict=True)
            ]
            for column in columns
        ]
        rows = [[str(rank), *row] for rank, row in enumerate(zip(*cells, strict=True), 1)]
        head = ["", *(one.method for one in found)]
        table(f"\nTraining examples that {title} {name} most", head, rows, plain=len(head))


def _who(file: str, label: str) -> str:
    """A file, and its class where that is not the folder it lies in."""
    return file if file.startswith(f"{label}/") else f"{file} {label}"


def _told(scores: Scores) -> str:
    """Describe the scores in one line; their file records how they were computed."""
    what = "query" if "pictures" not in scores.info else "picture"
    size = f"{counted(scores.train_ids.size, 'training example')} x {counted(scores.query_ids.size, what)}"
    runs = scores.info.get("runs", 1)
    return f"{scores.method}: {size}{f', the mean of {runs} runs' if runs > 1 else ''}; positive = helps."


def _figure(source: object, scores: Scores, wanted: Pictures | list[int], path: Path) -> Path | None:
    from comove.training import Run

    if not isinstance(source, Run):
        return draw(None, path)
    shown = scores.query_ids[:DRAWN].tolist()
    if isinstance(wanted, list):
        return draw(lambda: scores.plot(shown, splits=source.data()), path)
    return draw(lambda: scores.plot(shown, splits=wanted.splits(source), names=wanted.names), path)
