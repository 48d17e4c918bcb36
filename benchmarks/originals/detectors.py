"""OWL-ViT and OWLv2 in PyTorch: transformers' detectors and processors."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CLIPTokenizer

from diffusionrl_jax.models.folders import published
from originals import common

PUBLISHED_WIDTH = published.OWLV2["vision_config"]["hidden_size"]
OBJECTS = ("fox", "cake", "lighthouse", "dog", "cat", "car", "astronaut", "horse", "apple")
PROMPTS = (
    "a fox next to a cake",
    "An oil painting of a Lighthouse at dusk",
    "a dog and a cat",
    "a cake",
    "an apple beside a horse, 4k, highly detailed " + "and sharp " * 30,
    "a cat asleep on a red car",
    "a car near a fox; neon",
    "an astronaut riding a horse on the moon",
)
CLASSES = {
    "owlvit": (
        transformers.OwlViTConfig,
        transformers.OwlViTForObjectDetection,
        transformers.OwlViTImageProcessor,
    ),
    "owlv2": (
        transformers.Owlv2Config,
        transformers.Owlv2ForObjectDetection,
        transformers.Owlv2ImageProcessor,
    ),
}


@dataclasses.dataclass
class DetectionOriginal:
    """detection.

    Attributes:
      config: OwlViTConfig's or Owlv2Config's fields.
      model: the detector.
      processor: its preprocessing. OWLv2's computes in floating point, OWL-ViT's in 8 bits.
      tokenizer: CLIP's.
      exclusive: whether a box counts only for its best object.
    """

    config: dict
    model: torch.nn.Module
    processor: transformers.BaseImageProcessor
    tokenizer: CLIPTokenizer
    exclusive: bool = True
    reward = "detection"
    prompts = PROMPTS

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, in float16."""
        config = self.config | {"objects": OBJECTS}
        common.write_folder(folder, self.model.state_dict(), config)

    def pixels(self, picture: np.ndarray, eight_bits: bool) -> torch.Tensor:
        """What the detector sees of a uint8 picture [H, W, 3]: float32 [3, size, size]."""
        if eight_bits or self.config["model_type"] == "owlv2":
            return self.processor(picture, return_tensors="pt").pixel_values[0]
        size = self.config["vision_config"]["image_size"]
        return common.normalised(common.resized(picture, size, size, eight_bits))

    @torch.no_grad()
    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Eq. 13 for uint8 pictures [H, W, 3] of any sizes: float32 [n]."""
        pixels = torch.stack([self.pixels(picture, eight_bits) for picture in pictures])
        named = [
            [name for name in OBJECTS if re.search(rf"\b{name}\b", prompt.lower())]
            for prompt in prompts
        ]
        queries = max(map(len, named))
        encoded = self.tokenizer(
            [f"a photo of a {(*names, names[0])[i]}" for names in named for i in range(queries)],
            padding="max_length",
            max_length=self.config["text_config"]["max_position_embeddings"],
            truncation=True,
            return_tensors="pt",
        )
        mask = encoded["attention_mask"]
        logits = self.model(
            input_ids=encoded["input_ids"] * mask, attention_mask=mask, pixel_values=pixels
        ).logits
        scores = []
        for boxes, names in zip(logits, named, strict=True):
            boxes = boxes[:, : len(names)]
            probabilities = boxes.sigmoid()
            if self.exclusive:
                probabilities = probabilities * (boxes == boxes.amax(1, keepdim=True))
            scores.append(float(probabilities.amax(0).mean()))
        return np.array(scores, np.float32)


def make(reward: str, folder: Path, config: dict) -> DetectionOriginal:
    """As `originals.make`."""
    del reward
    make_config, make_model, make_processor = CLASSES[config["model_type"]]
    model = make_model(make_config(**config))
    if config["vision_config"]["hidden_size"] == PUBLISHED_WIDTH:
        # As drawn, logits of this width are in the hundreds: every score would be 1.
        for layer in (model.class_head.logit_shift, model.class_head.logit_scale):
            layer.weight.data.mul_(0.02)
    common.randomise(model)
    size = config["vision_config"]["image_size"]
    processor = make_processor(size={"height": size, "width": size})
    common.write_clip_tokenizer(folder, config["text_config"]["vocab_size"])
    return DetectionOriginal(config, model, processor, CLIPTokenizer.from_pretrained(folder))
