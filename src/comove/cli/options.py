"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comove.cli.app import say
from comove.cli.groups import DATA, METHODS, TRAINING, WHERE
from comove.cli.output import Device, Quiet
from comove.cli.own import OwnOptions, TaskName, importable, is_object, open_object, own_splits, own_training
from comove.display import counted
from comove.errors import InputError, some

if TYPE_CHECKING:
    from comove.data import Splits
    from comove.data.texts import Columns
    from comove.jobs import Compute, Executor
    from comove.retraining.own import OwnTraining
    from comove.training import Recipe, Training

__all__ = [
    "AttributionOptions",
    "ComputeOptions",
    "Device",
    "Quiet",
    "TrainingOptions",
    "budget_list",
    "check_bank",
    "coreset_method_list",
    "coreset_methods",
    "is_whole",
    "open_banks",
    "open_runs",
    "parse_budget",
    "parse_methods",
    "parse_share",
    "parse_shares",
]

LONGEST_COUNT = 18
"""Digits of a count; Python refuses to read numbers of thousands of digits."""

Dataset = Annotated[
    str | None,
    typer.Option(
        help="digits (built in), cifar10, a folder with a sub-folder of images for each class, a .csv, .tsv or "
        ".parquet table of texts, or your own module:object.",
        show_default="digits",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder that holds cifar10.", show_default="$COMOVE_DATA, then ./data", rich_help_panel=DATA),
]
Download = Annotated[
    bool, typer.Option("--download", help="Download cifar10 into --data-dir (by torchvision).", rich_help_panel=DATA)
]
Model = Annotated[
    str | None,
    typer.Option(
        help="mlp, cnn-small, resnet9, resnet18, ... (comove methods lists them), or your own module:factory.",
        show_default="chosen for the data",
        rich_help_panel=TRAINING,
    ),
]
Width = Annotated[
    float | None,
    typer.Option(
        help="Width of the model; of resnet9 and cnn-small 1 is the full network.",
        show_default="the model's own",
        rich_help_panel=TRAINING,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A named recipe (comove methods lists them).",
        show_default="the model's",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Passes over the data.", show_default="the recipe's", rich_help_panel=TRAINING),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=2, help="Examples in a batch.", show_default="the recipe's", rich_help_panel=TRAINING),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help="Highest learning rate.", show_default="the recipe's", rich_help_panel=TRAINING),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="Learning rate schedule: constant, triangular, multistep or cosine.",
        show_default="the recipe's",
        rich_help_panel=TRAINING,
    ),
]
OptimizerName = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        help="sgd or adamw; with adamw in place of sgd, --lr is 0.001 unless given.",
        show_default="the recipe's",
        rich_help_panel=TRAINING,
    ),
]
ClipNorm = Annotated[
    float | None,
    typer.Option(
        help="Clip the gradient to this norm.",
        show_default="the recipe's: no clipping; with adamw 1",
        rich_help_panel=TRAINING,
    ),
]
WarmupEpochs = Annotated[
    float | None,
    typer.Option(
        help="Epochs of linear warm-up.", show_default="the recipe's: 0; with adamw 2", rich_help_panel=TRAINING
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Stop after this many epochs without a lower validation loss.",
        show_default="no early stopping",
        rich_help_panel=TRAINING,
    ),
]
EMADecay = Annotated[
    float | None,
    typer.Option(
        "--ema",
        help="Decay of a moving average of the weights, such as 0.999, which is then used for the weights.",
        show_default="no average",
        rich_help_panel=TRAINING,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use only this many training examples, classes in proportion.",
        show_default="all",
        rich_help_panel=DATA,
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option(
        "--held-out",
        min=1,
        help="Number of queries: held-out examples whose losses are recorded.",
        show_default="the data set's own",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seed of the initial weights, the order of examples and the augmentation.",
        rich_help_panel=TRAINING,
    ),
]
SplitSeed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seed of the split (and of --limit); runs to be averaged need the same one.",
        rich_help_panel=DATA,
    ),
]
FlipLabels = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.99,
        help="Give this share of the training examples a wrong label, to test methods.",
        rich_help_panel=DATA,
    ),
]
Drop = Annotated[
    Path | None,
    typer.Option(
        help="Leave out the examples in this table, which has a column id or file (as comove clean writes).",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
Relabel = Annotated[
    Path | None,
    typer.Option(
        help="Change the labels of the examples in this table, which has a column id or file, and a column label.",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=4,
        help="Height and width, in pixels, that a folder's images are brought to.",
        show_default="that of the first image, at most 224",
        rich_help_panel=DATA,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Column of the texts, in a table of texts.", show_default="text", rich_help_panel=DATA),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column of the classes, in a table of texts.", show_default="label", rich_help_panel=DATA),
]
Encoding = Annotated[
    str | None,
    typer.Option(help="Encoding of a .csv or .tsv table, such as latin-1.", show_default="utf-8", rich_help_panel=DATA),
]
Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of runs or traces (scores of several are averaged), or your own module:object; for fz, "
        "datamodels and leave-one-out the folder of a bank."
    ),
]
MethodList = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        help="Attribution methods, such as cld trak, or all; options as cld:correlation=spearman.",
        show_default="cld",
        rich_help_panel=METHODS,
    ),
]


