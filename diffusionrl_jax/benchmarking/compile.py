"""Whether a config fits a TPU that is not there, and how fast it could be.

    python -m diffusionrl_jax.benchmark compile --config=configs/joint.py --topology=v5e:4x4

The train step's own programs are compiled with libtpu (`pip install libtpu`), for parameters of
which only the shapes exist. Nothing runs.
"""

import dataclasses
import json

from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax.benchmarking import compiled  # First: it sets libtpu's environment.

import diffusers  # isort: skip
import jax  # isort: skip
import ml_collections  # isort: skip

from diffusionrl_jax import programs
from diffusionrl_jax.benchmarking import abstract, chips, report
from diffusionrl_jax.benchmarking import phases as phases_of
from diffusionrl_jax.benchmarking.roofline import PhaseCost
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.published import HUB_IDS

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "As libtpu names it: v5e:4x4, v5p:4x4x4, v6e:8x8.")
MODEL = flags.DEFINE_enum("model", None, list(HUB_IDS), "A published model, for config.model.")
WHOLE = flags.DEFINE_bool("whole", False, "Compiles the fused step as one program.")
PHASES = flags.DEFINE_list("phases", None, "Only these, such as sample,update.")
NEEDED = flags.DEFINE_bool("needed", True, "Counts what the mathematics needs, too.")
JSON = flags.DEFINE_string("json", None, "A file for the results.")


def dry_run(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    whole: bool = False,
    only: list[str] | None = None,
    needed: bool = True,
) -> report.DryRun:
    """Compiles an iteration's programs for a topology.

    Args:
      config: see `configs/common.py`.
      topology: as libtpu names it.
      whole: as one program instead of one a phase.
      only: names of phases; "score" stands for all tasks' scores.
      needed: whether to count what the mathematics needs.

    Raises:
      ValueError: what does not fit, and the mend.
    """
    chip = chips.of_topology(topology)
    mesh = make_mesh(config.mesh.fsdp, compiled.topology_devices(topology))
    experiment = abstract.build(config, mesh)
    phases = [phases_of.whole_step(experiment)] if whole else phases_of.make_phases(experiment)
    names = {phase.name for phase in phases}
    if unknown := {name for name in only or () if not _chosen(name, names)}:
        raise ValueError(f"There are no phases {sorted(unknown)}: choose from {sorted(names)}.")
    phases = [phase for phase in phases if not only or _chosen(phase.name, set(only))]
    plain = phases_of.plain_operations(config, whole) if needed else None
    costs, programs_read = [], {}
    for phase in phases:
        if phase.function not in programs_read:
            logging.info("Compiling %s.", phase.name)
            programs_read[phase.function] = _cost(phase)
        costs.append(
            PhaseCost(
                phase.name,
                phase.repetitions,
                programs_read[phase.function],
                phase.resident,
                plain and plain[phase.name][1] / mesh.size,
            )
        )
    return report.DryRun(
        model=config.model,
        topology=topology,
        chip=chip,
        chips=mesh.size,
        fsdp=config.mesh.fsdp,
        microbatch=config.microbatch.to_dict(),
        remat=config.remat,
        images=len(config.tasks) * config.batch_size,
        whole=whole,
        assumed=experiment.assumed,
        phases=tuple(costs),
    )


def _chosen(name: str, names: set[str]) -> bool:
    """A task's score is asked for by its own name, or as "score"."""
    return bool({name, name.split()[0]} & (names | {other.split()[0] for other in names}))


def _cost(phase: phases_of.Phase) -> compiled.Cost | compiled.OutOfMemory:
    try:
        cost = compiled.read(*compiled.compile_program(phase.function.lower(*phase.arguments)))
    except compiled.OutOfMemory as error:
        logging.info("%s does not fit. %s", phase.name, error)
        return error
    logging.info(
        "%s took %.0f s: %.2f GiB of temporaries, %.4g TFLOP.",
        *(phase.name, cost.seconds, cost.temporaries / 2**30, cost.operations / 1e12),
    )
    return cost


def main(_):
    """The command."""
    for flag in ("config", "topology"):
        if flags.FLAGS[flag].value is None:
            raise ValueError(f"--{flag} is missing.")
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_platforms", "cpu")  # Compiling for a TPU needs none.
    config = CONFIG.value
    if MODEL.value:
        config.model = HUB_IDS[MODEL.value]
    with programs.clear_errors():
        result = dry_run(
            config,
            TOPOLOGY.value,
            whole=WHOLE.value,
            only=PHASES.value,
            needed=NEEDED.value,
        )
    print(result.markdown())
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump(dataclasses.asdict(result) | result.summary(), file, indent=2, default=str)
