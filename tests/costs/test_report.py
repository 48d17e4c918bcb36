"""What is said of a dry run, of costs that are made up."""

import json

from diffusionrl_jax.costs import compiled, program_text
from diffusionrl_jax.costs.roofline import PhaseCost
from tests.costs.dry_runs import dry_run_of

COST = compiled.Cost(
    arguments=2**30,
    temporaries=2**31,
    outputs=0,
    operations=197e12,
    accessed=819e9 / 2,
    collectives={"all-reduce": program_text.Collectives(3, 50_000_000_000)},
    kernels=0,
    largest=(("jit(f)/dot f32[8]", 32),),
    unknown_loops=(),
    seconds=1.0,
)


def result_of(*costs):
    return dry_run_of(
        PhaseCost(f"phase {index}", 2, cost, 3 * 2**30, 2**30, needed=98.5e12)
        for index, cost in enumerate(costs)
    )


def test_what_does_not_fit_is_reported():
    result = result_of(COST, compiled.OutOfMemory(20 * 2**30, 16 * 2**30))
    json.dumps(result.to_json(), default=str)
    text = result.markdown()
    assert "**Does not fit**: 22.00 GiB of 15.75 GiB in phase 1, 6.25 GiB too much." in text
    assert "images/s/chip" not in text
