"""Groups that are drawn and trained on as one up to the step where they part.

The reference draws and trains on every sample by itself, with the same noise and steps. Its sums
have another order: what an iteration changes is compared with a tolerance of 1e-4 of the largest
change, which is itself about a hundredth of the parameters, so that this is float32's rounding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusionrl_jax.costs.mathematics import operations
from diffusionrl_jax.diffusion.guidance import denoise_passes
from diffusionrl_jax.distributed import mesh as mesh_rules
from diffusionrl_jax.distributed.mesh import batch_sharding
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.models.lora import Lora
from tests.apart import apart

GROUP, PARTS, STEPS = 2, 2, 3
BATCH = 8 * GROUP * PARTS  # Each of eight devices has one group of each part.
TOLERANCE = 1e-4
LORA = Lora(rank=2, alpha=1.0, targets=("attn1.to_q", "attn2.to_v", "conv1"))


@pytest.fixture(scope="module")
def make(build):
    """A function that makes a set-up whose groups branch; of each group the prompts are alike."""

    def of(tasks=1, batch=BATCH, lora=None, **changes):
        changes = {"optimizer": optax.sgd(0.1), "timesteps_per_iteration": 1} | changes
        setup = build(tasks, batch, STEPS, branches=PARTS, **changes)
        ids = np.repeat(np.asarray(setup.batch.input_ids)[:, ::GROUP], GROUP, axis=1)
        ids = jax.device_put(ids, batch_sharding(setup.parts["mesh"], axis=1))
        setup = setup.changed(noise_groups=(GROUP,) * tasks, lora=lora)
        setup = dataclasses.replace(setup, batch=setup.batch.replace(input_ids=ids))
        if lora is None:
            return setup
        rng = np.random.default_rng(5)  # With factors of 0 there is nothing to be learned.
        shapes = jax.eval_shape(lambda: lora.init(setup.params, seed=0))
        draw = lambda leaf: np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32)
        frozen = setup.frozen.replace(base=setup.params)
        return dataclasses.replace(setup, params=jax.tree.map(draw, shapes), frozen=frozen)

    return of


def draw_and_differentiate(setup, algorithm):
    """(final latents [T, B, ...], samples, examples, gradient of the first update)."""
    experience, ids = algorithm.experience, setup.batch.input_ids
    tasks, batch, _ = ids.shape
    by_task = lambda leaf: leaf.reshape(-1, tasks, *leaf.shape[1:]).swapaxes(0, 1)
    drawn = jax.jit(experience.draw)(setup.params, setup.frozen, ids, 1)
    latents, steps, text = jax.tree.map(by_task, drawn)
    rewards = np.random.default_rng(2).standard_normal((tasks, batch)).astype(np.float32)
    samples = Samples(steps, None, text)
    arguments = setup.params, setup.frozen, samples, rewards, setup.batch, 1, {}
    prepared = jax.jit(algorithm.prepare)(*arguments)
    example, text = jax.tree.map(lambda leaf: leaf[0], (prepared.examples, prepared.text))
    gradient = jax.jit(jax.grad(algorithm.loss, has_aux=True))
    arguments = setup.params, setup.frozen.base, example, text
    return latents, samples, prepared.examples, gradient(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_group_is_drawn_and_learned_from_as_its_samples_are(make, lora):
    numbers = {"pretraining_weight": 0.0, "guidance_scale": 1.0}
    setup = make(devices=1, batch=2 * GROUP * PARTS, lora=lora, **numbers)
    found = draw_and_differentiate(setup, setup.algorithm)
    latents, samples, examples, (gradient, metrics) = jax.device_get(found)
    found = draw_and_differentiate(setup, apart(setup.algorithm))
    theirs, alone, of_each, (expected, its_metrics) = jax.device_get(found)
    # The denoiser sees a row for each group.
    assert examples.latents.shape[:2] == (1, 2 * PARTS)
    assert of_each.latents.shape[:2] == (1, 2 * PARTS * GROUP)
    np.testing.assert_allclose(latents, theirs, atol=2e-5)
    np.testing.assert_allclose(samples.steps.latents, alone.steps.latents[:, ::GROUP], atol=2e-5)
    for name in ("target", "old_log_prob", "advantages"):
        ours = examples.own[name].reshape(of_each.own[name].shape)
        np.testing.assert_allclose(ours, of_each.own[name], atol=2e-5)
    np.testing.assert_array_equal(examples.times, of_each.times[:, ::GROUP])
    assert len(np.unique(examples.times)) > 1
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    for ours, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=0, atol=TOLERANCE * largest)
    for name, value in its_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=2e-6)


MICROBATCHES = {"sample_microbatch": 4, "update_microbatch": 2}
WAYS = {
    "microbatches": ("split", {"devices": 1} | MICROBATCHES, None),
    "mesh 8x1": ("split", {}, None),
    "mesh 2x4, fused": ("fused", {"fsdp": 4}, None),
    "lora, mesh 2x4": ("split", {"fsdp": 4}, LORA),
}


@pytest.fixture(scope="module")
def reference(make):
    """A function of LoRA: the changes and metrics of an iteration on one device, samples apart."""
    found = {}

    def of(lora):
        if lora not in found:
            setup = make(tasks=2, devices=1, lora=lora)
            alone = dataclasses.replace(setup, numbers=setup.numbers)
            vars(alone)["algorithm"] = apart(setup.algorithm)
            found[lora] = changes_of(alone, "split")
        return found[lora]

    return of


def changes_of(setup, execution):
    states, metrics = setup.run(execution, iterations=1)
    return jax.tree.map(np.subtract, states[1].params, states[0].params), metrics[0]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_iteration_is_that_of_samples_apart(make, reference, monkeypatch, way):
    """Two tasks and the pretraining loss, whose batch is larger than that of the groups."""
    monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 1024)
    execution, numbers, lora = WAYS[way]
    changes, metrics = changes_of(make(tasks=2, lora=lora, **numbers), execution)
    expected, expected_metrics = reference(lora)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    for ours, theirs in zip(jax.tree.leaves(changes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * largest)
    assert metrics["objective"].tolist() == [0, 0, 1]
    assert metrics["ratio_error"][0] < 2e-6
    assert metrics.keys() == expected_metrics.keys()
    for name, theirs in expected_metrics.items():
        # Pretraining's update has no ratio.
        ours, theirs = metrics[name][:3], theirs[:3]
        if name not in ("loss", "gradient_norm", "objective"):
            ours, theirs = ours[:2], theirs[:2]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5, err_msg=name)


def test_operations_are_counted_as_if_groups_part_in_the_middle(make):
    """The program does not say how often its loops turn."""
    setup = make(devices=1, batch=2 * GROUP * PARTS)
    experience, model = setup.algorithm.experience, setup.parts["model"]
    ids, groups = setup.batch.input_ids, 2 * PARTS
    drawn = operations(experience.draw, setup.params, setup.frozen, ids, 0)
    encode = lambda rows: operations(model.encode_text, setup.frozen.text_encoder, ids[0, :rows])
    text = jnp.zeros((1, setup.passes, *ids.shape[2:], 16))
    latents, times = jnp.zeros((1, *model.latent_shape)), jnp.zeros(1, jnp.int32)
    of_row = operations(
        functools.partial(denoise_passes, model), setup.params, latents, times, text
    )
    # Of three steps a group of two takes two together on average.
    assert experience.evaluations == 2 / GROUP + 1
    assert drawn == groups * GROUP * experience.evaluations * of_row + encode(groups) + encode(1)
