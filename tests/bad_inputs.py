"""What people give programs that cannot be: a table for tests/test_bad_inputs.py.

Each case is a program, its arguments, and words that its one line must hold. In arguments {folder}
is an empty folder, {config} the config file of `bad_configs.py`, {model} a folder of a model,
{changed} a folder of a model after `damage`, and {run} that of a run of which config.json alone is
there.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tests.bad_configs import FIELDS, OVERRIDES, VARIANTS


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
      program: as after `python -m diffusionrl_jax.`.
      arguments: its flags.
      words: which the last line holds.
      damage: what is done to a copy of a model, or to the run's folder, before.
      copied: which model is copied: "model", or "sd3" or "flux", of a transformer.
    """

    program: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    damage: Callable[[Path], None] | None = None
    copied: str = "model"


def _train(argument, *words):
    return Case("main", ("--config={config}", "--workdir={folder}/run", argument), words)


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
# Files of the folders of transformers.
FILES_OF_TRANSFORMERS = [
    *(
        (kind, name, content, name)
        for kind, name in (
            ("sd3", "transformer/config.json"),
            ("sd3", "text_encoder_3/config.json"),
            ("flux", "tokenizer_2/tokenizer_config.json"),
        )
        for content in (b'{"a":', b"[]")
    ),
    (
        "sd3",
        "tokenizer_3/tokenizer.json",
        b'{"version": "1.0',
        "tokenizer_3: its tokenizer",
    ),
    ("flux", "tokenizer_2/tokenizer.json", b"{}", "tokenizer_2: its tokenizer"),
    ("sd3", "tokenizer/merges.txt", b"#version: 0.2\nzz qq\n", "tokenizer: its tokenizer"),
    ("sd3", "text_encoder_3/config.json", b'{"num_layers": 0}', "config.json: num_layers is 0"),
    ("flux", "text_encoder_2/config.json", b"{}", "config.json: feed_forward_proj is 'relu'"),
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
    *(
        Case(
            "sample",
            ("--model={changed}", *SAMPLE[1:], "--steps=1"),
            (word,),
            _write(name, content),
            kind,
        )
        for kind, name, content, word in FILES_OF_TRANSFORMERS
    ),
    *(
        Case("sample", ("--model={changed}", *SAMPLE[1:]), (name,), _delete(name), kind)
        for kind, name in (
            ("sd3", "tokenizer_3/tokenizer.json"),
            ("flux", "tokenizer_2/tokenizer.json"),
            ("flux", "model_index.json"),
        )
    ),
]
