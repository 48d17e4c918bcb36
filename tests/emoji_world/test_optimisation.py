"""How the emoji world's generators are trained, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.emoji_world.optimisation import constant, train

LEVEL = 3.0


def test_the_rate_is_constant_until_it_falls():
    rates = {step: float(constant(2e-3, 1000, 100)(step)) for step in (0, 100, 500, 900, 950, 1000)}
    expected = {0: 0, 100: 1e-3, 500: 2e-3, 900: 2e-3, 950: 2e-3 * 0.505, 1000: 2e-5}
    assert rates == pytest.approx(expected, rel=1e-5)
    assert float(constant(2e-3, 1000, 0)(1000)) == pytest.approx(2e-3, rel=1e-6)


def train_level(steps, state_file=None, rate=0.1):
    """Trains a number to be the mean of noisy ones around `LEVEL`, on one device."""

    def loss_function(params, batch, key):
        noise = jax.random.normal(key, batch.shape)
        loss = jnp.mean(jnp.square(params["level"] - batch - noise))
        return loss, {"loss": loss}

    params = {"level": jnp.zeros(())}
    batches = lambda step: np.full(8, LEVEL + 0.1 * (-1) ** step, np.float32)
    mesh = make_mesh(devices=jax.devices()[:1])
    kept = lambda average: None
    return train(
        *("level", loss_function, params, batches, lambda step: rate, steps, mesh, kept, state_file)
    )


def test_training_goes_on_where_it_was_to_the_bit(tmp_path):
    state_file = epath.Path(tmp_path) / "state.msgpack"
    whole = train_level(40)["level"]
    train_level(20, state_file)
    gone_on = train_level(40, state_file)["level"]
    assert float(gone_on) == float(whole)
    # It is near its end, about which Adam's momentum still swings by a few steps of 0.1.
    assert float(whole) == pytest.approx(LEVEL, abs=0.5)
    # It is the state that is gone on from, and not the first parameters.
    further = train_level(41, state_file)["level"]
    assert 0 < abs(float(further) - float(whole)) < 0.1
