"""Diffusion-DPO on pairs against PyTorch, and as a method of a config."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks, planning
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.monitoring.progress import PhaseTimer
from tests.algorithms import toy
from tests.data.test_pairs import columns


def test_the_loss_is_that_of_diffusers_script():
    """-log sigmoid(-beta / 2 (model's difference - reference's)), by PyTorch."""
    made = toy.method(toy.make("dpo_offline", **{"algorithm.dpo_offline.beta": 20.0}).config)
    rng = np.random.default_rng(0)
    output, target, base = rng.standard_normal((3, 6, 2, 2, 3)).astype(np.float32)
    shown = types.SimpleNamespace(own={"target": target, "base": base})
    loss = lambda output: made(output[:, None], shown, True)[0].mean()
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(output))
    tensor = torch.from_numpy(output).requires_grad_()
    error = lambda one: ((one - torch.from_numpy(target)) ** 2).mean((1, 2, 3))
    of_pairs = lambda errors: errors[::2] - errors[1::2]
    difference = of_pairs(error(tensor)) - of_pairs(error(torch.from_numpy(base)))
    total = -torch.nn.functional.logsigmoid(-10.0 * difference).mean()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)
    np.testing.assert_array_equal(made(output[:, None], shown, True)[1]["preferred"][::2],
                                  difference.detach().numpy() < 0)  # fmt: skip


def test_a_pair_shares_its_time_and_its_noise(hasty):
    """And no two pairs do. All are noised as in diffusers."""
    changes = {"noises": 2, "text_dropout": 0.0}
    made = toy.make("dpo_offline", **{f"algorithm.dpo_offline.{k}": v for k, v in changes.items()})
    phases, pictures = made.algorithm.phases(), made.batch.pairs
    samples = phases.sample(made.state.params, made.frozen, made.batch.input_ids, 0)
    rewards = phases.score(made.frozen, samples, made.batch.reward_inputs)
    arguments = made.state.params, made.frozen, samples, rewards, made.batch, 0, {}
    prepared = jax.jit(phases.prepare)(*arguments)
    examples = jax.device_get(prepared.examples)
    np.testing.assert_array_equal(examples.times[:, ::2], examples.times[:, 1::2])
    noise = examples.own["target"]
    np.testing.assert_array_equal(noise[:, ::2], noise[:, 1::2])
    assert len(np.unique(noise[:, ::2, 0, 0, 0])) == 16
    theirs = DDIMScheduler(**NOISE_SCHEDULE)
    for update in range(2):
        tensors = map(torch.tensor, (pictures["latent_mean"], noise[update]))
        expected = theirs.add_noise(*tensors, torch.tensor(examples.times[update]).long())
        np.testing.assert_allclose(examples.latents[update], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(prepared.text[0, :, 0], pictures["input_ids"][:, 0] / 10)
    assert not prepared.metrics and examples.text.tolist() == [0, 0]


def test_some_pairs_lose_their_caption(hasty):
    """Both pictures of a pair, and about as many pairs as asked for."""
    texts = {}
    for dropout in (0.0, 0.5, 1.0):
        made = toy.make("dpo_offline", **{"algorithm.dpo_offline.text_dropout": dropout})
        phases, arguments = made.algorithm.phases(), (made.state.params, made.frozen)
        samples = phases.sample(*arguments, made.batch.input_ids, 0)
        rewards = phases.score(made.frozen, samples, made.batch.reward_inputs)
        prepare = jax.jit(phases.prepare)
        prepared = prepare(*arguments, samples, rewards, made.batch, 0, {})
        texts[dropout] = np.asarray(prepared.text[0, :, 0])
    assert len(np.unique(texts[1.0])) == 1
    lost = (texts[0.5] == texts[1.0]).reshape(-1, 2)
    kept = (texts[0.5] == texts[0.0]).reshape(-1, 2)
    np.testing.assert_array_equal(lost, ~kept)
    np.testing.assert_array_equal(lost[:, 0], lost[:, 1])
    assert lost.any() and kept.any()


def test_pairs_are_learned_from_without_guidance(hasty):
    """Beside the pretraining loss, which has a pass for the empty prompt, too."""
    changes = {"sampler.guidance_scale": 7.0, "pretraining.weight": 1.0}
    guided, plain = toy.make("dpo_offline", **changes), toy.make("dpo_offline")
    found = []
    for made in (guided, plain):
        batch = dataclasses.replace(made.batch, pretraining=made.batch.pairs)
        state, _ = made.step(made.state, made.frozen, batch)
        phases, arguments = made.algorithm.phases(), (made.state.params, made.frozen)
        samples = phases.sample(*arguments, batch.input_ids, 0)
        rewards = phases.score(made.frozen, samples, batch.reward_inputs)
        prepared = jax.jit(phases.prepare)(*arguments, samples, rewards, batch, 0, {})
        found.append((state, prepared.examples.own["base"]))
    assert int(found[0][0].step) == 1
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.fixture
def of_pairs(make_config, tmp_path):
    """A config that learns from 20 pairs, of 16 pictures at a time on eight devices."""
    rows = [0, 2, 3, 5] * 5
    pq.write_table(pa.table(columns(rows)), tmp_path / "pairs.parquet")

    def make(**changes):
        pairs = {"algorithm.dpo_offline.pairs": str(tmp_path / "pairs.parquet")}
        named = {
            "algorithm.name": "dpo_offline",
            "batch_size": 16,
            "algorithm.dpo_offline.beta": 5.0,
        }
        return make_config(**named | pairs | changes)

    return make


def test_wrong_pairs_are_told_of_before_pictures_are_drawn(of_pairs, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    config = of_pairs(**{"algorithm.dpo_offline.pairs": str(tmp_path / "empty")})
    config.pretraining.update(weight=1.0, pictures="base:16")
    made = experiments.build(planning.resolve(config)[0])
    monkeypatch.setattr(experiments, "load_pictures", lambda *_: pytest.fail("they were drawn"))
    with pytest.raises((FileNotFoundError, ValueError), match="holds no .*parquet"):
        made.with_pictures(str(tmp_path / "cache"))


def test_pairs_are_not_taken_apart(of_pairs):
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of 16, whole pairs"):
        checks.check(planning.resolve(of_pairs(batch_size=8))[0], make_mesh())
    config, _ = planning.resolve(of_pairs(batch_size=32))
    config.microbatch.train = 1
    with pytest.raises(ValueError, match="microbatch.train=1 must be even"):
        checks.check(config, make_mesh())
    with pytest.raises(ValueError, match="pairs is empty: name a parquet file"):
        experiments.build(planning.resolve(of_pairs(**{"algorithm.dpo_offline.pairs": ""}))[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("execution", "changes"),
    [
        ("split", {"batch_size": 32, "microbatch.train": 2, "mesh.fsdp": 2}),
        ("fused", {"lora.rank": 2, "sampler.guidance_scale": 2.0}),
        ("split", {"pretraining.weight": 1.0, "pretraining.pictures": "base:16"}),
    ],
)
def test_it_is_a_method_of_a_config(of_pairs, tmp_path, execution, changes):
    """The chosen pictures of a few pairs become likelier than at the start; nothing is drawn."""
    config, _ = planning.resolve(of_pairs(**changes))
    made = experiments.build(config).with_pictures(str(tmp_path / "cache"))
    state, found = made.init_state(), []
    step = make_train_step(made.algorithm, made.abstract_state(), execution, PhaseTimer())
    batch = made.batch(0)
    ids = np.asarray(batch.pairs["input_ids"])
    np.testing.assert_array_equal(ids[::2], ids[1::2])
    for _ in range(8):
        state, metrics = step(state, made.frozen, batch)
        found.append(jax.device_get(metrics))
    assert "reward_mean" not in found[0]
    losses = [metrics["loss"][0] for metrics in found]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-4)
    assert np.isfinite(losses).all() and min(losses[4:]) < losses[0]
    summary = made.algorithm.summary(found[0], made.task_names)
    assert summary["pairs/gradient_norm"] > 0
