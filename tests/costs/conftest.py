"""A compiler that is none."""

import pytest

from diffusionrl_jax.costs import compiled, slices
from diffusionrl_jax.costs.phases import WHOLE
from diffusionrl_jax.costs.roofline import PhaseCost
from tests.costs.dry_runs import dry_run_of

COST = compiled.Cost(
    arguments=0,
    temporaries=2**30,
    outputs=0,
    operations=197e12,
    accessed=0.0,
    collectives={},
    kernels=0,
    largest=(),
    unknown_loops=(),
    seconds=1.0,
)
TOO_LARGE = compiled.OutOfMemory(20 * 2**30, 16 * 2**30)


@pytest.fixture
def config(make_config):
    return make_config(**{"mesh.fsdp": 2, "microbatch.sample": 1, "microbatch.train": 1})


@pytest.fixture
def compilations(monkeypatch):
    """What was asked of the compiler, which finds that the update does not fit in four chips."""
    asked = []

    def dry_run(config, topology, *, whole, only, needed, quick):
        del needed
        only = [WHOLE] if whole else only
        asked.append((config.model, topology, *only))
        fits = topology != "v5e:2x2" or "update" not in only
        cost = COST if fits else TOO_LARGE
        changes = {"model": config.model, "topology": topology, "whole": whole, "quick": quick}
        costs = {name: PhaseCost(name, 2, cost, 2**30, 0, needed=98.5e12) for name in only}
        return dry_run_of(costs.values(), partial=True, **changes)

    monkeypatch.setattr(slices, "dry_run", dry_run)
    return asked
