"""Draws prompts with a model, or with any checkpoint of a run, into a grid of pictures.

python -m diffusionrl_jax.sample --model=runs/emoji@best --prompts="an apple and a cake; a cat"
"""

import jax
from absl import flags, logging

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.data.files import prepare_file
from diffusionrl_jax.data.prompt_files import read_prompts
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.experiments import fields, planning
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.text_to_image import warn_of_cut
from diffusionrl_jax.monitoring.images import image_grid, write_png
from diffusionrl_jax.runs import trained

MODEL = flags.DEFINE_string(
    "model",
    None,
    "A run's workdir (PATH, PATH@step, @best or @last), a diffusers folder, a hub id, or asset:... "
    ".",
    required=True,
)
STEP = flags.DEFINE_string("step", "", "Of a run, as in --model=PATH@step.")
PROMPTS = flags.DEFINE_multi_string(
    "prompts", [], 'What to draw: "an apple; a cat"; more by the flag again.'
)
PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", "", "Their file, as a task's: text with one a line, or table.csv?field=caption."
)
IMAGES = flags.DEFINE_integer("images_per_prompt", 4, "Pictures in a row.")
OUTPUT = flags.DEFINE_string("output", "samples.png", "The PNG file to write.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "Of classifier-free guidance; the run's own, or the model's usual one."
)
EMBEDDED_GUIDANCE = flags.DEFINE_float(
    "embedded_guidance", None, "The scale that FLUX.1 dev takes as an input; the run's own, or 3.5."
)
STEPS = flags.DEFINE_integer(
    "steps", None, "Of denoising; the run's own, or 50. Another number draws other noise."
)
HEIGHT = flags.DEFINE_integer("height", None, "Of a picture in pixels; the run's or model's own.")
WIDTH = flags.DEFINE_integer("width", None, "As --height; both or none.")
ETA = flags.DEFINE_float("eta", None, "Of DDIM, 0 to 1; the run's own, or 1.")
# At a time, of each device.
MOST_AT_ONCE = 4
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "What the denoiser computes in; the run's own, or float32.",
)


def read_model() -> tuple[str, str]:
    """Returns the path and the step of the model that the flags name.

    Raises:
      UserError: as `runs.parse_model`, or two steps are named.
    """
    path, step = trained.parse_model(MODEL.value, "--model")
    if step and STEP.value not in ("", step):
        raise UserError(
            f"--model={MODEL.value} names another step than --step={STEP.value}: leave out one."
        )
    return path, step or STEP.value


def make_config(model: str):
    """Returns the model's own config, with the flags' changes."""
    config = trained.opening_config(model)
    config.dtype = DTYPE.value or config.dtype
    for flag in (GUIDANCE_SCALE, EMBEDDED_GUIDANCE, STEPS, ETA, HEIGHT, WIDTH):
        if flag.value is not None:
            config.sampler[flag.name] = flag.value
    return config


def read_all_prompts() -> list[str]:
    """Returns the prompts that the flags name.

    Raises:
      UserError, FileNotFoundError: there are none, or they are given twice.
    """
    if bool(PROMPTS.value) == bool(PROMPT_FILE.value):
        raise UserError('Give either --prompts="an apple; a cat" or --prompt_file.')
    if PROMPT_FILE.value:
        return list(read_prompts(PROMPT_FILE.value))
    prompts = []
    for text in PROMPTS.value:
        found = [prompt.strip() for prompt in text.split(";") if prompt.strip()]
        if not found:
            raise UserError(f"--prompts={text!r} holds no prompt.")
        prompts += found
    return prompts


def main(_):
    with programs.clear_errors():
        numbers = (IMAGES, SEED, GUIDANCE_SCALE, EMBEDDED_GUIDANCE, STEPS, ETA, HEIGHT, WIDTH)
        fields.check_flags("sample", {flag.name: flag.value for flag in numbers})
        start.start_devices()
        prompts, count = read_all_prompts(), IMAGES.value
        output = prepare_file(OUTPUT.value, "--output")
        model, step = read_model()
        trained.check_trained(model, step)  # A model of the hub is fetched first.
        config, at_once = planning.resolve_to_sample(make_config(model), MOST_AT_ONCE)
        policy = trained.load_trained(model, config, step)
        warn_of_cut(policy.model, prompts, "--prompt_file" if PROMPT_FILE.value else "--prompts")
        scale = config.sampler.guidance_scale
        embedded = getattr(policy.model, "embedded_guidance", None)
        if embedded is not None and scale > 1:
            logging.warning(
                "This model takes a scale of guidance as an input, %s; --guidance_scale=%g guides "
                "it once more, by the empty prompt: --embedded_guidance changes the input.",
                *(embedded, scale),
            )
        repeated = [prompt for prompt in prompts for _ in range(count)]
        batch = min(len(repeated), at_once * policy.mesh.size)
        # Each device decodes one at a time: at 1024 px a decoder's activations are gigabytes.
        sampler = Sampler(policy, config.sampler, batch, decode=1)
        images = sampler(policy.params, repeated, SEED.value)
        if jax.process_index() == 0:
            scale = max(1, 96 // images.shape[2])
            grid = image_grid(images, count, row_captions=prompts, scale=scale)
            write_png(output, grid)
            logging.info("Wrote %s", output)


if __name__ == "__main__":
    programs.run(main)
