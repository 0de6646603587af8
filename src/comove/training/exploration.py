r"""w <- w - eps/2 (n_beta grad L_batch(w) + gamma (w - v)) + Normal(0, eps): weights w around the trained v.

Localised stochastic gradient Langevin dynamics (Welling and Teh, ICML 2011; Lau et al., 2023). Several chains start at
the trained weights v and are moved by the gradient of the loss on small batches, a pull back to v and noise; what is
kept are the losses at the draws, as a :class:`comove.Trace` with one row a draw. In the limit of small steps the draws
follow exp(-n_beta L(w) - gamma/2 norm(w - v)^2), and their covariance is (n_beta H + gamma I)^-1 where L is quadratic.

Shape legend: G chains, B examples of a batch, N train, Q queries.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from comove.checks import check_number, check_seed, whole_number
from comove.data import ExampleSet, positions_of
from comove.data.batches import Batch, map_tensors, tensors_of
from comove.errors import CorruptFileError, FingerprintError, InputError, NonFiniteError
from comove.jobs.progress import progress_bar
from comove.models import without_fast_path
from comove.store import MANIFEST, digest, new_folder, read_arrays, read_header, write_arrays, write_manifest
from comove.store.lock import driver_lock
from comove.tasks import Task, TaskForward
from comove.trace.trace import FORMAT_VERSION, Row, Trace, read_trace_manifest, row_file, write_examples, write_row
from comove.training.loop import Resident, one_thread, resolve_device
from comove.training.randomness import generator_for
from comove.training.run import Checkpoint, Run

__all__ = ["Exploration", "explore"]

CHAINS = "chains.safetensors"
EVALUATED = 1024
"""Examples of one evaluation batch at most."""
EVALUATED_ENTRIES = 1 << 22
"""Entries of the inputs (times chains) of one evaluation batch at most: activations take many times as much."""
SMALL_WORK = 10_000_000
"""Chains times batch size times parameters below which a step is faster on one thread."""
STATE_BYTES = 1 << 24
"""The chains' weights are written after every draw when they take no more than this, else after every eighth."""

