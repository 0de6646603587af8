"""The user's own code on the command line, named as ``module:object``: models, tasks, data, training functions, runs.

Naming it is leave to run it. No file is: what a manifest says of code is never imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import say
from comove.cli.groups import OWN
from comove.errors import ComoveError, InputError, first_line

if TYPE_CHECKING:
    from comove.data import Splits
    from comove.retraining.own import OwnTraining
    from comove.tasks import Task
    from comove.trace import Trace
    from comove.training import Run

__all__ = [
    "OwnDataset",
    "OwnFunction",
    "OwnModel",
    "OwnOptions",
    "TaskName",
    "importable",
    "is_object",
    "open_object",
    "own_splits",
    "own_task",
    "own_training",
]

OBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

OwnFunction = Annotated[
    str | None,
    typer.Option(
        "--training",
        help="module:object of your own training function (an OwnTraining), which retrains models.",
        show_default="comove's own loop",
        rich_help_panel=OWN,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="module:object of your own Task: the loss of your model, and the output that is explained.",
        show_default="classification",
        rich_help_panel=OWN,
    ),
]


OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="module:factory of your own model, where the run was trained with it.",
        show_default="a model of comove",
        rich_help_panel=OWN,
    ),
]
OwnDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Where the data is now, if the folder or table has moved; or module:object of your own data.",
        show_default="where it was",
        rich_help_panel=OWN,
    ),
]


@dataclass(frozen=True)
class OwnOptions:
    """Code behind a run that was trained with the user's own, named again."""

    model: OwnModel = None
    task: TaskName = None
    dataset: OwnDataset = None

    def open(self, path: Path) -> Run | Trace:
        """Open the folder of a run or of a trace with what is named.

        Raises:
            InputError: an option is missing, or leads to something else.
        """
        from comove.training import Run
        from comove.training.adopted_folder import is_adopted
        from comove.training.sources import open_source

        if is_adopted(path):
            return self._adopted(path)
        source = open_source(path)
        if not isinstance(source, Run):
            return source
        if self.task is not None:
            _refuse_other_tasks(own_task(self.task))
        own = ":" in source.model_spec.name and self.model is not None
        data = self.dataset if self.dataset is None or not is_object(self.dataset) else own_splits(self.dataset)
        return Run.load(path, dataset=data, model=importable(self.model) if own else None)

    def _adopted(self, path: Path) -> Run | Trace:
        from comove.training.adopted_folder import open_adopted, recorded_losses

        if self.model is None or self.dataset is None:
            how = (
                "--model mine:build --dataset mine:data --task mine:task, or a function that returns the run: mine:run"
            )
            losses = None if self.model or self.dataset or self.task else recorded_losses(path)
            if losses is None:
                raise InputError(f"{path} was trained elsewhere; opening it takes {how}.")
            say(
                f"{path} was trained elsewhere; its losses are read. What needs the model takes {how}.",
                "Note:",
                "yellow",
            )
            return losses
        factory = imported(self.model, "--model")
        return open_adopted(
            path,
            (lambda: called(factory, f"--model {self.model}")) if is_function(factory) else factory,
            value_of(self.dataset, "--dataset"),
            None if self.task is None else own_task(self.task),
        )


def importable(name: str | None) -> str | None:
    """Return a name, and make a module in the working folder importable: the user has just named it.

    The folder comes last on the path, so that nothing else in it takes the place of an installed module; but first
    where it is the named module itself that has such a name.
    """
    if name and ":" in name and (here := os.getcwd()) not in sys.path:
        first = name.partition(":")[0].partition(".")[0]
        own = Path(here, f"{first}.py").is_file() or Path(here, first).is_dir()
        taken = first.isidentifier() and find_spec(first) is not None
        sys.path.insert(0 if own and taken else len(sys.path), here)
    return name


def imported(name: str, option: str) -> Any:
    """Import the object that an option names.

    Raises:
        InputError: no ``module:object``; no such module or object; the module fails when it is imported.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise InputError(f"{option} must be module:object, such as mine:thing, got {name!r}.")
    importable(name)
    try:
        return attrgetter(path)(import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name} cannot be imported: {first_line(error)}") from error
    except ComoveError:
        raise
    except Exception as error:  # whatever a user's module meets
        raise InputError(f"{option} {name} fails on import. {type(error).__name__}: {first_line(error)}") from error


def is_function(found: object) -> bool:
    """Whether an object is to be called, with no argument, for what it stands for."""
    return (callable(found) and hasattr(found, "__qualname__")) or type(found).__name__ == "partial"


def called(function: Callable[[], Any], what: str) -> Any:
    """Call a user's function.

    Raises:
        InputError: it fails.
    """
    try:
        return function()
    except ComoveError:
        raise
    except Exception as error:  # whatever a user's function meets
        raise InputError(f"{what} fails when called. {type(error).__name__}: {first_line(error)}") from error


def value_of(name: str, option: str) -> Any:
    """Return what an option names, or what the function or class that it names returns."""
    found = imported(name, option)
    return called(found, f"{option} {name}") if is_function(found) else found


def is_object(word: str) -> bool:
    """Tell whether a word has the form ``module:object``, and is no path."""
    return OBJECT.fullmatch(word) is not None and not Path(word).exists()


def open_object(name: str) -> Run | Trace:
    """Return the run or trace that ``module:object`` is, or that the function of this name returns.

    Raises:
        InputError: it cannot be imported, fails, or is something else.
    """
    from comove.trace import Trace
    from comove.training import Run

    found = value_of(name, "The run")
    if not isinstance(found, Run | Trace):
        raise InputError(
            f"The run {name} must be a Run, a Trace or a function that returns one, got {type(found).__name__}."
        )
    return found


def own_splits(name: str) -> Splits:
    """Return the data that ``--dataset module:object`` names, as splits.

    Raises:
        InputError: it cannot be imported, fails, or is none.
    """
    from comove.data import Splits
    from comove.data.builtin import as_splits
    from comove.training.adopted_folder import as_sets

    found = value_of(name, "--dataset")
    return Splits(*as_sets(found), name=name) if isinstance(found, tuple) else as_splits(found)


def own_task(name: str) -> Task:
    """Return the task that ``--task module:object`` names, an object or a class that builds with no argument.

    Raises:
        InputError: it cannot be imported, or is none.
    """
    from comove.tasks import Task

    found = value_of(name, "--task")
    if not isinstance(found, Task):
        raise InputError(f"--task {name} must be a Task of comove.tasks, got {type(found).__name__}.")
    return found


def _refuse_other_tasks(task: Task) -> None:
    """Refuse what comove's own loop does not train.

    Raises:
        InputError: any task but classification.
    """
    from comove.tasks import Classification

    if task.name != Classification().name:
        raise InputError(
            f"comove's own loop trains classifiers, not {task.name}: train in your own loop and comove.adopt the "
            "weights; where models are retrained, name your function: --training mine:function."
        )


def own_training(name: str | None, task: str | None = None) -> OwnTraining | None:
    """Import the training function that ``--training`` names, measured with the task that ``--task`` names.

    Raises:
        InputError: no such module or object, or something else; another task than classification, and no function.
    """
    from comove.retraining.own import OwnTraining

    if name is None:
        if task is not None:
            _refuse_other_tasks(own_task(task))
        return None
    found = imported(name, "--training")
    if not isinstance(found, OwnTraining):
        raise InputError(f"--training {name} must be an OwnTraining, got {type(found).__name__}.")
    return found.measured_by(None if task is None else own_task(task))
