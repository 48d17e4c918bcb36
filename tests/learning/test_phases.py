"""An iteration of any number of parts is a program with one denoiser to draw and one to learn."""

import functools

import jax
import pytest

from diffusionrl_jax.learning.phases import iteration
from tests.learning.test_train_step import MICROBATCHES


def convolutions(jaxpr, kernel_shape):
    """How many convolutions with a kernel of that shape a program runs, loops counted once."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            count += equation.invars[1].aval.shape == kernel_shape
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                count += convolutions(inner, kernel_shape)
    return count


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({"tasks": 1}, 3),
        ({"tasks": 3, "timesteps_per_iteration": 4, "steps": 7}, 13),
        pytest.param(
            {"pretraining_weight": 0.0, "guidance_scale": 1.0, "devices": 1} | MICROBATCHES,
            4,
            marks=pytest.mark.slow,
        ),
        pytest.param({"timesteps_per_iteration": 0}, 1, marks=pytest.mark.slow),
    ],
    ids=["one task", "more tasks, timesteps and steps", "microbatches", "pretraining only"],
)
def test_unet_is_in_the_program_twice(build, changes, updates):
    setup = build(**changes)
    program, (_, metrics) = jax.make_jaxpr(
        functools.partial(iteration, setup.algorithm.phases()), return_shape=True
    )(setup.state(), setup.frozen, setup.batch)
    assert metrics["loss"].shape == (updates,)
    first_layer = (3, 3, 4, 32)
    assert convolutions(program.jaxpr, first_layer) == 2
