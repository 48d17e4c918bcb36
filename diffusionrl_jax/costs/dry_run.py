"""Compiles an iteration's programs for a TPU that is not there."""

from absl import logging

from diffusionrl_jax.costs import abstract, compiled, report
from diffusionrl_jax.costs import phases as phases_of
from diffusionrl_jax.costs.roofline import PhaseCost
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.devices import devices_of_topology
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.experiments.algorithm import images_per_iteration
from diffusionrl_jax.mistakes import UserError


def dry_run(
    config: Config,
    topology: str,
    *,
    whole: bool = False,
    only: list[str] | None = None,
    needed: bool = True,
    save: str | None = None,
    quick: bool = False,
) -> report.DryRun:
    """Compiles an iteration's programs for a topology.

    Args:
      config: the experiment, see `experiments/config.py`. What it leaves open is chosen by
        `planning`.
      topology: the slice, as libtpu names it.
      whole: whether the iteration is compiled as one program instead of one for each phase.
      only: the names of the phases to compile, if not all; "score" stands for all tasks' scores.
      needed: whether to count what the mathematics needs.
      save: a folder for the compiled programs' texts.
      quick: whether the compiler makes less effort; see `compiled.compile_program`.

    Returns:
      What each phase costs, also where it does not fit.

    Raises:
      UserError: the config, the topology or a phase's name cannot be used; the error says what to
        change.
    """
    chip = chips.of_topology(topology)
    devices = compiled.topology_devices(topology)
    config, plan = planning.resolve(config, devices_of_topology(topology), refuse=False)
    logging.info("%s: %s.", topology, plan)
    mesh = make_mesh(config.mesh.fsdp, devices)
    experiment = abstract.build(config, mesh)
    phases = _phases(experiment, whole)
    if only:
        phases = _choose(phases, only)
    plain = {}
    if needed:
        chosen = {phase.name for phase in phases}
        plain = phases_of.operations(
            [
                phase
                for phase in _phases(phases_of.plain_experiment(config, mesh.size), whole)
                if phase.name in chosen
            ]
        )
    costs, programs_read = [], {}
    for phase in phases:
        if phase.function not in programs_read:
            logging.info("Compiling %s.", phase.name)
            programs_read[phase.function] = _cost(phase, save, quick)
        costs.append(
            PhaseCost(
                phase.name,
                phase.repetitions,
                programs_read[phase.function],
                phase.resident,
                phases_of.bytes_per_chip(phase.arguments),
                plain[phase.name] / mesh.size if plain else None,
            )
        )
    return report.DryRun(
        model=config.model,
        topology=topology,
        compiler=compiled.compiler(),
        chip=chip,
        chips=mesh.size,
        fsdp=config.mesh.fsdp,
        microbatch=config.microbatch.to_dict(),
        remat=config.remat,
        planned=plan.memory,
        images=images_per_iteration(config),
        whole=whole,
        partial=bool(only),
        quick=quick,
        assumed=experiment.assumed,
        phases=tuple(costs),
    )


def _phases(experiment: abstract.AbstractExperiment, whole: bool) -> list[phases_of.Phase]:
    """Returns the iteration as one program, or as its phases."""
    return [phases_of.whole_step(experiment)] if whole else phases_of.make_phases(experiment)


def _choose(phases: list[phases_of.Phase], only: list[str]) -> list[phases_of.Phase]:
    """Returns the phases that are named in `only`, by their whole name or its first word."""
    names = {phase.name: {phase.name, phase.name.split()[0]} for phase in phases}
    known = set().union(*names.values())
    if unknown := set(only) - known:
        raise UserError(f"There are no phases {sorted(unknown)}: choose from {sorted(known)}.")
    return [phase for phase in phases if names[phase.name] & set(only)]


def _cost(
    phase: phases_of.Phase, save: str | None, quick: bool
) -> compiled.Cost | compiled.OutOfMemory:
    """Compiles a phase, and returns what it costs, or the error that tells that it does not fit."""
    file = save and f"{save}/{phase.name.replace(' ', '_')}.txt"
    try:
        cost = compiled.compile_program(phase.function.lower(*phase.arguments), quick, file)
    except compiled.OutOfMemory as error:
        logging.info("%s does not fit. %s", phase.name, error)
        return error
    logging.info(
        "%s took %.0f s: %.2f GiB of temporaries, %.4g TFLOP.",
        *(phase.name, cost.seconds, cost.temporaries / 2**30, cost.operations / 1e12),
    )
    return cost
