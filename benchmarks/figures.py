"""Every result at a fixed seed, as digests and sums: run it before and after a change that must not change a number.

    python benchmarks/figures.py FOLDER               # writes FOLDER/figures.json, beside what the commands wrote
    python benchmarks/figures.py FOLDER --than OTHER  # and says what differs from OTHER/figures.json

Everything is trained here on digits (and, with ``--data-dir``, on 1,000 CIFAR-10 images), on one thread. Equal digests
mean equal bits; where they differ, the relative difference of the sums says how far.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import comove
import comove.attribution as attribution
from comove.attribution.cld import CLD
from comove.coreset import select, selectors
from comove.correlation import pairwise, per_class, top_k

OF_TIME = re.compile(r"second|time|spent|duration|wall", re.I)
COMMANDS = {
    "lds": "lds --dataset digits --limit 400 --epochs 8 --subsets 10 --seeds 2 --fit-subsets 16 --held-out 30 "
    "--methods cld trak tracin datamodels fz --output margin --output correct",
    "brittleness": "brittleness --dataset digits --limit 400 --epochs 8 --methods cld trak --k 5 20 --queries 6 "
    "--seeds 2 --base-seeds 2 --counterfactual --max-k 40",
    "curve": "curve --dataset digits --limit 400 --epochs 8 --methods cld random el2n d2 --budgets 0.1 0.3 --seeds 2 "
    "--flip-labels 0.2",
    "clean": "clean RUN --methods aum loss trak forgetting cld",
    "stability": "stability RUN RUN2 --methods cld random el2n --budgets 0.1 0.3",
    "diagnose": "diagnose RUN --methods cld random --budget 0.2",
}


def _of(values: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(values)
    total = float(np.abs(array.astype(np.float64)).sum()) if array.dtype.kind in "biuf" else None
    return {"shape": list(array.shape), "sum": total, "digest": hashlib.sha256(array.tobytes()).hexdigest()[:16]}


def _correlation() -> dict[str, Any]:
    draws = np.random.default_rng(0)
    train, queries = np.cumsum(draws.normal(size=(21, 900)), 0), np.cumsum(draws.normal(size=(21, 120)), 0)
    train[:, 5] = 1.0  # a constant trajectory
    labels, query_labels = np.arange(900) % 4, np.arange(120) % 4
    ids, values = top_k(train, queries, 10)
    spearman = pairwise(train, queries, correlation="spearman", common_mode="remove")
    return {
        "correlation pairwise": _of(pairwise(train, queries)),
        "correlation spearman": _of(spearman),
        "correlation per_class": _of(per_class(train, labels, queries, query_labels)),
        "correlation top_k ids": _of(ids),
        "correlation top_k": _of(values),
    }


def _methods() -> list[Any]:
    wide = {"datamodels", "subsampled-influence", "leave-one-out"}  # computed from banks: the command lds
    found = [getattr(attribution, name) for name in dir(attribution) if name[:1].isupper()]
    classes = [
        one
        for one in found
        if isinstance(one, type) and issubclass(one, attribution.Attributor) and one is not attribution.Attributor
    ]
    return [one for one in classes if "bank" not in one().requires and one().name not in wide]


def _attribution(run: comove.Run, name: str, methods: list[Any], queries: int) -> dict[str, Any]:
    found = {}
    for method in methods:
        made = method() if isinstance(method, type) else method
        found[f"{name} {made.name}"] = _of(made.fit(run).attribute(run.trace.query_ids[:queries]).values)
    return found


def _selections(run: comove.Run) -> dict[str, Any]:
    return {f"coreset {name}": _of(select(name, run, budget=0.1).ids) for name in sorted(selectors())}


def _tables(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        if not rows:
            continue
        kept = [at for at, head in enumerate(rows[0]) if not OF_TIME.search(head)]
        text = "\n".join(",".join(row[at] for at in kept) for row in rows if len(row) == len(rows[0]))
        numbers = [float(cell) for cell in re.split(r"[,\n]", text) if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", cell)]
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        found[str(path.relative_to(folder))] = {"shape": [len(rows)], "sum": sum(map(abs, numbers)), "digest": digest}
    return found


def _command(name: str, folder: Path, runs: list[Path]) -> dict[str, Any]:
    words = COMMANDS[name].replace("RUN2", str(runs[1])).replace("RUN", str(runs[0])).split()
    done = subprocess.run(
        [sys.executable, "-m", "comove", *words, "--out", str(folder / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
    return {f"{name}/{path}": value for path, value in _tables(folder / name).items()}


def figures(folder: Path, data_dir: str | None) -> dict[str, Any]:
    """Train, attribute, select and measure; what every one of them gave."""
    splits = comove.load_dataset("digits", queries=300)
    kept = comove.Recording(anchors=(10, -1))  # what coreset methods read
    runs = [comove.train(splits, "mlp", seed=seed, out=folder / f"run-{seed}", recording=kept) for seed in (0, 1)]
    found = _correlation()
    found |= {f"trace {seed}": _of(run.trace.train_losses) for seed, run in enumerate(runs)}
    found |= _attribution(runs[0], "digits", _methods(), 50)
    found |= _selections(runs[0])
    if data_dir:
        images = comove.load_dataset("cifar10", data_dir=data_dir, limit=1000, queries=50)
        options = {"width": 0.125}
        run = comove.train(images, "resnet9", {"epochs": 2}, model_options=options, seed=0, out=folder / "resnet9")
        some = [attribution.GradDot(), attribution.TRAK(), attribution.Arnoldi(arnoldi_dim=20), CLD()]
        found |= {"trace resnet9": _of(run.trace.train_losses)} | _attribution(run, "resnet9", some, 50)
    for name in COMMANDS:
        found |= _command(name, folder, [run.path for run in runs])
    return found


def compare(found: dict[str, Any], before: dict[str, Any]) -> int:
    """Print what differs; how many do."""
    wrong = 0
    for name in sorted(found.keys() | before.keys()):
        new, old = found.get(name), before.get(name)
        if new is None or old is None:
            print(f"{name}: only {'before' if new is None else 'now'}")
        elif new["digest"] != old["digest"]:
            off = None if new["sum"] is None else abs(new["sum"] - old["sum"]) / max(abs(old["sum"]), 1e-30)
            print(f"{name}: {old} -> {new}, relative difference of the sums {off}")
        else:
            continue
        wrong += 1
    print(f"{len(found)} figures, {wrong} of them not as before")
    return wrong


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--than", type=Path, help="a folder of an earlier run")
    parser.add_argument("--data-dir", help="where cifar10 lies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True)
    found = figures(arguments.folder, arguments.data_dir)
    (arguments.folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    if arguments.than:
        sys.exit(min(compare(found, json.loads((arguments.than / "figures.json").read_text())), 1))


if __name__ == "__main__":
    main()
