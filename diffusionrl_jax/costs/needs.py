"""What the mathematics of an iteration asks of chips, whatever program is made of it."""

import dataclasses

from diffusionrl_jax.costs import compiled, phases
from diffusionrl_jax.costs.report import GIB
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.mesh import abstract_arrays, make_mesh, parameter_sharding
from diffusionrl_jax.experiments import divisions
from diffusionrl_jax.experiments.algorithm import images_per_iteration
from diffusionrl_jax.models.folders.published import HUB_IDS
from diffusionrl_jax.monitoring.markdown import table

# Column -> the phases that it adds up.
COLUMNS = {
    "sample": ("sample",),
    "decode": ("decode",),
    "score": ("score", "prepare"),
    "update": ("update",),
    "pretrain": ("pretrain",),
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an iteration needs.

    Attributes:
      model: the name of a published model.
      images: how many images an iteration draws.
      operations: column of `COLUMNS` -> floating-point operations for one image.
      parameters: the shapes of the state, of the frozen parameters, and of what a run holds
        besides.
      rest: the bytes of all that is split over the batch, on all chips together.
      fsdp: over how many chips each large parameter is split; 0 means as many as a plan usually
        takes.
    """

    model: str
    images: int
    operations: dict[str, float]
    parameters: tuple
    rest: int
    fsdp: int

    def held(self, topology: str) -> float:
        """Returns the bytes held on each chip of a topology, without any program's temporaries."""
        devices = compiled.topology_devices(topology)
        mesh = make_mesh(self.fsdp or divisions.usual_split(len(devices)), devices)
        parameters = abstract_arrays(self.parameters, parameter_sharding(mesh, self.parameters))
        return phases.bytes_per_chip(parameters) + self.rest / len(devices)

    def bound(self, chip: chips.Chip) -> float:
        """Returns the images per second and chip if the chip were always at its peak."""
        return chip.operations / sum(self.operations.values())


def needs(config: Config, model: str) -> Needs:
    """Counts what a config needs with a published model.

    Args:
      config: the experiment, see `experiments/config.py`.
      model: the published model's name, which takes the place of config.model.

    Raises:
      UserError: the config cannot be used; the error says what to change.
    """
    config = copied(config)
    config.model, fsdp = HUB_IDS[model], config.mesh.fsdp
    experiment = phases.plain_experiment(config)
    made = phases.make_phases(experiment)
    of_call = phases.operations(made)
    images = images_per_iteration(config)
    parameters = (experiment.state, experiment.frozen, experiment.kept)
    return Needs(
        model=model,
        images=images,
        operations={
            column: sum(
                phase.repetitions * of_call[phase.name] / images
                for phase in made
                if phase.name.split()[0] in names
            )
            for column, names in COLUMNS.items()
        },
        parameters=parameters,
        rest=max(phase.resident for phase in made) - phases.bytes_per_chip(parameters),
        fsdp=fsdp,
    )


def markdown(found: list[Needs], topologies: list[str]) -> str:
    """Returns two tables: what an image needs, and what that means on each slice.

    Raises:
      UserError: a topology is unknown.
    """
    per_image = [
        [one.model, *(f"{value / 1e12:.4g}" for value in one.operations.values())]
        + [f"{sum(one.operations.values()) / 1e12:.4g}"]
        for one in found
    ]
    slices = []
    for one in found:
        for topology in topologies:
            chip = chips.of_topology(topology)
            slices.append(
                [one.model, chips.name(topology), f"{one.held(topology) / GIB:.2f}"]
                + [f"{chip.memory / GIB:.4g}", f"{one.bound(chip):.3f}"]
            )
    return "\n\n".join(
        [
            table(["TFLOP an image", *COLUMNS, "together"], per_image),
            table(["", "slice", "held, GiB", "HBM, GiB", "images/s/chip at most"], slices),
        ]
    )
