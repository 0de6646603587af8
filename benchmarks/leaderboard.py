r"""Ground truth that is published with this repository, and how well methods predict it: ``docs/leaderboard.md``.

    python benchmarks/leaderboard.py                       the page again, from what lies in the repository
    python benchmarks/leaderboard.py add --bank digits --scores mine.npy --orientation query,train \
        --name "my method" --cost-epochs 30 --by "name, version"
    python benchmarks/leaderboard.py publish --name sentences --bank-folder BANK --scores FOLDER --card card.json

``add`` checks anyone's scores, measures them on a bank, and writes an entry of some KB. ``publish`` writes a bank of
comove's to ``benchmarks/banks/NAME``, and the scores in a folder, as ``Scores.save`` writes them: an entry each, called
after the file. The card is a JSON object with ``title``, ``about``, ``source``, ``licence``, ``command``, ``seeds``;
further ``notes`` (a list), and ``methods``: by file name, ``name``, ``runs``, ``epochs``, ``seconds``, ``memory``
(bytes), ``note``, ``by``, ``kept`` (false: no scores beside the entry).
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leaderboard_boards import BANKS, ENTRIES, RESULTS, board_named, boards
from leaderboard_entries import Entry, of_cost, ranks_of, save_entry
from leaderboard_page import PAGE, write_page
from leaderboard_publish import WHOLE_QUERIES, Given, publish

from comove.attribution import Scores
from comove.errors import ComoveError, CorruptFileError, InputError, some
from comove.evaluation import RetrainingBank, read_scores
from comove.retraining.array_files import read_array
from comove.store import entries, read_json, slug

__all__ = ["main"]

METHOD: dict[str, Any] = {
    **dict.fromkeys(("name", "note", "by"), str),
    "runs": int,
    "kept": bool,
    **dict.fromkeys(("epochs", "seconds", "memory"), float),
}


def add(given: argparse.Namespace) -> None:
    """Hold scores to a bank, and write an entry.

    Raises:
        ComoveError: an unknown bank, a name that is taken, scores that cannot be measured on it; nothing is written.
    """
    board = board_named(given.bank, given.banks, given.results)
    board.check_new(given.name, given.runs)
    ids = {side: None if file is None else read_array(file) for side, file in _id_files(given).items()}
    scores = read_scores(
        given.scores, board.bank, axes=given.orientation, positive=given.positive, method=given.name, **ids
    )
    cost = {"epochs": given.cost_epochs, "seconds": given.cost_seconds, "memory": given.cost_memory}
    memory = None if cost["memory"] is None else cost["memory"] * 2**20
    entry = Entry(
        given.name,
        ranks_of(board.bank, scores),
        given.by,
        given.runs,
        **of_cost({**cost, "memory": memory}),
        date=given.date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        note=given.note,
    )
    print(f"written to {save_entry(board.folder / ENTRIES, entry, board.fingerprint)}")


def _id_files(given: argparse.Namespace) -> dict[str, Path | None]:
    return {"train_ids": given.train_ids, "query_ids": given.query_ids}


def publish_folder(given: argparse.Namespace) -> None:
    """Write a bank, its card, and the scores in a folder.

    Raises:
        ComoveError: a card that lacks something, scores that cannot be measured on the bank.
    """
    if slug(given.name, "-") != given.name or given.name.startswith("cifar10"):
        raise InputError(f"--name must be letters, digits and hyphens, and not that of a study; got {given.name!r}.")
    card = read_json(given.card)
    told = card.pop("methods", {})
    bank = RetrainingBank.load(given.bank_folder)
    files = sorted(given.scores.glob("*.safetensors")) if given.scores else []
    if unknown := sorted(set(told) - {file.stem for file in files}):
        raise InputError(f"The card tells of methods without scores in {given.scores}: {some(unknown)}.")
    methods = [_given(file, told.get(file.stem, {}), given.card) for file in files]
    folder = given.banks / given.name
    publish(bank, folder, card, methods, given.whole_queries)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"written to {folder}: {len(methods)} methods, {size / 1e6:.1f} MB")


def _given(file: Path, told: Any, card: Path) -> Given:
    """Scores from a file, and what the card says of them."""
    scores = Scores.load(file)
    if unknown := sorted(set(told) - set(METHOD)):
        raise CorruptFileError(f"{card}: {file.stem} has unknown entries {some(unknown)}; known are {some(METHOD)}.")
    found = entries(told, f"{card}: {file.stem}", {}, METHOD)
    kept = True if found["kept"] is None else found["kept"]
    runs = found["runs"] or scores.info.get("runs") or None
    return Given(scores, found["name"] or scores.method, runs, found, found["note"] or "", found["by"] or "", kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 2 where what was given is refused."""
    given = _parser().parse_args(arguments)
    try:
        if given.command is not None:
            {"add": add, "publish": publish_folder}[given.command](given)
        write_page(boards(given.banks, given.results), given.page, given.bootstrap)
    except ComoveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {given.page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", type=Path, default=BANKS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", type=int, default=1000, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command")
    adding = commands.add_parser("add", help="measure scores on a bank, and add them")
    adding.add_argument("--bank", required=True, help="its name on the page")
    adding.add_argument("--scores", type=Path, required=True, help=".npy, .npz, .pt or .safetensors")
    adding.add_argument("--orientation", default="train,query", help="train,query or query,train, or a library's name")
    adding.add_argument("--positive", default="helps", choices=("helps", "hurts"), help="what a positive score says")
    adding.add_argument("--train-ids", type=Path, help="a file of their training ids, where not in the bank's order")
    adding.add_argument("--query-ids", type=Path, help="a file of their query ids, likewise")
    adding.add_argument("--name", required=True, help="of the method, with options that are not its defaults")
    adding.add_argument("--by", required=True, help='who made them, with what: "name, library version"')
    adding.add_argument("--runs", type=int, help="trained models that it was fitted on")
    adding.add_argument(
        "--cost-epochs", type=float, help="forward and backward passes over the data, training included"
    )
    adding.add_argument("--cost-seconds", type=float, help="CPU seconds of one thread, likewise")
    adding.add_argument("--cost-memory", type=float, help="peak of the process, MiB")
    adding.add_argument("--date", default="", help="YYYY-MM-DD; by default today")
    adding.add_argument("--note", default="", help="such as on what data options were chosen")
    writing = commands.add_parser("publish", help="publish a bank of comove's, and scores")
    writing.add_argument("--name", required=True, help="of the bank")
    writing.add_argument("--bank-folder", type=Path, required=True, help="of a trained bank")
    writing.add_argument("--scores", type=Path, help="a folder of scores")
    writing.add_argument("--card", type=Path, required=True, help="a JSON file")
    writing.add_argument("--whole-queries", type=int, default=WHOLE_QUERIES, help="queries that all scores are kept of")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
