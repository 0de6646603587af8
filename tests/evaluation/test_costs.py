"""What coreset methods cost by formula: the paper's example, and what costs scale with."""

from __future__ import annotations

import math

import pytest

from comove.coreset import selectors
from comove.errors import InputError
from comove.evaluation import cost, storage
from comove.evaluation.costs.formulas import COST_METHODS, PAPER, Scenario

RECOMPUTED = {  # specification, section 20, column "recomputed": PFLOP, and bytes
    "full": (2800.604, 102_228_128),
    "herding": (905.031, 763_691_765_760),
    "forgetting": (560.122, 5_073_420),
    "aum": (902.724, 5_073_420),
    "cal": (344.634, 763_691_765_760),
    "el2n": (3360.726, 5_073_420),
    "grand": (6472.508, 5_073_420),
    "moderate": (905.031, 763_691_765_760),
    "d2": (905.031, 763_691_765_760),
    "craig": (902.724, 7_671_011_040),
    "glister": (60297.481, 51_248),
    "graphcut": (905.031, 6_434_897_624_100),
    "boundaryset_ccs": (1248.648, 5_073_420),
    "slocurv": (978.828, 11_094_540),
    "tdds": (1525.387, 50_734_200),
    "dyn_unc": (902.724, 50_734_200),
    "dual": (625.985, 50_734_200),
    "cld": (904.821, 461_220_120),
}


@pytest.mark.parametrize("method", RECOMPUTED)
def test_the_papers_example_costs_what_its_formulas_give(method: str) -> None:
    found = cost(method)
    assert round(found.total_flops / 1e15, 3) == RECOMPUTED[method][0]
    assert found.total_bytes == RECOMPUTED[method][1]
    assert storage(method) == found.bytes


def test_in_one_unit_every_proxy_term_doubles() -> None:
    one = PAPER.in_one_unit()
    assert round(cost("herding", one).flops["train the proxy"] / 1e15, 3) == 1242.480
    assert [round(cost(name, one).total_flops / 1e15, 3) for name in ("herding", "cld", "dual")] == [
        1527.143,
        1526.725,
        970.328,
    ]


def test_a_clean_pass_and_row_zero_are_counted_where_asked_for() -> None:
    clean = cost("cld", clean_pass=True)
    assert round(clean.total_flops / 1e15, 3) == 1112.375
    assert clean.total_bytes == (PAPER.N + PAPER.Q) * 91 * 4


def test_narrower_features_are_stored_in_less() -> None:
    assert round(cost("herding", d=512).total_bytes / 1e9, 3) == 2.598


@pytest.mark.parametrize("method", COST_METHODS)
def test_costs_scale_with_what_they_are_linear_in(method: str) -> None:
    base = cost(method)
    twice = cost(method, f=2 * PAPER.f, fL=2 * PAPER.fL)
    assert math.isclose(twice.total_flops, 2 * base.total_flops)
    assert twice.total_bytes == base.total_bytes
    assert method in repr(base)


def test_every_coreset_method_has_a_cost() -> None:
    same_cost = {"ccs": "aum", "per_class": "random"}  # the same trace; a wrapper
    assert {same_cost.get(name, name) for name in selectors()} <= set(COST_METHODS)


def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'herding'"):
        cost("hering")
    with pytest.raises(InputError, match="no 'n'"):
        cost("cld", n=3)
    with pytest.raises(InputError, match="N must be a number above 0"):
        Scenario(N=0)
    with pytest.raises(InputError, match="cannot be larger"):
        cost("cld", k=PAPER.N + 1)
    with pytest.raises(InputError, match="T_early must be below"):
        cost("el2n", T=10)
