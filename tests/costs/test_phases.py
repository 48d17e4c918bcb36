"""The phases of methods that differ in what they draw and compare."""

import jax
import pytest

from diffusionrl_jax.costs import abstract, phases
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import planning

FIELDS = "algorithm.policy_gradient"
DRAWN = ["sample", "decode", "score small", "prepare"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("dgpo", {}, [*DRAWN, "update", "finish"]),
        ("dpo_offline", {"algorithm.dpo_offline.pairs": "pairs"}, ["prepare", "update", "finish"]),
        ("nft", {"ema_decay": 0.0}, [*DRAWN, "update", "finish"]),
    ],
)
def test_samples_that_are_compared_are_counted_together(make_config, name, changes, expected):
    changes = {"algorithm.name": name, "batch_size": 32, "microbatch.score": 32} | changes
    config = make_config(**changes)
    config.tasks.small.update(group_size=4, normalisation="group")
    config, _ = planning.resolve(config)
    made = phases.make_phases(phases.plain_experiment(config))
    assert [phase.name for phase in made] == expected


@pytest.mark.parametrize("score", [0, 1, 2])
def test_one_device_decodes_in_the_same_phase_as_several(make_config, score):
    """A device's share is of two pictures: fewer at a time are decoded as they are scored."""
    config = make_config(**{"batch_size": 8, "microbatch.score": score, "mesh.fsdp": 1})
    mesh = make_mesh(devices=jax.devices()[:4])
    made = [abstract.build(config, mesh), phases.plain_experiment(config, mesh.size)]
    several, one = ([phase.name for phase in phases.make_phases(each)] for each in made)
    assert one == several and ("decode" in one) == (score != 1)


@pytest.mark.slow
def test_what_is_held_is_what_is_trained_on(config):
    """A longer chain holds no more; another trained step two latents and a log-probability."""

    def held(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        experiment = abstract.build(changed, make_mesh(2))
        return {phase.name: phase.resident for phase in phases.make_phases(experiment)}

    short = held()
    assert held(**{"sampler.steps": 30}) == short
    latents = 4 * 16 * 16 * 4 * config.batch_size // 8
    more = held(**{f"{FIELDS}.timesteps_per_iteration": 2})
    for name in ("decode", "score small", "prepare"):
        assert more[name] - short[name] == 2 * latents + 4 * config.batch_size // 8
    # The KL holds the base model, and one more, its mean.
    near = held(**{f"{FIELDS}.kl_weight": 1.0})
    experiment = abstract.build(config, make_mesh(2))
    base = phases.bytes_per_chip(experiment.state.params)
    assert near["sample"] - short["sample"] == base
    assert near["update"] - short["update"] == base + latents


@pytest.mark.slow
def test_a_kl_to_the_base_model_counts_a_forward_pass_at_each_trained_step(config):
    def operations(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({f"{FIELDS}.timesteps_per_iteration": 2} | changes)
        made = phases.make_phases(phases.plain_experiment(changed))
        return phases.operations([one for one in made if one.name in ("sample", "prepare")])

    without, with_kl = operations(), operations(**{f"{FIELDS}.kl_weight": 1.0})
    # Of one step more, of all samples.
    forward = without["sample"] - operations(**{"sampler.steps": 2})["sample"]
    assert forward > 0
    assert with_kl["prepare"] - without["prepare"] == pytest.approx(2 * forward, rel=1e-3)
    assert with_kl["sample"] == without["sample"]
