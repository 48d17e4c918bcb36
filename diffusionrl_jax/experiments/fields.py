"""Holds the table of what each field of a config, and each number of a program's flags, may hold.

The checks and docs/configuration.md are made from it. `experiments/config.py` has the defaults, and
says what each field is. No value that it allows is infinite or NaN, and none makes the first
iteration so by itself: the bounds lie far beyond what anybody trains with.
"""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.algorithms.forward_process import ERROR_WEIGHTINGS, ERRORS
from diffusionrl_jax.algorithms.reward_weighted import WEIGHTINGS
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.rectified_flow import NOISE_RULES, TRAINING_TIMES
from diffusionrl_jax.experiments.ranges import (
    Choice,
    Kind,
    Made,
    Number,
    Optional,
    Several,
    Switch,
    Text,
    Whole,
)
from diffusionrl_jax.learning.advantages import BY_GROUP
from diffusionrl_jax.learning.execution import EXECUTIONS
from diffusionrl_jax.mistakes import UserError, shown, suggestion
from diffusionrl_jax.models.attention import ATTENTION
from diffusionrl_jax.models.rematerialisation import POLICIES
from diffusionrl_jax.models.stable_diffusion.interceptors import CONVOLUTION
from diffusionrl_jax.rewards.http_scorer import FORMATS
from diffusionrl_jax.rewards.scorers import WEIGHTED_SUM
from diffusionrl_jax.rewards.statistical_parity import CREDITS

DTYPES = ("float32", "bfloat16")
GATHER = ("auto", "whole", "blocks")
NORMALISATIONS = ("batch", *BY_GROUP, "prompt")
# JAX's random numbers are seeded by an int32; each evaluation set adds its number to its seed.
LARGEST_SEED, LARGEST_EVALUATION_SEED = 2**31 - 1, 2**31 - 2**16
# It and 1 are different float32 numbers, as is needed of a probability, a decay, a moment's rate.
BELOW_ONE = 0.999999
MANY = 10_000_000  # Iterations.
BATCH = 2**20
WEIGHT = 1e6
LOSS_WEIGHT = 1e3
ANY = "*"  # Stands for a name that is the user's own.

CHOSEN = "is chosen"
SCORER = Made("make_scorer or make_weighted_sum")
# The fields that a scorer has beside its options.
SCORER_FIELDS: dict[str, Kind] = {"reward": Text(), "path": Text(may_be_empty=True)}
# With all of these, 1 plus the range and 1 are different float32 numbers.
CLIP_RANGE = Number(2e-7, 1)
NOISES = Whole(1, 1000)


def _forward_process(name: str, follows: bool = True) -> dict[str, Kind]:
    """Returns the fields that methods of `algorithms/forward_process.py` have in common."""
    found: dict[str, Kind] = {
        "noises": NOISES,
        "most_advantage": Number(1e-6, 1e6),
        "reference_weight": Number(0, LOSS_WEIGHT, "is no distance to the base model"),
    }
    if follows:
        found["first_decay"] = Number(0, BELOW_ONE, "follows at once in the beginning")
        found["decay_rate"] = Number(0, 1, "does not grow")
        found["largest_decay"] = Number(0, BELOW_ONE, "follows at once")
    return {f"algorithm.{name}.{field}": kind for field, kind in found.items()}


