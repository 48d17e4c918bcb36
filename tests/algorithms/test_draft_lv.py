"""The reward's gradient through the last step, of several noises, against DRaFT-K and NumPy."""

import jax
import numpy as np

from diffusionrl_jax.diffusion.guidance import denoise_passes, guide
from tests.algorithms import toy


def prepared(name, drawn=None, **changes):
    """What is trained on, of two tasks, and the samples that it is made of."""
    made = toy.make(name, tasks=2, **{"sampler.eta": 0.0} | changes)
    phases, state, batch = made.algorithm.phases(), made.state, made.batch
    drawn = drawn or phases.sample(state.params, made.frozen, batch.input_ids, state.step)
    rewards = phases.score(made.frozen, drawn, batch.reward_inputs)
    arguments = drawn.trained_on(), rewards, batch, state.step, {}
    return made, drawn, phases.prepare(state.params, made.frozen, *arguments)


def gradients(made, found):
    """Each update's gradient."""
    rows = jax.tree.map(lambda leaf: leaf[found.examples.text], found.text)
    loss = jax.grad(made.algorithm.loss, has_aux=True)
    of_update = lambda pair: loss(made.state.params, None, *pair)[0]
    return jax.jit(lambda pairs: jax.lax.map(of_update, pairs))((found.examples, rows))


def test_without_new_noise_it_is_that_of_draft_k(hasty):
    made, drawn, found = prepared("draft_lv", **{"algorithm.draft_lv.noises": 0})
    other, _, expected = prepared("draft_k", drawn)
    np.testing.assert_array_equal(found.examples.latents, expected.examples.latents)
    ours, theirs = gradients(made, found), gradients(other, expected)
    for name, gradient in theirs.items():
        assert np.abs(gradient).min() > 1e-5
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-4)


def test_samples_are_noised_to_the_last_steps_time(hasty):
    """By noise of their own, each task's beside its chain's own step."""
    made, drawn, found = prepared("draft_lv")
    process, examples = made.algorithm.experience.process, found.examples
    np.testing.assert_array_equal(examples.text, [0, 0, 0, 1, 1, 1])
    assert (np.asarray(examples.times) == process.times[-1]).all()
    alpha = np.float64(process.alpha_bar[-1])
    for task in range(2):
        own, *others = np.asarray(examples.latents, np.float64)[3 * task : 3 * task + 3]
        np.testing.assert_array_equal(own, drawn.steps.latents[task, :, 0])
        noises = (others - alpha**0.5 * np.asarray(drawn.latents[task])) / (1 - alpha) ** 0.5
        flat = noises.reshape(2 * len(own), -1)
        assert np.abs(flat.mean()) < 0.1 and abs(flat.std() - 1) < 0.1
        assert len(np.unique(flat[:, 0])) == len(flat)
    # Latents that lead to nearly the same picture are scored nearly alike.
    rewards = np.asarray(examples.own["reward_of_guess"]).reshape(2, 3, -1)
    spread = np.std(rewards, axis=1).mean()
    assert 0 < spread < 0.5 * np.std(rewards, axis=2).mean()


def test_the_gradient_is_that_of_the_reward_after_the_step(hasty):
    """By central differences of 1, so late that no pixel moves by more than a thousandth."""
    made, _, found = prepared("draft_lv", **{"sampler.guidance_scale": 2.0})
    experience, examples = made.algorithm.experience, found.examples
    process, model, params = experience.process, experience.model, made.state.params
    rows = jax.tree.map(lambda leaf: leaf[examples.text], found.text)

    def rewards(params):
        def of_update(latents, times, text):
            output = guide(denoise_passes(model, params, latents, times, text), 2.0)
            last = np.full(len(latents), process.steps - 1)
            return model.decode(None, process.step(output, latents, last, 0.0).mean).mean()

        return jax.vmap(of_update)(examples.latents, examples.times, rows)

    found = gradients(made, found)
    for name in params:
        higher, lower = (rewards(params | {name: params[name] + step}) for step in (1, -1))
        np.testing.assert_allclose(-found[name], (higher - lower) / 2, rtol=2e-3)
        assert np.abs(found[name]).min() > 1e-5
