"""One self-contained HTML file: what every prediction depends on, and how far that can be trusted.

The page opens from disk, asks the network for nothing, and holds everything it shows: JSON, arrays as base64, sprites.
Labels and texts are data: they reach the page as JSON and are only ever set as text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comove.attribution import Scores, attributors
from comove.attribution.scores import SomeScores, named_scores
from comove.coreset import Coreset, selectors
from comove.data import ExampleSet, Ids, Splits, positions_of, spread_over_classes
from comove.display import short
from comove.errors import InputError
from comove.report.compatibility import check_data, check_ids, check_provenance, check_scores
from comove.report.evidence import PAGES, Evidence, Suspects, as_evidence, by_page, charts_of
from comove.report.glossary import terms
from comove.report.lists import TopLists, top_lists
from comove.report.mean_influence import MeanInfluence, mean_influence
from comove.report.packing import json_ids, packed
from comove.report.provenance import Provenance, of_run
from comove.report.queries import QueryFacts, query_facts
from comove.report.render import render
from comove.report.thumbnails import Sheets, is_image, sheets_of
from comove.report.trajectories import Trajectories, trajectories_of
from comove.report.trust import trust_of
from comove.store import new_folder, versions, write_bytes
from comove.training.sources import Source, SourceLike, as_sources

__all__ = ["write_report"]

LIMIT = 20_000_000
RESERVE = 200_000
"""Bytes for the page's own code and what little is not counted."""
LOSS_SHARE = 0.2
MOST_SUSPECTS = MOST_KEPT = 60
LETTERS = (1200, 500)
"""How much of a query's and of a training example's text is shown at most."""
FEWEST_LETTERS = 80


@dataclass(frozen=True)
class ReportSize:
    """How much a report may hold.

    Attributes:
        queries: of more, as many of each class are shown.
        bytes: the file should not exceed; images lose quality before it does.
    """

    queries: int = 1000
    bytes: int = LIMIT


@dataclass(frozen=True)
class Origin:
    """Where a report comes from: the command line that made it, and the file of each method's scores."""

    command: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def write_report(
    path: str | os.PathLike[str],
    runs: SourceLike | Sequence[SourceLike],
    scores: SomeScores,
    results: Sequence[Any] = (),
    *,
    dataset: Splits | None = None,
    texts: Mapping[int, str] | None = None,
    top: int = 8,
    title: str = "",
    size: ReportSize | None = None,
    origin: Origin | None = None,
) -> Path:
    """Write a report: one HTML file with everything in it.

    Args:
        path: of the file.
        runs: what the scores were computed from; losses are drawn of the first, predictions averaged over all.
        scores: of one or more methods; a mapping names them.
        results: what else was measured: LDS (or a Benchmark), Brittleness, Counterfactual, Curve, Coreset, Suspects, or
            :class:`Evidence` of one of them; each kind has a tab, and those not given have none.
        dataset: where the images are, when the runs' data cannot be loaded by name.
        texts: id -> text, for examples that are texts; by default those of the data.
        top: how many training examples each method shows at either end.
        title: by default the name of the data.
        size: how much there may be in it.
        origin: what is said of where the report comes from.

    Returns:
        The path.

    Raises:
        InputError: no runs, no scores, no place for a query.
        FingerprintError: scores or results of other data than the runs'.
        StorageError: the file cannot be written.
    """
    size, origin = size or ReportSize(), origin or Origin()
    if top < 1 or size.queries < 1:
        raise InputError(f"top and size.queries must be at least 1, got {top} and {size.queries}.")
    given = as_sources(runs, frozenset({"trace"}), "A report")
    named, evidence = named_scores(scores), as_evidence(results)
    top = min(top, max(one.train_ids.size for one in named.values()))
    fingerprint = check_data(given, dataset)
    for name, one in named.items():
        check_scores(name, one, given[0], fingerprint)
    for measured in evidence:
        check_provenance("A measured result", measured.provenance, fingerprint)
    content = _Content(given, dataset, named, evidence, texts, top, size.queries, size.bytes)
    made = Provenance("", origin.command, None, content.name, fingerprint, versions())
    payload = content.payload(title or f"{content.name}: what predictions depend on", made, origin.sources)
    target = Path(path)
    new_folder(target.parent)
    sheets = () if content.sheets is None else content.sheets.encoded
    write_bytes(target, render(payload, content.blocks(), sheets).encode("utf-8"))
    return target


