"""Texts in a table, one a line with its class: CSV, TSV or Parquet; words become numbers by a vocabulary.

A text is cut into words and punctuation marks in lower case; the most frequent ones of the training texts are the
vocabulary. Token 0 is padding, 1 a word that the vocabulary lacks, 2 + i its word i.

Shape legend: N texts, L tokens.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comove.data.examples import ExampleSet, Splits, split, stratified_sample
from comove.data.hashed_ids import hashed_ids
from comove.errors import InputError, did_you_mean, first_line, some

__all__ = ["ENDINGS", "Columns", "TextTable", "encode", "read_texts_table", "text_splits", "vocabulary_of", "words_of"]

ENDINGS = (".csv", ".tsv", ".parquet")
MOST_WORDS = 10_000
MOST_TOKENS = 256
"""Of a text; what follows is cut off."""
PADDING, UNKNOWN, FIRST = 0, 1, 2
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Columns:
    """Where a table of texts has what.

    Attributes:
        text: the column of the texts.
        label: the column of the class names.
        encoding: of a CSV or TSV file.
    """

    text: str = "text"
    label: str = "label"
    encoding: str = "utf-8"


@dataclass(frozen=True)
class TextTable:
    """N texts, the names of their classes, and the line on which each begins (of Parquet: its row, from 1)."""

    texts: Sequence[str]
    labels: Sequence[str]
    lines: Sequence[int]


def read_texts_table(path: Path, columns: Columns) -> TextTable:
    """Read a table of texts.

    Raises:
        InputError: it cannot be read as a table, is encoded otherwise, lacks a column, has no rows, an empty text or
            label.
    """
    headings, rows = (
        _parquet(path, columns) if path.suffix.lower() == ".parquet" else _separated(path, columns.encoding)
    )
    for name, option in ((columns.text, "--text-column"), (columns.label, "--label-column")):
        if name not in headings:
            raise InputError(
                f"{path} has no column {name!r}; it has {some(headings)}. Name the right one: {option} NAME."
                + did_you_mean(name, headings)
            )
    if not rows:
        raise InputError(f"{path} has headings, but no rows.")
    places = headings.index(columns.text), headings.index(columns.label)
    if uneven := [line for line, row in rows if len(row) != len(headings)]:
        raise InputError(f"Every row of {path} must have {len(headings)} cells; others: {_lines(uneven)}.")
    for name, place in zip((columns.text, columns.label), places, strict=True):
        if empty := [line for line, row in rows if not row[place].strip()]:
            raise InputError(
                f"Column {name!r} of {path} must not be empty; it is in {len(empty):,} of {len(rows):,} rows, "
                f"{_lines(empty)}. Fill in what is missing, or take these rows out."
            )
    texts, labels = ([row[place].strip() for _, row in rows] for place in places)
    return TextTable(texts, labels, [line for line, _ in rows])


def _lines(numbers: Sequence[int]) -> str:
    return f"{'line' if len(numbers) == 1 else 'lines'} {some(numbers)}"


Rows = tuple[list[str], list[tuple[int, list[str]]]]


def _separated(path: Path, encoding: str) -> Rows:
    try:
        content = path.read_bytes().decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise InputError(f"There is no encoding {encoding!r}; known are utf-8, latin-1, cp1252, utf-16, ...") from None
    except UnicodeError as error:
        place = getattr(error, "start", 0)
        line = path.read_bytes()[:place].count(b"\n") + 1
        raise InputError(
            f"{path} is not encoded as {encoding} (line {line}); name its encoding, such as --encoding latin-1."
        ) from None
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        numbered = list(_numbered(reader))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {error} (line {reader.line_num}).") from error
    if not numbered:
        raise InputError(f"{path} is empty; its first line must name the columns.")
    (_, headings), *rows = numbered
    return headings, rows


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which each begins, without blank lines; a quoted text may take several."""
    before = 0
    for row in reader:
        if row:
            yield before + 1, row
        before = reader.line_num


def _parquet(path: Path, columns: Columns) -> Rows:
    from pyarrow import ArrowException, parquet

    try:
        headings = list(parquet.read_schema(path).names)
        wanted = [name for name in dict.fromkeys((columns.text, columns.label)) if name in headings]
        if len(wanted) < len({columns.text, columns.label}):
            return headings, []
        values = parquet.read_table(path, columns=wanted).to_pydict()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as a Parquet file ({first_line(error)}).") from error
    cells = zip(*(values[name] for name in wanted), strict=True)
    rows = [(row, ["" if cell is None else str(cell) for cell in found]) for row, found in enumerate(cells, 1)]
    return wanted, rows


