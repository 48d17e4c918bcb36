"""Every field of an experiment: the settings of the paper (arXiv 2401.12244, Appendix A, Table 6).

A config is one file with a `get_config()`; any field can be overridden on the command line, as
`--config.optimizer.learning_rate=1e-5`. A field that is not here is an error.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError

POLICY_GRADIENT = ("timesteps_per_iteration", "clip_range", "balance_timesteps", "kl_weight")
# What runs did before there was such a field.
BEFORE = {
    "algorithm": {"policy_gradient": {"kl_weight": 0.0}},
    "lora": {"rank": 0},
    "mesh": {"split_frozen": True, "gather": "whole"},
    "microbatch": {"score": 0},
}


def get_config() -> Config:
    """The paper's settings, without a model, tasks and evaluation."""
    config: Config = ml_collections.ConfigDict()
    config.seed = 0
    # A diffusers folder: a path, gs://, a Hugging Face hub id, or asset:emoji/stable_diffusion.
    config.model = ""
    config.dtype = "float32"  # what the denoiser computes in: float32 or bfloat16
    config.iterations = 1000

    # DDIM, Sec. 4.1. Guidance is on in the training forward pass too; 1 turns it off.
    config.sampler = ml_collections.ConfigDict()
    config.sampler.steps = 50
    config.sampler.eta = 1.0
    config.sampler.guidance_scale = 7.0
    # Of the pictures, in pixels; 0 is what the model was trained for. Both or none.
    config.sampler.height = 0
    config.sampler.width = 0

    # Samples per task and iteration over all devices.
    config.batch_size = 2048
    config.advantage_clip = 10.0

    # The method: the name of one of those below, each of which has its own fields.
    config.algorithm = ml_collections.ConfigDict()
    config.algorithm.name = "policy_gradient"
    # Algorithm 1, Eq. 7.
    config.algorithm.policy_gradient = ml_collections.ConfigDict()
    config.algorithm.policy_gradient.timesteps_per_iteration = 5  # K, of each sample
    config.algorithm.policy_gradient.clip_range = 1e-4
    # Whether log-ratios are divided by how strongly the denoiser's output moves their timestep's.
    config.algorithm.policy_gradient.balance_timesteps = False
    # Of the KL to the base model at the steps trained on, beside the policy's loss; 0 is none.
    config.algorithm.policy_gradient.kl_weight = 0.0
    # The denoising loss of a model's own samples, weighted by their rewards.
    config.algorithm.reward_weighted = ml_collections.ConfigDict()
    config.algorithm.reward_weighted.weighting = "min_max"  # or softmax, best (of each prompt's)
    config.algorithm.reward_weighted.temperature = 1.0  # of the softmax
    config.algorithm.reward_weighted.noises = 5  # updates per task and iteration
    config.algorithm.reward_weighted.from_base = True  # who draws: the base model, or the trained

    # DRaFT-LV: the gradient of the reward itself, by the denoiser's guess of the clean latents.
    config.algorithm.draft_lv = ml_collections.ConfigDict()
    config.algorithm.draft_lv.noises = 1  # updates per task and iteration
    # Between which shares of the training's times samples are noised before the guess.
    config.algorithm.draft_lv.least_time = 0.2
    config.algorithm.draft_lv.most_time = 0.6
    # DiffusionNFT: the denoising loss, towards good samples and away from bad ones.
    config.algorithm.nft = ml_collections.ConfigDict()
    config.algorithm.nft.noises = 1  # updates per task and iteration
    config.algorithm.nft.beta = 1.0  # how far good and bad policy are from the one that draws
    config.algorithm.nft.most_advantage = 5.0  # where advantages are clipped
    config.algorithm.nft.reference_weight = 1e-4  # of the distance to the base model's output
    # Samples are drawn by an average of the parameters; its decay grows with each iteration.
    config.algorithm.nft.decay_rate = 0.001
    config.algorithm.nft.largest_decay = 0.5
    # Advantage weighted matching: the policy gradient with the denoising loss as log-probability.
    config.algorithm.awm = ml_collections.ConfigDict()
    config.algorithm.awm.noises = 1
    config.algorithm.awm.clip_range = 1.0
    config.algorithm.awm.most_advantage = 5.0
    config.algorithm.awm.trailing_weight = 1.0  # of the distance to an average's output
    config.algorithm.awm.reference_weight = 1e-3
    config.algorithm.awm.decay_rate = 0.001  # of that average
    config.algorithm.awm.largest_decay = 0.3

    # Direct group preference optimisation: advantage times denoising loss, weighed by group.
    config.algorithm.dgpo = ml_collections.ConfigDict()
    config.algorithm.dgpo.noises = 1
    config.algorithm.dgpo.beta = 100.0  # how fast the weight of what is learned falls
    config.algorithm.dgpo.clip_range = 1e-4
    config.algorithm.dgpo.most_advantage = 5.0
    config.algorithm.dgpo.reference_weight = 0.02
    config.algorithm.dgpo.decay_rate = 0.001  # of the average that ratios are taken to
    config.algorithm.dgpo.largest_decay = 0.3
    # Diffusion-DPO on the best and the worst of each prompt's samples.
    config.algorithm.dpo = ml_collections.ConfigDict()
    config.algorithm.dpo.noises = 1
    config.algorithm.dpo.beta = 2000.0  # how strongly the base model holds
    config.algorithm.dpo.most_advantage = 5.0
    config.algorithm.dpo.reference_weight = 0.0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 2e-6
    # The learning rate rises from 0 in the first iterations, and falls to a tenth in the next.
    config.optimizer.warmup_iterations = 0
    config.optimizer.decay_iterations = 0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 1e-2
    config.optimizer.gradient_clip = 1.0  # largest norm; 0 does not clip
    config.ema_decay = 0.0  # per iteration; 0 keeps no average

    # Low-rank adaptation: only factors of these modules' kernels are trained and saved.
    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 0  # 0 trains all of the denoiser
    # A LoRA file, or its folder, to begin with: its factors are trained further where its rank and
    # targets are those of here, and merged into the denoiser where the rank here is 0.
    config.lora.start = ""
    config.lora.alpha = 16.0  # the factors' product is multiplied by alpha / rank
    config.lora.targets = ("to_q", "to_k", "to_v", "to_out.0")  # names' ends, as PyTorch has them

    # The pretraining loss, Eqs. 8-9. A weight of 0 leaves the step out.
    config.pretraining = ml_collections.ConfigDict()
    config.pretraining.weight = 1.0
    # base:8192 are so many that the base model draws of the tasks' prompts, once; else emoji,
    # tfds:NAME, array_record:FOLDER, or latents:FOLDER from cache_latents; docs/data.md.
    config.pretraining.pictures = ""
    config.pretraining.text_dropout = 0.1

    # name -> make_task(...); trained one after another (Algorithm 1), by their names' alphabet.
    config.tasks = ml_collections.ConfigDict()

    # Samples per device at a time; they bound the memory. 0 is chosen by the devices' number and
    # memory (`experiments/planning.py`); as many as a device has, or more, are all at once.
    config.microbatch = ml_collections.ConfigDict()
    config.microbatch.sample = 0
    config.microbatch.decode = 0
    config.microbatch.score = 0  # of whole groups
    config.microbatch.train = 0

    # Axes "data" and "fsdp"; "data" takes what is left of the devices.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.fsdp = 0  # over how many each large parameter is split; 0 is chosen
    # Whether "fsdp" splits the large parameters of text encoder, VAE and reward models, too.
    config.mesh.split_frozen = True
    # Whether an update brings the denoiser's split parameters together whole, or blocks, each where
    # it is used, so that no device holds all of them or of their gradient; auto is chosen.
    config.mesh.gather = "auto"
    config.execution = "auto"  # fused: one program an iteration; split: one a phase
    # With a host_reward: whether the next images are drawn while the last are scored. They are then
    # one update old when they are trained on; docs/rewards_of_your_own.md.
    config.overlap_scoring = True
    config.convolution = "xla"  # or taps: kernel gradients as matmuls, for XLA's CPU backend
    # What the backward pass recomputes: none, blocks or full; docs/memory.md has what each costs.
    config.remat = "auto"  # is chosen
    # Kernels for long self-attention: splash, Pallas' on TPUs, and cudnn on GPUs in bfloat16; auto:
    # the devices' own, else dot_product.
    config.attention = "auto"

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 50  # iterations
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1

    # Watched during training, never trained on.
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.every = 50  # iterations
    config.evaluation.seed = 1_000_003
    config.evaluation.sets = ml_collections.ConfigDict()  # name -> make_evaluation_set(...)
    config.evaluation.scorers = ml_collections.ConfigDict()  # name -> make_scorer(...)
    # "best" checkpoints are those with the largest sum of weight * "set/scorer".
    config.evaluation.best = ml_collections.ConfigDict()
    # Scorers by which evaluate.py sets a checkpoint's images head to head with the base model's.
    config.evaluation.head_to_head = ()
    return config


