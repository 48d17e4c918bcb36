"""Human Preference Score v2 and v2.1: how much people would like a picture for its prompt.

Wu et al., arXiv 2306.09341: open_clip's ViT-H/14 tuned on rankings. The two versions differ only in
their weights.
"""

import html

import ftfy
import jax
from etils import epath

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import clip
from diffusionrl_jax.rewards import checkpoint, preprocessing
from diffusionrl_jax.rewards.clip_score import ClipScore

# The config.json of v2.0 and v2.1: open_clip's ViT-H-14 in transformers' terms.
PUBLISHED = {
    "model_type": "clip",
    "projection_dim": 1024,
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 49408,
        "hidden_act": "gelu",
    },
}
# Buffers of open_clip that older checkpoints store.
UNUSED = (r"^attn_mask$", *weights.BUFFERS)


class HpsV2(ClipScore):
    """The reward that is the cosine between the embeddings of a padded picture and of its prompt.

    The folder and the fields are those of `ClipScore`, except for the keys of the weights. Scores
    are about 0.2 to 0.35 for the published checkpoints; tables often show 100 times that.
    """

    def read_params(self, folder: epath.Path) -> dict:
        """Reads the folder's parameters, under open_clip's keys as in HPS_v2.1_compressed.pt."""
        return checkpoint.read_params(
            folder,
            clip.template(self.model),
            rename=clip.open_clip_rename,
            ignore=UNUSED,
            transform=clip.split_open_clip,
        )

    def clean(self, prompt: str) -> str:
        """Cleans a prompt as open_clip's tokenizer does.

        It mends broken Unicode and quotes, resolves HTML's entities twice, since captions from the
        web are often escaped twice, makes whitespace single spaces, and makes letters lower case.
        """
        text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
        return " ".join(text.split()).lower()

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Turns images, float [n, height, width, 3] in [0, 1], into the image tower's input.

        Returns:
          float32 [n, size, size, 3], normalised.
        """
        return preprocessing.padded(images, self.model.vision.config.image_size)
