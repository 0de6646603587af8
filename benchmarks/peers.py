"""Other libraries' attribution methods, as ``benchmarks/attribution.py`` runs them: told what would fail, and prepared.

Each function takes the setting, the number of training images and a batch size, and returns stages: whether the time
of each is proportional to the number of training images, and what it does; the last returns scores (images, queries).
Imports, weights, tensors and models come before, untimed.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from comove.tasks import log_odds

if TYPE_CHECKING:
    from attribution import Setting

Pair = tuple[Tensor, Tensor]
Stages = list[tuple[bool, Callable[[], Any]]]


def loader(pair: Pair, batch: int, first: int | None = None) -> DataLoader[Any]:
    """What the peers read images from."""
    return DataLoader(TensorDataset(*(part[:first] for part in pair)), batch_size=batch)


# --- captum --------------------------------------------------------------------------------------------------------


def captum_tracin(sample_wise: bool, setting: Setting, n: int, batch: int) -> Stages:
    """TracInCP, by its per-batch gradients or one example at a time (the default)."""
    from captum.influence import TracInCP

    model, train, query = setting.run.load_model(), setting.train_xy, setting.query_xy
    checkpoints = {str(index): pair for index, pair in enumerate(setting.weights)}

    def load(model: nn.Module, name: str) -> float:
        weights, rate = checkpoints[name]
        model.load_state_dict(weights)
        return rate

    def scores() -> Tensor:
        method = TracInCP(
            model,
            loader(train, batch, n),
            list(checkpoints),
            checkpoints_load_func=load,
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"),
            sample_wise_grads_per_batch=sample_wise,
        )
        return method.influence(loader(query, batch)).T

    return [(True, scores)]


def captum_arnoldi(rank: int, setting: Setting, n: int, batch: int) -> Stages:
    """As many products of the same Hessian as ours; its per-batch gradients would leave out batch norm, so without."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    model, hessian, train, query = (setting.run.load_model(), setting.hessian_xy, setting.train_xy, setting.query_xy)
    made: list[Any] = []

    def subspace() -> None:
        made[:] = [
            ArnoldiInfluenceFunction(
                model,
                loader(train, batch, n),
                "last",
                checkpoints_load_func=lambda model, name: 1.0,
                loss_fn=nn.CrossEntropyLoss(reduction="none"),
                hessian_dataset=loader(hessian, len(hessian[1])),
                projection_dim=rank,
                arnoldi_dim=setting.iterations,
                arnoldi_tol=1e-6,
                hessian_reg=0.0,
                hessian_inverse_tol=1e-6,
                seed=0,
            )
        ]

    def scores() -> Tensor:  # its Hessian is that of the summed loss, ours that of the mean
        return made[0].influence(loader(query, batch)).T * len(hessian[1])

    return [(False, subspace), (True, scores)]


# --- dattri --------------------------------------------------------------------------------------------------------


def dattri_task(setting: Setting, loss: Callable[[Tensor, Tensor], Tensor], weights: list[Any], batched: bool) -> Any:
    """A loss of one example (``batched``: of a batch, its mean) and checkpoints."""
    from dattri.task import AttributionTask

    model = setting.run.load_model()

    def function(parameters: Any, pair: Any) -> Tensor:
        x, y = pair if batched else (part[None] for part in pair)
        return loss(functional_call(model, parameters, x), y)

    return AttributionTask(loss_func=function, model=model, checkpoints=weights)


def dattri_tracin(setting: Setting, n: int, batch: int) -> Stages:
    """Without its default projection to 512 dimensions; each query is computed again for every batch."""
    from dattri.algorithm.tracin import TracInAttributor

    task = dattri_task(setting, F.cross_entropy, [weights for weights, _ in setting.weights], False)
    rates, train, query = (torch.tensor([rate for _, rate in setting.weights]), setting.train_xy, setting.query_xy)

    def scores() -> Tensor:
        method = TracInAttributor(
            task=task, weight_list=rates, normalized_grad=False, projector_kwargs={"proj_type": "identity"}
        )
        with torch.no_grad():
            return method.attribute(loader(train, batch, n), loader(query, len(query[1])))

    return [(True, scores)]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p / (1 - p) of one example: of a text (1, C, T) with p = exp(-mean loss)."""
    if logits.ndim == 3:
        return log_odds(F.cross_entropy(logits, labels))
    own = torch.arange(logits.shape[1]) == labels[:, None]
    return (torch.where(own, logits, 0).sum(1) - torch.where(own, -torch.inf, logits).logsumexp(1))[0]


def dattri_trak(dimension: int, ridge: float, setting: Setting, n: int, batch: int) -> Stages:
    """With the ridge that ours has: its own is absolute, so the size of its features is estimated before."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.func.projection import random_project

    task = dattri_task(setting, margin, [setting.weights[-1][0]], False)
    model, train, query, options = (
        setting.run.load_model(),
        setting.train_xy,
        setting.query_xy,
        {"proj_dim": dimension},
    )
    made: list[Any] = []

    def probability(parameters: Any, pair: Any) -> Tensor:
        return torch.exp(-F.cross_entropy(functional_call(model, parameters, pair[0][None]), pair[1][None]))

    few = tuple(part[:25] for part in train)
    gradients = task.get_grad_loss_func(in_dims=(None, 0))(task.get_param(0)[0], few)
    gradients = gradients / gradients.shape[1] ** 0.5
    features = random_project(gradients, 25, proj_max_batch_size=32, **options)(gradients, ensemble_id=0)
    absolute = ridge * n * features.square().mean().item()

    def featurise() -> None:
        method = TRAKAttributor(
            task=task, correct_probability_func=probability, projector_kwargs=options, regularization=absolute
        )
        made[:] = [method]
        with torch.no_grad():
            method.cache(loader(train, batch, n))

    def scores() -> Tensor:
        with torch.no_grad():
            return made[0].attribute(loader(query, len(query[1])))

    return [(True, featurise), (False, scores)]


