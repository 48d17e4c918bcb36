"""What open_clip itself says, kept in open_clip_reference.json so that tests need not install it.

    pip install --target=FOLDER --no-deps open-clip-torch==3.3.0 torchvision==0.28.0 timm==1.0.31
    PYTHONPATH=FOLDER python tests/rewards/open_clip_reference.py

writes the file anew. It holds the names and shapes of ViT-H-14's tensors, the scores of a tiny
model of the same kind, and the token ids of prompts with the words and merges that they take: with
only those of CLIP's merges that are applied anywhere, in their order, the same are applied.
"""

import json
import re
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
# In open_clip's terms; tests/rewards/test_hps_v2.py has them in transformers'.
TINY = {
    "embed_dim": 20,
    "vision_cfg": {
        "layers": 2,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
        "image_size": 32,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {
        "layers": 2,
        "width": 24,
        "heads": 4,
        "vocab_size": 600,
        "context_length": 77,
        "mlp_ratio": 2.0,
    },
}
END = TINY["text_cfg"]["vocab_size"] - 1
# open_clip's own names of the two, and those of the published vocab.json.
SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
PROMPTS = (
    "a fox next to a cake",
    "A RED car,  and\ta BLUE\n dog ",
    "salt &amp; pepper",
    "salt &amp;amp; pepper &lt;3 <b>bold</b>",
    "\u72d0\u72f8\u4e0e\u86cb\u7cd5 in Kyoto",
    "a \U0001f98a eats \U0001f370\U0001f3fd!",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m",
    "\u201ccurly\u201d it\u2019s \u2026 \u2013 \ufb01sh \uff21\uff22",
    "schÃ¶n, the dogâ€™s bone",
    "it's 1234 miles, 4k, 8.5x11 #art @you",
    "portrait of a judge, highly detailed " * 20,
    "",
)


def shapes(blocks: dict[str, list]) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of what `blocks` keeps: names with {} for a number, how many, shape."""
    return {
        name.format(number): tuple(shape)
        for name, (count, shape) in blocks.items()
        for number in range(count)
    }


def make_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tiny model's float32 tensors; any NumPy makes the same."""
    state = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        values = 0.2 * np.random.RandomState(seed).standard_normal(shape)
        is_scale = re.search(r"\.?ln_\w+\.weight$", name) is not None
        state[name] = (values + is_scale).astype(np.float32)
    return state


def make_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [8, 32, 32, 3], and token ids int32 [8, 77] with 2 to 77 words."""
    random = np.random.RandomState(0)
    pictures = random.randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    input_ids = random.randint(0, END - 1, (8, 77)).astype(np.int32)
    for row, length in enumerate((2, 3, 5, 8, 13, 21, 50, 77)):
        input_ids[row, length - 1 :] = END
    return pictures, input_ids


def _blocks(state: dict) -> dict[str, list]:
    """The inverse of `shapes`."""
    blocks = {}
    for name, tensor in state.items():
        name = re.sub(r"\.(\d+)\.", ".{}.", name, count=1)
        count, shape = blocks.get(name, (0, list(tensor.shape)))
        assert shape == list(tensor.shape)
        blocks[name] = [count + 1, shape]
    return blocks


def _tokens(tokenizer) -> dict:
    ids = [row[: row.argmax() + 1].tolist() for row in tokenizer(list(PROMPTS)).numpy()]
    words = {tokenizer.decoder[number]: number for row in ids for number in row}
    # Every piece of a word, down to its letters, by undoing the merge that made it.
    merged = {"".join(pair): pair for pair in tokenizer.bpe_ranks}
    merges, waiting = set(), list(words)
    while waiting:
        if (pair := merged.get(waiting.pop())) and pair not in merges:
            merges.add(pair)
            waiting.extend(pair)
    ordered = sorted(merges, key=tokenizer.bpe_ranks.get)
    pieces = {piece for pair in ordered for piece in (*pair, "".join(pair))}
    words |= {piece: tokenizer.encoder[piece] for piece in pieces}
    for name, published in SPECIAL.items():
        words[published] = words.pop(name)
    vocabulary = dict(sorted(words.items(), key=lambda item: item[1]))
    return {
        "prompts": list(PROMPTS),
        "ids": ids,
        "vocabulary": vocabulary,
        "merges": [" ".join(pair) for pair in ordered],
    }


def main() -> None:
    import torch

    # Without them torchvision can't be imported beside a torch of another build; none is called.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import open_clip

    with torch.device("meta"):
        published = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).state_dict()
    model = open_clip.CLIP(**TINY).eval()
    tiny = _blocks(model.state_dict())
    state = make_state(shapes(tiny))
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    pictures, input_ids = make_inputs()
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pixels = (torch.tensor(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        image, text = (
            model.encode_image(pixels, True),
            model.encode_text(torch.tensor(input_ids), True),
        )
    reference = {
        "open_clip": open_clip.__version__,
        "published": _blocks(published),
        "tiny": tiny,
        "scores": (image * text).sum(-1).tolist(),
        "tokens": _tokens(open_clip.SimpleTokenizer()),
    }
    lines = json.dumps(reference, ensure_ascii=True, indent=1)
    # Lists and pairs on one line each.
    FILE.write_text(
        re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), lines) + "\n"
    )


if __name__ == "__main__":
    main()
