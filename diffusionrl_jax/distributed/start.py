"""Process start-up, before JAX looks for devices."""

import os

import jax

from diffusionrl_jax.data.prompt_index import cache_folder

# More would leave each too few samples of the batches that fit a machine without accelerators.
MOST_VIRTUAL_DEVICES = 16


def virtual_device_count(cores: int) -> int:
    """A power of two, since most batches divide by it; the cores beyond it serve XLA's threads."""
    return min(1 << (cores.bit_length() - 1), MOST_VIRTUAL_DEVICES)


def set_virtual_devices() -> None:
    """On a machine without accelerators, makes the cores devices.

    XLA's CPU backend spreads one program badly over cores; two virtual devices on two cores ran 1.9
    times as fast as one. A count that the user has set, in XLA_FLAGS, is left alone.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", virtual_device_count(cores))


def use_compilation_cache() -> None:
    """Keeps compiled programs for the next start, in "compiled" of the cache folder.

    A folder that the user has set, as $JAX_COMPILATION_CACHE_DIR (`gs://` for all hosts of a
    slice), is left alone; $JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
