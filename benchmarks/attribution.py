"""Gradient attribution: ours and the peers side by side, as multiples of one plain forward+backward epoch.

    python benchmarks/attribution.py --data-dir DIR [--train 2000] [--queries 100] [--peer-train 500] [--only WORD]

ResNet-9 at a quarter of the width on real CIFAR-10 images, one thread, process CPU seconds, float32, the same
checkpoints and images for all. Each row runs in a process of its own, once to warm up (there its peak memory is taken)
and then ``--repetitions`` times, the floor measured before and after each; figures are medians of the ratios. The floor
is one epoch of plain forward and backward passes over the training images, the best of several at batches of 50 and
100. Ours is timed with reading checkpoints and preparing images; peers are handed loaded weights and prepared tensors,
are told what would fail, run at the fastest of several batch sizes (tried first, on ``--peer-train`` images), and those
marked "scaled" run on ``--peer-train`` images, the part of their time that is proportional to the number of images
(they compute each query again for every batch) multiplied. The result goes to ``benchmarks/results/attribution.json``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from comove.attribution import TRAK, Arnoldi, TracIn
from comove.attribution.arnoldi import hessian_resident
from comove.attribution.gradients import PerExampleGradients
from comove.attribution.tracin import similarity, spread
from comove.data import ExampleSet, Normalization, Splits
from comove.datasets import load_dataset
from comove.sources import Source
from comove.store import versions
from comove.training import Recipe, Resident, Run, train
from comove.training.run import read_weights

RECIPE = Recipe(epochs=9, batch_size=64, lr=0.05, momentum=0.9)
"""A constant rate, so that all three checkpoints weigh something in TracIn."""
CHECKPOINTS = 3
RIDGE = 0.3
HESSIAN, RANK, FEWER = 128, 50, 20
SWEEP_ITERATIONS = 5
SEED = 0
CPU = torch.device("cpu")


# --- what all rows share -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One trained run, its images, and how this process measures."""

    folder: Path
    peer_train: int
    iterations: int
    batch: Any = None

    @cached_property
    def run(self) -> Run:
        """The run in the folder, trained if it is not there yet, with its images."""
        held, splits = np.load(self.folder / "data.npz"), []
        normalization = Normalization(tuple(held["mean"].tolist()), tuple(held["std"].tolist()))
        for part in ("train", "query"):
            images, labels, ids = (held[f"{part}_{what}"] for what in ("images", "labels", "ids"))
            classes = [str(label) for label in range(10)]
            made = ExampleSet.from_arrays(images, labels, ids=ids, classes=classes, normalization=normalization)
            splits.append(made)
        recipe = Recipe.from_json(json.loads((self.folder / "recipe.json").read_text()))
        options = {"width": 0.25}
        # A finished run is opened, not trained again.
        data = Splits(splits[0], None, splits[1])
        return train(data, "resnet9", recipe, SEED, self.folder / "run", model_options=options, device="cpu")

    @cached_property
    def train_set(self) -> ExampleSet:
        """The training images, in the order of the scores' rows."""
        return self.run.data().train.subset(self.run.trace.train_ids)

    @cached_property
    def query_ids(self) -> np.ndarray:
        """All queries."""
        return self.run.data().query.ids

    @cached_property
    def train_xy(self) -> tuple[Tensor, Tensor]:
        """The training images as the network takes them, and their labels."""
        return self.train_set.batch(np.arange(len(self.train_set)))

    @cached_property
    def query_xy(self) -> tuple[Tensor, Tensor]:
        """The query images as the network takes them, and their labels."""
        queries = self.run.data().query
        return queries.batch(np.arange(len(queries)))

    @cached_property
    def hessian_xy(self) -> tuple[Tensor, Tensor]:
        """The very images that ours builds its Hessian from."""
        data = hessian_resident(Source(self.run.trace, self.run), HESSIAN, SEED, CPU)
        return data.inputs(slice(0, len(data))), data.labels

    @cached_property
    def weights(self) -> list[tuple[dict[str, Tensor], float]]:
        """(state dict, learning rate) of the checkpoints that TracIn uses, in memory."""
        return [(read_weights(kept.path), kept.lr) for kept in spread(self.run.checkpoints, CHECKPOINTS)]

    def prepare(self, *, hessian: bool = False) -> None:
        """Make the images ready before anything is timed."""
        for ready in ("train_xy", "query_xy", *(("hessian_xy",) if hessian else ())):
            getattr(self, ready)

    def dimension(self, wanted: int) -> int:
        """A projection cannot have more dimensions than there are training images."""
        return min(wanted, len(self.train_set))

    def loader(self, pair: tuple[Tensor, Tensor], batch: int, first: int | None = None) -> DataLoader[Any]:
        """What the peers read images from."""
        return DataLoader(TensorDataset(*(part[:first] for part in pair)), batch_size=batch)


