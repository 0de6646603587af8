"""What other commands wrote, read back for a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comove.data.tables import read_rows
from comove.errors import CorruptFileError
from comove.evaluation import LDS, Brittleness, Counterfactual, Curve, CurvePoint
from comove.evaluation.coreset_curves.curve import TABLE
from comove.report.evidence import Evidence, Suspects
from comove.report.provenance import Provenance, of_manifest, short_path
from comove.report.queries import UNKNOWN
from comove.store import entries, read_header, read_json, understanding

__all__ = ["read_brittleness", "read_curves", "read_lds", "read_suspects", "read_texts"]

SUSPECT_COLUMNS = ("method", "id", "score")


def read_lds(path: Path) -> Evidence:
    """Read what ``comove lds --out`` wrote: the folder, or its ``lds.json``.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    file = _file(path, "lds.json", "comove lds --out")
    content = entries(read_json(file), file, {"results": list[dict[str, Any]]}, {"bank": dict})
    with understanding(file):
        results = tuple(LDS.from_json(row, file) for row in content["results"])
    return Evidence(results, of_manifest(content["bank"] or {}, short_path(path)))


def read_brittleness(path: Path) -> list[Evidence]:
    """Read what ``comove brittleness --out`` wrote: the folder, or one of its ``.safetensors`` files.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    files = [_file(path, "brittleness.safetensors", "comove brittleness --out")]
    files += [file for file in (path / "counterfactual.safetensors",) if file.exists()]
    found: list[Evidence] = []
    for file in files:
        result = Counterfactual.load(file) if file.stem == "counterfactual" else Brittleness.load(file)
        found.append(Evidence(result, of_manifest(result.info, short_path(file))))
    return found


def read_curves(path: Path) -> list[Evidence]:
    """Read what ``comove curve`` or ``coreset_curve`` wrote: the folder, or its ``curve.csv``.

    One curve a target model.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    file = _file(path, TABLE, "comove curve --out")
    rows = read_rows(file, ("target", *CurvePoint._fields))
    targets: dict[str, list[CurvePoint]] = {}
    with understanding(file):
        for row in rows:
            targets.setdefault(row["target"], []).append(_point(row))
    return [
        Evidence(Curve(tuple(points), max(point.size for point in points), 0, {}), _curve_made(file, target), target)
        for target, points in targets.items()
    ]


def _point(row: Mapping[str, str]) -> CurvePoint:
    share, accuracy = float(row["budget"]), float(row["accuracy"])
    return CurvePoint(row["method"], share, int(row["size"]), int(row["seed"]), accuracy)


def _curve_made(file: Path, target: str) -> Provenance:
    """Of the curve's manifest, which lies in a folder of the target's name where there are several."""
    for folder in (file.parent / target.replace(":", "-") / "trained", file.parent / "trained", file.parent):
        if (folder / "manifest.json").exists():
            return of_manifest(read_json(folder / "manifest.json"), short_path(file))
    return Provenance(short_path(file))


def read_suspects(path: Path) -> Evidence:
    """Read a table of likely mislabelled examples: columns method, id, score, and perhaps suggested, known_wrong, note.

    A folder that ``comove clean --out`` wrote holds one, ``suspects.csv``.

    The rows of a method stand in the order of suspicion. ``suggested`` is a class index (or empty), ``known_wrong`` 0
    or 1.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    path = _file(path, "suspects.csv", "comove clean --out")
    methods: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(path, SUSPECT_COLUMNS):
        methods.setdefault(row["method"], []).append(row)
    with understanding(path):
        lists = tuple(_suspects(name, rows) for name, rows in methods.items())
    return Evidence(lists, _made_with(path))


def _made_with(table: Path) -> Provenance:
    """What the ranking beside a table of suspects tells of itself, where ``comove clean`` wrote one."""
    ranking = table.with_name("suspicion.safetensors")
    found = entries(read_header(ranking)[1], ranking, {"info": dict})["info"] if ranking.exists() else {}
    info = entries(found, ranking, {}, {"data_fingerprint": str, "command": str, "versions": dict})
    fingerprint = info["data_fingerprint"]
    return Provenance(short_path(table), info["command"], fingerprint=fingerprint, versions=info["versions"] or {})


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


def _file(path: Path, name: str, command: str) -> Path:
    """The file itself, or the one of that name in a folder which a command wrote.

    Raises:
        CorruptFileError: the folder does not hold it, or there is nothing.
    """
    if path.is_dir() and (path / name).is_file():
        return path / name
    if path.is_file():
        return path
    found = f"There is no {path}" if not path.exists() else f"{path} holds no {name}"
    raise CorruptFileError(f"{found}; give the folder that {command} wrote, or its {name}.")


def read_texts(path: Path) -> dict[int, str]:
    """Read a table of texts: columns id and text.

    Raises:
        CorruptFileError: it is not there, or something else.
    """
    rows = read_rows(path, ("id", "text"))
    with understanding(f"{path} (ids must be whole numbers)"):
        return {int(row["id"]): row["text"] for row in rows}