FIELDS: dict[str, Kind] = {
    "seed": Whole(0, LARGEST_SEED),
    "model": Text(may_be_empty=True),
    "dtype": Choice(DTYPES),
    "iterations": Whole(1, MANY),
    "sampler.steps": Whole(1, 1000),
    "sampler.eta": Number(0, 1, "is deterministic"),
    "sampler.noise": Choice(NOISE_RULES),
    "sampler.window": Whole(0, 1000, "has noise at all steps"),
    "sampler.order": Whole(1, 2),
    "sampler.guidance_scale": Number(0, 100),
    "sampler.height": Whole(0, 8192, "is the model's own, as is the width then"),
    "sampler.width": Whole(0, 8192, "is the model's own, as is the height then"),
    "sampler.text_tokens": Whole(0, 4096, "is the model's own number"),
    "sampler.embedded_guidance": Number(0, 100, "is the usual scale"),
    "training_times": Choice(("auto", *TRAINING_TIMES)),
    "batch_size": Whole(1, BATCH),
    "advantage_clip": Number(1e-6, 1e6),
    "algorithm.name": Choice(tuple(ALGORITHMS)),
    "algorithm.policy_gradient.timesteps_per_iteration": Whole(0, 1000, "trains no policy"),
    "algorithm.policy_gradient.clip_range": CLIP_RANGE,
    "algorithm.policy_gradient.balance_timesteps": Switch(),
    "algorithm.policy_gradient.remove_ratio_bias": Switch(),
    "algorithm.policy_gradient.most_divergence": Number(0, 1e3, "clips the ratio"),
    "algorithm.policy_gradient.kl_weight": Number(0, LOSS_WEIGHT, "is no KL to the base model"),
    "algorithm.policy_gradient.shared_prefix": Whole(0, 1000, "draws each image by itself"),
    "algorithm.reward_weighted.weighting": Choice(WEIGHTINGS),
    "algorithm.reward_weighted.temperature": Number(1e-6, 1e6),
    "algorithm.reward_weighted.noises": NOISES,
    "algorithm.reward_weighted.from_base": Switch(),
    "algorithm.raft.noises": NOISES,
    **_forward_process("nft"),
    "algorithm.nft.beta": Number(1e-6, 1),
    "algorithm.nft.error": Choice(ERRORS),
    "algorithm.awm.weighting": Choice(ERROR_WEIGHTINGS),
    **_forward_process("awm"),
    "algorithm.awm.clip_range": CLIP_RANGE,
    "algorithm.awm.trailing_weight": Number(0, LOSS_WEIGHT, "is no distance to the average"),
    **_forward_process("dgpo"),
    "algorithm.dgpo.beta": Number(0, 1e6, "weighs all groups alike"),
    "algorithm.dgpo.clip_range": CLIP_RANGE,
    "algorithm.dgpo.least_time": Number(0, BELOW_ONE, "is the least noise"),
    **_forward_process("crd"),
    "algorithm.crd.beta": Number(1e-6, 1e6),
    **_forward_process("dpo", follows=False),
    "algorithm.dpo.beta": Number(1e-6, 1e6),
    "algorithm.dpo_offline.pairs": Text(may_be_empty=True),
    "algorithm.dpo_offline.noises": NOISES,
    "algorithm.dpo_offline.beta": Number(1e-6, 1e6),
    "algorithm.dpo_offline.text_dropout": Number(0, 1, "keeps all texts"),
    "algorithm.reward_gradient.noises": NOISES,
    "algorithm.reward_gradient.least_time": Number(0, 1, "is the least noise"),
    "algorithm.reward_gradient.most_time": Number(0.001, 1),
    "algorithm.refl.late_steps": Whole(1, 1000),
    "algorithm.refl.enough": Number(-WEIGHT, WEIGHT),
    "algorithm.refl.scale": Number(1e-6, LOSS_WEIGHT),
    "algorithm.draft_k.steps": Whole(1, 1000),
    "algorithm.draft_k.random_steps": Switch(),
    "algorithm.draft_lv.noises": Whole(0, 1000, "takes the chain's last step alone"),
    "optimizer.learning_rate": Number(0, 0.1, "changes nothing"),
    "optimizer.warmup_iterations": Whole(0, MANY, "begins with the whole rate"),
    "optimizer.decay_iterations": Whole(0, MANY, "keeps the rate"),
    "optimizer.beta1": Number(0, BELOW_ONE, "keeps no momentum"),
    "optimizer.beta2": Number(0, BELOW_ONE, "takes each gradient's sign"),
    # Gradients that are smaller have squares that are 0 in float32.
    "optimizer.epsilon": Number(1e-15, 1),
    "optimizer.weight_decay": Number(0, 1, "does not decay"),
    "optimizer.gradient_clip": Number(1e-6, 1e6, "does not clip"),
    "optimizer.one_step": Switch(),
    "ema_decay": Number(0, BELOW_ONE, "keeps no average"),
    "lora.rank": Whole(0, 4096, "trains all of the denoiser"),
    "lora.start": Text(may_be_empty=True),
    "lora.alpha": Number(1e-6, 1e4),
    "lora.targets": Several(Text(), 1),
    "pretraining.weight": Number(0, LOSS_WEIGHT, "leaves the pretraining loss out"),
    "pretraining.pictures": Text(may_be_empty=True),
    "pretraining.text_dropout": Number(0, 1, "keeps all texts"),
    f"tasks.{ANY}.scorer": SCORER,
    f"tasks.{ANY}.prompts": Text(),
    f"tasks.{ANY}.group_size": Whole(1, BATCH),
    f"tasks.{ANY}.weight": Number(0, LOSS_WEIGHT, "draws and scores it, and does not train on it"),
    f"tasks.{ANY}.normalisation": Choice(NORMALISATIONS),
    f"tasks.{ANY}.shared_noise": Switch(),
    f"tasks.{ANY}.algorithm": Choice(("", *ALGORITHMS)),
    f"tasks.{ANY}.prompt_buffer": Whole(1, 2**16),
    f"tasks.{ANY}.prompt_min_count": Whole(1, 2**16),
    f"tasks.{ANY}.most_prompts": Whole(1, 2**24),
    "microbatch.sample": Whole(0, BATCH, CHOSEN),
    "microbatch.decode": Whole(0, BATCH, CHOSEN),
    "microbatch.score": Whole(0, BATCH, CHOSEN),
    "microbatch.differentiate": Whole(0, BATCH, CHOSEN),
    "microbatch.train": Whole(0, BATCH, CHOSEN),
    "mesh.fsdp": Whole(0, 2**20, CHOSEN),
    "mesh.split_frozen": Switch(),
    "mesh.gather": Choice(GATHER),
    "execution": Choice(EXECUTIONS),
    "overlap_scoring": Switch(),
    "convolution": Choice(CONVOLUTION),
    "remat": Choice(("auto", *POLICIES)),
    "attention": Choice(ATTENTION),
    "checkpoint.every": Whole(1, MANY),
    "checkpoint.keep_last": Whole(1, MANY),
    "checkpoint.keep_best": Whole(0, MANY, "keeps none for its score"),
    "evaluation.every": Whole(1, MANY),
    "evaluation.seed": Whole(0, LARGEST_EVALUATION_SEED),
    f"evaluation.sets.{ANY}.prompts": Text(),
    f"evaluation.sets.{ANY}.images": Whole(1, BATCH),
    f"evaluation.sets.{ANY}.scorers": Several(Text()),
    f"evaluation.sets.{ANY}.group_size": Whole(1, BATCH),
    f"evaluation.scorers.{ANY}": SCORER,
    f"evaluation.best.{ANY}": Number(-WEIGHT, WEIGHT, "does not count"),
    "evaluation.head_to_head": Several(Text()),
    "watch.stop": Switch(),
}
# The options of the shipped rewards. A reward of the user's own checks its own.
OPTIONS: dict[str, dict[str, Kind]] = {
    "image_reward": {},
    "hps_v2": {},
    "pick_score": {},
    "clip_score": {},
    "aesthetic": {},
    "detection": {
        "max_objects": Whole(1, 1000),
        "exclusive": Switch(),
        "objects": Several(Text(), 1),
    },
    "requested_objects": {"threshold": Number(0.001, 0.999)},
    "statistical_parity": {
        "credit": Choice(CREDITS),
        "class_prompts": Optional(Several(Text(), 2, by_name=True)),
    },
    "jpeg_size": {"quality": Whole(1, 100), "sign": Number(-WEIGHT, WEIGHT)},
    "recognition": {"max_labels": Whole(1, 1000)},
    "recognised_parity": {},
    "colour_parity": {
        "thresholds": Several(Number(-180, 180), 1),
        "face": Several(Number(0, 1), 4, 4),
    },
    "host_reward": {
        "images_per_call": Whole(0, BATCH, "is all at once, for a function"),
        "concurrent_requests": Whole(1, 1024),
        "timeout": Number(1e-3, 86400),
        "retries": Whole(0, 1000, "asks once"),
        "image_format": Choice(FORMATS),
    },
    WEIGHTED_SUM: {
        "scorers": Several(SCORER, 1, by_name=True),
        "weights": Several(Number(-WEIGHT, WEIGHT), 1, by_name=True),
        "normalised": Switch(),
    },
}
# The flags that are numbers, by program.
FLAGS: dict[str, dict[str, Kind]] = {
    "sample": {
        "images_per_prompt": Whole(1, 4096),
        "seed": FIELDS["seed"],
        "guidance_scale": FIELDS["sampler.guidance_scale"],
        "embedded_guidance": FIELDS["sampler.embedded_guidance"],
        "steps": FIELDS["sampler.steps"],
        "eta": FIELDS["sampler.eta"],
        "height": FIELDS["sampler.height"],
        "width": FIELDS["sampler.width"],
    },
    "main": {"report_every": Whole(0, MANY, "writes it at the end alone")},
    "evaluate": {"images": FIELDS[f"evaluation.sets.{ANY}.images"]},
    "study": {
        "pairs": Whole(1, 2**16),
        "checks": Whole(0, 100, "asks none"),
        "seed": FIELDS["evaluation.seed"],
        "raters": Whole(1, 10_000),
        "per_rater": Whole(0, 2**16, "is all"),
        "port": Whole(0, 2**16 - 1, "is any that is free"),
        "needed": Number(0, 1, "leaves nobody out"),
    },
    "benchmark train": {"steps": Whole(1, MANY)},
}


