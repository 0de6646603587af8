"""How far a method's scores can be trusted here: its LDS where a report was given one, else what would measure it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from comove.attribution import Scores, attributors
from comove.discovery import label_of, parse_method
from comove.errors import InputError
from comove.evaluation import LDS
from comove.models import model_names
from comove.report.evidence import Evidence
from comove.training.sources import Source

__all__ = ["lds_command", "trust_of"]

USUAL_ALPHA = 0.5
CONTROL = "same-class-control"
NOT_OF_LDS = ("--out", "--mode", "--anchors", "--checkpoints", "--quiet", "-q", "--json", "--threads")
"""Options of ``comove train`` that ``comove lds`` has not, or that say nothing of what is trained."""


def trust_of(name: str, scores: Scores, evidence: Sequence[Evidence], source: Source) -> dict[str, Any]:
    """What the page says of one method, as JSON values.

    Args:
        name: of the method in the report.
        scores: its scores.
        evidence: the measured LDS that the report was given.
        source: the first run.

    Returns:
        ``{"lds": [...]}``, one entry an output, at the sampling ratio nearest to a half; ``{"command": ...}`` where
        none was measured, with a command that would; ``{}`` where no command can be named.
    """
    found = [
        (result, one)
        for one in evidence
        if isinstance(one.result, Sequence)
        for result in one.result
        if isinstance(result, LDS) and result.method in (name, scores.method)
    ]
    best: dict[str, tuple[LDS, Evidence]] = {}
    for result, one in sorted(found, key=lambda pair: abs((pair[0].alpha or USUAL_ALPHA) - USUAL_ALPHA)):
        best.setdefault(result.output or "", (result, one))
    if best:
        return {"lds": [_told(result, one, source) for result, one in best.values()]}
    command = lds_command(scores, source)
    return {} if command is None else {"command": command}


def _told(result: LDS, evidence: Evidence, source: Source) -> dict[str, Any]:
    assert isinstance(evidence.result, Sequence)
    beside = [
        one.mean
        for one in evidence.result
        if isinstance(one, LDS) and (one.method, one.alpha, one.output) == (CONTROL, result.alpha, result.output)
    ]
    return {
        "mean": result.mean,
        "interval": result.interval,
        "share": result.share_of_ceiling,
        "alpha": result.alpha,
        "output": result.output or "",
        "same": beside[0] if beside and result.method != CONTROL else None,
        "other": _other_training(evidence.provenance.settings, source),
    }


def _other_training(settings: Mapping[str, Any], source: Source) -> bool:
    """Whether the retrained models are known to be of another kind than the run, or trained in another way."""
    if source.run is None:
        return False
    for part in ("model", "recipe"):
        theirs, ours = settings.get(part), source.run.manifest.get(part)
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            known = set(theirs) & set(ours)  # an entry that one of the two versions did not have yet says nothing
            if any(theirs[key] != ours[key] for key in known):
                return True
    return False


def lds_command(scores: Scores, source: Source) -> str | None:
    """The command line that measures a method's LDS on a run's data, with models trained as the run was.

    ``None`` where the method is no built-in one, or the run was not trained here from data and a model by name.
    """
    trained = None if source.run is None else _trained(source.run.manifest)
    method = _method(scores.method)
    if trained is None or method is None:
        return None
    return shlex.join(["comove", "lds", *trained, "--methods", method, "--out", "lds/"])


def _method(label: str) -> str | None:
    """The word that names a method on a command line, from a label such as ``cld(transform=log-odds, whiten=0.03)``."""
    name, _, options = label.removesuffix(")").partition("(")
    word = ":".join([name, *(options.split(", ") if options else ())])
    try:
        built = parse_method(word, attributors(), "attribution method")
    except InputError:
        return None
    return word if label_of(built) == label else None


def _trained(manifest: Mapping[str, Any]) -> list[str] | None:
    """The options that say what was trained, and on what: those of the run's own command, or the names recorded."""
    words = _words(str(manifest.get("command") or ""))
    if len(words) > 2 and words[1] == "train" and words[2].startswith("-"):
        return _without(words[2:], NOT_OF_LDS)
    dataset, model = manifest["dataset"].get("source") or {}, manifest.get("model", {}).get("name")
    if not dataset.get("name") or model not in model_names():
        return None
    return ["--dataset", str(dataset["name"]), "--model", str(model)]


def _words(command: str) -> list[str]:
    """The words of a command; none where it does not say all of them, or is no command of a shell."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation without its end
        return []
    return [] if words[-1:] == ["..."] else words


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Words of a command line without some options and their values."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if word.startswith("--") or word == "-q":
            dropping = word.partition("=")[0] in names
        if not dropping:
            kept.append(word)
    return kept
