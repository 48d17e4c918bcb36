r"""Scores the base model and checkpoints of it on a config's evaluation sets.

    python -m diffusionrl_jax.evaluate --config=configs/emoji.py --output=/tmp/results \
        --checkpoints=ours=/tmp/emoji@best,earlier=/tmp/emoji@12

All draw the same prompts with the same noise; real pictures are scored beside them where the world
can draw them. It writes results.md, results.csv and comparison.png.
"""

import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax import programs, runs
from diffusionrl_jax.checkpoints import make_writable
from diffusionrl_jax.comparing import compare_models
from diffusionrl_jax.data.files import as_path, is_there
from diffusionrl_jax.distributed import start
from diffusionrl_jax.models import hub

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
CHECKPOINTS = flags.DEFINE_multi_string(
    "checkpoints",
    [],
    "name=PATH, of a run's workdir (PATH@step, @best or @last) or a folder; several after commas, "
    "or by the flag again.",
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
IMAGES = flags.DEFINE_integer("images", None, "Images of each set, instead of the config's.", 1)
flags.mark_flags_as_required(["config", "output"])


def split_checkpoints(text: str) -> list[str]:
    """Takes "name=PATH,name=PATH@step" apart at its commas, but for those of paths.

    A part without a name belongs to the path before; so does whatever makes a path that is there.
    """
    found, parts = [], text.split(",")
    while parts:
        count = len(parts)
        while count > 1 and not _is_there(",".join(parts[:count])):
            count -= 1
        while count < len(parts) and "=" not in parts[count]:
            count += 1
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return found


def _is_there(text: str) -> bool:
    location = text.partition("=")[2]
    return is_there(location) or is_there(runs.split_step(location)[0])


def parse_checkpoint(text: str) -> tuple[str, str, str]:
    """Name, path and step from "name=PATH@step".

    Raises:
      ValueError: if it is not of that form.
    """
    name, equals, location = text.partition("=")
    path, step = runs.split_step(location)
    if not (name and equals and path):
        raise ValueError(f"--checkpoints={text!r} is not name=PATH or name=PATH@step.")
    return name.strip(), hub.expand(path, f"--checkpoints={name}"), step


def main(_):
    with programs.clear_errors():
        start.start_devices()
        config = CONFIG.value
        if IMAGES.value:
            for chosen in config.evaluation.sets.values():
                chosen.images = IMAGES.value
        output = str(as_path(OUTPUT.value, "--output"))
        make_writable(output, "--output")
        texts = [text for several in CHECKPOINTS.value for text in split_checkpoints(several)]
        checkpoints = [parse_checkpoint(text) for text in texts if text]
        tables = compare_models(config, checkpoints, output)
        if jax.process_index() == 0:
            print(tables)


if __name__ == "__main__":
    programs.run(main)