def check(config: Config, of_now: bool = True) -> None:
    """Refuses a config with a field that is unknown, is missing, or holds what it may not.

    Args:
      config: see `experiments/config.py`.
      of_now: whether fields may be neither missing nor unknown. In runs of earlier versions they
        may.

    Raises:
      UserError: a field does not fit; it names the field, what it holds, and what it may hold.
    """
    if not isinstance(config, Mapping) and not hasattr(config, "items"):
        raise UserError(f"The config is {shown(config)}, and not made by get_config().")
    _check_group("config", dict(config.items()), _TREE, of_now)


def check_flags(program: str, values: Mapping[str, Any]) -> None:
    """Refuses the numbers of a program's flags that are out of range.

    A flag that is not given, which is None, is passed over.

    Args:
      program: the program, a key of `FLAGS`.
      values: the flags' values, by their names.

    Raises:
      UserError: a flag does not fit; it names the flag, its value, and what it may be.
    """
    for name, value in values.items():
        if value is not None:
            _check_value(f"--{name}", value, FLAGS[program][name])


def _tree() -> dict[str, Any]:
    """Returns the kinds of `FIELDS` as a tree of groups."""
    tree: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        *groups, last = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = kind
    return tree


_TREE = _tree()
# The names that runs write into their config.json beside the fields.
_WRITTEN = {"config": ("plan",)}


