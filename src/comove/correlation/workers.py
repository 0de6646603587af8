"""Threads that each do whole pieces of work, with a matrix product that does not spread over threads itself.

A product spread over threads ends with all of them waiting for the last. Done for every tile of a few milliseconds on a
machine that has other work too, that waiting cost ten times the product; a tile a thread costs none of it, and the
checks and the filtering of one tile then go on beside the product of the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from comove.correlation.inputs import Side

__all__ = ["Workers", "plain_products", "workers"]


class Workers:
    """A number of threads, or none: then the caller does the work."""

    def __init__(self, pool: ThreadPoolExecutor | None, number: int) -> None:
        self._pool, self.number = pool, number

    def each(self, work: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """What the work returns for each item, in their order; the first error in that order is raised."""
        return list(map(work, *items) if self._pool is None else self._pool.map(work, *items))

    def waves(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The items, as many at a time as there are threads."""
        for first in range(0, len(items), self.number):
            yield items[first : first + self.number]


@contextmanager
def workers(side: Side) -> Iterator[Workers]:
    """As many threads as torch is set to use; an accelerator takes one piece after another."""
    number = torch.get_num_threads() if side.device.type == "cpu" else 1
    if number == 1:
        yield Workers(None, 1)
        return
    with ThreadPoolExecutor(number) as pool:
        yield Workers(pool, number)


def plain_products() -> AbstractContextManager[Any]:
    """Matrix products stay on the thread that asks for them: in the whole process, so for no longer than needed."""
    limited: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
