"""Counts the operations that a function's mathematics needs, whatever a compiler makes of it."""

import math

import jax
import jax.core
import numpy as np
from jax.interpreters import partial_eval

from diffusionrl_jax.distributed.loops import average_turns
from diffusionrl_jax.mistakes import UserError


def operations(function, *arguments) -> float:
    """Counts the floating-point operations of all matrix products and convolutions of a function.

    They are counted on its jaxpr, without what the results do not depend on. Those in a scan count
    as often as it turns, those in a `loops.loop` as often as it does on average, those in another
    loop without a known end once, and of a condition's branches the largest one counts. Products
    with the zeros that pad or dilate a convolution's input are left out, and so is all that is done
    element by element.

    Args:
      function: a pure function.
      *arguments: trees of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      UserError: the function calls a Pallas kernel, whose operations are not in its jaxpr.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(used)


def _of_jaxpr(jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "pallas_call":
        raise UserError("A Pallas kernel's operations cannot be counted: use plain attention.")
    inner = [_of_jaxpr(jaxpr) for jaxpr in jax.core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    times = params["length"] if name == "scan" else 1
    if name == "while":
        times = average_turns(str(equation.source_info.name_stack)) or 1
    if name == "shard_map":
        times = params["mesh"].size
    return times * sum(inner)


def _of_product(equation) -> float:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(left[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed


def _of_convolution(equation) -> float:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    left, kernel = (variable.aval.shape for variable in equation.invars)
    result = equation.outvars[0].aval.shape
    pairs = 1
    for place, pads in enumerate(params["padding"]):
        pairs *= _pairs(
            left[numbers.lhs_spec[2 + place]],
            kernel[numbers.rhs_spec[2 + place]],
            result[numbers.out_spec[2 + place]],
            params["window_strides"][place],
            params["lhs_dilation"][place],
            params["rhs_dilation"][place],
            pads[0],
        )
    batch, channels = (result[axis] for axis in numbers.out_spec[:2])
    # A kernel has the input channels of one group, also where the batch is what is grouped.
    return 2.0 * batch * channels * kernel[numbers.rhs_spec[1]] * pairs


def _pairs(
    size: int, window: int, results: int, stride: int, dilation: int, spread: int, pad: int
) -> int:
    """Counts the pairs of an output's place and a window's that meet an element, along one axis."""
    places = np.arange(results)[:, None] * stride + np.arange(window) * spread - pad
    inside = (places >= 0) & (places <= (size - 1) * dilation)
    return int((inside & (places % dilation == 0)).sum())
