"""Who finds wrong labels: labels flipped on purpose, ranked by every method.

    python benchmarks/clean.py digits
    python benchmarks/clean.py digits-long
    python benchmarks/clean.py cifar10 --data-dir DIR

A tenth of the training labels is flipped. Runs of three seeds are recorded on these labels (``digits-long`` until every
wrong one has been learned by heart), and every method ranks them: from the runs together, and from each by itself.
Published are average precision and precision among the first P (as many as are wrong), with intervals over examples;
paired differences from the best method and from the final loss; the classes that the networks suggest for the flipped
examples, against their true ones; the CPU seconds of each method. Runs are kept in ``--folder``. The result goes to
``benchmarks/results/clean-<data>.json``, with two figures beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, plain, timed, write_result

from comove.data import Splits, positions_of
from comove.data.builtin import load_dataset
from comove.data.label_noise import known_flips
from comove.evaluation.label_errors.detection import Detection, detect
from comove.evaluation.label_errors.ranking import rank_labels
from comove.evaluation.label_errors.signals import SIGNALS
from comove.evaluation.label_errors.suggestions import mean_probabilities, other_class
from comove.evaluation.label_errors.suspicion import Suspicion
from comove.plots import save_figure
from comove.training import Run, as_recipe, train
from comove.training.sources import as_sources

RESULTS = Path(__file__).parent / "results"
FLIPPED = 0.1
SEEDS = 3


@dataclass(frozen=True)
class Study:
    """What is trained on what; ``epochs`` where they are not the recipe's."""

    model: str
    model_options: dict[str, Any]
    data_options: dict[str, Any]
    epochs: int | None


STUDIES = {
    "digits": Study("mlp", {}, {}, None),
    "digits-long": Study("mlp", {}, {}, 150),
    "cifar10": Study("resnet9", {"width": 0.125}, {"limit": 2500, "queries": 1000}, 15),
}


def recorded(study: Study, splits: Splits, folder: Path) -> list[Run]:
    """Runs of several seeds, with all checkpoints."""
    recipe = as_recipe(None, model=study.model, n_train=len(splits.train))
    if study.epochs is not None:
        recipe = recipe.with_changes(epochs=study.epochs, peak_epoch=study.epochs / 4)
    options = {"model_options": study.model_options, "device": "cpu"}
    return [train(splits, study.model, recipe, seed, folder / f"run-{seed}", **options) for seed in range(SEEDS)]


def ranked(runs: list[Run]) -> tuple[Suspicion, dict[str, float]]:
    """All rankings of several runs together, and the seconds of each method."""
    parts, seconds = [], {}
    for method in SIGNALS:
        seconds[method], found = timed(lambda method=method: rank_labels(runs, [method], suggest=False))
        parts.append(found)
        print(f"  {method}: {seconds[method]:.1f} s", flush=True)
    first = parts[0]
    values = {name: part.values[name] for part in parts for name in part.methods}
    low = tuple(name for part in parts for name in part.low)
    probabilities_NC = mean_probabilities(as_sources(runs, frozenset(), "clean"))
    assert probabilities_NC is not None
    suggested, sure = other_class(probabilities_NC, first.labels)
    return Suspicion(first.train_ids, first.labels, values, low, first.classes, suggested, sure), seconds


def told(detection: Detection) -> dict[str, Any]:
    """What is published of a ranking."""
    found = {}
    for row in detection.rows():
        method, k = row["method"], (detection.wrong // 2, detection.wrong, 2 * detection.wrong)
        found[method] = {
            "average precision": [row["average_precision"], row["low"], row["high"]],
            "precision at P": [row["precision_at_wrong"], row["at_low"], row["at_high"]],
            "precision at P/2, P, 2P": [detection.precision(method, size) for size in k],
            "recall at P/2, P, 2P": [detection.recall(method, size) for size in k],
            f"average precision less {detection.best}'s": list(detection.difference(method, detection.best)),
            "average precision less loss's": list(detection.difference(method, "loss")),
        }
    return {"best": detection.best, "methods": found}


def suggestions(runs: list[Run], flipped: Any, truth: Any, given: Any) -> dict[str, float]:
    """How often the networks' first choice for a flipped example is its true class, and their first but the label."""
    found = {}
    for words, last in (("mean over checkpoints", False), ("last checkpoint", True)):
        probabilities_NC = mean_probabilities(as_sources(runs, frozenset(), "clean"), last=last)
        assert probabilities_NC is not None
        others, _ = other_class(probabilities_NC, given)
        found[f"{words}: most probable class is true"] = float((probabilities_NC.argmax(1) == truth)[flipped].mean())
        found[f"{words}: most probable other class is true"] = float((others == truth)[flipped].mean())
    return found


def study_of(name: str, study: Study, folder: Path, data_dir: str | None) -> dict[str, Any]:
    """All steps."""
    dataset = name.removesuffix("-long")
    splits = load_dataset(dataset, data_dir=data_dir, seed=0, flip_labels=FLIPPED, **study.data_options)
    clean = load_dataset(dataset, data_dir=data_dir, seed=0, **study.data_options)
    wrong = known_flips(splits)
    assert wrong is not None
    runs = recorded(study, splits, folder)
    suspicion, seconds = ranked(runs)
    detection = detect(suspicion, wrong)
    print(detection, flush=True)
    save_figure(detection.plot(), RESULTS / f"clean-{name}.png")
    gallery = suspicion.plot(splits.train, 10, [m for m in suspicion.methods if m != "random"], wrong_ids=wrong)
    save_figure(gallery, RESULTS / f"clean-{name}-gallery.png")
    alone = [detect(rank_labels(run, list(SIGNALS), suggest=False), wrong) for run in runs]
    flipped = positions_of(wrong, suspicion.train_ids)
    truth = clean.train.labels[clean.train.positions(suspicion.train_ids)]
    return {
        "labels": detection.n,
        "wrong": detection.wrong,
        "query accuracy of each run": [run.result["query_accuracy"] for run in runs],
        "wrong labels learned by heart": [float(_learned(run)[flipped].mean()) for run in runs],
        f"{SEEDS} runs together": told(detection),
        "average precision of each run by itself": {
            method: [one.average_precision(method).value for one in alone] for method in suspicion.methods
        },
        "suggested classes of the flipped examples": suggestions(runs, flipped, truth, suspicion.labels),
        f"CPU seconds for {SEEDS} runs": seconds,
    }


def _learned(run: Run) -> Any:
    """Whether the network predicts the given label in the end."""
    trace = run.trace
    return trace.read("train", "correct", rows=[len(trace.rows) - 1])[0].astype(np.float64)


def main() -> None:
    """Train what is missing, rank, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=STUDIES)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; by default $COMOVE_DATA")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "comove-clean")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    study = STUDIES[arguments.data]
    found = study_of(arguments.data, study, arguments.folder / arguments.data, arguments.data_dir)
    result = {
        "command": f"python benchmarks/clean.py {arguments.data}",
        "study": {**asdict(study), "flipped": FLIPPED, "seeds": SEEDS},
        **plain(found),
        **machine(),
    }
    write_result(f"clean-{arguments.data}", result)


if __name__ == "__main__":
    main()
