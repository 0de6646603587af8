"""Coreset methods held to real training: curves, transfer, seeds, early epochs, wrong labels.

    python benchmarks/coreset_curves.py digits
    python benchmarks/coreset_curves.py cifar10 --data-dir DIR

Runs of several seeds are recorded. Every method selects with the first of them, and models are trained from scratch on
what it keeps: of the run's own architecture, and of another (transfer). Each run selects by itself, to compare seeds
(paper, D.1), and CLD selects after its first epochs only. The first part is then repeated with 20 % wrong labels. Each
step is kept in ``--folder``: the same command goes on where it was cut off. The result goes to
``benchmarks/results/coreset-curves-<data>.json`` with two figures beside it, and to ``docs/coresets-<data>.md``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import machine, plain, write_result

from comove.coreset import selectors
from comove.data import Splits
from comove.data.builtin import load_dataset
from comove.data.label_noise import known_flips
from comove.evaluation import Curve, CurveFolders, coreset_curve
from comove.evaluation.coreset_curves.noise import noise_kept
from comove.evaluation.coreset_curves.stability import early_epochs, stability
from comove.evaluation.costs.measured import measured_cost
from comove.plots import save_figure
from comove.training import Recipe, Recording, Run, Training, as_recipe, train

RESULTS = Path(__file__).parent / "results"
METHODS = tuple(name for name in selectors() if name != "per_class")
FLIPPED = 0.2


@dataclass(frozen=True)
class Study:
    """What is trained on what.

    Attributes:
        model: of the runs that methods select with, and of the targets.
        other: the architecture of the transfer (paper, Table 6).
        epochs: of a run, where they are not the recipe's.
        noisy_budgets: shares kept of the data with wrong labels.
    """

    model: str
    model_options: dict[str, Any]
    other: str
    data_options: dict[str, Any]
    epochs: int | None
    budgets: tuple[float, ...]
    noisy_budgets: tuple[float, ...]
    seeds: int
    runs: int


STUDIES = {
    "digits": Study("mlp", {}, "cnn-small", {}, None, (0.02, 0.05, 0.1, 0.3, 0.5, 0.75), (0.1, 0.3, 0.5), 5, 5),
    "cifar10": Study(
        "resnet9",
        {"width": 0.125},
        "cnn-small",
        {"limit": 2500, "queries": 1000},
        15,
        (0.1, 0.3),
        (0.3,),
        2,
        3,
    ),
}


def recipe_of(study: Study, splits: Splits) -> Recipe:
    """The model's own recipe, as long as the study says."""
    recipe = as_recipe(None, model=study.model, n_train=len(splits.train))
    return recipe if study.epochs is None else recipe.with_changes(epochs=study.epochs, peak_epoch=study.epochs / 4)


def recorded(study: Study, splits: Splits, folder: Path, number: int) -> list[Run]:
    """Runs of several seeds with all that a method may read."""
    recipe = recipe_of(study, splits)
    recording = Recording(anchors=tuple(sorted({min(10, recipe.epochs), recipe.epochs})))
    options = {"recording": recording, "model_options": study.model_options, "device": "cpu"}
    return [train(splits, study.model, recipe, seed, folder / f"run-{seed}", **options) for seed in range(number)]


def curve_rows(curve: Curve) -> dict[str, Any]:
    """What is published of a curve."""
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in curve.summary()]
    balance = {
        f"{one.method} {one.budget}": round(one.coreset.balance, 3)
        for one in curve.coresets
        if one.number == 0 and one.coreset.balance is not None
    }
    enough = {name: curve.smallest_budget(name) for name in curve.methods}
    return {
        "rows": rows,
        "smallest class over an even share": balance,
        "smallest share within .01 of the full data": enough,
        "skipped": dict(curve.skipped),
    }


def study_of(name: str, study: Study, folder: Path, data_dir: str | None) -> dict[str, Any]:
    """All steps."""
    splits = load_dataset(name, data_dir=data_dir, seed=0, **study.data_options)
    runs = recorded(study, splits, folder / "runs", study.runs)
    own = coreset_curve(runs[0], METHODS, study.budgets, seeds=study.seeds, out=folder / "own", skip=True)
    save_figure(own.plot(), RESULTS / f"coreset-curves-{name}.png")
    print(own, flush=True)
    other = coreset_curve(
        runs[0],
        METHODS,
        study.budgets,
        seeds=study.seeds,
        out=CurveFolders(folder / "transfer", folder / "own" / "coresets"),
        skip=True,
        training=Training(study.other, recipe_of(study, splits).to_json()),
    )
    save_figure(other.plot(), RESULTS / f"coreset-transfer-{name}.png")
    print(other, flush=True)
    methods = [method for method in METHODS if method not in own.skipped]
    found = {
        "curve": curve_rows(own),
        f"transfer to {study.other}": curve_rows(other),
        "seeds": [stability(runs, method, share).to_json() for method in methods for share in (0.1, 0.3)],
        "early epochs of cld": {
            str(share): early_epochs(runs[0], _looked(runs[0].recipe.epochs), share).rows for share in (0.1, 0.3)
        },
        "cost of one recorded run": plain(asdict(measured_cost(runs[0]))),
    }
    return found | noisy(name, study, folder / "noisy", data_dir)


