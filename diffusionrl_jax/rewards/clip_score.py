"""CLIP score: how close a picture is to its prompt in CLIP's joint space.

It follows Hessel et al., arXiv 2104.08718, without their factor and clamp: it is the cosine itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from transformers import PreTrainedTokenizerBase

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.towers import clip
from diffusionrl_jax.rewards import checkpoint, preprocessing
from diffusionrl_jax.rewards.distinct import once_per_prompt


@dataclasses.dataclass(frozen=True, eq=False)
class ClipScore:
    """The reward that is the cosine between the embeddings of the picture and of the prompt.

    Attributes:
      model: CLIP's two towers.
      tokenizer: CLIP's tokenizer.
      group_size: how many pictures each prompt has, which are neighbours. The prompt is then
        embedded once for all of them.
      compares_pictures: False, since each picture is scored by itself although there is a
        `group_size`.
    """

    model: clip.Clip
    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    group_size: int = 1
    compares_pictures: ClassVar[bool] = False

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32, **options
    ) -> tuple["ClipScore", dict[str, Any]]:
        """Opens a folder with config.json, model.safetensors and CLIPTokenizer's files.

        config.json has CLIPConfig's "vision_config", "text_config" and "projection_dim".
        model.safetensors has the keys that the class' `read_params` names.

        Args:
          path: the folder.
          dtype: the dtype that the towers compute in.
          **options: the field `group_size`.

        Returns:
          The reward and its parameters.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(
            path, required=("vision_config", "text_config", "projection_dim")
        )
        model = clip.build(config, dtype)
        tokenizer = checkpoint.read_clip_tokenizer(folder, model.text.config.vocab_size)
        reward = cls(model=model, tokenizer=tokenizer, **options)
        return reward, reward.read_params(folder)

    def read_params(self, folder: epath.Path) -> dict:
        """Reads the parameters in the folder, under the keys of transformers' CLIPModel."""
        return checkpoint.read_params(folder, clip.template(self.model))

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Turns images, float [n, height, width, 3] in [0, 1], into the image tower's input.

        Returns:
          float32 [n, size, size, 3], normalised.
        """
        return preprocessing.square_of_transformers(images, self.model.vision.config.image_size)

    def clean(self, prompt: str) -> str:
        """Returns what of a prompt is tokenised: all of it, as in transformers' CLIPProcessor."""
        return prompt

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenises prompts. Prompts that are too long are cut.

        Returns:
          {"input_ids": int32 [len(prompts), 77]} for published checkpoints.

        Raises:
          UserError: the prompts do not come in groups of `group_size` equal ones.
        """
        first = [prompt for prompt in prompts[:: self.group_size] for _ in range(self.group_size)]
        if first != list(prompts):
            raise UserError(
                f"{len(prompts)} prompts do not come in groups of {self.group_size} times the "
                "same: keep each prompt's pictures together, or set group_size to 1."
            )
        return self._tokenize(prompts)

    @once_per_prompt
    def _tokenize(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        length = self.model.text.config.max_position_embeddings
        cleaned = [self.clean(prompt) for prompt in prompts]
        return {"input_ids": text_encoders.tokenize(self.tokenizer, cleaned, length)}

    def embed(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns the pictures' embeddings, float32 [n, width] of norm 1; see `__call__`."""
        return clip.embed_image(self.model.vision, params, self.preprocess(images))

    def cosine(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns the cosine of the embeddings, float32 [n]. The arguments are `__call__`'s."""
        image = self.embed(params, images)
        input_ids = inputs["input_ids"]
        distinct = input_ids.reshape(-1, self.group_size, input_ids.shape[-1])[:, 0]
        text = clip.embed_text(self.model.text, params, distinct)
        return jnp.sum(image * jnp.repeat(text, self.group_size, axis=0), -1)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores pictures for their prompts.

        Args:
          params: the parameters, from `load`.
          images: float [n, height, width, 3] in [0, 1].
          inputs: what `prepare` returned, n rows.

        Returns:
          float32 [n] in [-1, 1]; about 0.1 (unrelated) to 0.35 for published checkpoints.
        """
        return self.cosine(params, images, inputs)
