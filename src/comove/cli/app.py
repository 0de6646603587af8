"""The application: how a command is registered, how its errors are reported, how it prints.

Exit codes: 0 done, 2 the user's input, 1 a fault of ours, 130 interrupted and resumable.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from comove.cli.help import print_group_help, print_help
from comove.cli.output import (
    STDOUT,
    MachineOptions,
    PrintingOptions,
    computing,
    draw,
    facts,
    fits,
    note,
    one_line,
    out_console,
    print_ranking,
    printing,
    result,
    say,
    show,
    table,
    verdict,
    write_table_out,
    written,
)
from comove.errors import ComoveError, InputError

__all__ = [
    "CommandGroup",
    "app",
    "command",
    "command_of",
    "computes_nothing",
    "draw",
    "facts",
    "fits",
    "note",
    "one_line",
    "one_table",
    "print_ranking",
    "result",
    "run",
    "say",
    "show",
    "table",
    "verdict",
    "write_table_out",
    "written",
]


class CommandGroup(TyperGroup):
    """A group of commands with a help page like those of the commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page."""
        print_group_help(self, ctx)


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Which training examples a prediction depends on, and which are worth keeping.\n\n"
        "Start with [bold]comove demo[/bold]. Then [bold]comove train[/bold] makes a run, [bold]comove attribute[/bold]"
        " explains its predictions, [bold]comove coreset[/bold] and [bold]comove clean[/bold] choose examples, and "
        "[bold]comove lds[/bold], [bold]comove brittleness[/bold] and [bold]comove curve[/bold] measure methods by "
        "retraining. [bold]comove COMMAND --help[/bold] explains a command."
    ),
)
Command = TypeVar("Command", bound=Callable[..., None])
_ONE_TABLE: set[str] = set()
_COMPUTES_NOTHING: set[str] = set()
_debugging: ContextVar[bool] = ContextVar("_debugging", default=False)


def run() -> None:
    """Entry point of the ``comove`` command; ``--debug`` may stand anywhere on the line."""
    signal.signal(signal.SIGTERM, _interrupt)  # a batch system's word for Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a name that is not UTF-8, or a stream that is ASCII
    words = sys.argv[1:]
    app([*(["--debug"] if "--debug" in words else []), *(word for word in words if word != "--debug")])


def _interrupt(number: int, frame: object) -> None:
    """End as after Ctrl-C; asked a second time, at once."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


