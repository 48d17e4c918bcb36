"""Process start-up, before JAX looks for devices."""

import os

import jax


def set_virtual_devices() -> None:
    """On a machine without accelerators, makes every core a device.

    XLA's CPU backend spreads one program badly over cores; two virtual devices on two cores ran 1.9
    times as fast as one. A count that the user has set, in XLA_FLAGS, is left alone.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores)
