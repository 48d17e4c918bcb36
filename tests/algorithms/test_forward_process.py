"""Losses on the forward process against PyTorch's automatic derivatives and closed forms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.algorithms.direct_preference import DPO
from diffusionrl_jax.algorithms.forward_process import (
    NFT,
    AdvantageWeighted,
    DiffusionNFT,
    GroupPreference,
)
from diffusionrl_jax.diffusion.flow_times import shifted
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rectified_flow import RectifiedFlow
from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks, planning
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.monitoring.progress import PhaseTimer
from tests.algorithms import toy

SHAPE = (6, 4, 8, 8)
SCHEDULE = {
    "epsilon": NOISE_SCHEDULE,
    "v_prediction": NOISE_SCHEDULE | {"prediction_type": "v_prediction"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
PREDICTIONS = list(SCHEDULE)


def objective(kind, prediction_type="epsilon", **changes):
    fields = {
        "weights": (1.0,),
        "noises": 1,
        "group_sizes": (3,),
        "most_advantage": 5.0,
        "reference_weight": 0.0,
    }
    process = make_process(SCHEDULE[prediction_type], 10)
    return kind(process, 7, 1.0, **fields | changes)


@pytest.fixture
def numbers():
    """Clean latents, their noise and what four denoisers say of them."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.standard_normal(SHAPE).astype(np.float32)
    times = np.array([3, 150, 420, 640, 880, 999], np.int32)
    advantages = np.array([1.0, -1.0, 0.0, -0.6, -0.2, 0.8], np.float32)
    return types.SimpleNamespace(
        clean=draw(), noise=draw(), output=draw(), old=draw(), base=draw(), trailing=draw(),
        times=times, advantages=advantages,
    )  # fmt: skip


def example(made, numbers, **changes):
    arrays = vars(numbers) | changes
    own = {name: arrays[name] for name in ("old", "base", "trailing", "advantages")}
    # Those of a flow are in thousands.
    is_flow = isinstance(made.process, RectifiedFlow)
    times = numbers.times / np.float32(1000) if is_flow else numbers.times
    arguments = numbers.clean, numbers.noise, times
    own |= {"group": np.array([0, 0, 0, 3, 3, 3]), "valid": np.ones(6, bool)}
    own["target"] = made.process.target(*arguments)
    latents = made.process.noise(*arguments)
    return types.SimpleNamespace(own=own, latents=latents, times=times)


def derivative(made, output, shown):
    """The gradient of the mean loss by the output, which stands for the network."""
    loss = lambda output: made(output[:, None], shown, True)[0].sum()
    return jax.value_and_grad(loss)(jnp.asarray(output))


def coefficients(times, prediction_type):
    """Of the clean latents and of the noise: the published schedule's or a flow's, in PyTorch."""
    if prediction_type == "flow":
        level = torch.from_numpy(times / np.float32(1000)).reshape(-1, 1, 1, 1)
        return 1 - level, level
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = torch.cumprod(1 - betas, 0)[torch.from_numpy(times).long()].reshape(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def errors_of_clean(predicted, numbers, prediction_type):
    """Of the clean latents that a prediction means, in PyTorch."""
    clean, noise = torch.from_numpy(numbers.clean), torch.from_numpy(numbers.noise)
    signal, sigma = coefficients(numbers.times, prediction_type)
    shown = signal * clean + sigma * noise
    if prediction_type == "flow":
        return shown - sigma * predicted - clean
    if prediction_type == "epsilon":
        return (shown - sigma * predicted) / signal - clean
    return signal * shown - sigma * predicted - clean


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(("beta", "error"), [(1.0, "clean"), (0.1, "clean"), (0.1, "output")])
def test_nft_is_the_papers(numbers, prediction_type, beta, error):
    """Eq. 11 of 2509.16117, by PyTorch, up to the factor that is documented."""
    changes = {"beta": beta, "error": error, "reference_weight": 0.01}
    made = objective(DiffusionNFT, prediction_type, **changes)
    target = torch.from_numpy(np.asarray(example(made, numbers).own["target"]))
    value, gradient = derivative(made, numbers.output, example(made, numbers))
    output = torch.from_numpy(numbers.output).requires_grad_()
    old, share = torch.from_numpy(numbers.old), (1 + torch.from_numpy(numbers.advantages)) / 2
    losses = []
    for mixed in ((1 - beta) * old + beta * output, (1 + beta) * old - beta * output):
        of_clean = error == "clean"
        off = errors_of_clean(mixed, numbers, prediction_type) if of_clean else mixed - target
        size = off.detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-5)
        losses.append((off**2 / size).mean((1, 2, 3)))
    loss = 5 / beta * (share * losses[0] + (1 - share) * losses[1])
    loss += 0.01 * ((output - torch.from_numpy(numbers.base)) ** 2).mean((1, 2, 3))
    total = loss.sum() * beta / 5
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    scale = output.grad.abs().max().item()
    np.testing.assert_allclose(gradient / scale, output.grad.numpy() / scale, atol=1e-4)


