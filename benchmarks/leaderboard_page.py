"""``docs/leaderboard.md``, from the banks and entries in the repository: every figure on it is computed from these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from leaderboard_boards import Board
from leaderboard_entries import Entry
from words import amount, cell, folded, number, table  # of the study

from comove.display import counted
from comove.evaluation import LDS, paired_difference
from comove.store import write_bytes

__all__ = ["PAGE", "page", "write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "leaderboard.md"
HEAD = """# Leaderboard

How well methods predict retraining, on banks of retrained models that [lie in this repository](ground-truth.md) with
all that this page is made from; `make leaderboard` makes it again, and trains and fits nothing. To measure scores of
your own on a bank, and to add them:

```shell
comove lds --bank benchmarks/banks/digits --scores mine.npy --orientation query,train --out lds/   # look only
python benchmarks/leaderboard.py add --bank digits --scores mine.npy --orientation query,train \\
    --name "my method" --runs 3 --cost-epochs 93 --by "Ada, mylib 1.2"
```

Scores are (train, query) or the other way round, in the order of the bank's ids or with ids of their own; what is added
is what they predict of each subset (a file of some KB), and this page. Say in `--note` on what data options were
chosen: whoever chooses them by the figures here measures how well they were chosen.

- LDS: the rank correlation over subsets between a query's summed scores and what models retrained on each subset say
  of the query, a mean over queries, with its 95 % interval over queries and subsets. A star: not decidedly below the
  first of the bank (the interval of the paired difference, in the next column, reaches 0). Intervals do not say what
  other attribution runs would give, and are not corrected for the number of methods.
- Noise ceiling: about what a perfect method would get; the share is of that.
- Epochs: forward and backward passes over the training set, by the [formulas](quality.md#what-an-epoch-counts); seconds
  of one CPU thread, other work beside it. Both with the training of the runs that a method is fitted on, all queries
  scored. Memory: the peak of the process; Python and torch take 500 MiB of it. Blank: not known.
- One row a method, that of its best number of runs; all rows are folded below each table.
"""


def write_page(boards: Sequence[Board], file: Path = PAGE, bootstrap: int = 1000) -> None:
    """Write the page."""
    write_bytes(file, page(boards, bootstrap).encode())


def page(boards: Sequence[Board], bootstrap: int = 1000) -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_section(board, bootstrap) for board in boards)])


def _section(board: Board, bootstrap: int) -> str:
    lines = [f"## {board.title}\n", f"{board.about}\n"]
    stale = f"Not shown, for they were measured on an earlier bank of this name: {', '.join(board.stale)}.\n"
    if not board.entries:
        return "\n".join([*lines, "Nothing has been measured on it yet.\n"])
    results = board.lds(bootstrap)
    first = results[0]
    pairs = sorted(
        zip(board.entries, results, strict=True), key=lambda pair: (-_sortable(pair[1]), pair[0].method, pair[0].title)
    )
    best: dict[str, tuple[Entry, LDS]] = {}
    for entry, result in pairs:
        best.setdefault(entry.method, (entry, result))
    ceiling = "" if first.noise_ceiling is None else f" Noise ceiling {number(first.noise_ceiling)}."
    lines.append(
        f"{counted(first.subsets, 'subset')} x {counted(first.seeds, 'model')}, alpha {first.alpha:.2g}, "
        f"{counted(first.query_ids.size, 'query')}, by the {first.output}.{ceiling} `--bank {board.name}`\n"
    )
    lines.append(_table(list(best.values()), results))
    if len(pairs) > len(best):
        lines += folded(f"All {len(pairs)} rows", _table(pairs, results))
    notes = dict.fromkeys(f"- `{entry.method}`: {entry.note}." for entry, _ in pairs if entry.note)
    lines += ["\n".join([*notes, ""])] if notes else []
    return "\n".join([*lines, *([stale] if board.stale else [])])


def _sortable(result: LDS) -> float:
    return -math.inf if math.isnan(result.mean) else result.mean


def _table(pairs: Sequence[tuple[Entry, LDS]], results: Sequence[LDS]) -> str:
    head = ["method", "runs", "LDS", "minus the first", "of the ceiling", "epochs", "seconds", "MiB", "by"]
    first = max(results, key=_sortable)
    return table(head, [_row(entry, result, first, results) for entry, result in pairs])


def _row(entry: Entry, result: LDS, first: LDS, results: Sequence[LDS]) -> list[str]:
    share = result.share_of_ceiling
    return [
        f"`{entry.method}`",
        "" if entry.runs is None else f"{entry.runs:,}",
        cell(result, results),
        "" if result is first else _difference(result, first),
        "" if share is None else f"{round(share, 2) + 0.0:.0%}",
        amount(entry.epochs, 1, "{:,.0f}"),
        amount(entry.seconds, 1, "{:,.0f}" if (entry.seconds or 0) >= 10 else "{:.1f}"),
        amount(entry.memory, 2**20, "{:,.0f}"),
        ", ".join(filter(None, (entry.by, entry.date))),
    ]


def _difference(result: LDS, first: LDS) -> str:
    found = paired_difference(result, first)
    low, high = found.interval
    return f"{found.mean:+.3f} [{low:+.2f}, {high:+.2f}]"
