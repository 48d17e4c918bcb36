"""The update's gradient against one written from the paper's equations for a single sample."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusers import DDIMScheduler

from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.gradient import Learner
from diffusionrl_jax.learning.state import TRAILING, TrainState
from diffusionrl_jax.models.lora import Lora

STEPS, STEP = 5, 2


@pytest.fixture(scope="module")
def alphas():
    """(timestep, alpha_bar at it, alpha_bar where the step leads) as diffusers has them."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(STEPS)
    timestep = int(scheduler.timesteps[STEP])
    alpha_bar = scheduler.alphas_cumprod.numpy()
    return timestep, alpha_bar[timestep], alpha_bar[timestep - 1000 // STEPS]


@pytest.fixture(
    scope="module",
    params=[pytest.param(1.0, marks=pytest.mark.slow), 3.0],
    ids=["unguided", "guided"],
)
def case(request, build, alphas):
    """(update function, loss functions of the equations, arrays) for one sample of one device."""
    guidance_scale = request.param
    setup = build(
        tasks=1,
        batch_size=1,
        devices=1,
        steps=STEPS,
        guidance_scale=guidance_scale,
        optimizer=optax.sgd(1.0),
        clip_range=0.1,
        ema_decay=0.0,
        text_dropout=0.2,
    )
    model = setup.algorithm.experience.model
    timestep, alpha, alpha_previous = alphas
    passes = setup.passes
    rng = np.random.default_rng(2)
    latents, following, target = rng.standard_normal((3, 1, 4, 4, 4)).astype(np.float32)
    text = rng.standard_normal((passes, 4, 16)).astype(np.float32)

    def network(params, latents):
        """Every text with latents of its own, all alike: nothing is shared."""
        times = jnp.full(passes, timestep)
        return model.denoise(params, jnp.repeat(latents, passes, axis=0), times, jnp.asarray(text))

    def step(params):
        """Eqs. 2-5 by hand: mean and deviation of the DDIM step with eta 1."""
        output = network(params, latents)
        noise = output[0]
        if passes == 2:
            noise = output[1] + guidance_scale * (output[0] - output[1])
        clean = (latents[0] - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
        mean = alpha_previous**0.5 * clean + (1 - alpha_previous - variance) ** 0.5 * noise
        return mean, variance**0.5

    def log_prob(params):
        """The step's density, averaged."""
        return jax.scipy.stats.norm.logpdf(following[0], *step(params)).mean()

    def surrogate(params, old_log_prob, advantage):
        """Eq. 7, and the log-probability."""
        log_probability = log_prob(params)
        ratio = jnp.exp(log_probability - old_log_prob)
        loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.9, 1.1) * advantage)
        return loss, log_probability

    def pretraining(params):
        """Eqs. 8-9, with the weight 0.5; where both texts are there, expected over the dropout."""
        errors = ((network(params, latents) - target) ** 2).mean((1, 2, 3))
        return 0.5 * (errors[0] if passes == 1 else 0.8 * errors[0] + 0.2 * errors[1])

    def to_base(params, reference):
        """-A times the ratio 1's gradient, and 0.3 times DPOK's KL to another step's mean."""
        mean, std = step(params)
        divergence = ((mean - reference) ** 2).mean() / (2 * std**2)
        log_probability = log_prob(params)
        ratio = jnp.exp(log_probability - jax.lax.stop_gradient(log_probability))
        return -2.0 * ratio + 0.3 * divergence, divergence

    equations = jax.jit(jax.value_and_grad(surrogate, has_aux=True))
    policy_update = Examples(
        latents=latents,
        times=np.full(1, timestep, np.int32),
        text=np.int32(0),
        weight=np.float32(1),
        objective=np.int32(0),
        objectives=(0, 1),
        own={
            "target": following,
            "step_index": np.full(1, STEP, np.int32),
            "old_log_prob": np.zeros(1, np.float32),
            "advantages": np.ones(1, np.float32),
        },
    )
    pretraining_update = policy_update.replace(
        own=policy_update.own | {"target": target},
        weight=np.float32(0.5),
        objective=np.int32(1),
    )
    balanced = setup.changed(numbers={"balance_timesteps": True}).algorithm
    return {
        "balanced_loss": jax.jit(
            lambda params, update, text: balanced.loss(params, setup.frozen.base, update, text)
        ),
        "to_base": jax.jit(jax.value_and_grad(to_base, has_aux=True)),
        "setup": setup,
        "frozen": setup.frozen,
        "params": setup.params,
        "state": setup.state(),
        "text": text[None, None],
        "update": jax.jit(
            lambda state, update, text: setup.algorithm.update(state, setup.frozen, update, text)
        ),
        "log_prob": np.asarray(equations(setup.params, 0.0, 1.0)[0][1]),
        "surrogate": equations,
        "pretraining": jax.jit(jax.value_and_grad(pretraining)),
        "policy_update": policy_update,
        "pretraining_update": pretraining_update,
    }


