r"""Scores the base model and checkpoints of it on a config's evaluation sets.

    python -m diffusionrl_jax.evaluate --config=configs/emoji.py --output=/tmp/results \
        --checkpoints=ours=/tmp/emoji@best,earlier=/tmp/emoji@12

All of them draw the same prompts with the same noise. Real pictures are scored beside them where
the emoji world can draw the prompts. The program writes results.md, results.csv and comparison.png.
"""

import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.evaluation.compare import compare_models, parse_checkpoint, split_checkpoints
from diffusionrl_jax.experiments import fields

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
CHECKPOINTS = flags.DEFINE_multi_string(
    "checkpoints",
    [],
    "name=PATH, of a run's workdir (PATH@step, @best or @last) or a folder; several after commas, "
    "or by the flag again.",
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
IMAGES = flags.DEFINE_integer("images", None, "Images of each set, instead of the config's.")
flags.mark_flag_as_required("config")


def main(_):
    with programs.clear_errors():
        fields.check_flags("evaluate", {IMAGES.name: IMAGES.value})
        start.start_devices()
        config = CONFIG.value
        fields.check(config)
        if IMAGES.value:
            for chosen in config.evaluation.sets.values():
                chosen.images = IMAGES.value
        output = str(prepare_folder(OUTPUT.value, "--output"))
        texts = [text for several in CHECKPOINTS.value for text in split_checkpoints(several)]
        tables = compare_models(config, [parse_checkpoint(text) for text in texts], output)
        if jax.process_index() == 0:
            print(tables)


if __name__ == "__main__":
    programs.run(main)
