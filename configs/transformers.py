"""Stable Diffusion 3, 3.5 and FLUX with the settings of Flow-GRPO (2505.05470, Sec. 5 and App. B).

They are those of its released code, with four differences. It takes two steps of the optimiser in
an iteration, each on half of the pictures; here it is one, on all. It evaluates with 40 steps (FLUX
28) without noise. It divides advantages by the deviation of the rewards, here it is that of what is
left without each prompt's mean. And it draws LoRA's first factors with twice the deviation.

The model, the reward models and the prompts are brought from the Hugging Face hub; docs/data.md.
"""

from collections.abc import Callable

import ml_collections

from configs import stable_diffusion_2

LORA_TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
MODELS = {
    "stable_diffusion_3_medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stable_diffusion_3_5_medium": "stabilityai/stable-diffusion-3.5-medium",
    "stable_diffusion_3_5_large": "stabilityai/stable-diffusion-3.5-large",
    "flux_dev": "black-forest-labs/FLUX.1-dev",
}


def of_model(name: str) -> Callable[[str], ml_collections.ConfigDict]:
    """The config of one of `MODELS`, as a function of the tasks."""

    def get_config(tasks: str) -> ml_collections.ConfigDict:
        """The tasks of `configs/stable_diffusion_2.py`: 48 prompts of each, with 24 pictures."""
        config = stable_diffusion_2.get_config(tasks)
        config.model = MODELS[name]
        config.sampler.height = config.sampler.width = 512
        config.sampler.steps, config.sampler.noise, config.sampler.eta = 10, "sde", 0.7
        config.sampler.guidance_scale, config.sampler.text_tokens = 4.5, 128
        # Methods on the forward process train at the chain's own times.
        config.training_times = "steps"
        config.batch_size = 48 * 24
        for task in config.tasks.values():
            # Where pictures of a prompt are compared, as many are drawn as the reward compares.
            if task.group_size == 1:
                task.group_size, task.normalisation = 24, "group"
        config.algorithm.nft.error = "clean"  # As published, where velocities are predicted.
        config.advantage_clip = 5.0
        method = config.algorithm.policy_gradient
        # All steps but the last. The KL's weight is 0.01 in the code, whose KL is without the
        # length of the step: 4 to 25 times smaller than the KL of this chain's steps.
        method.timesteps_per_iteration, method.clip_range, method.kl_weight = 9, 1e-4, 1e-3
        config.optimizer.learning_rate, config.optimizer.weight_decay = 3e-4, 1e-4
        config.optimizer.one_step = True
        config.ema_decay = 0.975  # 0.9 every four iterations.
        config.lora.rank, config.lora.alpha, config.lora.targets = 32, 64.0, LORA_TARGETS
        config.pretraining.weight = 0.0
        if name == "flux_dev":
            config.sampler.guidance_scale = 1.0  # Its guidance, of 3.5, is an input.
            config.sampler.steps, config.sampler.eta = 6, 0.9
            method.timesteps_per_iteration, method.kl_weight = 5, 0.0
            config.lora.rank, config.lora.alpha = 64, 128.0
            config.lora.targets = (*LORA_TARGETS, *FEED_FORWARD)
        return config

    return get_config


WORLDS = {name: of_model(name) for name in MODELS}
