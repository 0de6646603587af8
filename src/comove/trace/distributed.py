"""One trace of several processes: each observes its own batches, the first process writes the rows.

::

    recorder = DistributedRecorder(partial(comove.Recorder, "trace", train_ids=train_ids, query_ids=query_ids))
    ...  recorder.observe(ids, logits=logits, labels=labels)      # every process, its own batches
    ...  recorder.end_epoch()                                     # every process: they wait for one another

It follows ``torch.distributed``, and so works under torchrun, Accelerate and Lightning; without a process group it is
the plain recorder. An example that several processes observe (samplers repeat some to make the shares equal) counts
once: the later batch wins, and of two at once the one of the higher rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from comove.checks import given_ids
from comove.errors import ComoveError, InputError
from comove.trace.recorder import Recorder
from comove.trace.statistics import statistics
from comove.trace.trace import Row, Side, Trace

__all__ = ["DistributedRecorder", "process_count", "process_rank"]

T = TypeVar("T")


def process_count() -> int:
    """Return how many processes train together (1 without a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return which of them this is."""
    return dist.get_rank() if process_count() > 1 else 0


class DistributedRecorder:
    """A :class:`comove.Recorder` shared by all processes of ``torch.distributed``'s default group.

    Every method but :meth:`observe` is collective: all processes call it, in the same order. What goes wrong in the
    first process is raised in all of them.

    Args:
        create: makes the recorder; called in the first process alone, which alone needs its folder.

    Raises:
        ComoveError: what ``create`` raised.
    """

    def __init__(self, create: Callable[[], Recorder]) -> None:
        self._recorder: Recorder | None = None
        self._pending: list[dict[str, Any]] = []
        self.rows: tuple[Row, ...] = ()
        self.fields: tuple[str, ...] = ()
        self._create = create
        self._in_first(self._begin)

    def _begin(self) -> None:
        self._recorder = self._create()

    def _in_first(self, action: Callable[[], None]) -> None:
        """Do something in the first process; all learn the rows there are now, or what went wrong."""
        outcome: list[Any] = [None, None, None]
        failed: BaseException | None = None
        if process_rank() == 0:
            try:
                action()
                assert self._recorder is not None
                outcome = [tuple(self._recorder.rows), self._recorder.fields, None]
            except Exception as error:
                failed = error
                known = isinstance(error, ComoveError)
                outcome[2] = error if known else InputError(f"The first process failed: {error!r}; see its messages.")
        if process_count() > 1:
            dist.broadcast_object_list(outcome, src=0)
        if failed is not None:
            raise failed
        if outcome[2] is not None:
            raise outcome[2]
        self.rows, self.fields = outcome[0], outcome[1]

    def observe(
        self,
        ids: object,
        *,
        logits: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        side: Side | None = None,
    ) -> None:
        """Take in one batch of this process; arguments as of :meth:`comove.Recorder.observe`.

        With several processes a batch is kept until the row is closed, and only then checked.
        """
        if process_count() == 1:
            assert self._recorder is not None
            self._recorder.observe(ids, logits=logits, labels=labels, loss=loss, features=features, side=side)
            return
        if logits is not None and labels is not None and features is None and self.fields == ("loss",):
            loss, logits = statistics(logits, labels)[0]["loss"], None  # one number an example travels, not C
        tensors = {"logits": logits, "labels": labels, "loss": loss, "features": features}
        kept = {name: None if value is None else value.detach().clone() for name, value in tensors.items()}
        self._pending.append({"ids": given_ids(ids).copy(), "side": side, **kept})

    def _gather(self) -> None:
        """Bring every process's batches to the first, in the order they were observed."""
        if process_count() == 1:
            return
        own = [{name: _on_cpu(value) for name, value in batch.items()} for batch in self._pending]
        shares: list[Any] | None = [None] * process_count() if process_rank() == 0 else None
        dist.gather_object(own, shares, dst=0)
        self._pending = []

        def observe() -> None:
            assert self._recorder is not None
            assert shares is not None
            for turn in range(max(map(len, shares))):
                for share in shares:
                    if turn < len(share):
                        self._recorder.observe(**share[turn])

        self._in_first(observe)

    def end_epoch(self, *, step: int | None = None) -> Row:
        """Close the row of this epoch; see :meth:`comove.Recorder.end_epoch`."""
        return self._end(lambda recorder: recorder.end_epoch(step=step))

    def end_row(self, *, epoch: float, step: int | None = None) -> Row:
        """Close a row at any moment; see :meth:`comove.Recorder.end_row`."""
        return self._end(lambda recorder: recorder.end_row(epoch=epoch, step=step))

    def _end(self, close: Callable[[Recorder], object]) -> Row:
        self._gather()
        self._in_first(lambda: self._with(close))
        return self.rows[-1]

    def _with(self, action: Callable[[Recorder], object]) -> None:
        assert self._recorder is not None
        action(self._recorder)

    def drop_open_row(self) -> None:
        """Forget what was observed since the last row: training stopped within a pass."""
        self._gather()

        def forget(recorder: Recorder) -> None:
            state = recorder.state_dict()
            open_row = [name for name in state if ".buffers." in name or name.endswith(".seen")]
            recorder.load_state_dict({name: value for name, value in state.items() if name not in open_row})

        self._in_first(lambda: self._with(forget))

    def finish(self) -> Trace | None:
        """Freeze the trace and return it in the first process; ``None`` in the others, which may not see its folder."""
        self._gather()
        traces: list[Trace] = []
        self._in_first(lambda: self._with(lambda recorder: traces.append(recorder.finish())))
        return traces[0] if traces else None

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: all of it in the first process, the number of rows in the others."""
        self._gather()
        return {"rows": len(self.rows)} if self._recorder is None else self._recorder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state of the first process; see :meth:`comove.Recorder.load_state_dict`."""
        self._pending = []
        self._in_first(lambda: self._with(lambda recorder: recorder.load_state_dict(state)))


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
