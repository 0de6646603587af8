"""``comove curve``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import command, note, result, say, table, written
from comove.cli.options import (
    ComputeOptions,
    TrainingOptions,
    budget_list,
    coreset_method_list,
    coreset_methods,
    parse_shares,
    width_option,
)
from comove.cli.own import importable

if TYPE_CHECKING:
    from comove.evaluation import Curve
    from comove.training import Run

__all__ = ["curve"]


@dataclass(frozen=True)
class TargetOptions:
    """What is trained on the coresets."""

    target_model: Annotated[
        list[str] | None, typer.Option(help="Models to train on the coresets.", show_default="the run's model")
    ] = None
    target_width: Annotated[
        float | None, typer.Option(help="Width of the target model.", show_default="the model's own")
    ] = None
    target_recipe: Annotated[
        str | None, typer.Option(help="Recipe of the target model.", show_default="the model's")
    ] = None


@command
def curve(
    out: Annotated[Path, typer.Option(help="Folder for coresets, results, tables and figures.")],
    task: TrainingOptions,
    machines: ComputeOptions,
    wanted: TargetOptions,
    run: Annotated[
        Path | None,
        typer.Argument(help="The run that coresets are chosen from.", show_default="a new one is trained"),
    ] = None,
    methods: Annotated[list[str] | None, coreset_method_list("cld random")] = None,
    budgets: Annotated[list[str] | None, budget_list("0.1 0.3 0.5")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Models trained on each coreset.")] = 3,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Accuracy below that of the full data at which a coreset counts as sufficient.")
    ] = 0.01,
) -> None:
    """Accuracy of models trained on coresets of several sizes, beside that of models trained on the full data.

    Interrupted, it goes on when the same command is run again; more methods, budgets or seeds reuse trained models.

    Example: comove curve runs/a --methods cld random --budgets 0.1 0.3 --seeds 3 --out curve/

    Example: comove curve --methods all --budgets 0.05 0.1 0.3 --flip-labels 0.2 --out noisy/
    """
    from comove.evaluation import CurveFolders, coreset_curve
    from comove.evaluation.coreset_curves.curve import TABLE, write_curves
    from comove.training import Training

    task.own()
    names, every = coreset_methods(methods, ["cld", "random"])
    shares = parse_shares(budgets, [0.1, 0.3, 0.5])
    proxy = _proxy(run, task, out)
    found = {}
    targets: list[str | None] = list(wanted.target_model or [None])  # type: ignore[list-item]
    for target in targets:
        folder = out if len(targets) == 1 else out / str(target).replace(":", "-")
        found[target or proxy.model_spec.name] = coreset_curve(
            proxy,
            names,
            shares,
            seeds=seeds,
            training=Training(
                importable(target),
                wanted.target_recipe,
                width_option(wanted.target_width) if target else {},
                task.seed,
            ),
            out=CurveFolders(folder / "trained", out / "coresets"),
            skip=every,
            compute=machines.compute(task),
        )
        _print(target or proxy.model_spec.name, found[target or proxy.model_spec.name], tolerance, folder)
    write_curves(out / TABLE, found)
    _print_balance(found)
    _print_noise(proxy, found)
    folders = [out] if len(targets) == 1 else [out / str(target).replace(":", "-") for target in targets]
    written(out, TABLE, *((folder / "curve.png").relative_to(out).as_posix() for folder in folders))


def _proxy(run: Path | None, task: TrainingOptions, out: Path) -> Run:
    """The run to select with: the one named, or a new one that records what every method reads."""
    from comove.training import Recording, train

    if run is not None:
        found: Run = task.opened(run)
        return found
    splits = task.splits()
    recipe = task.recipe_for(splits)
    return train(
        splits,
        task.model_for(splits),
        recipe,
        task.seed,
        out / "proxy",
        recording=Recording(anchors=tuple(sorted({min(recipe.epochs, 10), recipe.epochs}))),
        device=task.device,
        model_options=task.model_options,
        progress=not task.quiet,
    )


def _print(target: str, curve: Curve, tolerance: float, folder: Path) -> None:
    from comove.plots import save_figure

    save_figure(curve.plot(), folder / "curve.png")
    table(
        f"\nAccuracy of {target} on {curve.n_query:,} held-out queries",
        ["method", "share", "examples", "accuracy (%)", "deviation (%)"],
        curve.cells(),
        name="curve",
        values=curve.to_pandas().assign(target=target),
    )
    for method, reason in curve.skipped.items():
        note(f"{method} is left out: {reason}")
    enough = {method: curve.smallest_budget(method, tolerance) for method in curve.methods}
    summary = ", ".join(f"{method} {share:.1%}" for method, share in enough.items() if share is not None)
    result("smallest_shares", [{"target": target, "method": name, "share": share} for name, share in enough.items()])
    say(f"Smallest share within {tolerance:g} of the full data: {summary or 'none of those tried'}")


def _print_balance(found: dict[str, Curve]) -> None:
    """How evenly the coresets hold the classes."""
    rows: dict[str, dict[float, str]] = {}
    for choice in next(iter(found.values())).coresets:
        if choice.number == 0 and choice.coreset.balance is not None:
            rows.setdefault(choice.method, {})[choice.budget] = f"{choice.coreset.balance:.2f}"
    shares = sorted({share for row in rows.values() for share in row})
    head = ["method", *(f"{share:.1%}" for share in shares)]
    title = "\nSmallest class, as a multiple of an even share (0: a class is missing)"
    table(
        title, head, [[name, *(row.get(share, "") for share in shares)] for name, row in rows.items()], name="balance"
    )


def _print_noise(proxy: Run, found: dict[str, Curve]) -> None:
    """How many of the wrong labels that were put in on purpose each coreset keeps."""
    from comove.data.label_noise import known_flips
    from comove.evaluation.coreset_curves.noise import noise_kept

    flipped = known_flips(proxy.data())
    if flipped is None:
        return
    rows: list[list[str]] = []
    for choice in next(iter(found.values())).coresets:
        if choice.number == 0:
            kept: Any = noise_kept(choice.coreset, flipped)
            rows.append([choice.method, f"{choice.budget:.1%}", f"{kept.share:.1%}", f"{kept.ratio:.2f}"])
    title = f"\nWrong labels kept ({flipped.size:,} of {len(proxy.data().train):,} are wrong)"
    table(title, ["method", "share", "of them wrong", "against chance"], rows, name="wrong_labels_kept")
