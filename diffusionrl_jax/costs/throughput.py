"""Times warm iterations of the real train step on the devices that are there."""

import dataclasses
import resource
import statistics
import tempfile

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from diffusionrl_jax.costs import phases
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import fetching, planning
from diffusionrl_jax.experiments.algorithm import images_per_iteration, scores_on_host
from diffusionrl_jax.learning.execution import choose_execution, make_train_step
from diffusionrl_jax.monitoring.markdown import table
from diffusionrl_jax.monitoring.progress import PhaseTimer

COMPILATION = "/jax/core/compile/backend_compile_duration"
# A part of a split step, as the timer calls it -> the phases that it is made of.
PARTS = {
    "sample": ("sample", "decode"),
    "score": ("score",),
    "prepare": ("prepare",),
    "update": ("update", "pretrain", "finish"),
}


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
      model: the model's folder or name, as in config.model.
      device: the kind of the devices, as JAX names it.
      devices: the number of devices.
      execution: "fused" or "split".
      images: how many images all devices together draw in an iteration.
      seconds: phase -> median seconds of a warm iteration. "iteration" is all of it, with the input
        pipeline.
      operations: phase -> floating-point operations that its mathematics needs, on all devices;
        empty where they cannot be counted.
      peak: how many operations per second a device can do at most; None if it is not known.
      memory: the most bytes that were in use on the fullest device, or in the process where devices
        do not tell.
      memory_of: "device" or "process".
      compilation: the seconds that it took to compile what an iteration runs.
      compilation_cached: the same where the persistent cache holds the programs.
    """

    model: str
    device: str
    devices: int
    execution: str
    images: int
    seconds: dict[str, float]
    operations: dict[str, float]
    peak: float | None
    memory: int
    memory_of: str
    compilation: float
    compilation_cached: float

    def rates(self) -> dict[str, dict[str, float | None]]:
        """Returns the rates of each phase.

        Returns:
          Phase -> "images_per_second_per_chip", "teraflops_per_chip" and "share_of_peak"; the last
          two are None where they are not known.
        """
        rates = {}
        for name, seconds in self.seconds.items():
            counted = self.operations.get(name)
            speed = counted and counted / seconds / self.devices
            rates[name] = {
                "images_per_second_per_chip": self.images / seconds / self.devices,
                "teraflops_per_chip": speed and speed / 1e12,
                "share_of_peak": speed and self.peak and speed / self.peak,
            }
        return rates

    def markdown(self) -> str:
        """Returns everything, for people."""
        rows = []
        for name, rate in self.rates().items():
            speed, share = rate["teraflops_per_chip"], rate["share_of_peak"]
            rows.append(
                [name, f"{self.seconds[name]:.3f}"]
                + [f"{rate['images_per_second_per_chip']:.3f}"]
                + ["" if speed is None else f"{speed:.4g}", "" if share is None else f"{share:.1%}"]
            )
        head = ["phase", "seconds", "images/s/chip", "TFLOP/s/chip", "of peak"]
        return "\n\n".join(
            [
                f"{self.model} on {self.devices} x {self.device}, {self.execution}, {self.images} "
                "images an iteration.",
                table(head, rows),
                f"Memory in use: {self.memory / 2**30:.2f} GiB ({self.memory_of}). Compilation: "
                f"{self.compilation:.1f} s; {self.compilation_cached:.1f} s from the persistent "
                "cache.",
            ]
        )


def measure(config: Config, cache_dir: str, steps: int, profile: str | None = None) -> Throughput:
    """Runs an iteration without and with the persistent cache of programs, then warm iterations.

    Args:
      config: the experiment, see `experiments/config.py`.
      cache_dir: the folder where pretraining pictures and their latents are kept.
      steps: how many warm iterations are timed.
      profile: a folder for a trace of one more iteration, for XProf or TensorBoard.

    Raises:
      UserError, FileNotFoundError: the config cannot be used; the error says what to change.
    """
    fetching.bring(config)
    config, _ = planning.resolve(config)
    execution = choose_execution(config.execution, scores_on_host(config))
    needed = _operations(config)
    experiment = experiments.build(config).with_pictures(cache_dir)
    timer = PhaseTimer()
    compiling = []
    state, done = experiment.init_state(), 0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILATION:
            compiling.append(duration_secs)

    def iterate(step):
        nonlocal state, done
        with timer.phase("iteration"):
            state, metrics = step(state, experiment.frozen, experiment.batch(done))
            jax.block_until_ready(metrics)
        done += 1
        seconds = timer.collect()
        return {name.removeprefix("seconds/"): value for name, value in seconds.items()}

    def first():
        """Compiles anew; returns the train step, and the seconds that compiling took."""
        jax.clear_caches()
        compiling.clear()
        step = make_train_step(experiment.algorithm, state, execution, timer)
        iterate(step)
        return step, sum(compiling)

    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _use_cache(folder)
            logging.info("Compiling.")
            _, cold = first()
            step, cached = first()
    finally:
        _use_cache(before)
        jax.monitoring.unregister_event_duration_listener(listen)
    times = [iterate(step) for _ in range(steps)]
    if profile:
        with jax.profiler.trace(profile):
            iterate(step)
    seconds = {name: statistics.median(time[name] for time in times) for name in times[0]}
    device = jax.local_devices()[0]
    chip = chips.of_device(device)
    memory, memory_of = _memory()
    return Throughput(
        model=config.model,
        device=device.device_kind,
        devices=jax.device_count(),
        execution=execution,
        images=images_per_iteration(config),
        seconds=seconds,
        operations=needed and {name: _part(needed, name) for name in seconds},
        peak=chip and chip.operations,
        memory=memory,
        memory_of=memory_of,
        compilation=cold,
        compilation_cached=cached,
    )


def _use_cache(folder: str | None) -> None:
    """Makes JAX's persistent cache of programs this folder; None means none."""
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def _operations(config: Config) -> dict[str, float]:
    """Returns the operations that each phase needs in an iteration.

    It is empty if the config has something whose operations cannot be counted.
    """
    try:
        plain = phases.make_phases(phases.plain_experiment(config, jax.device_count()))
    except ValueError as error:  # There is a reward on the host, or a model of unknown size.
        logging.warning("Operations are not counted: %s", error)
        return {}
    of_call = phases.operations(plain)
    return {phase.name: phase.repetitions * of_call[phase.name] for phase in plain}


def _part(operations: dict[str, float], name: str) -> float:
    """Returns the operations of a part, as the timer calls it, or of everything."""
    return sum(
        total
        for phase, total in operations.items()
        if name not in PARTS or phase.split()[0] in PARTS[name]
    )


def _memory() -> tuple[int, str]:
    """Returns the most bytes that were in use, and whether a device or the process held them."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return max(peaks), "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"
