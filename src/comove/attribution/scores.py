"""Scores: what every attribution method returns, always (train, query), positive = the example helps the query.

On disk they are one safetensors file, one query after another, so that a query's scores are read and no others:
``values_QN`` holds (Q, S) float32, where S is N, rounded up to whole pages where N is large; what lies beyond N means
nothing. Files of the first format hold ``values`` (N, Q) instead, those of the first two have no checksums.

Shape legend: N training examples, Q queries, S stored columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from comove.checks import as_ids, as_real, as_whole, whole_number
from comove.data import Ids, Splits, positions_of
from comove.display import are_counts, html_table, plain_score, scored, short
from comove.errors import CorruptFileError, InputError, InputTypeError, NonFiniteError, some
from comove.plots import HELP, HURT, Picture, gallery, loss_trajectories, ranking_bars
from comove.store import StoredArray, check_kind, entries, new_folder, open_array, read_arrays, read_header
from comove.store.arrays import Layout, as_bytes, lay_out
from comove.store.checksums import BlockSums, block_sums
from comove.store.files import write_all, writing
from comove.ties import highest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from comove.trace import Trace

__all__ = ["Ranking", "Rankings", "Scores", "SomeScores", "named_scores"]

Floats = npt.NDArray[np.float32]

FORMAT_VERSION = 3
VALUES = "values_QN"
PAGE = 4096
_PIECE = 64 << 20
"""Bytes of scores turned and written at a time."""
_WIDE = 65_536
"""From so many training examples on, a query's scores begin on a page of their own, so that blocks are whole pages."""


