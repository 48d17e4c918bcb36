"""Human Preference Score v2 and v2.1: how much people would like this picture for the prompt.

Wu et al., arXiv 2306.09341: open_clip's ViT-H/14 tuned on rankings. The two versions differ in
their weights only.
"""

import html

import ftfy
import jax
from etils import epath

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import clip
from diffusionrl_jax.rewards import checkpoint, preprocessing
from diffusionrl_jax.rewards.clip_score import ClipScore

# The config.json of v2.0 and v2.1: open_clip's ViT-H-14, in transformers' terms.
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
# Buffers of open_clip's that older checkpoints store.
UNUSED = (r"^attn_mask$", *weights.BUFFERS)


class HpsV2(ClipScore):
    """The cosine of the embeddings of the whole picture, padded to a square, and the prompt.

    Folder and fields are those of `ClipScore`, but for the keys of the weights. About 0.2 to 0.35
    for the published checkpoints; tables often show 100 times that.
    """

    def read_params(self, folder: epath.Path) -> dict:
        """The parameters in the folder, under the keys of HPS_v2.1_compressed.pt: open_clip's."""
        return checkpoint.read_params(
            folder,
            clip.template(self.model),
            rename=clip.open_clip_rename,
            ignore=UNUSED,
            transform=clip.split_open_clip,
        )

    def clean(self, prompt: str) -> str:
        """As open_clip's tokenizer: mends broken Unicode and quotes, and resolves HTML's entities.

        Twice, since captions of the web are often escaped twice. Whitespace becomes single spaces,
        and capitals small.
        """
        text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
        return " ".join(text.split()).lower()

    def preprocess(self, images: jax.Array) -> jax.Array:
        """float [n, H, W, 3] in [0, 1] to the image tower's float32 [n, size, size, 3]."""
        return preprocessing.padded(images, self.model.vision.config.image_size)
