"""Checks that runs, scores and measurements belong together: one report describes one data set.

A recorded fingerprint of the data decides. Scores computed elsewhere have none; for these a fingerprint of ids, labels
and class names is computed and compared with that of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from comove.attribution import Scores
from comove.data import IdIndex, Ids, Splits
from comove.errors import FingerprintError, some
from comove.report.provenance import Provenance
from comove.store import check_fingerprint, digest
from comove.training.sources import Source

__all__ = ["check_data", "check_ids", "check_provenance", "check_scores"]


def check_data(sources: Sequence[Source], splits: Splits | None) -> str | None:
    """Check that all runs, and the data if given, have one fingerprint; return it (``None``: it is not known).

    Raises:
        FingerprintError: they have not.
    """
    known = [(source, found) for source in sources if (found := source.data_fingerprint) is not None]
    expected = splits.fingerprint if splits is not None else known[0][1] if known else None
    for source, found in known:
        where = source.run.path if source.run is not None else source.trace.path
        check_fingerprint("data set", found=found, expected=str(expected), where=where)
    return expected


def check_scores(name: str, scores: Scores, source: Source, fingerprint: str | None) -> None:
    """Check that scores are of the examples and queries that the runs recorded.

    Raises:
        FingerprintError: of another data set.
    """
    recorded = scores.info.get("data_fingerprint")
    if recorded is not None and fingerprint is not None:
        check_fingerprint("data set", found=str(recorded), expected=fingerprint, where=f"The scores of {name}")
    sides = (
        ("training", scores.train_ids, scores.train_labels, source.train_ids, source.train_labels),
        ("query", scores.query_ids, scores.query_labels, source.query_ids, source.query_labels),
    )
    for side, ids, labels, known_ids, known_labels in sides:
        places = check_ids(f"The scores of {name}", side, ids, known_ids)
        if labels is not None and known_labels is not None:
            names = _names(scores.classes, source.classes)
            both = zip((labels, known_labels[places]), names, strict=True)
            found, expected = (digest(ids, given, part) for given, part in both)
            check_fingerprint("data set", found=found, expected=expected, where=f"The scores of {name} ({side} labels)")


def _names(own: tuple[str, ...] | None, known: tuple[str, ...] | None) -> tuple[str, str]:
    """Class names of both, as text; where one has none they are not compared."""
    return (str(own), str(known)) if own is not None and known is not None else ("", "")


def check_ids(what: str, side: str, ids: Ids, known: Ids) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return where ``ids`` stand among those the runs recorded.

    Raises:
        FingerprintError: the runs know nothing of some.
    """
    places, found = IdIndex(known).find(ids)
    if not found.all():
        raise FingerprintError(
            f"{what} must be of the {side} examples that the runs recorded: {some(ids[~found].tolist())} are not "
            f"among these {known.size}. It was made from other data, or from another split: give the runs it was "
            "made from."
        )
    return places


def check_provenance(what: str, provenance: Provenance, fingerprint: str | None) -> None:
    """Check the fingerprint that a measurement carries, where it carries one.

    Raises:
        FingerprintError: it is another.
    """
    if provenance.fingerprint is not None and fingerprint is not None:
        where = provenance.source or what
        check_fingerprint("data set", found=provenance.fingerprint, expected=fingerprint, where=where)