def with_own(example, **own):
    return example.replace(own=example.own | own)


def assert_same_gradient(case, state, metrics, value, gradient):
    """Gradient descent with rate 1 shows the gradient, to the parameters' rounding."""
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), case["params"], state.params)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(largest, 1))
    norm = optax.global_norm(gradient)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    return largest


@pytest.mark.parametrize("advantage", [1.5, -0.5])
@pytest.mark.parametrize("log_ratio", [0.0, 0.05, -0.05])
def test_policy_gradient_inside_the_clip_range(case, advantage, log_ratio):
    old = case["log_prob"] - np.float32(log_ratio)
    update = with_own(
        case["policy_update"], old_log_prob=old[None], advantages=np.full(1, advantage, np.float32)
    )
    state, metrics = case["update"](case["state"], update, case["text"])
    (value, _), gradient = case["surrogate"](case["params"], old, advantage)
    assert assert_same_gradient(case, state, metrics, value, gradient) > 1e-3
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    np.testing.assert_allclose(metrics["ratio"], np.exp(log_ratio), rtol=1e-4)


@pytest.mark.parametrize(("log_ratio", "advantage"), [(0.2, 1.0), (-0.2, -1.0)])
def test_no_gradient_beyond_the_clip_range(case, log_ratio, advantage):
    old = case["log_prob"] - np.float32(log_ratio)
    update = with_own(
        case["policy_update"], old_log_prob=old[None], advantages=np.full(1, advantage, np.float32)
    )
    state, metrics = case["update"](case["state"], update, case["text"])
    assert metrics["gradient_norm"] == 0
    assert metrics["clip_fraction"] == 1


def test_balanced_timesteps_divide_the_log_ratio(case, alphas):
    _, alpha, alpha_previous = alphas
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    slope = (1 - alpha_previous - variance) ** 0.5 - (alpha_previous * (1 - alpha) / alpha) ** 0.5
    old = case["log_prob"] - np.float32(0.05)
    # Of a disadvantage, a ratio above 1 is not clipped.
    update = with_own(
        case["policy_update"], old_log_prob=old[None], advantages=np.full(1, -1.0, np.float32)
    )
    _, metrics = case["balanced_loss"](case["params"], update, case["text"][0])
    expected = np.exp(0.05 * variance**0.5 / abs(slope))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    # What is logged is of the policy itself.
    np.testing.assert_allclose(metrics["ratio"], np.exp(0.05), rtol=1e-4)
    np.testing.assert_allclose(metrics["largest_ratio_error"], np.expm1(0.05), rtol=1e-3)
    np.testing.assert_allclose(metrics["approximate_kl"], 0.05**2 / 2, rtol=1e-3)


