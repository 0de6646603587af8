"""Training what a bank lacks: jobs of many models each, done by workers, written by the driver.

A model's seed is derived from the bank's seed, its subset and its number: derived_seed(bank seed, "bank", the first 15
hexadecimal digits of the subset's fingerprint as a number, number). So the same model comes out whichever plan asks for
it, whatever was trained before and wherever.

In a bank with ``same_seed`` it is the bank's seed plus the number, whatever the subset, and a model is trained in the
batches of all training examples, in which the loss of those outside its subset counts 0.
"""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from comove.data import ExampleSet
from comove.errors import NonFiniteError
from comove.jobs import Executor, RayCluster, as_executor, run_jobs
from comove.models import Factory, ModelSpec
from comove.retraining.files import Key, ResultFiles
from comove.retraining.model_index import Rows
from comove.training import Engine, Engines, Member, Recipe, Resident, resolve_device, train_many
from comove.training.many.compiled import why_not_compiled
from comove.training.randomness import derived_seed

__all__ = ["Material", "Wanted", "device_type", "model_seed", "train_wanted", "wanted_models"]

Job = tuple[tuple[int, int], ...]
"""One (subset, number) a model; subsets are rows of the payload's masks."""


class Material(NamedTuple):
    """What models are made of."""

    train: ExampleSet
    query: ExampleSet
    spec: ModelSpec
    recipe: Recipe
    seed: int
    factory: str | Factory | None
    device: str | torch.device
    validation: ExampleSet | None = None
    """Where early stopping goes by it."""
    same_seed: bool = False
    """Whether models of one number share their initial weights and batches."""

    def seed_of(self, key: Key) -> int:
        """The seed of a model's weights, order, augmentation and dropout."""
        return self.seed + key.number if self.same_seed else model_seed(self.seed, key)

    def member(self, mask_N: npt.NDArray[np.bool_], key: Key) -> Member:
        """The model of a subset, as it is trained."""
        if self.same_seed:
            return Member(np.arange(mask_N.size), self.seed_of(key), mask_N.astype(np.float32))
        return Member(np.flatnonzero(mask_N), self.seed_of(key))


class Wanted(NamedTuple):
    """Models to train: (U,) fingerprints and (U, N) masks of different subsets, and (subset, number) pairs of them."""

    subsets: tuple[str, ...]
    masks: npt.NDArray[np.bool_]
    models: list[tuple[int, int]]
    keep_weights: npt.NDArray[np.bool_]

    def key(self, model: tuple[int, int]) -> Key:
        """What a (subset, number) pair is called on disk."""
        return Key(self.subsets[model[0]], model[1])


def wanted_models(rows: Rows, pending: Iterable[tuple[int, int]]) -> Wanted:
    """The models of these (row, seed) pairs, each once and in order."""
    keys = list(dict.fromkeys(Key(rows.subsets[row], seed) for row, seed in pending))
    row_of: dict[str, int] = {}
    for row, subset in enumerate(rows.subsets):
        row_of.setdefault(subset, row)
    kept = {rows.subsets[row] for row, plan in enumerate(rows.plan_of) if rows.plans[plan].keep_weights}
    subsets = tuple(dict.fromkeys(key.subset for key in keys))
    place = {subset: i for i, subset in enumerate(subsets)}
    return Wanted(
        subsets,
        rows.masks[[row_of[subset] for subset in subsets]],
        [(place[key.subset], key.number) for key in keys],
        np.array([subset in kept for subset in subsets], np.bool_),
    )


class _Payload(NamedTuple):
    material: Material
    subsets: tuple[str, ...]
    packed: npt.NDArray[np.uint8]
    keep_weights: npt.NDArray[np.bool_]
    engines: Engines


class _Result(NamedTuple):
    logits: list[npt.NDArray[np.float32]]
    weights: list[bytes | None]
    seconds: float
    engine: Engine


def model_seed(bank_seed: int, key: Key) -> int:
    """The seed of a model of a bank without ``same_seed``."""
    return derived_seed(bank_seed, "bank", int(key.subset[:15], 16), key.number)


def train_wanted(
    files: ResultFiles,
    material: Material,
    wanted: Wanted,
    *,
    name_of: Callable[[Key], str],
    executor: Executor | str,
    engines: Engines,
    progress: bool,
) -> None:
    """Train the models and write their results as they arrive; for the driver, who holds the bank's lock.

    Args:
        files: where results go.
        material: data, model and recipe.
        wanted: the models, in the order to train them; no bit depends on it.
        name_of: a model's name for messages.
        executor: where they are trained.
        engines: how, the bank's own.
        progress: show a bar.

    Raises:
        InputError: an engine that cannot train these models.
        NonFiniteError: a model diverged.
        StorageError: a result cannot be written.
    """
    payload = _Payload(material, wanted.subsets, np.packbits(wanted.masks, axis=1), wanted.keep_weights, engines)
    where = as_executor(executor) if isinstance(executor, str) else executor
    with where.session():
        group = engines.cpu.group
        if engines.cuda.group != group:
            group = engines.on(device_type(material, where)).group
        sizes = np.full(len(wanted.masks), len(material.train)) if material.same_seed else wanted.masks.sum(1)
        run_jobs(
            _jobs(wanted.models, sizes, group),
            _setup,
            payload,
            _Delivery(files, wanted, material.seed_of, name_of),
            executor=where,
            description="retraining (models)",
            progress=progress,
            size=len,
        )


