"""Writes what a run has trained as a folder, or a LoRA file, that PyTorch's diffusers opens.

    python -m diffusionrl_jax.export --checkpoint=/tmp/emoji@best --output=/tmp/emoji_diffusers

The folder is a whole pipeline, for `StableDiffusionPipeline.from_pretrained` and for
`config.model`. With --lora it holds a run's LoRA factors alone, for `pipe.load_lora_weights`. Both
hold the parameters that evaluation draws with: their average, where the run kept one.
"""

from absl import flags, logging

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.runs import export

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's workdir (PATH, PATH@step, @best or @last), a diffusers folder, a hub id, or asset:... "
    ".",
    required=True,
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "What the weights are stored as."
)
LORA = flags.DEFINE_bool("lora", False, "Write the LoRA factors instead of the whole model.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Write into a folder that is not empty.")


def main(_):
    with programs.clear_errors():
        output = export.prepare_output(OUTPUT.value, OVERWRITE.value)
        write = export.export_lora if LORA.value else export.export_pipeline
        write(CHECKPOINT.value, output, DTYPE.value)
        logging.info("Wrote %s", output)


if __name__ == "__main__":
    programs.run(main)
