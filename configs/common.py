"""What every experiment shares; `diffusionrl_jax/experiments/config.py` has the fields."""

from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.experiments.tasks import (
    add_tasks,
    make_evaluation_set,
    make_scorer,
    make_task,
    make_weighted_sum,
)

__all__ = [
    "add_tasks",
    "get_config",
    "make_evaluation_set",
    "make_scorer",
    "make_task",
    "make_weighted_sum",
]
