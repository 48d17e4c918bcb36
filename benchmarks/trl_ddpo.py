"""TRL's DDPOTrainer as a worker: runs in TRL's own environment and imports nothing of this project.

The first line on standard input is JSON, the work of `iteration.Work.rival_settings`; the answer
describes the set-up. For each empty line after it one iteration is run, which is answered by one
line of JSON. A line that names a folder is answered after the UNet was saved there.

The reward is the pictures' brightness. With a folder "exchange" among the settings it is asked for
instead: the pictures are written there, a line {"pictures": PATH, "prompts": [...]} is printed, and
the next line on standard input is a JSON list of the scores.
"""

import contextlib
import itertools
import json
import os
import sys
import time

import accelerate
import diffusers
import numpy as np
import torch
import trl


class Meter:
    """Seconds and counts of one iteration; counts are of what was really run."""

    def __init__(self):
        self.values = dict.fromkeys(
            ("sampling", "training", "iteration", "optimizer_steps", "forward", "trained"), 0
        )

    @contextlib.contextmanager
    def seconds(self, phase):
        """Adds the time inside to a phase."""
        start = time.perf_counter()
        yield
        self.values[phase] += time.perf_counter() - start

    def count_unet(self, module, inputs, output):
        """A forward hook: samples that went through the UNet, and those that gradients will."""
        self.values["trained" if torch.is_grad_enabled() else "forward"] += inputs[0].shape[0]

    def count_step(self, *_):
        """An optimiser hook."""
        self.values["optimizer_steps"] += 1


def brightness(images, prompts):
    """The mean of all pixels."""
    return images.float().mean(dim=(1, 2, 3))


def asking(answer, folder):
    """A reward that is asked for: see the module's docstring."""
    path = os.path.join(folder, "pictures.npy")

    def reward(images, prompts):
        np.save(path, images.float().permute(0, 2, 3, 1).numpy())
        answer(pictures=path, prompts=list(prompts))
        return torch.tensor(json.loads(sys.stdin.readline()))

    return reward


def make_trainer(settings, meter, reward):
    """The trainer: all of the UNet in float32, no pictures logged."""
    group_size = settings["group_size"]
    config = trl.DDPOConfig(
        seed=0,
        mixed_precision="no",
        log_with=None,
        save_freq=10**9,
        # A prompt's pictures are a group of the last so many.
        per_prompt_stat_tracking=group_size > 1,
        per_prompt_stat_tracking_buffer_size=group_size,
        per_prompt_stat_tracking_min_count=group_size,
        num_epochs=1,
        sample_num_steps=settings["steps"],
        sample_eta=1.0,
        sample_guidance_scale=settings["guidance_scale"],
        sample_batch_size=settings["sample_batch"],
        sample_num_batches_per_epoch=settings["images"] // settings["sample_batch"],
        train_batch_size=settings["train_batch"],
        train_gradient_accumulation_steps=settings["accumulation"],
        train_num_inner_epochs=1,
        train_cfg=settings["guidance_scale"] > 1,
        # The trainer rounds the product down.
        train_timestep_fraction=(settings["train_timesteps"] + 0.5) / settings["steps"],
        train_learning_rate=settings["learning_rate"],
        train_clip_range=settings["clip_range"],
        train_adv_clip_max=settings["advantage_clip"],
        train_max_grad_norm=settings["gradient_clip"],
    )
    pipeline = trl.DefaultDDPOStableDiffusionPipeline(settings["model"], use_lora=False)
    if not config.train_cfg:
        # Without guidance TRL would still hand the UNet the empty prompts beside the prompts.
        pipeline.sd_pipeline._encode_prompt = lambda *args, prompt_embeds, **kwargs: prompt_embeds
    prompts = itertools.cycle(settings["prompts"])
    rewards = []

    def scored(images, prompts, metadata):
        values = reward(images, prompts)
        rewards.append(values.mean().item())
        return values, {}

    accelerate.PartialState()  # the trainer logs before it makes one
    trainer = trl.DDPOTrainer(config, scored, lambda: (next(prompts), {}), pipeline)
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    unet = trainer.accelerator.unwrap_model(trainer.sd_pipeline.unet)
    unet.register_forward_hook(meter.count_unet)
    trainer.optimizer.optimizer.register_step_post_hook(meter.count_step)
    for name, phase in (("_generate_samples", "sampling"), ("_train_batched_samples", "training")):
        setattr(trainer, name, timed(getattr(trainer, name), meter, phase))
    return trainer, unet, rewards


def timed(method, meter, phase):
    """The method, its time added to a phase."""

    def call(*args, **kwargs):
        with meter.seconds(phase):
            return method(*args, **kwargs)

    return call


def main():
    """Answers lines until standard input ends."""
    # Libraries print to standard output: keep the real one for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    meter = Meter()
    exchange = settings["exchange"]
    reward = asking(answer, exchange) if exchange else brightness
    trainer, unet, rewards = make_trainer(settings, meter, reward)
    answer(
        versions={
            module.__name__: module.__version__ for module in (trl, torch, diffusers, accelerate)
        },
        threads=torch.get_num_threads(),
        trained_parameters=sum(p.numel() for p in unet.parameters() if p.requires_grad),
        dtype=str(unet.dtype),
    )
    step, epochs = 0, itertools.count()
    for line in iter(sys.stdin.readline, ""):
        if folder := line.strip():
            unet.save_pretrained(folder)
            answer(saved=folder)
            continue
        meter.__init__()
        rewards.clear()
        with meter.seconds("iteration"):
            step = trainer.step(next(epochs), step)
        answer(**meter.values, reward=sum(rewards) / len(rewards))


if __name__ == "__main__":
    main()
