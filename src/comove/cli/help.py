"""Help pages: two columns that fit a narrow terminal, and options in groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import fill, wrap
from typing import Any

from rich.text import Text

from comove.cli.groups import EVERY, ORDER
from comove.cli.output import out_console

__all__ = ["COMMANDS", "print_group_help", "print_help"]

WIDEST, NARROWEST = 100, 50
"""Letters a line, however wide or narrow the terminal is."""
NAMES, COMMAND = 25, 11
"""Letters of the left column, for options and for commands; a longer name stands in a line of its own."""
VALUES = {"str": "TEXT", "int": "N", "int range": "N", "float": "X", "float range": "X", "path": "PATH", "Path": "PATH"}
"""What stands for a value, by the name of its type."""
EXAMPLE = "Example: "
COMMANDS = {
    "Start": ("demo", "train", "methods", "doctor"),
    "Explain predictions": ("attribute", "explore", "report"),
    "Choose and correct examples": ("coreset", "clean"),
    "Measure attribution methods": ("lds", "brittleness", "check", "bank"),
    "Measure coreset methods": ("curve", "stability", "diagnose", "cost"),
}
"""The commands by what they are for."""


def print_help(command: Any, ctx: Any) -> None:
    """Print the page of a command: what it does, its examples, its arguments, and its options by group.

    Args:
        command: of typer, or a group of commands; its docstring's paragraphs that begin with ``Example:`` are examples.
        ctx: its context.
    """
    width = max(NARROWEST, min(out_console.width, WIDEST))
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    entries = [entry for entry in command.get_params(ctx) if not getattr(entry, "hidden", False)]
    arguments = [entry for entry in entries if entry.param_type_name == "argument"]
    options = [entry for entry in entries if entry.param_type_name != "argument"]
    needed = [f"{entry.opts[0]} {_value(entry, ctx)}" for entry in options if entry.required]
    usage = ["Usage:", ctx.command_path, *(_name(entry, ctx) for entry in arguments), *needed, "[OPTIONS]"]
    for part in [" ".join(usage), *(part for part in paragraphs if not part.startswith(EXAMPLE))]:
        _print(f"\n{fill(part, width, break_on_hyphens=False)}")
    examples = [part.removeprefix(EXAMPLE) for part in paragraphs if part.startswith(EXAMPLE)]
    if examples:
        _print("\nExamples:" if examples[1:] else "\nExample:", style="bold")
        _print("\n".join(f"  {example}" for example in examples))
    _print_list("Arguments", arguments, ctx, width)
    for group in ORDER:
        members = [entry for entry in options if _group(entry) == group]
        _print_list(group or "Options", sorted(members, key=lambda entry: not entry.required), ctx, width)
    _print("")


def print_group_help(group: Any, ctx: Any) -> None:
    """Print the page of a group of commands: what they are for, a line for each command, and the group's options."""
    width = max(NARROWEST, min(out_console.width, WIDEST))
    texts = [f"Usage: {ctx.command_path} COMMAND [OPTIONS]", *re.sub(r"\[/?bold]", "", group.help or "").split("\n\n")]
    for part in texts:
        _print(f"\n{fill(' '.join(part.split()), width, break_on_hyphens=False)}")
    known = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    grouped = {title: [name for name in names if name in known] for title, names in COMMANDS.items()}
    rest = [name for name in known if not any(name in names for names in grouped.values())]
    for title, names in {**grouped, "Commands": rest}.items():
        if names:
            _print(f"\n{title}:", style="bold")
        for name in names:
            about = " ".join((known[name].help or "").split("\n\n")[0].split())
            _print_entry(name, about, width, COMMAND)
    options = [entry for entry in group.get_params(ctx) if not getattr(entry, "hidden", False)]
    _print_list("Options", options, ctx, width)
    _print("")


def _print(text: str, style: str = "") -> None:
    out_console.print(Text(text, style), soft_wrap=True)


def _group(entry: Any) -> str:
    return EVERY if entry.name == "help" else entry.rich_help_panel or ""


def _print_list(title: str, entries: list[Any], ctx: Any, width: int) -> None:
    if entries:
        _print(f"\n{title}:", style="bold")
    for entry in entries:
        _print_entry(_name(entry, ctx), " ".join(_about(entry)), width, NAMES)


def _print_entry(name: str, about: str, width: int, names: int) -> None:
    """Print a name in a column of so many letters, and beside it what it is."""
    if len(name) > names:
        _print(f"  {name}", style="cyan")
        name = ""
    for line in wrap(about, width - names - 4, break_on_hyphens=False, break_long_words=False):
        out_console.print(Text.assemble("  ", (f"{name:<{names}}", "cyan"), f"  {line}"), soft_wrap=True)
        name = ""


def _name(entry: Any, ctx: Any) -> str:
    """What is written on the command line."""
    if entry.param_type_name == "argument":
        word = f"{entry.name.upper()}{'...' if entry.nargs != 1 else ''}"
        return word if entry.required else f"[{word}]"
    names = sorted([*entry.opts, *entry.secondary_opts], key=lambda name: name.startswith("--"))
    return f"{', '.join(names)} {_value(entry, ctx)}".rstrip()


def _value(entry: Any, ctx: Any) -> str:
    """What stands for the value of an option, with dots where it takes several."""
    if entry.is_flag:
        return ""
    shown = str(entry.display_type_rich(ctx=ctx)) if hasattr(entry, "display_type_rich") else entry.type.name
    word = entry.metavar or VALUES.get(shown.strip("<>").removeprefix("list[").rstrip("]"), "VALUE")
    return f"{word}..." if entry.multiple else word


def _about(entry: Any) -> Iterator[str]:
    """What an option is for, and its default."""
    yield entry.help or ""
    default, shown = entry.default, entry.show_default
    if entry.required:
        yield "[required]"
    elif isinstance(shown, str):
        yield f"[default: {shown}]"
    elif getattr(entry, "is_flag", False):
        yield from [f"[default: {entry.opts[0]}]"] if default else []
    elif default not in (None, "", [], ()):
        yield f"[default: {default:g}]" if isinstance(default, float) else f"[default: {default}]"
