"""Unrolled against models retrained from the same seed, on digits: where training is smooth, and where it is not.

    python benchmarks/unrolled.py [--subsets 64] [--out DIR]

Each row is a network and a learning rate, trained for 30 epochs with momentum .9 in batches of 64 (1,400 examples, 200
queries). The truth is a bank with ``same_seed=True``: one seed, 1 % of the examples absent in each subset, and 10 % in
further ones. Beside both curvatures stand SOURCE, EK-FAC, Grad-Dot and TRAK on the same run, what ``metasmoothness``
says beforehand, and process CPU seconds. The result goes to ``benchmarks/results/unrolled.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import machine, timed, write_result

from comove.attribution import EKFAC, TRAK, Attributor, GradDot, Source, Unrolled, metasmoothness
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.evaluation import RetrainingBank, subsets
from comove.training import Recipe, Training, train

ROWS: dict[str, tuple[dict[str, Any], float]] = {
    "tanh, one hidden layer of 32, lr .02": ({"hidden": [32], "activation": "tanh"}, 0.02),
    "tanh, one hidden layer of 64, lr .05": ({"hidden": [64], "activation": "tanh"}, 0.05),
    "tanh, one hidden layer of 64, lr .02": ({"hidden": [64], "activation": "tanh"}, 0.02),
    "ReLU, one hidden layer of 64, lr .05": ({"hidden": [64]}, 0.05),
    "ReLU, two hidden layers of 64, lr .05 (digits-mlp)": ({}, 0.05),
}
METHODS: dict[str, Attributor] = {
    "unrolled": Unrolled(),
    "unrolled, Gauss-Newton": Unrolled(curvature="gauss-newton"),
    "source, EK-FAC": Source(curvature="ekfac"),
    "ekfac": EKFAC(),
    "grad-dot": GradDot(),
    "trak": TRAK(),
}
EXACT = {"source, exact": Source(curvature="exact")}
"""For the smallest network, whose Gauss-Newton matrix is decomposed in seconds."""
ALPHAS = (0.99, 0.9)


def main() -> None:
    """Measure every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subsets", type=int, default=64)
    parser.add_argument("--out", type=Path, help="keep banks and runs here")
    given = parser.parse_args()
    splits = load_dataset("digits")
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        rows = {
            name: row(splits, options, lr, given.subsets, out / str(number))
            for number, (name, (options, lr)) in enumerate(ROWS.items())
        }
    write_result("unrolled", {"machine": machine(), "subsets": given.subsets, "rows": rows})


def row(splits: Splits, options: Mapping[str, Any], lr: float, count: int, out: Path) -> dict[str, Any]:
    """One network: its bank, its run, and the LDS of each method."""
    recipe = Recipe(epochs=30, batch_size=64, lr=lr, momentum=0.9)
    plans = [subsets.random(alpha, count) for alpha in ALPHAS]
    bank = RetrainingBank.create(
        out / "bank", splits, Training("mlp", recipe, options), subsets=plans, same_seed=True
    ).run(executor="serial")
    run = train(splits, "mlp", recipe, 0, out / "run", model_options=options)
    seconds, smooth = timed(lambda: metasmoothness(run))
    found: dict[str, Any] = {
        "accuracy": round(run.result["query_accuracy"], 3),
        "metasmoothness": {"value": round(smooth.value, 3), "correlation": round(smooth.correlation, 3)},
        "metasmoothness seconds": round(seconds, 1),
    }
    for name, method in (METHODS | (EXACT if options.get("hidden") == [32] else {})).items():
        seconds, scores = timed(lambda method=method: method.fit(run).attribute())
        measured: dict[str, Any] = {"seconds": round(seconds, 1)}
        for alpha in ALPHAS:
            lds = bank.at(alpha).lds(scores)
            measured[f"LDS at alpha {alpha}"] = round(lds.mean, 3)
            measured[f"interval at alpha {alpha}"] = (
                None if lds.interval is None else [round(x, 3) for x in lds.interval]
            )
        found[name] = measured
        print(name, measured, flush=True)
    return found


if __name__ == "__main__":
    main()
