r"""phi[b] = S d log(p_b / (1 - p_b)) / d theta: projected margin gradients, computed by ``traker`` and kept on disk.

``traker.TRAKer`` is handed a gradient computer, a projector and a saver of our own: it drives them, and none of its
own parts that its users stumble over is reached (the projector that draws its matrix for every batch, half precision,
folders reopened with other settings, scores of models that were never finalised, arrays of N x Q).

Shape legend: B examples, K projected dimensions.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from comove.attribution.kept_blocks import KeptBlocks
from comove.attribution.replay import weights_digest
from comove.errors import NonFiniteError, some
from comove.gradients.per_example import Part, PerExampleGradients
from comove.gradients.projections import Layers, Projection, Projector
from comove.models import logits_of, put_channels_last
from comove.store import claim_cache, digest, new_folder, versions
from comove.training import Checkpoint, Resident, Run

__all__ = ["BATCH", "BLOCK", "Featuriser", "feature_blocks", "read_features"]

FORMAT = 2
BLOCK = 512
"""Training examples a file of features: what a killed process computes again at most."""
BATCH = 64
"""Examples whose gradients are held at once; more of them leave the caches."""
NAMES = ("phi", "one_minus_p")
LIBRARIES = ("comove", "torch", "traker")

Float32: TypeAlias = npt.NDArray[np.float32]


Batch: TypeAlias = tuple[Layers, Part, slice]


class _GradientComputer:
    """What ``traker`` calls for gradients: its "batch" is a chunk, whose gradients come as they are projected."""

    def __init__(self, gradients: PerExampleGradients) -> None:
        self.gradients = gradients
        self._outputs = torch.empty(0)
        if gradients.objective.classifies:
            gradients.model.register_forward_hook(self._keep)  # 1 - p without a second forward pass

    def _keep(self, module: nn.Module, args: object, outputs: object) -> None:
        self._outputs = logits_of(outputs).detach()

    def load_model_params(self, model: nn.Module) -> None:
        """Nothing to do: the model is held."""

    def compute_per_sample_grad(self, batch: Batch) -> Layers:
        return batch[0]

    def compute_loss_grad(self, batch: Batch) -> Tensor:
        _, part, chunk = batch
        examples, objective = part.batch(chunk), self.gradients.objective
        if objective.classifies and self.gradients.paths.way == "per-sample rules":  # else the hook saw single examples
            return objective.task.error_probability(self._outputs, examples)[:, None]
        return self.gradients.evaluate(examples, objective.task.error_probability)


class _Store:
    """What ``traker`` saves to: one block in memory, which we write ourselves, whole or not at all."""

    def __init__(self, *, proj_dim: int, **_: object) -> None:
        self.model_ids: dict[int, dict[str, int]] = {}
        self.current_model_id = -1
        self.current_store = {
            "grads": np.empty((BLOCK, proj_dim), np.float32),
            "out_to_loss": np.empty((BLOCK, 1), np.float32),
            "is_featurized": np.zeros(BLOCK, np.int32),
        }

    def register_model_id(self, model_id: int, _allow: bool) -> None:
        self.model_ids[model_id] = {"is_featurized": 0, "is_finalized": 0}
        self.current_model_id = model_id

    def serialize_current_model_id_metadata(self) -> None:
        """Nothing to do: a block is written when it is full."""


def _traker(computer: _GradientComputer, projector: Projector, device: torch.device) -> Any:
    """A ``traker.TRAKer`` for one network, in float32, that leaves Python's logging and the disk alone."""
    with warnings.catch_warnings():  # its docstrings hold invalid escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        from trak import TRAKer
    root, quiet = logging.getLogger(), logging.NullHandler()
    root.addHandler(quiet)  # its logging.basicConfig() does nothing where there is a handler
    try:
        made = TRAKer(
            computer.gradients.model,
            task="image_classification",  # never asked: our gradient computer knows the margin of any classifier
            train_set_size=BLOCK,
            save_dir=tempfile.gettempdir(),  # never written to
            device=str(device),
            gradient_computer=lambda **_: computer,
            projector=projector,
            saver=_Store,
            logging_level=logging.getLogger("TRAK").level,
            use_half_precision=False,
            grad_wrt=list(computer.gradients.parameters),
        )
    finally:
        root.removeHandler(quiet)
    made.load_checkpoint(computer.gradients.model.state_dict(), model_id=0)
    return made


@dataclass(frozen=True)
class Differentiation:
    """By which parameters features are differentiated, how many examples at once, and what the ways are checked on."""

    parameters: str | Sequence[str] | None = None
    batch: int = BATCH
    check_on: Resident | None = None


