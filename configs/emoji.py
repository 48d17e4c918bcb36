"""The whole method in minutes on a laptop: three tasks at once in the emoji world.

Preference and compositionality learn by their rewards' own gradients (DRaFT-K), and fairness, whose
reward has none, by NFT. `configs/emoji_policy_gradient.py` is the same by the paper's own method.
"""

import ml_collections

from configs import emoji_policy_gradient


def get_config(tasks: str = ",".join(emoji_policy_gradient.TASKS)) -> ml_collections.ConfigDict:
    """Preference, compositionality and fairness together, without noise and guidance.

    Args:
      tasks: the names of those to train on, as in `--config=configs/emoji.py:fairness`.
    """
    config = emoji_policy_gradient.get_config(tasks)
    config.algorithm.name = "draft_k"
    # A run has tens of iterations, not thousands.
    config.algorithm.nft.decay_rate = 0.1
    # The other tasks move the policy, too: it is pulled back less beside what rewards move it.
    config.algorithm.nft.beta = 0.3
    # The gradients of the methods are of other sizes: with these weights each task has its share of
    # one step for all.
    config.optimizer.one_step = True
    for name, weight in {"preference": 3.0, "compositionality": 16.0, "fairness": 14.0}.items():
        if name in config.tasks:
            config.tasks[name].weight = weight
    if "fairness" in config.tasks:
        config.tasks.fairness.algorithm = "nft"
    config.iterations = 45
    config.sampler.eta = 0.0
    config.batch_size = 160
    config.optimizer.warmup_iterations = 3
    config.optimizer.decay_iterations = 50
    config.ema_decay = 0.9
    config.evaluation.every = config.checkpoint.every = 15
    return config