def budget_list(default: str) -> Any:
    """The option for several shares to keep."""
    shares = "Shares of the training examples to keep, such as 0.1 0.3 or 10% 30%."
    return typer.Option("--budgets", metavar="SHARE", help=shares, show_default=default)


def coreset_method_list(default: str) -> Any:
    """The option for several coreset methods."""
    methods = "Coreset methods, such as cld random el2n, or all; options as random:seed=1 or ccs:score=cld."
    return typer.Option("--methods", help=methods, show_default=default)


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained on which data, and how."""

    dataset: Dataset = None
    data_dir: DataDir = None
    model: Model = None
    width: Width = None
    recipe: RecipeName = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    lr: LearningRate = None
    limit: Limit = None
    held_out: HeldOut = None
    seed: Seed = 0
    split_seed: SplitSeed = 0
    device: Device = "auto"
    download: Download = False
    flip_labels: FlipLabels = 0.0
    quiet: Quiet = False
    schedule: Schedule = None
    optimizer: OptimizerName = None
    clip_norm: ClipNorm = None
    warmup_epochs: WarmupEpochs = None
    patience: Patience = None
    ema: EMADecay = None
    own_task: TaskName = None
    drop: Drop = None
    relabel: Relabel = None
    image_size: ImageSize = None
    text_column: TextColumn = None
    label_column: LabelColumn = None
    encoding: Encoding = None

    def splits(self) -> Splits:
        """The data, split, without what is to be dropped, and with the labels of what is to be relabelled.

        Raises:
            InputError: unknown data; data of the user's own, and an option that is for others; unknown ids or files.
        """
        from comove.data.changes import changed_splits

        splits = self._loaded()
        changed = changed_splits(splits, self.drop, self.relabel)
        if changed is not splits:
            say(_told_changes(splits, changed), "Note:", "yellow")
        return changed

    def _loaded(self) -> Splits:
        from comove.data.builtin import load_dataset

        dataset = "digits" if self.dataset is None else self.dataset
        if is_object(dataset):
            chosen = {"--limit": self.limit, "--held-out": self.held_out, "--flip-labels": self.flip_labels or None}
            if given := [name for name, value in chosen.items() if value is not None]:
                raise InputError(f"--dataset {dataset} is split by your own code: leave out {' '.join(given)}.")
            return own_splits(dataset)
        return load_dataset(
            dataset,
            data_dir=self.data_dir,
            seed=self.split_seed,
            limit=self.limit,
            queries=self.held_out,
            download=self.download,
            flip_labels=self.flip_labels,
            columns=self._columns(),
            side=self.image_size,
        )

    def _columns(self) -> Columns | None:
        """Where a table of texts has what, where that was said."""
        from comove.data.texts import Columns

        given = {"text": self.text_column, "label": self.label_column, "encoding": self.encoding}
        named = {name: value for name, value in given.items() if value is not None}
        return Columns(**named) if named else None

    def model_for(self, splits: Splits) -> str:
        """The model's name; by default the one that suits the data."""
        from comove.training import default_model

        name = importable(self.model)
        return default_model(splits) if name is None else name

    def recipe_for(self, splits: Splits) -> Recipe:
        """The recipe, with what the user changed."""
        from comove.training import RECIPES, as_recipe

        recipe = as_recipe(self.recipe, model=self.model_for(splits), n_train=len(splits.train))
        lr, peak, warmup = self.lr, None, self.warmup_epochs
        if self.epochs is not None:  # a rise to the end would never come down again
            if (self.schedule or recipe.schedule) == "triangular" and self.epochs <= recipe.peak_epoch:
                peak = self.epochs / 4
            if warmup is None and self.epochs <= recipe.warmup_epochs:
                warmup = self.epochs / 4
        if lr is None and self.optimizer == "adamw" != recipe.optimizer:
            lr = RECIPES["adamw"].lr  # that of SGD is ten to a hundred times too large
        return recipe.with_changes(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=lr,
            peak_epoch=peak,
            schedule=self.schedule,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            warmup_epochs=warmup,
            early_stop_patience=self.patience,
            ema=self.ema,
        )

    @property
    def model_options(self) -> dict[str, Any]:
        """Options of the model."""
        return width_option(self.width)

    @property
    def given(self) -> list[str]:
        """The options of how models are trained that were given, as written on the command line."""
        recipe = (
            "recipe",
            "epochs",
            "batch_size",
            "lr",
            "schedule",
            "optimizer",
            "clip_norm",
            "warmup_epochs",
            "patience",
            "ema",
        )
        return self._named("width", *recipe)

    @property
    def given_data(self) -> list[str]:
        """The options of which examples there are and of their labels that were given, likewise."""
        chosen = ("limit", "held_out", "drop", "relabel", "image_size", "text_column", "label_column", "encoding")
        return [*self._named(*chosen), *(["--flip-labels"] if self.flip_labels else [])]

    def _named(self, *fields: str) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in fields if getattr(self, name) is not None]

    def opened(self, run: Path) -> Any:
        """Open the run that a command goes on from; what it is trained on, and how, is known.

        Raises:
            InputError: an option of these is given; the run is none, or cannot be opened.
        """
        from comove.training import Run

        if given := [*self.given, *self.given_data]:
            raise InputError(f"{run} was trained on its own data and in its own way: leave out {' '.join(given)}.")
        own = OwnOptions(self.model if self.model and ":" in self.model else None, self.own_task, self.dataset)
        (found,) = open_runs([run], own)
        if not isinstance(found, Run):
            raise InputError(f"{run} is a bare trace, with which no model can be trained; give a run of comove train.")
        return found

    def own(self, training: str | None = None) -> OwnTraining | None:
        """The user's training function of this name with ``--task``; errors as of :func:`own_training`."""
        return own_training(training, self.own_task)

    def training_for(self, splits: Splits) -> Training:
        """How models are trained on these data."""
        from comove.training import Training

        return Training(self.model_for(splits), self.recipe_for(splits), self.model_options, self.seed)


