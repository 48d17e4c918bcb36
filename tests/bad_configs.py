"""What a config cannot hold: values of its fields, overrides, and variants of a config file.

Each is given with the words that a program's one line must hold; `CONFIG` is the file, of a tiny
run, and `REWARDS` the module of the rewards that it names.
"""

# Fields of a config with a value that is out of their range, and a word of the range.
FIELDS = [
    ("seed", "-1", "0 to 2147483647"),
    ("seed", "2147483648", "0 to 2147483647"),
    ("seed", "99999999999999999999", "0 to 2147483647"),
    ("dtype", "float16", "float32, bfloat16"),
    ("dtype", "float8_e4m3fn", "float32, bfloat16"),
    ("dtype", "int32", "float32, bfloat16"),
    ("dtype", "", "float32, bfloat16"),
    ("iterations", "-5", "1 to"),
    ("iterations", "0", "1 to"),
    ("iterations", "1000000000000", "1 to"),
    ("sampler.steps", "0", "1 to 1000"),
    ("sampler.steps", "-1", "1 to 1000"),
    ("sampler.steps", "100000", "1 to 1000"),
    ("sampler.eta", "nan", "0 to 1"),
    ("sampler.eta", "-0.1", "0 to 1"),
    ("sampler.eta", "1.5", "0 to 1"),
    ("sampler.eta", "inf", "0 to 1"),
    ("sampler.guidance_scale", "-1", "0 to 100"),
    ("sampler.guidance_scale", "nan", "0 to 100"),
    ("sampler.guidance_scale", "inf", "0 to 100"),
    ("sampler.guidance_scale", "1e30", "0 to 100"),
    ("batch_size", "0", "1 to"),
    ("batch_size", "-1", "1 to"),
    ("batch_size", "1000000000", "1 to"),
    ("batch_size", "7", "must be a multiple"),
    ("advantage_clip", "0", "a number from"),
    ("advantage_clip", "-1", "a number from"),
    ("advantage_clip", "nan", "a number from"),
    ("algorithm.name", "ppo", "policy_gradient, reward_weighted"),
    ("algorithm.policy_gradient.timesteps_per_iteration", "-1", "0 to 1000"),
    ("algorithm.policy_gradient.timesteps_per_iteration", "3", "must be between 0 and"),
    ("algorithm.policy_gradient.clip_range", "0", "a number from"),
    ("algorithm.policy_gradient.clip_range", "-1", "a number from"),
    ("algorithm.policy_gradient.clip_range", "nan", "a number from"),
    ("algorithm.policy_gradient.clip_range", "2", "a number from"),
    ("algorithm.policy_gradient.kl_weight", "-0.1", "a number from 0"),
    ("algorithm.policy_gradient.kl_weight", "inf", "a number from 0"),
    ("algorithm.reward_weighted.weighting", "mean", "min_max, softmax, best"),
    ("algorithm.reward_weighted.temperature", "0", "a number from"),
    ("algorithm.reward_weighted.temperature", "nan", "a number from"),
    ("algorithm.reward_weighted.noises", "0", "1 to 1000"),
    ("optimizer.learning_rate", "nan", "0 to 0.1"),
    ("optimizer.learning_rate", "-1", "0 to 0.1"),
    ("optimizer.learning_rate", "1e30", "0 to 0.1"),
    ("optimizer.learning_rate", "inf", "0 to 0.1"),
    ("optimizer.warmup_iterations", "-3", "0 to"),
    ("optimizer.decay_iterations", "-3", "0 to"),
    ("optimizer.beta1", "2.0", "0 to 0.999999"),
    ("optimizer.beta1", "1", "0 to 0.999999"),
    ("optimizer.beta1", "-0.5", "0 to 0.999999"),
    ("optimizer.beta2", "1", "0 to 0.999999"),
    ("optimizer.beta2", "nan", "0 to 0.999999"),
    ("optimizer.epsilon", "0", "1e-15 to 1"),
    ("optimizer.epsilon", "-1e-8", "1e-15 to 1"),
    ("optimizer.epsilon", "1e-50", "1e-15 to 1"),
    ("optimizer.weight_decay", "-0.1", "0 to 1"),
    ("optimizer.weight_decay", "nan", "0 to 1"),
    ("optimizer.gradient_clip", "-1", "or 0, which does not clip"),
    ("optimizer.gradient_clip", "nan", "or 0, which does not clip"),
    ("ema_decay", "1.0", "0 to 0.999999"),
    ("ema_decay", "-0.5", "0 to 0.999999"),
    ("ema_decay", "nan", "0 to 0.999999"),
    ("lora.rank", "-1", "0 to 4096"),
    ("lora.rank", "100000", "0 to 4096"),
    ("lora.alpha", "0", "a number from"),
    ("lora.start", "/no/such/file", "there is no /no/such/file"),
    ("lora.alpha", "nan", "a number from"),
    ("pretraining.weight", "-1", "a number from 0"),
    ("pretraining.weight", "nan", "a number from 0"),
    ("pretraining.weight", "1", "config.pretraining.pictures is empty"),
    ("pretraining.text_dropout", "-0.1", "0 to 1"),
    ("pretraining.text_dropout", "1.1", "0 to 1"),
    ("pretraining.text_dropout", "nan", "0 to 1"),
    ("tasks.small.weight", "nan", "a number from 0"),
    ("tasks.small.weight", "-1", "a number from 0"),
    ("tasks.small.group_size", "-2", "1 to"),
    ("tasks.small.group_size", "0", "1 to"),
    ("tasks.small.normalisation", "image", "batch, group, group_mean, win_rate, prompt"),
    ("tasks.small.algorithm", "ppo", "one of '', policy_gradient, reward_weighted"),
    ("tasks.small.prompts", "", "a text that is not empty"),
    ("tasks.small.prompts", "emoji:dragons", "There are no prompts"),
    ("tasks.small.prompts", "/nowhere/prompts.txt", "There is no file"),
    ("tasks.small.prompt_buffer", "0", "1 to"),
    ("tasks.small.prompt_min_count", "-1", "1 to"),
    ("tasks.small.most_prompts", "0", "1 to"),
    ("tasks.small.scorer.reward", "beauty", "is not one of"),
    ("tasks.small.scorer.reward", "", "a text that is not empty"),
    ("tasks.small.scorer.reward", "no_module:Reward", "No module named"),
    ("tasks.small.scorer.options.quality", "0", "1 to 100"),
    ("tasks.small.scorer.options.quality", "101", "1 to 100"),
    ("microbatch.sample", "-1", "0 to"),
    ("microbatch.decode", "-1", "0 to"),
    ("microbatch.score", "-1", "0 to"),
    ("microbatch.train", "-8", "0 to"),
    ("mesh.fsdp", "-1", "0 to"),
    ("mesh.fsdp", "3", "mesh.fsdp=3 must be one of"),
    ("mesh.gather", "parts", "auto, whole, blocks"),
    ("execution", "eager", "auto, fused, split"),
    ("convolution", "fft", "auto, xla, taps"),
    ("remat", "some", "auto, none, blocks, full"),
    ("attention", "cudnn", "needs NVIDIA GPUs"),
    ("attention", "flash", "auto, dot_product, splash, cudnn"),
    ("checkpoint.every", "0", "1 to"),
    ("checkpoint.keep_last", "0", "1 to"),
    ("checkpoint.keep_best", "-1", "0 to"),
    ("evaluation.every", "-1", "1 to"),
    ("evaluation.seed", "-1", "0 to 2147418112"),
    ("evaluation.seed", "2147483647", "0 to 2147418112"),
    ("evaluation.sets.pairs.images", "0", "1 to"),
    ("evaluation.sets.pairs.images", "-8", "1 to"),
    ("evaluation.sets.pairs.images", "7", "must be a multiple"),
    ("evaluation.sets.pairs.group_size", "0", "1 to"),
    ("evaluation.sets.pairs.prompts", "", "a text that is not empty"),
    ("evaluation.scorers.size.reward", "beauty", "is not one of"),
    ("evaluation.best.pairs/size", "nan", "config.evaluation.best.pairs/size is not understood"),
    ("model", "", "config.model is empty"),
    ("model", "https://a.b/c", "https:// is not known"),
    ("model", "file:///a", "without file://"),
    ("model", "/no/such/folder", "does not exist"),
    ("model", "asset:dragons", "is not shipped"),
    ("model", "asset:../../x", "asset:../../x"),
]
# Overrides of what is not there, or of another type.
OVERRIDES = [
    ("--config.optimiser.learning_rate=1e-5", "no field config.optimiser: did you mean optimizer"),
    ("--config.tasks.smal.weight=2", "no field config.tasks.smal: did you mean small"),
    ("--config.tasks.small.wieght=2", "no field config.tasks.small.wieght: did you mean weight"),
    ("--config.frob=1", "no field config.frob"),
    ("--config.sampler.stesp=3", "no field config.sampler.stesp: did you mean steps"),
    ("--config.seed.x=3", "config.seed is no group of fields"),
    ("--config.evaluation.sets.pair.images=8", "no field config.evaluation.sets.pair"),
    ("--config.sampler=3", "config.sampler=3"),
    ("--config.sampler.steps=x", "config.sampler.steps=x"),
    ("--config.sampler.steps=2.5", "config.sampler.steps=2.5"),
    ("--config.sampler.noise=cps", "config.sampler.noise='cps' is for models of flow matching"),
    ("--config.sampler.order=2", "config.sampler.order=2 is for models of flow matching"),
    ("--config.training_times=logit_normal", "config.training_times='logit_normal' is for models"),
    ("--config.sampler.window=9", "config.sampler.window=9 must be between"),
    ("--config.optimizer.learning_rate=fast", "config.optimizer.learning_rate=fast"),
    ("--config.overlap_scoring=maybe", "config.overlap_scoring=maybe"),
    ("--config.lora.targets[9]=to_q", "lora.targets"),
    ("--wrokdir=x", "Did you mean: workdir"),
    ("config.seed=1", "'config.seed=1' is no flag"),
    ("--profile_steps=0", "--profile_steps=0"),
    ("--profile_steps=3:1", "--profile_steps=3:1"),
    ("--process_count=0", "process_count"),
    ("--workdir=", "--workdir is empty"),
    ("--workdir=https://a.b/c", "https:// is not known"),
    ("--workdir=file:///a", "without file://"),
    ("--workdir=/proc/run", "cannot be written to"),
    ("--workdir=~nobody_of_this_name/run", "there is no user"),
]
# Variants of the config file, and words.
VARIANTS = [
    ("raises", "config.py:raises cannot be read (KeyError: 'beauty')"),
    ("exits", "SystemExit"),
    ("nothing", "gives a NoneType"),
    ("refuses", "config.py:refuses: There is no task 'dragons'"),
    ("locked", "optimiser"),
    ("by_hand", "config.tasks.small.scorer lacks: make the task with make_task"),
    ("misspelt", "config.tasks.small.wieght: did you mean weight"),
    ("no_tasks", "config.tasks is empty"),
    ("task_is_text", "config.tasks.small='jpeg_size' must be a group"),
    ("scorer_is_text", "must be made with make_scorer"),
    ("unknown_option", "no option qality: did you mean quality"),
    ("weights", "must be a mapping of 1 or more, each a number"),
    ("best_is_nan", "config.evaluation.best.pairs/size=nan must be"),
    ("no_parts", "must be a mapping of 1 or more"),
    ("unknown_scorer", "names the scorer 'sise'"),
    ("unknown_best", "config.evaluation.best names"),
    ("unknown_judge", "config.evaluation.head_to_head names"),
    ("no_module", "No module named"),
    ("column", "gave scores of shape"),
    ("prepares_nothing", "prepare gave a NoneType"),
    ("no_pair", "cannot be loaded"),
    ("reward_raises", "cannot score"),
    ("timeout", "options.timeout=nan"),
    ("password", "password"),
    ("refused", "does not answer"),
]

