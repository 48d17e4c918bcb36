"""Holds every field of an experiment, with the paper's settings (2401.12244, Appendix A, Table 6).

A config is one file with a `get_config()`. Any field can be overridden on the command line, as
`--config.optimizer.learning_rate=1e-5`. A field that is not here is an error.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from diffusionrl_jax.data.config_type import Config

POLICY_GRADIENT = ("timesteps_per_iteration", "clip_range", "balance_timesteps", "kl_weight")
# A method's present name by the earlier one, which is now that of the published method.
RENAMED = {"draft_lv": "reward_gradient"}
# The values that stand for what runs did before these fields existed.
BEFORE = {
    "algorithm": {
        "policy_gradient": {"kl_weight": 0.0},
        "awm": {"weighting": "none"},
        "dgpo": {"least_time": 0.0},
        "crd": {"first_decay": 0.0},
        "dpo_offline": {"text_dropout": 0.0},
    },
    "lora": {"rank": 0},
    "mesh": {"split_frozen": True, "gather": "whole"},
    "microbatch": {"score": 0, "differentiate": 0},
}


def get_config() -> Config:
    """Returns the paper's settings, without a model, tasks and evaluation."""
    config: Config = ml_collections.ConfigDict()
    config.seed = 0
    # A diffusers folder: a path, gs://, a Hugging Face hub id, or asset:emoji/stable_diffusion.
    config.model = ""
    config.dtype = "float32"  # The dtype in which the denoiser computes: float32 or bfloat16.
    config.iterations = 1000

    # Sampling is DDIM's, Sec. 4.1, or the flow's own for models of flow matching. Guidance is on in
    # training's forward passes too; 1 turns it off.
    config.sampler = ml_collections.ConfigDict()
    config.sampler.steps = 50
    config.sampler.eta = 1.0  # How much noise the steps add; 0 is the ODE.
    # How it is added. eta is DDIM's; for models of flow matching there are cps, Flow-CPS, and sde,
    # Flow-GRPO, whose a is the eta above.
    config.sampler.noise = "eta"
    # Training's chains have noise in so many consecutive steps alone, the same ones for all images
    # of a prompt, and are trained on there; 0 is noise at all steps, as where nothing is trained.
    config.sampler.window = 0
    # 2 is DPM-Solver++(2M), for models of flow matching and an eta of 0, which needs fewer steps.
    config.sampler.order = 1
    config.sampler.guidance_scale = 7.0
    # Of the pictures, in pixels; 0 is what the model was trained for. Both or none.
    config.sampler.height = 0
    config.sampler.width = 0
    # How many tokens of a prompt T5 reads, in models that have it; 0 is the pipeline's own number.
    config.sampler.text_tokens = 0
    # The scale of the guidance that FLUX.1 dev takes as an input, beside guidance_scale, which is 1
    # there; 0 is the usual one, 3.5.
    config.sampler.embedded_guidance = 0.0

    # How the times are drawn to which pictures or samples are noised: uniform or, for models of
    # flow matching alone, logit_normal, which auto takes for them, or steps, those of the chain.
    config.training_times = "auto"

    # The number of samples per task and iteration, over all devices.
    config.batch_size = 2048
    config.advantage_clip = 10.0

    # The method is one of those below, each of which has its own fields. A task may have another.
    config.algorithm = ml_collections.ConfigDict()
    config.algorithm.name = "policy_gradient"
    # The policy gradient of Algorithm 1, Eq. 7.
    config.algorithm.policy_gradient = ml_collections.ConfigDict()
    config.algorithm.policy_gradient.timesteps_per_iteration = 5  # K, for each sample.
    config.algorithm.policy_gradient.clip_range = 1e-4
    # Whether a log-ratio is divided by how strongly the denoiser's output moves it at its timestep.
    config.algorithm.policy_gradient.balance_timesteps = False
    # GRPO-Guard: whether a log-ratio's bias, which is below 0, is taken out before it is clipped.
    config.algorithm.policy_gradient.remove_ratio_bias = False
    # Flow-DPPO: above this divergence from the policy that drew it, a step is not moved further. It
    # takes the place of clipping; the paper has 1e-5, and 0 clips.
    config.algorithm.policy_gradient.most_divergence = 0.0
    # The weight of the KL to the base model, at the steps that are trained on; 0 means none.
    config.algorithm.policy_gradient.kl_weight = 0.0
    # With shared_noise, a prompt's images are drawn as one up to the step that they are trained on,
    # which is one of so many in each iteration and task; 0 draws each image by itself.
    config.algorithm.policy_gradient.shared_prefix = 0
    # Reward weighted training: the denoising loss of a model's samples, weighted by their rewards.
    config.algorithm.reward_weighted = ml_collections.ConfigDict()
    # It is min_max, softmax, or best, which takes each prompt's best sample alone.
    config.algorithm.reward_weighted.weighting = "min_max"
    config.algorithm.reward_weighted.temperature = 1.0  # The softmax's temperature.
    config.algorithm.reward_weighted.noises = 5  # Updates per task and iteration.
    # Whether the base model draws the samples, rather than the one that is trained.
    config.algorithm.reward_weighted.from_base = True
    # RAFT: the same with each prompt's best sample alone, drawn by the model that is trained.
    config.algorithm.raft = ml_collections.ConfigDict()
    config.algorithm.raft.noises = 5  # Updates per task and iteration.

    # The gradient of the reward itself, by a guess of the clean latents of samples noised anew.
    config.algorithm.reward_gradient = ml_collections.ConfigDict()
    config.algorithm.reward_gradient.noises = 1  # Updates per task and iteration.
    # Samples are noised, before the guess, to a time between these shares of the training's times.
    config.algorithm.reward_gradient.least_time = 0.2
    config.algorithm.reward_gradient.most_time = 0.6
    # ReFL: the gradient of the reward of a guess before one of the chain's last steps.
    config.algorithm.refl = ml_collections.ConfigDict()
    config.algorithm.refl.late_steps = 10  # The step is one of so many last ones, at random.
    config.algorithm.refl.enough = 2.0  # Rewards have no gradient from here on.
    config.algorithm.refl.scale = 1e-3
    # DRaFT-K: the gradient of the reward through the last steps of the chain.
    config.algorithm.draft_k = ml_collections.ConfigDict()
    config.algorithm.draft_k.steps = 1  # K; each is an update per task and iteration.
    # Whether each sample's number of steps is drawn, from 1 to K, as in AlignProp.
    config.algorithm.draft_k.random_steps = False
    # DRaFT-LV: the same through the last step, from samples that are noised to it anew, too.
    config.algorithm.draft_lv = ml_collections.ConfigDict()
    # So many times; with the chain's own last step they are updates per task and iteration.
    config.algorithm.draft_lv.noises = 2
    # DiffusionNFT: the denoising loss, towards good samples and away from bad ones.
    config.algorithm.nft = ml_collections.ConfigDict()
    config.algorithm.nft.noises = 1  # Updates per task and iteration.
    config.algorithm.nft.beta = 1.0  # How far good and bad policy are from the one that draws.
    # What errors are of: the clean latents, as published for flow matching, or the output.
    config.algorithm.nft.error = "clean"
    config.algorithm.nft.most_advantage = 5.0  # The largest absolute advantage.
    # The weight of the distance to the base model's output.
    config.algorithm.nft.reference_weight = 1e-4
    # Samples are drawn by an average of the parameters; its decay grows with each iteration.
    config.algorithm.nft.first_decay = 0.0
    config.algorithm.nft.decay_rate = 0.001
    config.algorithm.nft.largest_decay = 0.5
    # Advantage weighted matching: the policy gradient with the denoising loss as log-probability.
    config.algorithm.awm = ml_collections.ConfigDict()
    config.algorithm.awm.noises = 1
    # Auto weighs errors as the published configs do, in models of flow matching; none does not.
    config.algorithm.awm.weighting = "auto"
    config.algorithm.awm.clip_range = 1.0
    config.algorithm.awm.most_advantage = 5.0
    # The weight of the distance to the output of an average of the parameters. The decay of the
    # average grows with each iteration.
    config.algorithm.awm.trailing_weight = 1.0
    config.algorithm.awm.reference_weight = 1e-3
    config.algorithm.awm.first_decay = 0.0
    config.algorithm.awm.decay_rate = 0.001
    config.algorithm.awm.largest_decay = 0.3

    # Direct group preference optimisation: advantage times denoising loss, weighed by group.
    config.algorithm.dgpo = ml_collections.ConfigDict()
    config.algorithm.dgpo.noises = 1
    config.algorithm.dgpo.beta = 100.0  # How fast the weight of what is learned falls.
    # Of its released code where pictures are drawn with guidance; it has 1e-3 without. Its training
    # is without in either.
    config.algorithm.dgpo.clip_range = 1e-2
    # Samples are noised to at least this share of the training's times: where its code's seven
    # steps of ten end. Of objects' composition it has the first five, from 0.81 on.
    config.algorithm.dgpo.least_time = 0.66
    config.algorithm.dgpo.most_advantage = 5.0
    config.algorithm.dgpo.reference_weight = 0.02
    config.algorithm.dgpo.first_decay = 0.0
    config.algorithm.dgpo.decay_rate = 0.001  # For the average that ratios are taken to.
    config.algorithm.dgpo.largest_decay = 0.3
    # Centred reward distillation: differences of rewards and of denoising losses become alike.
    config.algorithm.crd = ml_collections.ConfigDict()
    config.algorithm.crd.noises = 1
    config.algorithm.crd.beta = 1.0  # How much the denoising loss counts beside the reward.
    config.algorithm.crd.most_advantage = 5.0
    config.algorithm.crd.reference_weight = 0.1
    config.algorithm.crd.first_decay = 0.25
    config.algorithm.crd.decay_rate = 0.005  # For the average that losses are compared with.
    config.algorithm.crd.largest_decay = 0.999
    # Diffusion-DPO on the best and the worst of each prompt's samples.
    config.algorithm.dpo = ml_collections.ConfigDict()
    config.algorithm.dpo.noises = 1
    config.algorithm.dpo.beta = 2000.0  # How strongly the policy is held to the base model.
    config.algorithm.dpo.most_advantage = 5.0
    config.algorithm.dpo.reference_weight = 0.0
    # Diffusion-DPO on pictures that people chose between; no images are drawn.
    config.algorithm.dpo_offline = ml_collections.ConfigDict()
    # A parquet file, or a folder of some, with the columns of Pick-a-Pic; docs/methods.md.
    config.algorithm.dpo_offline.pairs = ""
    config.algorithm.dpo_offline.noises = 1
    config.algorithm.dpo_offline.beta = 2000.0  # Its released launchers have 5000.
    # The probability that the empty prompt takes the place of a pair's caption.
    config.algorithm.dpo_offline.text_dropout = 0.2

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 2e-6
    # The learning rate rises from 0 in the first iterations, and falls to a tenth in the next.
    config.optimizer.warmup_iterations = 0
    config.optimizer.decay_iterations = 0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 1e-2
    config.optimizer.gradient_clip = 1.0  # The largest norm of a gradient; 0 does not clip.
    # Each update of an iteration, such as each task's, is a step of the optimiser, as in
    # Algorithm 1. If True, the mean of all their gradients is one.
    config.optimizer.one_step = False
    config.ema_decay = 0.0  # The average's decay per iteration; 0 keeps no average.

    # Low-rank adaptation: only factors of these modules' kernels are trained and saved.
    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 0  # 0 trains all of the denoiser.
    # A LoRA file, its folder, or its repository on the hub, to begin with. Its factors are trained
    # further if its rank and targets are those of here, and merged into the denoiser if the rank
    # here is 0.
    config.lora.start = ""
    config.lora.alpha = 16.0  # The factors' product is multiplied by alpha / rank.
    # The ends of the modules' names in PyTorch.
    config.lora.targets = ("to_q", "to_k", "to_v", "to_out.0")

    # The pretraining loss, Eqs. 8-9. A weight of 0 leaves the step out.
    config.pretraining = ml_collections.ConfigDict()
    config.pretraining.weight = 1.0
    # With base:8192 the base model draws so many pictures of the tasks' prompts, once. Others are
    # emoji, tfds:NAME, array_record:FOLDER, and latents:FOLDER from cache_latents; docs/data.md.
    config.pretraining.pictures = ""
    config.pretraining.text_dropout = 0.1

    # Each name has a make_task(...). Tasks are trained one after another (Algorithm 1), in the
    # alphabetical order of their names.
    config.tasks = ml_collections.ConfigDict()

    # How many samples a device takes at a time, which bounds the memory. For 0, a number is chosen
    # by the devices' number and memory (`experiments/planning.py`). As many as a device has, or
    # more, means all at once.
    config.microbatch = ml_collections.ConfigDict()
    config.microbatch.sample = 0
    config.microbatch.decode = 0
    config.microbatch.score = 0  # It holds whole groups.
    # Of the methods that learn from the reward's gradient.
    config.microbatch.differentiate = 0
    config.microbatch.train = 0

    # The mesh has the axes "data" and "fsdp"; "data" takes the devices that are left.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.fsdp = 0  # Over how many devices each large parameter is split; 0: it is chosen.
    # Whether "fsdp" splits the large parameters of text encoder, VAE and reward models, too.
    config.mesh.split_frozen = True
    # Whether an update brings the denoiser's split parameters together as a whole, or as blocks,
    # each where it is used, so that no device holds all of them or of their gradient. For auto, one
    # of the two is chosen.
    config.mesh.gather = "auto"
    config.execution = "auto"  # fused: one program an iteration; split: one program a phase.
    # With a host_reward: whether the next images are drawn while the last are scored. They are then
    # one update old when they are trained on; docs/rewards_of_your_own.md.
    config.overlap_scoring = True
    config.convolution = "auto"  # xla, or taps: kernel gradients as matmuls, on a CPU.
    # What the backward pass recomputes: none, blocks or full, of which docs/memory.md says what
    # each costs. For auto, one of them is chosen.
    config.remat = "auto"
    # The kernel for long self-attention: splash is Pallas' on TPUs, and cudnn is for GPUs in
    # bfloat16. auto is the devices' own kernel, or else dot_product.
    config.attention = "auto"

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 50  # Iterations.
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1

    # These sets are watched during training, and never trained on.
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.every = 50  # Iterations.
    config.evaluation.seed = 1_000_003
    config.evaluation.sets = ml_collections.ConfigDict()  # make_evaluation_set(...) for each name.
    config.evaluation.scorers = ml_collections.ConfigDict()  # make_scorer(...) for each name.
    # The best checkpoints are those with the largest sum of weights times scores. Each weight has
    # the name "set/scorer" of its score.
    config.evaluation.best = ml_collections.ConfigDict()
    # Scorers by which evaluate.py sets a checkpoint's images head to head with the base model's.
    config.evaluation.head_to_head = ()

    # Evaluations warn of a reward that rises while judges that are no reward, or the diversity of
    # pictures, fall; docs/report.md.
    config.watch = ml_collections.ConfigDict()
    config.watch.stop = False  # Whether the run then stops, after it has saved.
    return config


def of_earlier(values: Mapping[str, Any]) -> Config:
    """Returns the config of a run of any earlier version, with the present fields.

    This is the one place that knows what old configs lack, and how their fields were called.

    Args:
      values: what the run's config.json holds.

    Returns:
      All of it, with the present names.
    """
    values = dict(values)
    moved = {name: values.pop(name) for name in POLICY_GRADIENT if name in values}
    if "algorithm" not in values:
        values["algorithm"] = {"name": "policy_gradient", "policy_gradient": moved}
    algorithm, renamed = values["algorithm"], {}
    if isinstance(algorithm, Mapping) and "least_time" in algorithm.get("draft_lv", ()):
        renamed = RENAMED
        values["algorithm"] = {renamed.get(name, name): own for name, own in algorithm.items()}
        values["algorithm"]["name"] = renamed.get(algorithm["name"], algorithm["name"])
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
        tasks = config.tasks
        for task in tasks.values() if isinstance(tasks, ml_collections.ConfigDict) else ():
            if isinstance(task, ml_collections.ConfigDict):
                method = task.get("algorithm", "")
                task.algorithm = renamed.get(method, method)
    return config
