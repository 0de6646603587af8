"""Threads that each do whole pieces of work, with a matrix product that does not spread over threads itself.

A product spread over threads ends with all of them waiting for the last. Done for every tile of a few milliseconds on a
machine that has other work too, that waiting cost ten times the product; a tile a thread costs none of it, and the
checks and the filtering of one tile then go on beside the product of the next. And it rounds otherwise: a library cuts
a long sum in other places when it shares a product out. So every product here is made by one thread, however many there
are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from comove.correlation.inputs import Side

__all__ = ["Workers", "plain_products", "product_workers", "workers"]


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
def _pool(number: int) -> Iterator[Workers]:
    if number == 1:
        yield Workers(None, 1)
        return
    with ThreadPoolExecutor(number) as pool:
        yield Workers(pool, number)


def workers(side: Side) -> AbstractContextManager[Workers]:
    """As many threads as torch is set to use; an accelerator takes one piece after another."""
    return _pool(torch.get_num_threads() if side.device.type == "cpu" else 1)


@contextmanager
def product_workers() -> Iterator[Workers]:
    """As many threads as a matrix product would be spread over, for products that are not (:func:`plain_products`).

    For jobs that run with torch on one thread, as executors run them.
    """
    blas = _libraries().select(user_api="blas").lib_controllers
    number = max((library.num_threads for library in blas), default=1)
    with plain_products(), _pool(number) as found:
        yield found


def plain_products() -> AbstractContextManager[Any]:
    """Matrix products stay on the thread that asks for them: in the whole process, so for no longer than needed."""
    return _PLAIN


class _PlainProducts:
    """Limits the libraries when the first thread enters, and lets go when the last has left.

    Only the thread that set a limit can lift it; so that one waits for the others, whose products would change, and
    whoever comes while it waits begins anew.
    """

    def __init__(self) -> None:
        self._changed, self._own = threading.Condition(), threading.local()
        self._inside, self._closing = 0, False

    def __enter__(self) -> None:
        self._own.depth = getattr(self._own, "depth", 0) + 1
        if self._own.depth > 1:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)
            self._own.limit = None if self._inside else _libraries().limit(limits=1, user_api="blas")
            if self._own.limit is not None:
                self._own.limit.__enter__()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        self._own.depth -= 1
        if self._own.depth:
            return
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()
            if self._own.limit is None:
                return
            self._closing = True
            try:
                self._changed.wait_for(lambda: not self._inside)
            finally:
                self._closing = False
                self._own.limit.__exit__(None, None, None)
                self._changed.notify_all()


_PLAIN = _PlainProducts()


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
