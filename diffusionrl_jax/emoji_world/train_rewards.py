"""Trains the emoji world's reward models and its recogniser, as they are shipped.

    python -m diffusionrl_jax.emoji_world.train_rewards --output=FOLDER --vae=MODEL_FOLDER

This takes half an hour to an hour on 2 cores. docs/reward_models.md has the accuracies of the
shipped models.
"""

import jax
import numpy as np
import optax
from absl import app, flags, logging

from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.emoji_world import (
    reward_evaluation,
    reward_models,
    reward_objectives,
    reward_pictures,
)

OUTPUT = flags.DEFINE_string(
    "output", None, "Folder; each model gets its own in it.", required=True
)
REWARD = flags.DEFINE_multi_enum(
    "reward", list(reward_models.BUILDERS), list(reward_models.BUILDERS), "Which to train."
)
VAE = flags.DEFINE_string("vae", None, "Diffusers folder: half of the pictures go through its VAE.")
INIT = flags.DEFINE_string("init", None, "Start from the models in this folder.")
STEPS = flags.DEFINE_integer("steps", None, "Optimiser steps, in place of each model's own.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak, AdamW.")
POOL = flags.DEFINE_integer("pool", 40000, "Pictures drawn to train on.")
DECODED = flags.DEFINE_integer("decoded", 4096, "Of these, so many also through the VAE.")
TEST = flags.DEFINE_integer("test", 256, "Pictures of each kind to test on.")
SEED = flags.DEFINE_integer("seed", 0, "Of parameters and pictures.")
DEFAULT_STEPS = {
    "image_reward": 3000,
    "detection": 3500,
    "statistical_parity": 800,
    "recogniser": 2500,
}


def training_pools() -> list[reward_pictures.Pool]:
    """Draws the pictures to train on: pretraining pictures, more pairs, and even portraits.

    With a VAE there is a second pool of some of them as the VAE decodes them.
    """
    eighth = POOL.value // 8
    examples = reward_pictures.draw(SEED.value, 5 * eighth)
    examples += reward_pictures.draw(SEED.value + 1, 2 * eighth, reward_pictures.trained_pair)
    examples += reward_pictures.draw(SEED.value + 2, eighth, reward_pictures.even_portrait)
    order = np.random.default_rng(SEED.value).permutation(len(examples))
    examples = [examples[index] for index in order]
    pools = [reward_pictures.make_pool(examples)]
    if VAE.value:
        some = examples[: DECODED.value]
        images = reward_pictures.round_trips(VAE.value, pools[0].images[: len(some)], SEED.value)
        pools.append(reward_pictures.make_pool(some, images))
    return pools


def train(objective: reward_objectives.Objective, params: dict, pools, save, steps) -> None:
    """Minimises the objective with AdamW, and saves the model every 500 steps and at the end."""
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE.value, 50, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02)
    )

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(objective.loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for index in range(1, steps + 1):
        batch = objective.batch(np.random.default_rng((SEED.value, 2, index)), pools)
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        if index % 50 == 0:
            logging.info("step %d, loss %.4f", index, np.mean(losses[-50:]))
        if index % 500 == 0 or index == steps:
            save(jax.device_get(params["model"]))


def main(_):
    """Trains, saves and tests the chosen models."""
    pools = training_pools()
    tests = reward_evaluation.test_pools(TEST.value, VAE.value)
    for number, name in enumerate(REWARD.value):
        folder = as_path(OUTPUT.value, "--output") / name
        folder.mkdir(parents=True, exist_ok=True)
        objective, save = reward_models.BUILDERS[name](folder)
        params = jax.jit(objective.init)(jax.random.key(SEED.value + number))
        if INIT.value:
            source = as_path(INIT.value, "--init") / name
            params["model"] = reward_models.load_params(source, objective)
        count = sum(leaf.size for leaf in jax.tree.leaves(params["model"]))
        logging.info("%s: %d parameters", name, count)
        train(objective, params, pools, save, STEPS.value or DEFAULT_STEPS[name])
        for key, value in reward_evaluation.EVALUATIONS[name](folder, tests).items():
            logging.info("%s, %s: %.3f", name, key, value)


if __name__ == "__main__":
    app.run(main)
