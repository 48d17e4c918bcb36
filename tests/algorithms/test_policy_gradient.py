"""What is held of a chain, against a reference that holds all of it; the KL to the base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.diffusion.guidance import denoise_passes, guide
from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.learning import experience
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer

FIELDS = "algorithm.policy_gradient"
BY_GROUP = {"group_size": 4, "normalisation": "group", "shared_noise": True}
BY_PROMPT = {"group_size": 2, "normalisation": "prompt", "prompt_min_count": 2}
LORA = {"lora.rank": 2}
GUIDED = {"sampler.guidance_scale": 3.0, "mesh.fsdp": 2, "microbatch.sample": 2}


@pytest.fixture
def joint(make_config):
    """A function that makes the config of two tasks whose samples differ in every way."""

    def make(**changes):
        balanced = {
            "batch_size": 16,
            f"{FIELDS}.balance_timesteps": True,
            f"{FIELDS}.timesteps_per_iteration": 2,
        }
        config = make_config(**balanced)
        size = common.make_scorer("jpeg_size")
        config.tasks.small = common.make_task(size, "emoji:portraits", **BY_GROUP)
        config.tasks.other = common.make_task(size, "emoji:portraits", weight=0.5, **BY_PROMPT)
        config.sampler.steps = 4
        config.update_from_flattened_dict(changes)
        return config

    return make


def whole_rollout(model, process, params, text, keys, kept, *, eta, guidance_scale):
    """As `rollout.rollout`, by the whole trajectory, of which the steps are then gathered."""

    def noise(index):
        draw = lambda key: jax.random.normal(key, model.latent_shape)
        return jax.vmap(draw)(keys[:, index])

    def step(latents, index):
        indices = jnp.full(latents.shape[0], index)
        output = denoise_passes(model, params, latents, process.times[indices], text)
        taken = process.step(guide(output, guidance_scale), latents, indices, eta)
        following = taken.mean + taken.std * noise(index)
        return following, (following, taken.log_prob(following))

    first = noise(process.steps)
    last, (latents, log_probs) = jax.lax.scan(step, first, jnp.arange(process.steps))
    latents = jnp.concatenate([first[None], latents])
    rows = jnp.arange(len(first))[:, None]
    steps = Steps(latents[kept, rows], latents[kept + 1, rows], log_probs[kept, rows])
    return last, steps


def train(config, execution, cache_dir=None):
    """(state, metrics of each iteration) on the host, after three iterations."""
    made = experiment.build(config)
    if cache_dir:
        made = made.with_pictures(cache_dir)
    step = make_train_step(made.algorithm, made.abstract_state(), execution, PhaseTimer())
    state, history = made.init_state(), []
    for iteration in range(3):
        state, metrics = step(state, made.frozen, made.batch(iteration))
        history.append(metrics)
    return jax.device_get((state, history))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("execution", "changes"),
    [
        ("split", LORA),
        ("split", GUIDED),
        ("fused", LORA),
        ("fused", {f"{FIELDS}.timesteps_per_iteration": 4}),
    ],
    ids=str,
)
def test_parameters_are_those_of_a_run_that_keeps_whole_trajectories(
    joint, monkeypatch, compilation_cache, execution, changes
):
    """Bit for bit, with all else that a state has."""
    state, _ = train(joint(**changes), execution)
    monkeypatch.setattr(experience, "rollout", whole_rollout)
    expected, _ = train(joint(**changes), execution)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state.step == 3


MESH = {"mesh.fsdp": 2, "microbatch.train": 1, "sampler.guidance_scale": 3.0}
WAYS = {
    "lora": ("split", LORA),
    "full, fsdp, microbatches": ("split", MESH),
    "lora, fused, fsdp": ("fused", LORA | MESH),
    "full, fused, pretraining": (
        "fused",
        {"pretraining.weight": 1.0, "pretraining.pictures": "base:16"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_kl_to_the_base_model_keeps_the_policy_near(joint, compilation_cache, way, tmp_path):
    execution, changes = WAYS[way]
    changes = changes | {f"{FIELDS}.clip_range": 0.1}
    found = {}
    for weight in (1e-12, 10.0):
        config = joint(**changes, **{f"{FIELDS}.kl_weight": weight})
        _, history = train(config, execution, str(tmp_path))
        found[weight] = np.stack([metrics["kl_to_base"][:4] for metrics in history])
    for divergences in found.values():
        # Nothing has been learned yet: what is left is rounding.
        assert 0 <= divergences[0, 0] < 1e-9
    assert found[1e-12][-1].min() > 1e-6
    assert found[10.0][-1].max() < found[1e-12][-1].min()


def test_without_a_weight_no_reference_is_computed(joint):
    made = experiment.build(joint())
    assert made.frozen.base is None
    phases, batch, state = made.algorithm.phases(), made.batch(0), made.abstract_state()
    samples = jax.eval_shape(phases.sample, made.policy.denoiser, made.frozen, batch.input_ids, 0)
    rewards = jax.ShapeDtypeStruct(batch.input_ids.shape[:2], jnp.float32)
    scored = made.frozen, samples.trained_on(), rewards
    arguments = state.params, *scored, batch, 0, state.memory
    assert "reference_mean" not in jax.eval_shape(phases.prepare, *arguments).examples.own
