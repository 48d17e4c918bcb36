"""Multi-task policy gradient beside the pretraining loss (Algorithm 1), as pure functions.

One iteration is `sample`, `score`, `prepare`, then one `update` per (task, chosen timestep) and one
for the pretraining loss, then `finish`. `fused` composes them into a single function to compile;
`learning/execution.py` runs the same functions as separate programs. All updates have the same
shapes and go through one loss function, so that the UNet is compiled twice in all: forward in
`sample`, forward and backward in `update`.

Axes: T tasks, B samples of each, S sampling steps, K timesteps trained on, P passes of the UNet for
a sample (2 with guidance: the prompt, and the empty prompt), U = T * K + 1 updates.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusionrl_jax.diffusion import policy
from diffusionrl_jax.diffusion.rollout import (
    Steps,
    conditions,
    denoise_passes,
    rollout,
)
from diffusionrl_jax.diffusion.schedule import Schedule
from diffusionrl_jax.distributed import microbatch
from diffusionrl_jax.distributed.mesh import batch_sharding, gather_parameters, mean_over_devices
from diffusionrl_jax.distributed.microbatch import largest_divisor
from diffusionrl_jax.learning import draws, losses
from diffusionrl_jax.learning.advantages import Advantages, normalise, reward_metrics
from diffusionrl_jax.learning.iteration import Batch, Frozen, Hyperparameters, Samples
from diffusionrl_jax.learning.prompt_statistics import PastRewards, advance
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.learning.updates import (
    Updates,
    drop_text,
    policy_updates,
    pretraining_update,
)
from diffusionrl_jax.models.lora import Lora
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion
from diffusionrl_jax.models.text_encoders import Text, text_from_arrays
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import host_rewards
from diffusionrl_jax.rewards.scoring import score


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyGradient:
    """The algorithm's functions, bound to what does not change during a run.

    Attributes:
      model, schedule: the policy.
      rewards: one per task.
      weights: of each task's loss.
      optimizer: optax's.
      hyperparameters: numbers.
      mesh: over which batches are sharded.
      advantage_groups: of each task, how many neighbours in the batch are normalised together; 0
        is the whole batch. Empty means the whole batch for all tasks.
      prompt_min_count: of each task whose state keeps its prompts' past rewards, how many of them
        it takes to normalise by them. Empty if of none.
      noise_groups: of each task, how many neighbours in the batch are trained on the same timesteps
        and share all noise but that of those; 1 is none. Empty means none for all tasks.
      lora: what is trained in place of all of the UNet, or None.

    Raises:
      ValueError: if there are fewer steps with noise than timesteps to train on.
    """

    model: StableDiffusion
    schedule: Schedule
    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]
    optimizer: optax.GradientTransformation
    hyperparameters: Hyperparameters
    mesh: Mesh
    advantage_groups: tuple[int, ...] = ()
    prompt_min_count: tuple[int, ...] = ()
    noise_groups: tuple[int, ...] = ()
    lora: Lora | None = None

    def __post_init__(self):
        count, steps = self.hyperparameters.timesteps_per_iteration, self.schedule.stochastic_steps
        if not 0 <= count <= steps:
            raise ValueError(
                f"timesteps_per_iteration={count} must be between 0 and {steps}: of the "
                f"{self.schedule.steps} sampling steps, that many have noise."
            )

    def unet_params(self, params: Parameters, base: Parameters | None) -> Parameters:
        """The UNet's parameters from those that are trained, and what LoRA's factors change."""
        return params if self.lora is None else self.lora.merge(base, params)

    def _gather_unet(self, params: Parameters, base: Parameters | None):
        """The arguments of `unet_params`, whole on every device."""
        dtype = self.model.unet.dtype
        if self.lora is None:
            return gather_parameters(params, self.mesh, dtype), None
        changed = self.lora.kernels(base).keys()
        base = gather_parameters(base, self.mesh, dtype, uncast=changed)
        return gather_parameters(params, self.mesh), base

    def trained_steps(self, step: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Which sample each one shares noise with, and the steps it is trained on."""
        numbers = self.hyperparameters
        firsts = draws.first_of_group(self.noise_groups or (1,) * len(self.rewards), batch)
        trained = draws.trained_steps(
            numbers.seed,
            step,
            firsts,
            self.schedule.stochastic_steps,
            numbers.timesteps_per_iteration,
        )
        return firsts, trained

    def _microbatches(self, batch: int, per_device: int) -> int:
        return microbatch.microbatch_count(batch, per_device, self.mesh.size)

    def draw(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Steps, Text]:
        """Draws every task's latents with the current parameters.

        Which steps a sample is trained on is known before it is drawn: no others are kept.

        Args:
          params, frozen: those that are trained, and those that are not.
          input_ids: int32 [T, B, tokens].
          step: int32 scalar, the iteration.

        Returns:
          The final latents, the steps that are trained on, and the text; their first axis is B * T.
        """
        numbers = self.hyperparameters
        unet_params = gather_parameters(
            self.unet_params(params, frozen.unet), self.mesh, self.model.unet.dtype
        )
        text_encoder = gather_parameters(frozen.text_encoder, self.mesh)
        tasks, batch, _ = input_ids.shape
        # Sample-major, so that the merged axis keeps the batch axis' sharding.
        flatten = lambda x: x.swapaxes(0, 1).reshape(batch * tasks, *x.shape[2:])
        firsts, trained = self.trained_steps(step, batch)
        sources = draws.noise_sources(firsts, trained, self.schedule.steps)
        empty = self.model.encode_text(text_encoder, frozen.empty_ids[None])

        def chain(arguments):
            ids, sources, kept = arguments
            prompts = self.model.encode_text(text_encoder, ids)
            text = conditions(prompts, empty, numbers.guidance_scale)
            latents, steps = rollout(
                self.model,
                self.schedule,
                unet_params,
                text,
                draws.noise_keys(numbers.seed, step, sources),
                kept,
                eta=numbers.eta,
                guidance_scale=numbers.guidance_scale,
            )
            return latents, steps, text

        return microbatch.map_microbatches(
            chain,
            (flatten(input_ids), flatten(sources), flatten(trained)),
            self._microbatches(tasks * batch, numbers.sample_microbatch),
            self.mesh,
        )

    def decode(self, frozen: Frozen, latents: jax.Array) -> jax.Array:
        """Images float32 [n, height, width, 3] in [0, 1] of latents [n, ...]."""
        vae = gather_parameters(frozen.vae, self.mesh)
        return microbatch.map_microbatches(
            lambda latents: self.model.decode(vae, latents),
            latents,
            self._microbatches(len(latents), self.hyperparameters.decode_microbatch),
            self.mesh,
        )

    def decodes_to_score(self, batch: int) -> bool:
        """Whether no image is kept: a microbatch of them is decoded where it is scored.

        Scorers on the host are handed all images of an iteration.
        """
        in_parts = self._microbatches(batch, self.hyperparameters.score_microbatch) > 1
        return in_parts and not any(map(host_rewards, self.rewards))

    def sample(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> Samples:
        """Draws every task's images, or what they are decoded from; arguments as in `draw`."""
        tasks, batch, _ = input_ids.shape
        latents, steps, text = self.draw(params, frozen, input_ids, step)
        if self.decodes_to_score(batch):
            samples = Samples(steps, None, text, latents)
        else:
            samples = Samples(steps, self.decode(frozen, latents), text)
        unflatten = lambda x: x.reshape(batch, tasks, *x.shape[1:]).swapaxes(0, 1)
        return jax.tree.map(unflatten, samples)

    def score(self, frozen: Frozen, samples: Samples, reward_inputs: tuple) -> jax.Array:
        """Each task's reward on its own images.

        Args:
          frozen: the parameters of the reward models, and of the VAE where images are not kept.
          samples: with images, or latents.
          reward_inputs: one tree per task.

        Returns:
          float32 [T, B]; NaN where a picture is not finite, see `rewards.scoring.score`.
        """
        scores = []
        for task, params in enumerate(frozen.rewards):
            if samples.images is None:
                latents, inputs = samples.latents[task], reward_inputs[task]
                scores.append(self.score_latents(task, params, frozen.vae, latents, inputs))
            else:
                images, inputs = samples.images[task], reward_inputs[task]
                scores.append(self.score_task(task, params, images, inputs))
        return jnp.stack(scores).astype(jnp.float32)

    def score_latents(
        self, task: int, params: Parameters, vae: Parameters, latents: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """As `score_task`, of images [B, ...] that are decoded a microbatch at a time.

        Args:
          task: whose reward.
          params, vae: the reward model's parameters and the VAE's.
          latents: float32 [B, ...].
          inputs: of the reward.

        Returns:
          float32 [B].
        """
        params, vae = gather_parameters(params, self.mesh), gather_parameters(vae, self.mesh)
        numbers = self.hyperparameters

        def of_part(part):
            latents, inputs = part
            share = len(latents) // self.mesh.size
            at_once = largest_divisor(share, min(numbers.decode_microbatch, share) or share)
            images = microbatch.map_microbatches(
                lambda latents: self.model.decode(vae, latents),
                latents,
                share // at_once,
                self.mesh,
            )
            return score(self.rewards[task], params, images, inputs)

        count = self._microbatches(len(latents), numbers.score_microbatch)
        return microbatch.map_microbatches(of_part, (latents, inputs), count, self.mesh)

    def score_task(
        self, task: int, params: Parameters, images: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """One task's reward [B] on images [B, height, width, 3]; arguments as in `score`."""
        params = gather_parameters(params, self.mesh)
        return microbatch.map_microbatches(
            lambda part: score(self.rewards[task], params, *part),
            (images, inputs),
            self._microbatches(len(images), self.hyperparameters.score_microbatch),
            self.mesh,
        )

    def prepare(
        self,
        frozen: Frozen,
        samples: Samples,
        rewards: jax.Array,
        batch: Batch,
        step: jax.Array,
        past_rewards: PastRewards = (),
    ) -> tuple[Updates, Text, Advantages]:
        """Turns scored samples and pretraining pictures into the iteration's updates.

        Returns:
          The updates in the order in which they are applied, the text [T + 1, B, P, ...] that they
          refer to, and the advantages [T, B], with the past rewards of the next iteration.
        """
        numbers = self.hyperparameters
        advantages = self.advantages(rewards, batch, past_rewards)
        parts, text = [], [samples.text]
        if numbers.timesteps_per_iteration:
            _, trained = self.trained_steps(step, advantages.values.shape[1])
            update = policy_updates(
                self.schedule,
                samples.steps,
                advantages.values,
                trained,
                self.weights,
            )
            if numbers.kl_weight:
                means = self.reference_means(frozen, update, samples.text)
                update = update.replace(reference_mean=means)
            parts.append(update)
        if numbers.pretraining_weight:
            places = jnp.arange(len(batch.pretraining["input_ids"]))
            update, dropped = pretraining_update(
                self.schedule,
                batch.pretraining,
                draws.keys(numbers.seed, step, draws.PRETRAINING, places),
                weight=numbers.pretraining_weight,
                # Of two passes one has the empty prompt: `losses.pretraining` weights them.
                text_dropout=numbers.text_dropout if numbers.passes == 1 else 0.0,
                task=len(self.rewards),
            )
            if numbers.kl_weight:  # All updates have the same fields.
                update = update.replace(reference_mean=jnp.zeros_like(update.latents))
            parts.append(update)
            text_encoder = gather_parameters(frozen.text_encoder, self.mesh)
            captions = text_from_arrays(batch.pretraining)
            if captions is None:
                ids = batch.pretraining["input_ids"]
                captions = microbatch.map_microbatches(
                    functools.partial(self.model.encode_text, text_encoder),
                    ids,
                    self._microbatches(len(ids), numbers.update_microbatch),
                    self.mesh,
                )
            empty = self.model.encode_text(text_encoder, frozen.empty_ids[None])
            captions = drop_text(captions, empty, dropped)
            both = conditions(captions, empty, numbers.guidance_scale)
            text.append(jax.tree.map(lambda array: array[None], both))
        concatenate = lambda *leaves: jnp.concatenate(leaves)
        updates = jax.tree.map(concatenate, *parts)
        text = jax.tree.map(concatenate, *text)
        return self._shard(updates), self._shard(text), advantages

    def reference_means(self, frozen: Frozen, updates: Updates, text: Text) -> jax.Array:
        """The means of the base model's steps from the policy's latents, without a gradient.

        They do not change within an iteration, and are computed once, as many samples at a time as
        an update takes.

        Args:
          frozen: whose `unet` is the base model's.
          updates: of the policy.
          text: arrays [T, B, P, ...].

        Returns:
          float32 [U, B, channels, height, width].
        """
        unet_params = gather_parameters(frozen.unet, self.mesh, self.model.unet.dtype)
        size = self.hyperparameters.update_microbatch
        count = self._microbatches(updates.latents.shape[1], size)

        def of_microbatch(part):
            _, mean, _ = self._step(unet_params, *part)
            return mean

        def of_update(update):
            rows = jax.tree.map(lambda rows: rows[update.task], text)
            part = (update.latents, update.timesteps, update.step_index, rows)
            return microbatch.map_microbatches(of_microbatch, part, count, self.mesh)

        return jax.lax.map(of_update, updates)

    def _step(self, unet_params, latents, timesteps, step_index, text):
        """What the UNet says of latents, and the mean and deviation of the step from there."""
        numbers = self.hyperparameters
        output = denoise_passes(self.model, unet_params, latents, timesteps, text)
        guided = policy.guide(output, numbers.guidance_scale)
        mean, std = policy.step_distribution(
            self.schedule, guided, latents, step_index, numbers.eta
        )
        return output, mean, std

    def advantages(self, rewards: jax.Array, batch: Batch, past_rewards: PastRewards) -> Advantages:
        """Every task's advantages by its own rule, [T, B]; arguments as in `prepare`."""
        past_rewards, moments = advance(
            past_rewards, batch.prompt_places, rewards, self.prompt_min_count, self.mesh
        )
        groups = self.advantage_groups or (0,) * len(self.rewards)
        advantages = normalise(rewards, groups, self.hyperparameters.advantage_clip, moments)
        return advantages.replace(past_rewards=past_rewards)

    def _shard(self, tree):
        """Splits axis 1 of every array that has one, the batch, over the devices."""
        sharding = batch_sharding(self.mesh, axis=1)
        place = lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding)
        return jax.tree.map(lambda leaf: place(leaf) if leaf.ndim > 1 else leaf, tree)

    def loss(self, params: Parameters, base: Parameters | None, update: Updates, text: Text):
        """The loss of one (micro)batch of one update, without the axis U, by the trained `params`.

        Args:
          params, base: as in `unet_params`.
          update, text: of the same samples.

        Returns:
          The mean loss, and a dict of float32 scalars, each a mean over the batch but for
          "ratio_error_max".
        """
        numbers = self.hyperparameters
        output, mean, std = self._step(
            self.unet_params(params, base),
            *(update.latents, update.timesteps, update.step_index, text),
        )
        log_prob = policy.log_prob(update.target, mean, std)
        # No ratio for pretraining pictures: an overflow there would poison the gradient.
        log_ratio = jnp.where(update.is_pretraining, 0, log_prob - update.old_log_prob)
        compared = log_ratio
        if numbers.balance_timesteps:
            compared /= policy.sensitivity(self.schedule, numbers.eta)[update.step_index]
        surrogate = losses.clipped_surrogate(compared, update.advantages, numbers.clip_range)
        pretraining = losses.pretraining(output, update.target, numbers.text_dropout)
        of_policy, to_base = surrogate.loss, {}
        if numbers.kl_weight:
            reference = jnp.where(update.is_pretraining, mean, update.reference_mean)
            divergence = policy.kl_divergence(mean, reference, std)
            of_policy += numbers.kl_weight * divergence
            to_base = {"kl_to_base": divergence.mean()}
        loss = jnp.where(update.is_pretraining, pretraining, of_policy).mean()
        ratio_error = jnp.abs(jnp.expm1(log_ratio))
        return update.weight * loss, to_base | {
            "loss": loss,
            "ratio": jnp.exp(log_ratio).mean(),
            "ratio_error_mean": ratio_error.mean(),
            "ratio_error_max": ratio_error.max(),
            "clip_fraction": surrogate.clipped.mean(),
            "approximate_kl": 0.5 * jnp.square(log_ratio).mean(),
        }

    def update(
        self, state: TrainState, frozen: Frozen, update: Updates, text: Text
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step on one update of `prepare` (without the axis U).

        Args:
          state: its `step` does not change here.
          frozen: the parameters that do not change.
          update: one slice of the updates.
          text: all rows of text; the update names its own.

        Returns:
          The new state, and the metrics of `loss` with "gradient_norm".
        """
        text = jax.tree.map(lambda rows: rows[update.task], text)
        fields = {field.name: getattr(update, field.name) for field in dataclasses.fields(update)}
        fields = {name: value for name, value in fields.items() if value is not None}
        shared = {name: value for name, value in fields.items() if not value.ndim}
        per_sample = {name: value for name, value in fields.items() if value.ndim}
        count = self._microbatches(len(update.latents), self.hyperparameters.update_microbatch)

        def gradient(whole, share):
            params, base, shared = whole

            def of_microbatch(part):
                part, text = part
                part = Updates(**part, **shared)
                gradients, metrics = jax.grad(self.loss, has_aux=True)(params, base, part, text)
                in_full = lambda gradient, parameter: gradient.astype(parameter.dtype)
                return jax.tree.map(in_full, gradients, state.params), metrics

            return microbatch.mean_over_microbatches(of_microbatch, share, count)

        gradients, metrics = mean_over_devices(gradient, state.params, self.mesh)(
            (*self._gather_unet(state.params, frozen.unet), shared), (per_sample, text)
        )
        changes, optimizer_state = self.optimizer.update(
            gradients, state.optimizer_state, state.params
        )
        params = optax.apply_updates(state.params, changes)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return state.replace(params=params, optimizer_state=optimizer_state), metrics

    def finish(self, state: TrainState) -> TrainState:
        """Ends the iteration: counts it and moves the average of the parameters."""
        decay = self.hyperparameters.ema_decay
        average = state.ema_params
        if average is not None:
            average = optax.incremental_update(state.params, average, 1 - decay)
        return state.replace(step=state.step + 1, ema_params=average)

    def fused(
        self, state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One whole iteration as one function: no image leaves the devices.

        Returns:
          The new state, and the metrics: those of `update` [U] and of `reward_metrics` [T].
        """
        samples = self.sample(state.params, frozen, batch.input_ids, state.step)
        rewards = self.score(frozen, samples, batch.reward_inputs)
        samples = samples.replace(images=None, latents=None)
        updates, text, advantages = self.prepare(
            frozen, samples, rewards, batch, state.step, state.past_rewards
        )
        state = state.with_past_rewards(advantages.past_rewards)
        state, metrics = jax.lax.scan(
            lambda state, update: self.update(state, frozen, update, text), state, updates
        )
        return self.finish(state), metrics | reward_metrics(advantages)