class _Content:
    """Everything on the page, gathered once."""

    def __init__(
        self,
        sources: Sequence[Source],
        dataset: Splits | None,
        named: Mapping[str, Scores],
        evidence: Sequence[Evidence],
        texts: Mapping[int, str] | None,
        top: int,
        most: int,
        limit: int,
    ) -> None:
        self.sources, self.named = sources, named
        self.first = sources[0]
        self.splits = dataset if dataset is not None else _data_of(self.first)
        self.texts = texts if texts is not None or self.splits is None else self.splits.texts or None
        self.pages = by_page(evidence)
        every = np.unique(np.concatenate([one.query_ids for one in named.values()]))
        if not every.size:
            raise InputError("A report needs scores of at least one query; these have none.")
        labels = self.first.query_labels
        if labels is not None:
            labels = labels[positions_of(every, self.first.query_ids, "query ids")]
        self.scored = int(every.size)
        self.facts: QueryFacts = query_facts(sources, spread_over_classes(every, labels, most)).in_order()
        self.suspects = self._suspects()
        self.kept = self._kept()
        others = [one.ids for one in (*self.suspects, *self.kept)]
        self.lists: TopLists = top_lists(named, self.facts.ids, top, others=others)
        self.influence: MeanInfluence = mean_influence(named, self.facts.ids, self.lists)
        self.files = self._files()
        written = sum(len(name.encode()) + 4 for names in self.files.values() for name in names)
        held = (self.lists.members, self.lists.scores, self.influence.mean, self.influence.listed)
        room = limit - RESERVE - written - 4 * sum(array.nbytes for array in held) // 3
        losses = int(LOSS_SHARE * room * 3 / 4)
        self.losses: Trajectories = trajectories_of(
            self.first.trace, self.facts.ids, self.lists.train_ids, max(losses, 0)
        )
        self.sheets, self.shown = self._pictures(room - 4 * self.losses.stored.nbytes // 3)

    @property
    def name(self) -> str:
        """Of the data."""
        if self.first.run is not None:
            return str(self.first.run.manifest["dataset"]["name"])
        return "examples" if self.splits is None else self.splits.name

    @property
    def classes(self) -> list[str]:
        """Class names; numbers where there are none."""
        for names in (self.splits.classes if self.splits is not None else None, self.first.classes):
            if names is not None:
                return list(names)
        named = next((one.classes for one in self.named.values() if one.classes is not None), None)
        labels = [part for part in (self.first.train_labels, self.first.query_labels) if part is not None]
        return list(named) if named else [str(i) for i in range(1 + max((int(p.max()) for p in labels), default=-1))]

    def _suspects(self) -> list[Suspects]:
        lists: list[Suspects] = []
        held_out = np.setdiff1d(self.first.query_ids, self.first.train_ids)  # comove clean --folds ranks them as well
        for one in self.pages["suspects"]:
            assert isinstance(one.result, Sequence)
            for suspects in one.result:
                assert isinstance(suspects, Suspects)
                shown = suspects.without(held_out).first(MOST_SUSPECTS)
                check_ids(f"The suspects of {suspects.method}", "training", shown.ids, self.first.train_ids)
                lists.append(shown)
        return lists

    def _kept(self) -> list[Suspects]:
        """The first examples that each coreset keeps: of each class the first, then the second, and so on."""
        lists: list[Suspects] = []
        for one in self.pages["coresets"]:
            assert isinstance(one.result, Coreset)
            coreset = one.result
            check_ids(f"The coreset of {coreset.method}", "training", coreset.ids, self.first.train_ids)
            first = positions_of(spread_over_classes(coreset.ids, coreset.labels, MOST_KEPT), coreset.ids)
            note = (
                f"The first of each class, of the {len(coreset):,} of {coreset.n_candidates:,} examples that it keeps."
            )
            lists.append(Suspects(coreset.method, coreset.ids[first], coreset.scores[first], note=note))
        return lists

    def _files(self) -> dict[str, list[str]]:
        """The file or line of each example that is shown, where they are known."""
        known = {} if self.splits is None else self.splits.sources
        ids = {"query": self.facts.ids, "train": self.lists.train_ids}
        return {side: [known.get(id_, "") for id_ in of.tolist()] for side, of in ids.items()} if known else {}

    def _pictures(self, room: int) -> tuple[Sheets | None, dict[str, list[str]]]:
        """Sprites of images, or shortened texts; neither where the inputs are something else."""
        ids = {"query": self.facts.ids, "train": self.lists.train_ids}
        if self.texts is not None:
            return None, _shortened(self.texts, ids, room)
        if self.splits is None or not is_image(self.splits.train):
            return None, {}
        held_out = [part for part in (self.splits.query, self.splits.validation) if part is not None]
        queries = _joined(held_out, ids["query"])
        return sheets_of([(queries, ids["query"]), (self.splits.train, ids["train"])], room), {}

    def payload(self, title: str, made: Provenance, files: Mapping[str, str]) -> dict[str, Any]:
        """Everything but the arrays, as a JSON object."""
        members = self.lists.members
        labels = self.first.train_labels
        places = positions_of(self.lists.train_ids, self.first.train_ids, "train ids")
        return {
            "title": title,
            "data": self.name,
            "trained": int(self.first.train_ids.size),
            "scored": self.scored,
            "classes": self.classes,
            "methods": self._methods(),
            "shape": list(members.shape),
            "query": {"ids": json_ids(self.facts.ids), **self.facts.to_json()},
            "train": {
                "ids": json_ids(self.lists.train_ids),
                "labels": [-1] * places.size if labels is None else labels[places].tolist(),
            },
            "texts": self.shown or None,
            "files": self.files or None,
            "sheets": None if self.sheets is None else self.sheets.to_json(),
            "losses": {**self.losses.to_json(), "run": _run_name(self.first, len(self.sources))},
            "pages": self._pages(),
            "suspects": self._lists(self.suspects, "suspects"),
            "made": self._made(made, files),
            "terms": [term.to_json() for term in terms() if term.words],
            "about": {"attribution": _summaries(attributors()), "coreset": _summaries(selectors())},
        }

    def _methods(self) -> list[dict[str, Any]]:
        """Of each method its name, how far to trust it, and when an example is typical."""
        return [
            {
                **_named(name),
                "queries": int(self.influence.queries[m]),
                "typical": float(self.influence.threshold[m]),
                "trust": trust_of(name, scores, self.pages["lds"], self.first),
            }
            for m, (name, scores) in enumerate(self.named.items())
        ]

    def _pages(self) -> list[dict[str, Any]]:
        pages = []
        for key, (tab, heading, about) in PAGES.items():
            figures = [
                {**chart.to_json(), "made": one.provenance.to_json()}
                for one in self.pages[key]
                for chart in charts_of(one)
            ]
            lists = self._lists(self.kept, "coresets") if key == "curves" else None
            if figures or lists:
                head = {"id": key, "tab": tab, "heading": heading, "about": about}
                pages.append({**head, "figures": figures, "kept": lists})
        return pages

    def _lists(self, lists: Sequence[Suspects], key: str) -> dict[str, Any] | None:
        """Lists of training examples for the page, and where they come from."""
        if not lists:
            return None
        content = [
            {
                "method": one.method,
                "note": one.note,
                "members": positions_of(one.ids, self.lists.train_ids, "train ids").tolist(),
                "scores": [float(f"{value:.5g}") for value in one.scores.tolist()],
                "suggested": None if one.suggested is None else one.suggested.tolist(),
                "known": None if one.known is None else one.known.tolist(),
            }
            for one in lists
        ]
        return {"lists": content, "made": [one.provenance.to_json() for one in self.pages[key]]}

    def _made(self, report: Provenance, files: Mapping[str, str]) -> list[dict[str, Any]]:
        """Where each part of the query page comes from."""
        first = of_run(self.first)
        entries = [{"what": "This report", **report.to_json()}]
        count = len(self.sources)
        for number, source in enumerate(self.sources):
            what = "Run" if count == 1 else f"Run {number + 1} of {count}"
            drawn = ": predictions, loss trajectories" if number == 0 else ": predictions"
            entries.append({"what": what + drawn, **of_run(source).to_json()})
        for name, scores in self.named.items():
            info = dict(scores.info)
            noted = {key: info.pop(key, None) for key in ("command", "versions", "data_fingerprint")}
            seed = info.get("seed")
            fingerprint = noted["data_fingerprint"] or report.fingerprint
            made = Provenance(
                files.get(name, "scores in memory"),
                noted["command"],
                seed if isinstance(seed, int) else None,
                first.data,
                fingerprint,
                noted["versions"] or {},
                info,
            )
            entries.append({"what": f"Scores of {name}", **made.to_json()})
        return entries

    def blocks(self) -> dict[str, str]:
        """The arrays, as base64 by name."""
        return {
            "members": packed(self.lists.members, "<i4"),
            "scores": packed(self.lists.scores, "<f4"),
            "means": packed(self.influence.mean, "<f4"),
            "listed": packed(self.influence.listed, "<u4"),
            "losses": packed(self.losses.stored, "<u2"),
        }


def _data_of(source: Source) -> Splits | None:
    """The run's data; ``None`` where it came from memory and was not passed again: the page then shows no images."""
    run = source.run
    if run is None or (run.dataset is None and not run.manifest["dataset"]["source"]):
        return None
    return run.data()


def _joined(parts: Sequence[ExampleSet], ids: Ids) -> ExampleSet:
    """The set that holds all of these ids; of queries from several sets, a new one."""
    whole = next((part for part in parts if np.isin(ids, part.ids).all()), None)
    if whole is not None:
        return whole
    held = [part.subset(ids[np.isin(ids, part.ids)]) for part in parts]
    labels, own = (np.concatenate([getattr(part, name) for part in held]) for name in ("labels", "ids"))
    if parts[0].structured:
        items = [part[place] for part in held for place in range(len(part))]
        return ExampleSet(items, ids=own, labels=labels, classes=parts[0].classes, collate=parts[0].collate)
    raw = torch.cat([part.raw(np.arange(len(part))) for part in held])
    return ExampleSet.from_arrays(raw, labels, ids=own, classes=parts[0].classes)


def _shortened(texts: Mapping[int, str], ids: Mapping[str, Ids], room: int) -> dict[str, list[str]]:
    """Texts cut to what fits: first to what one would read, then further as far as it takes."""
    share = room // max(1, 2 * sum(array.size for array in ids.values()))  # about two bytes per letter
    limits = [max(FEWEST_LETTERS, min(letters, share)) for letters in LETTERS]
    return {
        side: [short(texts.get(id_, ""), letters) for id_ in ids[side].tolist()]
        for side, letters in zip(("query", "train"), limits, strict=True)
    }


def _summaries(methods: Mapping[str, Any]) -> dict[str, str]:
    """What each method does, in a sentence."""
    return {name: method.summary for name, method in methods.items()}


def _named(name: str) -> dict[str, Any]:
    head, opened, options = name.removesuffix(")").partition("(") if name.endswith(")") else (name, "", "")
    return {"name": name, "short": head, "options": options if opened else ""}


def _run_name(source: Source, count: int) -> str:
    seed = "" if source.run is None else f", seed {source.run.seed}"
    return f"run 1 of {count}{seed}" if count > 1 else f"the run{seed}"
