"""Tables of examples to leave out, or to give another label: by id, or by file or line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from comove.data.class_names import class_index
from comove.data.examples import Splits
from comove.errors import InputError, did_you_mean, some

__all__ = ["changed_splits", "read_drops", "read_fixes"]

IDS, SOURCES = ("id", "train_id"), ("file", "path")


def changed_splits(splits: Splits, drop: Path | None, relabel: Path | None) -> Splits:
    """Return the splits with the labels of one table, and without the examples of another.

    Args:
        splits: the data; held-out examples may be named as well.
        drop: a table as of :func:`read_drops`.
        relabel: a table as of :func:`read_fixes`.

    Raises:
        InputError: a table that cannot be read, an unknown id, file or class, an example in both tables.
    """
    gone = [] if drop is None else read_drops(drop, splits)
    fixes = {} if relabel is None else read_fixes(relabel, splits)
    if both := sorted(set(gone) & set(fixes)):
        raise InputError(f"{some(both)} stand both in {drop} and in {relabel}: drop or relabel an example, not both.")
    return splits.changed(gone, fixes) if gone or fixes else splits


def read_drops(path: Path, splits: Splits) -> list[int]:
    """Return the ids in a table with a column ``id`` or ``file``.

    Of a table of several methods (column ``method``, as ``comove clean`` writes) the lines of the first one count.

    Raises:
        InputError: no such table or column, an unknown id or file.
    """
    return [id_ for id_, _ in _examples(path, splits)]


def read_fixes(path: Path, splits: Splits) -> dict[int, int]:
    """Return id -> class index of a table with a column ``id`` or ``file``, and the right class of each example.

    The class stands in ``label`` or ``class``, by name or by number, or as ``comove clean`` suggests it
    (``suggested_class``).

    Raises:
        InputError: no such table or column, an unknown id, file or class, two labels for one example.
    """
    fixes: dict[int, int] = {}
    for id_, row in _examples(path, splits):
        words = [row[name].strip() for name in ("label", "class") if name in row] or [row.get("suggested_class", "")]
        if words == [""]:
            raise InputError(
                f"{path} must give the right class of each example in a column 'label'; it has {some(row)}."
            )
        labels = {_class(word, splits.classes, path) for word in words}
        if len({*labels, fixes.setdefault(id_, min(labels))}) > 1:
            raise InputError(
                f"{path} gives example {id_} two labels; keep one line, and one of the columns label and class."
            )
    return fixes


def _class(word: str, classes: Sequence[str], path: Path) -> int:
    try:
        return class_index(word, classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _examples(path: Path, splits: Splits) -> list[tuple[int, Mapping[str, str]]]:
    """The rows of a table, each with the id of its example; of several methods those of the first."""
    rows = _rows(path)
    if "method" in rows[0]:
        rows = [row for row in rows if row["method"] == rows[0]["method"]]
    by = next((name for name in (*IDS, *SOURCES) if name in rows[0]), None)
    if by is None:
        raise InputError(f"{path} needs a column 'id' or 'file' that names examples; it has {some(rows[0])}.")
    words = [row[by].strip() for row in rows]
    ids = _by_id(words, path, splits) if by in IDS else _by_source(words, path, splits)
    return list(zip(ids, rows, strict=True))


def _by_id(words: Sequence[str], path: Path, splits: Splits) -> list[int]:
    known = {str(id_): id_ for part in splits.parts for id_ in part.ids.tolist()}
    if unknown := [word for word in words if word not in known]:
        raise InputError(
            f"{path} has {len(unknown)} ids that these data have not: {some(unknown)}. They are those of another data "
            "set or split, or of examples that --limit leaves out."
        )
    return [known[word] for word in words]


def _by_source(words: Sequence[str], path: Path, splits: Splits) -> list[int]:
    names = splits.sources
    if not names:
        raise InputError(f"The examples of {splits.name!r} come from no files; {path} must have a column 'id'.")
    known = {source: id_ for id_, source in names.items()}
    if unknown := [word for word in words if word not in known]:
        near = did_you_mean(unknown[0], known)
        raise InputError(
            f"{path} names {len(unknown)} files or lines that these data have not: {some(unknown)}. Paths are relative "
            f"to the folder of the data, such as {next(iter(known))!r}.{near}"
        )
    return [known[word] for word in words]


def _rows(path: Path) -> list[dict[str, str]]:
    """A CSV file with headings, or a file with nothing but ids or paths, one a line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read as a table ({reason}).") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise InputError(f"{path} is empty; it must name examples, by a column 'id' or 'file'.")
    named = {*IDS, *SOURCES} & set(rows[0])
    if not named and all(len(row) == 1 for row in rows):
        heading = "id" if all(row[0].strip().isdecimal() for row in rows) else "file"
        rows = [[heading], *rows]
    headings, *cells = rows
    if not cells:
        raise InputError(f"{path} has headings, but no rows.")
    if any(len(row) > len(headings) for row in cells):
        raise InputError(f"{path} has rows with more cells than headings.")
    return [dict(zip(headings, [*row, *[""] * (len(headings) - len(row))], strict=True)) for row in cells]