def target_of(tensors, prediction_type):
    """What the network should have said."""
    noise = tensors["noise"]
    return noise - tensors["clean"] if prediction_type == "flow" else noise


@pytest.mark.parametrize(
    ("prediction_type", "weighting"),
    [("epsilon", "none"), ("epsilon", "auto"), ("flow", "none"), ("flow", "auto")],
)
def test_awm_is_the_papers(numbers, prediction_type, weighting):
    """The clipped surrogate of -error, weighed or not, and the two distances, by PyTorch."""
    is_weighed = (prediction_type, weighting) == ("flow", "auto")
    clip = 0.08 if is_weighed else 0.2
    changes = {"clip_range": clip, "trailing_weight": 0.7, "reference_weight": 0.01}
    made = objective(AdvantageWeighted, prediction_type, **changes, weighting=weighting)
    value, gradient = derivative(made, numbers.output, example(made, numbers))
    tensors = {name: torch.from_numpy(array) for name, array in vars(numbers).items()}
    output = tensors["output"].requires_grad_()
    error = lambda one, other: ((one - other) ** 2).mean((1, 2, 3))
    target = target_of(tensors, prediction_type)
    errors = [error(of, target) for of in (tensors["old"], output)]
    if is_weighed:
        times = torch.from_numpy(numbers.times / np.float32(1000))
        errors = [4 * times * (of + 1e-10) ** 0.25 for of in errors]
    ratio = (errors[0] - errors[1]).exp()
    terms = tensors["advantages"] * ratio, tensors["advantages"] * ratio.clamp(1 - clip, 1 + clip)
    total = -torch.minimum(*terms) + 0.7 * error(output, tensors["trailing"])
    total = (total + 0.01 * error(output, tensors["base"])).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, output.grad.numpy(), atol=1e-6)
    assert 0 < (ratio.detach() - 1).abs().gt(clip).sum() < len(ratio)


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow"])
def test_dgpo_is_the_papers(numbers, prediction_type):
    """The group's weight and the clipped error of the released code's formula, in PyTorch."""
    near = numbers.output + 0.02 * numbers.trailing
    changes = {"beta": 2.0, "clip_range": 1e-3}
    made = objective(GroupPreference, prediction_type, **changes, reference_weight=0.02)
    value, gradient = derivative(made, numbers.output, example(made, numbers, trailing=near))
    tensors = {name: torch.from_numpy(array) for name, array in vars(numbers).items()}
    output, better = tensors["output"].requires_grad_(), 5 * tensors["advantages"]
    target = target_of(tensors, prediction_type)
    error = lambda one: ((one - target) ** 2).mean((1, 2, 3))
    terms = (better * 2.0 * (error(output).detach() - error(tensors["base"]))).reshape(2, 3)
    weight = terms.mean(1).sigmoid().repeat_interleave(3)
    ratio = (error(torch.from_numpy(near)) - error(output)).exp().detach()
    clipped = torch.where(better > 0, ratio > 1.001, ratio < 0.999)
    assert 0 < clipped.sum() < 6
    total = weight * better * torch.where(clipped, error(output).detach(), error(output))
    total = (total + 0.02 * ((output - tensors["base"]) ** 2).mean((1, 2, 3))).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    np.testing.assert_allclose(gradient, output.grad.numpy(), atol=1e-6)


