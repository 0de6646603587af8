"""A run: the folder that :func:`comove.train` writes, opened."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as _weights_of_bytes
from safetensors.torch import save as _weights_to_bytes
from torch import nn

from comove.data import ExampleSet, MapDataset, Splits
from comove.data.batches import map_tensors
from comove.data.builtin import as_splits, reload_splits
from comove.data.class_names import class_indices
from comove.data.preparation import Picture, Preprocessing, prepared
from comove.display import html_facts
from comove.errors import CorruptFileError, InputError, first_line, some
from comove.models import Factory, ModelSpec
from comove.store import (
    MANIFEST,
    check_file,
    check_fingerprint,
    entries,
    open_manifest,
    read_bytes,
    read_header,
    read_json,
    understanding,
    write_sealed,
)
from comove.tasks import Classification, Task, classifies
from comove.trace import Trace
from comove.trace.evaluation_pass import clean_pass
from comove.trace.trace import read_trace_manifest, trace_damage
from comove.training.loop import Resident, predict
from comove.training.recipe import Recipe

__all__ = ["RUN_FORMAT", "Checkpoint", "Run", "read_weights", "write_weights"]

RUN_FORMAT = 2
MANIFEST_ENTRIES: dict[str, Any] = {"dataset": dict, "model": dict, "recipe": dict, "fingerprint": str}
MANIFEST_ENTRIES |= {"seed": int, "checkpoints": str | int}
_MEASURED = ("train_loss", "train_accuracy", "query_accuracy", "peak_memory_bytes")


@dataclass(frozen=True)
class Checkpoint:
    """Weights saved after ``epoch`` passes over the data.

    ``row`` is the trace row recorded at the same moment (-1 when none was); ``lr`` is the learning rate of the last
    step before (of the first step, for epoch 0), ``mean_lr`` its mean over the epoch that ended here. The weights are
    their moving average where the recipe asks for one (``ema``).
    """

    epoch: int
    step: int
    row: int
    lr: float
    mean_lr: float
    path: Path


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a flat dict of tensors to a safetensors file atomically, with JSON ``metadata`` and checksums."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_sealed(path, _weights_to_bytes(plain), metadata)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors.

    Raises:
        CorruptFileError: the file is missing, truncated, foreign or changed.
    """
    content = read_bytes(path)
    try:
        # Copies in order: safetensors gives views of the bytes, wherever these lie, in another order each time.
        return {name: tensor.clone() for name, tensor in sorted(_weights_of_bytes(content).items())}
    except (SafetensorError, KeyError) as error:
        raise CorruptFileError(f"{path} holds arrays of a type that torch cannot read ({error}).") from error


