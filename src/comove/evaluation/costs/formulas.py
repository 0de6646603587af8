"""What selecting a coreset and training on it costs, by formula: the paper's Appendix E, term by term.

Symbols are the paper's. f is the cost of one example's forward pass; a backward pass counts 2f, so training costs 3f
per example and epoch. Bytes are of float32. The terms are those that the paper's example adds up; those that it calls
negligible, and what of its printed figures does not follow, are in ``benchmarks/paper/appendix_e.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from comove.errors import InputError, did_you_mean

__all__ = ["COST_METHODS", "PAPER", "RESNET18_MACS", "RESNET50_MACS", "Cost", "Scenario", "cost", "storage"]

RESNET18_MACS = 1_814_073_344
"""Multiply-accumulates of one 224 x 224 image through torchvision's ResNet-18."""
RESNET50_MACS = 4_089_184_256
"""The same of ResNet-50."""


@dataclass(frozen=True)
class Scenario:
    """The sizes that costs depend on; the defaults are the paper's example, 10 % of ImageNet-1k.

    Args:
        N: training examples.
        Q: held-out (query) examples.
        k: size of the coreset.
        T: epochs of the large model.
        Tp: epochs of the proxy model.
        f: FLOPs of one example's forward pass through the proxy.
        fL: the same through the large model.
        p: parameters of the proxy.
        pL: parameters of the large model.
        d: features per example (the paper takes the input's 224 x 224 x 3 numbers).
        F: width of the penultimate layer (CRAIG).
        C: classes.
        T_early: epochs that forgetting, EL2N and GraNd watch the large model for.
        T_dual: epochs that DUAL watches the proxy for.
        R: runs that EL2N and GraNd average.
        J: length of the window of TDDS, Dyn-Unc and DUAL.
        gamma: epochs between Glister's selections, and between CRAIG's anchors.
        epsilon: of stochastic greedy.
        K: adversarial steps per example (BoundarySet-CCS).
        R_curvature: random directions (SloCurv).
        neighbours: of D2's graph.
        clean_pass: whether CLD's losses come from a pass of their own after each epoch (``Recording("sweep")``, and
            the authors' code) instead of the training pass, as the paper counts; row 0 is then stored too.

    Raises:
        InputError: a size that is not positive, a coreset larger than the data.
    """

    N: int = 1_268_355
    Q: int = 12_812
    k: int = 126_836
    T: int = 90
    Tp: int = 90
    f: float = 1_818_228_160
    fL: float = 8_178_000_000
    p: int = 11_689_128
    pL: int = 25_557_032
    d: int = 150_528
    F: int = 512
    C: int = 1000
    T_early: int = 10
    T_dual: int = 50
    R: int = 10
    J: int = 10
    gamma: int = 20
    epsilon: float = 0.01
    K: int = 50
    R_curvature: int = 10
    neighbours: int = 10
    clean_pass: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "clean_pass" and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InputError(f"Scenario: {entry.name} must be a number above 0, got {value!r}.")
        if self.k > self.N:
            raise InputError(f"Scenario: the coreset (k = {self.k}) cannot be larger than the data (N = {self.N}).")
        if self.T_early >= self.T:
            raise InputError(f"Scenario: T_early must be below T = {self.T}, got {self.T_early}.")

    def in_one_unit(self) -> Scenario:
        """The paper's example with the proxy counted as the large model is, at 2 FLOPs per multiply-accumulate.

        The paper's f is ResNet-18's multiply-accumulates, its fL twice ResNet-50's: one unit doubles every proxy term.
        """
        return replace(self, f=2 * RESNET18_MACS)


PAPER = Scenario()
"""The paper's example: ResNet-18 as proxy, ResNet-50, 90 epochs, 10 % of ImageNet-1k."""


@dataclass(frozen=True)
class Cost:
    """What a method costs, from nothing to the large model trained on its coreset.

    Attributes:
        method: its name.
        flops: by term; :attr:`total_flops` adds them up.
        bytes: stored for the selection, by term.
    """

    method: str
    flops: Mapping[str, float]
    bytes: Mapping[str, float]

    @property
    def total_flops(self) -> float:
        """FLOPs in all."""
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        """Bytes in all."""
        return sum(self.bytes.values())

    def __repr__(self) -> str:
        terms = " + ".join(f"{value / 1e15:,.3f} ({name})" for name, value in self.flops.items())
        return f"Cost({self.method}: {terms} = {self.total_flops / 1e15:,.3f} PFLOP; {self.total_bytes / 1e9:,.3f} GB)"


def _proxy(s: Scenario) -> dict[str, float]:
    return {"train the proxy": 3 * s.N * s.Tp * s.f}


def _encode(s: Scenario) -> dict[str, float]:
    return {**_proxy(s), "features": s.N * s.f}


def _coreset(s: Scenario) -> dict[str, float]:
    return {"train on the coreset": 3 * s.k * s.T * s.fL}


