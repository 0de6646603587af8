"""What a command prints: tables and facts for people, or with ``--json`` one document, or with ``--out -`` one table.

Results go to standard output; notes, warnings, errors and progress to standard error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from comove.cli.groups import EVERY, WHERE
from comove.errors import ComoveError, InputError
from comove.terminal import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "STDOUT",
    "Device",
    "MachineOptions",
    "PrintingOptions",
    "Quiet",
    "computing",
    "draw",
    "facts",
    "fits",
    "note",
    "one_line",
    "print_ranking",
    "printing",
    "result",
    "say",
    "show",
    "table",
    "verdict",
    "write_table_out",
    "written",
]

STDOUT = Path("-")
"""What ``--out`` is for standard output."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by the libraries that split sums over threads, when they are imported."""
out_console = console()
err_console = console(stderr=True)

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print no progress and no remarks; results, notes, warnings and errors stay.",
        rich_help_panel=EVERY,
    ),
]


Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.", rich_help_panel=WHERE)]


@dataclass(frozen=True)
class PrintingOptions:
    """Options of every command."""

    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the result as JSON, and nothing else, on standard output.", rich_help_panel=EVERY
        ),
    ] = False
    quiet: Quiet = False


@dataclass(frozen=True)
class MachineOptions:
    """Options of every command that computes."""

    device: Device = "auto"
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads of this process.", show_default="PyTorch's choice", rich_help_panel=WHERE
        ),
    ] = None


@dataclass
class _Output:
    """How the command under way prints, and what it has to say as JSON."""

    json: bool = False
    quiet: bool = False
    csv: bool = False
    document: dict[str, Any] = field(default_factory=dict)


_output: ContextVar[_Output | None] = ContextVar("_output", default=None)


def _now() -> _Output:
    return _output.get() or _Output()


@contextmanager
def printing(command: str, options: PrintingOptions, *, csv: bool) -> Iterator[None]:
    """Print within the block as the options say; at its end the JSON document, if it was asked for.

    Args:
        command: its name.
        options: of the command.
        csv: whether standard output is for a table that :func:`write_table_out` writes.

    Raises:
        InputError: JSON and a table are asked for at once.
    """
    if csv and options.json:
        raise InputError("--json and --out - both write to standard output: give --out a file or folder.")
    output = _Output(options.json, options.quiet, csv, {"command": command})
    token = _output.set(output)
    try:
        yield
    finally:
        _output.reset(token)
    if output.json:
        _write(json.dumps(output.document, indent=2, allow_nan=False, default=str) + "\n")


@contextmanager
def computing(options: MachineOptions) -> Iterator[None]:
    """Compute within the block on the device and threads that the options say.

    Raises:
        InputError: an unknown device, or CUDA where there is none.
    """
    with ExitStack() as stack:
        if options.threads is not None:
            stack.enter_context(_threads(options.threads))
        if options.device != "auto":
            from comove.training.loop import computing_on

            stack.enter_context(computing_on(options.device))
        yield


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(number)))
    from comove.jobs.base import torch_threads  # after the environment is set, which torch reads

    try:
        with torch_threads(number):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _write(text: str) -> None:
    """Write text to standard output as it is."""
    try:
        out_console.file.write(text)
        out_console.file.flush()
    except BrokenPipeError:
        out_console.on_broken_pipe()


# --- results: on standard output ---------------------------------------------------------------------------------


def result(name: str, values: object) -> None:
    """Add an entry to the JSON document; to the list of this name where there is one. Nothing is printed otherwise.

    Args:
        name: of the entry.
        values: a data frame (its rows), or what JSON can hold; NaN and infinities become null, the rest text.
    """
    if not _now().json:
        return
    from comove.store.results import as_plain

    document, found = _now().document, as_plain(values.to_dict("records") if hasattr(values, "to_dict") else values)
    if isinstance(found, list):
        found = [*document.get(name, []), *found]
    document[name] = found


def write_table_out(csv: str) -> None:
    """Write the table of ``--out -`` to standard output."""
    _write(csv)


