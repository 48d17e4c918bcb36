"""Starts a process up, before JAX looks for devices."""

import os

import jax
from absl import flags

from diffusionrl_jax.data.files import in_bucket
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.mistakes import UserError

COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first process, where there is no cluster."
)
PROCESS_COUNT = flags.DEFINE_integer(
    "process_count", None, "How many processes run the program; 1 looks for no others.", 1
)
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this one is.", 0)

# With more devices each would have too few samples of a batch that fits a machine without
# accelerators.
MOST_VIRTUAL_DEVICES = 16
# A process that has not been heard of for so long is lost, and the others end. Heartbeats come from
# a thread of their own: a long compilation does not hold them up.
HEARTBEAT_TIMEOUT = 30


def start_devices() -> None:
    """Finds the program's other processes, and makes the CPU's cores devices.

    A program calls it first.

    Raises:
      UserError: the flags do not fit together.
      ConnectionError: as `join_processes`.
    """
    set_virtual_devices()
    join_processes(COORDINATOR_ADDRESS.value, PROCESS_COUNT.value, PROCESS_INDEX.value)


def virtual_device_count(cores: int) -> int:
    """Returns how many devices so many cores become.

    It is a power of two, since most batches divide by it. The cores beyond it serve XLA's threads.
    """
    return min(1 << (cores.bit_length() - 1), MOST_VIRTUAL_DEVICES)


def set_virtual_devices() -> None:
    """Makes the cores of a machine without accelerators devices.

    XLA's CPU backend spreads one program badly over cores; two virtual devices on two cores ran 1.9
    times as fast as one. A count that the user has set, in XLA_FLAGS, is left alone.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", virtual_device_count(cores or 1))


def join_processes(address: str | None, count: int | None, index: int | None) -> None:
    """Connects the processes of a program, and returns when all are there.

    Without arguments JAX finds them on a TPU VM, GKE, Slurm or Open MPI, and elsewhere there is
    this process alone.

    Args:
      address: HOST:PORT of process 0, which opens the port.
      count: how many processes there are; 1 connects nothing.
      index: the number of this one, from 0.

    Raises:
      UserError: some of the arguments are given and others are not, or they contradict each other.
      ConnectionError: the others did not come in five minutes.
    """
    if count == 1 and not address and not index:
        return
    given = {"coordinator_address": address, "process_count": count, "process_index": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"Processes are joined by three flags: give {', '.join(missing)}, too.")
    if index is not None and count is not None and not index < count:
        raise UserError(f"--process_index={index} must be below --process_count={count}.")
    # The service would keep SIGTERM to itself. `PreemptionGuard` tells the other processes.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address, count, index, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except ValueError as error:
        # JAX says this where it finds no cluster.
        if len(missing) < len(given) or "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConnectionError(
            f"The processes did not find each other ({reason}): start the same command on all, "
            "with one --coordinator_address that every host reaches."
        ) from error


def use_compilation_cache(workdir: str = "") -> None:
    """Keeps compiled programs for the next start, in "compiled" of the cache folder.

    A folder that the user has set, as $JAX_COMPILATION_CACHE_DIR, is left alone.
    $JAX_ENABLE_COMPILATION_CACHE=false keeps none.

    Args:
      workdir: a run's workdir. If it is in a bucket, its own cache is used, since the host's disk
        may not outlive a preemption.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = f"{workdir}/cache" if in_bucket(workdir) else cache_folder()
        jax.config.update("jax_compilation_cache_dir", f"{cache}/compiled")
