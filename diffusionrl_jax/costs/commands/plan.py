"""Shows what is chosen for a config on slices that are not there, and the memory that it takes.

    python -m diffusionrl_jax.benchmark plan
    python -m diffusionrl_jax.benchmark plan --configs=configs/hps.py --topologies=v5e:2x4
    python -m diffusionrl_jax.benchmark plan --config=configs/hps.py --config.lora.rank=16

The choice is made by arithmetic alone, at once, as a run makes it when it starts. Where a config
does not fit, the change that the run would propose is shown; what no run would begin with is told
below the table. With --compiled=FOLDER, one program is compiled for each row, as by `benchmark
compile`: the one that takes the most memory according to the plan. This takes hours (--quick takes
a fraction of them). Each result is kept in the folder, so that the same command continues later.
"""

import itertools
import os
from collections.abc import Mapping

import diffusers
import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.command_line.configs import read_config
from diffusionrl_jax.costs import slices
from diffusionrl_jax.costs.report import GIB
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.devices import devices_of_topology
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.monitoring.markdown import table

SLICES = ("v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v6e:1x1", "v6e:2x4", "v5p:2x2x1")
SLICES = (*SLICES, "v4:2x2x2")
# The rows that are shown unless others are asked for: the slices of each config.
USUAL = {
    "configs/hps.py": SLICES,
    "configs/joint.py": SLICES,
    "configs/hps.py:stable_diffusion_xl": ("v5p:2x2x1", "v6e:8x8", "v5e:4x4", "v5e:16x16"),
    "configs/joint.py:stable_diffusion_xl": ("v5p:2x2x1", "v6e:8x8", "v5e:4x4", "v5e:16x16"),
}
HEAD = ["", "slice", "besides", "fsdp", "gather", "sample, train", "decode", "score", "remat"]
HEAD = [*HEAD, "programs", "fullest in", "GiB a chip"]

CONFIG = config_flags.DEFINE_config_file("config", None, "One config, which may be changed.")
CONFIGS = flags.DEFINE_list("configs", None, "Files, as of --config; those of the documentation.")
COMPILED = flags.DEFINE_string("compiled", None, "A folder for what is compiled, if it is.")
QUICK = flags.DEFINE_bool("quick", False, "Compiles with less effort, several times faster.")
TOPOLOGIES = flags.DEFINE_list("topologies", None, "As v5e:4x4 or h100-80gb:8; these for each.")


def row(name: str, config: Config, topology: str, compiled: str | None, quick: bool) -> list[str]:
    """Returns a row of the table.

    Args:
      name: the config's name in the table.
      config: the experiment, see `experiments/config.py`.
      topology: the slice, as `devices_of_topology` knows it.
      compiled, quick: as in `markdown`.
    """
    changes, plan = planning.propose(config, devices_of_topology(topology))
    division, memory = plan.division, plan.devices.memory
    assert memory is not None  # It is known for topologies.
    whole = lambda size, of: "all" if size >= of else str(size)
    found = []
    if compiled:
        with config.unlocked():
            config.update_from_flattened_dict(changes)
        kept = slices.Kept(compiled, name, config, topology, plan.phase, quick, needed=False)
        kept.check()
        result = kept.result()
        found = [gibibytes(result["memory"], result["fits"])]
    return [
        name,
        chips.name(topology),
        " ".join(f"{field}={value}" for field, value in changes.items()),
        str(division.fsdp),
        division.gather,
        whole(division.train, division.share),
        str(division.decode),
        whole(division.score, division.share),
        division.remat,
        "a phase each" if plan.split else "one",
        plan.phase,
        gibibytes(plan.memory, plan.fits),
        *found,
        f"{memory / GIB:.4g}",
    ]


def gibibytes(size: float, fits: bool) -> str:
    """Returns a cell of the table for a size in bytes."""
    return f"{size / GIB:.2f}" if fits else f"does not fit: {size / GIB:.2f}"


def markdown(
    wanted: Mapping[str, tuple[str, ...]],
    compiled: str | None = None,
    quick: bool = False,
    changed: Config | None = None,
) -> str:
    """Returns the table as Markdown.

    Args:
      wanted: for each config's file, the topologies that it is shown for.
      compiled: a folder for the results of compiling; None compiles nothing.
      quick: whether to compile with less effort.
      changed: the config to show, with changes; None means what the files hold.

    Raises:
      UserError: there is no row: no config can be used, see `planning.propose`, or the folder holds
        the result of another config, see `slices.Kept.check`.
    """
    pairs = itertools.chain.from_iterable(
        itertools.product([name], topologies) for name, topologies in wanted.items()
    )
    rows, refused = [], []
    for name, topology in pairs:
        short = name.removeprefix("configs/").replace(".py", "")
        config = read_config(name, "--configs") if changed is None else copied(changed)
        try:
            rows.append(row(short, config, topology, compiled, quick))
        except UserError as error:
            refused.append((f"{short} on {chips.name(topology)}", error))
    if not rows:
        raise refused[0][1]
    head = [*HEAD, "compiled", "of"] if compiled else [*HEAD, "of"]
    return "\n".join([table(head, rows), *(f"\n- {where}: {why}" for where, why in refused)])


def main(_):
    """Runs the command."""
    diffusers.utils.logging.set_verbosity_error()
    with programs.clear_errors():
        if CONFIG.value is not None and CONFIGS.value:
            raise UserError("Give either --config, which may be changed, or --configs.")
        names = CONFIGS.value or USUAL
        if CONFIG.value is not None:
            names = [os.path.relpath(config_flags.get_config_filename(flags.FLAGS[CONFIG.name]))]
        wanted = {name: USUAL.get(name, SLICES) for name in names}
        if TOPOLOGIES.value:
            wanted = {name: tuple(TOPOLOGIES.value) for name in wanted}
        compiled = COMPILED.value and str(prepare_folder(COMPILED.value, "--compiled"))
        if compiled:
            jax.config.update("jax_platforms", "cpu")
        print(markdown(wanted, compiled, QUICK.value, CONFIG.value))