def noisy(name: str, study: Study, folder: Path, data_dir: str | None) -> dict[str, Any]:
    """The same selection from data with wrong labels."""
    splits = load_dataset(name, data_dir=data_dir, seed=0, flip_labels=FLIPPED, **study.data_options)
    (run,) = recorded(study, splits, folder / "runs", 1)
    curve = coreset_curve(run, METHODS, study.noisy_budgets, seeds=study.seeds, out=folder / "own", skip=True)
    flipped = known_flips(splits)
    assert flipped is not None
    kept = [
        {"budget": one.budget, **noise_kept(one.coreset, flipped).to_json(), "method": one.method}
        for one in curve.coresets
        if one.number == 0
    ]
    return {f"{FLIPPED:.0%} wrong labels": {**curve_rows(curve), "kept": plain(kept)}}


def _looked(epochs: int) -> list[int]:
    return sorted({max(2, round(epochs * step / 8)) for step in range(1, 9)})


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def accuracy_table(curve: dict[str, Any]) -> str:
    """Mean and deviation by method and share."""
    cells: dict[str, dict[float, str]] = {}
    for row in curve["rows"]:
        spread = "" if row["std"] != row["std"] else f" ± {row['std']:.3f}"
        cells.setdefault(row["method"], {})[row["budget"]] = f"{row['mean']:.3f}{spread}"
    shares = sorted({row["budget"] for row in curve["rows"] if row["method"] != "full data"})
    full = cells.pop("full data")[1.0]
    enough = curve["smallest share within .01 of the full data"]
    rows = [
        [name, *(own.get(share, "") for share in shares), "–" if enough[name] is None else f"{enough[name]:.0%}"]
        for name, own in sorted(cells.items())
    ]
    return f"All of the data: {full}.\n\n" + markdown(
        ["method", *(f"{share:.0%}" for share in shares), "within .01 of all"], rows
    )


def selection_table(result: dict[str, Any], noisy: dict[str, Any]) -> str:
    """What coresets of one size are like: agreement between seeds, class balance, wrong labels."""
    size = min(result["study"]["noisy_budgets"], key=lambda share: abs(share - 0.3))
    seeds = {row["method"]: row for row in result["seeds"] if row["budget"] == size}
    kept = {row["method"]: row for row in noisy["kept"] if row["budget"] == size}
    even = result["curve"]["smallest class over an even share"]
    rows = []
    for name, row in sorted(seeds.items()):
        scored = row["mean_absolute_error"] is not None
        error, rank = (f"{row['mean_absolute_error']:.2g}", f"{row['spearman']:.2f}") if scored else ("–", "–")
        wrong = f"{kept[name]['share']:.1%}" if name in kept else ""
        rows.append([name, error, rank, f"{row['overlap']:.0%}", f"{even[f'{name} {size}']:.2f}", wrong])
    head = [
        "method",
        "error of scores",
        "rank correlation",
        "same examples",
        "smallest class / even share",
        "wrong labels",
    ]
    return f"At {size:.0%}:\n\n" + markdown(head, rows)


def page(name: str, result: dict[str, Any]) -> str:
    """What was measured, in words and tables."""
    study, noisy = result["study"], result[f"{FLIPPED:.0%} wrong labels"]
    early = "; ".join(f"{epoch} epochs {share:.0%}" for epoch, _, share in result["early epochs of cld"]["0.3"])
    cost = result["cost of one recorded run"]
    return f"""# Coreset methods, measured on {name}

Written by `{result["command"]}` on {result["cores"]} cores of {result["processor"]}; numbers, sizes and versions in
`benchmarks/results/coreset-curves-{name}.json`. Every method reads one recorded run of `{study["model"]}`; models
are then trained from scratch on what it keeps, {study["seeds"]} a point. Accuracy is on held-out queries that no method
sees. Weights of `craig` are not used. With 10 to 40 % wrong labels, what CLD keeps, and CLD inside CCS and D2:
[coresets under wrong labels](coresets-noise.md).

## Accuracy by share kept

{accuracy_table(result["curve"])}
![curves](../benchmarks/results/coreset-curves-{name}.png)

## Transfer: chosen by {study["model"]}, trained on {study["other"]}

{accuracy_table(result[f"transfer to {study['other']}"])}
## What is chosen

Between runs of {study["runs"]} seeds, on average over pairs (paper, D.1): the mean absolute error of scores, their rank
correlation, and the share of examples that two coresets have in common. The paper prints an error below 1e-5 for CLD.
The last column is the share of wrong labels kept, of data in which {FLIPPED:.0%} are wrong.

{selection_table(result, noisy)}
CLD after its first epochs shares this much of its final choice at 30 %: {early}.

## Accuracy with {FLIPPED:.0%} wrong labels

{accuracy_table(noisy)}
## Cost

One recorded run: {cost["flops"]["training"]:.2g} FLOPs to train, {cost["flops"]["recording"]:.2g} to record,
{cost["seconds"]:.2g} s, {(cost["bytes_on_disk"]["trace"]) / 1e6:.1f} MB of trace. All methods share it.
"""


def main() -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; by default $COMOVE_DATA")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "comove-coreset-curves")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    study = STUDIES[arguments.data]
    found = study_of(arguments.data, study, arguments.folder / arguments.data, arguments.data_dir)
    result = {
        "command": f"python benchmarks/coreset_curves.py {arguments.data}",
        "study": asdict(study),
        **plain(found),
        **machine(),
    }
    write_result(f"coreset-curves-{arguments.data}", result)
    written = Path(__file__).parents[1] / "docs" / f"coresets-{arguments.data}.md"
    written.write_text(page(arguments.data, result), encoding="utf-8")
    print(f"written to {written}")


if __name__ == "__main__":
    main()
