"""``comove explore``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from comove.cli.app import command, facts, note, written
from comove.cli.options import Device, Quiet, Runs, open_runs
from comove.cli.own import OwnOptions
from comove.errors import InputError

__all__ = ["explore"]


@dataclass(frozen=True)
class ExplorationOptions:
    """How weights are drawn; the defaults are those of :class:`comove.Exploration`."""

    chains: Annotated[int, typer.Option(min=1, help="Independent chains, which start at the trained weights.")] = 16
    steps: Annotated[int, typer.Option(min=1, help="Steps of each chain.")] = 1500
    every: Annotated[int, typer.Option(min=1, help="Steps between samples.")] = 20
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in the batch of a step.")] = 32
    inverse_temperature: Annotated[float, typer.Option(help="Factor of the mean loss.")] = 100.0
    localization: Annotated[float, typer.Option(help="Strength of the pull back to the trained weights.")] = 10.0
    step_size: Annotated[float, typer.Option(help="Size of a step; take a smaller one if a chain diverges.")] = 5e-4
    seed: Annotated[int, typer.Option(min=0, help="Seed of the batches and the noise.")] = 0


@command
def explore(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Folder for the samples, a sub-folder for each run.")],
    own: OwnOptions,
    setting: ExplorationOptions,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Record losses at weights sampled around those of trained models, for the method bayesian-influence.

    Interrupted, it goes on when the same command is run again.

    Example: comove explore runs/a --chains 8 --out explored/

    Example: comove attribute runs/a --method bayesian-influence:chains=8:cache=explored --out scores/
    """
    from comove.attribution.bayesian_influence import explored_folder
    from comove.training import Exploration, Run
    from comove.training import explore as draw

    how = Exploration(**asdict(setting))
    for source, path in zip(open_runs(runs, own), runs, strict=True):
        if not isinstance(source, Run):
            raise InputError(f"{path} is a bare trace; exploring needs a run with its checkpoints and data.")
        trace = draw(source, explored_folder(source, how, out), how, device=device, progress=not quiet)
        last = trace.train_losses[-how.chains :].mean()
        before, after = source.trace.train_losses[[0, -1]].mean(1)
        facts(
            f"{path}: {len(trace.rows)} samples",
            {
                "mean training loss of the last samples": f"{last:.4g}",
                "before training": f"{before:.4g}",
                "of the trained model": f"{after:.4g}",
            },
            name="explored",
            values=[
                {
                    "path": path,
                    "draws": len(trace.rows),
                    "loss_drawn": last,
                    "loss_before": before,
                    "loss_after": after,
                }
            ],
        )
        if last > (before + after) / 2:
            note(
                "The samples have left the region of the trained weights: use a greater --inverse-temperature and "
                "--localization, or a smaller --step-size."
            )
    written(out)