@dataclass(frozen=True)
class Ranking:
    """Training examples in order for one query: ids, scores and, where known, labels and class names."""

    ids: Ids
    scores: Floats
    labels: Ids | None
    query: int
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return int(self.ids.size)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(zip(self.ids.tolist(), self.scores.tolist(), strict=True))

    def class_names(self) -> list[str]:
        """The class name of each example (its label where there are no names, empty where there is no label)."""
        return _class_names(len(self), self.labels, self.classes)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns id, score and class."""
        import pandas as pd

        return pd.DataFrame({"id": self.ids, "score": self.scores, "class": self.class_names()})

    def _repr_html_(self) -> str:
        rows = [(str(id_), score, name) for (id_, score), name in zip(self, self.class_names(), strict=True)]
        return html_table(f"Ranking for query {self.query}", ["id", "score", "class"], rows, most=len(rows))

    def __repr__(self) -> str:
        scores = [plain_score(score) for _, score in self]
        ids, width = [str(id_) for id_, _ in self], max([5, *map(len, scores)])
        wide = max([8, *map(len, ids)])
        head = f"{'id':>{wide}}  {'score':>{width}}  class"
        rows = zip(ids, scores, self.class_names(), strict=True)
        lines = [f"{id_:>{wide}}  {score:>{width}}  {name}" for id_, score, name in rows]
        return "\n".join([f"Ranking for query {self.query}:", head, *lines])


@dataclass(frozen=True)
class Rankings:
    """The first K training examples for each of Q queries, in one table of Q x K rows: query by query, best first.

    Attributes:
        query_ids: (Q * K,) int64.
        ranks: (Q * K,) int64, from 1.
        ids: (Q * K,) int64, of training examples.
        scores: (Q * K,) float32.
        labels: (Q * K,) class indices of the training examples, where known.
        classes: class names, where known.
    """

    query_ids: Ids
    ranks: Ids
    ids: Ids
    scores: Floats
    labels: Ids | None
    classes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, rankings: Sequence[Ranking]) -> Rankings:
        """Return the table of rankings of several queries, in their order."""
        labels = [ranking.labels for ranking in rankings if ranking.labels is not None]
        return cls(
            np.concatenate([np.full(len(ranking), ranking.query, np.int64) for ranking in rankings]),
            np.concatenate([np.arange(1, len(ranking) + 1) for ranking in rankings]),
            np.concatenate([ranking.ids for ranking in rankings]),
            np.concatenate([ranking.scores for ranking in rankings]),
            np.concatenate(labels) if labels else None,
            rankings[0].classes,
        )

    def __len__(self) -> int:
        return int(self.ids.size)

    def class_names(self) -> list[str]:
        """The class name of each row's training example, as :meth:`Ranking.class_names`."""
        return _class_names(len(self), self.labels, self.classes)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with columns query_id, rank, train_id, score and class."""
        import pandas as pd

        columns = {"query_id": self.query_ids, "rank": self.ranks, "train_id": self.ids, "score": self.scores}
        return pd.DataFrame({**columns, "class": self.class_names()})

    def _repr_html_(self) -> str:
        rows = list(self.to_pandas().astype({"query_id": str, "rank": str, "train_id": str}).itertuples(index=False))
        return html_table(repr(self), ["query", "rank", "training example", "score", "class"], rows)

    def __repr__(self) -> str:
        queries = np.unique(self.query_ids).size
        return f"Rankings({queries:,} queries x {len(self) // max(1, queries):,} training examples; to_pandas())"


def _class_names(size: int, labels: Ids | None, classes: tuple[str, ...] | None) -> list[str]:
    if labels is None:
        return [""] * size
    return [str(label) if classes is None else classes[label] for label in labels]


_SIGNS = ("helps", "hurts")


def _check_axes(axes: str) -> None:
    if sorted(axes.replace(",", " ").split()) != ["query", "train"]:
        raise InputError(f"axes must be 'train query' or 'query train', got {axes!r}.")


def _oriented(values: npt.NDArray[Any], axes: str, positive: str) -> Floats:
    """Scores as (train, query) float32, positive helps."""
    _check_axes(axes)
    if positive not in _SIGNS:
        raise InputError(f"positive must be 'helps' or 'hurts', got {positive!r}.")
    if values.ndim != 2:
        raise InputError(f"Scores must have two axes, {axes!r}; got shape {values.shape}.")
    narrow = _within_float32(values.T if axes.replace(",", " ").split() == ["query", "train"] else values)
    return narrow if positive == "helps" else -narrow


def _within_float32(values_NQ: npt.NDArray[Any]) -> Floats:
    """Scores as float32, where these are not all 0 for a query that had others, and not infinite where they were not.

    Raises:
        InputError: scores of a query are too large or too small.
    """
    with np.errstate(over="ignore"):
        narrow_NQ = values_NQ.astype(np.float32)
    if values_NQ.dtype == np.float32 or not values_NQ.size:
        return narrow_NQ
    limits = np.finfo(np.float32)
    largest_Q = np.maximum(values_NQ.max(0).astype(np.float64), -values_NQ.min(0).astype(np.float64))
    lost_Q = ((largest_Q > 0) & (largest_Q < limits.tiny)) | (np.isfinite(largest_Q) & (largest_Q > limits.max))
    if lost_Q.any():
        column = int(lost_Q.argmax())
        raise InputError(
            f"Scores are kept as float32, from {limits.tiny:.1e} to {limits.max:.1e}; of {int(lost_Q.sum())} queries "
            f"the largest is beyond (of column {column}: {largest_Q[column]:.1e}). Multiply all scores of a query by "
            "one positive number: ranks do not change."
        )
    return narrow_NQ


@dataclass(frozen=True, eq=False)
class Scores:
    """Attribution scores of N training examples for Q queries; positive means the example helps the query.

    Attributes:
        values: (N, Q) float32, read-only; of scores opened from a file: a memory map, checked as a whole when it is
            first asked for (:meth:`top`, :meth:`column` and :meth:`subset` read and check what they need).
        train_ids: (N,) int64.
        query_ids: (Q,) int64.
        method: the method's name.
        train_labels: (N,) class indices, where known.
        query_labels: (Q,) likewise.
        classes: class names, where known.
        info: options of the method and what it counted (JSON values).

    Raises:
        InputError: shapes that do not fit, repeated ids.
        NonFiniteError: a score that is NaN or infinite (in a file: once it is looked at for a ranking).
    """

    values: Floats
    train_ids: Ids
    query_ids: Ids
    method: str
    train_labels: Ids | None = None
    query_labels: Ids | None = None
    classes: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        values: object,
        *,
        train_ids: object = None,
        query_ids: object = None,
        method: str = "scores from elsewhere",
        axes: str = "train query",
        positive: str = "helps",
    ) -> Scores:
        """Take scores of another library in, whatever their orientation and sign.

        >>> theirs = np.array([[0.1, -2.0, 0.0]])  # one query, three training examples; positive raises its loss
        >>> Scores.from_arrays(theirs, axes="query train", positive="hurts", query_ids=[7]).top(1).ids.tolist()
        [1]

        Args:
            values: (N, Q) or (Q, N) real numbers: an array, a tensor, nested lists.
            train_ids: (N,) unique ids; by default 0 ... N-1.
            query_ids: (Q,) unique ids; by default 0 ... Q-1.
            method: what made them.
            axes: ``"train query"`` or ``"query train"``: which axis comes first.
            positive: ``"helps"`` where a positive score lowers the query's loss, else ``"hurts"``.

        Raises:
            InputError: shapes that do not fit, repeated ids, an unknown orientation or sign, scores too large or too
                small for float32.
            NonFiniteError: a score that is NaN or infinite.
        """
        oriented = _oriented(as_real(values, "scores"), axes, positive)
        rows, columns = oriented.shape
        return cls(
            oriented,
            np.arange(rows) if train_ids is None else as_ids(train_ids, "train_ids"),
            np.arange(columns) if query_ids is None else as_ids(query_ids, "query_ids"),
            method,
        )

    def as_array(self, *, axes: str = "train query", positive: str = "helps") -> Floats:
        """Return the scores as another library expects them, a copy; see :meth:`from_arrays`.

        Raises:
            InputError: an unknown orientation or sign.
        """
        if positive not in _SIGNS:
            raise InputError(f"positive must be 'helps' or 'hurts', got {positive!r}.")
        _check_axes(axes)
        signed = self.values if positive == "helps" else -self.values
        return np.array(signed.T if axes.replace(",", " ").split() == ["query", "train"] else signed)

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, StoredScores):
            values = _as_values(values)
        train_ids, query_ids = as_ids(self.train_ids, "train_ids"), as_ids(self.query_ids, "query_ids")
        if values.shape != (train_ids.size, query_ids.size):
            hint = " They look transposed." if values.shape == (query_ids.size, train_ids.size) else ""
            raise InputError(
                f"Scores must be (train, query) = ({train_ids.size}, {query_ids.size}), got {values.shape}.{hint}"
            )
        arrays: dict[str, npt.NDArray[Any]] = {"train_ids": train_ids, "query_ids": query_ids}
        if isinstance(values, StoredScores):
            object.__setattr__(self, "_stored", values)
            del self.__dict__["values"]  # until it is asked for
        else:
            _check_finite(values, train_ids, query_ids)
            arrays["values"] = values
        for name, ids in (("train_labels", train_ids), ("query_labels", query_ids)):
            if (labels := getattr(self, name)) is not None:
                arrays[name] = as_whole(labels, name)
                if arrays[name].shape != ids.shape:
                    raise InputError(f"{name} has shape {arrays[name].shape} for {ids.size} ids.")
        for name, array in arrays.items():
            own = array.view()
            own.flags.writeable = False
            object.__setattr__(self, name, own)
        if "values" in arrays:
            object.__setattr__(self, "_stored", self.values)

    def __getattr__(self, name: str) -> Floats:
        if name != "values" or "_stored" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        values: Floats = self.__dict__["_stored"].all()
        object.__setattr__(self, "values", values)
        return values

    @property
    def shape(self) -> tuple[int, int]:
        """(N, Q)."""
        return int(self.train_ids.size), int(self.query_ids.size)

    # --- asking ---

    def column(self, query: int) -> Floats:
        """Return the (N,) scores for the query with this id.

        Raises:
            InputError: an unknown id.
            NonFiniteError: a score read from a file is NaN or infinite: the file was damaged.
        """
        place = positions_of([query], self.query_ids, "query ids")
        stored = self.__dict__["_stored"]
        values_N1: Floats = stored[:, place[0] : place[0] + 1]
        if isinstance(stored, StoredScores):
            _check_finite(values_N1, self.train_ids, self.query_ids[place])
        return values_N1[:, 0]

    @overload
    def top(self, k: int = 10, *, query: int) -> Ranking: ...

    @overload
    def top(self, k: int = 10, *, query: None = None) -> Ranking | Rankings: ...

    def top(self, k: int = 10, *, query: int | None = None) -> Ranking | Rankings:
        """Return the k training examples that help a query most; ties go by a hash of the id (:mod:`comove.ties`).

        >>> scores = Scores.from_arrays([[0.1, 2.0], [0.3, -1.0]], query_ids=[7, 8])
        >>> scores.top(1, query=8).ids.tolist()
        [0]
        >>> scores.top(2).to_pandas()[["query_id", "rank", "train_id"]].values.tolist()
        [[7, 1, 1], [7, 2, 0], [8, 1, 0], [8, 2, 1]]

        Args:
            k: how many, at most N.
            query: the query's id; without it, those of all queries: the :class:`Ranking` of the only one, or
                :class:`Rankings`, a table with a row for each query and rank.
        """
        return self._ranked(k, query, sign=1)

    @overload
    def bottom(self, k: int = 10, *, query: int) -> Ranking: ...

    @overload
    def bottom(self, k: int = 10, *, query: None = None) -> Ranking | Rankings: ...

    def bottom(self, k: int = 10, *, query: int | None = None) -> Ranking | Rankings:
        """Return the k training examples that hurt a query most, worst first; the rest as in :meth:`top`."""
        return self._ranked(k, query, sign=-1)

    def both_ends(self, k: int = 10) -> pd.DataFrame:
        """Return the k training examples that help, and the k that hurt each query most, a row each.

        Returns:
            A data frame with columns query_id, side (``"helps"`` or ``"hurts"``), rank, train_id, score and class.
        """
        import pandas as pd

        sides = {"helps": 1, "hurts": -1}
        parts = [
            Rankings.of([self._of_query(k, query, sign)]).to_pandas().assign(side=side)
            for query in self.query_ids.tolist()
            for side, sign in sides.items()
        ]
        return pd.concat(parts, ignore_index=True)[["query_id", "side", "rank", "train_id", "score", "class"]]

    def _ranked(self, k: int, query: int | None, sign: int) -> Ranking | Rankings:
        if query is None:
            rankings = [self._of_query(k, one, sign) for one in self.query_ids.tolist()]
            return rankings[0] if len(rankings) == 1 else Rankings.of(rankings)
        return self._of_query(k, query, sign)

    def _only(self, query: int | None) -> int:
        """The query, by default the only one."""
        if query is None and self.query_ids.size != 1:
            raise InputError(f"Say which query: query=ID, one of {self.query_ids.size} (scores.query_ids).")
        return int(self.query_ids[0] if query is None else query)

    def _of_query(self, k: int, query: int, sign: int) -> Ranking:
        k = whole_number(k, "k", 1, self.train_ids.size)
        scores = self.column(query)
        chosen = highest(sign * scores, self.train_ids, k)
        labels = None if self.train_labels is None else self.train_labels[chosen]
        return Ranking(self.train_ids[chosen], scores[chosen], labels, int(query), self.classes)

    def subset(self, *, train_ids: object = None, query_ids: object = None) -> Scores:
        """Return the scores of these training examples and queries, in this order; of a file only they are read."""
        rows = slice(None) if train_ids is None else positions_of(train_ids, self.train_ids, "train ids")
        columns = slice(None) if query_ids is None else positions_of(query_ids, self.query_ids, "query ids")
        return Scores(
            _part(self.__dict__["_stored"], rows, columns),
            self.train_ids[rows],
            self.query_ids[columns],
            self.method,
            None if self.train_labels is None else self.train_labels[rows],
            None if self.query_labels is None else self.query_labels[columns],
            self.classes,
            self.info,
        )

    @staticmethod
    def mean(several: Iterable[Scores], method: str | None = None, *, standardize: bool = False) -> Scores:
        """Average scores of the same examples and queries (an ensemble); ids are matched, not positions.

        Args:
            several: of several runs, or of several methods.
            method: name of the result; the first one's by default.
            standardize: divide every query's scores by their standard deviation over the training examples first,
                so that methods of different units count alike; 0 stays 0, and scores that are all the same count as 0.

        Raises:
            InputError: nothing to average, other shapes, or other ids.
            InputTypeError: something else than scores; arrays become scores by :meth:`from_arrays`.
        """
        parts = [several] if isinstance(several, Scores) else list(several)
        if not parts:
            raise InputError("Nothing to average.")
        if wrong := [part for part in parts if not isinstance(part, Scores)]:
            raise InputTypeError(
                f"Scores.mean averages Scores, got {type(wrong[0]).__name__}: make them with Scores.from_arrays, which "
                "says what their ids are; of a mapping, pass the values."
            )
        first = parts[0]
        total = np.zeros(first.shape, np.float64)
        for scores in parts:
            if scores.shape != first.shape:
                raise InputError(f"Cannot average scores of shapes {first.shape} and {scores.shape}.")
            values_NQ = scores.subset(train_ids=first.train_ids, query_ids=first.query_ids).values
            total += _standardized(values_NQ) if standardize else values_NQ
        return Scores(
            (total / len(parts)).astype(np.float32),
            first.train_ids,
            first.query_ids,
            method or first.method,
            first.train_labels,
            first.query_labels,
            first.classes,
            {**first.info, "averaged": len(parts)},
        )

    # --- keeping ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically, some queries at a time.

        Raises:
            StorageError: it cannot be written; what was there before is untouched.
        """
        names = ("train_ids", "query_ids", "train_labels", "query_labels")
        arrays = {name: value for name in names if (value := getattr(self, name)) is not None}
        header = {"method": self.method, "classes": self.classes, "info": dict(self.info)}
        write_scores(Path(path), self.values, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Open what :meth:`save` (or :func:`comove.attribution.score_blocks.write_scores_in_blocks`) wrote.

        The values are memory-mapped: :meth:`top`, :meth:`bottom`, :meth:`column` and :meth:`subset` read what they
        need, whatever the size of the file.

        Raises:
            CorruptFileError: the file is missing, truncated or not scores.
        """
        return cls(**open_scores(Path(path)))

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per training id and one column per query id."""
        import pandas as pd

        return pd.DataFrame(
            self.values,
            index=pd.Index(self.train_ids, name="train_id"),
            columns=pd.Index(self.query_ids, name="query_id"),
        )

    def plot(
        self,
        query: int | Sequence[int] | None = None,
        *,
        k: int | None = None,
        splits: Splits | None = None,
        names: Mapping[int, str] | None = None,
    ) -> Figure:
        """Draw the k training examples that help a query most and the k that hurt it most: bars, or pictures.

        Args:
            query: the query's id; may be left out when there is only one. Of pictures also several, a row each.
            k: how many of each; by default 10 bars, 5 pictures.
            splits: the data, if it is images to be shown.
            names: what queries are called over their pictures, by id; the others ``query ID``.

        Raises:
            InputError: an unknown query, or none, k above the number of examples, inputs that are no images.
        """
        queries = [query] if query is None or isinstance(query, int | np.integer) else list(query)
        if len(queries) != 1 and splits is None:
            raise InputError(f"Bars are of one query, got {len(queries)}; with splits=, pictures are of several.")
        count = k if k is not None else 10 if splits is None else 5
        chosen = [self._only(one) for one in queries]
        rankings = [(self.top(count, query=one), self.bottom(count, query=one)) for one in chosen]
        if splits is not None:
            return self._pictures(rankings, splits, names or {})
        helps, hurts = (_bars(ranking) for ranking in rankings[0])
        return ranking_bars(helps, hurts, method=self.method, query=rankings[0][0].query)

    def _pictures(
        self, rankings: Sequence[tuple[Ranking, Ranking]], splits: Splits, names: Mapping[int, str]
    ) -> Figure:
        """A row per query: itself, who helps it (blue) and who hurts it (orange)."""
        if not rankings:
            raise InputError("Pictures of influence need at least one query.")
        counts, rows = are_counts(self.values), []
        for pair in rankings:
            query = pair[0].query
            label = splits.query.labels[splits.query.positions([query])[0]]
            called = short(names.get(query, f"query{splits.query.number(query, ' ')}"))
            rows.append(
                [
                    Picture(
                        splits.query.image(query), f"{called}\n{short(splits.classes[label])}{splits.query.told(query)}"
                    )
                ]
            )
            for ranking, colour in zip(pair, (HELP, HURT), strict=True):
                for (id_, score), name in zip(ranking, ranking.class_names(), strict=True):
                    value = scored(score, counts=counts)
                    text = f"{short(name)}\n{splits.train.number(id_, '#', '  ')}{value}{splits.train.told(id_)}"
                    rows[-1].append(Picture(splits.train.image(id_), text, colour))
        return gallery(rows, f"{self.method}: training examples that help (blue) and hurt (orange) each query")

    def plot_losses(self, trace: Trace, query: int | None = None, *, k: int = 3) -> Figure:
        """Draw the query's loss along training beside those of the k examples that help and hurt it most.

        Args:
            trace: that recorded them.
            query: the query's id; may be left out when there is only one.
            k: how many examples at either end.

        Raises:
            InputError: an unknown query, k above the number of examples.
        """
        query = self._only(query)
        helps, hurts = self.top(k, query=query), self.bottom(k, query=query)
        columns = [positions_of(ranking.ids, trace.train_ids, "train ids") for ranking in (helps, hurts)]
        own = trace.query_losses[:, positions_of([helps.query], trace.query_ids, "query ids")[0]]
        runs = self.info.get("runs", 1)
        of_one = f"; scores of {runs:,} runs, losses of one" if isinstance(runs, int) and runs > 1 else ""
        title = f"Training examples that help and hurt query {helps.query} most ({self.method}{of_one})"
        losses = [trace.train_losses[:, places] for places in columns]
        return loss_trajectories([row.epoch for row in trace.rows], own, *losses, query=helps.query, title=title)

    def _repr_html_(self) -> str:
        rows = []
        for query in self.query_ids[:8].tolist():
            best, worst = self.top(1, query=query), self.bottom(1, query=query)
            ends = [(str(r.ids[0]), r.class_names()[0], float(r.scores[0])) for r in (best, worst)]
            rows.append((str(query), *ends[0], *ends[1]))
        names = ["query", "helps most", "class", "score", "hurts most", "class", "score"]
        more = self.query_ids.size - len(rows)
        return html_table(f"{self!r}{f'; of its queries the first {len(rows)}' if more else ''}", names, rows)

    def __repr__(self) -> str:
        short = {key: value for key, value in self.info.items() if value not in (None, 0, "") and not _long(value)}
        notes = json.dumps(short, default=str)
        size = f"{self.train_ids.size:,} train x {self.query_ids.size:,} queries"
        return f"Scores({self.method}: {size}, positive = helps; {notes})"


SomeScores = Scores | Sequence[Scores] | Mapping[str, Scores]


def named_scores(scores: SomeScores) -> dict[str, Scores]:
    """Scores by name: their method's, or the keys of a mapping.

    Raises:
        InputError: none, or two of one name.
        InputTypeError: something else than scores.
    """
    if isinstance(scores, Mapping):
        named = [(str(name), item) for name, item in scores.items()]
    else:
        several = [scores] if isinstance(scores, Scores) else list(scores)
        named = [(getattr(item, "method", ""), item) for item in several]
    wrong = [type(item).__name__ for _, item in named if not isinstance(item, Scores)]
    if wrong:
        raise InputTypeError(
            f"scores must be Scores, a sequence or a mapping of them, got {some(wrong)}; "
            "Scores(values, train_ids, query_ids, method) makes them from arrays."
        )
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"Scores must have names of their own, got {some(names) or 'none'}. A mapping {{name: scores}} names them."
        )
    return dict(named)


