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

    chains: Annotated[int, typer.Option(min=1, help="Independent chains from the trained weights.")] = 16
    steps: Annotated[int, typer.Option(min=1, help="Steps of each chain.")] = 1500
    every: Annotated[int, typer.Option(min=1, help="Steps between draws.")] = 20
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a step's gradient.")] = 32
    inverse_temperature: Annotated[float, typer.Option(help="What the mean loss is multiplied with.")] = 100.0
    localization: Annotated[float, typer.Option(help="Pull back to the trained weights.")] = 10.0
    step_size: Annotated[float, typer.Option(help="Of each step; smaller where a chain diverges.")] = 5e-4
    seed: Annotated[int, typer.Option(min=0, help="Of batches and noise.")] = 0


@command
def explore(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Folder for the draws, one sub-folder a run.")],
    own: OwnOptions,
    setting: ExplorationOptions,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Record losses at weights drawn around those of trained models, for the method bayesian-influence.

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
            f"{path}: {len(trace.rows)} draws",
            {
                "mean training loss of the last draws": f"{last:.4g}",
                "before training": f"{before:.4g}",
                "of the trained model": f"{after:.4g}",
            },
            name="explored",
            values=[
                {"path": path, "draws": len(trace.rows), "loss_drawn": last, "loss_before": before, "loss_after": after}
            ],
        )
        if last > (before + after) / 2:
            note(
                "The draws have left the region of the trained weights: use a greater inverse_temperature and "
                "localization, or a smaller step_size."
            )
    written(out)
