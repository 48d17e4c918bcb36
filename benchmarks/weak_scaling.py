"""What share of an iteration chips would spend in collectives, by how many there are.

    JAX_PLATFORMS=cpu python -m benchmarks.weak_scaling

Nothing runs. The emoji world's fused step, with as many images on each device every time, is
compiled for virtual CPU devices. What the compiled program computes, reads and sends is divided by
a TPU's peaks; a collective is taken to hide behind nothing.
"""

import dataclasses

import jax
from absl import app, flags, logging

from configs import emoji_policy_gradient
from diffusionrl_jax.costs import abstract, compiled, phases
from diffusionrl_jax.costs.roofline import PhaseCost
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.monitoring.markdown import table

DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "How many; powers of two.")
IMAGES = flags.DEFINE_integer("images", 40, "Of a task on each device; a multiple of 20.", 20)
CHIP = flags.DEFINE_enum("chip", "v5e", list(chips.TPUS), "Whose peaks.")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The fused step on some devices.

    Attributes:
      devices: how many.
      step: its cost.
    """

    devices: int
    step: PhaseCost

    def row(self, chip: chips.Chip) -> list[str]:
        """A line of the table whose head is `HEAD`."""
        seconds = self.step.seconds(chip)
        sent = seconds.pop("interconnect")
        share = sent / (sent + max(seconds.values()))
        kinds = self.step.cost.collectives
        text = ", ".join(
            f"{total.count} {kind} of {total.bytes / 1e6:.4g} MB"
            for kind, total in sorted(kinds.items())
        )
        return [str(self.devices), text or "none", f"{share:.2%}"]


HEAD = ["devices", "collectives of an iteration, on each device", "share of the time"]


def measure(devices: int, images: int) -> Scaling:
    """Compiles the fused step for a mesh of virtual devices.

    Args:
      devices: how many.
      images: of a task on each device.
    """
    config = emoji_policy_gradient.get_config()
    config.batch_size = images * devices
    mesh = make_mesh(1, jax.devices()[:devices])
    phase = phases.whole_step(abstract.build(config, mesh))
    cost = compiled.compile_program(phase.function.lower(*phase.arguments))
    return Scaling(devices, PhaseCost(phase.name, 1, cost, phase.resident, cost.arguments))


def main(_):
    counts = [int(count) for count in DEVICES.value]
    jax.config.update("jax_num_cpu_devices", max(counts))
    found = []
    for count in counts:
        logging.info("Compiling for %d.", count)
        found.append(measure(count, IMAGES.value))
    print(f"\n{IMAGES.value} images of a task on each device, {CHIP.value}'s peaks\n")
    print(table(HEAD, [scaling.row(chips.CHIPS[CHIP.value]) for scaling in found]))


if __name__ == "__main__":
    app.run(main)