def _watch(s: Scenario, runs: int) -> dict[str, float]:
    """The large model watched early in training, and trained on the coreset from there."""
    late = 3 * s.k * (s.T - s.T_early) * s.fL
    return {"watch the large model": 3 * s.N * s.T_early * runs * s.fL, "train on the coreset": late}


def _grand(s: Scenario) -> dict[str, float]:
    watched = _watch(s, s.R)
    return {**watched, "gradients of each example": watched["watch the large model"]}


def _glister(s: Scenario) -> dict[str, float]:
    rounds = s.T / s.gamma
    return {"select again and again": rounds * (s.k * s.Q + s.N * math.log(1 / s.epsilon)) * s.fL, **_coreset(s)}


def _cld(s: Scenario) -> dict[str, float]:
    clean = {"clean passes over the data": s.N * s.Tp * s.f} if s.clean_pass else {}
    return {**_proxy(s), **clean, "losses of the queries": s.Q * s.Tp * s.f, **_coreset(s)}


def _features(s: Scenario) -> dict[str, float]:
    return {"features": s.N * s.d * 4}


def _number(s: Scenario) -> dict[str, float]:
    return {"one number per example": s.N * 4}


def _window(s: Scenario) -> dict[str, float]:
    return {"window": s.N * s.J * 4}


Terms = Callable[[Scenario], dict[str, float]]
_FORMULAS: dict[str, tuple[Terms, Terms]] = {
    "full": (lambda s: {"train on everything": 3 * s.N * s.T * s.fL}, lambda s: {"weights": s.pL * 4}),
    "random": (_coreset, lambda s: {}),
    "herding": (lambda s: _encode(s) | _coreset(s), _features),
    "forgetting": (lambda s: _watch(s, 1), _number),
    "aum": (lambda s: _proxy(s) | _coreset(s), _number),
    "cal": (
        lambda s: {"train the proxy on k": 3 * s.k * s.Tp * s.f, "features": s.N * s.f} | _coreset(s),
        _features,
    ),
    "el2n": (lambda s: _watch(s, s.R), _number),
    "grand": (_grand, _number),
    "moderate": (lambda s: _encode(s) | _coreset(s), _features),
    "d2": (lambda s: _encode(s) | _coreset(s), _features),
    "craig": (
        lambda s: _proxy(s) | _coreset(s),
        lambda s: {"features and errors of one anchor": s.N * (s.F + s.C) * 4},
    ),
    "glister": (_glister, lambda s: {"one number per query": s.Q * 4}),
    "graphcut": (lambda s: _encode(s) | _coreset(s), lambda s: {"kernel": s.N**2 * 4}),
    "boundaryset_ccs": (lambda s: _proxy(s) | {"adversarial steps": 3 * s.N * s.K * s.f} | _coreset(s), _number),
    "slocurv": (
        lambda s: _proxy(s) | {"curvature": 3 * s.N * (s.R_curvature + 1) * s.f} | _coreset(s),
        lambda s: _number(s) | {"directions": s.R_curvature * s.d * 4},
    ),
    "tdds": (lambda s: _proxy(s) | {"gradients of each example": 3 * s.N * s.Tp * s.f} | _coreset(s), _window),
    "dyn_unc": (lambda s: _proxy(s) | _coreset(s), _window),
    "dual": (lambda s: {"train the proxy early": 3 * s.N * s.T_dual * s.f} | _coreset(s), _window),
    "cld": (_cld, lambda s: {"losses": (s.N + s.Q) * (s.Tp + s.clean_pass) * 4}),
}
"""Method -> its FLOPs and the bytes that it stores, by term."""
COST_METHODS = tuple(_FORMULAS)
"""The methods of Appendix E, with ``"full"`` (all the data) and ``"random"``."""


def cost(method: str, scenario: Scenario = PAPER, /, **symbols: float) -> Cost:
    """Return what a coreset method costs: FLOPs and bytes by term (paper, Appendix E).

    Args:
        method: one of :data:`COST_METHODS`.
        scenario: the sizes; by default the paper's example.
        symbols: sizes to change, such as ``N=50_000, k=5_000``; see :class:`Scenario`.

    Raises:
        InputError: an unknown method or symbol, a size out of range.

    >>> round(cost("cld").total_flops / 1e15, 3)
    904.821
    >>> cost("cld", N=50_000, Q=500, k=5_000, Tp=30).bytes
    {'losses': 6060000}
    """
    if method not in _FORMULAS:
        raise InputError(f"No cost is known for {method!r}.{did_you_mean(method, _FORMULAS)}")
    known = [entry.name for entry in fields(Scenario)]
    for name in symbols:
        if name not in known:
            raise InputError(f"A scenario has no {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}.")
    chosen = replace(scenario, **symbols)  # type: ignore[arg-type]  # checked by Scenario
    flops, stored = _FORMULAS[method]
    return Cost(method, flops(chosen), stored(chosen))


def storage(method: str, scenario: Scenario = PAPER, /, **symbols: float) -> Mapping[str, float]:
    """Return the bytes a method stores for its selection, by term; arguments as for :func:`cost`."""
    return cost(method, scenario, **symbols).bytes