def _bars(ranking: Ranking) -> list[tuple[str, float]]:
    names = [f"#{id_} {name}".strip() for id_, name in zip(ranking.ids, ranking.class_names(), strict=True)]
    return list(zip(names, ranking.scores.tolist(), strict=True))


def _long(value: object) -> bool:
    return isinstance(value, list | tuple | dict) and len(value) > 4


def _as_values(values: Any) -> Floats:
    """Real numbers as float32; what is so already, such as a memory map, stays as it is."""
    if type(values) in (np.ndarray, np.memmap) and values.dtype == np.float32:
        floats: Floats = values
        return floats
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
        return as_real(values, "Scores").astype(np.float32, copy=False)


def _check_finite(values_NQ: Floats, train_ids: Ids, query_ids: Ids) -> None:
    bad = np.argwhere(~np.isfinite(values_NQ))
    if bad.size:
        row, column = bad[0]
        raise NonFiniteError(
            f"{len(bad)} scores are NaN or infinite, the first for train id {train_ids[row]} and query id "
            f"{query_ids[column]}."
        )


def _standardized(values_NQ: Floats) -> npt.NDArray[np.float64]:
    """Each query's scores in units of their standard deviation; equal scores become 0."""
    exact_NQ = values_NQ.astype(np.float64)
    exact_NQ[:, (exact_NQ == exact_NQ[:1]).all(axis=0)] = 0
    deviation_Q = exact_NQ.std(axis=0)
    np.divide(exact_NQ, deviation_Q, out=exact_NQ, where=deviation_Q > 0)
    return exact_NQ


