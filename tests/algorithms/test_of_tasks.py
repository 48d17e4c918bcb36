"""Tasks that learn by methods of their own, in one iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.algorithms import ALGORITHMS, needs_of, of_method, tasks_by_method
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.runs import trained
from tests.algorithms import toy

TOGETHER = [
    ("draft_k", "nft"),
    pytest.param("awm", "policy_gradient", marks=pytest.mark.slow),
    pytest.param("dpo", "refl", marks=pytest.mark.slow),
    pytest.param("awm", "raft", marks=pytest.mark.slow),
]


def by_task(first, second):
    return {"tasks.task0.algorithm": first, "tasks.task1.algorithm": second}


def examples(made):
    """What an iteration of a toy is trained on."""
    phases = made.algorithm.phases()

    @jax.jit
    def prepare(state, frozen, batch):
        samples = phases.sample(state.params, frozen, batch.input_ids, 3)
        rewards = phases.score(frozen, samples, batch.reward_inputs)
        arguments = state.params, frozen, samples.trained_on(), rewards, batch, 3, state.memory
        return phases.prepare(*arguments).examples

    return jax.device_get(prepare(made.state, made.frozen, made.batch))


@pytest.mark.parametrize(("first", "second"), TOGETHER)
def test_a_task_is_trained_as_if_all_learned_by_its_method(first, second, hasty):
    """What the denoiser is shown, and what the losses take, of the task's own noise."""
    mixed = examples(toy.make("crd", tasks=2, **by_task(first, second)))
    order = sorted((0, 1), key=lambda task: list(ALGORITHMS).index((first, second)[task]))
    assert list(dict.fromkeys(mixed.text.tolist())) == order
    for task, name in enumerate((first, second)):
        alone = examples(toy.make(name, tasks=2))
        own, other = mixed.text == task, alone.text == task
        assert set(mixed.objective[own]) == {order.index(task)}
        for field in ("latents", "times", "weight"):
            np.testing.assert_array_equal(getattr(mixed, field)[own], getattr(alone, field)[other])
        for field, expected in alone.own.items():
            if field != "group":  # Numbers of groups, which only have to differ.
                found = mixed.own[field][own]
                np.testing.assert_allclose(found, expected[other], rtol=1e-5, atol=1e-6)


def test_a_task_of_weight_0_is_drawn_and_not_trained_on(hasty):
    """Nor does it move Adam, as updates without a gradient would."""
    alone, other = toy.make("nft"), {"tasks.task1.weight": 0.0, "tasks.task1.algorithm": "crd"}
    beside = toy.make("nft", tasks=2, **other)
    states, found = [], None
    for made in (alone, beside):
        state = made.state
        for _ in range(3):
            state, metrics = made.step(state, made.frozen, made.batch)
        states.append(state.params)
        found = metrics
    for name, values in states[0].items():
        np.testing.assert_allclose(states[1][name], values, rtol=1e-5)
    assert found["loss"].shape == (1,) and found["reward_mean"].shape == (2,)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("refl", "draft_k", "draft_lv", "nft")
]