def test_dgpo_takes_advantages_less_their_groups_mean(numbers):
    """Of samples that have a reward; the others are not learned from."""
    made = objective(GroupPreference, beta=2.0)
    shown = example(made, numbers)
    shown.own["valid"] = np.array([1, 1, 0, 1, 1, 1], bool)
    expected, _ = made(numbers.output[:, None], shown, True)
    assert expected[2] == 0 and np.count_nonzero(expected) == 5
    shown.own["advantages"] = numbers.advantages + np.float32([0.3] * 3 + [-0.5] * 3)
    found, _ = made(numbers.output[:, None], shown, True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_where_nothing_has_changed_all_is_advantage_weighted_matching(numbers, prediction_type):
    """Their gradients there are advantage * error's gradient, times a weight of each sample."""
    same = {"old": numbers.output, "trailing": numbers.output}
    error = 2 * (numbers.output - np.asarray(
        example(objective(AdvantageWeighted, prediction_type), numbers).own["target"]
    )) / np.prod(SHAPE[1:])  # fmt: skip
    expected = numbers.advantages[:, None, None, None] * error
    made = objective(AdvantageWeighted, prediction_type)
    _, gradient = derivative(made, numbers.output, example(made, numbers, **same))
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    # A group that is not preferred yet weighs half, and advantages are not divided.
    made = objective(GroupPreference, prediction_type)
    at_base = example(made, numbers, base=numbers.output, **same)
    _, gradient = derivative(made, numbers.output, at_base)
    np.testing.assert_allclose(gradient, 5.0 / 2 * expected, atol=1e-7)
    made = objective(DiffusionNFT, prediction_type, beta=0.3)
    _, gradient = derivative(made, numbers.output, example(made, numbers, **same))
    off = errors_of_clean(torch.from_numpy(numbers.output), numbers, prediction_type)
    size = off.abs().mean((1, 2, 3), keepdim=True).numpy()
    signal, sigma = (array.numpy() for array in coefficients(numbers.times, prediction_type))
    of_clean = sigma / signal if prediction_type == "epsilon" else sigma
    weighted = 0.3 * of_clean**2 / size * expected
    scale = np.abs(weighted).max()
    np.testing.assert_allclose(gradient / scale, weighted / scale, atol=2e-4)


def test_dgpo_learns_where_there_is_much_noise():
    """The seventh of ten steps is the last that is published, at 0.4, shifted by 3."""
    made = toy.make("dgpo")
    fields = made.config.algorithm.dgpo
    assert shifted(0.3, 3.0) < fields.least_time < shifted(0.4, 3.0)
    phases, state, batch = made.algorithm.phases(), made.state, made.batch
    samples = phases.sample(state.params, made.frozen, batch.input_ids, 0)
    rewards = phases.score(made.frozen, samples, batch.reward_inputs)
    arguments = samples.trained_on(), rewards, batch, 0, state.memory
    times = phases.prepare(state.params, made.frozen, *arguments).examples.times
    assert times.min() >= 1000 * fields.least_time - 1 and len(np.unique(times)) > 2


def test_refuses_a_group_of_one(make_config):
    config = make_config()
    NFT.check(config)
    with pytest.raises(
        ValueError, match="method dpo compares the images of a prompt: set the group"
    ):
        DPO.check(config)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("nft", {}, marks=pytest.mark.slow),
        pytest.param("awm", {"algorithm.awm.noises": 2}, marks=pytest.mark.slow),
        pytest.param(
            "nft", {"lora.rank": 2, "sampler.guidance_scale": 2.0}, marks=pytest.mark.slow
        ),
    ],
)
def test_it_is_a_method_of_a_config(make_config, name, changes):
    """By one flag; its averages follow, and what has been learned draws."""
    config = make_config(**{"algorithm.name": name, "sampler.eta": 0.0} | changes)
    config.algorithm[name].update(decay_rate=0.25)
    for task in config.tasks.values():
        task.shared_noise = True
    config, _ = planning.resolve(config)
    made = experiments.build(config)
    state = made.init_state()
    before = jax.tree.map(np.asarray, state.params)
    images = jax.jit(made.algorithm.phases().sample)(
        state.sampling_params, made.frozen, made.batch(0).input_ids, 0
    ).latents
    # Nothing is shared where no step of the chain is trained on.
    rows = np.asarray(images).reshape(-1, np.prod(images.shape[2:]))
    assert len(np.unique(rows.round(3), axis=0)) == len(rows)
    step = make_train_step(made.algorithm, made.abstract_state(), "split", PhaseTimer())
    state, metrics = step(state, made.frozen, made.batch(0))
    metrics = jax.device_get(metrics)
    assert metrics["gradient_norm"].min() > 0 and np.isfinite(metrics["loss"]).all()
    np.testing.assert_allclose(metrics["distance_to_old"][0], 0, atol=1e-6)
    follower = state.memory["drawing_params" if name == "nft" else "trailing_params"]
    assert (state.sampling_params is follower) == (name == "nft")
    # After one iteration the decay is 0.25.
    for old, new, average in zip(
        *map(jax.tree.leaves, (before, state.params, follower)), strict=True
    ):
        np.testing.assert_allclose(average, 0.25 * old + 0.75 * np.asarray(new), atol=1e-6)
    state, metrics = step(state, made.frozen, made.batch(1))
    assert metrics["distance_to_old"][0] > 0 or name == "awm"


