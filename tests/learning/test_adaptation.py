"""The denoiser follows from LoRA's factors by the product that PEFT documents."""

import jax
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.distributed.mesh import make_mesh, parameter_sharding
from diffusionrl_jax.learning.adaptation import Adaptation, make_lora, make_merge

RANK, ALPHA = 2, 3.0


@pytest.fixture
def parameters():
    """(base, factors, the merged kernel by NumPy)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    base = {"to_q": {"kernel": draw(8, 6), "bias": draw(6)}, "to_v": {"kernel": draw(8, 6)}}
    factors = {"to_q": {"lora_A": {"kernel": draw(8, RANK)}, "lora_B": {"kernel": draw(RANK, 6)}}}
    down, up = (factors["to_q"][name]["kernel"] for name in ("lora_A", "lora_B"))
    return base, factors, base["to_q"]["kernel"] + ALPHA / RANK * down @ up


def make_config(rank):
    config = common.get_config()
    config.lora.update(rank=rank, alpha=ALPHA, targets=("to_q",))
    return config


def test_factors_change_the_kernels_that_they_are_of(parameters):
    base, factors, expected = parameters
    lora = make_lora(make_config(RANK))
    mesh = make_mesh(2)
    placed = jax.device_put(base, parameter_sharding(mesh, base))
    for merged in (
        make_merge(mesh, placed, lora)(factors),
        jax.jit(Adaptation(lora).denoiser)(factors, base),
    ):
        np.testing.assert_allclose(merged["to_q"]["kernel"], expected, atol=1e-6)
        np.testing.assert_array_equal(merged["to_q"]["bias"], base["to_q"]["bias"])
        np.testing.assert_array_equal(merged["to_v"]["kernel"], base["to_v"]["kernel"])


def test_without_lora_all_is_trained(parameters):
    base, _, _ = parameters
    assert make_lora(make_config(0)) is None
    assert Adaptation().denoiser(base, None) is base
    assert make_merge(make_mesh(), None, None)(base) is base
