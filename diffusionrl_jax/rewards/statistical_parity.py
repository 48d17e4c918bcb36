"""Statistical parity of an attribute over the pictures of one prompt (Eq. 12).

It is a distribution-level reward, a function of a group of pictures. The classifier is a CLIP image
tower with a linear head, which is either trained or made from one prompt for each class (arXiv
2103.00020, zero-shot classification).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import tensor_files
from diffusionrl_jax.models.towers import clip, heads
from diffusionrl_jax.rewards import checkpoint, preprocessing

SHARED, LEAVE_ONE_OUT = CREDITS = ("shared", "leave_one_out")
# The paper's classifier of four skin tones is private. These prompts make one from any CLIP.
CLASS_PROMPTS = {
    "dark": "a photo of a person with dark skin",
    "medium-dark": "a photo of a person with medium dark skin",
    "medium-light": "a photo of a person with medium light skin",
    "light": "a photo of a person with light skin",
}


def _as_one_hot(classes: jax.Array, num_classes: int | None) -> jax.Array:
    """Returns classes as one-hot frequencies, whichever way they are given."""
    if jnp.issubdtype(classes.dtype, jnp.integer):
        if num_classes is None:
            raise UserError("Class indices need num_classes; one-hot frequencies do not.")
        return jax.nn.one_hot(classes, num_classes)
    return classes


def _distance_to_uniform(counts: jax.Array) -> jax.Array:
    """Returns || counts / sum - 1 / classes ||_2 over the last axis."""
    frequencies = counts / jnp.sum(counts, -1, keepdims=True)
    return jnp.sqrt(jnp.sum(jnp.square(frequencies - 1 / counts.shape[-1]), -1))


def statistical_parity(classes: jax.Array, num_classes: int | None = None) -> jax.Array:
    """Returns SP of Eq. 12: the distance between a group's class frequencies and equal ones.

    Args:
      classes: class indices, int [groups, m] (with `num_classes`), or one-hot classes, float
        [groups, m, classes].
      num_classes: how many classes the indices run over.

    Returns:
      float32 [groups]; 0 is parity, and sqrt(1 - 1 / classes) is all pictures in one class.

    Raises:
      UserError: indices are given without `num_classes`.
    """
    return _distance_to_uniform(_as_one_hot(classes, num_classes).sum(-2))


def leave_one_out_credit(classes: jax.Array, num_classes: int | None = None) -> jax.Array:
    """Returns what each picture does for its group's parity: SP without it minus SP with it.

    It is positive for a picture that brings the group closer to parity. Unlike Eq. 12's shared
    reward it tells the pictures of a group apart, so that the gradient has a direction within the
    group.

    Args:
      classes: as in `statistical_parity`, with m >= 2.
      num_classes: as in `statistical_parity`.

    Returns:
      float32 [groups, m].
    """
    one_hot = _as_one_hot(classes, num_classes)
    counts = one_hot.sum(-2, keepdims=True)
    return _distance_to_uniform(counts - one_hot) - _distance_to_uniform(counts)


def in_groups(values: jax.Array, group_size: int) -> jax.Array:
    """Returns what each picture has, [n, ...], by group: [n / group_size, group_size, ...].

    Raises:
      UserError: n is not a multiple of group_size.
    """
    if len(values) % group_size:
        raise UserError(
            f"{len(values)} pictures do not divide into groups of {group_size}: make the batch a "
            "multiple of the reward's group_size."
        )
    return values.reshape(-1, group_size, *values.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class StatisticalParity:
    """The reward that is minus the statistical parity of each prompt's group of pictures.

    Attributes:
      tower: the CLIP image tower and its configuration.
      classes: the names of the classes.
      group_size: how many pictures each prompt has; the pictures of one prompt must be neighbours.
      credit: "shared" (Eq. 12: each picture of a group gets -SP) or "leave_one_out".
      width: the width of CLIP's joint space where the head is made from prompts, which sees a
        picture's unit embedding there. None where the head is trained, which sees the tower's
        pooled output.
      class_prompts: class -> its prompt, where the head is made from prompts.

    Raises:
      UserError: the credit is unknown, the group is smaller than 2, or the classes are not two or
        more different ones.
    """

    has_gradient: ClassVar[bool] = False

    tower: Any
    classes: tuple[str, ...]
    group_size: int = 16
    credit: str = SHARED
    width: int | None = None
    class_prompts: Mapping[str, str] | None = None

    def __post_init__(self):
        if self.credit not in CREDITS:
            raise UserError(f"credit is {self.credit!r}; it must be one of {CREDITS}.")
        if self.group_size < 2:
            raise UserError(f"group_size is {self.group_size}; parity needs at least 2 pictures.")
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise UserError(
                f"classes={self.classes}: parity is between two or more, each of another name."
            )

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32, **options
    ) -> tuple["StatisticalParity", dict]:
        """Opens a folder with config.json and model.safetensors, of either of two layouts.

        With a trained head, config.json has {"vision_config": CLIPVisionConfig's fields, "classes":
        names}, and model.safetensors has the keys of CLIPVisionModel and
        `classifier.{weight,bias}`.

        Any CLIP without a head will do as well, such as openai/clip-vit-large-patch14: config.json
        has CLIPConfig's "vision_config", "text_config" and "projection_dim", model.safetensors has
        CLIPModel's keys, and CLIPTokenizer's files are there. The classes are then those of
        "class_prompts" in the options, or else in config.json, or else `CLASS_PROMPTS`. The prompts
        are embedded here, once, and stored in the parameters in place of the text tower.

        Args:
          path: the folder; `asset:emoji/statistical_parity` is the embedded one, with a head.
          dtype: the dtype that the towers compute in.
          **options: the fields `group_size`, `credit` and `class_prompts`.

        Returns:
          The reward and its parameters.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit, or prompts
            are given for a head that is trained.
        """
        folder, config = checkpoint.read_config(path, required=("vision_config",))
        prompts = options.pop("class_prompts", None)
        tensors = tensor_files.read_header(folder / checkpoint.WEIGHTS_FILE)
        if not any(name.startswith("classifier.") for name in tensors):
            if prompts is None:
                prompts = config.get("class_prompts", CLASS_PROMPTS)
            return cls._of_prompts(folder, config, dtype, prompts, options)
        if prompts is not None:
            raise UserError(
                f"{folder / checkpoint.WEIGHTS_FILE} has a trained head (classifier.weight), which "
                "prompts do not change: leave class_prompts out, or name a CLIP without a head."
            )
        tower = clip.vision_tower(config["vision_config"], dtype)
        classes = tuple(config.get("classes", CLASS_PROMPTS))
        reward = cls(tower=tower, classes=classes, **options)
        return reward, checkpoint.read_params(folder, reward.template())

    @classmethod
    def _of_prompts(
        cls, folder: epath.Path, config: Mapping, dtype: jnp.dtype, prompts: Any, options: Mapping
    ) -> tuple["StatisticalParity", dict]:
        """Makes the reward whose head consists of the embeddings of one prompt for each class."""
        missing = [key for key in ("text_config", "projection_dim") if key not in config]
        if missing:
            raise UserError(
                f"{folder} has neither a trained head (classifier.weight in "
                f"{checkpoint.WEIGHTS_FILE}) nor a text tower to make one of prompts ({missing} in "
                f"{checkpoint.CONFIG_FILE}): see docs/reward_models.md."
            )
        prompts = _checked_prompts(prompts)
        model = clip.build(config, dtype)
        reward = cls(
            tower=model.vision,
            classes=tuple(prompts),
            width=model.width,
            class_prompts=prompts,
            **options,
        )
        length = model.text.config.max_position_embeddings
        tokenizer = checkpoint.read_clip_tokenizer(folder, model.text.config.vocab_size)
        input_ids = text_encoders.tokenize(tokenizer, list(prompts.values()), length)
        params = checkpoint.read_params(folder, clip.template(model))
        text_params = {name: params[name] for name in ("text_model", "text_projection")}
        texts = jax.jit(functools.partial(clip.embed_text, model.text))(text_params, input_ids)
        return reward, {
            "vision_model": params["vision_model"],
            "visual_projection": params["visual_projection"],
            "classifier": {
                "kernel": np.exp(params["logit_scale"]) * np.asarray(texts).T,
                "bias": np.zeros(len(prompts), np.float32),
            },
        }

    def template(self) -> dict:
        """Returns the parameters' shapes: the tower's, its projection's if any, and the head's."""
        template = clip.vision_template(self.tower)
        if self.width is not None:
            template["visual_projection"] = clip.projection_template(self.tower, self.width)
        inputs = self.tower.config.hidden_size if self.width is None else self.width
        return {**template, "classifier": heads.dense_template(inputs, len(self.classes))}

    def features(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns what the head sees of images [n, height, width, 3] in [0, 1]: [n, width]."""
        pixels = preprocessing.square_of_transformers(images, self.tower.config.image_size)
        if self.width is None:
            return clip.pooled_image(self.tower, params, pixels).astype(jnp.float32)
        return clip.embed_image(self.tower, params, pixels)

    def embed(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns the features at norm 1, float32 [n, width], so that their distances compare."""
        return clip.unit(self.features(params, images))

    def logits(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns class logits, float32 [n, classes], of images [n, height, width, 3] in [0, 1].

        With a head made from prompts they are `logits_per_image` of transformers' CLIPModel.
        """
        return heads.dense(params["classifier"], self.features(params, images))

    def classify(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns class probabilities, float32 [n, classes], of images [n, H, W, 3] in [0, 1]."""
        return jax.nn.softmax(self.logits(params, images))

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing. Of a prompt only its place matters: groups are contiguous."""
        del prompts
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores the pictures of whole groups.

        Args:
          params: the parameters, from `load`.
          images: float [n, height, width, 3] in [0, 1]; the `group_size` pictures of a prompt are
            neighbours.
          inputs: what `prepare` returned; unused.

        Returns:
          float32 [n].

        Raises:
          UserError: n is not a multiple of group_size.
        """
        del inputs
        classes = in_groups(jnp.argmax(self.logits(params, images), -1), self.group_size)
        if self.credit == LEAVE_ONE_OUT:
            return leave_one_out_credit(classes, len(self.classes)).reshape(-1)
        return jnp.repeat(-statistical_parity(classes, len(self.classes)), self.group_size)


def _checked_prompts(prompts: Any) -> dict[str, str]:
    """Returns the prompts as a dictionary, or raises one error that says how they are written."""
    is_mapping = isinstance(prompts, Mapping | ml_collections.ConfigDict)
    items: dict[str, Any] = dict(prompts) if is_mapping else {}
    if len(items) < 2 or not all(isinstance(text, str) and text for text in items.values()):
        raise UserError(
            f"class_prompts={prompts!r} must give two or more classes a prompt each, as in "
            f"{CLASS_PROMPTS}."
        )
    return items
