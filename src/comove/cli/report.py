"""``comove report``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, written
from comove.cli.options import open_runs
from comove.cli.own import OwnOptions
from comove.errors import InputError

if TYPE_CHECKING:
    from comove.attribution import Scores

__all__ = ["report"]


@command
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of the runs or traces that the scores were computed from.")
    ],
    own: OwnOptions,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="Scores: files, or folders written by comove attribute.", show_default="CLD is computed"),
    ] = None,
    lds: Annotated[
        list[Path] | None, typer.Option("--lds", help="Folders written by comove lds.", show_default="none")
    ] = None,
    brittleness: Annotated[
        list[Path] | None, typer.Option(help="Folders written by comove brittleness.", show_default="none")
    ] = None,
    curve: Annotated[
        list[Path] | None, typer.Option(help="Folders written by comove curve.", show_default="none")
    ] = None,
    clean: Annotated[
        list[Path] | None,
        typer.Option(help="Folders written by comove clean, or their suspects.csv.", show_default="none"),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="A table with columns id and text, for examples that are texts of your own.", show_default="none"
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Most queries shown, taken evenly from the classes.")] = 1000,
    top: Annotated[
        int, typer.Option(min=1, help="Training examples shown for each query and method, at either end.")
    ] = 8,
    title: Annotated[str, typer.Option(help="Heading of the page.", show_default="the name of the data")] = "",
) -> None:
    """Write one HTML file: queries, the training examples that help and hurt each, and the measurements.

    Example: comove report runs/a runs/b --scores scores/ --out report.html

    Example: comove report runs/a --scores a.safetensors b.safetensors --lds lds/ --brittleness brittleness/ --curve
    curve/ --clean clean/ --out report.html
    """
    import comove.report as html
    from comove.attribution.pictures import pictures_of

    results = [html.read_lds(path) for path in lds or ()]
    results += [one for path in brittleness or () for one in html.read_brittleness(path)]
    results += [one for path in curve or () for one in html.read_curves(path)]
    results += [html.read_suspects(path) for path in clean or ()]
    sources = open_runs(runs, own)
    named, files = _named(scores) if scores else (_cld(sources, queries), {})
    if (pictures := pictures_of(named, sources)) is not None:
        sources = [pictures.source(run) for run in sources]
        title = title or f"{', '.join(pictures.names.values())}: what predictions depend on"
    given = {"scores": scores, "lds": lds, "brittleness": brittleness, "curve": curve, "clean": clean}
    page = html.write_report(
        out,
        sources,
        named,
        results,
        texts=None if texts is None else html.read_texts(texts),
        top=top,
        title=title,
        size=html.ReportSize(queries),
        origin=html.Origin(
            _command(runs, {**given, "texts": [texts] if texts else None, "out": [out]}, queries, top), files
        ),
    )
    written(page, about=f" ({page.stat().st_size / 1e6:.1f} MB); open it in a browser.")


def _cld(sources: Sequence[Any], queries: int) -> list[Scores]:
    """Compute CLD scores from the runs, for a report without scores from files."""
    from comove.attribution import CLD
    from comove.attribution.queries import choose_queries
    from comove.training.sources import as_sources

    first = as_sources(sources, frozenset(), "report")[0]
    return [CLD().fit(sources).attribute(choose_queries(first.trace, queries))]


def _named(paths: Sequence[Path]) -> tuple[dict[str, Scores], dict[str, str]]:
    """Scores by method, and the file each was read from; of two files of one method both names are shown.

    Raises:
        InputError: a folder without scores, the same scores twice.
    """
    from comove.attribution import Scores

    found: dict[str, Scores] = {}
    files: dict[str, str] = {}
    for file in (file for path in paths for file in _files(path)):
        one = Scores.load(file)
        name = one.method if one.method not in found else f"{one.method} [{file.parent.name}/{file.stem}]"
        if name in found:
            raise InputError(f"{file} and {files[name]} hold scores of the same name; give one of them.")
        found[name], files[name] = one, file.as_posix() if not file.is_absolute() else "/".join(file.parts[-2:])
    return found, files


def _files(path: Path) -> Iterator[Path]:
    """Yield the files of scores in a folder, which may hold other files written by comove."""
    from comove.store import read_header

    if not path.is_dir():
        yield path
        return
    files = [file for file in sorted(path.glob("*.safetensors")) if read_header(file)[1].get("kind") == "comove/scores"]
    if not files:
        raise InputError(f"{path} holds no scores; comove attribute writes them, as {path}/METHOD.safetensors.")
    yield from files


def _command(runs: Sequence[Path], given: Mapping[str, Sequence[Path] | None], queries: int, top: int) -> str:
    """Return the command line that the report shows."""
    words = ["comove", "report", *map(str, runs)]
    for name, paths in given.items():
        words += [f"--{name}", *map(str, paths)] if paths else []
    return shlex.join([*words, "--queries", str(queries), "--top", str(top)])
