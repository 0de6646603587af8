"""The retraining bank: the ground truth that attribution is measured by.

For each of C subsets of the training data and each of R seeds a model is trained from scratch, and its logits on the
queries are kept. On disk::

    manifest.json                 data, model, recipe, seed, queries, engine; fingerprint
    examples.safetensors          train_ids, train_labels, query_ids, query_labels
    plans/random-0.5-0.safetensors    masks (C, N) as bits, and how many seeds each subset was asked for
    results/<subset>-000.safetensors  logits (Q, classes): one small file a model, named by what it was trained on
    weights/<the same name>       the model's weights, where they are kept

Where a function of the user's own trains (:class:`comove.OwnTraining`), the manifest has its name, labels are optional,
and a result holds outputs by name, (Q,) each.

The renamed result files are the truth; there is no second book that could disagree with them. One process at a time
drives a bank (:mod:`comove.store.lock`); any number may read it.

On one machine's processor a model's bits depend on its subset, its seed and the bank, whose engine is decided when it
is made: not on how many subsets were asked for at once, the order of work, the number of workers or of threads, nor on
which of several shards trained it.

Shape legend: C subsets, R seeds, N train, Q queries, K classes.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from comove.attribution import Scores
from comove.data import ExampleSet, Ids, MapDataset, Splits
from comove.data.builtin import as_splits, reload_splits
from comove.display import counted
from comove.errors import CorruptFileError, InputError, InputTypeError, LockedError, some
from comove.jobs import Executor, as_executor
from comove.lds.against_bank import bank_lds
from comove.lds.score import LDS
from comove.models import Factory, ModelSpec
from comove.retraining.compact import StackedResults, published_file, read_compact, write_compact
from comove.retraining.contents import OWN, LogitsOf, contents_of, is_own
from comove.retraining.engines import check_same_but_engine, join_engines, planned_engines, settle_engines
from comove.retraining.files import (
    BANK_FORMAT,
    PLANS,
    RESULTS,
    SAME_SEED,
    WEIGHTS,
    ResultFiles,
    Results,
    StoredPlan,
    complete_examples,
    keep_plan,
    open_bank,
    plan_files,
    planned,
    read_examples,
    read_plan,
)
from comove.retraining.imported import DEFAULT_NAME, imported
from comove.retraining.measured import all_logits, all_outputs
from comove.retraining.merge import merge_compact, merge_folders
from comove.retraining.model_index import Rows
from comove.retraining.own import OwnTraining, differing, trained_outputs
from comove.retraining.own_data import OwnData, own_data, own_queries
from comove.retraining.own_jobs import OwnMaterial, job_key, job_of, record_outputs, recording, train_own
from comove.retraining.status import BankStatus, bank_status
from comove.retraining.subsets import SubsetPlan
from comove.retraining.training import Material, device_type, train_wanted, wanted_models
from comove.store import check_fingerprint, claim_folder, new_folder
from comove.store.lock import driver_lock
from comove.tasks import Classification, Task
from comove.training import Engine, Recipe, Training, as_training, engines_for
from comove.training.configuration import check_early_stop
from comove.training.dry_run import dry_run
from comove.training.run import read_weights

__all__ = ["RetrainingBank"]


class RetrainingBank:
    """C subsets x R seeds of retrained models' outputs on Q queries, on disk; resumable model by model.

    Make one with :meth:`create`, open one with :meth:`load`.

    Attributes:
        path: the folder (or the compact file).
        train_ids: (N,) int64.
        train_labels: (N,) int64; ``None`` where the examples of an own training have none.
        query_ids: (Q,) int64.
        query_labels: (Q,) int64, or ``None`` likewise.
        classes: class names, or ``None``.
        masks: (C, N) bool: which training examples each subset holds.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        examples: Mapping[str, npt.NDArray[Any]],
        rows: Rows,
        results: Results,
        dataset: Splits | None = None,
        factory: str | Factory | None = None,
        own: OwnMaterial | None = None,
    ) -> None:
        self.path, self._identity, self._examples = path, identity, examples
        self._rows, self._results, self._contents = rows, results, contents_of(identity)
        self._dataset, self._factory, self._own = dataset, factory, own
        self.train_ids: Ids = examples["train_ids"]
        self.train_labels: Ids | None = examples.get("train_labels")
        self.query_ids: Ids = examples["query_ids"]
        self.query_labels: Ids | None = examples.get("query_labels")
        self.classes: tuple[str, ...] | None = tuple(identity["classes"]) or None
        self.masks: npt.NDArray[np.bool_] = rows.masks

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dataset: str | Splits | ExampleSet | MapDataset | Sequence[int] | Ids,
        training: Training | OwnTraining | str | Factory | None = None,
        *,
        subsets: SubsetPlan | Sequence[SubsetPlan],
        seeds: int = 1,
        queries: ExampleSet | Sequence[int] | Ids | None = None,
        task: Task | None = None,
        keep_weights: bool = False,
        engine: Engine | None = None,
        same_seed: bool = False,
    ) -> RetrainingBank:
        """Plan a bank in a new folder, or open the one that is there and add to it what it lacks.

        Data, ``training``, queries, ``engine`` and ``same_seed`` make a bank; which subsets and how many seeds is a
        question of what it holds. So asking for more subsets, seeds or plans extends it, nothing is ever taken away,
        and what is trained already is used. The bank that is returned has what was asked for here; :meth:`load` gives
        everything.

        Args:
            path: the folder.
            dataset: as for :func:`comove.train`; for an :class:`comove.OwnTraining` splits, or the training examples:
                an example set, or their ids alone (N,).
            training: network, recipe and the seed from which, with its subset and number, every model's own seed is
                derived; a model's name or factory stands for one with that model's defaults. Or a function of the
                user's own.
            subsets: which training examples each retraining uses, e.g. ``subsets.random(0.5, 100)``,
                ``subsets.leave_one_out()``, ``subsets.removals(scores, [10, 50])``; or several such plans.
            seeds: R, models trained per subset.
            queries: ids of the query split to keep logits of; by default all. For an own training without splits the
                queries themselves, an example set, or ids alone (Q,).
            task: what modules that an own training returns are measured with.
            keep_weights: also keep the weights of the models of these plans.
            engine: how models are trained, many at a time or one by one, on which bits depend. By default that of the
                bank which is there; of a new one what :func:`comove.training.engines_for` says, the same everywhere.
            same_seed: model r of every subset starts from the same weights and goes through the same batches, those of
                ``comove.train(..., seed=training.seed + r)`` on all training examples; what a subset lacks counts 0
                in each batch's mean loss, whose divisor stays. So models differ by nothing but the absent examples'
                losses: the truth that :class:`comove.attribution.Unrolled` predicts (MAGIC: Ilyas, Engstrom, 2025).
                Where batch norm trains on a batch's statistics, absent examples still enter these.

        Raises:
            InputError: bad arguments.
            FingerprintError: the folder holds another bank; the message shows what differs.
            CorruptFileError: it holds a bank of an older comove.
        """
        if isinstance(training, OwnTraining):
            if keep_weights or engine is not None or same_seed:
                raise InputError(
                    "keep_weights, engine and same_seed are for comove's own loop; an own training has none of them."
                )
            own = training.measured_by(task)
            return cls._create_own(Path(path), own_data(dataset, queries), own, subsets, seeds)
        if task is not None and task.name != Classification().name:
            raise InputError(f"comove's own loop trains classifiers, not {task.name}: pass training=OwnTraining(...).")
        if isinstance(queries, ExampleSet):
            raise InputTypeError("queries must be ids of the query split; an example set is for an own training.")
        splits, how = as_splits(dataset), as_training(training)
        spec, recipe, factory = how.resolve(splits)
        check_early_stop(recipe, splits)
        if not (Path(path) / "manifest.json").exists():  # a model that is refused leaves nothing behind
            dry_run(spec.build(0), splits.train)
        query = splits.query if queries is None else splits.query.subset(queries)
        plans = planned(subsets, splits.train.ids, seeds, keep_weights)
        identity = {
            "dataset": splits.describe(),
            "model": spec.to_json(),
            "recipe": recipe.to_json(),
            "seed": int(how.seed),
            "query_ids": query.ids.tolist(),
            "classes": list(splits.classes),
        }
        if same_seed:  # banks made before have no such entry
            identity[SAME_SEED] = True
        identity |= planned_engines(Path(path), engine, lambda: engines_for(spec, splits.train, recipe, factory))
        train = {"train_ids": splits.train.ids, "train_labels": splits.train.labels}
        examples = {**train, "query_ids": query.ids, "query_labels": query.labels}
        folder, identity = _claimed(path, identity, examples, plans)
        if keep_weights:
            new_folder(folder / WEIGHTS)
        rows, results = Rows.of(plans, splits.train.ids), ResultFiles.of(folder, identity)
        return cls(folder, identity, examples, rows, results, splits, factory)

    @classmethod
    def _create_own(
        cls, path: Path, data: OwnData, own: OwnTraining, subsets: SubsetPlan | Sequence[SubsetPlan], seeds: int
    ) -> RetrainingBank:
        """A bank whose models a function of the user's own trains."""
        plans = planned(subsets, data.examples["train_ids"], seeds, keep_weights=False)
        query_ids = data.examples["query_ids"].tolist()
        identity = {
            "dataset": data.description,
            "query_ids": query_ids,
            "classes": list(data.classes),
            OWN: own.to_json(),
        }
        folder, identity = _claimed(path, identity, data.examples, plans)
        rows, results = Rows.of(plans, data.examples["train_ids"]), ResultFiles.of(folder, identity)
        return cls(folder, identity, data.examples, rows, results, own=OwnMaterial(own, data.queries))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dataset: str | Splits | ExampleSet | None = None,
        model: str | Factory | None = None,
        training: OwnTraining | None = None,
        task: Task | None = None,
        queries: ExampleSet | None = None,
    ) -> RetrainingBank:
        """Open a bank with all its plans.

        Args:
            path: the folder, or a file made by :meth:`compact` (which can be read, not trained), or a folder in which
                such a file is published as ``bank.safetensors``.
            dataset: the splits it was made with, needed to go on training when they were the user's own; or where a
                folder or table that has moved is now.
            model: the user's own factory (or its ``"package.module:factory"``), likewise.
            training: the user's own training function, to go on with it.
            task: that of the function's modules, where it is not in ``training``.
            queries: the bank's queries, where such modules are measured on an example set of the user's own.

        Raises:
            CorruptFileError: not a bank, or a damaged file of one.
            FingerprintError: ``dataset``, ``training`` or ``queries`` is not what it was made with.
        """
        folder = published_file(Path(path))
        compact = read_compact(folder) if folder.is_file() else None
        identity = open_bank(folder) if compact is None else compact.identity
        if isinstance(dataset, str):
            dataset = reload_splits(identity["dataset"], folder, name=dataset)
        if dataset is not None:
            found = identity["dataset"]["fingerprint"]
            check_fingerprint("data set", found=found, expected=dataset.fingerprint, where=folder)
        own = None if training is None else training.measured_by(task)
        if own is not None:
            own.check_same(identity, folder)
        material = None if own is None else OwnMaterial(own, own_queries(identity, dataset, queries, folder))
        splits = dataset if isinstance(dataset, Splits) else None
        if compact is not None:
            return cls(folder, identity, compact.examples, compact.rows, compact.results, splits, model, material)
        examples, data = read_examples(folder, identity), str(identity["dataset"]["fingerprint"])
        plans = [read_plan(file, examples["train_ids"].size, data) for file in plan_files(folder)]
        if not plans:
            raise CorruptFileError(
                f"{folder} is a bank without plans: it was interrupted while it was made; make the same call again."
            )
        rows, results = Rows.of(plans, examples["train_ids"]), ResultFiles.of(folder, identity)
        _warn_of_lost_plans(rows, results)
        return cls(folder, identity, examples, rows, results, splits, model, material)

    @classmethod
    def from_arrays(
        cls,
        masks: object,
        outputs: object,
        *,
        train_ids: object = None,
        query_ids: object = None,
        train_labels: object = None,
        query_labels: object = None,
        higher: Mapping[str, bool] | None = None,
        name: str = DEFAULT_NAME,
    ) -> RetrainingBank:
        """Take ground truth that was made elsewhere as a bank in memory, to be read only; :meth:`compact` writes it.

        >>> bank = RetrainingBank.from_arrays([[1, 0, 1], [0, 1, 1]], {"loss": [[0.5], [0.25]]}, query_ids=[7])
        >>> bank.outputs("loss").shape, bank.higher_is_better("loss")
        ((2, 1, 1), False)

        Args:
            masks: (C, N) 0 and 1, or booleans: which training examples each model, or the R models of a row, saw. Rows
                that are equal are models of one subset.
            outputs: by name, (C, Q), or (C, R, Q) of R models a row; a single array is called ``"measure"``.
            train_ids: (N,) unique ids; by default 0 ... N-1.
            query_ids: (Q,) unique ids; by default 0 ... Q-1.
            train_labels: (N,) classes, where there are any.
            query_labels: (Q,) likewise.
            higher: by output, whether more of it is better; what is not named is so, but for ``"loss"``.
            name: what the models' training is called in the manifest.

        Raises:
            InputError: shapes that do not fit, masks of other numbers than 0 and 1, repeated ids, an unknown output in
                ``higher``.
            InputTypeError: other than numbers.
            NonFiniteError: an output that is NaN or infinite.
        """
        examples = {
            "train_ids": train_ids,
            "train_labels": train_labels,
            "query_ids": query_ids,
            "query_labels": query_labels,
        }
        return cls(Path(name), *imported(masks, outputs, examples, higher or {}, name))

    # --- what it is about ---

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Data, model, recipe, seed, queries, and the plans: one JSON object, or a list where there are several."""
        plans = [dict(notes.plan) for notes in self._rows.named.values()]
        return {**self._identity, "subsets": plans[0] if len(plans) == 1 else plans, "seeds": self.seeds}

    @property
    def is_own(self) -> bool:
        """Whether a training function of the user's own trains its models."""
        return is_own(self._identity)

    @property
    def same_seed(self) -> bool:
        """Whether the models of one number share initial weights and batches; see :meth:`create`."""
        return bool(self._identity.get(SAME_SEED, False))

    @property
    def training(self) -> OwnTraining | None:
        """The user's own training function, where it was passed to :meth:`create` or :meth:`load`."""
        return None if self._own is None else self._own.own

    @property
    def seeds(self) -> int:
        """R, the most models that any subset was asked for."""
        return self._rows.n_seeds

    @property
    def data_fingerprint(self) -> str:
        """The fingerprint of the data that subsets are drawn from."""
        return str(self._identity["dataset"]["fingerprint"])

    @property
    def digests(self) -> list[str]:
        """A fingerprint of each subset: of the ids it holds."""
        return list(self._rows.subsets)

    @property
    def plans(self) -> tuple[str, ...]:
        """The names of the plans that the subsets come from, such as ``"random-0.5-0"``."""
        return tuple(self._rows.named)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The sampling ratios of the random plans."""
        return tuple(dict.fromkeys(map(float, (p.plan["alpha"] for p in self._random()))))

    def _random(self) -> list[Any]:
        return [notes for notes in self._rows.named.values() if notes.plan.get("kind") == "random"]

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """All (subset, seed) pairs, seed by seed; subsets are numbered 0 ... C-1, as in ``masks``."""
        return self._rows.models()

    @property
    def pending(self) -> list[tuple[int, int]]:
        """The (subset, seed) pairs whose model is not there, or damaged (or without weights that are to be kept)."""
        done = self._results.done()
        keep = [self._rows.plans[plan].keep_weights for plan in self._rows.plan_of]
        return [
            (row, seed)
            for (row, seed), key in self._rows.keys().items()
            if key not in done or (keep[row] and not self._results.has_weights(key))
        ]

    # --- training ---

    def run(
        self,
        *,
        executor: Executor | str = "local",
        device: str | torch.device = "auto",
        progress: bool = False,
        engine: Engine | None = None,
        check: bool = False,
    ) -> RetrainingBank:
        """Train every pending model, and return the bank; what was interrupted goes on where it stopped.

        Args:
            executor: where: an executor of :mod:`comove.jobs`, or ``"serial"``, ``"local"``, ``"ray"``.
            device: ``"auto"``, ``"cpu"``, ``"cuda"``; of the workers. An own training function chooses for itself.
            progress: show a bar.
            engine: how models are trained; by default as was decided when the bank was made. Another one can be named
                until the first model is trained.
            check: first train one model of an own training function twice, here; see :meth:`check_deterministic`.

        Raises:
            InputError: what an own training function returned cannot be recorded; data, a model factory or a training
                function of the user's own must be passed to :meth:`load` again; another engine than the bank's.
            LockedError: another process is running this bank.
            NonFiniteError: a model diverged; the finished ones are kept.
            StorageError: a result cannot be written; the finished ones are kept.
        """
        files = self._writable()
        if self.is_own:
            return self._run_own(
                files, as_executor(executor) if isinstance(executor, str) else executor, progress, check
            )
        if not self.pending and not files.damaged_weights():
            return self
        splits = self._dataset or reload_splits(self._identity["dataset"], self.path)
        recipe = Recipe.from_json(self._identity["recipe"])
        material = Material(
            splits.train,
            splits.query.subset(self.query_ids),
            ModelSpec.from_json(self._identity["model"]),
            recipe,
            int(self._identity["seed"]),
            self._factory,
            device,
            None if recipe.early_stop_patience is None else splits.validation,
            self.same_seed,
        )
        dry_run(material.spec.build(0, self._factory), splits.train)  # bank and factory may come from elsewhere
        with driver_lock(self.path):
            self._refresh(files)
            _tidy(files)
            where = as_executor(executor) if isinstance(executor, str) else executor
            engines = settle_engines(
                files,
                self._identity,
                engine,
                lambda: device_type(material, where),
                lambda: engines_for(material.spec, material.train, material.recipe, material.factory),
            )
            wanted = wanted_models(self._rows, self.pending)
            if wanted.models:
                name_of = self._rows.name_of
                train_wanted(
                    files, material, wanted, name_of=name_of, executor=where, engines=engines, progress=progress
                )
        return self

    def _run_own(self, files: ResultFiles, executor: Executor, progress: bool, check: bool) -> RetrainingBank:
        material = self._material()
        if check:
            self.check_deterministic()
        if self.pending:
            with driver_lock(self.path):
                _tidy(files)
                pending = self.pending
                train_own(files, material, self._rows, pending, executor=executor, progress=progress)
        return self

    def _material(self) -> OwnMaterial:
        """The user's own training function, which must have been passed."""
        if not self.is_own:
            raise InputError(f"The models of {self.path} are trained by comove itself: bank.run().")
        if self._own is None:
            raise InputError(
                f"The models of {self.path} are trained by a function of your own, {self._identity[OWN]['name']!r}: "
                "open it with RetrainingBank.load(path, training=OwnTraining(...)), or train them elsewhere with "
                "bank.pending_jobs() and bank.record(job, outputs)."
            )
        return self._own

    def check_deterministic(self, subset: int = 0, seed: int = 0) -> None:
        """Train one model of an own training function twice, in this process, and compare to the bit; nothing is kept.

        Raises:
            InputError: the outputs differ; the message names them.
        """
        own, queries = self._material()
        ids = self.train_ids[self.part([subset]).masks[0]]
        once, again = (trained_outputs(own, ids, seed, queries, self.query_ids.size) for _ in range(2))
        if other := differing(once, again):
            raise InputError(
                f"The training function {own.name!r} is not deterministic: trained twice on subset {subset} with seed "
                f"{seed}, it gives other numbers of {', '.join(other)}. Draw everything from the seed that it is given."
            )

    def pending_jobs(self, most: int | None = None) -> list[dict[str, Any]]:
        """The models that are still to be trained, for a scheduler of the user's own: each a JSON object, each once.

        ``{"id": "...", "subset": i, "seed": s, "train_ids": [...]}``: train on these ids with this seed, and
        :meth:`record` the outputs. Damaged results are set aside first.

        Args:
            most: return at most so many jobs.

        Raises:
            InputError: a bank that comove's own loop trains, or a compact file.
        """
        files = self._own_files()
        with suppress(LockedError), driver_lock(self.path):
            _tidy(files)
        keys = self._rows.keys()
        once = {keys[model]: model for model in reversed(self.pending)}
        wanted = sorted(once.items(), key=lambda item: (item[1][1], item[1][0]))[:most]
        return [job_of(self._rows, model, key, files.fingerprint) for key, model in wanted]

    def record(self, job: Mapping[str, Any] | str, outputs: Mapping[str, Any]) -> None:
        """Write the outputs of one model that was trained elsewhere: checked, atomically, from any process.

        To record equal outputs again changes nothing.

        Args:
            job: one of :meth:`pending_jobs`, also as it comes back from JSON, or its id.
            outputs: by name, each (Q,) in the order of ``query_ids``.

        Raises:
            InputError: an unknown job or one of another bank; other lengths or names than the other models' outputs; a
                job that is recorded already with other numbers.
            InputTypeError: outputs that are no mapping of names to numbers.
            NonFiniteError: outputs that are NaN or infinite.
            LockedError: another process runs this bank.
            StorageError: the result cannot be written.
        """
        files = self._own_files()
        key = job_key(job, self._rows, files.fingerprint)
        with recording(self.path):
            record_outputs(files, self._rows, key, outputs, {"host": socket.gethostname()})

    def _own_files(self) -> ResultFiles:
        if not self.is_own:
            raise InputError(
                f"The models of {self.path} are trained by comove itself: bank.run(). Jobs for a scheduler of your own "
                "are those of a bank made with training=OwnTraining(...)."
            )
        return self._writable()

    def _refresh(self, files: ResultFiles) -> None:
        """See an engine that another process has named since this bank was opened; refuse any other change."""
        found = open_bank(self.path)
        if found["fingerprint"] != files.fingerprint:
            check_same_but_engine(self._identity, found, self.path)
            self._identity.update(found)
            files.renew(str(found["fingerprint"]))

    def _writable(self) -> ResultFiles:
        if not isinstance(self._results, ResultFiles):
            raise InputError(
                f"{self.path} is an imported or compact bank, to be read only; train in the folder it was made from."
            )
        return self._results

    def merge(self, other: str | os.PathLike[str] | RetrainingBank) -> int:
        """Copy what a bank made elsewhere has trained into this one's folder, and the plans it has.

        So a bank that was published as one compact file can be continued: create the same bank in a folder, with the
        plans that it is to have (a compact file may hold parts of plans, which are not taken over), merge the file,
        and run. Results that the file holds as float16 stay rounded to that.

        Both must be of the same data, model, recipe, seed, queries and engine (a bank that has trained nothing takes
        over the other's engine). A model that is in both stays as it is here.
        Plans that were not here are seen by :meth:`load`, not by this object.

        Args:
            other: its folder or compact file, or the bank.

        Returns:
            The number of results copied.

        Raises:
            FingerprintError: another bank; the message shows both fingerprints.
            LockedError: another process is running this bank.
            InputError: this bank is a compact file.
        """
        found = other if isinstance(other, RetrainingBank) else RetrainingBank.load(other)
        ours, theirs = self._writable(), found._results
        with driver_lock(self.path):
            self._refresh(ours)
            join_engines(ours, self._identity, found._identity, found.path)
            if isinstance(theirs, StackedResults):
                return merge_compact(ours, theirs, found.path)
            assert isinstance(theirs, ResultFiles)
            return merge_folders(ours, theirs, self.train_ids.size, self.data_fingerprint)

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
        rows = self._rows.take(chosen)
        return RetrainingBank(
            self.path, self._identity, self._examples, rows, self._results, self._dataset, self._factory, self._own
        )

    def halves(self, share: float = 0.5) -> tuple[RetrainingBank, RetrainingBank]:
        """Return two disjoint parts: the first ``share`` of the subsets (to fit on), and the rest (to evaluate on)."""
        cut = round(share * len(self.masks))
        return self.part(range(cut)), self.part(range(cut, len(self.masks)))

    def plan(self, plan: str | SubsetPlan) -> RetrainingBank:
        """Return the part whose subsets come from one plan, given by its name or itself.

        Raises:
            InputError: no such plan here.
        """
        name = plan if isinstance(plan, str) else plan.name
        places = self._rows.places(name)
        if not places.size:
            raise InputError(f"This bank has no plan {name!r}; it has {', '.join(self.plans)}.")
        return self.part(places)

    def at(self, alpha: float) -> RetrainingBank:
        """Return the part of the random subsets with this sampling ratio.

        Raises:
            InputError: there are none.
        """
        names = {notes.name for notes in self._random() if np.isclose(notes.plan["alpha"], alpha, rtol=0, atol=1e-12)}
        if not names:
            known = ", ".join(map(str, self.alphas)) or "no random subsets"
            raise InputError(f"This bank has no random subsets with alpha {alpha}; it has {known}.")
        return self.part(np.concatenate([self._rows.places(name) for name in self.plans if name in names]))

    # --- reading ---

    def logits(self) -> npt.NDArray[np.float32]:
        """(C, R, Q, K) float32; NaN where pending.

        Raises:
            InputError: a bank of an own training function, whose models are known by their outputs.
        """
        if not isinstance(self._contents, LogitsOf):
            raise InputError(f"{self.path} holds outputs, not logits: bank.outputs(name); {self._known()}.")
        return all_logits(self._rows, self._results, self._contents, self.path)

    def outputs(self, kind: str | None = None) -> npt.NDArray[np.float64]:
        """(C, R, Q) of one of :attr:`output_names`; NaN where pending.

        By default the margin; of an own training function its only output, ``"measure"`` or ``"margin"``.

        Raises:
            InputError: an unknown output, or several to choose from.
        """
        name = self.default_output if kind is None else kind
        self._contents.check(name, self.output_names)
        labels, size = self.query_labels, self.query_ids.size
        return all_outputs(
            self._rows, self._results, size, lambda one: self._contents.output(one, name, labels), self.path
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        """What can be read of the models: :data:`comove.evaluation.OUTPUTS`, or an own training function's outputs."""
        return self._results.names() or ()

    @property
    def default_output(self) -> str:
        """The output that is measured where none is named.

        Raises:
            InputError: an own training function gives several, none of them ``"measure"`` or ``"margin"``.
        """
        return self._contents.default(self.output_names)

    def higher_is_better(self, output: str) -> bool:
        """Whether more of an output is better.

        Raises:
            InputError: an unknown output, or ``"predicted"``, whose values are names and no amounts.
        """
        self._contents.check(output, self.output_names)
        if output == "predicted":
            amounts = [name for name in self.output_names if name != "predicted"]
            raise InputError(f"Attributions are measured by one of {', '.join(amounts)}, got {output!r}.")
        return self._contents.higher(output)

    def _known(self) -> str:
        return f"there are {', '.join(self.output_names) or 'none yet'}"

    def weights(self, subset: int, seed: int) -> dict[str, torch.Tensor]:
        """The weights of one model of a bank made with ``keep_weights=True``.

        Raises:
            InputError: no such model, or its weights were not kept.
        """
        key = self._rows.keys().get((subset, seed))
        if key is None or not self._results.has_weights(key):
            raise InputError(
                f"There are no weights of subset {subset}, seed {seed}: create the bank with keep_weights=True and run "
                "it (what has been trained without them is trained again)."
            )
        file = self._writable().weights_file(key)
        try:
            return read_weights(file)
        except CorruptFileError as error:
            raise CorruptFileError(f"{error} Here that is bank.run().") from error

    def status(self) -> BankStatus:
        """How far it is, how fast it goes, and who is working on it; prints well."""
        return bank_status(self.path, self._rows, self._results)

    def compact(self, file: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32") -> Path:
        """Write this bank (or part) to one file, to publish; :meth:`load` opens it to be read, not trained.

        Args:
            file: a name ending in ``.safetensors``, so that :meth:`load` and people know what it is.
            dtype: of the logits; ``"float16"`` halves the file and keeps three digits. The outputs of an own training
                function keep their type, unless it is ``"float16"``.

        Raises:
            InputError: another ending; numbers too large for float16.
            StorageError: it cannot be written.
        """
        target = Path(file)
        if target.suffix != ".safetensors":
            raise InputError(f"A compact bank is a .safetensors file, got {target.name!r}.")
        write_compact(target, self._identity, self._examples, self._rows, self._results, dtype)
        return target

    def lds(self, scores: Scores, output: str | None = None, **options: Any) -> LDS:
        """The linear datamodeling score of ``scores`` against this bank, matched by ids.

        Args:
            scores: of the bank's training examples, for all its queries.
            output: what to measure on the queries, by default the margin, of an own training function its only output,
                ``"measure"`` or ``"margin"``; the sign of what is better when lower is turned: helping is positive.
            options: of :func:`linear_datamodeling_score`.

        Raises:
            InputError: scores without some of the ids, scores fitted on some of the bank's own subsets, models still
            pending, an output without better and worse.
        """
        return bank_lds([self], [scores], None if output is None else [output], **options)[0]

    def __repr__(self) -> str:
        total = len(self.jobs)
        size = f"{counted(len(self.masks), 'subset')} x {counted(self.seeds, 'seed')}"
        trained = f"{total - len(self.pending):,} of {counted(total, 'model')} trained"
        return f"RetrainingBank({self.path}: {size}, {counted(self.query_ids.size, 'query')}, {trained})"


def _claimed(
    path: str | os.PathLike[str], content: dict[str, Any], examples: Mapping[str, Any], plans: Sequence[StoredPlan]
) -> tuple[Path, dict[str, Any]]:
    """Claim a folder for the bank, and write what it lacks of examples and plans; the folder and its manifest."""
    folder = new_folder(path)
    identity = claim_folder(folder, "bank", BANK_FORMAT, content)
    data = str(identity["dataset"]["fingerprint"])
    complete_examples(folder, examples, data)
    for name in (PLANS, RESULTS):
        new_folder(folder / name)
    for plan in plans:
        keep_plan(folder, plan, data)
    return folder, identity


def _tidy(files: ResultFiles) -> None:
    """Remove what killed writes left, and set damaged results aside; for the bank's driver."""
    files.clean()
    if damaged := files.set_aside_damaged():
        warnings.warn(
            f"{len(damaged)} results in {files.folder / RESULTS} were damaged ({some(damaged, 3)}): they are "
            "set aside as *.damaged and trained again.",
            stacklevel=3,
        )


def _warn_of_lost_plans(rows: Rows, results: ResultFiles) -> None:
    """Say so where models lie in a bank that none of its plans asked for: then the file of a plan is gone."""
    if lost := sorted(results.subsets() - set(rows.subsets)):
        warnings.warn(
            f"{results.folder} holds models of {counted(len(lost), 'subset')} that none of its plans names: a file in "
            f"{results.folder / PLANS} is gone or was cut back. Make the call that planned them again (or restore the "
            "file from a copy); until then they do not count.",
            stacklevel=3,
        )
