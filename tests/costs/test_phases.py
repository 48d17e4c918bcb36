"""The phases of methods that differ in what they draw and compare."""

import pytest

from diffusionrl_jax.costs import phases
from diffusionrl_jax.experiments import planning

DRAWN = ["sample", "decode", "score small", "prepare"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("dgpo", {}, [*DRAWN, "update", "finish"]),
        ("dpo_offline", {"algorithm.dpo_offline.pairs": "pairs"}, ["prepare", "update", "finish"]),
    ],
)
def test_samples_that_are_compared_are_counted_together(make_config, name, changes, expected):
    changes = {"algorithm.name": name, "batch_size": 32, "microbatch.score": 32} | changes
    config = make_config(**changes)
    config.tasks.small.update(group_size=4, normalisation="group")
    config, _ = planning.resolve(config)
    made = phases.make_phases(phases.plain_experiment(config))
    assert [phase.name for phase in made] == expected
