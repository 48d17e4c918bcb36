"""The CLIP family of reward models in PyTorch, with random weights, as their authors run them.

What `reward_parity.py` and the tests hold this project's rewards against. The towers are
transformers' CLIPModel; the preprocessing is done twice, by Pillow in 8 bits as published, and by
PyTorch's antialiased bicubic in floating point.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
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
PUBLISHED = {"clip_score": VIT_L, "aesthetic": VIT_L, "pick_score": VIT_H, "hps_v2": VIT_H}
MLP_WIDTHS = (1024, 128, 64, 16)
LOGIT_SCALE = math.log(100)


def tiny(config: dict) -> dict:
    """A config of the same kind with towers of two layers; pictures are 32 pixels."""
    config = copy.deepcopy(config)
    config["projection_dim"] = 20
    small = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config["vision_config"] |= small | {"hidden_size": 32, "intermediate_size": 64}
    config["vision_config"] |= {"image_size": 32, "patch_size": 8}
    config["text_config"] |= small | {"hidden_size": 24, "intermediate_size": 48}
    config["text_config"] |= {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
    return config


def write_tokenizer(folder: Path, words: int) -> None:
    """Writes CLIP's tokenizer without merges: bytes, bytes that end a word, and fillers."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<filler {number}>" for number in range(words - len(tokens) - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


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
class Original:
    """A reward model in PyTorch.

    Attributes:
      reward: its name here.
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

    @property
    def size(self) -> int:
        """Of the image tower's input, pixels."""
        return self.config["vision_config"]["image_size"]

    def state(self) -> dict[str, torch.Tensor]:
        """The published file's tensors under its own keys; for `aesthetic`, the head's."""
        if self.reward == "aesthetic":
            return {f"layers.{name}": value for name, value in self.head.state_dict().items()}
        state = self.model.state_dict()
        return to_open_clip(state) if self.reward == "hps_v2" else state

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, in float16."""
        state, config = self.state(), self.config
        if self.reward == "aesthetic":
            seen = ("vision_model.", "visual_projection.")
            towers = self.model.state_dict().items()
            state |= {name: value for name, value in towers if name.startswith(seen)}
        state = {name: value.half().contiguous() for name, value in state.items()}
        safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))

    def pixels_in_8_bits(self, picture: np.ndarray) -> torch.Tensor:
        """The published preprocessing, which rounds to 8 bits after each pass of the resize."""
        if self.reward in ("clip_score", "pick_score"):
            size = {"shortest_edge": self.size}
            processor = CLIPImageProcessor(size=size, crop_size=self.size)
            return processor(picture, return_tensors="pt").pixel_values[0]
        height, width = self._resized(picture)
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        values = torch.tensor(np.asarray(image)).permute(2, 0, 1).float() / 255
        return self._framed(values)

    def pixels(self, picture: np.ndarray) -> torch.Tensor:
        """The same in floating point."""
        values = torch.tensor(picture).permute(2, 0, 1).float() / 255
        height, width = self._resized(picture)
        # Pillow's two passes, each clipped to the range of its 8 bits.
        for size in ((values.shape[1], width), (height, width)):
            values = torch.nn.functional.interpolate(
                values[None], size, mode="bicubic", antialias=True
            )[0].clamp(0, 1)
        return self._framed(values)

    def _resized(self, picture: np.ndarray) -> tuple[int, int]:
        height, width = picture.shape[:2]
        if self.reward == "hps_v2":
            scale = self.size / float(max(height, width))
            return round(height * scale), round(width * scale)
        short = min(height, width)
        return int(self.size * height / short), int(self.size * width / short)

    def _framed(self, values: torch.Tensor) -> torch.Tensor:
        """Cut or padded to a square, and normalised."""
        height, width = values.shape[1:]
        if self.reward == "hps_v2":
            below, right = self.size - height, self.size - width
            margins = (right // 2, right - right // 2, below // 2, below - below // 2)
            values = torch.nn.functional.pad(values, margins)
        else:
            surplus = height - self.size, width - self.size
            if self.reward == "aesthetic":  # torchvision's CenterCrop
                top, left = (int(round(pixels / 2.0)) for pixels in surplus)
            else:  # transformers' CLIPImageProcessor
                top, left = (pixels // 2 for pixels in surplus)
            values = values[:, top : top + self.size, left : left + self.size]
        return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    @torch.no_grad()
    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Scores uint8 pictures [H, W, 3] of any sizes: float32 [n]."""
        preprocess = self.pixels_in_8_bits if eight_bits else self.pixels
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        if self.reward == "aesthetic":
            features = self.model.get_image_features(pixel_values=pixels)
            return self.head(torch.nn.functional.normalize(features))[:, 0].numpy()
        encoded = self.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        logits = self.model(**encoded, pixel_values=pixels).logits_per_image.diagonal()
        scale = 1 if self.reward == "pick_score" else self.model.logit_scale.exp()
        return (logits / scale).numpy()


def make(reward: str, folder: Path, config: dict) -> Original:
    """An original with random weights that float16 holds exactly; its tokenizer in the folder."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**config)).eval()
    widths = (config["projection_dim"], *MLP_WIDTHS, 1)
    layers = []
    for index, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(torch.nn.Linear(inputs, outputs))
        if index < len(MLP_WIDTHS) - 1:
            layers.append(torch.nn.Dropout(0.2))
    head = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "layrnorm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.logit_scale.fill_(LOGIT_SCALE)
        for parameter in (*model.parameters(), *head.parameters()):
            parameter.copy_(parameter.half())
    write_tokenizer(folder, config["text_config"]["vocab_size"])
    return Original(reward, config, model, head, CLIPTokenizer.from_pretrained(folder))