def _part(values_NQ: Floats | StoredScores, rows: Any, columns: Any) -> Floats:
    """Some rows and columns; of a matrix that lies query by query, as in a file, they are read in that order."""
    if isinstance(values_NQ, StoredScores):
        return values_NQ[rows, columns]
    turned = values_NQ.strides[0] < values_NQ.strides[1]
    matrix, first, second = (values_NQ.T, columns, rows) if turned else (values_NQ, rows, columns)
    both = not isinstance(first, slice) and not isinstance(second, slice)
    part: Floats = matrix[first[:, None], second] if both else matrix[first, second]
    return part.T if turned else part


# --- on disk ----------------------------------------------------------------------------------------------------------


def stored_width(n: int) -> int:
    """Return S, the columns stored for ``n`` training examples."""
    page = PAGE // 4
    return n if n < _WIDE else -(-n // page) * page


def scores_layout(
    arrays: Mapping[str, npt.NDArray[Any]],
    header: Mapping[str, Any],
    sums: str | None = None,
    head_size: int = 0,
) -> Layout:
    """Lay out a file of scores.

    Args:
        arrays: ids and labels.
        header: method, classes, info.
        sums: of the scores' blocks, once they are known.
        head_size: bytes of the head; more than it needs leave room for what is not known yet.
    """
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (array.dtype, array.shape) for name, array in arrays.items()
    }
    shapes[VALUES] = (np.dtype(np.float32), (q, stored_width(n)))
    metadata = {"kind": "comove/scores", "format_version": FORMAT_VERSION, **header}
    known = {name: block_sums(as_bytes(array)) for name, array in arrays.items()}
    known |= {} if sums is None else {VALUES: sums}
    return lay_out(shapes, metadata, known, head_size=head_size)


