"""Detection score: are the prompt's objects in the picture? (Eq. 13).

The paper's detector is UniDet. This one is OWL-ViT or OWLv2, whose classes are words. Only their
classification of patches is needed, not their boxes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from transformers import PreTrainedTokenizerBase

from diffusionrl_jax.data import word_lists
from diffusionrl_jax.mistakes import UserError, shown
from diffusionrl_jax.models.towers import owl_vit
from diffusionrl_jax.rewards import checkpoint, mentions, preprocessing
from diffusionrl_jax.rewards.distinct import once_per_prompt

QUERIES_PER_CALL = 64
PREPROCESSING = {"owlvit": preprocessing.stretched, "owlv2": preprocessing.padded_with_grey}


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """The reward that is the mean confidence in the prompt's objects.

    Attributes:
      model: the detector's towers.
      objects: the names that prompts are searched for.
      max_objects: how many objects a prompt may name at most.
      exclusive: whether a patch counts only for its best query among the prompt's objects, so that
        one thing in the picture cannot stand for two objects.
    """

    model: owl_vit.OwlViT
    objects: tuple[str, ...]
    max_objects: int = 2
    exclusive: bool = True

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32, **options
    ) -> tuple["Detection", dict[str, Any]]:
        """Opens a folder with config.json, model.safetensors and CLIPTokenizer's files.

        config.json has OwlViTConfig's or Owlv2Config's "model_type" (by default "owlvit"),
        "vision_config" and "text_config", and may have "objects" (names; by default the paper's
        532) and "query_template" (by default "a photo of a {}"). model.safetensors has the keys of
        transformers' OwlViTForObjectDetection or Owlv2ForObjectDetection. The objects' query
        embeddings are computed here, once, and stored in the parameters in place of the text tower.

        Args:
          path: the folder; `asset:emoji/detection` is the embedded one.
          dtype: the dtype that the towers compute in.
          **options: the fields `max_objects` and `exclusive`, and `objects`, which replaces the
            config's.

        Returns:
          The reward and its parameters.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(path, required=("vision_config", "text_config"))
        # Published detectors list no objects.
        listed = config.get("objects", word_lists.objects("all"))
        file = folder / checkpoint.CONFIG_FILE
        objects = _checked_objects(options.pop("objects", None) or listed, file)
        template = _checked_template(config.get("query_template", "a photo of a {}"), file)
        model = owl_vit.build(config, dtype)
        params = checkpoint.read_params(
            folder,
            owl_vit.template(model),
            rename=owl_vit.RENAMES[model.model_type],
            ignore=owl_vit.UNUSED,
        )
        tokenizer = checkpoint.read_clip_tokenizer(folder, model.text.config.vocab_size)
        queries = tokenize_queries(tokenizer, model, [template.format(name) for name in objects])
        embed = jax.jit(functools.partial(owl_vit.embed_queries, model))
        chunks = range(0, len(queries), QUERIES_PER_CALL)
        embeddings = [embed(params, queries[i : i + QUERIES_PER_CALL]) for i in chunks]
        vision = {"vision_model": params["owlvit"]["vision_model"]}
        return cls(model=model, objects=objects, **options), {
            **params,
            "owlvit": vision,
            "query_embeddings": np.concatenate([np.asarray(chunk) for chunk in embeddings]),
        }

    def find_objects(self, prompt: str) -> tuple[int, ...]:
        """Returns the indices of the known objects that a prompt names, in its order, each once."""
        return mentions.find_names(prompt, self.objects)

    def _scorable_objects(self, prompt: str) -> tuple[int, ...]:
        """Returns `find_objects`; raises a UserError if there are none or too many."""
        found = self.find_objects(prompt)
        if not found:
            raise UserError(
                f"The prompt {prompt!r} names none of the {len(self.objects)} objects that "
                'detection knows: use prompts with such objects, or extend "objects" in its '
                "config.json."
            )
        if len(found) > self.max_objects:
            raise UserError(
                f"The prompt {prompt!r} names {len(found)} objects; detection's max_objects is "
                f"{self.max_objects}: raise it."
            )
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """Refuses the prompts that `prepare` would refuse.

        Raises:
          UserError: a prompt names no known object, or more than `max_objects`.
        """
        for prompt in prompts:
            self._scorable_objects(prompt)

    @once_per_prompt
    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Finds each prompt's objects.

        Returns:
          {"objects": int32 [len(prompts), max_objects], indices; "mask": float32 of the same shape,
          1 where there is an object and 0 elsewhere}.

        Raises:
          UserError: a prompt names no known object, or more than `max_objects`.
        """
        indices = np.zeros((len(prompts), self.max_objects), np.int32)
        mask = np.zeros((len(prompts), self.max_objects), np.float32)
        for row, prompt in enumerate(prompts):
            found = self._scorable_objects(prompt)
            indices[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return {"objects": indices, "mask": mask}

    def confidences(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Computes the detector's confidence in each of the prompt's objects.

        Args:
          params: the parameters, from `load`.
          images: float [n, height, width, 3] in [0, 1].
          inputs: what `prepare` returned, n rows.

        Returns:
          float32 [n, max_objects] in [0, 1]; meaningless where the mask is 0.
        """
        preprocess = PREPROCESSING[self.model.model_type]
        pixels = preprocess(images, self.model.vision.config.image_size)
        features = owl_vit.patch_features(self.model, params, pixels)
        queries = jnp.asarray(params["query_embeddings"])[inputs["objects"]]
        logits = owl_vit.class_logits(params, features, queries)
        logits = jnp.where(inputs["mask"][:, None] > 0, logits, -jnp.inf)
        if self.exclusive:
            # The best is chosen by logits, since two probabilities may both round to 1.
            best = jnp.argmax(logits, -1, keepdims=True)
            logits = jnp.where(jnp.arange(self.max_objects) == best, logits, -jnp.inf)
        return jax.nn.sigmoid(jnp.max(logits, 1))

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns Eq. 13, the mean of `confidences` over objects: float32 [n] in [0, 1]."""
        confidences = self.confidences(params, images, inputs)
        return jnp.sum(confidences * inputs["mask"], -1) / jnp.sum(inputs["mask"], -1)


def _checked_objects(objects: Any, file: epath.Path) -> tuple[str, ...]:
    """Returns the names of objects, or raises one error that says how they are written.

    Args:
      objects: what the options or config.json give.
      file: config.json, for messages.
    """
    if isinstance(objects, list | tuple) and not objects:
        raise UserError(
            f'{file} lists no objects: name some in "objects", or leave it out for the paper\'s.'
        )
    is_list = isinstance(objects, list | tuple)
    if not is_list or not all(isinstance(name, str) and name.strip() for name in objects):
        raise UserError(
            f"objects={shown(objects)} of detection, in its options or {file}, must be a list of "
            'names, as in ["dog", "hot dog"].'
        )
    return tuple(objects)


def _checked_template(template: Any, file: epath.Path) -> str:
    """Returns the template of queries, or raises an error if objects do not fit into it.

    Args:
      template: what config.json gives.
      file: config.json, for messages.
    """
    mend = 'write one {} where the object goes, as in "a photo of a {}"'
    try:
        first, second = (template.format(name) for name in "xy")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: the query_template {shown(template)} cannot be filled ({error}): {mend}."
        ) from None
    if first == second:
        raise UserError(f"{file}: the query_template {shown(template)} lacks {{}}: {mend}.")
    return template


def tokenize_queries(
    tokenizer: PreTrainedTokenizerBase, model: owl_vit.OwlViT, queries: Sequence[str]
) -> np.ndarray:
    """Tokenises queries: int32 [len(queries), tokens], padded with id 0 as OWL-ViT's are."""
    encoded = tokenizer(
        list(queries),
        padding="max_length",
        truncation=True,
        max_length=model.text.config.max_position_embeddings,
        return_tensors="np",
    )
    ids, mask = np.asarray(encoded["input_ids"]), np.asarray(encoded["attention_mask"])
    return (ids * mask).astype(np.int32)
