r"""tau(m, q) = grad l(z_m)' R' (R H R')^-1 R grad l(z_q), R a random orthonormal basis.   (Wojnowicz et al., 2016)

What Arnoldi iteration must beat: the same influence in a subspace that knows nothing of the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from comove.attribution.arnoldi import Product, SubspaceInfluence

__all__ = ["RandSelect", "random_basis"]


def random_basis(product: Product, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormalise random vectors, and return what an operator looks like from their span.

    Args:
        product: v (P,) -> H v (P,).
        vectors: (D, P), independent, D <= P.

    Returns:
        Basis (D, P), and H in this basis (D, D), symmetric, float64.
    """
    basis_DP = torch.linalg.qr(vectors.T).Q.T.contiguous()
    rows = [(basis_DP @ product(vector)).to("cpu", torch.float64) for vector in basis_DP]
    seen_DD = torch.stack(rows)
    return basis_DP, (seen_DD + seen_DD.T) / 2


@dataclass(frozen=True)
class RandSelect(SubspaceInfluence):
    """Influence in a random subspace: the baseline of Arnoldi, at the same cost (Wojnowicz et al., 2016).

    The Hessian restricted to the subspace is eigendecomposed, and its largest eigenpairs are used as Arnoldi uses its
    own. Influence sketching as published uses a Gaussian matrix R and the generalised linear model's Hessian; an
    orthonormal R spans the same space, and here the Hessian is the network's.

    Args:
        rank: eigenpairs of the restricted Hessian kept, by magnitude; those that are not positive are dropped.
        damping: added to the eigenvalues before they are inverted.
        hessian_examples: the size of the fixed batch, drawn from the training examples.
        seed: of the batch and of the subspace.
        subspace_dim: dimensions of the random subspace, one Hessian-vector product each.

    Reference:
        Wojnowicz et al., "Influence Sketching: Finding Influential Samples in Large-Scale Regressions", 2016.
    """

    name: ClassVar[str] = "rand-select"
    summary: ClassVar[str] = "influence with the inverse Hessian restricted to a random subspace: Arnoldi's baseline"
    cost: ClassVar[str] = "about 12 epochs of training per run"

    subspace_dim: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("subspace_dim")

    def _basis(self, hessian: Product, start: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        vectors = start(self.subspace_dim)
        return random_basis(hessian, vectors[: vectors.shape[1]])