class Adoption(Protocol):
    """What stands behind a run trained elsewhere; see :func:`comove.training.adopt.adopt`."""

    task: Task
    trace: Trace | None

    def checkpoints(self, run: Run) -> tuple[Checkpoint, ...]:
        """Its checkpoints."""

    def load(self, run: Run, checkpoint: Checkpoint | None, device: torch.device | str) -> nn.Module:
        """The network with a checkpoint's weights."""

    def step_factors(self, run: Run, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """What the optimizer multiplied each entry of a gradient with."""


@dataclass(frozen=True)
class Run:
    """One training run: its trace, checkpoints and manifest, and, where they are at hand, its data.

    Attributes:
        path: the run's folder.
        manifest: data, model, recipe, seed, recording, library versions.
        dataset: the splits it was trained on, or ``None`` when they were not passed and cannot be loaded by name.
        factory: the user's own model factory (or its ``"package.module:factory"``), as the user passed it.
    """

    path: Path
    manifest: Mapping[str, Any]
    dataset: Splits | None = field(default=None, repr=False)
    factory: Factory | str | None = field(default=None, repr=False)
    adopted: Adoption | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dataset: str | Splits | ExampleSet | MapDataset | None = None,
        model: Factory | str | None = None,
    ) -> Run:
        """Open a run's folder.

        Args:
            path: what was given to :func:`comove.train` as ``out``.
            dataset: what it was trained on, as given to :func:`comove.train`; a built-in data set is loaded again when
                first needed. A string says where it is now, such as a folder that has moved.
            model: the user's own factory, or its ``"package.module:factory"``, when the run was trained with one
                (a file never makes us import code).

        Raises:
            CorruptFileError: not a run.
            FingerprintError: ``dataset`` is not what the run was trained on.
        """
        folder = Path(path)
        manifest = open_manifest(folder, "run", RUN_FORMAT)
        file = folder / MANIFEST
        if "adopted" in manifest:
            raise InputError(
                f"{folder} is a run of a model trained elsewhere: open it by the call of comove.adopt that made it, "
                f"with out={str(folder)!r}, or by comove.training.open_adopted(folder, model, data, task); its losses "
                f"alone by Trace.load({str(folder / 'trace')!r})."
            )
        described = entries(manifest, file, MANIFEST_ENTRIES, {"command": str, "recording": dict})["dataset"]
        entries(described, file, {"name": str, "source": dict, "fingerprint": str})
        with understanding(file):
            Recipe.from_json(manifest["recipe"])
            ModelSpec.from_json(manifest["model"])
            if manifest["checkpoints"] not in ("all", "last") and not manifest["checkpoints"] >= 1:
                raise InputError(f"checkpoints is {manifest['checkpoints']!r}")
        if isinstance(dataset, str) and described["source"]:
            dataset = reload_splits(described, folder, name=dataset)
        if dataset is not None:
            dataset = as_splits(dataset)
            found = described["fingerprint"]
            check_fingerprint("data set", found=found, expected=dataset.fingerprint, where=folder)
        return cls(folder, manifest, dataset, model)

    @property
    def trace(self) -> Trace:
        """The recorded trace (of a run under way: the rows so far)."""
        if self.adopted is not None and self.adopted.trace is not None:
            return self.adopted.trace
        with self._naming_remedy():
            trace = Trace.load(self.path / "trace")
            self._check_own(trace.manifest, self.path / "trace")
        trace.owner = self  # a temporary run's folder goes with the run
        return trace

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        if self.adopted is not None:
            manifest = self.path / "trace" / MANIFEST
            return self.adopted.trace is not None or (manifest.exists() and "rows" in read_json(manifest))
        return (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """Final accuracies and losses, and the seconds it took; nothing is known of a run trained elsewhere."""
        if self.adopted is not None:
            return {}
        file = self.path / "result.json"
        with self._naming_remedy():
            found = read_json(file)
            kinds = {"seconds_of_last_sitting": float, "device": str, "threads": int}
            entries(found, file, kinds, {**dict.fromkeys(_MEASURED, float), "epochs_trained": int})
            self._check_own({"id": found.pop("run", None)}, file)
        return found

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The saved weights, in order of training.

        Raises:
            CorruptFileError: one is missing, damaged, of another run or epoch.
        """
        if self.adopted is not None:
            return self.adopted.checkpoints(self)
        with self._naming_remedy():
            if foreign := self._foreign_checkpoints():
                raise CorruptFileError(f"{foreign[0]} is no checkpoint that this run keeps.")
            return tuple(self._checkpoint(file, epoch) for epoch, file in self._checkpoint_files())

    @property
    def _counts_places(self) -> bool:
        """Whether the files of this run say that they are its own; those of earlier versions do not."""
        return int(self.manifest["format_version"]) > 1

    def _checkpoint_files(self) -> list[tuple[int, Path]]:
        """By epoch, the files of the checkpoints that must be there: of a run under way, up to the last that is."""
        kept, epochs = self.manifest["checkpoints"], self._last_epoch
        every = 1 if kept == "all" else epochs if kept == "last" else kept
        due = sorted({*(() if kept == "last" else range(0, epochs, every)), epochs})
        files = [(epoch, self.path / "checkpoints" / f"{epoch:06d}.safetensors") for epoch in due]
        there = [position for position, (_, file) in enumerate(files) if file.exists()]
        return files if self.finished else files[: max(there, default=-1) + 1]

    @property
    def _last_epoch(self) -> int:
        """The last epoch of training; of a run under way that may end early, the last with a checkpoint."""
        recipe = self.recipe
        if recipe.early_stop_patience is None:
            return recipe.epochs
        try:
            ended = self.result["epochs_trained"] if self.finished else None
        except (CorruptFileError, KeyError):  # said where the result is read
            ended = None
        there = {file.stem for file in (self.path / "checkpoints").glob("*.safetensors")}
        return int(ended or max((int(stem) for stem in there if stem.isdecimal()), default=recipe.epochs))

    def _foreign_checkpoints(self) -> list[Path]:
        due = {file for _, file in self._checkpoint_files()}
        return sorted(set((self.path / "checkpoints").glob("*.safetensors")) - due)

    def _checkpoint(self, file: Path, epoch: int) -> Checkpoint:
        _, header = read_header(file)
        self._check_own({"id": header.get("run")}, file)
        found = entries(header, file, {"epoch": int, "step": int, "row": int, "lr": float, "mean_lr": float})
        if found["epoch"] != epoch or found["step"] < 0 or found["row"] < -1:
            raise CorruptFileError(f"{file} holds weights of epoch {found['epoch']}, not {epoch}: was it renamed?")
        return Checkpoint(**found, path=file)

    def damaged(self) -> tuple[Path, ...]:
        """Read every file of the run, and return those that are damaged, missing, or not this run's own.

        The call of :func:`comove.train` that made it sets them aside and trains the run again; but a finished run whose
        resume file alone is damaged stays as it is, and cannot be extended.
        """
        found: list[Path] = []

        def reads(file: Path, *checks: Callable[[], object]) -> None:
            try:
                for check in checks:
                    check()
            except CorruptFileError:
                found.append(file)

        if self.finished:
            reads(self.path / "result.json", lambda: self.result)
        trace = self.path / "trace"
        if (trace / MANIFEST).exists() or self.finished:
            found += trace_damage(trace)
            if trace / MANIFEST not in found:
                reads(trace / MANIFEST, lambda: self._check_own(read_trace_manifest(trace), trace))
        if self.resume_file.exists():
            reads(self.resume_file, self.resume_header, partial(check_file, self.resume_file))
        found += self._foreign_checkpoints()
        for epoch, file in self._checkpoint_files():
            reads(file, partial(self._checkpoint, file, epoch), partial(check_file, file))
        return tuple(found)

    @property
    def resume_file(self) -> Path:
        """Where a run under way, or one that can be extended, keeps what it needs to go on."""
        return self.path / "resume.safetensors"

    def resume_header(self) -> dict[str, Any]:
        """How far a run under way is.

        Raises:
            CorruptFileError: the file is not this run's, or rows that it had are gone.
        """
        _, header = read_header(self.resume_file)
        kinds = {"epoch": int, "step": int, "rows": int, "scaler": dict}
        found = entries(header, self.resume_file, kinds, {"run": str})
        self._check_own({"id": found["run"]}, self.resume_file)
        there = len(list((self.path / "trace" / "rows").glob("*.safetensors")))
        if not 0 <= found["rows"] <= there:
            raise CorruptFileError(f"{self.resume_file} goes on after {found['rows']} rows; the trace holds {there}.")
        return found

    def _check_own(self, named: Mapping[str, Any], where: Path) -> None:
        """Check that a file, or a trace, which names the run that it is of, is of this one."""
        owner, own = named.get("id"), self.manifest["fingerprint"]
        before = self.manifest.get("continues", [])  # of what it was extended from
        if owner != own and owner not in before and (owner is not None or self._counts_places):
            raise CorruptFileError(f"{where} belongs to another run ({owner}, not {own}).")

    @contextmanager
    def _naming_remedy(self) -> Iterator[None]:
        """Say of a damaged file how this run is put right."""
        try:
            yield
        except CorruptFileError as error:
            made = self.manifest.get("command")
            raise CorruptFileError(
                f"{error} The call of comove.train that made this run{f' ({made})' if made else ''} sets the damaged "
                "files aside and trains it again, to the same bits on the same machine."
            ) from error

    @property
    def recipe(self) -> Recipe:
        """How it was trained.

        Raises:
            InputError: elsewhere, in a way that comove does not know.
        """
        self._require_own("its recipe")
        return Recipe.from_json(self.manifest["recipe"])

    @property
    def seed(self) -> int:
        """Its seed (of a run trained elsewhere 0)."""
        return int(self.manifest.get("seed", 0))

    @property
    def model_spec(self) -> ModelSpec:
        """Which network it trained.

        Raises:
            InputError: the run was trained elsewhere.
        """
        self._require_own("how its network is built")
        return ModelSpec.from_json(self.manifest["model"])

    @property
    def task(self) -> Task:
        """What its model was trained to do; of :func:`comove.train`, classification."""
        return Classification() if self.adopted is None else self.adopted.task

    def _require_own(self, what: str) -> None:
        if self.adopted is not None:
            raise InputError(
                f"{self.path} was trained elsewhere, and comove does not know {what}. What retrains models takes your "
                "own training function: training=OwnTraining(function, name=...)."
            )

    def load_model(self, checkpoint: Checkpoint | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """Return the network with the weights of ``checkpoint`` (by default the last), in evaluation mode.

        Raises:
            InputError: no checkpoint was kept, or the model's factory must be passed to :meth:`load` again.
            CorruptFileError: a truncated file, or weights of another network.
        """
        if self.adopted is not None:
            return self.adopted.load(self, checkpoint, device)
        kept = self.checkpoints
        if not kept:
            raise InputError(f"{self.path} keeps no checkpoints; train again with checkpoints='all'.")
        chosen = checkpoint or kept[-1]
        spec = self.model_spec
        if ":" in spec.name and self.factory is None:
            raise InputError(
                f"{self.path} was trained with your own model {spec.name!r}; a file never makes comove import code: "
                f"pass it again, Run.load({str(self.path)!r}, model={spec.name!r}) or model=the function itself."
            )
        model = spec.build(self.seed, factory=self.factory)
        try:
            with self._naming_remedy():
                model.load_state_dict(read_weights(chosen.path))
        except RuntimeError as error:
            raise CorruptFileError(f"{chosen.path} does not hold the weights of {spec}: {error}") from error
        return model.to(device).eval()

    def load_for_gradients(self, checkpoint: Checkpoint | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """Return the network as :meth:`load_model` does, weights in half precision as float32.

        Sums of gradients over many examples need more digits than half precision has. A model that does not run in
        float32, such as on examples in half precision, stays as it is, with a warning.
        """
        model = self.load_model(checkpoint, device)
        half = {each.dtype for each in model.parameters() if each.requires_grad} & {torch.float16, torch.bfloat16}
        if not half:
            return model
        first = map_tensors(lambda tensor: tensor.to(device), self.data().train.collated(np.arange(1)))
        try:
            with torch.no_grad():
                self.task.outputs(model.float(), first)
        except RuntimeError as error:
            kinds = some(sorted(map(str, half)))
            warnings.warn(
                f"Gradients are taken in {kinds}, of two or three digits, and sums over examples are no better: "
                f"the model does not run in float32 on these examples ({first_line(error)}).",
                RuntimeWarning,
                stacklevel=3,
            )
            return self.load_model(checkpoint, device)
        return model

    def step_factors(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """Return lr / (sqrt(v_hat) + eps) of a model trained elsewhere by Adam or AdamW, by parameter, on the CPU.

        Raises:
            InputError: the optimizer's state was not given (:class:`comove.Weights`), or has no second moments.
        """
        if self.adopted is None:
            raise InputError(
                f"{self.path} keeps no optimizer state at its checkpoints: the preconditioned step is for models "
                "trained elsewhere, comove.adopt(..., [Weights(..., optimizer_state=), ...])."
            )
        return self.adopted.step_factors(self, checkpoint)

    def class_logits(
        self, examples: ExampleSet, checkpoint: Checkpoint | None = None, device: torch.device | str = "cpu"
    ) -> torch.Tensor | None:
        """Return the model's logits (M, C) of examples, on the CPU; ``None`` where its task has no classes.

        Raises:
            InputError: as :meth:`load_model`.
        """
        if not classifies(self.task):
            return None
        model, data = self.load_model(checkpoint, device), Resident(examples, torch.device(device))
        if self.adopted is None:
            return predict(model, data)
        with clean_pass(model):
            parts = [
                self.task.outputs(model, data.batch(slice(start, min(start + 128, len(data)))))
                for start in range(0, len(data), 128)
            ]
        return torch.cat(parts).float().cpu()

    def data(self) -> Splits:
        """Return the splits it was trained on, loading a built-in data set by the name in the manifest.

        Raises:
            InputError: the data was passed in from memory and must be passed to :meth:`load` again.
            FingerprintError: what is found under that name now is something else.
        """
        if self.dataset is not None:
            return self.dataset
        splits = reload_splits(self.manifest["dataset"], self.path)
        object.__setattr__(self, "dataset", splits)
        return splits

    def examples(self, ids: object) -> ExampleSet:
        """Return held-out examples (query or validation) of the run's data by id."""
        splits = self.data()
        for part in (splits.query, splits.validation):
            if part is not None and np.isin(np.asarray(ids), part.ids).all():
                return part.subset(ids)
        raise InputError("These ids are not all query ids, nor all validation ids, of the run's data.")

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to its examples before its model saw them.

        Raises:
            InputError: a run of an earlier comove, whose own data must be passed to :meth:`load` again.
        """
        noted = self.trace.manifest.get("preprocessing")
        return Preprocessing.of(self.data().train) if noted is None else Preprocessing.from_json(noted)

    def prepare(self, examples: Picture | Iterable[Picture], labels: object = None, ids: object = None) -> ExampleSet:
        """Make new examples as the run's own were made: colours, size, scale and normalisation.

        >>> queries = run.prepare("mine/", labels="cat")  # doctest: +SKIP
        >>> CLD().fit(run).attribute(queries).top(10, query=0)  # doctest: +SKIP

        Where the run's examples are images: PIL images and the paths of files or folders are brought to its colours and
        size (the shorter side resized, the centre cut out); arrays and tensors of 8-bit numbers, or of real numbers in
        [0, 1], are one image (C, H, W) or (H, W, C), or N of them, with the run's channels; another size is resized.
        Elsewhere: arrays of the run's shape, or ``(N, *shape)``, taken as they are. See
        :func:`comove.data.preparation.prepared`.

        Args:
            examples: one of these, or several.
            labels: (N,) class indices or names, or one name for all; by default the classes that the run's last
                checkpoint predicts, so that scores tell what the prediction depends on, right or wrong.
            ids: (N,) unique ids; by default 0 ... N-1.

        Returns:
            The examples, to be asked about: ``attribute(run.prepare(...))``.

        Raises:
            InputError: numbers out of range, other channels, no image; labels that are neither given nor to be
                predicted, since no checkpoint was kept or the model's factory must be passed to :meth:`load` again.
            InputTypeError: nothing of which examples can be made.
        """
        to = self.preprocessing
        raw = prepared(examples, to)
        names = self.trace.manifest.get("classes") or self._class_names()

        def made(found: object, name: str) -> ExampleSet:
            return ExampleSet.from_arrays(raw, found, ids=ids, classes=names, normalization=to.normalization, name=name)

        named = [labels] if isinstance(labels, str) else labels if isinstance(labels, list | tuple) else []
        if any(isinstance(label, str) for label in named):
            labels = class_indices(map(str, named), names, len(raw))
        if labels is not None:
            return made(labels, "new examples")
        unlabelled = made(np.zeros(len(raw), np.int64), "new examples")
        logits = self.class_logits(unlabelled)
        if logits is None:
            raise InputError(f"Give labels: the task of {self.path}, {self.task.name}, predicts no class.")
        return made(logits.argmax(1).numpy(), "new examples, labelled by the model's own predictions")

    def _class_names(self) -> list[str]:
        if self.adopted is not None:
            return list(self.data().classes)
        return list(map(str, range(self.model_spec.num_classes)))

    def _repr_html_(self) -> str:
        summary = {"data": self.manifest["dataset"]["name"], "model": str(self.model_spec.name), "seed": self.seed}
        found = self.result if self.finished else {}
        measured = {name.replace("_", " "): value for name, value in found.items() if name.endswith("_accuracy")}
        return html_facts(f"Run {self.path}", {**summary, "finished": self.finished, **measured})

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        if self.adopted is not None:
            return f"Run({self.path}: {len(self.checkpoints)} checkpoints trained elsewhere, {self.task.name})"
        name = self.manifest["dataset"]["name"]
        return f"Run({self.path}: {self.model_spec.name} on {name}, seed {self.seed}, {state})"
