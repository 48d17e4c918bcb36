"""What people give programs that cannot be: a table for tests/test_bad_inputs.py.

Each case is a program, its arguments, and words that its one line must hold. In arguments {folder}
is an empty folder, {config} a config file of a tiny run whose variants are below, {model} a folder
of a model, {changed} the same folder after `damage`, and {run} that of a run of which config.json
alone is there.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
      program: as after `python -m diffusionrl_jax.`.
      arguments: its flags.
      words: which the last line holds.
      damage: what is done to a copy of the model, or to the run's folder, before.
    """

    program: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    damage: Callable[[Path], None] | None = None


def _train(argument, *words):
    return Case("main", ("--config={config}", "--workdir={folder}/run", argument), words)


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
SAMPLE = ("--model={model}", "--prompts=a cat", "--output={folder}/x.png")
STUDY = ("export", "--config={config}", "--folder={folder}/s", "--b=base", "--prompts=emoji:pairs")
FLAGS = [
    ("main", ("--config={config}", "--report_every=-1"), "--report_every=-1 must be"),
    ("report", ("--run=/nowhere", "--output={folder}/r.html"), "--run=/nowhere is not the folder"),
    ("report", ("--output={folder}/r.html",), "--run names no run"),
    ("sample", (*SAMPLE, "--seed=-1"), "--seed=-1 must be"),
    ("sample", (*SAMPLE, "--seed=2147483648"), "--seed=2147483648 must be"),
    ("sample", (*SAMPLE, "--seed=4294967295"), "--seed=4294967295 must be"),
    ("sample", (*SAMPLE, "--seed=99999999999999999999"), "must be a whole number"),
    ("sample", (*SAMPLE, "--seed=x"), "--seed=x"),
    ("sample", (*SAMPLE, "--steps=0"), "--steps=0 must be"),
    ("sample", (*SAMPLE, "--steps=-4"), "--steps=-4 must be"),
    ("sample", (*SAMPLE, "--steps=1000000"), "--steps=1000000 must be"),
    ("sample", (*SAMPLE, "--guidance_scale=nan"), "--guidance_scale=nan must be"),
    ("sample", (*SAMPLE, "--guidance_scale=-1"), "--guidance_scale=-1.0 must be"),
    ("sample", (*SAMPLE, "--guidance_scale=inf"), "--guidance_scale=inf must be"),
    ("sample", (*SAMPLE, "--height=30"), "must both be set"),
    ("sample", (*SAMPLE, "--height=31", "--width=32"), "must be a multiple of 2"),
    ("sample", (*SAMPLE, "--height=9000", "--width=32"), "--height=9000 must be"),
    ("sample", (*SAMPLE, "--eta=nan"), "--eta=nan must be"),
    ("sample", (*SAMPLE, "--eta=2"), "--eta=2.0 must be"),
    ("sample", (*SAMPLE, "--images_per_prompt=0"), "--images_per_prompt=0 must be"),
    ("sample", (*SAMPLE, "--images_per_prompt=1000000000"), "--images_per_prompt=1000000000"),
    ("sample", (*SAMPLE, "--dtype=float16"), "dtype"),
    ("sample", (*SAMPLE, "--output=/nowhere/x.png"), "There is no folder /nowhere"),
    ("sample", (*SAMPLE, "--output={folder}"), "is a folder"),
    ("sample", (*SAMPLE, "--output="), "--output is empty"),
    ("sample", (*SAMPLE, "--prompts=;"), "holds no prompt"),
    ("sample", (*SAMPLE, "--step=3"), "has no step '3'"),
    ("sample", ("--model={model}",), "Give either"),
    ("sample", ("--prompts=a",), "--model"),
    ("sample", (*SAMPLE[1:], "--model=/no/such/folder"), "/no/such/folder is neither"),
    ("sample", (*SAMPLE[1:], "--model=https://a.b/c"), "https:// is not known"),
    ("sample", (*SAMPLE[1:], "--model="), "--model is empty"),
    ("sample", ("--model={model}", "--prompt_file=/nowhere.txt"), "/nowhere.txt"),
    ("evaluate", ("--config={config}", "--output={folder}/o", "--images=0"), "--images=0 must be"),
    ("evaluate", ("--config={config}", "--output={folder}/o", "--images=-8"), "--images=-8 must"),
    ("evaluate", ("--config={config}", "--output={folder}/o", "--images=7"), "must be a multiple"),
    ("evaluate", ("--config={config}", "--output=/proc/o"), "cannot be written to"),
    ("evaluate", ("--config={config}", "--output={folder}/o", "--checkpoints=a"), "not name=PATH"),
    ("evaluate", ("--config={config}", "--output={folder}/o", "--checkpoints=a=/no"), "/no is nei"),
    ("evaluate", ("--config={config}:by_hand", "--output={folder}/o"), "scorer lacks"),
    ("evaluate", ("--output={folder}/o",), "--config"),
    ("export", ("--checkpoint={model}", "--output=/proc/o"), "cannot be written to"),
    ("export", ("--checkpoint=/no/run", "--output={folder}/o"), "/no/run is neither"),
    ("export", ("--checkpoint={model}", "--output={folder}/o", "--dtype=float8"), "dtype"),
    ("export", ("--checkpoint={model}", "--output={folder}/o", "--lora"), "leave out --lora"),
    ("convert", ("--source=/no.pt", "--reward=hps", "--output={folder}/o"), "--reward=hps must be"),
    ("convert", ("--source=/no.pt", "--reward=hps_v2", "--output={folder}/o"), "tokenizer"),
    (
        "convert",
        ("--source=/no.pt", "--reward=x", "--config=/no.json", "--output={folder}/o"),
        "--reward=x must be",
    ),
    ("convert", ("--reward=hps_v2", "--output={folder}/o"), "--source"),
    ("fetch", ("--config={config}", "--output=/proc/o"), "cannot be written to"),
    ("fetch", ("--config=/nowhere.py",), "there is no file '/nowhere.py'"),
    ("cache_latents", ("--config={config}", "--output={folder}/o"), "names no pictures"),
    (
        "cache_latents",
        ("--config={config}", "--output={folder}/o", "--config.batch_size=-1"),
        "config.batch_size=-1 must be",
    ),
    (
        "cache_latents",
        ("--config={config}", "--output={folder}/o", "--config.pretraining.pictures=base:x"),
        "base:x",
    ),
    (
        "cache_latents",
        (
            "--config={config}",
            "--output={folder}/o",
            "--config.pretraining.pictures=base:9" + "9" * 30,
        ),
        "at most 10000000",
    ),
    ("benchmark", ("tarin",), "did you mean train"),
    ("benchmark", ("train",), "--config is missing"),
    ("benchmark", ("train", "--config={config}", "--config.frob=1"), "no field config.frob"),
    ("benchmark", ("train", "--config={config}", "--steps=0"), "--steps=0 must be"),
    ("benchmark", ("train", "--config={config}", "--json=/no/x.json"), "There is no folder /no"),
    ("benchmark", ("train", "--config={config}", "--config.seed=-1"), "config.seed=-1 must be"),
    ("benchmark", ("train", "--config={config}:raises"), "cannot be read"),
    ("benchmark", ("plan", "--configs=/nowhere.py"), "there is no file '/nowhere.py'"),
    ("benchmark", ("plan", "--configs={config}", "--topologies=v9:1x1"), "v9:1x1"),
    ("benchmark", ("plan", "--configs={config}", "--topologies=v5e:0x4"), "v5e:0x4"),
    ("benchmark", ("compile", "--config={config}"), "--topology"),
    ("benchmark", ("compile", "--config={config}", "--topology=frob"), "frob"),
    ("benchmark", ("table", "--config={config}", "--models=sd3"), "--models='sd3' is not known"),
    ("benchmark", ("table", "--config={config}", "--topologies=frob"), "frob"),
    ("benchmark", ("table", "--config={config}", "--config.ema_decay=1"), "config.ema_decay=1.0"),
    ("study", ("serv",), "did you mean serve"),
    ("study", ("serve", "--folder={folder}/s"), "give --a, --b, --prompts"),
    ("study", (*STUDY, "--a=base"), "are the same model"),
    ("study", (*STUDY, "--a=/nowhere"), "/nowhere is neither"),
    ("study", (*STUDY, "--a={model}", "--prompts=emoji:dragons"), "There are no prompts"),
    ("study", (*STUDY, "--a={model}", "--prompts=/nowhere.txt"), "There is no file"),
    ("study", (*STUDY, "--a={model}", "--scorers=frob"), "'frob'"),
    ("study", (*STUDY, "--a={model}", "--categories=Kind"), "has no columns Kind"),
    ("study", (*STUDY, "--a={model}", "--config.seed=-1"), "config.seed=-1 must be"),
    ("study", (*STUDY, "--a={model}", "--pairs=0"), "--pairs=0 must be"),
    ("study", (*STUDY, "--a={model}", "--checks=-1"), "--checks=-1 must be"),
    ("study", (*STUDY, "--a={model}", "--raters=0"), "--raters=0 must be"),
    ("study", ("serve", "--port=70000"), "--port=70000 must be"),
    ("study", ("report", "--folder={folder}"), "holds no study"),
    ("study", ("report", "--folder={folder}", "--needed=2"), "--needed=2.0 must be"),
]


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _delete(name):
    return lambda folder: (folder / name).unlink()


