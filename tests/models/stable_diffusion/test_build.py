"""Networks are built as their configs say."""

import jax.numpy as jnp

from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion


def test_vae_that_overflows_in_float16_is_upcast(configs_xl, configs, tokenizer, tokenizer_2):
    """AutoencoderKL's force_upcast, whose default is true; bfloat16 has float32's range."""
    build = lambda dtype: build_stable_diffusion(
        configs_xl, tokenizer, dtype, tokenizer_2=tokenizer_2
    )
    assert build(jnp.float16).vae.dtype == jnp.float32
    assert build(jnp.float16).unet.dtype == jnp.float16
    assert build(jnp.bfloat16).vae.dtype == jnp.bfloat16
    kept = {**configs, "vae": {**configs["vae"], "force_upcast": False}}
    assert build_stable_diffusion(kept, tokenizer, jnp.float16).vae.dtype == jnp.float16
