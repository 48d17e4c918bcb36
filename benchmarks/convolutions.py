"""Where training waits on a CPU: the UNet's convolutions and their gradients, beside PyTorch's.

    JAX_PLATFORMS=cpu python benchmarks/convolutions.py [--images=64] [--threads=1]

Of each convolution of the emoji world's UNet it times the pass forwards, the gradient by the inputs
and that by the kernel, as often as the UNet has such a convolution, in turns: XLA's own; the
kernel's gradient as a matrix product for each row of the kernel, as `--config.convolution=taps` has
it; the same as a single product; XLA's with the channels first, as PyTorch has them; and PyTorch's,
with the channels first and last. Then the UNet's whole gradient, by XLA's convolutions, by those
with products, and by PyTorch. Times are medians over the rounds. PyTorch and diffusers are needed.
"""

import argparse
import collections
import functools
import statistics
import time
from collections.abc import Callable, Mapping

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.stable_diffusion import convolution as by_taps
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.interceptors import interception
from diffusionrl_jax.monitoring.markdown import table

PASSES = ("forwards", "by inputs", "by kernel")
CHANNELS_FIRST = ("NCHW", "OIHW", "NCHW")
# A convolution is called so often in a measurement, since a clock is read in microseconds.
CALLS = 5

Shape = tuple[int, int, int, int, int]  # Height and width, channels in and out, kernel, stride.


def unet_of(images: int):
    """The emoji world's model with random weights, the UNet's gradient and its arguments.

    Args:
      images: how many latents it is shown.

    Returns:
      The model's configs, the parameters of the UNet, a function of (params, latents, timesteps,
      text) whose gradient by the first is that of an update, and the other three arguments.
    """
    tokenizer = emoji_model.train_tokenizer()
    configs = emoji_model.configs(tokenizer, scaling_factor=1.0)
    model, params = init_stable_diffusion(configs, jax.random.key(0), tokenizer)
    generator = np.random.default_rng(0)
    channels, width = configs["unet"]["in_channels"], configs["unet"]["cross_attention_dim"]
    size = configs["unet"]["sample_size"]
    draw = lambda *shape: generator.standard_normal(shape, np.float32)
    arguments = (
        draw(images, channels, size, size),
        generator.integers(0, 1000, images),
        draw(images, emoji_model.TOKENS, width),
    )

    def loss(params, latents, timesteps, text):
        output = model.unet.apply({"params": params}, latents, timesteps, text).sample
        return jnp.mean(jnp.square(output))

    return configs, params["unet"], loss, arguments


def convolutions(loss: Callable, params, arguments) -> collections.Counter[Shape]:
    """How often the UNet has a convolution of each shape, read from its program."""
    found = collections.Counter()
    for equation in jax.make_jaxpr(loss)(params, *arguments).jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            inputs, kernel = (variable.aval.shape for variable in equation.invars)
            (stride, _) = equation.params["window_strides"]
            found[(inputs[1], *kernel[2:], kernel[0], stride)] += 1
    return found


def padding(kernel: int) -> int:
    """Zeros on each side, as in all of the UNet's convolutions."""
    return kernel // 2


def one_product(inputs: jax.Array, cotangent: jax.Array, kernel: int, stride: int) -> jax.Array:
    """The kernel's gradient as a single matrix product of all patches and the cotangent."""
    zeros = padding(kernel)
    patches = lax.conv_general_dilated_patches(
        inputs,
        (kernel, kernel),
        (stride, stride),
        [(zeros, zeros)] * 2,
        dimension_numbers=by_taps.DIMENSION_NUMBERS,
    )
    channels, features = inputs.shape[-1], cotangent.shape[-1]
    flat = patches.reshape(-1, patches.shape[-1]).T @ cotangent.reshape(-1, features)
    return flat.reshape(channels, kernel, kernel, features).transpose(1, 2, 0, 3)


def jax_passes(numbers: tuple, shape: Shape, convolve: Callable) -> dict[str, Callable]:
    """The three passes of a convolution in JAX, each a function without arguments."""
    inputs, kernel, cotangent = map(jnp.asarray, numbers)
    forwards = functools.partial(convolve, shape)
    by_inputs = lambda i, k, c: jax.vjp(lambda i: forwards(i, k), i)[1](c)[0]
    by_kernel = lambda i, k, c: jax.vjp(lambda k: forwards(i, k), k)[1](c)[0]
    called = (lambda i, k, c: forwards(i, k), by_inputs, by_kernel)
    made = {}
    for name, function in zip(PASSES, called, strict=True):
        compiled = jax.jit(function).lower(inputs, kernel, cotangent).compile()
        call = functools.partial(compiled, inputs, kernel, cotangent)
        made[name] = lambda call=call: jax.block_until_ready(call())
    return made


