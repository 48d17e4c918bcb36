"""What is chosen for a config on slices that are not there, and the memory that it takes.

    python -m diffusionrl_jax.benchmark plan
    python -m diffusionrl_jax.benchmark plan --configs=configs/hps.py --topologies=v5e:2x4

By arithmetic alone, at once, as a run chooses when it starts: `benchmark compile` asks the
compiler. Where a config does not fit, the change that the run would propose is shown.
"""

import itertools

from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.costs.report import GIB, table
from diffusionrl_jax.data.config_type import Config
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
HEAD = [*HEAD, "programs", "fullest in", "GiB a chip", "of"]

CONFIGS = flags.DEFINE_list("configs", None, "Files, as of --config; those of the documentation.")
TOPOLOGIES = flags.DEFINE_list("topologies", None, "As v5e:4x4 or h100-80gb:8; these for each.")


def read_config(path: str) -> Config:
    """The config of a file, as `--config` reads it.

    Args:
      path: such as configs/joint.py:stable_diffusion_xl.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["plan", f"--config={path}"])
    return values.config


def row(name: str, config: Config, topology: str) -> list[str]:
    """A line of the table.

    Args:
      name: of the config.
      config: see `experiments/config.py`.
      topology: as `planning.devices_of_topology` knows it.
    """
    changes, plan = planning.propose(config, planning.devices_of_topology(topology))
    division, memory = plan.division, plan.devices.memory
    assert memory is not None  # Of a topology it is known.
    whole = lambda size, of: "all" if size >= of else str(size)
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
        f"{plan.memory / GIB:.2f}" if plan.fits else f"does not fit: {plan.memory / GIB:.2f}",
        f"{memory / GIB:.4g}",
    ]


def markdown(wanted: dict[str, tuple[str, ...]]) -> str:
    """The table.

    Args:
      wanted: files of configs -> topologies.

    Raises:
      UserError: as `planning.choose`.
    """
    pairs = itertools.chain.from_iterable(
        itertools.product([name], topologies) for name, topologies in wanted.items()
    )
    rows = []
    for name, topology in pairs:
        short = name.removeprefix("configs/").replace(".py", "")
        rows.append(row(short, read_config(name), topology))
    return table(HEAD, rows)


def main(_):
    """The command."""
    with programs.clear_errors():
        wanted = {name: USUAL.get(name, SLICES) for name in CONFIGS.value or USUAL}
        if TOPOLOGIES.value:
            wanted = {name: tuple(TOPOLOGIES.value) for name in wanted}
        print(markdown(wanted))
