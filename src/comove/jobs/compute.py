"""Where and how work is computed: one value for the arguments that every long computation takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comove.jobs.base import Executor
from comove.jobs.run import as_executor

if TYPE_CHECKING:
    import torch

__all__ = ["Compute"]


@dataclass(frozen=True)
class Compute:
    """Where models are trained, and whether a progress bar is shown; no result depends on it.

    >>> Compute("serial", device="cpu").on()
    Serial()

    Attributes:
        executor: an executor of :mod:`comove.jobs`, or ``"serial"``, ``"local"``, ``"ray"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``; of the workers.
        workers: processes of ``"local"``; by default one per core.
        progress: show bars.
    """

    executor: Executor | str = "local"
    device: str | torch.device = "auto"
    workers: int | None = None
    progress: bool = False

    def on(self) -> Executor:
        """Return the executor.

        Raises:
            InputError: an unknown name; ``workers`` given with an executor that has its own.
        """
        if isinstance(self.executor, str):
            return as_executor(self.executor, workers=self.workers)
        if self.workers is not None:
            from comove.errors import InputError

            raise InputError("workers goes with executor='local'; an executor has its own number of them.")
        return self.executor
