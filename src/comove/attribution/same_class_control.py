"""tau(m, q) = 1 if y_m = y_q else 0: how far knowing the labels alone goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from comove.attribution.base import Attributor, Queries
from comove.data import Ids
from comove.errors import InputError
from comove.training.sources import Source

__all__ = ["SameClassControl"]


@dataclass(frozen=True)
class SameClassControl(Attributor):
    """1 where labels agree, else 0: a control that many a published method falls below at small cost."""

    name: ClassVar[str] = "same-class-control"
    summary: ClassVar[str] = "1 where labels agree: what labels alone give"
    cost: ClassVar[str] = "nothing"
    requires: ClassVar[frozenset[str]] = frozenset({"trace"})

    def _fit(self, sources: tuple[Source, ...]) -> Ids:
        return sources[0].labels(self.name)

    def _scores(self, state: Ids, queries: Queries) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        if queries.labels is None:
            raise InputError(f"{self.name} needs the queries' labels; pass query_labels= when recording.")
        return (state[:, None] == queries.labels[None, :]).astype(np.float32), {}