Stage = tuple[bool, Callable[[], Any]]
"""Whether its time is proportional to the number of training images, and what it does; the last returns (n, Q)."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: rows that compute the same thing.
        name: of the row.
        library: the package that must be installed.
        stages: (setting, number of training images, what stages share) -> what is timed. Imports, weights and tensors
            come before, untimed.
        limit: the multiple of the floor that ours must not exceed.
        batches: batch sizes tried; ours chooses its own.
        slow: run on ``--peer-train`` images and scaled.
        truth: which of our scores the row's are compared with.
        note: said in the table.
        after: what is computed untimed, after everything, for comparisons.
        compares: more of these: (what it says, the scores, the scores that they are compared with).
    """

    group: str
    name: str
    library: str
    stages: Callable[[Setting, int, dict[str, Any]], list[Stage]]
    limit: float | None = None
    batches: tuple[Any, ...] = ()
    slow: bool = False
    truth: str = ""
    note: str = ""
    after: Callable[[Setting, dict[str, Any]], dict[str, np.ndarray]] | None = None
    compares: tuple[tuple[str, str, str], ...] = ()

    @property
    def key(self) -> str:
        """Its name among all rows."""
        return f"{self.group}: {self.name}"


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(method: Callable[[Setting], Any], setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """All of it: from a run on disk to scores."""
    return [(False, lambda: method(setting).fit(setting.run).attribute(setting.query_ids).values)]


def our_tracin(setting: Setting) -> TracIn:
    """Three checkpoints, all parameters, exact."""
    return TracIn(checkpoints=CHECKPOINTS)


def our_trak(wanted: int, setting: Setting) -> TRAK:
    """The last checkpoint, defaults but for the size."""
    return TRAK(proj_dim=setting.dimension(wanted), ridge=RIDGE, seed=SEED)


def our_arnoldi(setting: Setting, rank: int = RANK) -> Arnoldi:
    """The last checkpoint, undamped."""
    return Arnoldi(rank=rank, arnoldi_dim=setting.iterations, hessian_examples=HESSIAN, seed=SEED)


def without_batch_norm(setting: Setting, held: dict[str, Any]) -> dict[str, np.ndarray]:
    """TracIn over convolutions and linear layers only, which is what captum's sample-wise gradients cover."""
    total = torch.zeros(())
    for kept in spread(setting.run.checkpoints, CHECKPOINTS):
        model = setting.run.load_model(kept)
        layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in layers]
        sides = Resident(setting.train_set, CPU), Resident(setting.run.data().query, CPU)
        total = total + kept.lr * similarity(PerExampleGradients(model, parameters=names), *sides)
    return {"tracin without batch norm": total.numpy()}