class _Delivery:
    """Writes results as they arrive."""

    def __init__(
        self, files: ResultFiles, wanted: Wanted, seed_of: Callable[[Key], int], name_of: Callable[[Key], str]
    ) -> None:
        self.files, self.wanted, self.seed_of, self.name_of = files, wanted, seed_of, name_of
        self.notes = {"started": round(time.time(), 3), "host": socket.gethostname()}

    def __call__(self, job: Job, result: _Result) -> None:
        """Write the models of one job, and refuse those that diverged when the others are written."""
        timed = {"finished": round(time.time(), 3), "seconds": round(result.seconds / len(job), 4)}
        engine = [result.engine.kind, result.engine.group]
        diverged = []
        for model, logits, weights in zip(job, result.logits, result.weights, strict=True):
            key = self.wanted.key(model)
            if not np.isfinite(logits).all():
                diverged.append(key)
                continue
            if weights is not None:
                self.files.write_weights(key, weights)  # first: a result says that all of it is there
            self.files.write(
                key, {"logits": logits}, {**self.notes, **timed, "engine": engine, "seed": self.seed_of(key)}
            )
        if diverged:
            raise NonFiniteError(
                f"The model of {self.name_of(diverged[0])} diverged (logits are NaN or infinite): lower the learning "
                "rate and make the bank in a new folder. What was finished is kept."
            )


def _jobs(models: Iterable[tuple[int, int]], sizes: npt.NDArray[np.int64], group: int) -> list[Job]:
    """Cut the models into groups of equal subset size, each begun in the order in which its first model stands."""
    filling: dict[int, list[tuple[int, int]]] = {}
    jobs: list[list[tuple[int, int]]] = []
    for model in models:
        size = int(sizes[model[0]])
        if len(filling.get(size, ())) in (0, group):
            filling[size] = []
            jobs.append(filling[size])
        filling[size].append(model)
    return [tuple(job) for job in jobs]


# --- the kind of device -----------------------------------------------------------------------------------------------


def device_type(material: Material, executor: Executor) -> str:
    """Where the models are trained, ``"cpu"`` or ``"cuda"``: here, or as a worker of a cluster finds it."""
    if material.device != "auto" or not isinstance(executor, RayCluster):
        return resolve_device(material.device).type
    found: list[str] = []
    run_jobs(
        [0], _setup_device, material.device, lambda _, name: found.append(name), executor=executor, description="device"
    )
    return found[0]


def _setup_device(device: str | torch.device) -> Callable[[int], str]:
    return lambda _: resolve_device(device).type


# --- in the workers --------------------------------------------------------------------------------------------------


def _setup(payload: _Payload) -> Callable[[Job], _Result]:
    """Put the data on the device; what it returns trains the models of one job."""
    material = payload.material
    device = resolve_device(material.device)
    train, query = Resident(material.train, device), Resident(material.query, device)
    validation = None if material.validation is None else Resident(material.validation, device)
    engine = _usable(payload.engines.on(device.type), material, train)

    def members(job: Job) -> list[Member]:
        rows = np.unpackbits(payload.packed[[subset for subset, _ in job]], axis=1, count=len(train))
        keys = [Key(payload.subsets[subset], number) for subset, number in job]
        return [material.member(row.astype(bool), key) for row, key in zip(rows, keys, strict=True)]

    def work(job: Job) -> _Result:
        started = time.perf_counter()
        keep = [bool(payload.keep_weights[subset]) for subset, _ in job]
        trained = train_many(
            material.spec,
            train,
            query,
            members(job),
            material.recipe,
            engine=engine,
            factory=material.factory,
            keep_weights=any(keep),
            validation=validation,
        )
        weights = [_as_bytes(one.weights) if kept else None for one, kept in zip(trained, keep, strict=True)]
        return _Result([one.logits for one in trained], weights, time.perf_counter() - started, engine)

    return work


def _usable(engine: Engine, material: Material, train: Resident) -> Engine:
    """The engine, or plain training one by one where these models cannot be trained in a compiled network."""
    if engine.kind not in ("captured", "compiled") or train.device.type != "cuda":
        return engine
    obstacle = why_not_compiled(material.spec, train, material.recipe, material.factory)
    if obstacle is None:
        return engine
    warnings.warn(f"The models are trained one by one, not {engine.kind}: {obstacle}.", RuntimeWarning, stacklevel=2)
    return Engine("one-by-one", 1, obstacle)


def _as_bytes(weights: dict[str, torch.Tensor] | None) -> bytes:
    assert weights is not None
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    content: bytes = save(plain)
    return content
