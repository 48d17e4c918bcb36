"""What a method says of itself is what its iteration takes."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.algorithms import needs_of
from tests.algorithms import toy

METHODS = {
    "policy_gradient": {},
    "near the base": {"algorithm.policy_gradient.kl_weight": 0.1},
    "reward_weighted": {},
    "nft": {},
    "dpo_offline": {},
}


@pytest.fixture(params=METHODS)
def method(request):
    """A toy's algorithm with what it takes, what it needs, and the shapes of its examples."""
    changes = METHODS[request.param]
    made = toy.make("policy_gradient" if changes else request.param, **changes)
    phases, params = made.algorithm.phases(), made.state.params
    samples = jax.eval_shape(phases.sample, params, made.frozen, made.batch.input_ids, 0)
    rewards = jax.ShapeDtypeStruct((1, 16), jnp.float32)
    arguments = made.frozen, samples.trained_on(), rewards, made.batch, 0, made.state.memory
    return made, needs_of(made.config), samples, jax.eval_shape(phases.prepare, params, *arguments)


def test_what_a_method_needs_is_what_it_takes(method):
    made, needs, samples, prepared = method
    assert needs.pairs == (samples.steps is None)
    if not needs.pairs:
        assert samples.steps.latents.shape[:3] == (1, 16, needs.steps)
    assert needs.latents == (samples.trained_on().latents is not None)
    examples = prepared.examples
    assert examples.weight.shape == (needs.updates,)
    kept = [array for array in examples.own.values() if array.shape[2:] == toy.Toy.latent_shape]
    assert len(kept) == needs.kept_of_example
    assert made.state.memory.keys() == ({needs.follower} if needs.follower else set())


def test_metrics_are_those_that_a_method_names(method):
    made, _, _, prepared = method
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    example = jax.eval_shape(first, prepared.examples)
    update = made.algorithm.phases().update
    _, metrics = jax.eval_shape(update, made.state, made.frozen, example, prepared.text)
    assert metrics.keys() == {*made.algorithm.reductions, "gradient_norm", "objective"}
    assert {metric.shape for metric in metrics.values()} == {()}