# --- words -------------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Cut a text into words and punctuation marks, in lower case.

    >>> words_of("It's GOOD, really.")
    ["it's", 'good', ',', 'really', '.']
    """
    return WORD.findall(text.lower())


def vocabulary_of(texts: Sequence[str], most: int = MOST_WORDS) -> list[str]:
    """Return the most frequent words of these texts, the most frequent first, equally frequent ones by alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def encode(texts: Sequence[str], vocabulary: Sequence[str], length: int) -> npt.NDArray[np.int64]:
    """Return (N, L) tokens: 0 behind the end of a text, 1 for a word outside the vocabulary, 2 + i for its word i.

    >>> encode(["good film", "bad"], ["good", "film"], 3).tolist()
    [[2, 3, 0], [1, 0, 0]]
    """
    token_of = {word: FIRST + i for i, word in enumerate(vocabulary)}
    tokens_NL = np.full((len(texts), length), PADDING, np.int64)
    for row, text in enumerate(texts):
        found = [token_of.get(word, UNKNOWN) for word in words_of(text)[:length]] or [UNKNOWN]
        tokens_NL[row, : len(found)] = found
    return tokens_NL


# --- splits ------------------------------------------------------------------------------------------------------


def text_splits(
    path: Path,
    seed: int,
    limit: int | None,
    validation: float | int | None,
    queries: int | None,
    source: Mapping[str, Any],
) -> Splits:
    """Read a table of texts and split it; the vocabulary is that of the training texts, and kept in the source.

    An id is a hash of the text (of the second of two equal texts: and of the number 2), so those of the others stay
    when lines are added or deleted.

    Args:
        path: of the table.
        seed: of the split.
        limit: so many training texts at most.
        validation: a share or a number; by default a tenth.
        queries: how many; by default a tenth.
        source: how to load the texts again: columns, and on reloading the vocabulary and the length.

    Raises:
        InputError: as :func:`read_texts_table`; a single class.
    """
    table = read_texts_table(path, Columns(source["text_column"], source["label_column"], source["encoding"]))
    classes = _ordered(set(table.labels))
    if len(classes) < 2:
        raise InputError(
            f"{path} must have at least two classes; column {source['label_column']!r} says {classes[0]!r} throughout."
        )
    labels = [classes.index(label) for label in table.labels]
    ids = hashed_ids(_distinct(table.texts))
    plan = ExampleSet.from_arrays(np.zeros((len(ids), 1), np.int64), labels, ids=ids, classes=classes, name=path.name)
    share, asked = (0.1 if validation is None else validation), (0.1 if queries is None else queries)
    planned = split(plan, validation=share, query=asked, seed=seed)
    chosen = planned.train.ids
    if limit is not None and limit < chosen.size:
        generator = np.random.default_rng([seed, 0x11417])
        chosen = chosen[stratified_sample(planned.train.labels, limit, generator)]
    trained = [table.texts[place] for place in plan.positions(chosen)]
    vocabulary = source["vocabulary"].split(" ") if "vocabulary" in source else vocabulary_of(trained)
    length = source.get("length") or min(MOST_TOKENS, max(len(words_of(text)) for text in trained))
    whole = ExampleSet.from_arrays(
        encode(table.texts, vocabulary, length), labels, ids=ids, classes=classes, name=path.name
    ).with_sources([f"{path.name}:{line}" for line in table.lines], table.texts)
    held_out = None if planned.validation is None else whole.subset(planned.validation.ids)
    noted = {**source, "vocabulary": " ".join(vocabulary), "length": int(length)}
    return Splits(whole.subset(chosen), held_out, whole.subset(planned.query.ids), path.name, noted)


def _ordered(names: set[str]) -> list[str]:
    """Class names in order; numbers by size."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _distinct(texts: Sequence[str]) -> list[str]:
    """The texts, the second, third, ... of equal ones with that number behind."""
    seen: Counter[str] = Counter()
    found = []
    for text in texts:
        seen[text] += 1
        found.append(text if seen[text] == 1 else f"{text}\0{seen[text]}")
    return found