@pytest.mark.slow
def test_gradient_of_the_kl_to_the_base_model(case):
    algorithm = case["setup"].changed(numbers={"kl_weight": 0.3}).algorithm
    update = jax.jit(
        lambda state, update, text: algorithm.update(state, case["frozen"], update, text)
    )
    reference = np.random.default_rng(5).standard_normal((1, 4, 4, 4)).astype(np.float32)
    of_policy = with_own(
        case["policy_update"],
        old_log_prob=case["log_prob"][None],
        advantages=np.full(1, 2.0, np.float32),
        reference_mean=reference,
    )
    state, metrics = update(case["state"], of_policy, case["text"])
    (value, divergence), gradient = case["to_base"](case["params"], reference[0])
    assert assert_same_gradient(case, state, metrics, value, gradient) > 1e-3
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl_to_base"], divergence, rtol=1e-4)
    # Pretraining pictures have none.
    of_pictures = with_own(case["pretraining_update"], reference_mean=reference)
    state, metrics = update(case["state"], of_pictures, case["text"])
    value, gradient = case["pretraining"](case["params"])
    assert_same_gradient(case, state, metrics, value, gradient)
    assert metrics["kl_to_base"] == 0


def test_pretraining_gradient(case):
    state, metrics = case["update"](case["state"], case["pretraining_update"], case["text"])
    value, gradient = case["pretraining"](case["params"])
    assert assert_same_gradient(case, state, metrics, value, gradient) > 1e-3
    np.testing.assert_allclose(0.5 * metrics["loss"], value, rtol=1e-5)
    assert metrics["largest_ratio_error"] == 0


def test_lora_factors_get_the_kernels_gradient_by_the_chain_rule(case):
    lora = Lora(rank=2, alpha=1.0, targets=("attn1.to_q", "conv_in"))
    rng = np.random.default_rng(4)
    draw = lambda leaf: np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32)
    factors = jax.tree.map(draw, jax.eval_shape(lambda: lora.init(case["params"], seed=0)))
    algorithm = case["setup"].changed(lora=lora).algorithm
    arguments = factors, case["params"], case["pretraining_update"], case["text"][0]
    gradients, _ = jax.jit(jax.grad(algorithm.loss, has_aux=True))(*arguments)
    _, kernels = case["pretraining"](lora.merge(case["params"], factors))
    query = ("mid_block", "attentions_0", "transformer_blocks_0", "attn1", "to_q")
    for path in (query, ("conv_in",)):
        trained, ours, theirs = factors, gradients, kernels
        for name in path:
            trained, ours, theirs = trained[name], ours[name], theirs[name]
        down, up = (trained[name]["kernel"] for name in ("lora_A", "lora_B"))
        theirs = np.asarray(theirs["kernel"])
        into_down = 0.5 * theirs @ up.reshape(up.shape[-2:]).T
        into_up = 0.5 * down.reshape(-1, 2).T @ theirs.reshape(-1, theirs.shape[-1])
        for name, expected in (("lora_A", into_down), ("lora_B", into_up.reshape(up.shape))):
            largest = np.abs(expected).max()
            assert largest > 1e-5
            np.testing.assert_allclose(ours[name]["kernel"], expected, atol=1e-4 * largest)


@pytest.mark.parametrize(
    ("decay", "decays"), [((0.25, 0.1, 0.4), (0.35, 0.4, 0.4)), ((0.0, 0.0, 0.9), (0.0, 0.0, 0.0))]
)
def test_a_follower_moves_less_and_less(decay, decays):
    """The decay begins at the first number, and stops growing at the last."""
    learner = Learner(optax.identity(), 0.0, 0, None, follower_decay=decay)
    value, follower = np.float32(3.0), 1.0
    state = TrainState(0, value, (), None, {TRAILING: np.float32(follower)})
    for expected in decays:
        state = learner.finish(state)
        follower = expected * follower + (1 - expected) * 3.0
        np.testing.assert_allclose(state.memory[TRAILING], follower, rtol=1e-6)