def write_scores(
    path: Path, values_NQ: Floats, arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]
) -> None:
    """Write a file of scores atomically, some queries at a time, never a copy of them all.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
    """
    new_folder(path.parent)
    layout, sums = scores_layout(arrays, header), BlockSums()
    with writing(path) as file:
        write_all(file, layout.head)
        for name in layout.offsets:
            for content in map(as_bytes, _pieces(values_NQ) if name == VALUES else [arrays[name]]):
                write_all(file, content)
                if name == VALUES:
                    sums.add(content)
        file.seek(0)
        write_all(file, scores_layout(arrays, header, str(sums)).head)


def _pieces(values_NQ: Floats) -> Iterator[Floats]:
    n, q = values_NQ.shape
    width = stored_width(n)
    queries = max(1, _PIECE // (4 * max(1, width)))
    for start in range(0, q, queries):
        piece_NQ = values_NQ[:, start : start + queries]
        stored_QS = np.zeros((piece_NQ.shape[1], width), np.float32)
        stored_QS[:, :n] = piece_NQ.T
        yield stored_QS


class StoredScores:
    """The scores in a file, (N, Q): of ``stored[rows, columns]`` what is asked for is read, and checked first.

    Attributes:
        shape: (N, Q).
    """

    def __init__(self, stored: StoredArray, n: int, first: bool) -> None:
        self._stored, self._n, self._first = stored, n, first
        self.shape = (n, stored.shape[1 if first else 0])

    def __getitem__(self, key: tuple[Any, Any]) -> Floats:
        """Some rows and columns: slices, or one or two arrays of places, of which every pair is taken."""
        rows, columns = key
        outer, inner = (rows, columns) if self._first else (columns, rows)
        if isinstance(inner, slice):
            inner = slice(*inner.indices(self._n)) if not self._first else inner
        elif not isinstance(outer, slice):
            outer = np.asarray(outer)[:, None]
        part = self._stored[outer, inner]
        return part if self._first else part.T

    def all(self) -> Floats:
        """All of them as a read-only memory map, once they are checked."""
        return self._stored.mapped() if self._first else self._stored.mapped().T[: self._n]


def open_scores(path: Path) -> dict[str, Any]:
    """Open a file of scores of any format, its values left where they are, as arguments of a ``Scores``.

    Raises:
        CorruptFileError: the file is missing, truncated, changed or not scores.
    """
    names, header = read_header(path)
    check_kind(header, "scores", FORMAT_VERSION, path)
    entries(header, path, {"method": str}, {"classes": list[str], "info": dict})
    first = header["format_version"] == 1
    values = "values" if first else VALUES
    absent = {values, "train_ids", "query_ids"} - set(names)
    if absent:
        raise CorruptFileError(f"{path} lacks {', '.join(sorted(absent))}; restore it or make it again.")
    arrays: dict[str, Any] = read_arrays(path, [name for name in names if name != values])
    stored = open_array(path, values)
    n, q = arrays["train_ids"].size, arrays["query_ids"].size
    if stored.dtype != np.float32 or stored.shape != ((n, q) if first else (q, stored_width(n))):
        raise CorruptFileError(f"{path} holds {stored.dtype} scores of shape {stored.shape} for {n} x {q} ids.")
    classes = header.get("classes")
    return {
        **{name: arrays.get(name) for name in ("train_ids", "query_ids", "train_labels", "query_labels")},
        "values": StoredScores(stored, n, first),
        "method": header["method"],
        "classes": None if classes is None else tuple(classes),
        "info": header.get("info") or {},
    }