def _check_group(name: str, values: Any, known: Mapping[str, Any], of_now: bool) -> None:
    if not hasattr(values, "items"):
        raise UserError(f"{name}={shown(values)} must be a group of fields: {', '.join(known)}.")
    values = dict(values.items())
    if ANY in known:
        known = dict.fromkeys(values, known[ANY])
    elif of_now:
        for field in values:
            if field not in known and field not in _WRITTEN.get(name, ()):
                raise UserError(f"There is no field {name}.{field}: {suggestion(field, known)}")
    for field, kind in known.items():
        full = f"{name}.{field}"
        if field not in values:
            # Runs of any version have tasks and evaluation, which no default could stand in for.
            if of_now or full in ("config.tasks", "config.evaluation"):
                raise UserError(f"{full} lacks: {_maker(full)}")
        elif kind is SCORER:
            _check_scorer(full, values[field])
        elif isinstance(kind, Mapping):
            _check_group(full, values[field], kind, of_now)
        elif kind is not None:
            _check_value(full, values[field], kind)


def _maker(full: str) -> str:
    """Returns how a config that lacks a field is to be made."""
    if full.startswith("config.tasks."):
        return "make the task with make_task of configs/common.py."
    if full.startswith("config.evaluation.sets."):
        return "make the set with make_evaluation_set of configs/common.py."
    return "begin with get_config() of configs/common.py."


def _check_scorer(name: str, scorer: Any) -> None:
    made = f"{name} must be {SCORER} of configs/common.py"
    if not SCORER.takes(scorer):
        raise UserError(f"{made}, and is {shown(scorer)}.")
    values = dict(scorer.items())
    if set(values) != {*SCORER_FIELDS, "options"} or not hasattr(values["options"], "items"):
        raise UserError(f"{made}: it has the fields {', '.join(sorted(map(str, values)))}.")
    for field, kind in SCORER_FIELDS.items():
        _check_value(f"{name}.{field}", values[field], kind)
    options, reward = dict(values["options"].items()), values["reward"]
    known = OPTIONS.get(reward)
    if known is None:
        return
    for option, value in options.items():
        if option not in known:
            raise UserError(f"{name}: {reward} has no option {option}: {suggestion(option, known)}")
        _check_value(f"{name}.options.{option}", value, known[option])
    if reward == WEIGHTED_SUM:
        if missing := sorted({"scorers", "weights"} - set(options)):
            raise UserError(f"{made}: it has no {' and no '.join(missing)}.")
        for part, described in options["scorers"].items():
            _check_scorer(f"{name}.options.scorers.{part}", described)


def _check_value(name: str, value: Any, kind: Kind) -> None:
    if not kind.takes(value):
        raise UserError(f"{name}={shown(value)} must be {kind}.")
