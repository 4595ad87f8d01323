"""The allocation is exact: equal to trying every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.compress.allocate import Factor, Site, allocate, total


def brute_force(sites: list[Site], factors: list[Factor], bound: float) -> float | None:
    best = None
    for combination in itertools.product(*(range(len(s.loss)) for s in sites)):
        chosen = {s.name: c for s, c in zip(sites, combination, strict=True)}
        if total(factors, chosen, "latency") <= bound:
            loss = sum(s.loss[chosen[s.name]] for s in sites)
            loss += sum(float(f.loss[tuple(chosen[s] for s in f.sites)]) for f in factors if f.loss is not None)
            best = loss if best is None else min(best, loss)
    return best


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.9))
def test_equals_brute_force_with_pairs(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    sites = [Site(f"s{i}", (0.0, *rng.uniform(0.1, 1, 2))) for i in range(4)] + [Site("block", (0.0, 1.0))]
    pairs = [("s0", "s1"), ("s1", "s2", "block"), ("s2", "s3"), ("s3",)]
    factors = []
    for names in pairs:
        shape = tuple(2 if n == "block" else 3 for n in names)
        cost = rng.uniform(0.1, 1, shape)
        if "block" in names:
            cost[..., 1] = 0
        factors.append(Factor(names, {"latency": cost}, loss=rng.uniform(0, 0.1, shape) if len(names) == 2 else None))
    bound = share * total(factors, {s.name: 0 for s in sites}, "latency")
    expected = brute_force(sites, factors, bound)
    chosen = allocate(sites, factors, {"latency": bound})
    if expected is None:
        assert chosen is None
        return
    assert chosen is not None
    loss = sum(s.loss[chosen[s.name]] for s in sites)
    loss += sum(float(f.loss[tuple(chosen[s] for s in f.sites)]) for f in factors if f.loss is not None)
    assert total(factors, chosen, "latency") <= bound + 1e-9
    assert loss == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_two_costs_bind_together() -> None:
    sites = [Site("a", (0.0, 1.0)), Site("b", (0.0, 1.5))]
    factors = [
        Factor(("a",), {"latency": np.array([2.0, 1.0]), "size": np.array([5.0, 5.0])}),
        Factor(("b",), {"latency": np.array([2.0, 2.0]), "size": np.array([5.0, 1.0])}),
    ]
    assert allocate(sites, factors, {"latency": 3.0}) == {"a": 1, "b": 0}
    assert allocate(sites, factors, {"latency": 3.0, "size": 7.0}) == {"a": 1, "b": 1}
    assert allocate(sites, factors, {"latency": 2.0}) is None
