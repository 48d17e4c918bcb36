"""What the command encodes in advance is what the model makes of it."""

import functools

import jax
import numpy as np
import pytest

from diffusionrl_jax.experiments import caching
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.models import text_encoders
from tests.experiments.test_pretraining import changed, load


@pytest.mark.parametrize("xl", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "xl"])
def test_cached_texts_are_the_encoders(
    xl, make_config, tiny_xl_model, dataset_name, compilation_cache, tmp_path
):
    changes = {"pretraining.weight": 1.0, "pretraining.pictures": dataset_name}
    config = make_config(**changes, **({"model": tiny_xl_model} if xl else {}))
    caching.cache_latents(config, str(tmp_path), text_embeddings=True)
    config.pretraining.pictures = f"latents:{tmp_path}"
    policy = load_policy(config)
    batch = load(config, policy, tmp_path).batch(1, 8, seed=0)
    text = policy.model.encode_text(policy.params["text_encoder"], batch["input_ids"])
    kept = text_encoders.text_from_arrays(batch)
    # Another batch size adds up in another order.
    assert_close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(assert_close, kept, text)
    with pytest.raises(ValueError, match="are of another text encoder .*--text_embeddings"):
        load(config, changed(policy, "text_encoder"), tmp_path)
    config.pretraining.pictures = dataset_name
    with pytest.raises(ValueError, match="another model or other pictures"):
        caching.cache_latents(config, str(tmp_path))


def test_the_command_takes_pictures_alone(make_config, tmp_path):
    config = make_config(**{"pretraining.pictures": f"latents:{tmp_path}"})
    with pytest.raises(ValueError, match="names no pictures to encode"):
        caching.cache_latents(config, str(tmp_path))
