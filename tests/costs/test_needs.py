"""What the mathematics asks of a slice."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.costs import needs
from diffusionrl_jax.distributed import chips

MEBIBYTES = 2**20


@pytest.fixture
def asked():
    # One parameter of 32 MiB, one of 4 bytes; 64 MiB of a batch.
    parameters = (
        jax.ShapeDtypeStruct((2048, 4096), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    operations = {"sample": 15e12, "decode": 1e12, "score": 1e12, "update": 2e12, "pretrain": 7e11}
    return needs.Needs("sd2", 8, operations, parameters, 64 * MEBIBYTES, fsdp=2)


def test_large_parameters_and_the_batch_are_split(asked):
    pytest.importorskip("libtpu")
    assert asked.held("v5e:2x2") == 16 * MEBIBYTES + 4 + 16 * MEBIBYTES


def test_chips_at_their_peak(asked):
    assert asked.bound(chips.CHIPS["v5e"]) == pytest.approx(10)


def test_tables(asked):
    pytest.importorskip("libtpu")
    text = needs.markdown([asked], ["v5e:2x2"])
    assert "| sd2 | 15 | 1 | 1 | 2 | 0.7 | 19.7 |" in text
    assert "| sd2 | v5e:2x2 (v5litepod-4) | 0.03 | 15.75 | 10.000 |" in text