def of_earlier(values: Mapping[str, Any]) -> Config:
    """The config of a run of any earlier version, with the fields of now.

    This is the one place that knows what old configs lack, and how their fields were called.

    Args:
      values: what its config.json holds.

    Returns:
      All of it, with the present names.
    """
    values = dict(values)
    moved = {name: values.pop(name) for name in POLICY_GRADIENT if name in values}
    if "algorithm" not in values:
        values["algorithm"] = {"name": "policy_gradient", "policy_gradient": moved}
    config = get_config()
    for name, fields in BEFORE.items():
        config[name].update(fields)
    with config.unlocked(), config.ignore_type():  # `fields.check` knows what they may be.
        for name, value in values.items():
            # Tasks and evaluation have no defaults that could stand in for what is not there.
            if (
                name in config
                and name not in ("tasks", "evaluation")
                and isinstance(value, Mapping)
            ):
                config[name].update(ml_collections.ConfigDict(value))
            else:
                config[name] = ml_collections.ConfigDict({"value": value}).value
    return config


def make_scorer(reward: str, path: str = "", **options) -> Config:
    """A reward model, by its name in `diffusionrl_jax.rewards.REWARDS`.

    Args:
      reward: the name, or "package.module:Class" of your own; docs/rewards_of_your_own.md.
      path: its folder or Hugging Face hub id, or of a host_reward the function or address; empty
        for a reward without.
      **options: fields of the reward, such as `credit="leave_one_out"`.
    """
    return ml_collections.ConfigDict(
        {"reward": reward, "path": path, "options": ml_collections.ConfigDict(options)}
    )