@pytest.mark.parametrize("name", ["policy_gradient", *SLOW])
def test_a_chain_that_is_not_finite_poisons_no_other(name, hasty):
    """It has no reward, and no share in what the others are trained on."""
    made = toy.make(name)
    phases, state, batch = made.algorithm.phases(), made.state, made.batch
    samples = phases.sample(state.params, made.frozen, batch.input_ids, 0)
    rewards = phases.score(made.frozen, samples, batch.reward_inputs)
    spoil = lambda array: array.at[0, 3].set(jnp.nan)
    bad = samples.replace(
        steps=samples.steps and jax.tree.map(spoil, samples.steps),
        latents=None if samples.latents is None else spoil(samples.latents),
    )
    arguments = bad, spoil(rewards), batch, 0, state.memory
    examples = phases.prepare(state.params, made.frozen, *arguments).examples
    for leaf in (examples.latents, examples.own.get("direction", 0), examples.own.get("target", 0)):
        assert np.isfinite(leaf).all()
    first = jax.tree.map(lambda leaf: leaf[0], examples)
    rows = jax.tree.map(lambda leaf: leaf[0], samples.text)
    loss = lambda params: made.algorithm.loss(params, made.frozen.base, first, rows)[0]
    value, gradient = jax.value_and_grad(loss)(state.params)
    assert np.isfinite(value) and all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("policy_gradient", {}),
        (
            "policy_gradient",
            {
                "algorithm.policy_gradient.timesteps_per_iteration": 1,
                "algorithm.policy_gradient.shared_prefix": 2,
                "tasks.task0.shared_noise": True,
            },
        ),
        ("refl", {}),
    ],
    ids=["policy_gradient", "shared_prefix", "refl"],
)
def test_a_step_that_leads_to_nothing_finite_poisons_no_other(name, changes, hasty, monkeypatch):
    """What it was taken from is finite, and the denoiser breaks there again."""
    whole = toy.Toy.denoise

    def breaks(self, params, latents, times, text):
        output = whole(self, params, latents, times, text)
        bad = jnp.repeat(latents[:, 0, 0, 0] > 1.2, len(output) // len(latents))
        return jnp.where(bad[:, None, None, None], jnp.nan, output)

    monkeypatch.setattr(toy.Toy, "denoise", breaks)
    made = toy.make(name, **changes)
    samples = made.algorithm.phases().sample(
        made.state.params, made.frozen, made.batch.input_ids, 0
    )
    led = np.isfinite(samples.steps.following)
    assert led.any() and not led.all()
    _, metrics = made.step(made.state, made.frozen, made.batch)
    assert np.isfinite(metrics["gradient_norm"]).all() and metrics["gradient_norm"].max() > 0


def test_both_are_learned_by_and_logged_under_their_tasks(hasty):
    made = toy.make("nft", tasks=2, **{"tasks.task0.algorithm": "draft_k"})
    state, before = made.state, toy.expected_reward(made.state.params)
    for _ in range(10):
        state, metrics = made.step(state, made.frozen, made.batch)
    assert toy.expected_reward(state.params) > before + 0.01
    logged = made.algorithm.summary(jax.device_get(metrics), ("one", "two"))
    assert {"one/reward_of_guess", "two/distance_to_old"} <= logged.keys()
    assert not {"two/reward_of_guess", "one/distance_to_old"} & logged.keys()


def test_the_needs_are_those_of_all_tasks():
    config = toy.make("draft_k", tasks=3, **{"tasks.task1.algorithm": "nft"}).config
    config.algorithm.nft.noises = 2
    assert tasks_by_method(config) == {"draft_k": ("task0", "task2"), "nft": ("task1",)}
    needs = needs_of(config)
    assert (needs.updates, needs.steps, needs.late_steps) == (4, 1, 1)
    assert needs.reward_gradient and needs.latents and needs.follower == "drawing_params"
    assert needs.predictions == 2 * 2  # Two noises, of the old policy and of the base model.
    own = of_method(config, "nft")
    assert tuple(own.tasks) == ("task1",) and own.algorithm.name == "nft"
    assert len(config.tasks) == 3


@pytest.mark.slow
def test_metrics_of_one_name_are_each_method_s_own(hasty):
    """The policy gradient's ratio leaves 1 as it does alone, beside a method that has one, too."""

    def ratios(**changes):
        made = toy.make("policy_gradient", tasks=2, **changes)
        state, frozen = made.state, made.frozen
        _, metrics = made.step(state, frozen, made.batch)
        return made.algorithm.summary(jax.device_get(metrics), ("one", "two"))

    alone, mixed = ratios(), ratios(**{"tasks.task1.algorithm": "awm"})
    assert alone["one/ratio"] != 1
    np.testing.assert_allclose(mixed["one/ratio"], alone["one/ratio"], rtol=1e-6)
    assert mixed["one/clip_fraction"] == alone["one/clip_fraction"]


@pytest.mark.parametrize(
    ("first", "second", "changes", "message"),
    [
        ("policy_gradient", "draft_k", {}, "trained on other steps of the chain"),
        ("refl", "draft_lv", {}, "trained on other steps of the chain"),
        ("nft", "awm", {}, "nft and awm cannot learn .* each has an average of its own"),
        ("nft", "policy_gradient", {}, "policy_gradient needs the policy's own steps"),
        ("dpo_offline", "nft", {}, "dpo_offline draws as it alone can"),
        (
            "reward_weighted",
            "raft",
            {"algorithm.reward_weighted.from_base": True},
            "the base model would draw for one",
        ),
    ],
)
def test_methods_that_share_no_samples_are_refused(first, second, changes, message):
    made = toy.make("crd", tasks=2)
    made.config.update_from_flattened_dict(by_task(first, second) | changes)
    with pytest.raises(UserError, match=message):
        checks.check_experiment(made.config, made.algorithm.mesh)


def test_a_run_is_compared_by_the_fields_of_all_its_methods():
    made = toy.make("draft_k", tasks=2, **{"tasks.task1.algorithm": "nft"})
    found = trained.of_its_methods(made.config.to_dict())
    assert found["algorithm"].keys() == {"name", "draft_k", "nft"}
    assert found["algorithm"]["nft"] == made.config.algorithm.nft.to_dict()


def test_a_task_without_a_method_of_its_own_has_that_of_all():
    config = toy.make("nft", tasks=2).config
    assert tasks_by_method(config) == {"nft": ("task0", "task1")}
