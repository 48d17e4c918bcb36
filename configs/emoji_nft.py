"""The tasks of `configs/emoji.py` by NFT: fewer pictures, no noise, no step of a chain."""

import ml_collections

from configs import emoji


def get_config(tasks: str = ",".join(emoji.TASKS)) -> ml_collections.ConfigDict:
    """Preference, compositionality and fairness together, without noise and guidance.

    Args:
      tasks: the names of those to train on, as in `--config=configs/emoji_nft.py:fairness`.
    """
    config = emoji.get_config(tasks)
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
