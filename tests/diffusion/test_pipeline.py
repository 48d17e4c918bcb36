"""A policy with the denoiser's parameters in their place, and without."""

import dataclasses

import numpy as np

from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.distributed.mesh import make_mesh
from tests.algorithms.toy import Toy


def test_the_denoiser_is_taken_out_and_put_back():
    model, denoiser, other = Toy(), {"level": 1.0}, {"level": 2.0}
    params = {"denoiser": denoiser, "vae": {}, "text_encoder": {}}
    policy = Policy(model, make_process(model.scheduler_config, 2), params, make_mesh())
    assert policy.denoiser is denoiser
    frozen = policy.without_denoiser()
    assert frozen == dataclasses.replace(policy, params={"vae": {}, "text_encoder": {}})
    for each in (policy, frozen):
        assert each.with_denoiser(other) == params | {"denoiser": other}
    assert policy.params["denoiser"] is denoiser
    np.testing.assert_array_equal(policy.empty_ids, [0])  # Its tokens are the text's length.