CONFIG = """
import sys

import ml_collections

from configs import common


def get_config(kind=""):
    config = common.get_config()
    config.model = "{model}"
    config.iterations = 1
    config.sampler.steps = 2
    config.sampler.guidance_scale = 1.0
    config.batch_size = 8
    config.algorithm.policy_gradient.timesteps_per_iteration = 1
    config.pretraining.weight = 0.0
    size = common.make_scorer("jpeg_size", quality=90)
    tasks, evaluation = config.tasks, config.evaluation
    tasks.small = common.make_task(size, "emoji:pairs")
    evaluation.scorers.size = size
    evaluation.sets.pairs = common.make_evaluation_set("emoji:pairs", 8, ("size",))
    evaluation.best["pairs/size"] = 1.0
    fault = lambda name: common.make_scorer("faulty_rewards:Faulty", fault=name)
    match kind:
        case "raises":
            tasks.small.weight = {{}}["beauty"]
        case "exits":
            sys.exit(0)
        case "nothing":
            return None
        case "refuses":
            common.add_tasks(config, {{}}, "dragons")
        case "locked":
            config.lock()
            config.optimiser = 1
        case "by_hand":
            tasks.small = ml_collections.ConfigDict({{"prompts": "emoji:pairs"}})
        case "misspelt":
            tasks.small.wieght = 2.0
        case "no_tasks":
            del tasks.small
        case "task_is_text":
            del tasks.small
            tasks.small = "jpeg_size"
        case "scorer_is_text":
            del tasks.small.scorer
            tasks.small.scorer = "jpeg_size"
        case "unknown_option":
            tasks.small.scorer = common.make_scorer("jpeg_size", qality=3)
        case "weights":
            tasks.small.scorer = common.make_weighted_sum(a=(size, float("nan")))
        case "best_is_nan":
            evaluation.best["pairs/size"] = float("nan")
        case "no_parts":
            tasks.small.scorer = common.make_weighted_sum()
        case "unknown_scorer":
            evaluation.sets.pairs.scorers = ("sise",)
        case "unknown_best":
            evaluation.best["pairs/sise"] = 1.0
        case "unknown_judge":
            evaluation.head_to_head = ("sise",)
        case "no_module":
            tasks.small.scorer = common.make_scorer("no_module:Reward")
        case "column" | "prepares_nothing" | "no_pair" | "reward_raises":
            tasks.small.scorer = fault(kind)
        case "timeout":
            tasks.small.scorer = common.make_scorer("host_reward", "a:b", timeout=float("nan"))
        case "password":
            tasks.small.scorer = common.make_scorer("host_reward", "http://me:secret@localhost/x")
        case "refused":
            address = "http://localhost:1/x"
            tasks.small.scorer = common.make_scorer("host_reward", address, retries=0)
    return config
"""
REWARDS = """
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Faulty:
    fault: str

    @classmethod
    def load(cls, path, **options):
        return cls(**options) if options["fault"] == "no_pair" else (cls(**options), {})

    def prepare(self, prompts):
        return None if self.fault == "prepares_nothing" else {}

    def __call__(self, params, images, inputs):
        scores = images.mean((1, 2, 3))
        return scores[:, None] if self.fault == "column" else scores + np.zeros(7)
"""
