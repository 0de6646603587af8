"""Where examples come from, for tables: the file or line of each, and the text of those that are texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from comove.errors import ComoveError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Named", "called", "named_examples", "plain_cells", "told_columns"]

Named: TypeAlias = Mapping[str, Mapping[int, str]]
"""``"file"`` and ``"text"``, where known: id -> what is told."""
LETTERS = 80
"""Of a text, in a printed table."""


def named_examples(sources: Iterable[Any]) -> Named:
    """Return what the first run whose data is at hand knows of its examples; nothing where there is none."""
    from comove.training import Run

    for source in sources:
        if not isinstance(source, Run):
            continue
        try:
            splits = source.data()
        except ComoveError:  # the data is not there; what needs it says so
            continue
        told = {"file": splits.sources, "text": splits.texts}
        return {name: values for name, values in told.items() if values}
    return {}


def told_columns(named: Named, ids: npt.NDArray[Any] | Sequence[int]) -> dict[str, list[str]]:
    """The columns of a table of these examples; those of which nothing is known have empty cells."""
    return {name: [values.get(int(id_), "") for id_ in ids] for name, values in named.items()}


def called(named: Named, query: int) -> str:
    """A query by its id, with its file or text where that is known."""
    return " ".join([f"query {query}", *(f"({cell})" for cell in plain_cells(named, query) if cell)])


def plain_cells(named: Named, id_: int) -> list[str]:
    """The cells of one line of a printed table; long texts are shortened."""
    from comove.display import short

    return [
        short(values.get(id_, ""), LETTERS) if name == "text" else values.get(id_, "") for name, values in named.items()
    ]
