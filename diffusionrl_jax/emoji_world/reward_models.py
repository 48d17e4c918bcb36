"""The emoji world's reward models: their sizes, their first parameters, and their folders."""

import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from transformers import BertTokenizer

from diffusionrl_jax.data.emoji import vocabulary
from diffusionrl_jax.emoji_world import emoji_model, reward_objectives
from diffusionrl_jax.emoji_world.reward_objectives import Objective
from diffusionrl_jax.emoji_world.reward_pictures import LABELS, OBJECTS
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import flatten
from diffusionrl_jax.models.towers import blip, owl_vit, recogniser
from diffusionrl_jax.rewards import checkpoint, detection, image_reward, statistical_parity

VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
PREFERENCE_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
QUERY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "hidden_act": "quick_gelu",
}
RECOGNISER_WIDTHS = (32, 64, 128)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_bert_vocabulary(folder: epath.Path) -> None:
    """Writes vocab.txt, which has every word of the world, and letters for all other words."""
    words = sorted({word for prompt in emoji_model.world_prompts() for word in prompt.split()})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n")


def _places(patches: int, width: int) -> np.ndarray:
    """Returns waves over a square of patches' rows and columns, behind a class token's zeros."""
    row, column = np.divmod(np.arange(patches), math.isqrt(patches))
    frequencies = np.geomspace(1, 1 / 8, width // 4)
    angles = [np.outer(place, frequencies) for place in (row, column)]
    waves = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.pad(np.concatenate(waves, 1), ((1, 0), (0, 0))).astype(np.float32)


def initial(key: jax.Array, template: Mapping) -> dict:
    """Draws the first parameters of a model.

    Kernels have unit gain, tables are small enough for the optimiser to move, and the patches'
    places are known from the start. The initialisation of transformers is meant for much wider
    networks.

    Args:
      key: A PRNG key.
      template: the shapes of the parameters.
    """
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    leaves = {}
    for index, (path, leaf) in enumerate(sorted(flatten(template).items())):
        draw = jax.random.normal(jax.random.fold_in(key, index), leaf.shape)
        if path[-1] == "kernel":
            leaves[path] = draw / math.sqrt(math.prod(leaf.shape[:-1]))
        elif patches + 1 in leaf.shape:
            leaves[path] = 0.5 * _places(patches, leaf.shape[-1]).reshape(leaf.shape)
        elif path[-1] in ("scale", "bias"):
            leaves[path] = jnp.full(leaf.shape, float(path[-1] == "scale"))
        else:
            leaves[path] = 0.1 * draw
    return traverse_util.unflatten_dict(leaves)


def _write(folder: epath.Path, config: Mapping, state: Mapping[str, np.ndarray]) -> None:
    """Writes config.json and, in float16, model.safetensors."""
    (folder / checkpoint.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    weights.write_safetensors(folder / checkpoint.WEIGHTS_FILE, state, dtype="float16")


def build_image_reward(folder: epath.Path):
    """Returns the preference model's objective and a function that saves its parameters.

    Its tokenizer is written into the folder at once.
    """
    write_bert_vocabulary(folder)
    tokenizer = BertTokenizer.from_pretrained(str(folder))
    config = {
        "vision_config": VISION | {"layer_norm_eps": 1e-6},
        "text_config": PREFERENCE_TEXT | {"vocab_size": len(tokenizer)},
        "mlp_widths": [64, 16],
        "score_mean": 0.0,
        "score_std": 1.0,
        "max_tokens": 14,
    }
    reward = image_reward.ImageReward.from_config(config, tokenizer)

    def save(params):
        state = blip.PROJECTIONS.join(weights.to_pytorch(params, rename=blip.rename))
        _write(folder, config, state)

    def init(key):
        return initial(key, reward.template())

    return reward_objectives.image_reward(reward, init), save


def build_detection(folder: epath.Path):
    """Returns the detector's objective and a function that saves its parameters.

    Its tokenizer is written into the folder at once.
    """
    tokenizer = emoji_model.train_tokenizer()
    tokenizer.save_pretrained(str(folder))
    config = {
        "vision_config": VISION,
        "text_config": QUERY_TEXT | {"vocab_size": len(tokenizer)},
        "objects": list(OBJECTS),
        "query_template": "{}",
    }
    model = owl_vit.build(config)
    reward = detection.Detection(model=model, objects=OBJECTS)
    queries = detection.tokenize_queries(tokenizer, model, OBJECTS)

    def init(key):
        params = initial(key, owl_vit.template(model))
        # Unrelated patches and words start at a probability of 0.1%, and related ones at 95%.
        # Steeper starts were seen not to learn.
        params["class_head"]["logit_shift"]["bias"] += -0.7
        params["class_head"]["logit_scale"]["bias"] += 9.0
        return params

    def save(params):
        _write(folder, config, weights.to_pytorch(params, rename=owl_vit.RENAMES["owlvit"]))

    return reward_objectives.detection(reward, queries, init), save


def build_statistical_parity(folder: epath.Path):
    """Returns the tone classifier's objective and a function that saves its parameters."""
    config = {"vision_config": VISION | {"num_hidden_layers": 2}, "classes": vocabulary.TONES}
    tower = statistical_parity.clip.vision_tower(config["vision_config"])
    reward = statistical_parity.StatisticalParity(tower=tower, classes=vocabulary.TONES)

    def save(params):
        _write(folder, config, weights.to_pytorch(params))

    def init(key):
        return initial(key, reward.template())

    return reward_objectives.statistical_parity(reward, init), save


def build_recogniser(folder: epath.Path):
    """Returns the recogniser's objective and a function that saves its parameters."""
    config = {"widths": RECOGNISER_WIDTHS, "labels": LABELS, "tones": vocabulary.TONES}
    observer = recogniser.build(config)

    def save(params):
        _write(folder, config, weights.to_pytorch(params))

    return reward_objectives.recogniser(observer), save


BUILDERS = {
    "image_reward": build_image_reward,
    "detection": build_detection,
    "statistical_parity": build_statistical_parity,
    "recogniser": build_recogniser,
}


def load_params(folder: epath.Path, objective: Objective) -> dict:
    """Loads the parameters that a saving function wrote, to train them further."""
    template = jax.eval_shape(objective.init, jax.random.key(0))["model"]
    renames = {"mlp": blip.rename, "owlvit": owl_vit.RENAMES["owlvit"]}
    rename = next((renames[name] for name in renames if name in template), None)
    return checkpoint.read_params(folder, template, rename=rename, transform=blip.PROJECTIONS.split)
