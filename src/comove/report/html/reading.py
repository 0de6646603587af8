"""What other commands wrote, read back for a report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comove.errors import CorruptFileError
from comove.evaluation import LDS, Brittleness, Counterfactual, Curve, CurvePoint
from comove.report.html.evidence import Evidence, Suspects
from comove.report.html.provenance import Provenance, of_manifest, told
from comove.report.html.queries import UNKNOWN
from comove.store import read_header, read_json

__all__ = ["read_brittleness", "read_curves", "read_lds", "read_suspects", "read_texts"]

SUSPECT_COLUMNS = ("method", "id", "score")


def read_lds(path: Path) -> Evidence:
    """Read what ``comove lds --out`` wrote: the folder, or its ``lds.json``.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    content = read_json(path / "lds.json" if path.is_dir() else path)
    try:
        results = tuple(_lds(row) for row in content["results"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} must hold the results of comove lds (lds.json); {error!r} is amiss.") from error
    return Evidence(results, of_manifest(content.get("bank") or {}, told(path)))


def _lds(row: Mapping[str, Any]) -> LDS:
    own = {name: value for name, value in row.items() if name in LDS.__dataclass_fields__}
    own["per_query"] = np.array(own["per_query"], np.float64)  # null is NaN
    own["query_ids"] = np.array(own["query_ids"], np.int64)
    own["mean"] = np.nan if own["mean"] is None else own["mean"]
    ends = own["interval"]
    own["interval"] = None if ends is None else tuple(np.nan if end is None else end for end in ends)
    return LDS(**own)


def read_brittleness(path: Path) -> list[Evidence]:
    """Read what ``comove brittleness --out`` wrote: the folder, or one of its ``.safetensors`` files.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    if path.is_file():
        files = [path]
    else:
        files = [path / "brittleness.safetensors"]
        files += [file for file in (path / "counterfactual.safetensors",) if file.exists()]
    found: list[Evidence] = []
    for file in files:
        result = Counterfactual.load(file) if file.stem == "counterfactual" else Brittleness.load(file)
        found.append(Evidence(result, of_manifest(result.info, told(file))))
    return found


def read_curves(path: Path) -> list[Evidence]:
    """Read what ``comove curve --out`` wrote: the folder, or its ``curve.csv``; one curve a target model.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    file = path / "curve.csv" if path.is_dir() else path
    rows = _rows(file, ("target", *CurvePoint._fields))
    targets: dict[str, list[CurvePoint]] = {}
    try:
        for row in rows:
            targets.setdefault(row["target"], []).append(_point(row))
    except ValueError as error:
        raise CorruptFileError(f"{file} is no table of coreset curves: {error}.") from error
    return [
        Evidence(Curve(tuple(points), max(point.size for point in points), 0, {}), _curve_made(file, target), target)
        for target, points in targets.items()
    ]


def _point(row: Mapping[str, str]) -> CurvePoint:
    share, accuracy = float(row["budget"]), float(row["accuracy"])
    return CurvePoint(row["method"], share, int(row["size"]), int(row["seed"]), accuracy)


def _curve_made(file: Path, target: str) -> Provenance:
    """Of the curve's manifest, which lies in a folder of the target's name where there are several."""
    for folder in (file.parent / target.replace(":", "-") / "trained", file.parent / "trained"):
        if (folder / "manifest.json").exists():
            return of_manifest(read_json(folder / "manifest.json"), told(file))
    return Provenance(told(file))


def read_suspects(path: Path) -> Evidence:
    """Read a table of likely mislabelled examples: columns method, id, score, and perhaps suggested, known_wrong, note.

    A folder that ``comove clean --out`` wrote holds one, ``suspects.csv``.

    The rows of a method stand in the order of suspicion. ``suggested`` is a class index (or empty), ``known_wrong`` 0
    or 1.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    path = path / "suspects.csv" if path.is_dir() else path
    methods: dict[str, list[dict[str, str]]] = {}
    for row in _rows(path, SUSPECT_COLUMNS):
        methods.setdefault(row["method"], []).append(row)
    try:
        lists = tuple(_suspects(name, rows) for name, rows in methods.items())
    except ValueError as error:
        raise CorruptFileError(f"{path} is no table of suspects: {error}.") from error
    return Evidence(lists, _made_with(path))


def _made_with(table: Path) -> Provenance:
    """What the ranking beside a table of suspects tells of itself, where ``comove clean`` wrote one."""
    ranking = table.with_name("suspicion.safetensors")
    info = read_header(ranking)[1].get("info", {}) if ranking.exists() else {}
    fingerprint = info.get("data_fingerprint")
    return Provenance(told(table), info.get("command"), fingerprint=fingerprint, versions=info.get("versions") or {})


def _suspects(name: str, rows: list[dict[str, str]]) -> Suspects:
    suggested = [int(row.get("suggested") or UNKNOWN) for row in rows]
    known = [row.get("known_wrong") in ("1", "True", "true") for row in rows] if "known_wrong" in rows[0] else None
    return Suspects(
        name,
        np.array([int(row["id"]) for row in rows]),
        np.array([float(row["score"]) for row in rows]),
        np.array(suggested) if "suggested" in rows[0] else None,
        None if known is None else np.array(known),
        rows[0].get("note") or "",
    )


def read_texts(path: Path) -> dict[int, str]:
    """Read a table of texts: columns id and text.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    rows = _rows(path, ("id", "text"))
    try:
        return {int(row["id"]): row["text"] for row in rows}
    except ValueError as error:
        raise CorruptFileError(f"{path}: ids must be whole numbers ({error}).") from error


def _rows(file: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = list(csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{file} cannot be read as a table: {error}.") from error
    absent = [name for name in needed if not rows or rows[0].get(name) is None]
    if absent:
        named = f"columns {', '.join(needed)}"
        raise CorruptFileError(f"{file} must be a table with {named}, and rows; it lacks {', '.join(absent)}.")
    return rows
