"""Says all that an evaluation's numbers depend on, so that it can be made again, and compared.

A manifest is JSON. Its parts "models", "prompts", "scorers", "sampling" and "made_with" are
compared before anything is computed; "results" has the digest of results.csv, for afterwards.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

import diffusionrl_jax
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import as_path, read_json, write_whole
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.evaluation.evaluator import evaluation_prompts
from diffusionrl_jax.evaluation.identities import identify_prompts, identify_scorer
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.experiments.config import of_earlier
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.runs.identities import identify_model
from diffusionrl_jax.runs.provenance import git_revision
from diffusionrl_jax.runs.trained import differing_fields

FILE = "manifest.json"
COMPARED = ("models", "prompts", "scorers", "sampling", "made_with")
# The groups of a config by which pictures are drawn and divided, beside those of an evaluation.
DRAWING = ("sampler", "microbatch", "mesh", "execution", "convolution", "attention", "remat")
# The field of config.microbatch that no evaluation depends on, and that earlier manifests lack.
LEARNING = "differentiate"
# Other revisions may give the same digits: of this one a warning is given.
REVISION = "git_revision"

# A model's name, path and step, as `runs.trained.load_trained` takes them.
Model = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest that was read.

    Attributes:
      path: its file.
      config: the config of the evaluation, with nothing left open.
      checkpoints: the models that it compared with the config's.
      content: all of the JSON.
    """

    path: str
    config: Config
    checkpoints: list[Model]
    content: dict[str, Any]


def describe(config: Config, models: Sequence[Model]) -> dict[str, Any]:
    """Describes an evaluation before it is made.

    All files that it reads are read once, for their digests.

    Args:
      config: see `experiments/config.py`, with nothing left open; all that it names is here.
      models: the models, with the numbers of their steps. An empty path is `config.model`.

    Returns:
      A manifest's content, without what is known only afterwards.

    Raises:
      UserError, OSError: something that the config names is missing or damaged.
    """
    evaluation = config.evaluation
    prompts = evaluation_prompts(config)
    used = {scorer for chosen in evaluation.sets.values() for scorer in chosen.scorers}
    content = {
        "models": {
            name: identify_model(path, step)
            if path
            else identify_model(config.model, "", "" if config.lora.rank else config.lora.start)
            for name, path, step in models
        },
        "prompts": {
            name: identify_prompts(evaluation.sets[name], texts) for name, texts in prompts.items()
        },
        "scorers": {
            name: identify_scorer(scorer)
            for name, scorer in evaluation.scorers.items()
            if name in used
        },
        "sampling": {
            "seed": evaluation.seed,
            "dtype": config.dtype,
            "head_to_head": list(evaluation.head_to_head),
            **{name: config[name] for name in DRAWING},
            "microbatch": {
                name: size for name, size in config.microbatch.items() if name != LEARNING
            },
        },
        "made_with": {
            "diffusionrl_jax": diffusionrl_jax.__version__,
            REVISION: git_revision(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
        "config": config.to_dict(),
        "checkpoints": [model for model in models if model[1]],
    }
    return json.loads(json.dumps(content, default=_plain))


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else str(value)


def read(path: str) -> Manifest:
    """Reads a manifest.

    Args:
      path: its file.

    Raises:
      FileNotFoundError, UserError: there is none, or it is damaged.
    """
    content = read_json(as_path(path, "--manifest"))
    missing = [name for name in (*COMPARED, "config", "checkpoints") if name not in content]
    if missing:
        raise UserError(
            f"--manifest={path} lacks {', '.join(missing)}: name the {FILE} that evaluate wrote."
        )
    try:
        config = of_earlier(content["config"])
        fields.check(config)
        checkpoints = [(str(name), str(at), str(step)) for name, at, step in content["checkpoints"]]
        for name in COMPARED:
            dict(content[name])  # `check_same` compares what is in them.
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"--manifest={path} is damaged: {error}") from None
    return Manifest(path, config, checkpoints, content)


def check_same(earlier: Manifest, now: Mapping[str, Any]) -> None:
    """Refuses an evaluation that would not be that of a manifest.

    Args:
      earlier: the manifest.
      now: what `describe` says of the evaluation.

    Raises:
      UserError: something differs; each such thing is named, with what it was and is.
    """
    differing = []
    for name in COMPARED:
        then, here = dict(earlier.content[name]), dict(now[name])
        if name == "made_with" and then.pop(REVISION, None) != here.pop(REVISION, None):
            logging.warning(
                "The revision was %s, and is %s: digits may differ.",
                earlier.content[name].get(REVISION),
                now[name][REVISION],
            )
        differing += differing_fields(then, here, name)
    if differing:
        raise UserError(
            f"This is not the evaluation of --manifest={earlier.path}: {'; '.join(differing)}. Set "
            "back what differs, or evaluate without --manifest."
        )


def complete(described: Mapping[str, Any], policy: Policy, results: bytes) -> dict[str, Any]:
    """Returns a manifest with what is known once the evaluation is made.

    Args:
      described: from `describe`.
      policy: the config's model as it was opened.
      results: what results.csv holds.
    """
    height, width, _ = policy.model.image_shape
    pictures = {"height": height, "width": width, "solver": type(policy.process).__name__}
    digest = hashlib.sha256(results).hexdigest()
    return {**described, "pictures": pictures, "results": digest}


def write(folder: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a manifest into a folder, as `FILE`."""
    write_whole(folder / FILE, (json.dumps(content, indent=2) + "\n").encode())


def check_results(earlier: Manifest, now: Mapping[str, Any]) -> None:
    """Refuses results that are not those of a manifest, digit by digit.

    Args:
      earlier: the manifest.
      now: from `complete`.

    Raises:
      UserError: they differ although nothing that is described does.
    """
    if earlier.content.get("results") != now["results"]:
        raise UserError(
            f"results.csv is not that of --manifest={earlier.path}, although all that is described "
            f"is the same (the revision was {earlier.content['made_with'].get(REVISION)}, and is "
            f"{now['made_with'][REVISION]}): compare both files."
        )
    logging.info("The results are those of %s, to the last digit.", earlier.path)


def summary(content: Mapping[str, Any]) -> str:
    """Returns what a reader of the tables should know of a manifest, in one paragraph.

    Args:
      content: from `complete`.
    """
    sampling, made, pictures = content["sampling"], content["made_with"], content["pictures"]
    sampler = sampling["sampler"]
    model = next(iter(content["models"].values()))
    said = (
        f"{FILE} has all that these numbers depend on: {model['path']} "
        f"({model['files'][:12]}), {sampler['steps']} steps of {pictures['solver']}, eta "
        f"{sampler['eta']:g}, guidance {sampler['guidance_scale']:g}, {pictures['height']}x"
        f"{pictures['width']} pixels, {sampling['dtype']}, seed {sampling['seed']}; "
        f"diffusionrl_jax {made['diffusionrl_jax']}, jax {made['jax']} on {made['devices']} "
        f"{made['backend']} devices. `evaluate --manifest={FILE}` makes them again."
    )
    parts = [*content["prompts"].items(), *content["scorers"].items()]
    return " ".join([said, *(f"{name}: {part['note']}" for name, part in parts if "note" in part)])


def read_summary(path: epath.Path) -> str:
    """Returns the `summary` of a manifest's file.

    Raises:
      FileNotFoundError, UserError: there is none, or it is damaged.
    """
    content = read_json(path)
    try:
        return summary(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no whole manifest ({error!r}).") from None