@dataclass(frozen=True)
class ComputeOptions:
    """Where retrainings run."""

    executor: Annotated[
        str,
        typer.Option(
            help="local (several processes on this machine), serial (this process) or ray (a cluster).",
            rich_help_panel=WHERE,
        ),
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the local executor.", show_default="one a core", rich_help_panel=WHERE),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster, such as auto.",
            show_default="a cluster is started",
            rich_help_panel=WHERE,
        ),
    ] = None
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs, or a share of one, for each job on Ray.", rich_help_panel=WHERE)
    ] = 0.0

    def executor_of(self) -> Executor:
        """The executor."""
        from comove.jobs import as_executor

        return as_executor(self.executor, workers=self.workers, address=self.address, gpus=self.gpus)

    def compute(self, task: TrainingOptions) -> Compute:
        """Where to compute, and whether with a progress bar."""
        from comove.jobs import Compute

        return Compute(self.executor_of(), task.device, progress=not task.quiet)


@dataclass(frozen=True)
class AttributionOptions:
    """Which methods, and the runs that they are fitted on."""

    methods: MethodList = None
    runs: Annotated[
        int,
        typer.Option(min=1, help="Runs that scores are averaged over; they are trained.", rich_help_panel=METHODS),
    ] = 3
    controls: Annotated[
        bool, typer.Option(help="Add the random and the same-class control.", rich_help_panel=METHODS)
    ] = True
    record_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Record a row every so many steps too.",
            show_default="a row after each epoch",
            rich_help_panel=METHODS,
        ),
    ] = None


def _told_changes(before: Splits, after: Splits) -> str:
    """What was dropped and relabelled, in a line."""
    pairs = list(zip(before.parts, after.parts, strict=True))
    dropped = [len(old) - len(new) for old, new in pairs]
    changed = [int((old.subset(new.ids).labels != new.labels).sum()) for old, new in pairs]
    counts = {"dropped": sum(dropped), "relabelled": sum(changed)}
    told = ", ".join(f"{counted(number, 'example')} {what}" for what, number in counts.items() if number)
    if not (held_out := sum(dropped[1:]) + sum(changed[1:])):
        return f"{told or 'No label is changed'}."
    return f"{told}, {held_out:,} of them held out: compare accuracies only with runs on the same held-out examples."


def width_option(width: float | None) -> dict[str, Any]:
    """Options of a model of this width."""
    return {} if width is None else {"width": width}


def parse_methods(words: Sequence[str] | None, default: Sequence[str], controls: bool) -> list[Any]:
    """Return the attribution methods named, without repeats, and the controls after them."""
    from comove.attribution import attributors
    from comove.discovery import parse_method

    known = attributors()
    named = list(words or default)
    if named == ["all"]:
        named = [name for name in known if name != "leave-one-out"]  # it has a bank of its own
    named += ["same-class-control", "random-control"] if controls else []
    return [parse_method(word, known, "attribution method") for word in dict.fromkeys(named)]


def coreset_methods(words: Sequence[str] | None, default: Sequence[str]) -> tuple[list[str], bool]:
    """Return the coreset methods named, and whether these are all there are: some may need what was not recorded."""
    from comove.coreset import selectors

    if words == ["all"]:
        return [name for name in selectors() if name != "per_class"], True
    return list(words or default), False


