"""Which slices train Stable Diffusion 3.5 and FLUX, and how fast at most.

    JAX_PLATFORMS=cpu python -m benchmarks.flow_slices

Nothing runs, and nothing is compiled: all is arithmetic. Memory is the plan's
(`experiments/planning.py`), operations are those of the transformer, and bytes those of parameters
and gradients. An iteration takes at least as long as the chips' peaks take for the larger of both.
"""

import dataclasses

import diffusers

from configs import pick_score
from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.costs.report import GIB
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.devices import devices_of_topology
from diffusionrl_jax.experiments import memory, planning
from diffusionrl_jax.experiments.algorithm import passes_of_an_update
from diffusionrl_jax.experiments.memory import FLOAT, Division, Sizes
from diffusionrl_jax.monitoring.markdown import table

MEDIUM = "stable_diffusion_3_5_medium"
# All parameters, without an average of them and a sum of gradients beside these.
FULL = {"lora.rank": 0, "ema_decay": 0.0, "optimizer.one_step": False}
# What a row is called -> the world, and changes to its config.
MODELS = {
    "3.5 medium, LoRA": (MEDIUM, {}),
    "3.5 medium, full": (MEDIUM, FULL),
    "3.5 large, full": ("stable_diffusion_3_5_large", FULL),
    "FLUX.1 dev, LoRA": ("flux_dev", {}),
}
HEAD = ["", "method", "slice", "gather", "sample, train", "remat", "fullest in", "GiB a chip", "of"]
HEAD += [
    "TFLOP an image",
    "GB gathered an image",
    "bound by",
    "images/s/chip at most",
    "chip-seconds",
]
TOPOLOGIES = ("v5e:4x4", "v6e:2x4", "v5p:2x2x2")
METHODS = ("policy_gradient", "nft")


@dataclasses.dataclass(frozen=True)
class Turns:
    """How often networks are used in an iteration, on one microbatch of each task.

    Attributes:
      steps: the steps of a sample's chain.
      updates: the updates.
      predictions: how often the denoiser's output is computed without a gradient, for each of them.
    """

    steps: int
    updates: int
    predictions: int


def operations(sizes: Sizes, turns: Turns) -> float:
    """Returns the floating-point operations of the transformer for an image.

    Args:
      sizes: the experiment.
      turns: how often the transformer is used.
    """
    of_update = turns.predictions + passes_of_an_update(sizes.lora)
    forwards = turns.steps + turns.updates * of_update
    return sizes.passes * sizes.model.network.operations * forwards


def gathered(sizes: Sizes, division: Division, turns: Turns) -> float:
    """Returns the bytes that a chip receives of parameters and sends of gradients, in an iteration.

    Args:
      sizes, division: the experiment, and how it is divided.
      turns: how often the networks are used.
    """
    if division.fsdp == 1:
        return 0.0
    of_denoiser = sizes.itemsize * sizes.model.denoiser
    of_encoders = sizes.itemsize * sizes.model.text_encoder
    of_gradient = sizes.changed / 2 if sizes.lora else FLOAT * sizes.trained
    drawn = sizes.tasks * division.share / division.sample
    trained = division.share / division.train
    if division.gather == "blocks":
        once = drawn * (turns.steps * of_denoiser + of_encoders)
        # For a gradient it is gathered for the forward pass, and for the backward pass.
        of_update = (turns.predictions + 2) * of_denoiser + of_gradient
        return once + sizes.tasks * turns.updates * trained * of_update
    if sizes.lora:  # Of the factors alone.
        of_gradient = FLOAT * sizes.trained
    once = (1 + turns.predictions) * of_denoiser + of_encoders
    return once + sizes.tasks * turns.updates * (of_denoiser + of_gradient)


def row(name: str, config: Config, topology: str) -> list[str]:
    """Returns a line of the table whose head is `HEAD`.

    Args:
      name: what the model is called.
      config: the experiment, see `experiments/config.py`.
      topology: the slice.
    """
    devices, chip = devices_of_topology(topology), chips.of_topology(topology)
    plan = planning.choose(config, devices)
    division, sizes, method = plan.division, memory.sizes(config, kernel=True), needs_of(config)
    of_task = method.updates // sizes.tasks, method.predictions // method.updates
    turns = Turns(config.sampler.steps, *of_task)
    images = sizes.tasks * division.share
    computed, sent = operations(sizes, turns), gathered(sizes, division, turns) / images
    assert chip.interconnect is not None and devices.memory is not None  # Those of TPUs are known.
    seconds = {"computing": computed / chip.operations, "gathering": sent / chip.interconnect}
    binds = max(seconds, key=lambda name: seconds[name])
    speed = [f"{1 / seconds[binds]:.2f}", f"{images * division.chips * seconds[binds]:.0f}"]
    size = f"{plan.memory / GIB:.2f}"
    return [
        name,
        config.algorithm.name,
        chips.name(topology),
        division.gather,
        str(division.train),
        division.remat,
        plan.phase,
        size if plan.fits else f"does not fit: {size}",
        f"{devices.memory / GIB:.4g}",
        f"{computed / 1e12:.4g}",
        f"{sent / 1e9:.3g}",
        *([binds, *speed] if plan.fits else ["", "", ""]),
    ]


def make_config(world: str, changes: dict, method: str) -> Config:
    """Returns the config of a row of the table."""
    config = pick_score.get_config(world)
    config.update_from_flattened_dict(changes | {"algorithm.name": method})
    return config


def main():
    diffusers.utils.logging.set_verbosity_error()
    rows = [
        row(name, make_config(world, changes, method), topology)
        for name, (world, changes) in MODELS.items()
        for method in METHODS
        for topology in TOPOLOGIES
    ]
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