def dattri_arnoldi(rank: int, setting: Setting, n: int, batch: int) -> Stages:
    """Under no_grad, as many products as ours; each query is computed again for every batch."""
    from dattri.algorithm.influence_function import IFAttributorArnoldi

    task = dattri_task(setting, F.cross_entropy, [setting.weights[-1][0]], True)
    hessian, train, query = setting.hessian_xy, setting.train_xy, setting.query_xy
    size, made = sum(parameter.numel() for parameter in task.model.parameters()), []

    def subspace() -> None:
        # It makes one product fewer than max_iter, when it is first asked to project.
        made[:] = [IFAttributorArnoldi(task, proj_dim=rank, max_iter=setting.iterations + 1, seed=0)]
        with torch.no_grad():
            made[0].cache(loader(hessian, len(hessian[1])))
            made[0].arnoldi_projectors[0](torch.zeros(1, size))

    def scores() -> Tensor:
        with torch.no_grad():
            return made[0].attribute(loader(train, batch, n), loader(query, len(query[1])))

    return [(False, subspace), (True, scores)]


# --- traker --------------------------------------------------------------------------------------------------------


def text_output() -> Any:
    """Its measured output for logits (B, C, T): log odds of exp(-mean loss over tokens)."""
    from trak.modelout_functions import AbstractModelOutput

    class TextOutput(AbstractModelOutput):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, tokens: Tensor, targets: Tensor) -> Tensor:
            return margin(functional_call(model, (weights, buffers), tokens[None]), targets[None])

        def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
            logits = functional_call(model, (weights, buffers), batch[0])
            losses = F.cross_entropy(logits, batch[1], reduction="none").mean(1)
            return -torch.expm1(-losses).detach()[:, None]

    return TextOutput()


def plain_traker(dimension: int, ridge: float, one_block: bool, setting: Setting, n: int, batch: int) -> Stages:
    """In float32, with the ridge that ours has; drawing its matrix 100 columns at a time (its default), or once."""
    from trak import TRAKer
    from trak.projectors import BasicProjector

    model, weights, train, query = (
        setting.run.load_model(),
        setting.weights[-1][0],
        setting.train_xy,
        setting.query_xy,
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    made: list[Any] = []

    def projector() -> BasicProjector:
        block = dimension if one_block else 100
        return BasicProjector(size, dimension, 0, "normal", "cpu", block_size=block, dtype=torch.float32)

    def featurise() -> None:
        method = TRAKer(
            model,
            text_output() if train[1].ndim == 2 else "image_classification",
            n,
            save_dir=tempfile.mkdtemp(dir=setting.folder),
            device="cpu",
            projector=projector(),
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        made[:] = [method]
        method.load_checkpoint(weights, model_id=0)
        for pair in loader(train, batch, n):
            method.featurize(pair, num_samples=len(pair[1]))
        # Its ridge is absolute: the one that ours has, from the features just computed.
        grads = method.saver.current_store["grads"]
        method.score_computer.lambda_reg = ridge * float(np.square(grads).sum()) / dimension
        method.finalize_features(model_ids=[0])

    def scores() -> Tensor:
        method, queries = made[0], len(query[1])
        if method.projector.num_blocks == 1:  # it has thrown its matrix away and would fail
            method.projector = projector()
        method.start_scoring_checkpoint("queries", weights, model_id=0, num_targets=queries)
        for pair in loader(query, queries):
            method.score(pair, num_samples=queries)
        return torch.from_numpy(np.array(method.finalize_scores("queries", model_ids=[0])))

    return [(True, featurise), (False, scores)]
