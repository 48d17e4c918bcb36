"""Reward models are trained on pools of known pictures, by what PyTorch's AdamW would do."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.data.emoji import vocabulary
from diffusionrl_jax.emoji_world.reward_objectives import Objective
from tests.own_flags import program

NAME = "emoji_world.train_rewards"


def test_training_is_that_of_pytorchs_adamw():
    """Warmed up over 50 steps, then annealed by a cosine; gradients are clipped to a norm of 1."""
    steps, peak = 120, 0.05
    targets = lambda rng: rng.normal(2, 1, (4, 3)).astype(np.float32)
    loss = lambda level, batch: ((level - batch) ** 2).sum(1).mean()
    objective = Objective(
        init=lambda key: {"model": {"level": jnp.zeros(3)}},
        batch=lambda rng, pools: {"targets": targets(rng)},
        loss=lambda params, batch: loss(params["model"]["level"], batch["targets"]),
    )
    saved = []
    with program(NAME, "--output=x", f"--learning_rate={peak}", "--seed=4") as module:
        module.train(objective, objective.init(None), [], saved.append, steps)
    level = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.AdamW([level], betas=(0.9, 0.98), weight_decay=0.02)
    for step in range(steps):
        annealed = 0.5 * (1 + math.cos(math.pi * max(0, step - 50) / (steps - 50)))
        optimizer.param_groups[0]["lr"] = peak * min(step / 50, annealed)
        batch = torch.from_numpy(targets(np.random.default_rng((4, 2, step + 1))))
        optimizer.zero_grad()
        loss(level, batch).backward()
        torch.nn.utils.clip_grad_norm_([level], 1.0)
        optimizer.step()
    (found,) = saved  # At the end, which comes before step 500.
    np.testing.assert_allclose(found["level"], level.detach().numpy(), atol=1e-4)
    assert np.abs(found["level"]).min() > 0.5


@pytest.mark.parametrize("vae", ["", "a/folder"])
def test_pools_have_pictures_pairs_and_even_portraits(vae, monkeypatch):
    """Five, two and one of eight; with a VAE, some of them once more as it decodes them."""
    arguments = ["--output=x", "--pool=160", "--decoded=32", "--seed=3"]
    with program(NAME, *arguments, *([f"--vae={vae}"] if vae else [])) as module:
        decode = lambda folder, images, seed: 255 - images
        monkeypatch.setattr(module.reward_pictures, "round_trips", decode)
        pools = module.training_pools()
    assert [len(pool.images) for pool in pools] == ([160, 32] if vae else [160])
    if vae:
        np.testing.assert_array_equal(pools[1].images, 255 - pools[0].images[:32])
        assert pools[1].examples == pools[0].examples[:32]
    kinds = [example.kind for example in pools[0].examples]
    assert kinds.count("pair") >= 40 and kinds.count("portrait") >= 20
    assert kinds.count("single") >= 20
    # They are shuffled, so that each part of a pool has all kinds.
    assert len(set(kinds[:32])) == 3
    for example in pools[0].examples:
        if example.kind == "pair":
            assert not vocabulary.is_held_out_pair(*example.objects)
