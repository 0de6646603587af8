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
from comove.evaluation.subsets import RandomSubsets
from comove.execution import run_pending
from comove.models import Factory, ModelSpec
from comove.store import check_fingerprint, claim_folder, new_folder, open_manifest, read_arrays, write_arrays
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
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], dataset: Splits | None, factory: str | Factory | None
    ) -> None:
        arrays = read_arrays(path / "masks.safetensors")
        self.path, self.manifest = path, manifest
        self.masks: npt.NDArray[np.bool_] = arrays["masks"].astype(np.bool_)
        self.train_ids: Ids = arrays["train_ids"]
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
        subsets: RandomSubsets,
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
            subsets: which training examples each retraining uses, e.g. ``subsets.random(0.5, 100)``.
            seeds: R, models trained a subset.
            queries: ids of the query split to keep logits of; by default all.
            seed: from which every model's seed is derived, together with its subset and number.
            model_options: options of the model.

        Raises:
            InputError: bad arguments.
            FingerprintError: the folder holds another bank; the message shows what differs.
        """
        splits = as_splits(dataset, seed)
        model = default_model(splits) if model is None else model
        shape = splits.train.input_shape
        spec = ModelSpec.of(model, num_classes=len(splits.classes), input_shape=shape, **dict(model_options or {}))
        recipe = as_recipe(recipe, model=spec.name, n_train=len(splits.train))
        if seeds < 1:
            raise InputError(f"seeds must be at least 1, got {seeds}.")
        query = splits.query if queries is None else splits.query.subset(queries)
        masks = subsets.masks(len(splits.train))
        content = {
            "dataset": splits.describe(),
            "model": spec.to_json(),
            "recipe": recipe.to_json(),
            "subsets": subsets.to_json(),
            "seeds": seeds,
            "seed": seed,
            "query_ids": query.ids.tolist(),
        }
        folder = new_folder(path)
        manifest = claim_folder(folder, "bank", BANK_FORMAT, content)
        new_folder(folder / "results")
        if not (folder / "masks.safetensors").exists():
            arrays = {"train_ids": splits.train.ids, "query_ids": query.ids, "query_labels": query.labels}
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
        return [_Job(subset, seed) for seed in range(self.seeds) for subset in range(len(self.masks))]

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

        def work(job: tuple[int, int]) -> None:
            started = time.perf_counter()
            subset, number = job
            seed = derived_seed(int(self.manifest["seed"]), "bank", subset, number)
            model = spec.build(seed, factory=self._factory).to(where)
            examples = splits.train.subset(self.train_ids[self.masks[subset]])
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

    # --- reading ---

    def logits(self) -> npt.NDArray[np.float32]:
        """(C, R, Q, classes) float32; NaN where pending."""
        shape = (len(self.masks), self.seeds, self.query_ids.size, int(self.manifest["model"]["num_classes"]))
        logits = np.full(shape, np.nan, np.float32)
        for subset, seed in self.jobs:
            file = self._file((subset, seed))
            if file.exists():
                logits[subset, seed] = read_arrays(file, ["logits"])["logits"]
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
            InputError: scores without some of the ids, models still pending, an output without better and worse.
        """
        check_measurable(output)
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