class ListCommand(TyperCommand):
    """A command whose list options take ``--k 10 50``, ``--k 10 --k 50`` and ``--k 10,50`` alike."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page."""
        print_help(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write every list option once a value, as the parser knows it."""
        flags = {flag for entry in self.params if getattr(entry, "multiple", False) for flag in entry.opts}
        has_arguments = any(isinstance(entry, TyperArgument) for entry in self.params)
        hints = inspect.unwrap(self.callback).__annotations__ if self.callback is not None else {}
        files = {flag for entry in self.params if _names_files(hints.get(entry.name)) for flag in entry.opts}
        _refuse_empty_paths(args, files, has_arguments, ctx)
        single = [e for e in self.params if not getattr(e, "multiple", False) and not getattr(e, "is_flag", False)]
        _say_repeats(args, {flag: entry.opts[0] for entry in single for flag in entry.opts})
        rest: list[str] = super().parse_args(ctx, list(_one_value_each(args, flags, has_arguments, files)))
        return rest


def _say_repeats(words: Sequence[str], single: Mapping[str, str]) -> None:
    """Say where an option of one value is given twice: the last one counts, as for every command of a shell."""
    seen: set[str] = set()
    left = iter(words)
    for word in left:
        if word == "--":
            return
        flag, equals, _ = word.partition("=")
        if flag.startswith("-") and flag in single:
            if single[flag] in seen:
                say(f"{flag} takes one value and is given twice; the last one counts.", "Warning:", "yellow")
            seen.add(single[flag])
            if not equals:
                next(left, None)  # its value, whatever it looks like


def _refuse_empty_paths(words: Sequence[str], files: Collection[str], has_arguments: bool, ctx: Any) -> None:
    """Refuse an empty word for a file or folder, as an unset variable of a shell gives: it would be the current one.

    Raises:
        BadParameter: there is one.
    """
    before = ""
    for word in words:
        flag, equals, value = word.partition("=")
        named = flag if equals and not value else before if not word else ""
        if named in files and (not word or equals):
            raise typer.BadParameter(f"{named} must name a file or a folder, got an empty word.", ctx)
        if not word and has_arguments and not before.startswith("-"):
            raise typer.BadParameter("An argument must not be an empty word.", ctx)
        before = word


def _names_files(hint: object) -> bool:
    """Whether an option's values are files or folders."""
    return hint is Path or any(map(_names_files, get_args(hint)))


def _one_value_each(
    words: Sequence[str], flags: set[str], has_arguments: bool, files: Collection[str] = ()
) -> Iterator[str]:
    current, first = None, False
    for word in words:
        flag, equals, value = word.partition("=")
        is_path = has_arguments and not first and current not in files and ("/" in word or _exists(word))
        if word.startswith("--") and flag in flags:
            current, first = flag, True
            if equals:
                yield from _pairs(flag, value)
                first = False
        elif current is None or _is_option(word) or is_path:
            current = None
            yield word
        else:
            yield from _pairs(current, word)
            first = False


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # a name that is too long
        return False


def _pairs(flag: str, text: str) -> Iterator[str]:
    for value in list(filter(None, text.split(","))) or [""]:  # an empty one is for its option to refuse
        yield from (flag, value)


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."


def command_of(group: typer.Typer) -> Callable[[Command], Command]:
    """Return a decorator that registers a command of ``group``, with its errors reported as :func:`guarded` does."""

    def register(function: Command) -> Command:
        group.command(cls=ListCommand)(guarded(function))
        return function

    return register


command = command_of(app)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function`` with its groups of options expanded, its errors printed in one line, and an exit code."""
    spread = _spread(function)

    @functools.wraps(spread)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _print_warning
                spread(*args, **kwargs)
        except KeyboardInterrupt:
            say("What was finished is kept; run the same command again to go on.", "Interrupted.", "yellow")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except (ComoveError, OSError) as error:
            _traceback()
            say(one_line(error), "Error:", "red")
            raise typer.Exit(2) from None
        except Exception as error:
            _traceback()
            say(
                f"{one_line(error)}\n"
                "A fault of comove: run the command again with --debug for the traceback, and please report it.",
                f"Internal error ({type(error).__name__}):",
                "red",
            )
            raise typer.Exit(1) from None

    return call


def _spread(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every command, and one for each field of its parameters that are dataclasses."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for entry in inspect.signature(function).parameters.values():
        if entry.name in groups:
            parameters += _options_of(groups[entry.name])
        else:
            parameters.append(entry.replace(annotation=hints[entry.name], kind=inspect.Parameter.KEYWORD_ONLY))
    own = {entry.name for entry in parameters}
    common = [PrintingOptions, *([] if function.__name__ in _COMPUTES_NOTHING else [MachineOptions])]
    parameters += [entry for kind in common for entry in _options_of(kind) if entry.name not in own]

    @functools.wraps(function)
    def call(**values: Any) -> None:
        given = [kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for kind in common]
        machine = next((one for one in given if isinstance(one, MachineOptions)), MachineOptions())
        values = {name: value for name, value in values.items() if name in own}
        out = values.get("out")
        for name, kind in groups.items():
            values[name] = kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})  # type: ignore[operator]
        csv = _to_stdout(function, out)
        with printing(function.__name__, given[0], csv=csv), computing(machine):
            function(**values)

    del call.__wrapped__  # typer would read the options from it
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return call


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """One parameter for each field of a dataclass."""
    kinds = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=kinds[f.name])
        for f in dataclasses.fields(kind)
    ]


def one_table(function: Command) -> Command:
    """Mark a command that writes one table, which ``--out -`` sends to standard output."""
    _ONE_TABLE.add(function.__name__)
    return function


def computes_nothing(function: Command) -> Command:
    """Mark a command that only reads files: it has neither a device nor threads to choose."""
    _COMPUTES_NOTHING.add(function.__name__)
    return function


def _to_stdout(function: Callable[..., None], out: object) -> bool:
    """Whether ``--out`` is standard output.

    Raises:
        InputError: it is, and the command writes more than one table.
    """
    if out != STDOUT:
        return False
    if function.__name__ not in _ONE_TABLE:
        raise InputError(
            f"--out - is for commands that write one table ({', '.join(sorted(_ONE_TABLE))}); give --out a folder, and "
            "--json for the result on standard output."
        )
    return True


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours in one line; of others, as Python writes it."""
    if category is UserWarning:
        say(" ".join(str(message).split()), "Warning:", "yellow")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), "Warning:", "yellow")


def _traceback() -> None:
    if _debugging.get():
        say(traceback.format_exc())


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the command line).")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    _debugging.set(debug)
    if version:
        from importlib.metadata import version as installed

        out_console.print(f"comove {installed('comove')}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # prints it
