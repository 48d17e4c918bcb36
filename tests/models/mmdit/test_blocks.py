"""Pictures are drawn while the networks gather a block at a time."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.costs.program_text import Program, sent
from diffusionrl_jax.distributed import mesh as mesh_rules
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.models.parameters import flatten
from diffusionrl_jax.models.stacks import is_stacked

# Both sum in float32; chains of three steps of numbers of order one.
TOLERANCE = 1e-5


@pytest.fixture
def make_program(make_config, make_folder, tiny_model, monkeypatch):
    """A function of the kind of model and of changes: a phase's results, and its program."""
    # Small parameters are split as well.
    monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 2**10)
    models = {
        "sd3": lambda: str(make_folder()),
        "flux": lambda: str(make_folder(flux=True)),
        "unet": lambda: tiny_model,
    }

    def make(kind, gather, **changes):
        changes = {"mesh.fsdp": 4, "mesh.gather": gather, "microbatch.sample": 1} | changes
        config = make_config(model=models[kind](), **changes)
        config, _ = planning.resolve(config)
        experiment = experiments.build(config)
        state, batch = experiment.init_state(), experiment.batch(0)
        draw = experiment.algorithm.experience.draw
        arguments = state.sampling_params, experiment.frozen, batch.input_ids, state.step
        program = jax.jit(draw).lower(*arguments).compile()
        stacks = [
            leaf.nbytes
            for path, leaf in flatten(experiment.policy.params).items()
            if is_stacked(path)
        ]
        return jax.device_get(program(*arguments)), program, stacks

    return make


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("sd3", {}, marks=pytest.mark.slow),
        pytest.param(
            "sd3", {"lora.rank": 2, "lora.targets": ("attn.to_q",)}, marks=pytest.mark.slow
        ),
        pytest.param("flux", {"sampler.guidance_scale": 1.0}, marks=pytest.mark.slow),
        pytest.param("unet", {}, marks=pytest.mark.slow),
    ],
    ids=["sd3", "lora", "flux", "unet"],
)
def test_by_blocks_pictures_are_the_same(make_program, kind, changes):
    (whole, program, stacks), (blocks, by_blocks, _) = (
        make_program(kind, gather, **changes) for gather in ("whole", "blocks")
    )
    for ours, theirs in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    gathered = [
        {size for name, size, _ in sent(Program(made.as_text())) if name == "all-gather"}
        for made in (program, by_blocks)
    ]
    if stacks:
        assert max(stacks) in gathered[0] and max(stacks) not in gathered[1]
