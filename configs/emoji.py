"""The whole method in minutes on a laptop: three tasks at once in the emoji world, by NFT.

`configs/emoji_policy_gradient.py` is the same by the paper's own method.
"""

import ml_collections

from configs import emoji_policy_gradient


def get_config(tasks: str = ",".join(emoji_policy_gradient.TASKS)) -> ml_collections.ConfigDict:
    """Preference, compositionality and fairness together, without noise and guidance.

    Args:
      tasks: the names of those to train on, as in `--config=configs/emoji.py:fairness`.
    """
    config = emoji_policy_gradient.get_config(tasks)
    config.algorithm.name = "nft"
    # The UNet predicts noise, and a run has tens of iterations, not thousands.
    config.algorithm.nft.error = "output"
    config.algorithm.nft.decay_rate = 0.1
    # One by one, the tasks' updates are pulled back more than the rewards move them.
    config.optimizer.one_step = True
    config.iterations = 60
    config.sampler.eta = 0.0
    config.batch_size = 160
    config.optimizer.warmup_iterations = 3
    config.optimizer.decay_iterations = 66
    config.ema_decay = 0.9
    if "fairness" in config.tasks:
        config.tasks.fairness.weight = 2.5
    config.evaluation.every = config.checkpoint.every = 12
    return config