def by_xla(layout: tuple[str, str, str], shape: Shape, inputs, kernel):
    """XLA's own convolution."""
    *_, size, stride = shape
    zeros = [(padding(size), padding(size))] * 2
    return lax.conv_general_dilated(
        inputs, kernel, (stride, stride), zeros, dimension_numbers=layout
    )


def with_taps(shape: Shape, inputs, kernel):
    """What `--config.convolution=taps` computes."""
    *_, size, stride = shape
    zeros = (padding(size), padding(size))
    return by_taps.convolution(inputs, kernel, (stride, stride), (zeros, zeros))


def torch_passes(numbers: tuple, shape: Shape, memory: torch.memory_format) -> dict[str, Callable]:
    """The three passes of a convolution in PyTorch."""
    *_, size, stride = shape
    options = {"stride": stride, "padding": padding(size)}
    inputs, kernel, cotangent = (
        torch.from_numpy(value).contiguous(memory_format=memory) for value in numbers
    )

    def gradient(which: tuple[bool, bool, bool]):
        return torch.ops.aten.convolution_backward(
            cotangent,
            inputs,
            kernel,
            None,
            [stride] * 2,
            [padding(size)] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            which,
        )

    return {
        "forwards": lambda: torch.nn.functional.conv2d(inputs, kernel, **options),
        "by inputs": lambda: gradient((True, False, False)),
        "by kernel": lambda: gradient((False, True, False)),
    }


def sides(shape: Shape, images: int) -> dict[str, dict[str, Callable]]:
    """What is timed of a convolution: side -> pass -> a function without arguments."""
    side, read, written, size, stride = shape
    generator = np.random.default_rng(0)
    draw = lambda *dimensions: generator.standard_normal(dimensions, np.float32)
    first = (
        draw(images, read, side, side),
        draw(written, read, size, size),
        draw(images, written, side // stride, side // stride),
    )
    inputs, kernel, cotangent = first
    last = tuple(
        np.ascontiguousarray(value)
        for value in (
            inputs.transpose(0, 2, 3, 1),
            kernel.transpose(2, 3, 1, 0),
            cotangent.transpose(0, 2, 3, 1),
        )
    )
    product = jax.jit(functools.partial(one_product, kernel=size, stride=stride))
    arguments = jnp.asarray(last[0]), jnp.asarray(last[2])
    return {
        "XLA": jax_passes(last, shape, functools.partial(by_xla, by_taps.DIMENSION_NUMBERS)),
        "taps": jax_passes(last, shape, with_taps),
        "one product": {"by kernel": lambda: jax.block_until_ready(product(*arguments))},
        "XLA, channels first": jax_passes(first, shape, functools.partial(by_xla, CHANNELS_FIRST)),
        "PyTorch": torch_passes(first, shape, torch.contiguous_format),
        "PyTorch, channels last": torch_passes(first, shape, torch.channels_last),
    }


def measure(functions: Mapping[str, Callable], rounds: int, calls: int) -> dict[str, float]:
    """Seconds of a call of each, the median over rounds in turns, after a first one of each."""
    seconds = collections.defaultdict(list)
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - begun) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


def unet_gradients(images: int) -> dict[str, Callable]:
    """The whole UNet's gradient of the parameters, by us and by PyTorch."""
    configs, params, loss, arguments = unet_of(images)
    placed = jax.device_put((params, *arguments))

    def by_jax(convolution):
        with interception(convolution=convolution):
            compiled = jax.jit(jax.grad(loss)).lower(*placed).compile()
        return lambda: jax.block_until_ready(compiled(*placed))

    latents, timesteps, text = map(torch.from_numpy, arguments)
    unet = diffusers.UNet2DConditionModel.from_config(configs["unet"])

    def by_torch():
        unet.zero_grad()
        unet(latents, timesteps, text).sample.square().mean().backward()

    return {"XLA": by_jax("xla"), "taps": by_jax("taps"), "PyTorch": by_torch}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="that the UNet is shown at once")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    parser.add_argument("--rounds", type=int, default=15, help="of measurement")
    flags = parser.parse_args(arguments)
    torch.set_num_threads(flags.threads)
    _, params, loss, inputs = unet_of(flags.images)
    together = collections.Counter()
    for shape, count in convolutions(loss, params, inputs).items():
        of_shape = sides(shape, flags.images)
        for each in PASSES:
            functions = {name: passes[each] for name, passes in of_shape.items() if each in passes}
            for name, seconds in measure(functions, flags.rounds, CALLS).items():
                together[name, each] += count * seconds
    names = list(dict.fromkeys(name for name, _ in together))
    cell = lambda name, each: f"{1e3 * together[name, each]:.1f}" if together[name, each] else ""
    rows = [[each, *(cell(name, each) for name in names)] for each in PASSES]
    print(table([f"ms of all convolutions, {flags.images} images", *names], rows))
    whole = measure(unet_gradients(flags.images), flags.rounds, 1)
    print(", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in whole.items()))


if __name__ == "__main__":
    main()
