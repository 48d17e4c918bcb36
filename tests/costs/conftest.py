"""A compiler that is none."""

import pytest

from diffusionrl_jax.costs import compiled, report, slices
from diffusionrl_jax.costs.phases import WHOLE
from diffusionrl_jax.costs.roofline import PhaseCost
from diffusionrl_jax.distributed import chips

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
def compilations(monkeypatch):
    """What was asked of the compiler, which finds that the update does not fit in four chips."""
    asked = []

    def dry_run(config, topology, *, whole, only, needed, quick):
        del needed
        only = [WHOLE] if whole else only
        asked.append((config.model, topology, *only))
        fits = topology != "v5e:2x2" or "update" not in only
        return report.DryRun(
            model=config.model,
            topology=topology,
            compiler="libtpu 1.2",
            chip=chips.of_topology(topology),
            chips=4,
            fsdp=1,
            microbatch={"sample": 1},
            remat="none",
            planned=2.0**30,
            images=80,
            whole=whole,
            partial=True,
            quick=quick,
            assumed=(),
            phases=tuple(
                PhaseCost(name, 2, COST if fits else TOO_LARGE, 2**30, 0, needed=98.5e12)
                for name in only
            ),
        )

    monkeypatch.setattr(slices, "dry_run", dry_run)
    return asked
