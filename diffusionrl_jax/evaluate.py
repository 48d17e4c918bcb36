r"""Scores the base model and checkpoints of it on a config's evaluation sets.

    python -m diffusionrl_jax.evaluate --config=configs/emoji.py --output=/tmp/results \
        --checkpoints=ours=/tmp/emoji@best,earlier=/tmp/emoji@12

All of them draw the same prompts with the same noise. Real pictures are scored beside them where
the emoji world can draw the prompts. The program writes results.md, results.csv, differences.csv,
comparison.png, categories.csv of suites, head_to_head.csv of several checkpoints, and
manifest.json, which says all that the numbers depend on:

    python -m diffusionrl_jax.evaluate --manifest=/tmp/results/manifest.json --output=/tmp/again

makes the same evaluation again, to the last digit, or says what differs.
"""

import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.evaluation import manifest
from diffusionrl_jax.evaluation.compare import compare_models, parse_checkpoint, split_checkpoints
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
CHECKPOINTS = flags.DEFINE_multi_string(
    "checkpoints",
    [],
    "name=PATH, of a run's workdir (PATH@step, @best or @last) or a folder; several after commas, "
    "or by the flag again.",
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
MANIFEST = flags.DEFINE_string(
    "manifest",
    None,
    "The manifest.json of an evaluation, which is made again. With a --config, that config's "
    "evaluation is made, if it is the same.",
)
IMAGES = flags.DEFINE_integer("images", None, "Images of each set, instead of the config's.")


def _wanted(earlier: manifest.Manifest | None) -> tuple[Config, list[manifest.Model]]:
    """Returns the config and the checkpoints that are asked for."""
    texts = [text for several in CHECKPOINTS.value for text in split_checkpoints(several)]
    if CONFIG.value is None:
        if earlier is None:
            raise UserError("Give a --config, or the --manifest of an evaluation to make again.")
        if texts or IMAGES.value:
            raise UserError("--checkpoints and --images go with a --config: leave them out.")
        return earlier.config, earlier.checkpoints
    config = CONFIG.value
    fields.check(config)
    if IMAGES.value:
        for chosen in config.evaluation.sets.values():
            chosen.images = IMAGES.value
    return config, [parse_checkpoint(text) for text in texts]


def main(_):
    with programs.clear_errors():
        fields.check_flags("evaluate", {IMAGES.name: IMAGES.value})
        start.start_devices()
        earlier = manifest.read(MANIFEST.value) if MANIFEST.value is not None else None
        config, checkpoints = _wanted(earlier)
        output = str(prepare_folder(OUTPUT.value, "--output"))
        tables = compare_models(config, checkpoints, output, earlier)
        if jax.process_index() == 0:
            print(tables)


if __name__ == "__main__":
    programs.run(main)