@pytest.fixture
def in_groups(make_config):
    """A config of pairs, on eight devices with two pairs each."""

    def make(name, **changes):
        config = make_config(**{"algorithm.name": name, "batch_size": 32} | changes)
        config.tasks.small.update(group_size=2, normalisation="group")
        return config

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dgpo", "dpo"])
def test_groups_are_compared_within_microbatches(in_groups, name):
    """The same update a pair at a time, as all at once; each pair at one noise."""
    found = []
    for size in (2, 4):
        # So large an epsilon that Adam's steps are in proportion to gradients, however small.
        changes = {"microbatch.train": size, "optimizer.epsilon": 1.0}
        config, _ = planning.resolve(in_groups(name, **changes))
        made = experiments.build(config)
        state = made.init_state()
        before = jax.device_get(state.params)
        step = make_train_step(made.algorithm, made.abstract_state(), "split", PhaseTimer())
        state, metrics = step(state, made.frozen, made.batch(0))
        moved = jax.tree.map(lambda new, old: new - old, jax.device_get(state.params), before)
        found.append((moved, jax.device_get(metrics)))
    (moved, metrics), (others, same) = found
    assert metrics["gradient_norm"].min() > 0
    np.testing.assert_allclose(metrics["gradient_norm"], same["gradient_norm"], rtol=1e-4)
    # A mean of terms of either sign, of order one.
    np.testing.assert_allclose(metrics["loss"], same["loss"], atol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved))
    for one, other in zip(*map(jax.tree.leaves, (moved, others)), strict=True):
        np.testing.assert_allclose(one / largest, other / largest, atol=1e-3)


def test_microbatches_hold_whole_groups(in_groups):
    config = in_groups("dpo", dtype="bfloat16")
    devices = Devices(8, "TPU v5 lite", "tpu", 16e9)
    assert planning.choose(config, devices).division.train % 2 == 0
    config.update(dtype="float32")
    config.microbatch.train = 1
    with pytest.raises(ValueError, match="microbatch.train=1 must be a multiple of task small's"):
        checks.check(config, make_mesh())
    config.update_from_flattened_dict({"batch_size": 16, "microbatch.train": 0})
    config.tasks.small.group_size = 4
    with pytest.raises(ValueError, match="batch_size=16 must be a multiple of 32, whole groups"):
        checks.check(config, make_mesh())