# Files of a model's folder.
FILES = [
    *(
        (name, content, name)
        for name in (
            "tokenizer/vocab.json",
            "tokenizer/tokenizer_config.json",
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
            "model_index.json",
        )
        for content in (b'{"a":', b"\xff\xfe", b"[]", b"")
    ),
    ("unet/diffusion_pytorch_model.safetensors", b"", "diffusion_pytorch_model.safetensors"),
    ("vae/diffusion_pytorch_model.safetensors", b"x" * 99, "diffusion_pytorch_model.safetensors"),
]
# config.json of a run.
RUNS = [
    (b"{}", "lacks model, tasks, evaluation"),
    (b"[1]", "should hold a JSON object, not list"),
    (b'"x"', "should hold a JSON object, not str"),
    (b"null", "should hold a JSON object, not NoneType"),
    (b"\xff\xfe{}", "is not valid JSON"),
    (b'{"model": "a"', "is not valid JSON"),
    (b"", "is not valid JSON"),
    (b'{"model": "a", "tasks": {}}', "lacks evaluation"),
    (b'{"model": "a", "tasks": [], "evaluation": {}}', "config.tasks=[] must be a group"),
    (b'{"model": 3, "tasks": {}, "evaluation": {}}', "config.model=3 must be a text"),
    (
        b'{"model": "a", "tasks": {}, "evaluation": {}, "sampler": {"steps": "x"}}',
        "config.sampler.steps='x' must be",
    ),
    (
        b'{"model": "a", "tasks": {"b": {"group_size": 0}}, "evaluation": {}}',
        "config.tasks.b.group_size=0 must be",
    ),
    (b'{"model": "a", "tasks": {}, "evaluation": {}, "algorithm": 3}', "config.algorithm=3 must"),
]