def other_projection(wanted: int, setting: Setting, held: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same TRAK with another projection: how noisy one projection is."""
    method = replace(our_trak(wanted, setting), seed=SEED + 1)
    return {f"trak {wanted} seed 1": method.fit(setting.run).attribute(setting.query_ids).values}


def fewer_eigenpairs(setting: Setting, held: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arnoldi at rank 20, where scores hardly depend on the start vector; and how many eigenpairs were positive."""
    found = {}
    for rank in (RANK, FEWER):
        scores = our_arnoldi(setting, rank).fit(setting.run).attribute(setting.query_ids)
        found[f"arnoldi {rank} kept"] = np.asarray(scores.info["kept"])
        found[f"arnoldi {rank}"] = scores.values
    return found


# --- captum --------------------------------------------------------------------------------------------------------


def captum_tracin(sample_wise: bool, setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """TracInCP, by its per-batch gradients or one example at a time (the default)."""
    from captum.influence import TracInCP

    model = setting.run.load_model()
    checkpoints = {str(index): pair for index, pair in enumerate(setting.weights)}

    def load(model: nn.Module, name: str) -> float:
        weights, rate = checkpoints[name]
        model.load_state_dict(weights)
        return rate

    def scores() -> Tensor:
        method = TracInCP(
            model,
            setting.loader(setting.train_xy, setting.batch, n),
            list(checkpoints),
            checkpoints_load_func=load,
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"),
            sample_wise_grads_per_batch=sample_wise,
        )
        return method.influence(setting.loader(setting.query_xy, setting.batch)).T

    setting.prepare()
    return [(False, scores)]


def captum_arnoldi(setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """As many products of the same Hessian as ours; its per-batch gradients would leave out batch norm, so without."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    model = setting.run.load_model()
    batch, hessian_batch = setting.batch

    def subspace() -> None:
        held["method"] = ArnoldiInfluenceFunction(
            model,
            setting.loader(setting.train_xy, batch, n),
            "last",
            checkpoints_load_func=lambda model, name: 1.0,
            loss_fn=nn.CrossEntropyLoss(reduction="none"),
            hessian_dataset=setting.loader(setting.hessian_xy, hessian_batch),
            projection_dim=RANK,
            arnoldi_dim=setting.iterations,
            arnoldi_tol=1e-6,
            hessian_reg=0.0,
            hessian_inverse_tol=1e-6,
            seed=SEED,
        )

    def scores() -> Tensor:
        # Its Hessian is that of the summed loss, ours that of the mean.
        return held["method"].influence(setting.loader(setting.query_xy, batch)).T * len(setting.hessian_xy[1])

    setting.prepare(hessian=True)
    return [(False, subspace), (False, scores)]


def captum_fewer(setting: Setting, held: dict[str, Any]) -> dict[str, np.ndarray]:
    """Scores from as many of captum's eigenpairs as ours kept (it puts the largest last)."""
    method, found = held["method"], {}
    directions, truths = method.R, scores_in(setting.folder)
    method.train_dataloader = setting.loader(setting.train_xy, setting.batch[0], setting.peer_train)
    for rank in (RANK, FEWER):
        if f"arnoldi {rank} kept" in truths:
            method.R = directions[-int(truths[f"arnoldi {rank} kept"].ravel()[0]) :]
            values = method.influence(setting.loader(setting.query_xy, setting.batch[0])).T
            found[f"captum arnoldi {rank}"] = values.detach().numpy() * len(setting.hessian_xy[1])
    return found


# --- dattri --------------------------------------------------------------------------------------------------------


def dattri_task(setting: Setting, loss: Callable[[Tensor, Tensor], Tensor], weights: list[Any], batched: bool) -> Any:
    """A loss of one example (``batched``: of a batch, its mean) and checkpoints."""
    from dattri.task import AttributionTask

    model = setting.run.load_model()

    def function(parameters: Any, pair: Any) -> Tensor:
        x, y = pair if batched else (part[None] for part in pair)
        return loss(functional_call(model, parameters, x), y)

    return AttributionTask(loss_func=function, model=model, checkpoints=weights)


def dattri_tracin(setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """Without its default projection to 512 dimensions."""
    from dattri.algorithm.tracin import TracInAttributor

    task = dattri_task(setting, F.cross_entropy, [weights for weights, _ in setting.weights], False)
    rates = torch.tensor([rate for _, rate in setting.weights])

    def scores() -> Tensor:
        method = TracInAttributor(
            task=task, weight_list=rates, normalized_grad=False, projector_kwargs={"proj_type": "identity"}
        )
        loaders = (
            setting.loader(setting.train_xy, setting.batch, n),
            setting.loader(setting.query_xy, len(setting.query_ids)),
        )
        with torch.no_grad():
            return method.attribute(*loaders)

    setting.prepare()
    return [(True, scores)]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p / (1 - p) of one example."""
    own = torch.arange(logits.shape[1]) == labels[:, None]
    return (torch.where(own, logits, 0).sum(1) - torch.where(own, -torch.inf, logits).logsumexp(1))[0]


def dattri_trak(wanted: int, setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """With the ridge that ours has, as nearly as it can be told before."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.func.projection import random_project

    task = dattri_task(setting, margin, [setting.weights[-1][0]], False)
    model = setting.run.load_model()
    options = {"proj_dim": setting.dimension(wanted)}

    def probability(parameters: Any, pair: Any) -> Tensor:
        return functional_call(model, parameters, pair[0][None]).softmax(1)[0].gather(0, pair[1][None])[0]

    setting.prepare()
    # Untimed: its ridge is absolute, so the size of its features is estimated to give the ridge that ours has.
    few = tuple(part[:25] for part in setting.train_xy)
    gradients = task.get_grad_loss_func(in_dims=(None, 0))(task.get_param(0)[0], few)
    gradients = gradients / gradients.shape[1] ** 0.5
    features = random_project(gradients, 25, proj_max_batch_size=32, **options)(gradients, ensemble_id=0)
    ridge = RIDGE * n * features.square().mean().item()

    def featurise() -> None:
        held["method"] = TRAKAttributor(
            task=task, correct_probability_func=probability, projector_kwargs=options, regularization=ridge
        )
        with torch.no_grad():
            held["method"].cache(setting.loader(setting.train_xy, setting.batch, n))

    def scores() -> Tensor:
        with torch.no_grad():
            return held["method"].attribute(setting.loader(setting.query_xy, len(setting.query_ids)))

    return [(True, featurise), (False, scores)]


def dattri_arnoldi(setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """Under no_grad, as many products as ours; the subspace is a stage of its own, which is not scaled."""
    from dattri.algorithm.influence_function import IFAttributorArnoldi

    task = dattri_task(setting, F.cross_entropy, [setting.weights[-1][0]], True)
    setting.prepare(hessian=True)
    hessian = setting.loader(setting.hessian_xy, HESSIAN)
    size = sum(parameter.numel() for parameter in task.model.parameters())

    def subspace() -> None:
        # It makes one product fewer than max_iter, when it is first asked to project.
        held["method"] = IFAttributorArnoldi(task, proj_dim=RANK, max_iter=setting.iterations + 1, seed=SEED)
        with torch.no_grad():
            held["method"].cache(hessian)
            held["method"].arnoldi_projectors[0](torch.zeros(1, size))

    def scores() -> Tensor:
        loaders = (
            setting.loader(setting.train_xy, setting.batch, n),
            setting.loader(setting.query_xy, len(setting.query_ids)),
        )
        with torch.no_grad():
            return held["method"].attribute(*loaders)

    setting.prepare()
    return [(False, subspace), (True, scores)]


# --- traker --------------------------------------------------------------------------------------------------------


def plain_traker(wanted: int, one_block: bool, setting: Setting, n: int, held: dict[str, Any]) -> list[Stage]:
    """In float32, with the ridge that ours has; drawing its matrix 100 columns at a time (its default), or once."""
    from trak import TRAKer
    from trak.projectors import BasicProjector

    model, dimension = setting.run.load_model(), setting.dimension(wanted)
    size = sum(parameter.numel() for parameter in model.parameters())
    weights = setting.weights[-1][0]

    def projector() -> BasicProjector:
        block = dimension if one_block else 100
        return BasicProjector(size, dimension, SEED, "normal", "cpu", block_size=block, dtype=torch.float32)

    def featurise() -> None:
        method = held["method"] = TRAKer(
            model,
            "image_classification",
            n,
            save_dir=tempfile.mkdtemp(dir=setting.folder),
            device="cpu",
            projector=projector(),
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        method.load_checkpoint(weights, model_id=0)
        for batch in setting.loader(setting.train_xy, setting.batch, n):
            method.featurize(batch, num_samples=len(batch[1]))
        # Its ridge is absolute: the one that ours has, from the features just computed.
        grads = method.saver.current_store["grads"]
        method.score_computer.lambda_reg = RIDGE * float(np.square(grads).sum()) / dimension
        method.finalize_features(model_ids=[0])

    def scores() -> Tensor:
        method = held["method"]
        if method.projector.num_blocks == 1:  # it has thrown its matrix away and would fail
            method.projector = projector()
        queries = len(setting.query_ids)
        method.start_scoring_checkpoint("queries", weights, model_id=0, num_targets=queries)
        for batch in setting.loader(setting.query_xy, queries):
            method.score(batch, num_samples=queries)
        return torch.from_numpy(np.array(method.finalize_scores("queries", model_ids=[0])))

    setting.prepare()
    return [(False, featurise), (False, scores)]


# --- the table -----------------------------------------------------------------------------------------------------


def trak_rows(wanted: int, limit: float) -> list[Row]:
    """TRAK at one projection dimension."""
    group, truth, many = f"TRAK, one checkpoint, projection {wanted}", f"trak {wanted}", (50, 100, 250, 500)
    noise = "another projection: compare with our two seeds"
    once = "matrix drawn once and held; its projector made again by hand after finalize_features, where it fails"
    return [
        Row(group, "comove", "comove", partial(ours, partial(our_trak, wanted)), limit, truth=truth,
            after=partial(other_projection, wanted), compares=(("our two seeds", f"{truth} seed 1", truth),)),
        Row(group, "traker, its CPU projector", "traker", partial(plain_traker, wanted, False), None, many,
            truth=truth, note=noise),
        Row(group, "traker, its CPU projector in one block", "traker", partial(plain_traker, wanted, True), None, many,
            truth=truth, note=f"{noise}; {once}"),
        Row(group, "dattri", "dattri", partial(dattri_trak, wanted), None, many, truth=truth, note=noise),
    ]  # fmt: skip


def all_rows() -> list[Row]:
    """The table, in order; ours first in each group, so that peers can be compared with it."""
    tracin, arnoldi = f"TracIn, {CHECKPOINTS} checkpoints", f"Arnoldi, {HESSIAN} examples, rank {RANK}"
    many, recomputes = (50, 100, 250, 500), "computes the queries again for every training batch"
    return [
        Row(tracin, "comove", "comove", partial(ours, our_tracin), 4.2, truth="tracin", after=without_batch_norm),
        Row(tracin, "captum, sample-wise", "captum", partial(captum_tracin, True), None, many,
            truth="tracin without batch norm", note="leaves out batch norm's parameters; compared with ours without"),
        Row(tracin, "captum, default", "captum", partial(captum_tracin, False), None, (1, 10, 50), truth="tracin"),
        Row(tracin, "dattri", "dattri", dattri_tracin, None, many, slow=True, truth="tracin", note=recomputes),
        *trak_rows(512, 1.8),
        *trak_rows(2048, 2.1),
        Row(arnoldi, "comove", "comove", partial(ours, our_arnoldi), 10.0, truth="arnoldi", after=fewer_eigenpairs),
        Row(arnoldi, "captum", "captum", captum_arnoldi, None, ((1, 64), (1, 128), (10, 64), (10, 128)),
            truth="arnoldi", after=captum_fewer, note="another start vector; batch (gradients, Hessian)",
            compares=tuple((f"rank {rank}, as many eigenpairs", f"captum arnoldi {rank}", f"arnoldi {rank}")
                           for rank in (RANK, FEWER))),
        Row(arnoldi, "dattri", "dattri", dattri_arnoldi, None, many, slow=True, truth="arnoldi",
            note=f"another start vector; {recomputes}"),
    ]  # fmt: skip


# --- measuring, in the row's own process ---------------------------------------------------------------------------


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process (all threads), and what the function returns."""
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def floor(setting: Setting, *, passes: int = 2, channels_last: bool = False) -> float:
    """CPU seconds of the fastest of several plain forward+backward epochs over all training images."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, (x, y) = setting.run.load_model().to(memory_format=layout), setting.train_xy
    x = x.contiguous(memory_format=layout)

    def epoch(batch: int) -> None:
        for start in range(0, len(y), batch):
            model.zero_grad()
            F.cross_entropy(model(x[start : start + batch]), y[start : start + batch]).backward()

    return min(timed(partial(epoch, batch))[0] for batch in (50, 100) for _ in range(passes))


def resident(field: str) -> int:
    """Bytes, from the kernel (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field}")


def extra_memory(function: Callable[[], Any]) -> tuple[int, str]:
    """Peak resident bytes beyond those before, by the kernel's high-water mark."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        function()
        return resident("VmHWM") - before, "VmHWM, reset before"
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1 << 10
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit, "ru_maxrss, rise of"


def measure(row: Row, setting: Setting, repetitions: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run one row; with no repetitions, only time it once, to choose a batch size."""
    images = len(setting.train_set)
    n = min(setting.peer_train, images) if row.slow or not repetitions else images
    held: dict[str, Any] = {}
    stages = row.stages(setting, n, held)
    x, y = (part[:50] for part in setting.train_xy)
    for _ in range(2):  # libraries' kernels are chosen and compiled now, for all rows alike
        F.cross_entropy(setting.run.load_model()(x), y).backward()

    def run_all() -> tuple[float, float, Any]:
        """Seconds on these n images, seconds as if on all, scores."""
        held.clear()
        gc.collect()
        plain = scaled = 0.0
        found: Any = None
        for proportional, function in stages:
            seconds, found = timed(function)
            plain += seconds
            scaled += seconds * (images / n if proportional else 1)
        return plain, scaled, found

    if not repetitions:
        return {"seconds": run_all()[0]}, {}
    extra, how = extra_memory(run_all)
    before, taken, floors, ratios, scores = floor(setting), [], [], [], None
    for _ in range(repetitions):
        _, seconds, scores = run_all()
        after = floor(setting)
        floors.append((before + after) / 2)
        taken.append(seconds)
        ratios.append(seconds / floors[-1])
        before = after
    values = scores.detach().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if values.shape != (n, len(setting.query_ids)):
        raise ValueError(f"scores of shape {values.shape}, not {(n, len(setting.query_ids))}")
    result = {
        "times the floor": round(statistics.median(ratios), 3),
        "times the floor, each": [round(ratio, 3) for ratio in ratios],
        "CPU seconds": round(statistics.median(taken), 3),
        "floor CPU seconds": round(statistics.median(floors), 3),
        "extra MB": round(extra / 1e6),
        "extra MB by": how,
        "images run": n,
        "scaled": n < images,
        "not finite": float(np.mean(~np.isfinite(values))),
    }
    kept = row.after(setting, held) if row.after else {}
    return result, {row.key: values, **kept, **({row.truth: values} if row.library == "comove" else {})}


def scores_in(folder: Path) -> dict[str, np.ndarray]:
    """Scores that rows before have left."""
    path = folder / "scores.npz"
    return dict(np.load(path)) if path.exists() else {}


def agreement(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Mean over queries of Spearman's correlation, and the largest difference relative to the largest score."""
    truth = truth[: len(found)]
    if not np.isfinite(found).all():
        return {"not finite": float(np.mean(~np.isfinite(found)))}
    ranks = [np.apply_along_axis(rankdata, 0, side) for side in (found, truth)]
    ranks = [side - side.mean(0) for side in ranks]
    norms = np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
    spearman = float(np.mean((ranks[0] * ranks[1]).sum(0) / np.maximum(norms, 1e-30)))
    return {
        "spearman": round(spearman, 4),
        "largest difference": float(f"{np.abs(found - truth).max() / np.abs(truth).max():.2g}"),
    }


def row_process(arguments: argparse.Namespace) -> None:
    """What ``--row`` does: measure it, add its scores to the folder's, leave the result there."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row = next(row for row in all_rows() if row.key == arguments.row)
    batch = json.loads(arguments.batch)
    sweeping = arguments.repetitions == 0
    iterations = SWEEP_ITERATIONS if sweeping else arguments.iterations
    setting = Setting(arguments.folder, arguments.peer_train, iterations, batch)
    result, kept = measure(row, setting, arguments.repetitions)
    if not sweeping:
        known = {**scores_in(setting.folder), **kept}
        np.savez(setting.folder / "scores.npz", **known)  # type: ignore[arg-type]
        if row.library != "comove" and row.truth in known:
            result["agreement with ours"] = agreement(known[row.key], known[row.truth])
        for what, ours_, theirs in row.compares:
            if ours_ in known and theirs in known:
                result[f"agreement, {what}"] = agreement(known[ours_], known[theirs])
        if row.library == "traker":  # it divides its inverse by the mean of its entries: another scale
            result.get("agreement with ours", {}).pop("largest difference", None)
    (setting.folder / "result.json").write_text(json.dumps(result))


# --- the whole -----------------------------------------------------------------------------------------------------


def prepare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write images, recipe and a trained run; return what the result says of them."""
    torch.set_num_threads(1)
    splits = load_dataset(
        "cifar10",
        data_dir=arguments.data_dir,
        limit=arguments.train,
        queries=arguments.queries,
        validation=1,
        seed=SEED,
    )
    assert splits.train.normalization is not None
    held: dict[str, Any] = {name: getattr(splits.train.normalization, name) for name in ("mean", "std")}
    for part, examples in (("train", splits.train), ("query", splits.query)):
        images = examples.raw(np.arange(len(examples))).numpy()
        held |= {f"{part}_images": images, f"{part}_labels": examples.labels, f"{part}_ids": examples.ids}
    np.savez(folder / "data.npz", **held)
    (folder / "recipe.json").write_text(json.dumps(RECIPE.to_json()))
    setting = Setting(folder, arguments.peer_train, arguments.iterations)
    model = setting.run.load_model()
    return {
        "model": {
            "name": "resnet9, width 0.25",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training": {name: value for name, value in setting.run.result.items() if "loss" in name or "acc" in name},
        },
        "recipe": RECIPE.to_json(),
        "floor CPU seconds": {
            "plain (the floor)": round(floor(setting), 3),
            "channels_last, for comparison": round(floor(setting, channels_last=True), 3),
        },
    }


def in_process(row: Row, folder: Path, arguments: argparse.Namespace, batch: Any, repetitions: int) -> dict[str, Any]:
    """Run a row in a process of its own, on one thread of the CPU."""
    command = [sys.executable, __file__, "--row", row.key, "--folder", str(folder), "--batch", json.dumps(batch)]
    command += ["--repetitions", str(repetitions), "--peer-train", str(arguments.peer_train)]
    command += ["--iterations", str(arguments.iterations)]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE"), "1")
    ended = subprocess.run(
        command, env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["no message"]
        return {"failed": f"{said[-1]} (exit status {ended.returncode})".replace(str(folder), "...")}
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def run_row(row: Row, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find the fastest batch size, then measure."""
    told: dict[str, Any] = {"group": row.group, "row": row.name, "library": row.library}
    if importlib.util.find_spec({"traker": "trak"}.get(row.library, row.library)) is None:
        return told | {"failed": "not installed"}
    n = min(arguments.peer_train, arguments.train)
    # A scaled row's batches must be full ones, or it would be charged for too many.
    fitting = [b for b in row.batches if not isinstance(b, int) or (n % b == 0 if row.slow else b <= n)]
    fitting = fitting or ([n] if row.batches else [None])
    tried: dict[str, Any] = {}
    best = fitting[0]
    if len(fitting) > 1:
        for batch in fitting:
            found = in_process(row, folder, arguments, batch, 0)
            tried[str(batch)] = found.get("seconds", found.get("failed"))
        good = [batch for batch in fitting if isinstance(tried[str(batch)], float)]
        best = min(good, key=lambda batch: tried[str(batch)], default=best)
    told |= {"batch": best, "batches tried (CPU seconds, fewer images)": tried, "note": row.note}
    told |= in_process(row, folder, arguments, best, arguments.repetitions)
    sizes = arguments.train, arguments.queries, arguments.iterations
    if row.limit is not None and "times the floor" in told and sizes == (2000, 100, 100):
        told |= {"limit": row.limit, "within the limit": told["times the floor"] <= row.limit}
    return told


def line(told: Mapping[str, Any]) -> str:
    """One row of the table."""
    if "failed" in told:
        return f"  {told['row']:<40} {told['failed']}"
    ratios = told["times the floor, each"]
    text = f"  {told['row']:<40} {told['times the floor']:7.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    text += f" {told['CPU seconds']:8.2f} s {told['extra MB']:6d} MB"
    if "limit" in told:
        text += f"  limit {told['limit']}x {'met' if told['within the limit'] else 'MISSED'}"
    if told["batch"] is not None:
        text += f"  batch {told['batch']}"
    if told["scaled"]:
        text += f"  scaled from {told['images run']} images"
    if told["not finite"]:
        text += f"  {told['not finite']:.0%} NaN"
    for name, found in told.items():
        if name.startswith("agreement") and "spearman" in found:
            text += f"\n{'':44}{name}: Spearman {found['spearman']:.4f}"
            text += f", difference {found['largest difference']:.1e}" if "largest difference" in found else ""
    return text + (f"\n{'':44}{told['note']}" if told["note"] else "")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    named = [part for part in info.read_text().splitlines() if part.startswith("model name")] if info.exists() else []
    return named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()


def library_versions() -> dict[str, str]:
    """Ours and the peers'."""
    found = versions()
    for name in ("captum", "dattri"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def parsed() -> argparse.Namespace:
    """The command line; ``--row`` and what goes with it are this script calling itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where CIFAR-10 lies; by default $COMOVE_DATA")
    parser.add_argument("--train", type=int, default=2000, help="training images (default %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="query images (default %(default)s)")
    parser.add_argument("--peer-train", type=int, default=500, help="images for scaled rows (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each row (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="of Arnoldi's (default %(default)s)")
    parser.add_argument("--only", default="", help="only rows whose group or name holds this")
    for inner in ("--row", "--folder", "--batch"):
        parser.add_argument(inner, type=Path if inner == "--folder" else str, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = arguments.train, arguments.queries, arguments.peer_train, arguments.repetitions, arguments.iterations
    if not arguments.row and min(numbers) < 1:
        parser.error("numbers must be at least 1")
    return arguments


def main() -> None:
    """Run all rows, print and write."""
    arguments = parsed()
    if arguments.row:
        row_process(arguments)
        return
    path = Path(__file__).parent / "results" / "attribution.json"
    path.parent.mkdir(exist_ok=True)
    sizes = {name: getattr(arguments, name) for name in ("train", "queries", "peer_train", "repetitions", "iterations")}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sizes.items())
    only = f" --only '{arguments.only}'" if arguments.only else ""
    with tempfile.TemporaryDirectory(prefix="comove-benchmark-") as temporary:
        folder = Path(temporary)
        result = {
            "command": f"python benchmarks/attribution.py --data-dir DIR {flags}{only}",
            "sizes": {**sizes, "hessian examples": HESSIAN, "rank": RANK},
            "seeds": {"data, weights, projections, start vectors": SEED, "second projection": SEED + 1},
            "precision": "float32",
            "threads": 1,
            **prepare(folder, arguments),
            "cores": os.cpu_count(),
            "processor": processor(),
            "versions": library_versions(),
            "rows": [],
        }
        print("floor, CPU seconds:", ", ".join(f"{k} {v}" for k, v in result["floor CPU seconds"].items()), flush=True)
        group = ""
        for row in all_rows():
            if arguments.only.lower() not in row.key.lower():
                continue
            if row.group != group:
                group = row.group
                print(f"{group}    (times the floor, CPU seconds, extra memory)", flush=True)
            told = run_row(row, folder, arguments)
            result["rows"].append(told)
            print(line(told), flush=True)
            path.write_text(json.dumps(result, indent=1) + "\n")  # after each row: a long run may be cut short
    print(f"written to {path}")


if __name__ == "__main__":
    main()