def make_weighted_sum(**parts: tuple) -> Config:
    """A scorer that adds up others, each times its weight, on their own scales.

    Args:
      **parts: name=(from `make_scorer`, weight); a weight below 0 makes a penalty.
    """
    scorers = {name: scorer for name, (scorer, _) in parts.items()}
    weights = {name: float(weight) for name, (_, weight) in parts.items()}
    return make_scorer("weighted_sum", scorers=scorers, weights=weights)


def make_task(
    scorer: Config,
    prompts: str,
    group_size: int = 1,
    weight: float = 1.0,
    normalisation: str = "batch",
    shared_noise: bool = False,
    prompt_buffer: int = 32,
    prompt_min_count: int = 16,
    most_prompts: int = 4096,
) -> Config:
    """A task: what is drawn, and what it is rewarded by.

    Args:
      scorer: from `make_scorer`.
      prompts: a .txt, .jsonl or .parquet file (`gs://data/prompts.parquet?held_out=2000`), one on
        the Hugging Face hub (`hub:poloclub/diffusiondb/metadata.parquet`),
        `objects:train`, `occupations:all`, `emoji:pairs` and the like; see docs/data.md.
      group_size: images of each prompt, next to each other in the batch.
      weight: of the task's loss.
      normalisation: of the rewards: over the "batch", as in the paper (Eq. 10); less the mean of
        the "group" of images of one prompt; or by the mean and deviation of the last rewards of the
        same "prompt", as DDPO does, which suits prompts that come back often.
      shared_noise: whether the images of a prompt are trained on the same timesteps and share all
        noise but that of those, so that what they differ in is what is credited. Methods that train
        on no step of the chain draw all noise apart.
      prompt_buffer: how many rewards of a prompt are kept, for "prompt" alone, as the next two.
      prompt_min_count: with fewer rewards of a prompt, the batch's mean and deviation are used.
      most_prompts: how many different prompts may be kept apart.
    """
    return ml_collections.ConfigDict(
        {
            "scorer": scorer,
            "prompts": prompts,
            "group_size": group_size,
            "weight": weight,
            "normalisation": normalisation,
            "shared_noise": shared_noise,
            "prompt_buffer": prompt_buffer,
            "prompt_min_count": prompt_min_count,
            "most_prompts": most_prompts,
        }
    )


def add_tasks(config: Config, known: dict[str, Config], names: str) -> None:
    """Puts tasks into a config.

    Args:
      config: gets them.
      known: name -> from `make_task`.
      names: of those to train on, as in "compositionality,fairness".

    Raises:
      UserError: a name that is not known.
    """
    for name in names.split(","):
        if name not in known:
            raise UserError(f"There is no task {name!r}: choose from {', '.join(known)}.")
        config.tasks[name] = known[name]


def make_evaluation_set(
    prompts: str, images: int, scorers: tuple[str, ...], group_size: int = 1
) -> Config:
    """Images that are drawn and scored alike for every checkpoint.

    Args:
      prompts: as in `make_task`.
      images: how many.
      scorers: names in `config.evaluation.scorers`.
      group_size: images of each prompt.
    """
    return ml_collections.ConfigDict(
        {"prompts": prompts, "images": images, "scorers": scorers, "group_size": group_size}
    )
