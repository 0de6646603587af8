"""How fast the trainers are, against what the hardware could do; kept in ``speed.json``, one entry a trainer."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from steps import Session, note_machine

from comove.errors import CorruptFileError
from comove.evaluation.costs.measured import flops_of
from comove.models import ModelSpec
from comove.store import read_json, write_json
from comove.training import Engine, Member, Resident, resolve_device, train_many
from comove.training.many.compiled import why_not_compiled

__all__ = ["LIMIT", "measure_speed"]

LIMIT = 800e12
"""FLOP/s that one H100 reaches in half precision at its best."""
KINDS = ("one-by-one", "captured")


def measure_speed(at: Session) -> None:
    """Train a model of all data, and one of half of them, by each way of training them one by one."""
    file = at.folder / "speed.json"
    at.splits  # noqa: B018  claims the folder
    try:
        found: dict[str, Any] = read_json(file)
    except CorruptFileError:
        found = {}
    device = resolve_device(at.device)
    kinds = [kind for kind in KINDS if kind not in found]
    if not kinds:
        return
    whole = at.study.whole_splits()
    spec = ModelSpec.of(
        "resnet9", num_classes=len(whole.classes), input_shape=whole.train.input_shape, width=at.study.width
    )
    train, query = Resident(whole.train, device), Resident(whole.query, device)
    _, step_flops = flops_of(spec.build(0), whole.train)
    for kind in kinds:
        at.clock.check(2 * max((entry["seconds"] for entry in found.values() if "seconds" in entry), default=0.0))
        found[kind] = _one(at, kind, spec, train, query, step_flops)
        write_json(file, found)
    note_machine(at)


def _one(at: Session, kind: str, spec: ModelSpec, train: Resident, query: Resident, step_flops: float) -> Any:
    recipe, n = at.study.recipe, len(train)
    if kind != "one-by-one" and (reason := why_not_compiled(spec, train, recipe)):
        return {"refused": reason}
    engine = Engine(kind, 1, "speed")  # type: ignore[arg-type]

    def once(size: int, seed: int) -> tuple[float, float]:
        member = Member(np.random.default_rng(seed).permutation(n)[:size], seed)
        started = time.perf_counter()
        logits = train_many(spec, train, query, [member], recipe, engine=engine)[0].logits
        if train.device.type == "cuda":
            torch.cuda.synchronize(train.device)
        labels = query.examples.labels
        return time.perf_counter() - started, float((logits.argmax(1) == labels).mean())

    first, _ = once(n, 0)
    seconds, accuracy = once(n, 1)
    once(n // 2, 2)  # whose last batch is of another size
    half, _ = once(n // 2, 3)
    images = n * recipe.epochs / seconds
    share = images * step_flops / LIMIT if train.device.type == "cuda" else None
    return {
        "seconds of the first": first,
        "seconds": seconds,
        "seconds at alpha 0.5": half,
        "images a second": images,
        "share of the limit": share,
        "accuracy": accuracy,
        "measured on": len(query),
        "FLOPs an image": step_flops,
    }
