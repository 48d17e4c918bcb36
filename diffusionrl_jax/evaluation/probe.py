"""How far a denoiser has gone from the base model, on states of the base model's own chains.

What the base model says of these states is computed once, when a run starts and has it in memory
anyway. It need not stay there.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.gaussian import Gaussian
from diffusionrl_jax.diffusion.guidance import conditions, denoise_passes, guide
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import batch_sharding, place, replicated
from diffusionrl_jax.distributed.shards import apply_by_device, gathered
from diffusionrl_jax.models.parameters import Parameters

MOST_CHAINS = 8  # Or one a device, if there are more.
MOST_STATES = 8  # Of each chain.
SEED = 7


def chains(devices: int, per_device: int) -> int:
    """Returns how many chains a probe has: `MOST_CHAINS` or more, the same number on each device.

    Args:
      devices: the number of devices.
      per_device: how many samples a device draws at a time; 0 means any number.
    """
    share = max(1, MOST_CHAINS // devices)
    return devices * (min(share, per_device) if per_device else share)


class Probe:
    """Compares denoisers with the base model. What is compared is a pure function of both.

    Args:
      policy: the base model, with its chain and devices.
      sampler: the config fields eta and guidance_scale.
      prompts: one prompt for each chain; their number is a multiple of the devices'.
    """

    def __init__(self, policy: Policy, sampler: Config, prompts: Sequence[str]):
        model, process, mesh = policy.model, policy.process, policy.mesh
        self._name, self._has_kl = model.denoiser_name, sampler.eta > 0
        rows = batch_sharding(mesh)

        def predict(params, ids, empty_ids, latents, index):
            denoiser, text_encoder = (
                gathered(params[name], mesh, model.dtype, by_blocks=policy.by_blocks)
                for name in (model.denoiser_name, "text_encoder")
            )

            def output_of(of_all, of_each):
                denoiser, text_encoder, empty_ids = of_all
                ids, latents, times = of_each
                text = conditions(
                    model.encode_text(text_encoder, ids),
                    model.encode_empty(text_encoder, empty_ids[None]),
                    sampler.guidance_scale,
                )
                output = denoise_passes(model, denoiser, latents, times, text)
                return guide(output, sampler.guidance_scale)

            indices = jnp.full(len(latents), index)
            times = process.times[indices]
            of_all, of_each = (denoiser, text_encoder, empty_ids), (ids, latents, times)
            output = apply_by_device(output_of, of_all, of_each, mesh)
            step = process.step(output, latents, indices, sampler.eta)
            clean = process.clean(output, latents, times)
            ones, zeros = jnp.ones_like(latents), jnp.zeros_like(latents)
            signal, noise = process.noise(ones, zeros, times), process.noise(zeros, ones, times)
            return step, _length((latents - signal * clean) / noise)

        self._predict = jax.jit(predict, out_shardings=rows)
        # Nothing is sent to compare, and every process can read the result.
        self._compare = jax.jit(
            lambda step, base: Gaussian(step.mean, step.std).kl_to(base.mean),
            out_shardings=replicated(mesh),
        )
        self._replicate = jax.jit(lambda values: values, out_shardings=replicated(mesh))
        self._ids = place(model.tokenize(list(prompts)), rows)
        self._empty_ids = place(policy.empty_ids, replicated(mesh))
        self._states = self._base_states(policy, len(prompts), rows)

    def _base_states(self, policy: Policy, count: int, rows) -> list[tuple]:
        """Draws the base model's chains, and returns some states with what it says of them."""
        process = policy.process
        noise = lambda index: place(
            np.random.default_rng((SEED, index))
            .standard_normal((count, *policy.model.latent_shape))
            .astype(np.float32),
            rows,
        )
        # The last step may have no noise, and no KL then.
        steps = process.stochastic_steps if self._has_kl else process.steps
        chosen = min(steps, MOST_STATES)
        kept = set((np.arange(chosen) * steps // chosen).tolist())
        params, states = self._needed(policy.params), []
        latents = noise(process.steps)
        for index in range(max(kept, default=-1) + 1):
            step, length = self._predict(params, self._ids, self._empty_ids, latents, index)
            if index in kept:
                states.append((index, latents, step, np.asarray(self._replicate(length))))
            latents = step.mean + step.std * noise(index)
        return states

    def _needed(self, params: Mapping[str, Parameters]) -> dict[str, Parameters]:
        return {name: params[name] for name in (self._name, "text_encoder")}

    def __call__(self, params: Mapping[str, Parameters]) -> dict[str, float]:
        """Compares a denoiser with the base model.

        Args:
          params: the parameters by network: the denoiser's, and "text_encoder".

        Returns:
          "kl_to_base": KL(base || policy) of a step of the chain, in nats per element of the
          latents, averaged over steps that the base model takes; it is missing where the steps add
          no noise. "noise_length": the length of the noise that the denoiser predicts, in those of
          what the base model predicts there. They are not finite where what the denoiser says is
          not. Nothing is returned of a chain without states.
        """
        divergences, lengths = [], []
        for index, latents, base, base_length in self._states:
            step, length = self._predict(
                self._needed(params), self._ids, self._empty_ids, latents, index
            )
            divergences.append(np.asarray(self._compare(step, base)))
            lengths.append(np.asarray(self._replicate(length)) / base_length)
        if not lengths:
            return {}
        values = {"noise_length": float(np.mean(lengths))}
        if self._has_kl:
            values["kl_to_base"] = float(np.mean(divergences))
        return values


def _length(vectors: jax.Array) -> jax.Array:
    """Returns the Euclidean length of each of [n, ...]."""
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=tuple(range(1, vectors.ndim))))
