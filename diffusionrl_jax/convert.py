r"""Turns a published reward model's pickle into the folder that training loads, once.

    python -m diffusionrl_jax.convert --source=HPS_v2.1_compressed.pt --reward=hps_v2 \
        --tokenizer=FOLDER --output=/models/hps_v2.1

A config that names the model by its id on the Hugging Face hub needs none of this: `main` and
`fetch` do the same by themselves.
"""

from typing import Any

from absl import flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.rewards import conversion

FLAGS = {
    "source": "The published .pt or .pth file.",
    "reward": f"Whose file it is: one of {', '.join(conversion.CONFIGS)}.",
    "output": "The folder to write; must not exist.",
    "tokenizer": "A folder with the tokenizer's files.",
    "clip": "For aesthetic: openai/clip-vit-large-patch14's folder.",
    "config": "A config.json, of another size than the published one.",
}


def main(_):
    with programs.clear_errors():
        options: dict[str, Any] = {name: flags.FLAGS[name].value for name in FLAGS}
        conversion.convert(**options)


if __name__ == "__main__":
    for name, description in FLAGS.items():
        required = name in ("source", "reward", "output")
        flags.DEFINE_string(name, None if required else "", description, required=required)
    programs.run(main)
