"""Refuses `config.algorithm.policy_gradient.shared_prefix` where groups cannot share a prefix."""

from diffusionrl_jax.algorithms import tasks_by_method
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError

METHOD = "config.algorithm.policy_gradient"


def group_size(config: Config) -> int:
    """Returns how many images share a prefix of their chain, 1 if none do."""
    if "policy_gradient" not in tasks_by_method(config):
        return 1
    if not config.algorithm.policy_gradient.shared_prefix:
        return 1
    return max(task.group_size for task in config.tasks.values())


def check_fields(config: Config, devices: int) -> None:
    """Refuses groups that have no prefix in common, or do not divide into the parts asked for.

    Args:
      config: see `experiments/config.py`.
      devices: the number of devices.

    Raises:
      UserError: something does not fit; it names the field, and the mend.
    """
    method = config.algorithm.policy_gradient
    if not method.shared_prefix:
        return
    field = f"{METHOD}.shared_prefix={method.shared_prefix}"
    others = [name for name in tasks_by_method(config) if name != "policy_gradient"]
    if others:
        raise UserError(f"{field} is not for the method {others[0]}: set it to 0.")
    if (count := method.timesteps_per_iteration) != 1:
        raise UserError(f"{field} needs {METHOD}.timesteps_per_iteration=1, and it is {count}.")
    if window := config.sampler.window:
        raise UserError(f"{field} needs config.sampler.window=0, and it is {window}.")
    for task_name, task in config.tasks.items():
        if not task.shared_noise or task.group_size == 1:
            raise UserError(
                f"{field} needs shared_noise=True and a group_size of 2 or more of task "
                f"{task_name}, which has {task.shared_noise} and {task.group_size}."
            )
    if len(sizes := {task.group_size for task in config.tasks.values()}) > 1:
        raise UserError(f"{field} needs tasks of one group_size, and there are {sorted(sizes)}.")
    unit = devices * group_size(config) * method.shared_prefix
    if config.batch_size % unit:
        raise UserError(
            f"config.batch_size={config.batch_size} must be a multiple of {unit}, whole groups of "
            f"{group_size(config)} for each of the steps of {field} on each of {devices} devices: "
            "choose fewer steps, or another batch."
        )


def samples_of_a_step(config: Config, share: int) -> int:
    """Returns how many samples of a task a device has for each step that is trained on.

    Args:
      config: see `experiments/config.py`.
      share: how many samples of a task a device has.
    """
    return share // config.algorithm.policy_gradient.shared_prefix or share


def check_rounding(config: Config, devices: int) -> None:
    """Refuses a microbatch with which sampling and training would round differently.

    Args:
      config: see `experiments/config.py`. Its microbatches of sampling and training are alike.
      devices: the number of devices.

    Raises:
      UserError: a microbatch of training would not be one of sampling.
    """
    if config.dtype == "float32":
        return
    samples = samples_of_a_step(config, config.batch_size // devices)
    size = config.microbatch.train or samples + 1
    if samples % size:
        raise UserError(
            f"In {config.dtype} config.microbatch.train={config.microbatch.train} must divide the "
            f"{samples} samples that a device has for each of the steps of {METHOD}.shared_prefix, "
            "or sampling and training round differently."
        )
