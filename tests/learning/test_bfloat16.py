"""In bfloat16 the ratio at unchanged parameters stays far inside the clip range.

The UNet's output is rounded to 8 bits: had the update rounded elsewhere than the rollout, guidance
would amplify it. The paper's clip range is 1e-4; a tenth of it is allowed.
"""

import dataclasses
from operator import itemgetter

import jax
import jax.numpy as jnp
import optax
import pytest

from diffusionrl_jax.diffusion.process import make_process
from tests.learning.conftest import make_networks

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
ALLOWED = 1e-5
FULL_WIDTH = {
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] + ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3 + ["CrossAttnUpBlock2D"],
    "sample_size": 16,
    "use_linear_projection": True,
}


def sample_and_update(build, networks, process=None, count=2, **changes):
    """The set-up, and max |ratio - 1| of updates that change nothing, with these; two by default.

    The chain is DDIM's if no process is given.
    """
    setup = build(
        networks=networks,
        tasks=1,
        batch_size=2,
        devices=1,
        optimizer=optax.sgd(0.0),
        guidance_scale=7.5,
        pretraining_weight=0.0,
        ema_decay=0.0,
        sample_microbatch=1,
        update_microbatch=1,
        timesteps_per_iteration=count,
        **changes,
    )
    setup = setup.changed(process=process) if process else setup
    algorithm, state = setup.algorithm, setup.state()
    samples = jax.jit(algorithm.experience.sample)(
        state.params, setup.frozen, setup.batch.input_ids, 0
    )
    made = jax.jit(algorithm.prepare)(
        state.params, setup.frozen, samples, jnp.array([[0.0, 1.0]]), setup.batch, 0, {}
    )
    updates, text = made.examples, made.text
    update = jax.jit(algorithm.update, donate_argnums=0)
    updates = [jax.tree.map(itemgetter(index), updates) for index in range(count)]
    errors = []
    for each in updates:
        state, metrics = update(state, setup.frozen, each, text)
        assert metrics["gradient_norm"] > 0
        errors.append(float(metrics["largest_ratio_error"]))
    return setup, updates, text, errors


@pytest.mark.slow
def test_ratio_is_one_in_bfloat16(build):
    networks = make_networks(jnp.bfloat16)
    setup, updates, text, errors = sample_and_update(build, networks)
    assert max(errors) <= ALLOWED
    # What the test would see if the two did not round alike. (Two samples at a time do on some
    # CPUs, and on others not: float32 never does.)
    model = setup.algorithm.experience.model
    exact = dataclasses.replace(model, unet=model.unet.clone(dtype=jnp.float32))
    loss = setup.changed(model=exact).algorithm.loss
    _, metrics = jax.jit(loss)(setup.params, setup.frozen, updates[0], text[updates[0].text])
    assert metrics["largest_ratio_error"] > 10 * ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("noise", "count"), [("eta", 3), ("cps", 3), ("sde", 4)])
def test_ratio_is_one_for_flows(build, dtype, noise, count):
    """At every step of five that has noise enough to be trained on."""
    process = make_process(FLOW, 5, noise=noise, eta=0.7)
    assert process.stochastic_steps == count
    *_, errors = sample_and_update(build, make_networks(dtype), process, count, eta=0.7)
    print(f"max |ratio - 1| with {noise} in {dtype.__name__}: {errors}")
    assert max(errors) <= ALLOWED


@pytest.mark.slow
def test_ratio_is_one_at_full_width(build):
    *_, errors = sample_and_update(build, make_networks(jnp.bfloat16, **FULL_WIDTH))
    print(f"max |ratio - 1| at full width, bfloat16: {errors}")
    assert max(errors) <= ALLOWED


@pytest.mark.slow
def test_a_device_may_have_one_sample(build):
    """XLA's CPU compiler has failed on this update: guided, beside pretraining, in bfloat16."""
    setup = build(
        networks=make_networks(jnp.bfloat16),
        tasks=1,
        batch_size=8,
        steps=2,
        guidance_scale=7.0,
        timesteps_per_iteration=1,
        ema_decay=0.0,
    )
    _, (metrics,) = setup.run("split", iterations=1)
    assert metrics["gradient_norm"].min() > 0
