"""Says by which numbers an iteration's samples are drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The numbers by which an iteration's samples are drawn.

    Their defaults are in `experiments/config.py`.

    Attributes:
      seed: the run's seed.
      eta: how much noise the chain's steps add, as in `rollout`.
      guidance_scale: the scale of classifier-free guidance, as in `rollout`.
      steps_kept: K, for how many steps of each chain the latents before and after are kept.
      late_steps: these K are drawn among so many last steps of the chain, whether or not they have
        noise, and are kept in the chain's order; 0 draws them among all steps that have noise.
      sample: how many samples each device draws at a time; 0 means all at once.
      decode: how many samples each device decodes at a time; 0 means all at once.
      score: how many samples each device scores at a time; 0 means all at once.
      differentiate: of how many samples each device differentiates the rewards at a time, where a
        method learns from their gradients; 0 means all at once.
      noise_groups: for each task, how many neighbours in the batch are trained on the same steps
        and share all noise except that of these steps; 1 means that none do. Empty means 1 for all
        tasks.
      window: in how many consecutive steps of its chain a sample has noise, and may be trained on;
        0 is all.
      window_groups: for each task, how many neighbours in the batch have one window.
      keeps_latents: whether the final latents are trained on, too.
      from_base: whether the samples are drawn by the model that training started from, whatever has
        been learned since.
      draws: whether there are samples at all. A method that learns from pictures alone has none.
      branches: into how many parts a task's groups are split, each of which is trained on one step,
        up to which a group's chain is drawn once; see `learning/branching.py`. 0 draws every sample
        by itself.
    """

    seed: int
    eta: float
    guidance_scale: float
    steps_kept: int
    sample: int = 0
    decode: int = 0
    score: int = 0
    differentiate: int = 0
    noise_groups: tuple[int, ...] = ()
    window: int = 0
    window_groups: tuple[int, ...] = ()
    keeps_latents: bool = False
    from_base: bool = False
    late_steps: int = 0
    draws: bool = True
    branches: int = 0
