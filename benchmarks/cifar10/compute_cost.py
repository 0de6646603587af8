"""What a method took, all models that it needs counted in."""

from __future__ import annotations

import math

from published import Published

__all__ = ["cost_of"]


def cost_of(found: Published, label: str) -> tuple[float | None, float | None] | None:
    """Seconds and FLOPs of a method for all queries, by the book; ``None`` where it was not run.

    They hold the models that it needs: the recorded runs (with their recording, in seconds for all methods, in FLOPs
    for CLD alone, as far as it reads it), or the retrained subsets.
    """
    costs, declared = found.costs, found.content["declared"]
    own = costs.get(label)
    if own is None or "control" in label:
        return None
    if "models" in own:
        bank = costs.get("fit-bank", {})
        seconds = bank["seconds"] / bank["models"] * own["models"] if bank.get("models") else None
        size = 0.5 * found.content["data"]["train"] * declared["recipe"]["epochs"]
        flops = own["models"] * size * costs["model"]["step_flops"]
        return (None if seconds is None else seconds + own["seconds_once"]), flops
    runs = declared["runs"]
    trained = costs.get("runs", {})
    each = trained.get("seconds", math.nan) / trained.get("count", math.nan) * runs
    flops = trained.get("flops training", math.nan) / trained.get("count", math.nan) * runs
    if label.startswith("cld"):
        read = own["flops_once"] / max(e["flops_once"] for e in costs.values() if "flops_once" in e)  # rows, of all
        flops += trained["flops recording"] / trained["count"] * runs * read
    seconds = each + own["seconds_once"] if "seconds_once" in own else each
    if own.get("timed"):
        seconds += own["seconds"] / own["timed"] * runs
    return seconds, flops + own.get("flops", 0) * runs + own.get("flops_once", 0)
