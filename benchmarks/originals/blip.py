"""ImageReward in PyTorch: transformers' BLIP encoders and the published head."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from originals import common

# ImageReward-v1.0: ViT-L/16, and BERT base with [DEC] and [ENC].
PUBLISHED = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30524,
    },
}
TOKENS = 35
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
# transformers' names to those of BLIP's own code, which ImageReward.pt keeps.
NAMES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
)


def _published_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@dataclasses.dataclass
class BlipOriginal:
    """image_reward.

    Attributes:
      config: ViTConfig's and BertConfig's fields.
      vision: BLIP's image encoder.
      text: BLIP's image-grounded text encoder.
      head: the score's layers.
      tokenizer: BERT's.
    """

    config: dict
    vision: BlipVisionModel
    text: BlipTextModel
    head: torch.nn.Module
    tokenizer: BertTokenizer
    reward = "image_reward"
    prompts = common.PROMPTS

    def state(self) -> dict[str, torch.Tensor]:
        """The published file's tensors under its own keys."""
        vision = self.vision.state_dict().items()
        state = {f"blip.visual_encoder.{_published_name(name)}": value for name, value in vision}
        state |= common.prefixed("blip.text_encoder.", self.text)
        # In the file, and of no use to the score.
        state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
        state["blip.vision_proj.weight"] = torch.zeros(4, self.vision.config.hidden_size)
        return state | common.prefixed("mlp.layers.", self.head)

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, in float16."""
        common.write_folder(folder, self.state(), self.config)

    @torch.no_grad()
    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Scores uint8 pictures [H, W, 3] of any sizes: float32 [n]."""
        size = self.config["vision_config"]["image_size"]
        pixels = torch.stack([common.square(picture, size, eight_bits) for picture in pictures])
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        hidden = self.text(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            encoder_hidden_states=self.vision(pixels).last_hidden_state,
            is_decoder=False,
        ).last_hidden_state
        return ((self.head(hidden[:, 0])[:, 0] - SCORE_MEAN) / SCORE_STD).numpy()


def make(reward: str, folder: Path, config: dict) -> BlipOriginal:
    """As `originals.make`."""
    del reward
    widths = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
    # BLIP's own initial weights are so small that no picture would differ from another.
    vision = BlipVisionConfig(
        **config["vision_config"],
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        initializer_range=widths[0] ** -0.5,
    )
    text = BlipTextConfig(
        **config["text_config"],
        encoder_hidden_size=widths[0],
        is_decoder=True,  # which adds the cross-attention
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        initializer_range=widths[1] ** -0.5,
    )
    modules = (
        BlipVisionModel(vision),
        BlipTextModel(text, add_pooling_layer=False),
        common.linear_stack((widths[1], *common.MLP_WIDTHS, 1)),
    )
    common.randomise(*modules)
    common.write_bert_tokenizer(folder, config["text_config"]["vocab_size"])
    return BlipOriginal(config, *modules, BertTokenizer.from_pretrained(folder))
