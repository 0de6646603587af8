"""The retraining bank: the ground truth that attribution is held to.

For each of C subsets of the training data and each of R seeds a model is trained from scratch, and its logits on the
queries are kept. On disk::

    manifest.json            data, model, recipe, subsets, seeds, fingerprint
    masks.safetensors        masks (C, N), train_ids, query_ids, query_labels
    results/00012-003.safetensors   logits (Q, classes) of subset 12, seed 3: one small file a model

The renamed result files are the truth; there is no second book that could disagree with them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution import Scores
from comove.data import ExampleSet, Ids, MapDataset, Splits
from comove.datasets import as_splits, reload_splits
from comove.errors import InputError, NonFiniteError
from comove.evaluation.lds import LDS, linear_datamodeling_score
from comove.evaluation.outputs import check_measurable, output_of
from comove.evaluation.subsets import SubsetPlan
from comove.execution import run_pending
from comove.models import Factory, ModelSpec
from comove.store import check_fingerprint, claim_folder, digest, new_folder, open_manifest, read_arrays, write_arrays
from comove.training import Recipe, Resident, as_recipe, default_model, fit, predict, resolve_device
from comove.training.randomness import derived_seed

__all__ = ["RetrainingBank"]

BANK_FORMAT = 1


class _Job(NamedTuple):
    subset: int
    seed: int


class RetrainingBank:
    """C subsets x R seeds of retrained models' logits on Q queries, on disk; resumable model by model.

    Make one with :meth:`create`, open one with :meth:`load`.

    Attributes:
        path: the folder.
        manifest: data, model, recipe, subsets and seeds.
        masks: (C, N) bool: which training examples each subset holds.
        train_ids: (N,) int64.
        query_ids: (Q,) int64.
        query_labels: (Q,) int64.
        train_labels: (N,) int64.
        classes: class names.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        dataset: Splits | None,
        factory: str | Factory | None,
        subsets: npt.NDArray[np.int64] | None = None,
    ) -> None:
        arrays = read_arrays(path / "masks.safetensors")
        self.path, self.manifest = path, manifest
        masks: npt.NDArray[np.bool_] = arrays["masks"].astype(np.bool_)
        self._subsets = np.arange(len(masks)) if subsets is None else subsets
        self.masks = masks[self._subsets]
        self.train_ids: Ids = arrays["train_ids"]
        self.train_labels: Ids | None = arrays.get("train_labels")
        self.classes: tuple[str, ...] | None = tuple(manifest["classes"]) if "classes" in manifest else None
        self.query_ids: Ids = arrays["query_ids"]
        self.query_labels: Ids = arrays["query_labels"]
        self._dataset, self._factory = dataset, factory

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dataset: str | Splits | ExampleSet | MapDataset,
        model: str | Factory | None = None,
        recipe: Recipe | str | Mapping[str, Any] | None = None,
        *,
        subsets: SubsetPlan,
        seeds: int = 1,
        queries: Sequence[int] | Ids | None = None,
        seed: int = 0,
        model_options: Mapping[str, Any] | None = None,
    ) -> RetrainingBank:
        """Plan a bank in a new folder, or open the one that is there if it is this very one.

        Args:
            path: the folder.
            dataset: as for :func:`comove.train`.
            model: a name, ``"package.module:factory"`` or a factory.
            recipe: as for :func:`comove.train`.
            subsets: which training examples each retraining uses, e.g. ``subsets.random(0.5, 100)`` or
                ``subsets.leave_one_out()``.
            seeds: R, models trained a subset.
            queries: ids of the query split to keep logits of; by default all.
            seed: from which every model's seed is derived, together with its subset and number.
            model_options: options of the model.

        Raises:
            InputError: bad arguments.
            FingerprintError: the folder holds another bank; the message shows what differs.
        """
        splits = as_splits(dataset)
        model = default_model(splits) if model is None else model
        shape = splits.train.input_shape
        spec = ModelSpec.of(model, num_classes=len(splits.classes), input_shape=shape, **dict(model_options or {}))
        recipe = as_recipe(recipe, model=spec.name, n_train=len(splits.train))
        if seeds < 1:
            raise InputError(f"seeds must be at least 1, got {seeds}.")
        query = splits.query if queries is None else splits.query.subset(queries)
        masks = subsets.masks_for(splits.train.ids)
        content = {
            "dataset": splits.describe(),
            "model": spec.to_json(),
            "recipe": recipe.to_json(),
            "subsets": subsets.to_json(),
            "seeds": seeds,
            "seed": seed,
            "query_ids": query.ids.tolist(),
            "classes": list(splits.classes),
        }
        folder = new_folder(path)
        manifest = claim_folder(folder, "bank", BANK_FORMAT, content)
        new_folder(folder / "results")
        if not (folder / "masks.safetensors").exists():
            train = {"train_ids": splits.train.ids, "train_labels": splits.train.labels}
            arrays = {**train, "query_ids": query.ids, "query_labels": query.labels}
            write_arrays(folder / "masks.safetensors", {"masks": masks.astype(np.uint8), **arrays})
        return cls(folder, manifest, splits, model if callable(model) or ":" in model else None)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, dataset: Splits | None = None, model: str | Factory | None = None
    ) -> RetrainingBank:
        """Open a bank.

        Args:
            path: the folder.
            dataset: the splits it was made with; needed to go on training when they were the user's own.
            model: the user's own factory (or its ``"package.module:factory"``), likewise.

        Raises:
            CorruptFileError: not a bank.
            FingerprintError: ``dataset`` is not what it was made with.
        """
        folder = Path(path)
        manifest = open_manifest(folder, "bank", BANK_FORMAT)
        if dataset is not None:
            found = manifest["dataset"]["fingerprint"]
            check_fingerprint("data set", found=found, expected=dataset.fingerprint, where=folder)
        return cls(folder, manifest, dataset, model)

    # --- training ---

    @property
    def seeds(self) -> int:
        """R."""
        return int(self.manifest["seeds"])

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """All (subset, seed) pairs, seed by seed, so that an interrupted bank has whole seeds first."""
        return [_Job(int(subset), seed) for seed in range(self.seeds) for subset in self._subsets]

    @property
    def pending(self) -> list[tuple[int, int]]:
        """The (subset, seed) pairs whose model has not been trained yet."""
        return [job for job in self.jobs if not self._file(job).exists()]

    def _file(self, job: tuple[int, int]) -> Path:
        return self.path / "results" / f"{job[0]:05d}-{job[1]:03d}.safetensors"

    def run(self, *, device: str | torch.device = "auto", progress: bool = False) -> RetrainingBank:
        """Train every pending model, and return the bank; what was interrupted goes on where it stopped.

        Raises:
            InputError: data or a model factory of the user's own must be passed to :meth:`load` again.
            NonFiniteError: a model diverged; the finished ones are kept.
            StorageError: a result cannot be written; the finished ones are kept.
        """
        splits = self._dataset or reload_splits(self.manifest["dataset"], self.path)
        where = resolve_device(device)
        spec = ModelSpec.from_json(self.manifest["model"])
        recipe = Recipe.from_json(self.manifest["recipe"])
        query = Resident(splits.query.subset(self.query_ids), where)
        masks = dict(zip(self._subsets.tolist(), self.masks, strict=True))

        def work(job: tuple[int, int]) -> None:
            started = time.perf_counter()
            subset, number = job
            seed = derived_seed(int(self.manifest["seed"]), "bank", subset, number)
            model = spec.build(seed, factory=self._factory).to(where)
            examples = splits.train.subset(self.train_ids[masks[subset]])
            fit(model, examples, recipe, seed=seed, device=where)
            logits = predict(model, query).numpy()
            if not np.isfinite(logits).all():
                raise NonFiniteError(
                    f"The model of subset {subset}, seed {number} diverged (logits are NaN or infinite): lower the "
                    "learning rate and make the bank in a new folder."
                )
            seconds = round(time.perf_counter() - started, 3)
            write_arrays(self._file(job), {"logits": logits}, {"seed": seed, "seconds": seconds})

        run_pending(self.jobs, self._file, work, description="retraining", progress=progress)
        return self

    # --- parts ---

    def part(self, subsets: Sequence[int] | npt.NDArray[np.int64]) -> RetrainingBank:
        """Return the bank restricted to these subsets (indices 0 ... C-1); the files are shared.

        Methods fitted to a bank (FZ influence, datamodels) must be evaluated on other subsets than they were fitted
        to: fit on one part, call :meth:`lds` of another. :meth:`halves` makes two.

        Raises:
            InputError: no subset, an unknown or repeated one.
        """
        chosen = np.asarray(subsets, dtype=np.int64)
        if chosen.ndim != 1 or chosen.size == 0 or np.unique(chosen).size != chosen.size:
            raise InputError("A part of a bank needs at least one subset, each named once.")
        if chosen.min() < 0 or chosen.max() >= len(self.masks):
            raise InputError(
                f"Subsets are numbered 0 ... {len(self.masks) - 1}, got {chosen.min()} ... {chosen.max()}."
            )
        return RetrainingBank(self.path, self.manifest, self._dataset, self._factory, self._subsets[chosen])

    def halves(self, share: float = 0.5) -> tuple[RetrainingBank, RetrainingBank]:
        """Return two disjoint parts: the first ``share`` of the subsets (to fit on), and the rest (to evaluate on)."""
        cut = round(share * len(self.masks))
        return self.part(range(cut)), self.part(range(cut, len(self.masks)))

    @property
    def digests(self) -> list[str]:
        """A fingerprint of each subset: of the ids it holds."""
        return [digest(np.sort(self.train_ids[row_N])) for row_N in self.masks]

    # --- reading ---

    def logits(self) -> npt.NDArray[np.float32]:
        """(C, R, Q, classes) float32; NaN where pending."""
        shape = (len(self.masks), self.seeds, self.query_ids.size, int(self.manifest["model"]["num_classes"]))
        logits = np.full(shape, np.nan, np.float32)
        for place, subset in enumerate(self._subsets.tolist()):
            for seed in range(self.seeds):
                file = self._file((subset, seed))
                if file.exists():
                    logits[place, seed] = read_arrays(file, ["logits"])["logits"]
        return logits

    def outputs(self, kind: str = "margin") -> npt.NDArray[np.float64]:
        """(C, R, Q) of one of :data:`comove.evaluation.OUTPUTS`; NaN where pending."""
        return output_of(self.logits(), self.query_labels, kind)

    def lds(self, scores: Scores, output: str = "margin", **options: Any) -> LDS:
        """The linear datamodeling score of ``scores`` against this bank, matched by ids.

        Args:
            scores: of the bank's training examples, for all its queries.
            output: what to measure on the queries; the sign of ``"loss"`` is turned, so that helping is positive.
            options: of :func:`linear_datamodeling_score`.

        Raises:
            InputError: scores without some of the ids, scores fitted on some of the bank's own subsets, models still
            pending, an output without better and worse.
        """
        check_measurable(output)
        shared = set(scores.info.get("fitted_on", ())) & set(self.digests)
        if shared:
            raise InputError(
                f"{scores.method} was fitted on {len(shared)} of the {len(self.masks)} subsets it would be measured "
                "on; fit it on one part of the bank and measure it on another: fit_on, test_on = bank.halves()."
            )
        matched = scores.subset(train_ids=self.train_ids, query_ids=self.query_ids)
        if scores.train_ids.size != self.train_ids.size:
            raise InputError(f"The scores have {scores.train_ids.size} training ids, the bank {self.train_ids.size}.")
        measured = self.outputs(output)
        return linear_datamodeling_score(matched, self.masks, -measured if output == "loss" else measured, **options)

    def __repr__(self) -> str:
        done = len(self.jobs) - len(self.pending)
        return (
            f"RetrainingBank({self.path}: {len(self.masks)} subsets x {self.seeds} seeds, {self.query_ids.size} "
            f"queries, {done} of {len(self.jobs)} models trained)"
        )
