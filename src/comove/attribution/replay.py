"""The examples and checkpoints that gradient methods replay: one place for the look-ups that all of them need."""

from __future__ import annotations

import numpy as np
import torch

from comove.attribution.base import Queries
from comove.data import ExampleSet
from comove.errors import InputError
from comove.store import digest
from comove.training import Checkpoint, Resident, Run
from comove.training.sources import Source

__all__ = ["check_queries", "query_resident", "run_of", "training_resident", "weights_digest"]


def run_of(source: Source) -> Run:
    """Return the run of a source that was checked to have one (methods that require checkpoints)."""
    assert source.run is not None
    return source.run


def weights_digest(run: Run, checkpoint: Checkpoint) -> str:
    """Return a digest of a checkpoint's weights; of a run trained elsewhere its manifest has it."""
    if run.adopted is None:
        return digest(np.frombuffer(checkpoint.path.read_bytes(), np.uint8))
    place = run.checkpoints.index(checkpoint)
    return str(run.manifest["adopted"]["weights"][place]["digest"])


def training_resident(source: Source, device: torch.device) -> Resident:
    """Return the run's training examples on ``device``, in the order of the trace's ids.

    Raises:
        InputError: the run's data is not at hand (pass it to ``Run.load``).
    """
    return Resident(run_of(source).data().train.subset(source.trace.train_ids), device)


def query_resident(source: Source, queries: Queries, device: torch.device) -> Resident:
    """Return the queries' examples on ``device``: new ones as given, recorded ones from the run's data.

    Raises:
        InputError: inputs of another shape than the model's, labels outside its classes, data not at hand.
    """
    run = run_of(source)
    examples: ExampleSet = queries.examples if queries.examples is not None else run.examples(queries.ids)
    check_queries(run, examples)
    return Resident(examples, device)


def check_queries(run: Run, examples: ExampleSet) -> None:
    """Refuse examples that the run's model cannot take.

    Raises:
        InputError: inputs of another shape than the model's, labels outside its classes.
    """
    if run.adopted is not None:
        return  # the task reads them; what it cannot read it refuses
    spec = run.model_spec
    if examples.input_shape != spec.input_shape or int(examples.labels.max()) >= spec.num_classes:
        raise InputError(
            f"Queries must have inputs {spec.input_shape} and labels below {spec.num_classes}, got "
            f"{examples.input_shape} and labels up to {int(examples.labels.max())}."
        )
