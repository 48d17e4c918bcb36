"""ImageReward: how much people would like this picture for this prompt (Eq. 11).

Xu et al., arXiv 2304.05977: BLIP's image-grounded text encoder and an MLP without activations. The
score is standardised with the mean and standard deviation that the checkpoint was published with.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import blip, heads
from diffusionrl_jax.rewards import checkpoint, preprocessing
from diffusionrl_jax.rewards.distinct import once_per_prompt

# Tensors of BLIP's pretraining, which ImageReward.pt holds and the score does not use.
UNUSED = (r"^blip\.(vision_proj|text_proj)\.", *weights.BUFFERS)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReward:
    """The reward model. The defaults are ImageReward-v1.0's.

    Attributes:
      model: BLIP's two encoders.
      tokenizer: BERT's tokenizer.
      mlp_widths: the widths of the head's hidden layers.
      score_mean: the number that is subtracted from the head's output.
      score_std: the number that then divides it.
      max_tokens: how many tokens prompts are cut or padded to.
    """

    model: blip.Blip
    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)
    mlp_widths: tuple[int, ...] = (1024, 128, 64, 16)
    score_mean: float = 0.16717362830052426
    score_std: float = 1.0333394966054072
    max_tokens: int = 35

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32
    ) -> tuple["ImageReward", dict[str, Any]]:
        """Opens a folder with config.json, model.safetensors and vocab.txt.

        config.json has {"vision_config": ViTConfig's fields, "text_config": BertConfig's fields}
        and the fields `mlp_widths`, `score_mean`, `score_std` and `max_tokens`. Whatever is left
        out is ImageReward-v1.0's. model.safetensors has the keys of ImageReward.pt.

        Args:
          path: the folder; `asset:emoji/image_reward` is the embedded one.
          dtype: the dtype that the encoders compute in.

        Returns:
          The reward and its parameters.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(path)
        reward = cls.from_config(config, checkpoint.read_bert_tokenizer(folder), dtype)
        vocab_size = reward.model.text.config.vocab_size
        text_encoders.check_vocabulary(reward.tokenizer, vocab_size, f"The tokenizer in {folder}")
        params = checkpoint.read_params(
            folder,
            reward.template(),
            rename=blip.rename,
            ignore=UNUSED,
            transform=blip.PROJECTIONS.split,
        )
        return reward, params

    @classmethod
    def from_config(cls, config: Mapping, tokenizer, dtype: jnp.dtype = jnp.float32):
        """Makes the reward that config.json describes, without its parameters."""
        fields = {
            key: config[key] for key in ("score_mean", "score_std", "max_tokens") if key in config
        }
        if "mlp_widths" in config:
            fields["mlp_widths"] = tuple(config["mlp_widths"])
        model = blip.build(config.get("vision_config", {}), config.get("text_config", {}), dtype)
        return cls(model=model, tokenizer=tokenizer, **fields)

    def template(self) -> dict:
        """Returns the shapes of the parameters: {"vision", "text", "mlp"}."""
        widths = (self.model.text.config.hidden_size, *self.mlp_widths, 1)
        return {**blip.template(self.model), "mlp": heads.stack_template(widths)}

    @once_per_prompt
    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenises prompts.

        Returns:
          {"input_ids", "attention_mask"}, each int32 [len(prompts), max_tokens].
        """
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="np",
        )
        return {
            key: np.asarray(encoded[key]).astype(np.int32)
            for key in ("input_ids", "attention_mask")
        }

    def head(self, params: Mapping, hidden: jax.Array) -> jax.Array:
        """Returns the standardised score, float32 [n], of the encoder's states [n, text width]."""
        raw = heads.stack(params["mlp"], hidden)[:, 0]
        return (raw - self.score_mean) / self.score_std

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores pictures for their prompts.

        Args:
          params: the parameters, from `load`.
          images: float [n, height, width, 3] in [0, 1].
          inputs: what `prepare` returned, n rows.

        Returns:
          float32 [n]; about -2 (bad) to 2 (good) for the published checkpoint.
        """
        pixels = preprocessing.square(images, self.model.vision.config.image_size)
        image = blip.encode_image(self.model, params, pixels)
        hidden = blip.encode_text(
            self.model, params, image, inputs["input_ids"], inputs["attention_mask"]
        )
        return self.head(params, hidden)
