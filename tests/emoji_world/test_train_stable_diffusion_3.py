"""The loss of flow matching that the emoji world's transformer is trained by, in closed form."""

import types

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from diffusionrl_jax.emoji_world import flow_model
from diffusionrl_jax.models.text_encoders import Conditioning
from tests.own_flags import program


@pytest.fixture
def module(monkeypatch, hasty):
    """The program, which hands back what it would train: (loss function, batches)."""
    arguments = "--output=x", "--state=y"
    with program("emoji_world.train_stable_diffusion_3", *arguments) as module:
        kept = lambda name, loss, params, batches, *rest: (loss, batches)
        monkeypatch.setattr(module, "train", kept)
        yield module


def test_what_is_silent_is_zero_and_all_else_stays(module):
    tree = {
        "transformer_blocks_0": {
            "norm1": {"linear": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}},
            "attn": {"to_q": {"kernel": np.ones((2, 2))}},
        },
        "norm_out": {"linear": {"kernel": np.ones((2, 2))}},
        "proj_out": {"bias": np.ones(2)},
        "proj_in": {"bias": np.ones(2)},
    }
    found = module.silenced(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    block = found["transformer_blocks_0"]
    for silent in (block["norm1"], found["norm_out"], found["proj_out"]):
        assert not any(leaf.any() for leaf in jax.tree.leaves(silent))
    np.testing.assert_array_equal(block["attn"]["to_q"]["kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(found["proj_in"]["bias"], np.ones(2))


def test_a_transformer_that_knows_the_pictures_has_no_loss(module):
    """They are all zeros: the velocity is the noise, which is what is seen, over the time."""
    seen = []

    def denoise(params, latents, times, text):
        seen.append((times, text))
        return params * latents / times[:, None, None, None]

    ids = np.arange(64, dtype=np.int32)[:, None]
    model = types.SimpleNamespace(
        scheduler_config=flow_model.SCHEDULE,
        tokenize=lambda prompts: ids[: len(prompts)],
        encode_text=lambda params, ids: Conditioning(ids[..., None] * 1.0, ids * 1.0),
        denoise=denoise,
    )
    zeros = np.zeros((64, 4, 2, 2), np.float32)
    pool = zeros, zeros, ["a cat"] * 64
    loss, batches = module.train_transformer(model, {}, pool, None, 10, None, None)
    rows = batches(0)
    assert [len(array) for array in rows] == [128] * 3
    value, _ = loss({"transformer": 1.0, "text_encoder": {}}, rows, jax.random.key(0))
    assert float(value) < 1e-10
    # A network that says nothing misses noise of variance 1: 2,048 draws.
    value, _ = loss({"transformer": 0.0, "text_encoder": {}}, rows, jax.random.key(0))
    assert float(value) == pytest.approx(1, abs=0.15)
    times, text = seen[0]
    # The logits of times are normal, of the deviation 1.2: stratified, within one part of 128.
    logits = scipy.special.logit(np.float64(times))
    assert scipy.stats.kstest(logits / 1.2, "norm").statistic < 1.1 / 128
    # The pooled state is that of another prompt.
    np.testing.assert_array_equal(text.pooled, np.roll(text.states[:, 0], 1, axis=0))
