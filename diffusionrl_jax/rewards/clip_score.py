"""CLIP score: how close a picture is to its prompt in CLIP's joint space.

Hessel et al., arXiv 2104.08718, without their factor and clamp: the cosine itself.
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
    """The cosine of the picture's and the prompt's embeddings.

    Attributes:
      model: CLIP's two towers.
      tokenizer: CLIP's.
      group_size: pictures of each prompt, contiguous; the prompt is then embedded once for them.
      compares_pictures: each is scored by itself, although the reward has a `group_size`.
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

        config.json: CLIPConfig's "vision_config", "text_config" and "projection_dim".
        model.safetensors: the keys that `read_params` of the class names.

        Args:
          path: the folder.
          dtype: of the towers' computation.
          **options: the field `group_size`.

        Raises:
          FileNotFoundError, UserError: if a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(
            path, required=("vision_config", "text_config", "projection_dim")
        )
        model = clip.build(config, dtype)
        tokenizer = checkpoint.read_clip_tokenizer(folder, model.text.config.vocab_size)
        reward = cls(model=model, tokenizer=tokenizer, **options)
        return reward, reward.read_params(folder)

    def read_params(self, folder: epath.Path) -> dict:
        """The parameters in the folder, under the keys of transformers' CLIPModel."""
        return checkpoint.read_params(folder, clip.template(self.model))

    def preprocess(self, images: jax.Array) -> jax.Array:
        """float [n, H, W, 3] in [0, 1] to the image tower's float32 [n, size, size, 3]."""
        return preprocessing.square_of_transformers(images, self.model.vision.config.image_size)

    def clean(self, prompt: str) -> str:
        """What of a prompt is tokenised: all, as by transformers' CLIPProcessor."""
        return prompt

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenises: {"input_ids": int32 [len(prompts), 77]}; longer prompts are cut.

        Raises:
          UserError: if the prompts do not come in groups of `group_size`.
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

    def cosine(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """The cosine of the embeddings, float32 [n]; arguments are those of a reward."""
        image = clip.embed_image(self.model.vision, params, self.preprocess(images))
        input_ids = inputs["input_ids"]
        distinct = input_ids.reshape(-1, self.group_size, input_ids.shape[-1])[:, 0]
        text = clip.embed_text(self.model.text, params, distinct)
        return jnp.sum(image * jnp.repeat(text, self.group_size, axis=0), -1)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores pictures for their prompts.

        Args:
          params: from `load`.
          images: float [n, H, W, 3] in [0, 1].
          inputs: from `prepare`, n rows.

        Returns:
          float32 [n] in [-1, 1]; about 0.1 (unrelated) to 0.35 for published checkpoints.
        """
        return self.cosine(params, images, inputs)
