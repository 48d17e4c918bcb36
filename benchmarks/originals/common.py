"""What the PyTorch originals share: pictures, preprocessing, random weights, tokenizers."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from transformers.models.clip.tokenization_clip import bytes_to_unicode

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPTS = (
    "a fox next to a cake",
    "An oil painting of a lighthouse at dusk, by a master",
    "two dogs",
    "",
    "portrait of a judge, 4k, highly detailed " * 5,
    "a cat asleep on a red car",
    "caf\u00e9 in the rain; neon",
    "an astronaut riding a horse on the moon",
)
# Of the pictures that scores are compared on: height and width, pixels.
SIZES = (
    (512, 512),
    (512, 768),
    (768, 512),
    (427, 640),
    (224, 224),
    (200, 301),
    (333, 517),
    (1024, 771),
)
MLP_WIDTHS = (1024, 128, 64, 16)


def make_pictures(sizes=SIZES, seed: int = 0) -> list[np.ndarray]:
    """Smooth colours with noise and hard edges: uint8 [H, W, 3] each."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        rows, columns = np.mgrid[:height, :width] / 40
        waves = rng.normal(size=(3, 2, 1, 1))
        picture = np.sin(waves[:, 0] * rows + waves[:, 1] * columns + rng.normal(size=(3, 1, 1)))
        picture = 0.5 + 0.4 * picture + 0.1 * rng.normal(size=picture.shape)
        picture[:, : height // 3, width // 2 :] = rng.random((3, 1, 1))
        pictures.append((picture.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
    return pictures


def resized(picture: np.ndarray, height: int, width: int, eight_bits: bool) -> torch.Tensor:
    """A uint8 picture [H, W, 3] as float32 [3, height, width] in [0, 1], bicubic.

    Args:
      picture: uint8 [H, W, 3].
      height: of the result, pixels.
      width: of the result, pixels.
      eight_bits: as Pillow does, rounding after each pass; else in floating point.
    """
    if eight_bits:
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        return torch.tensor(np.asarray(image)).permute(2, 0, 1).float() / 255
    values = torch.tensor(picture).permute(2, 0, 1).float() / 255
    # Pillow's two passes, each clipped to the range of its 8 bits.
    for size in ((values.shape[1], width), (height, width)):
        values = torch.nn.functional.interpolate(
            values[None], size, mode="bicubic", antialias=True
        )[0].clamp(0, 1)
    return values


def normalised(values: torch.Tensor) -> torch.Tensor:
    """[3, H, W] less the channels' mean, over their standard deviation."""
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def square(
    picture: np.ndarray, size: int, eight_bits: bool, whole: Callable = round
) -> torch.Tensor:
    """The short side to `size`, the centre cut out: float32 [3, size, size].

    `whole` says how an odd margin is rounded: `round` as torchvision's CenterCrop.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    values = resized(picture, int(size * height / short), int(size * width / short), eight_bits)
    top, left = (int(whole((side - size) / 2)) for side in values.shape[1:])
    return normalised(values[:, top : top + size, left : left + size])


def padded(picture: np.ndarray, size: int, eight_bits: bool) -> torch.Tensor:
    """The long side to `size`, the rest black on either side: float32 [3, size, size]."""
    scale = size / float(max(picture.shape[:2]))
    height, width = (round(side * scale) for side in picture.shape[:2])
    below, right = size - height, size - width
    margins = (right // 2, right - right // 2, below // 2, below - below // 2)
    values = resized(picture, height, width, eight_bits)
    return normalised(torch.nn.functional.pad(values, margins))


def linear_stack(widths: Sequence[int]) -> torch.nn.Sequential:
    """Linear layers without activations, dropout before all but the first and the last.

    They keep their input's scale, so that scores spread about as those of a trained head.
    """
    layers = []
    for index, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(torch.nn.Linear(inputs, outputs))
        torch.nn.init.normal_(layers[-1].weight, std=inputs**-0.5)
        if index < len(widths) - 3:
            layers.append(torch.nn.Dropout(0.2))
    return torch.nn.Sequential(*layers)


@torch.no_grad()
def randomise(*modules: torch.nn.Module) -> None:
    """Moves biases and norms off their start, and all to what float16 holds exactly."""
    for module in modules:
        module.eval()
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "norm" in name or "layrnorm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            parameter.copy_(parameter.half())


def prefixed(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state, each name behind the prefix."""
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


def write_folder(folder: Path, state: dict[str, torch.Tensor], config: dict) -> None:
    """Writes model.safetensors, in float16, and config.json."""
    state = {name: value.half().contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def write_clip_tokenizer(folder: Path, words: int) -> None:
    """Writes CLIP's tokenizer without merges: bytes, bytes that end a word, and fillers."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += _fillers(words - len(tokens) - 2)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_bert_tokenizer(folder: Path, words: int) -> None:
    """Writes BERT's tokenizer with letters, letters inside a word, and fillers."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.;"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    tokens += _fillers(words - len(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")


def _fillers(count: int) -> Iterable[str]:
    return (f"<filler {number}>" for number in range(count))
