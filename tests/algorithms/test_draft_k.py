"""The reward's gradient through the chain against finite differences of drawing and scoring."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.algorithms import ALGORITHMS, draft_k
from tests.algorithms import toy


def programs(made):
    """Functions of the parameters that draw and score samples, and make examples of them."""
    phases, state, batch = made.algorithm.phases(), made.state, made.batch

    def draw(params):
        samples = phases.sample(params, made.frozen, batch.input_ids, state.step)
        return samples, phases.score(made.frozen, samples, batch.reward_inputs)

    def prepare(params, samples, rewards):
        arguments = params, made.frozen, samples.trained_on(), rewards, batch, state.step, {}
        return phases.prepare(*arguments)

    return jax.jit(draw), jax.jit(prepare)


@pytest.mark.parametrize(
    ("prediction_type", "changes"),
    [
        ("epsilon", {"sampler.guidance_scale": 2.0, "microbatch.train": 8}),
        pytest.param("v_prediction", {"sampler.eta": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_the_shares_add_up_to_the_chains_gradient(hasty, prediction_type, changes):
    """Of all four steps; central differences of 0.01 are off by less than a thousandth."""
    made = toy.make("draft_k", prediction_type, **{"algorithm.draft_k.steps": 4} | changes)
    draw, prepare = programs(made)
    params = made.state.params
    samples, rewards = draw(params)
    prepared = prepare(params, samples, rewards)
    examples, text = prepared.examples, jax.tree.map(lambda leaf: leaf[0], prepared.text)
    gradient = lambda example: jax.grad(made.algorithm.loss, has_aux=True)(
        params, None, example, text
    )[0]
    shares = jax.jit(lambda examples: jax.lax.map(gradient, examples))(examples)
    for name in params:
        higher, lower = (
            np.asarray(draw(params | {name: params[name] + sign * 0.01})[1], np.float64).mean()
            for sign in (1, -1)
        )
        slope = (higher - lower) / 0.02
        assert abs(slope) > 0.01
        np.testing.assert_allclose(-shares[name].sum(), slope, rtol=2e-3)
        # No step alone has it all, and none has nothing.
        assert np.abs(shares[name]).min() > 1e-5 and -shares[name].max() < 0.9 * slope
    np.testing.assert_array_equal(examples.own["step_index"][:, 0], range(4))
    np.testing.assert_allclose(examples.own["reward_of_guess"], np.repeat(rewards, 4, 0), rtol=1e-5)


@pytest.mark.slow
def test_a_shorter_chain_has_the_last_steps_shares(hasty):
    """As many for each sample as are drawn for it, with random steps."""
    changes = {"steps": 3}, {"steps": 2}, {"steps": 3, "random_steps": True}
    found, drawn = [], None
    for fields in changes:
        fields = {f"algorithm.draft_k.{name}": value for name, value in fields.items()}
        made = toy.make("draft_k", **fields)
        draw, prepare = programs(made)
        samples, rewards = drawn = drawn or draw(made.state.params)
        last = made.config.algorithm.draft_k.steps
        steps = jax.tree.map(lambda leaf, last=last: leaf[:, :, 3 - last :], samples.steps)
        found.append(prepare(made.state.params, samples.replace(steps=steps), rewards).examples)
    whole, part, drawn = found
    directions = np.asarray(whole.own["direction"])
    np.testing.assert_allclose(part.own["direction"], directions[1:], rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(part.latents, whole.latents[1:])
    kept = np.asarray(drawn.own["direction"]).any(axis=(2, 3, 4))
    np.testing.assert_array_equal(drawn.own["direction"], directions * kept[:, :, None, None, None])
    assert kept[2].all() and (kept[1] >= kept[0]).all()
    assert 0 < kept[0].sum() < kept[1].sum() < len(kept[0])


@pytest.mark.parametrize("steps", [0, 5])
def test_refuses_more_steps_than_there_are(steps):
    made = toy.make("draft_k")
    made.config.algorithm.draft_k.steps = steps
    with pytest.raises(ValueError, match="must be between 1 and config.sampler.steps=4"):
        draft_k.check(made.config)


def test_refuses_steps_that_depend_on_more_than_one_output():
    made = toy.make("draft_k", **{"algorithm.draft_k.steps": 2})
    made.config.sampler.order = 2
    with pytest.raises(ValueError, match="set it to 1, or config.algorithm.draft_k.steps=2 to 1"):
        draft_k.check(made.config)
    made.config.algorithm.draft_k.steps = 1
    draft_k.check(made.config)


@pytest.mark.parametrize("name", ["draft_k", "refl"])
def test_a_reward_without_a_gradient_is_refused(name):
    made = toy.make(name)
    made.config.tasks.task0.scorer.update(reward="jpeg_size")
    with pytest.raises(
        ValueError,
        match=f"method {name} .* task task0's jpeg_size has none: set config.tasks.task0",
    ):
        ALGORITHMS[name].check(made.config)
