"""Makes an experiment without its weights: shapes and shardings from the config alone.

What a config names and is here (its diffusers folder, its reward models) is read for its sizes. For
what is not here, the published checkpoint's sizes are taken.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import BertTokenizer

from diffusionrl_jax import assets
from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    frozen_sharding,
)
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.algorithm import scores_on_host
from diffusionrl_jax.experiments.assembly import abstract_state, assemble, judges, put_batch
from diffusionrl_jax.experiments.loading import network_sharding
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import any_tokenizers
from diffusionrl_jax.models.families import model_shapes
from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.text_to_image import TextToImage
from diffusionrl_jax.models.towers import clip, owl_vit
from diffusionrl_jax.rewards import REWARDS, Reward, hps_v2, scorers, statistical_parity
from diffusionrl_jax.rewards.weighted_sum import SEPARATOR, WeightedSum

# It serves any model: see `any_tokenizers`.
BERT_TOKENIZER = "asset:emoji/image_reward"
OBJECTS = ("object",)

Shapes = Any  # A tree of `jax.ShapeDtypeStruct`.


@dataclasses.dataclass(frozen=True)
class AbstractExperiment:
    """What `experiment.build` makes, its arrays replaced by sharded `jax.ShapeDtypeStruct`s.

    Attributes:
      algorithm: the iteration's functions.
      task_names: the tasks' names, in the order of training.
      state, frozen, batch: the arguments of the iteration's functions.
      kept: what a run holds besides, which is evaluation's scorers.
      assumed: what the config names that is not here, and whose published sizes were taken.
    """

    algorithm: Algorithm
    task_names: tuple[str, ...]
    state: TrainState
    frozen: Frozen
    batch: Batch
    kept: Shapes
    assumed: tuple[str, ...]


def _exists(path: str) -> bool:
    return bool(path) and resolve(path, "config.model").exists()


def make_model(
    config: Config, mesh: Mesh | None
) -> tuple[TextToImage, dict[str, Shapes], str | None]:
    """Builds the networks that `config.model` names, without their parameters.

    Args:
      config: see `experiments/config.py`. Its model is a folder, or a published model's hub id or
        short name.
      mesh: the devices that the program is compiled for, or None.

    Returns:
      The model, the shapes of its parameters, and what was assumed, or None.

    Raises:
      UserError: the name is neither here nor known.
    """
    model, template = model_shapes(
        config.model,
        dtype=jnp.dtype(config.dtype),
        remat=checks.remat(config),
        convolution=config.convolution,
        attention=config.attention,
        size=checks.size(config),
        mesh=mesh,
        text_tokens=config.sampler.text_tokens or None,
        embedded_guidance=config.sampler.embedded_guidance or None,
    )
    hub_id = published.HUB_IDS.get(config.model, config.model)
    return model, template, None if _exists(config.model) else f"config.model: {hub_id}"


def _clip_reward(kind, config: dict, group_size: int) -> tuple[Reward, Shapes]:
    model = clip.build(config)
    return kind(model, any_tokenizers.clip_tokenizer(), group_size), clip.template(model)


def _image_reward(kind, group_size: int) -> tuple[Reward, Shapes]:
    tokenizer = BertTokenizer.from_pretrained(str(assets.resolve(BERT_TOKENIZER)))
    reward = kind.from_config({}, tokenizer)
    return reward, reward.template()


def _aesthetic(kind, group_size: int) -> tuple[Reward, Shapes]:
    tower = clip.vision_tower(published.CLIP_L["vision_config"])
    reward = kind(tower, published.CLIP_L["projection_dim"])
    return reward, reward.template()


def _detection(
    kind, group_size: int, config: dict, objects=OBJECTS, **options
) -> tuple[Reward, Shapes]:
    model = owl_vit.build(config)
    params = owl_vit.template(model)
    width = model.text.config.hidden_size
    vision = {"vision_model": params["owlvit"]["vision_model"]}
    queries = jax.ShapeDtypeStruct((len(objects), width), jnp.float32)
    return kind(model, tuple(objects), **options), params | {
        "owlvit": vision,
        "query_embeddings": queries,
    }


def _statistical_parity(kind, group_size: int, **options) -> tuple[Reward, Shapes]:
    tower = clip.vision_tower(published.CLIP_L["vision_config"])
    prompts = dict(options.pop("class_prompts", None) or statistical_parity.CLASS_PROMPTS)
    width = published.CLIP_L["projection_dim"]
    reward = kind(tower, tuple(prompts), group_size, width=width, class_prompts=prompts, **options)
    return reward, reward.template()


# For each reward, a function that takes its class, the group size and its options, and returns the
# published one. OWLv2 is a detection reward whose folder is named after it.
PUBLISHED = {
    "image_reward": _image_reward,
    "hps_v2": functools.partial(_clip_reward, config=hps_v2.PUBLISHED),
    "pick_score": functools.partial(_clip_reward, config=hps_v2.PUBLISHED),
    "clip_score": functools.partial(_clip_reward, config=published.CLIP_L),
    "aesthetic": _aesthetic,
    "detection": functools.partial(_detection, config=published.OWL_VIT),
    "owlv2": functools.partial(_detection, config=published.OWLV2),
    "statistical_parity": _statistical_parity,
}


def make_reward(scorer: Config, group_size: int) -> tuple[Reward, Shapes, tuple[str, ...]]:
    """Makes a reward as `scorers.load_scorer` does, with shapes for parameters.

    Args:
      scorer: the scorer, from `make_scorer` or `make_weighted_sum`.
      group_size: how many images each prompt has.

    Returns:
      The reward, its parameters' shapes, and what was assumed.

    Raises:
      UserError: the folder is not here, and the reward has no published size.
    """
    if scorer.reward == scorers.WEIGHTED_SUM:
        parts = {
            name: make_reward(part, group_size) for name, part in scorer.options.scorers.items()
        }
        rewards = {name: reward for name, (reward, _, _) in parts.items()}
        return (
            scorers.make_sum(scorer, rewards, group_size),
            {name: params for name, (_, params, _) in parts.items()},
            sum((assumed for _, _, assumed in parts.values()), ()),
        )
    if scorer.reward not in PUBLISHED or _exists(scorer.path):
        reward, params = scorers.load_scorer(scorer, group_size)
        return reward, jax.eval_shape(lambda: params), ()
    kind = REWARDS[scorer.reward]
    is_owlv2 = scorer.reward == "detection" and "owlv2" in scorer.path.lower()
    size = "owlv2" if is_owlv2 else scorer.reward
    reward, params = PUBLISHED[size](kind, group_size=group_size, **scorer.options.to_dict())
    return reward, params, (f"{scorer.path}: the published {size}",)


def _prepare(reward: Reward, group_size: int) -> dict:
    """Returns what a reward prepares for one group of prompts."""
    if isinstance(reward, WeightedSum):
        return {
            f"{name}{SEPARATOR}{field}": rows
            for name, part in reward.rewards.items()
            for field, rows in _prepare(part, group_size).items()
        }
    recogniser = getattr(reward, "recogniser", None)
    names = getattr(reward, "objects", None) or (recogniser and recogniser.labels) or OBJECTS
    return reward.prepare([names[0]] * group_size)


def make_batch(config: Config, model: TextToImage, rewards: Sequence[Reward], mesh: Mesh) -> Batch:
    """Returns the shapes of what an iteration takes from the host.

    Args:
      config: see `experiments/config.py`.
      model: the networks.
      rewards: the rewards, one per task.
      mesh: the devices.
    """
    count, tokens = config.batch_size, model.tokenize([""]).shape[1]
    ids = lambda *batch: jax.ShapeDtypeStruct((*batch, tokens), jnp.int32)
    rows = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
    inputs = tuple(
        jax.tree.map(rows, _prepare(reward, task.group_size))
        for reward, task in zip(rewards, config.tasks.values(), strict=True)
    )
    places = ()
    if any(task.normalisation == "prompt" for task in config.tasks.values()):
        place_of_each = jax.ShapeDtypeStruct((count,), jnp.int32)
        places = tuple(
            place_of_each if task.normalisation == "prompt" else None
            for task in config.tasks.values()
        )
    pretraining = pairs = None
    needs_pairs = needs_of(config).pairs
    if config.pretraining.weight or needs_pairs:
        latents = jax.ShapeDtypeStruct((count, *model.latent_shape), jnp.float32)
        pictures = abstract_arrays(
            {"latent_mean": latents, "latent_std": latents, "input_ids": ids(count)},
            batch_sharding(mesh),
        )
        pretraining = pictures if config.pretraining.weight else None
        pairs = pictures if needs_pairs else None
    return put_batch(
        mesh,
        abstract_arrays,
        input_ids=ids(len(config.tasks), count),
        reward_inputs=inputs,
        prompt_places=places,
        pretraining=pretraining,
        pairs=pairs,
    )


def build(config: Config, mesh: Mesh) -> AbstractExperiment:
    """Makes an experiment as `experiment.build` does, for devices of a mesh that need not be there.

    Args:
      config: see `experiments/config.py`.
      mesh: the devices.

    Raises:
      UserError: something does not fit, or a reward scores on the host; it says what, and the mend.
    """
    checks.check(config, mesh)
    if scores_on_host(config):
        raise UserError("A host_reward is not compiled: leave its task out of the dry run.")
    model, template, assumed = make_model(config, mesh)
    made = [make_reward(task.scorer, task.group_size) for task in config.tasks.values()]
    rewards = [(reward, params) for reward, params, _ in made]
    shardings = network_sharding(mesh, config.mesh.split_frozen, template)
    params = abstract_arrays(template, shardings)
    algorithm, frozen = assemble(config, model, params, mesh, rewards, abstract_arrays)
    scorers = [make_reward(scorer, group_size)[1] for scorer, group_size in judges(config)]
    scorers = abstract_arrays(scorers, frozen_sharding(mesh, scorers, config.mesh.split_frozen))
    return AbstractExperiment(
        algorithm=algorithm,
        task_names=tuple(config.tasks),
        state=abstract_state(config, params[model.denoiser_name], mesh),
        frozen=frozen,
        batch=make_batch(config, model, algorithm.rewards, mesh),
        kept=scorers,
        assumed=tuple(filter(None, (assumed, *(name for *_, names in made for name in names)))),
    )
