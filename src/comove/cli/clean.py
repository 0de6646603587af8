"""``comove clean``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, draw, note, one_line, say, table, written
from comove.cli.named import Named, named_examples, plain_cells, told_columns
from comove.cli.options import Device, open_runs
from comove.cli.own import OwnOptions
from comove.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from comove.evaluation.label_errors.detection import Detection
    from comove.evaluation.label_errors.suspicion import Suspicion
    from comove.training import Run

__all__ = ["clean"]

DETECTED = ("detection.csv", "curves.csv", "detection.png")
GALLERY = "suspicious.png"


@command
def clean(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs or traces of the same data (values are averaged).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the ranking, tables and figures.")],
    own: OwnOptions,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="aum loss trak tracin forgetting cld random, or all; options as trak:proj_dim=256.",
            show_default="all that the runs have the data for",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Method that tables are sorted by.", show_default="the first")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of suspicious labels to print and to draw.")] = 20,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Rank all examples, held-out ones too, by cross-fitting: train this many models.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Rank training labels by how likely they are to be wrong.

    With --folds each example is judged by the model that was trained without it (by aum and loss). Where labels were
    flipped on purpose (--flip-labels), the methods' precision is shown.

    Example: comove clean runs/a runs/b --methods aum cld --top 20 --out clean/
    """
    from comove.evaluation.label_errors.folds import cross_fit
    from comove.evaluation.label_errors.ranking import rank_labels
    from comove.store import new_folder
    from comove.training import resolve_device

    resolve_device(device)  # refuses an unknown one, also where no method computes on it
    sources = open_runs(runs, own)
    wrong = _flips(sources)
    asked = None if methods in (None, ["all"]) else methods
    if folds is None:
        found = rank_labels(sources, asked, device=device)
    else:
        new_folder(out)
        found = cross_fit(sources, folds, out / "folds", methods=asked, device=device)
    order = found.methods[0] if by is None else by
    found.most(top, order)  # refuses what cannot be shown, before anything is written
    new_folder(out)
    named = named_examples(sources)
    _write_ranking(found, order, named, out)
    for method, reason in found.skipped.items():
        note(f"{method} is left out: {reason}")
    _print(found, top, order, named)
    _write_suspects(found, top, order, wrong, named, out)
    files = ["suspicion.csv", "suspicion.safetensors", "suspects.csv"]
    if wrong is not None:
        files += _hold_to(found, wrong, out)
    files += _gallery([] if "text" in named else sources, found, top, order, wrong, out)
    say(f"\n{_coverage(sources, found, folds)}")
    written(out, *files)


def _write_ranking(found: Suspicion, order: str, named: Named, out: Path) -> None:
    """Write the ranking of all labels, as a result file and as a table."""
    from comove.store.results import write_table

    if (out / "suspicion.safetensors").exists():  # an earlier call's, perhaps on other data
        for name in DETECTED:
            (out / name).unlink(missing_ok=True)
    found.save(out / "suspicion.safetensors")
    frame = found.to_pandas(order)
    write_table(out / "suspicion.csv", frame.assign(**told_columns(named, frame["id"].tolist())))


def _write_suspects(found: Suspicion, top: int, order: str, wrong: Any, named: Named, out: Path) -> None:
    """Write the most suspicious examples of each method, those of ``order`` first."""
    from comove.data.tables import write_frame

    suspects = found.suspects(top, wrong)
    suspects = suspects.sort_values("method", key=lambda name: name != order, kind="stable")  # --drop reads the first
    if found.suggested is not None:
        suspects["suggested_class"] = list(map(found.class_name, suspects["suggested"].tolist()))
    write_frame(out / "suspects.csv", suspects.assign(**told_columns(named, suspects["id"].tolist())))


def _print(found: Suspicion, top: int, order: str, named: Named) -> None:
    shown = found.to_pandas(order).head(top)
    names = ["id", "class", *(["suggested"] if found.suggested is not None else [])]
    rows = [
        [
            *(str(row[name]) for name in names),
            *(f"{row[method]:.4g}" for method in found.methods),
            *plain_cells(named, row["id"]),
        ]
        for row in shown.to_dict("records")
    ]
    ends = {end: [one for one in found.methods if (one in found.low) is (end == "low")] for end in ("low", "high")}
    suspicious = ", ".join(f"{end} {' and '.join(names)}" for end, names in ends.items() if names)
    title = f"The {len(shown)} most suspicious of {len(found):,} labels by {order} (suspicious: {suspicious})"
    table(
        title,
        [*names, *found.methods, *named],
        rows,
        plain=len(names),
        left=tuple(named),
        name="suspects",
        values=shown,
    )


def _coverage(sources: list[Any], found: Suspicion, folds: int | None) -> str:
    """Say which share of the data was ranked, and how to rank all of it where comove trained the models."""
    from comove.training import Run
    from comove.training.sources import as_sources

    if folds is not None:
        return f"All {len(found):,} examples were ranked, each by a model trained without it ({folds} folds)."
    held_out = as_sources(sources, frozenset(), "clean")[0].query_ids.size
    share = len(found) / (len(found) + held_out)
    trained = all(isinstance(source, Run) and source.adopted is None for source in sources)
    more = "; --folds 5 trains five models and ranks all" if trained else ""
    return (
        f"{len(found):,} of {len(found) + held_out:,} examples ({share:.0%}) were ranked, "
        f"not the {held_out:,} held-out ones{more}."
    )


def _flips(sources: list[Any]) -> Any:
    """Return the labels that were flipped on purpose; ``None``, with a note, without the data."""
    from comove.evaluation.label_errors.ranking import flips_of

    try:
        return flips_of(sources)
    except InputError as error:
        note(one_line(error))
        return None


def _hold_to(found: Suspicion, wrong: Any, out: Path) -> list[str]:
    """Say how many of the labels flipped on purpose each method finds."""
    from comove.evaluation.label_errors.detection import detect
    from comove.plots import save_figure
    from comove.store.results import write_table

    detection = detect(found, wrong)
    for name, frame in (("detection", detection.to_pandas()), ("curves", detection.curves())):
        write_table(out / f"{name}.csv", frame)
    save_figure(detection.plot(), out / "detection.png")
    _print_detection(detection)
    return list(DETECTED)


def _print_detection(detection: Detection) -> None:
    rows = [
        [row["method"], *(f"{row[name]:.3f}" for name in ("average_precision", "low", "high", "precision_at_wrong"))]
        for row in detection.rows()
    ]
    wrong = detection.wrong
    head = ["method", "average precision", "low", "high", f"of the first {wrong} wrong"]
    table(
        f"\n{wrong} of {detection.n:,} labels were flipped on purpose; how well each method finds them",
        head,
        rows,
        name="detection",
        values=detection.rows(),
    )


def _gallery(sources: list[Any], found: Suspicion, top: int, order: str, wrong: Any, out: Path) -> list[str]:
    """Draw the most suspicious examples, where the data is available and consists of images."""
    from comove.training import Run

    run = next((source for source in sources if isinstance(source, Run)), None)
    drawn = draw(None if run is None else lambda: _drawn(run, found, top, order, wrong), out / GALLERY)
    return [drawn.name] if drawn else []


def _drawn(run: Run, found: Suspicion, top: int, order: str, wrong: Any) -> Figure:
    from comove.data import ExampleSet

    splits = run.data()
    covers = len(found) == len(splits.train)
    return found.plot(splits.train if covers else ExampleSet.joined(splits.parts), top, order, wrong_ids=wrong)
