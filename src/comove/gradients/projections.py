r"""phi[b] = S g[b]: random projections of per-example gradients, layer by layer.

E <S g, S h> = <g, h>; the standard deviation is about norm(g) norm(h) / sqrt(K), for sparse and dense matrices S
alike; the sparse one is the default, as its cost does not grow with K. Each projector has the interface that
``traker`` asks for (``proj_dim``, ``proj_type``, ``project``, ``free_memory``), draws its matrix once from a generator
of its own, and takes the gradients of one layer after another, which are never put together into flat vectors.

Shape legend: B examples, K projected dimensions, P entries of one parameter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from comove.errors import InputError
from comove.gradients.inner_products import flat_rows

__all__ = ["FastJL", "Identity", "Kind", "Layers", "Projection", "Projector", "Rademacher", "Sparse"]

Kind: TypeAlias = Literal["sparse", "rademacher", "fast_jl", "none"]
KINDS: tuple[str, ...] = get_args(Kind)
Layers: TypeAlias = Iterable[tuple[str, Tensor]]
"""(parameter's name, gradients (B, parameter shape)), one parameter after another."""

DIMENSIONS = 512
"""The K that ``proj_dim=None`` means, where there are twice as many training examples."""
DENSE_BYTES = 4 << 30
"""A dense matrix larger than this is refused."""
FAST_JL_STEP = 512
"""``fast_jl`` projects to multiples of this."""


class Projector(Protocol):
    """What ``traker`` asks of a projector."""

    proj_dim: int
    proj_type: str

    def project(self, grads: Layers, model_id: int = 0) -> Tensor:
        """Return the projections (B, K)."""

    def free_memory(self) -> None:
        """Let go of the matrix, where it can be made again."""


class _Kept:
    """A projector whose matrix is kept until the projector goes; ``traker``'s own forget theirs and then fail."""

    def free_memory(self) -> None:
        """Do nothing."""


class Sparse(_Kept):
    """``nonzeros`` random signs in each column of S, in rows drawn evenly (a sparse Johnson-Lindenstrauss transform).

    S g is a sum of gradient entries for each of the K rows: an embedding bag, which runs two to three times faster
    than a sparse matrix product on the CPU, costs the same for every K, and is deterministic on CUDA.

    Args:
        sizes: entries of each parameter by name.
        proj_dim: K.
        seed: of the matrix.
        nonzeros: signs per column; more of them cost time and guard against a few dominating gradient entries.
        device: where the gradients are.

    References:
        Kane and Nelson, Sparser Johnson-Lindenstrauss transforms, JACM 2014.
    """

    proj_type = "sparse"

    def __init__(
        self,
        sizes: Mapping[str, int],
        proj_dim: int,
        seed: int,
        *,
        nonzeros: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        self.proj_dim = proj_dim
        generator = torch.Generator().manual_seed(seed)
        self._bags = {
            name: tuple(part.to(device) for part in _bags(size, nonzeros, proj_dim, generator))
            for name, size in sizes.items()
        }

    def project(self, grads: Layers, model_id: int = 0) -> Tensor:
        """Return the projections (B, K)."""
        total_KB: Tensor | None = None
        for name, gradient in grads:
            entries, starts, signs = self._bags[name]
            flat_PB = flat_rows(gradient).T.contiguous()
            part_KB = F.embedding_bag(entries, flat_PB, starts, mode="sum", per_sample_weights=signs.to(flat_PB.dtype))
            total_KB = part_KB if total_KB is None else total_KB.add_(part_KB)
        assert total_KB is not None
        return total_KB.T.contiguous()


def _bags(size: int, nonzeros: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The entries that each row sums, row after row; where each row starts; the entries' signs over sqrt(nonzeros)."""
    total = nonzeros * size
    order = torch.randperm(total, generator=generator)
    share, extra = divmod(total, rows)
    lengths = torch.full((rows,), share)
    lengths[torch.randperm(rows, generator=generator)[:extra]] += 1
    signs = torch.randint(2, (total,), generator=generator, dtype=torch.int8).float().mul_(2).sub_(1)
    starts = lengths.cumsum(0) - lengths
    return order.remainder_(size).int(), starts.int(), signs.div_(nonzeros**0.5)


class Rademacher(_Kept):
    """A dense S of random signs over sqrt(K), the matrix of the TRAK paper; held in memory, K numbers per parameter.

    Args:
        sizes: entries of each parameter by name.
        proj_dim: K.
        seed: of the matrix.
        device: where the gradients are.

    Raises:
        InputError: the matrix would be larger than 4 GiB.
    """

    proj_type = "rademacher"

    def __init__(
        self, sizes: Mapping[str, int], proj_dim: int, seed: int, *, device: torch.device | str = "cpu"
    ) -> None:
        needed = 4 * proj_dim * sum(sizes.values())
        if needed > DENSE_BYTES:
            raise InputError(
                f"A dense projection of {sum(sizes.values()):,} gradient entries to {proj_dim} dimensions takes "
                f"{needed / 2**30:.1f} GiB, more than {DENSE_BYTES / 2**30:.0f}. Use projector='sparse', which is as "
                "accurate, or a smaller proj_dim."
            )
        self.proj_dim = proj_dim
        generator = torch.Generator().manual_seed(seed)
        self._signs: dict[str, Tensor] = {}
        for name, size in sizes.items():
            bits_PK = torch.randint(2, (size, proj_dim), generator=generator, dtype=torch.int8)
            self._signs[name] = bits_PK.to(device).float().mul_(2).sub_(1).div_(proj_dim**0.5)

    def project(self, grads: Layers, model_id: int = 0) -> Tensor:
        """Return the projections (B, K)."""
        total_BK: Tensor | None = None
        for name, gradient in grads:
            flat_BP, signs_PK = flat_rows(gradient), self._signs[name]
            total_BK = flat_BP @ signs_PK if total_BK is None else total_BK.addmm_(flat_BP, signs_PK)
        assert total_BK is not None
        return total_BK


class Identity(_Kept):
    """No projection: the gradients themselves, for models with fewer parameters than training examples."""

    proj_type = "none"

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.proj_dim = sum(sizes.values())

    def project(self, grads: Layers, model_id: int = 0) -> Tensor:
        """Return the flat gradients (B, K)."""
        return torch.cat([flat_rows(gradient) for _, gradient in grads], 1)


class FastJL(_Kept):
    """``traker``'s CUDA projector: dense random signs that are made inside the kernel and never stored.

    Args:
        sizes: entries of each parameter by name.
        proj_dim: K, a multiple of 512.
        seed: of the matrix.
        device: a CUDA device.

    Raises:
        InputError: no CUDA device, ``fast_jl`` is not installed, or another K.
    """

    proj_type = "fast_jl"

    def __init__(self, sizes: Mapping[str, int], proj_dim: int, seed: int, *, device: torch.device | str) -> None:
        problem = ""
        if torch.device(device).type != "cuda":
            problem = f"needs a CUDA device, and this computes on {device}"
        elif importlib.util.find_spec("fast_jl") is None:
            problem = "needs the package fast_jl, which is not installed (pip install traker[fast])"
        elif proj_dim % FAST_JL_STEP:
            problem = f"projects to multiples of {FAST_JL_STEP}, got proj_dim={proj_dim}"
        if problem:
            raise InputError(f"projector='fast_jl' {problem}. projector='sparse' works everywhere and is as accurate.")
        from trak.projectors import CudaProjector, ProjectionType

        total = sum(sizes.values())
        self.proj_dim, self._scale = proj_dim, proj_dim**-0.5
        self._inner: Any = CudaProjector(total, proj_dim, seed % 2**31, ProjectionType.rademacher, str(device), 32)

    def project(self, grads: Layers, model_id: int = 0) -> Tensor:
        """Return the projections (B, K)."""
        flat = torch.cat([flat_rows(gradient) for _, gradient in grads], 1)
        projected: Tensor = self._inner.project(flat.float().contiguous(), model_id=0)
        return projected.mul_(self._scale)


@dataclass(frozen=True)
class Projection:
    """Which projection: its kind, K (``None``: chosen by :meth:`dimension`), signs per column, seed."""

    kind: Kind = "sparse"
    proj_dim: int | None = None
    nonzeros: int = 4
    seed: int = 0

    def dimension(self, examples: int, parameters: int) -> int:
        """Return K for so many training examples and gradient entries.

        Raises:
            InputError: K would exceed the number of training examples.
        """
        what = "proj_dim"
        if self.kind == "none":
            found, what = parameters, "with projector='none' the number of parameters"
        elif self.proj_dim is None and self.kind == "fast_jl":
            found = FAST_JL_STEP
        else:
            found = self.proj_dim or min(DIMENSIONS, max(1, examples // 2))
        if found > examples:
            raise InputError(
                f"{what}, {found}, must not exceed the {examples} training examples: more dimensions than examples "
                "make scores of noise. Use proj_dim of a half or less, or None."
            )
        return found

    def to_json(self, dimension: int) -> dict[str, Any]:
        """Return what the projected gradients depend on."""
        nonzeros = self.nonzeros if self.kind == "sparse" else 0
        return {"kind": self.kind, "proj_dim": dimension, "nonzeros": nonzeros, "seed": self.seed}

    def build(self, sizes: Mapping[str, int], dimension: int, seed: int, device: torch.device) -> Projector:
        """Draw the matrix for parameters of these sizes.

        Raises:
            InputError: as the classes.
        """
        makers: dict[Kind, Callable[[], Projector]] = {
            "sparse": lambda: Sparse(sizes, dimension, seed, nonzeros=self.nonzeros, device=device),
            "rademacher": lambda: Rademacher(sizes, dimension, seed, device=device),
            "fast_jl": lambda: FastJL(sizes, dimension, seed, device=device),
            "none": lambda: Identity(sizes),
        }
        return makers[self.kind]()