Weights: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Exploration:
    """How the weights around those of a trained model are explored.

    Args:
        chains: G, independent of each other; all start at the trained weights.
        steps: of each chain.
        every: steps from one draw to the next; each draw evaluates all examples.
        batch_size: examples a chain's step takes the gradient on, drawn with replacement.
        inverse_temperature: n_beta, what the mean loss is multiplied with; greater stays at lower losses.
        localization: gamma, the pull back to the trained weights. gamma / n_beta plays the part of the damping in
            Gauss-Newton influence.
        step_size: eps; a chain diverges where eps n_beta times the largest curvature of the loss exceeds about 4.
        seed: of batches and noise.

    Raises:
        InputError: a value out of range.
    """

    chains: int = 16
    steps: int = 1500
    every: int = 20
    batch_size: int = 32
    inverse_temperature: float = 100.0
    localization: float = 10.0
    step_size: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, "Exploration")
        for option in ("chains", "steps", "every", "batch_size"):
            value = whole_number(getattr(self, option), f"Exploration: {option}", 1, error=InputError)
            object.__setattr__(self, option, value)
        for option in ("inverse_temperature", "localization", "step_size"):
            check_number(getattr(self, option), f"Exploration: {option}")
        if self.draws < 3:
            raise InputError(
                f"Exploration: {self.chains} chains of {self.steps} steps with a draw every {self.every} make "
                f"{self.draws} draws, and a covariance needs at least 3: take more steps, or draw more often."
            )

    @property
    def draws(self) -> int:
        """The number of rows that are recorded."""
        return self.chains * (self.steps // self.every)


def explore(
    run: Run,
    out: str | os.PathLike[str] | None = None,
    how: Exploration | None = None,
    *,
    queries: ExampleSet | None = None,
    checkpoint: Checkpoint | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Trace:
    """Record the losses of all examples at weights drawn around those of a trained model.

    A process killed at any moment goes on when the same call is made again, and ends with the same bits. The rows of
    the trace are draws, chain after chain at the same step; ``"loss"`` is recorded of training examples and queries,
    ``"measure"`` (what the task measures) of queries: ``trace.read("query", "measure")``.

    Args:
        run: a trained model, by :func:`comove.train` or :func:`comove.adopt`.
        out: a folder for the trace; ``None`` keeps it in a temporary folder for as long as the trace lives.
        how: chains, steps and step size.
        queries: whose measured outputs are recorded; by default the run's own held-out examples.
        checkpoint: whose weights; by default the last.
        device: where to compute.
        progress: show a bar with the time left.

    Returns:
        The trace, with ``manifest["explored"]``.

    Raises:
        InputError: a run whose data is not at hand.
        FingerprintError: ``out`` holds the exploration of something else.
        NonFiniteError: a chain diverged; it is named, with a smaller step to try.
        LockedError: another process is writing this folder.
    """
    how = how or Exploration()
    folder = new_folder(tempfile.mkdtemp(prefix="comove-explored-") if out is None else out)
    try:
        with driver_lock(folder):
            _Walk(run, queries, folder, how, checkpoint or run.checkpoints[-1], resolve_device(device)).go(progress)
        trace = Trace.load(folder)
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(trace, shutil.rmtree, folder, ignore_errors=True)
    return trace


class _Chains:
    """The weights (G, ...) of all chains, moved and evaluated together, or one after another where vmap cannot."""

    def __init__(self, model: nn.Module, task: Task, how: Exploration, device: torch.device) -> None:
        self.how, self.task, self.device = how, task, device
        self.call = TaskForward(model.eval(), task)
        trained = {name: p.detach() for name, p in self.call.named_parameters() if p.requires_grad}
        self.centre = {name: value.clone() for name, value in trained.items()}
        self.weights = {name: value.expand(how.chains, *value.shape).clone() for name, value in trained.items()}
        self.together = True
        self.size = sum(value.numel() for value in trained.values())

    def step(self, number: int, data: Resident) -> None:
        """Move all chains once; batches and noise depend on the seed and the step only."""
        how = self.how
        generator = generator_for(how.seed, "explore", number)
        positions_GB = torch.randint(len(data), (how.chains, how.batch_size), generator=generator)
        batch = data.batch(positions_GB.flatten().to(self.device))
        parts = map_tensors(lambda part: part.reshape(how.chains, how.batch_size, *part.shape[1:]), batch)
        gradients = self._each(grad(self._mean_loss), parts)
        for name, weight in self.weights.items():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            pull = (weight - self.centre[name]).mul_(how.localization)
            force = pull.add_(gradients[name], alpha=how.inverse_temperature)
            weight.add_(force, alpha=-how.step_size / 2).add_(noise, alpha=math.sqrt(how.step_size))

    def evaluate(self, data: Resident, values: Callable[[Any, Batch], Tensor]) -> Tensor:
        """Return (G, M) values of all examples at the chains' weights, on the CPU."""
        entries = sum(part.numel() for part in tensors_of(data.batch(slice(0, 1))))
        size = max(1, min(EVALUATED, EVALUATED_ENTRIES // (self.how.chains * max(1, entries))))
        parts = []
        for start in range(0, len(data), size):
            batch = data.batch(slice(start, min(start + size, len(data))))

            def of(weights: Weights, _: Any, batch: Batch = batch) -> Tensor:
                return values(functional_call(self.call, weights, (batch,)), batch)

            with torch.no_grad():
                parts.append(self._each(of, None).float().cpu())
        return torch.cat(parts, 1)

    def _mean_loss(self, weights: Weights, batch: Batch) -> Tensor:
        return self.task.loss(functional_call(self.call, weights, (batch,)), batch).mean()

    def _each(self, function: Callable[[Weights, Any], Any], batches: Batch | None) -> Any:
        """``function`` of each chain's weights and, where there are any, its own batch, stacked."""
        tensors = tuple(tensors_of(batches)) if batches is not None else ()

        def single(weights: Weights, own: tuple[Tensor, ...]) -> Any:
            rest = iter(own)
            return function(weights, None if batches is None else map_tensors(lambda _: next(rest), batches))

        with sdpa_kernel(SDPBackend.MATH), without_fast_path():
            if self.together:
                try:
                    return vmap(single)(self.weights, tensors)
                except (RuntimeError, ValueError, TypeError):  # what vmap cannot follow works one chain at a time
                    self.together = False
            found = [
                single({name: value[g] for name, value in self.weights.items()}, tuple(part[g] for part in tensors))
                for g in range(self.how.chains)
            ]
        if isinstance(found[0], Tensor):
            return torch.stack(found)
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}


class _Walk:
    """One exploration, on disk."""

    def __init__(
        self,
        run: Run,
        queries: ExampleSet | None,
        folder: Path,
        how: Exploration,
        checkpoint: Checkpoint,
        device: torch.device,
    ) -> None:
        self.run, self.folder, self.how, self.device = run, folder, how, device
        self.checkpoint = checkpoint
        trace = run.trace
        data = run.data()
        held_out = (data.validation, data.query) if queries is None else (queries,)
        self.sets = {
            "train": [data.train.subset(trace.train_ids)],
            "query": [part for part in held_out if part is not None],
        }
        self.arrays = dict(trace.examples)
        if queries is not None:
            self.arrays |= {"query_ids": queries.ids, "validation_ids": queries.ids}
            self.arrays.pop("query_labels", None)
            if queries.labelled:
                self.arrays["query_labels"] = queries.labels
        ids = np.concatenate([part.ids for part in self.sets["query"]])
        self.order = torch.from_numpy(positions_of(self.arrays["query_ids"], ids, "query ids"))

    def go(self, progress: bool) -> None:
        """Draw what is missing."""
        manifest = self._claimed()
        if manifest.get("rows") is not None:
            return
        model = self.run.load_for_gradients(self.checkpoint, self.device)
        chains = _Chains(model, self.run.task, self.how, self.device)
        residents = {side: [Resident(part, self.device) for part in parts] for side, parts in self.sets.items()}
        done = self._restored(chains, manifest)
        small = self.device.type == "cpu" and self.how.chains * self.how.batch_size * chains.size < SMALL_WORK
        with progress_bar("exploring", self.how.steps, shown=progress) as advance, one_thread(small):
            advance(done)
            for number in range(done, self.how.steps):
                chains.step(number, residents["train"][0])
                if (number + 1) % self.how.every == 0:
                    self._record(chains, residents, number + 1, manifest)
                advance(1)
        write_manifest(self.folder, "trace", FORMAT_VERSION, {**manifest, "rows": self.how.draws})
        (self.folder / CHAINS).unlink(missing_ok=True)

    def _claimed(self) -> dict[str, Any]:
        """The manifest of the folder, written if it is new.

        Raises:
            FingerprintError: it holds another exploration, or another trace.
        """
        explored = {
            "run": self.run.manifest["fingerprint"],
            "weights": digest(*self._state_arrays()),
            "epoch": self.checkpoint.epoch,
            "queries": digest(self.arrays["query_ids"]),
            **asdict(self.how),
        }
        own: dict[str, Any] = {
            "mode": "explored",
            "id": digest(explored),
            "data_fingerprint": self.run.manifest["dataset"]["fingerprint"],
            "classes": self.run.trace.manifest.get("classes"),
            "task": self.run.task.name,
            "explored": explored,
        }
        if not (self.folder / MANIFEST).exists():
            write_examples(self.folder, self.arrays, own)
            new_folder(self.folder / "rows")
            write_manifest(self.folder, "trace", FORMAT_VERSION, own)
        found = read_trace_manifest(self.folder)
        if found.get("id") != own["id"]:
            before = found.get("explored") or {}
            differ = [name for name in explored if before.get(name) != explored[name]]
            raise FingerprintError(
                f"{self.folder} holds another {'exploration' if before else 'trace'} ({found.get('id')}, asked for "
                f"{own['id']}); {', '.join(differ)} differ. Use another folder, or delete this one."
            )
        return found

    def _state_arrays(self) -> list[Any]:
        state = self.run.load_model(self.checkpoint).state_dict()
        return [value.detach().cpu().float().numpy() for value in state.values()]

    def _restored(self, chains: _Chains, manifest: Mapping[str, Any]) -> int:
        """Put the chains where the interrupted process left them; how many steps they have made."""
        file = self.folder / CHAINS
        if not file.exists():
            return 0
        try:
            header = read_header(file)[1]
            arrays = read_arrays(file)
            done = int(header["step"])
            rows = done // self.how.every * self.how.chains
            whole = all(row_file(self.folder, index).exists() for index in range(rows))
        except (CorruptFileError, KeyError, ValueError):
            return 0
        if header.get("trace") != manifest["id"] or not whole or set(arrays) != set(chains.weights):
            return 0
        chains.weights = {name: torch.from_numpy(arrays[name]).to(self.device) for name in chains.weights}
        return done

    def _record(
        self, chains: _Chains, residents: Mapping[str, Sequence[Resident]], step: int, manifest: Mapping[str, Any]
    ) -> None:
        task, (train,) = self.run.task, residents["train"]
        asked = {"query.loss": task.loss, "query.measure": task.measure}
        found = {"train.loss": chains.evaluate(train, task.loss)}
        for name, values in asked.items():
            found[name] = torch.cat([chains.evaluate(part, values) for part in residents["query"]], 1)[:, self.order]
        self._check(found, step)
        first = (step // self.how.every - 1) * self.how.chains
        epoch = step * self.how.batch_size / len(train)
        for chain in range(self.how.chains):
            row = Row(first + chain, step, epoch)
            write_row(self.folder, row, {name: values[chain].numpy() for name, values in found.items()}, manifest)
        size = 4 * self.how.chains * chains.size
        if size <= STATE_BYTES or (step // self.how.every) % 8 == 0:
            arrays = {name: value.cpu().numpy() for name, value in chains.weights.items()}
            write_arrays(self.folder / CHAINS, arrays, {"step": step, "trace": manifest["id"]})

    def _check(self, found: Mapping[str, Tensor], step: int) -> None:
        bad: Sequence[int] = [
            chain
            for chain in range(self.how.chains)
            if not all(bool(torch.isfinite(values[chain]).all()) for values in found.values())
        ]
        if bad:
            raise NonFiniteError(
                f"Chain {bad[0]} ({len(bad)} of {self.how.chains}) diverged: losses or measured outputs are NaN or "
                f"infinite after {step} steps. Use a smaller step_size (it was {self.how.step_size:g}; try "
                f"{self.how.step_size / 4:g}) or a greater localization."
            )
