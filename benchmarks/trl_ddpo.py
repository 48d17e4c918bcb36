"""TRL's DDPOTrainer as a worker: runs in TRL's own environment and imports nothing of this project.

The first argument is JSON, the work of `throughput.Work.rival_settings`. For each line on standard
input one iteration is run; it is answered by one line of JSON on standard output. The first line on
standard output describes the set-up.
"""

import contextlib
import itertools
import json
import os
import sys
import time

import accelerate
import diffusers
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


def make_trainer(settings, meter):
    """The trainer: all of the UNet in float32, no per-prompt statistics, no pictures logged."""
    config = trl.DDPOConfig(
        seed=0,
        mixed_precision="no",
        log_with=None,
        save_freq=10**9,
        per_prompt_stat_tracking=False,
        num_epochs=1,
        sample_num_steps=settings["steps"],
        sample_eta=1.0,
        sample_guidance_scale=settings["guidance_scale"],
        sample_batch_size=settings["sample_batch"],
        sample_num_batches_per_epoch=settings["images"] // settings["sample_batch"],
        train_batch_size=settings["train_batch"],
        train_gradient_accumulation_steps=settings["accumulation"],
        train_num_inner_epochs=1,
        train_cfg=True,
        # The trainer rounds the product down.
        train_timestep_fraction=(settings["train_timesteps"] + 0.5) / settings["steps"],
        train_learning_rate=settings["learning_rate"],
        train_clip_range=settings["clip_range"],
        train_adv_clip_max=settings["advantage_clip"],
        train_max_grad_norm=settings["gradient_clip"],
    )
    pipeline = trl.DefaultDDPOStableDiffusionPipeline(settings["model"], use_lora=False)
    prompts = itertools.cycle(settings["prompts"])
    rewards = []

    def brightness(images, prompts, metadata):
        values = images.float().mean(dim=(1, 2, 3))
        rewards.append(values.mean().item())
        return values, {}

    accelerate.PartialState()  # the trainer logs before it makes one
    trainer = trl.DDPOTrainer(config, brightness, lambda: (next(prompts), {}), pipeline)
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

    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    meter = Meter()
    trainer, unet, rewards = make_trainer(settings, meter)
    answer(
        versions={
            module.__name__: module.__version__ for module in (trl, torch, diffusers, accelerate)
        },
        threads=torch.get_num_threads(),
        trained_parameters=sum(p.numel() for p in unet.parameters() if p.requires_grad),
        dtype=str(unet.dtype),
    )
    step = 0
    for epoch, _ in enumerate(sys.stdin):
        meter.__init__()
        rewards.clear()
        with meter.seconds("iteration"):
            step = trainer.step(epoch, step)
        answer(**meter.values, reward=sum(rewards) / len(rewards))


if __name__ == "__main__":
    main()