def is_whole(word: str) -> bool:
    """Tell whether a word is a whole number from 0 on that is not beyond all counts."""
    return word.isdecimal() and len(word) <= LONGEST_COUNT


def parse_budget(text: str) -> float | int:
    """Return the share or the number of examples that ``--budget`` gives.

    A whole number is a number of examples, as an integer is in Python; anything else is a share.

    Raises:
        InputError: neither, or a bare 1: by hand it may mean all examples or one.
    """
    word = text.strip()
    if not is_whole(word):
        return parse_share(word, "--budget", "a share of the training examples (0.1, 10%) or a number of them (500)")
    if int(word) == 1:
        raise InputError(
            "--budget 1 may mean every example or a single one: write 100% (or 1.0) for all of them; "
            "a single one is comove.select(..., budget=1) in Python."
        )
    return int(word)


def parse_share(text: str, option: str, what: str = "a share of the training examples (0.1, 10%)") -> float:
    """Return a share given as 0.1 or 10%.

    Raises:
        InputError: no number, or not above 0 and up to 1.
    """
    word, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(word) / (100 if percent else 1)
    except ValueError:
        raise InputError(f"{option} must be {what}, got {text!r}.") from None
    if not 0 < value <= 1:
        summary = f"; for {value:g} % write {value:g}%" if 1 < value <= 100 and not percent else ""
        raise InputError(f"{option} must be {what}; a share is above 0 and up to 1, got {text}{summary}.")
    return value


def parse_shares(words: Sequence[str] | None, default: Sequence[float]) -> list[float]:
    """Return the shares of ``--budgets``; errors as of :func:`parse_share`."""
    return [parse_share(word, "--budgets") for word in words] if words else list(default)


def open_runs(paths: Sequence[Path], own: OwnOptions | None = None) -> list[Any]:
    """Open recorded runs and traces, and say so where one is unfinished.

    Args:
        paths: their folders; or ``module:object``, a run or a function that returns one.
        own: the user's own model, task and data, for runs that were trained with these: no file is believed.
    """
    from comove.training import Run

    own = own or OwnOptions()
    found = [_open(path, own) for path in paths]
    for source in found:
        if isinstance(source, Run) and not source.finished:
            rows = len(source.trace.rows)
            say(f"{source.path} has not been trained to its end; its first {rows} rows are used.", "Warning:", "yellow")
    return found


def _open(path: Path, own: OwnOptions) -> Any:
    if is_object(str(path)):
        if own != OwnOptions():
            raise InputError(f"{path} makes the run itself: leave out --model, --task and --dataset.")
        return open_object(str(path))
    _check_folder(path, ("run", "trace"), "run or trace", "comove train --out RUN makes a run.")
    return own.open(path)


def open_banks(paths: Sequence[Path], method: str) -> list[Any]:
    """Open the bank that a method is computed from."""
    from comove.evaluation import RetrainingBank

    if len(paths) != 1:
        raise InputError(f"{method} is computed from one retraining bank, got {len(paths)} folders; {_advice(method)}")
    check_bank(paths[0], method)
    return [RetrainingBank.load(path) for path in paths]


def check_bank(path: Path, method: str = "") -> None:
    """Refuse a folder that holds no retraining bank, and say how one is made (for ``method``)."""
    from comove.retraining.compact import published_file

    if not path.exists():
        raise InputError(f"{path} does not exist; {_advice(method)}")
    if not published_file(path).is_file():
        _check_folder(path, ("bank",), "retraining bank", _advice(method))


def _advice(method: str) -> str:
    alpha = " --alpha loo" if method.startswith("leave-one-out") else ""
    then = f", for comove attribute OUT/bank --method {method}" if method else ""
    return f"comove lds{alpha} --out OUT makes one, OUT/bank{then}."


def _check_folder(path: Path, kinds: Collection[str], what: str, advice: str) -> None:
    """Refuse a folder of another kind, and name those of the right kind in it; what is no folder its reader refuses."""
    if not path.is_dir() or _kind(path) in kinds:
        return
    inside = [*path.glob("*/manifest.json"), *path.glob("runs/*/manifest.json")]
    near = [file.parent for file in sorted(inside) if _kind(file.parent) in kinds]
    found = f"holds a {_kind(path)}" if _kind(path) else "has no manifest.json"
    raise InputError(f"{path} {found}, but a {what} is needed; {f'did you mean {some(near, 3)}?' if near else advice}")


def _kind(folder: Path) -> str:
    """What a folder holds, by its manifest: ``"run"``, ``"bank"``, ...; ``""`` without one."""
    from comove.store import MANIFEST, read_json

    file = folder / MANIFEST
    return str(read_json(file).get("kind", "something foreign")).removeprefix("comove/") if file.exists() else ""
