"""An iteration gives the same parameters however it is run, and moves them as it should.

Another program takes its sums in another order: parameters are compared with an absolute tolerance
of 1e-5, less than a hundredth of what two iterations move them by.
"""

import jax
import numpy as np
import optax
import pytest

from diffusionrl_jax.distributed import mesh as mesh_rules

TOLERANCE = 1e-5
# The last step's deviation is 0.02, and only 64 elements are averaged: rounding shows.
RATIO_ERROR = 2e-6
UPDATES = 5  # two tasks, two timesteps each, and pretraining
MICROBATCHES = {
    "sample_microbatch": 4,
    "decode_microbatch": 8,
    "score_microbatch": 4,
    "update_microbatch": 2,
}
WAYS = {
    "split, mesh 2x4": ("split", {"fsdp": 4}),
    "one device, microbatches": ("fused", {"devices": 1} | MICROBATCHES),
    "split, one device, microbatches": ("split", {"devices": 1} | MICROBATCHES),
    "split": ("split", {}),
    "mesh 2x4": ("fused", {"fsdp": 4}),
    "mesh 1x8": ("fused", {"fsdp": 8}),
}


def largest_difference(ours, theirs):
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, theirs)
    return max(jax.tree.leaves(differences))


@pytest.fixture(scope="module")
def setup(build):
    return build()


@pytest.fixture(scope="module")
def reference(setup):
    """(states, metrics) of two fused iterations on eight devices."""
    return setup.run("fused")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_gives_the_same_parameters(build, reference, monkeypatch, way):
    monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 1024)
    execution, changes = WAYS[way]
    setup = build(**changes)
    states, metrics = setup.run(execution)
    expected_states, expected_metrics = reference
    assert largest_difference(states[-1].params, states[0].params) > 1e-3
    assert largest_difference(states[-1].params, expected_states[-1].params) <= TOLERANCE
    assert largest_difference(states[-1].ema_params, expected_states[-1].ema_params) <= TOLERANCE
    assert states[-1].step == expected_states[-1].step == 2
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    assert metrics[0]["ratio_error"][0] < RATIO_ERROR
    assert_donated(setup, execution)


def assert_donated(setup, execution):
    state = setup.state()
    setup.step(execution)(state, setup.frozen, setup.batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_state_is_donated(setup):
    assert_donated(setup, "fused")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"guidance_scale": 1.0}, {"timesteps_per_iteration": 0}, {"pretraining_weight": 0.0}],
    ids=["no guidance", "pretraining only", "no pretraining"],
)
def test_variants_fused_and_split(build, changes):
    setup = build(**changes)
    fused, fused_metrics = setup.run("fused")
    split, split_metrics = setup.run("split")
    updates = {"timesteps_per_iteration": 1, "pretraining_weight": 4}.get(*changes, UPDATES)
    for metrics in (*fused_metrics, *split_metrics):
        assert metrics["loss"].shape == (updates,)
        assert metrics["reward_mean"].shape == (2,)
    # The parameters moved by far more than they may differ; Adam moves them 3e-4 an update at most.
    assert largest_difference(fused[-1].params, fused[0].params) > 10 * TOLERANCE
    assert largest_difference(fused[-1].params, split[-1].params) <= TOLERANCE


@pytest.mark.slow
def test_ratio_is_one_at_unchanged_parameters(setup):
    state = setup.state()
    before = jax.device_get(state.params)
    state.optimizer_state.hyperparams["learning_rate"] *= 0
    state, metrics = setup.step("fused")(state, setup.frozen, setup.batch)
    assert largest_difference(before, jax.device_get(state.params)) == 0
    # The last update is pretraining's, without a ratio.
    assert metrics["ratio_error"].shape == (UPDATES,)
    assert metrics["ratio_error"].max() < RATIO_ERROR
    assert metrics["largest_ratio_error"].max() < 1e-5
    np.testing.assert_array_equal(metrics["clip_fraction"], 0)


@pytest.mark.slow
def test_xl_is_trained_by_the_same_step(build):
    setup = build(tasks=1, xl=True, devices=2, update_microbatch=2, sample_microbatch=2)
    states, metrics = setup.run("split", iterations=1)
    assert metrics[0]["ratio_error"][0] < RATIO_ERROR
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[1].params, states[0].params)
    # The pooled text and the sizes enter through this layer, the text of both encoders by that.
    assert moved["add_embedding"]["linear_1"]["kernel"] > 1e-6
    attention = moved["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn2"]
    assert attention["to_k"]["kernel"] > 1e-6


@pytest.mark.slow
def test_xl_fused_and_split(build):
    setup = build(xl=True)
    fused, split = setup.run("fused")[0][-1].params, setup.run("split")[0][-1].params
    assert largest_difference(fused, split) <= TOLERANCE


def test_average_follows_the_parameters(reference):
    states, _ = reference
    average = states[0].params
    for state in states[1:]:
        average = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, average, state.params)
        assert largest_difference(state.ema_params, average) <= 1e-7
        assert state.evaluation_params is state.ema_params


def test_iterations_draw_different_noise_and_runs_the_same(setup, reference):
    states, metrics = reference
    assert [int(state.step) for state in states] == [0, 1, 2]
    again = setup.step("fused")(setup.state(), setup.frozen, setup.batch)[1]
    np.testing.assert_array_equal(again["reward_mean"], metrics[0]["reward_mean"])
    assert np.abs(metrics[0]["reward_mean"] - metrics[1]["reward_mean"]).min() > 1e-3


def test_a_task_without_finite_rewards_changes_nothing(setup, reference):
    offsets = setup.batch.reward_inputs[0]["offset"]
    inputs = ({"offset": offsets * np.nan}, setup.batch.reward_inputs[1])
    _, metrics = setup.step("fused")(
        setup.state(), setup.frozen, setup.batch.replace(reward_inputs=inputs)
    )
    np.testing.assert_array_equal(metrics["invalid_rewards"], [8, 0])
    np.testing.assert_array_equal(metrics["gradient_norm"][:2], 0)
    np.testing.assert_array_equal(metrics["loss"][:2], 0)
    assert (metrics["gradient_norm"][2:] > 0).all()
    np.testing.assert_array_equal(reference[1][0]["invalid_rewards"], [0, 0])


@pytest.mark.slow
def test_training_raises_the_reward(build):
    setup = build(
        tasks=1,
        batch_size=64,
        pretraining_weight=0.0,
        optimizer=optax.adamw(5e-3),
        guidance_scale=1.0,
    )
    metrics = setup.run("split", iterations=20)[1]
    rewards = [row["reward_mean"][0] for row in metrics]
    # The first iteration's samples are the untrained model's; prompts are the same in all, so that
    # the scatter of the last rewards is that of the noise drawn.
    assert np.mean(rewards[-5:]) > rewards[0] + 4 * np.std(rewards[-5:], ddof=1)


@pytest.mark.slow
def test_a_schedule_that_ends_in_noise_alone_is_trained(build):
    """Its first step is from an alpha_bar of 0."""
    scheduler = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    setup = build(tasks=1, scheduler=scheduler, devices=2, timesteps_per_iteration=3)
    assert setup.parts["process"].alpha_bar[0] == 0
    states, metrics = setup.run("fused", iterations=1)
    assert all(np.isfinite(value).all() for value in metrics[0].values())
    assert metrics[0]["ratio_error"][0] < RATIO_ERROR
    assert largest_difference(states[1].params, states[0].params) > 10 * TOLERANCE