def _shown() -> bool:
    """Whether tables are printed for people."""
    return not (_now().json or _now().csv)


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    plain: int = 1,
    *,
    left: Sequence[str] = (),
    name: str = "",
    values: object = None,
) -> None:
    """Print a table; all but the first ``plain`` columns are right-aligned. In a pipe no cell is folded.

    Args:
        title: a line above it.
        columns: their names.
        rows: cells, as they are printed.
        plain: how many columns are left-aligned.
        left: names of further left-aligned columns.
        name: of the entry in the JSON document; ``""`` where another entry says the same.
        values: the entry, see :func:`result`; by default the rows, with numbers where a cell is one.
    """
    if _now().json and name:
        cells = [dict(zip(columns, map(_number, row), strict=True)) for row in rows]
        result(name, cells if values is None else values)
    if not _shown():
        return
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number < plain or column in left else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    out_console.print(Text(title), soft_wrap=True)
    (out_console if out_console.is_terminal else console(width=1000)).print(table)


def _number(cell: str) -> object:
    """A cell as the number that it is; else as it is."""
    text = cell.strip().rstrip("*").replace(",", "")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return cell.strip()


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether a table can be printed without folding a cell; in a pipe it always can."""
    if not out_console.is_terminal or not _shown():
        return True
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(widths) + 2 * len(widths) <= out_console.width


def facts(title: str, facts: Mapping[str, object], *, name: str, values: object = None) -> None:
    """Print names and values, a line each, unfolded: a path or a name can be copied whole.

    Args:
        title: a line above them.
        facts: values by name, as they are printed.
        name: of the entry in the JSON document.
        values: the entry, see :func:`result`; by default the facts.
    """
    if _now().json:
        result(name, facts if values is None else values)
    width = max(map(len, facts))
    show("\n".join([title, *(f"{name:<{width}}  {value}" for name, value in facts.items())]))


def show(text: str) -> None:
    """Print ``text`` as it is, unfolded and free of markup; not where standard output is for a document."""
    if _shown():
        out_console.print(Text(text), soft_wrap=True)


def verdict(sentences: Sequence[str]) -> None:
    """Print what to conclude from a result, a sentence a line; ``verdict`` in the JSON document."""
    result("verdict", list(sentences))
    show("\n" + "\n".join(sentences))


def print_ranking(
    scores: Any, query: int, k: int, name: str = "", named: Mapping[str, Mapping[int, str]] | None = None
) -> None:
    """Print the training examples that help and hurt a query most.

    Args:
        scores: of one method.
        query: its id.
        k: how many at either end.
        name: what the query is called; by default its id, with its file or text where that is known.
        named: files and texts by id, where they are known (:mod:`comove.cli.named`).
    """
    from comove.cli.named import called, plain_cells
    from comove.display import plain_score

    told = named or {}
    name = name or called(told, query)
    for title, ranking in (("help", scores.top(k, query=query)), ("hurt", scores.bottom(k, query=query))):
        rows = [
            [str(id_), label, plain_score(score), *plain_cells(told, id_)]
            for (id_, score), label in zip(ranking, ranking.class_names(), strict=True)
        ]
        heading = f"\nTraining examples that {title} {name} most"
        table(heading, ["id", "class", scores.method, *told], rows, plain=2, left=tuple(told))


# --- remarks: on standard error ----------------------------------------------------------------------------------


def say(text: str, head: str = "", style: str = "") -> None:
    """Print ``text`` on the error stream as it is, unfolded and free of markup, after a coloured ``head``.

    With ``--quiet`` only what has a head (``Warning:``, ``Error:``, ``Note:``) is printed.
    """
    if head or not _now().quiet:
        err_console.print(Text.assemble((head, style), " " if head else "", text), soft_wrap=True)


def note(text: str) -> None:
    """Print a note."""
    say(text, "Note:", "yellow")


def written(out: Path, *files: str, about: str = "") -> None:
    """Say what was written where.

    Args:
        out: the folder, or the file where no ``files`` are named.
        files: their names in the folder; what follows a blank is said, and no part of the name.
        about: said at the end, as it is.
    """
    result("written", [str(out / file.partition(" ")[0]) for file in files] or [str(out)])
    say(f"Written to {out}{'/: ' if files else ''}{', '.join(files)}{about}")


def one_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    if isinstance(error, OSError) and not isinstance(error, ComoveError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(line.strip() for line in str(error).splitlines())


def draw(make: Callable[[], Figure] | None, path: Path) -> Path | None:
    """Save a figure, or say why it cannot be drawn; then no picture of an earlier call stays in its place.

    Args:
        make: draws it; ``None`` where there is nothing to draw.
        path: of the picture.
    """
    from comove.plots import save_figure

    try:
        if make is not None:
            return save_figure(make(), path)
    except InputError as error:
        say(one_line(error), "No figure:", "yellow")
    path.unlink(missing_ok=True)
    return None
