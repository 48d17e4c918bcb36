"""The CLIP family in PyTorch: transformers' CLIPModel, and heads on its image tower."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from originals import common

# OpenAI's ViT-L/14 and LAION's ViT-H/14, in transformers' terms.
VIT_L = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "vocab_size": 49408,
    },
}
VIT_H = {
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
        "hidden_act": "gelu",
        "vocab_size": 49408,
    },
}
PARITY = {
    "vision_config": VIT_L["vision_config"],
    "classes": ["lightest", "light", "dark", "darkest"],
}
LOGIT_SCALE = math.log(100)


def to_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CLIPModel's state under open_clip's keys."""
    result = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm"}
    norms |= {"visual.ln_post": "vision_model.post_layernorm"}
    norms |= {"ln_final": "text_model.final_layer_norm"}
    modules = dict(norms)
    for prefix, tower in (("visual.", "vision_model"), ("", "text_model")):
        position = f"{tower}.embeddings.position_embedding.weight"
        result[f"{prefix}positional_embedding"] = state[position]
        layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder")}
        for number in layers:
            block = f"{prefix}transformer.resblocks.{number}"
            layer = f"{tower}.encoder.layers.{number}"
            modules[f"{block}.ln_1"] = f"{layer}.layer_norm1"
            modules[f"{block}.ln_2"] = f"{layer}.layer_norm2"
            modules[f"{block}.attn.out_proj"] = f"{layer}.self_attn.out_proj"
            modules[f"{block}.mlp.c_fc"] = f"{layer}.mlp.fc1"
            modules[f"{block}.mlp.c_proj"] = f"{layer}.mlp.fc2"
            for leaf in ("weight", "bias"):
                parts = [state[f"{layer}.self_attn.{role}_proj.{leaf}"] for role in "qkv"]
                result[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
    for name, source in modules.items():
        result |= {f"{name}.{leaf}": state[f"{source}.{leaf}"] for leaf in ("weight", "bias")}
    return result


@dataclasses.dataclass
class ClipOriginal:
    """clip_score, pick_score, hps_v2 or aesthetic.

    Attributes:
      reward: which.
      config: CLIPConfig's fields.
      model: the towers.
      head: the aesthetic score's layers.
      tokenizer: CLIP's.
    """

    reward: str
    config: dict
    model: CLIPModel
    head: torch.nn.Module
    tokenizer: CLIPTokenizer
    prompts = common.PROMPTS

    @property
    def size(self) -> int:
        """Of the image tower's input, pixels."""
        return self.config["vision_config"]["image_size"]

    def state(self) -> dict[str, torch.Tensor]:
        """The published file's tensors under its own keys; for `aesthetic`, the head's."""
        if self.reward == "aesthetic":
            return common.prefixed("layers.", self.head)
        state = self.model.state_dict()
        return to_open_clip(state) if self.reward == "hps_v2" else state

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, in float16."""
        state = self.state()
        if self.reward == "aesthetic":
            seen = ("vision_model.", "visual_projection.")
            towers = self.model.state_dict().items()
            state |= {name: value for name, value in towers if name.startswith(seen)}
        common.write_folder(folder, state, self.config | {"model_type": "clip"})

    def pixels(self, picture: np.ndarray, eight_bits: bool = False) -> torch.Tensor:
        """What the tower sees of a uint8 picture [H, W, 3]: float32 [3, size, size].

        In 8 bits the preprocessing is the published one, else the same in floating point.
        """
        if self.reward == "hps_v2":
            return common.padded(picture, self.size, eight_bits)
        if self.reward == "aesthetic":
            return common.square(picture, self.size, eight_bits)
        if eight_bits:
            size = {"shortest_edge": self.size}
            processor = CLIPImageProcessor(size=size, crop_size=self.size)
            return processor(picture, return_tensors="pt").pixel_values[0]
        return common.square(picture, self.size, eight_bits, math.floor)

    @torch.no_grad()
    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Scores uint8 pictures [H, W, 3] of any sizes: float32 [n]."""
        pixels = torch.stack([self.pixels(picture, eight_bits) for picture in pictures])
        if self.reward == "aesthetic":
            features = self.model.get_image_features(pixel_values=pixels)
            return self.head(torch.nn.functional.normalize(features))[:, 0].numpy()
        encoded = self.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        logits = self.model(**encoded, pixel_values=pixels).logits_per_image.diagonal()
        scale = 1 if self.reward == "pick_score" else self.model.logit_scale.exp()
        return (logits / scale).numpy()


def make(reward: str, folder: Path, config: dict) -> ClipOriginal:
    """As `originals.make`."""
    model = CLIPModel(CLIPConfig(**config))
    with torch.no_grad():
        model.logit_scale.fill_(LOGIT_SCALE)
    head = common.linear_stack((config["projection_dim"], *common.MLP_WIDTHS, 1))
    common.randomise(model, head)
    common.write_clip_tokenizer(folder, config["text_config"]["vocab_size"])
    return ClipOriginal(reward, config, model, head, CLIPTokenizer.from_pretrained(folder))


@dataclasses.dataclass
class ParityOriginal:
    """statistical_parity: a linear classifier of CLIP's pooled image.

    Attributes:
      config: CLIPVisionConfig's fields, and the classes' names.
      model: the image tower.
      head: the classifier.
    """

    config: dict
    model: CLIPVisionModel
    head: torch.nn.Linear
    reward = "statistical_parity"
    prompts = common.PROMPTS

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, in float16."""
        state = self.model.state_dict() | common.prefixed("classifier.", self.head)
        common.write_folder(folder, state, self.config)

    @torch.no_grad()
    def classify(self, pictures: Sequence[np.ndarray], eight_bits: bool) -> np.ndarray:
        """Probabilities of the classes, float32 [n, classes]."""
        size = self.config["vision_config"]["image_size"]
        pixels = torch.stack(
            [common.square(picture, size, eight_bits, math.floor) for picture in pictures]
        )
        return self.head(self.model(pixels).pooler_output).softmax(-1).numpy()

    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Minus the parity of all the pictures as one group: float32 [n], all the same."""
        probabilities = self.classify(pictures, eight_bits)
        count = probabilities.shape[-1]
        frequencies = np.bincount(probabilities.argmax(-1), minlength=count) / len(pictures)
        distance = np.linalg.norm(frequencies - 1 / count)
        return np.full(len(pictures), -distance, np.float32)


def make_parity(reward: str, folder: Path, config: dict) -> ParityOriginal:
    """As `originals.make`."""
    del reward
    model = CLIPVisionModel(CLIPVisionConfig(**config["vision_config"]))
    head = torch.nn.Linear(config["vision_config"]["hidden_size"], len(config["classes"]))
    common.randomise(model, head)
    folder.mkdir(parents=True, exist_ok=True)
    return ParityOriginal(config, model, head)
