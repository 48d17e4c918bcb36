"""What a dry run found, made up."""

from diffusionrl_jax.costs import report
from diffusionrl_jax.distributed import chips


def dry_run_of(phases, topology="v5e:2x2", **changes):
    """A dry run of four chips, with these phases' costs."""
    fields = {
        "model": "a model",
        "topology": topology,
        "compiler": "libtpu 1.2",
        "chip": chips.of_topology(topology),
        "chips": 4,
        "fsdp": 1,
        "microbatch": {"sample": 1},
        "remat": "none",
        "planned": 2.0**30,
        "images": 80,
        "whole": False,
        "partial": False,
        "quick": False,
        "assumed": (),
        "phases": tuple(phases),
    }
    return report.DryRun(**fields | changes)