class Featuriser:
    """Projected margin gradients phi and 1 - p of any examples at one checkpoint.

    Args:
        run: with checkpoints.
        checkpoint: one of them.
        projection: how gradients are projected; every checkpoint of every run has a matrix of its own, so that
            averaging models averages the projections' errors too.
        examples: the number of training examples.
        device: where to compute.
        how: as of :class:`PerExampleGradients`.

    Attributes:
        gradients: the stream of margin gradients.
        dimension: K.

    Raises:
        InputError: K would exceed the number of training examples.
    """

    def __init__(
        self,
        run: Run,
        checkpoint: Checkpoint,
        projection: Projection,
        examples: int,
        device: torch.device,
        how: Differentiation = Differentiation(),
    ) -> None:
        self.run, self.checkpoint, self.projection = run, checkpoint, projection
        self.examples, self.device, self.how = examples, device, how
        model = run.load_for_gradients(checkpoint, device)
        put_channels_last(model)  # convolutions run fastest on this
        self.gradients = PerExampleGradients(
            model, "measure", task=run.task, parameters=how.parameters, batch=how.batch, check_on=how.check_on
        )
        self.dimension = projection.dimension(examples, self.gradients.size)

    @cached_property
    def projector(self) -> Projector:
        """The projection matrix, drawn when it is first needed."""
        sizes = {name: parameter.numel() for name, parameter in self.gradients.parameters.items()}
        text = digest(self.run.manifest["fingerprint"], str(self.checkpoint.epoch), str(self.projection.seed))
        return self.projection.build(sizes, self.dimension, int(text[:15], 16), self.device)

    @cached_property
    def _traker(self) -> Any:
        return _traker(_GradientComputer(self.gradients), self.projector, self.device)

    def block(self, data: Resident, start: int) -> tuple[Float32, Float32]:
        """Return phi (B, K) and 1 - p (B,) of up to ``BLOCK`` examples from ``start`` on.

        Raises:
            NonFiniteError: a feature is NaN or infinite.
        """
        part = Part(data, start, min(start + BLOCK, len(data)))
        store = self._traker.saver.current_store
        store["is_featurized"][:] = 0
        for chunk, layers in self.gradients.stream(part):
            self._traker.featurize((layers, part, chunk), inds=np.arange(chunk.start, chunk.stop))
        phi_BK, rest_B = store["grads"][: len(part)].copy(), store["out_to_loss"][: len(part), 0].copy()
        bad = ~np.isfinite(phi_BK).all(1) | ~np.isfinite(rest_B)
        if bad.any():
            ids = data.examples.ids[start : part.stop][bad]
            raise NonFiniteError(
                f"The margin gradients of {ids.size} examples are NaN or infinite at epoch {self.checkpoint.epoch} of "
                f"{self.run.path}, of ids {some(ids)}. Look at these inputs, or use an earlier checkpoint or a "
                "smaller learning rate."
            )
        return phi_BK, rest_B

    def content(self) -> dict[str, Any]:
        """What the features of the training examples depend on; its digest names their folder."""
        return {
            "run": self.run.manifest["fingerprint"],
            "epoch": self.checkpoint.epoch,
            "weights": weights_digest(self.run, self.checkpoint),
            **({} if self.how.parameters is None else {"parameters": list(self.gradients.parameters)}),
            "projection": self.projection.to_json(self.dimension),
            "examples": {"number": self.examples, "block": BLOCK},
            "libraries": {name: version for name, version in versions().items() if name in LIBRARIES},
        }


def feature_blocks(
    featuriser: Featuriser, data: Resident, cache: Path
) -> tuple[Path, Iterator[tuple[Float32, Float32]]]:
    """Return the folder of the training features, and (phi (B, K), 1 - p (B,)) block by block, as they are made.

    Blocks that are on disk are read; those that are not are computed and written whole, so a killed process loses no
    more than the one it was at. The folder's name is the digest of all that features depend on.

    Raises:
        FingerprintError: the folder holds something else.
        NonFiniteError: as :meth:`Featuriser.block`.
    """
    content = featuriser.content()
    folder = new_folder(cache / digest(content))
    claim_cache(folder, "trak-features", FORMAT, content)

    def computed(part: slice) -> dict[str, Float32]:
        return dict(zip(NAMES, featuriser.block(data, part.start), strict=True))

    made = _blocks(folder, len(data)).made(computed)
    return folder, ((found["phi"], found["one_minus_p"]) for _, found in made)


def read_features(folder: Path, examples: int) -> Iterator[tuple[slice, Float32]]:
    """Yield (positions, phi (B, K)) of finished features.

    Raises:
        CorruptFileError: a file is gone or unreadable.
    """
    blocks = _blocks(folder, examples)
    for part in blocks.parts:
        yield part, blocks.read(part, ["phi"])["phi"]


def _blocks(folder: Path, examples: int) -> KeptBlocks:
    return KeptBlocks(folder, folder.name, examples, BLOCK, NAMES)