CASES = [
    *(_train(f"--config.{field}={value}", words) for field, value, words in FIELDS),
    *(_train(argument, words) for argument, words in OVERRIDES),
    *(
        Case("main", (f"--config={{config}}:{variant}", "--workdir={folder}/run"), (words,))
        for variant, words in VARIANTS
    ),
    Case("main", ("--config=/nowhere.py",), ("there is no file '/nowhere.py'",)),
    Case("main", ("--config={broken}",), ("broken.py", "SyntaxError")),
    Case("main", ("--config={empty}",), ("no function get_config",)),
    Case("main", (), ("--config",)),
    *(Case(program, arguments, (words,)) for program, arguments, words in FLAGS),
    *(
        Case(
            "sample",
            ("--model={changed}", *SAMPLE[1:], "--steps=1"),
            (word,),
            _write(name, content),
        )
        for name, content, word in FILES
    ),
    *(
        Case("sample", ("--model={run}", *SAMPLE[1:]), ("config.json", words), _write(*file))
        for content, words in RUNS
        for file in [("config.json", content)]
    ),
    *(
        Case("report", ("--run={run}", "--output={folder}/r.html"), (words,), _write(*file))
        for content, words in RUNS
        for file in [("config.json", content)]
    ),
    *(
        Case("export", ("--checkpoint={run}", "--output={folder}/o"), (words,), _write(*file))
        for content, words in RUNS
        for file in [("config.json", content)]
    ),
    *(
        Case("sample", ("--model={changed}", *SAMPLE[1:], "--steps=1"), (name,), _delete(name))
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    ),
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
