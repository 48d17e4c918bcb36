"""What is chosen for a config on slices that are not there, and the memory that it takes.

    python -m diffusionrl_jax.benchmark plan
    python -m diffusionrl_jax.benchmark plan --configs=configs/hps.py --topologies=v5e:2x4

By arithmetic alone, at once, as a run chooses when it starts. Where a config does not fit, the
change that the run would propose is shown. With --compiled=FOLDER the program of which the plan
says that it takes the most memory is compiled for each row, as by `benchmark compile`, in hours
(--quick takes a fraction of them); each result is kept there, so that the same command goes on
later.
"""

import itertools

import diffusers
import jax
from absl import flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.command_line.configs import read_config
from diffusionrl_jax.costs import slices
from diffusionrl_jax.costs.report import GIB, table
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.experiments import planning

SLICES = ("v5e:1x1", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v6e:1x1", "v6e:2x4", "v5p:2x2x1")
SLICES = (*SLICES, "v4:2x2x2")
# What is shown unless asked for something else: config -> slices.
USUAL = {
    "configs/hps.py": SLICES,
    "configs/joint.py": SLICES,
    "configs/hps.py:stable_diffusion_xl": ("v5p:2x2x1", "v6e:8x8", "v5e:4x4", "v5e:16x16"),
    "configs/joint.py:stable_diffusion_xl": ("v5p:2x2x1", "v6e:8x8", "v5e:4x4", "v5e:16x16"),
}
HEAD = ["", "slice", "besides", "fsdp", "gather", "sample, train", "decode", "score", "remat"]
HEAD = [*HEAD, "programs", "fullest in", "GiB a chip"]

CONFIGS = flags.DEFINE_list("configs", None, "Files, as of --config; those of the documentation.")
COMPILED = flags.DEFINE_string("compiled", None, "A folder for what is compiled, if it is.")
QUICK = flags.DEFINE_bool("quick", False, "Compiles with less effort, several times faster.")
TOPOLOGIES = flags.DEFINE_list("topologies", None, "As v5e:4x4 or h100-80gb:8; these for each.")


def row(name: str, config: Config, topology: str, compiled: str | None, quick: bool) -> list[str]:
    """A line of the table.

    Args:
      name: of the config.
      config: see `experiments/config.py`.
      topology: as `planning.devices_of_topology` knows it.
      compiled, quick: as of `markdown`.
    """
    changes, plan = planning.propose(config, planning.devices_of_topology(topology))
    division, memory = plan.division, plan.devices.memory
    assert memory is not None  # Of a topology it is known.
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
    """What is said of a size in bytes."""
    return f"{size / GIB:.2f}" if fits else f"does not fit: {size / GIB:.2f}"


def markdown(
    wanted: dict[str, tuple[str, ...]], compiled: str | None = None, quick: bool = False
) -> str:
    """The table.

    Args:
      wanted: files of configs -> topologies.
      compiled: a folder for what is compiled; nothing is if it is None.
      quick: compiles with less effort.

    Raises:
      UserError: as `planning.choose` and `slices.Kept.check`.
    """
    pairs = itertools.chain.from_iterable(
        itertools.product([name], topologies) for name, topologies in wanted.items()
    )
    rows = []
    for name, topology in pairs:
        short = name.removeprefix("configs/").replace(".py", "")
        rows.append(row(short, read_config(name, "--configs"), topology, compiled, quick))
    head = [*HEAD, "compiled", "of"] if compiled else [*HEAD, "of"]
    return table(head, rows)


def main(_):
    """The command."""
    diffusers.utils.logging.set_verbosity_error()
    with programs.clear_errors():
        wanted = {name: USUAL.get(name, SLICES) for name in CONFIGS.value or USUAL}
        if TOPOLOGIES.value:
            wanted = {name: tuple(TOPOLOGIES.value) for name in wanted}
        compiled = COMPILED.value and str(prepare_folder(COMPILED.value, "--compiled"))
        if compiled:
            jax.config.update("jax_platforms", "cpu")
        print(markdown(wanted, compiled, QUICK.value))
