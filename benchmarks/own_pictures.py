"""What becomes of a model that learns from its own pictures, in PyTorch: no reward is there.

    python benchmarks/own_pictures.py [--steps=4,16] [--updates=12] [--pictures=40]

It is RAFT, or reward-weighted training, with rewards that are all alike, by diffusers and
torch.optim: of this project it has the emoji world's model and prompts alone. In each update
pictures are drawn without noise, noised, and learned from once. Prints a row for each number of
the sampler's steps: the deviation of the latents that are drawn, and how far neighbouring pixels
lie apart, of a few pictures of the same noise before and after.
"""

import argparse
import tempfile

import torch
from arguments import count
from diffusers import DDIMScheduler, StableDiffusionPipeline

from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.monitoring.markdown import table
from diffusionrl_jax.runs import export

MODEL, PROMPTS = "asset:emoji/stable_diffusion", "emoji:compositions"
RATE, SHOWN = 1e-4, 16
HEADER = ["steps", "latents before", "after", "neighbouring pixels before", "after"]


def read_prompts(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """The text encoder's states, float32 [prompts, tokens, width]."""
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    ids = tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(ids)[0]


def draw(
    pipeline: StableDiffusionPipeline, states: torch.Tensor, steps: int, seed: int
) -> torch.Tensor:
    """Latents by DDIM, neither with noise nor guided, float32 [prompts, channels, side, side]."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    side, generator = unet.config.sample_size, torch.Generator().manual_seed(seed)
    latents = torch.randn(len(states), unet.config.in_channels, side, side, generator=generator)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for time in scheduler.timesteps:
            output = unet(latents, time, encoder_hidden_states=states).sample
            latents = scheduler.step(output, time, latents, eta=0.0).prev_sample
    return latents


def learn(
    pipeline: StableDiffusionPipeline,
    optimizer: torch.optim.Optimizer,
    states: torch.Tensor,
    latents: torch.Tensor,
    seed: int,
) -> None:
    """One update by the denoising error of latents, each at a time and with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    last = pipeline.scheduler.config.num_train_timesteps
    times = torch.randint(0, last, (len(latents),), generator=generator)
    noised = pipeline.scheduler.add_noise(latents, noise, times)
    output = pipeline.unet(noised, times, encoder_hidden_states=states).sample
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(output, noise).backward()
    torch.nn.utils.clip_grad_norm_(pipeline.unet.parameters(), 1.0)
    optimizer.step()


def measure(pipeline: StableDiffusionPipeline, states: torch.Tensor, steps: int) -> list[str]:
    """The latents' deviation and the distance of neighbouring pixels, of 255, with one noise."""
    latents = draw(pipeline, states, steps, seed=0)
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = 255 * (images / 2 + 0.5).clamp(0, 1)
    apart = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return [f"{latents.std():.3f}", f"{apart:.1f}"]


def run(folder: str, prompts: list[str], steps: int, flags: argparse.Namespace) -> list[str]:
    """Trains a fresh copy of the model, and returns a row of the table."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.Adam(pipeline.unet.parameters(), lr=RATE)
    shown = read_prompts(pipeline, prompts[:SHOWN])
    before = measure(pipeline, shown, steps)
    for update in range(1, flags.updates + 1):
        start = update * flags.pictures
        states = read_prompts(pipeline, prompts[start : start + flags.pictures])
        latents = draw(pipeline, states, steps, seed=2 * update)
        learn(pipeline, optimizer, states, latents, seed=2 * update + 1)
    after = measure(pipeline, shown, steps)
    return [str(steps), *(value for pair in zip(before, after, strict=True) for value in pair)]


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps",
        type=lambda text: [count(number) for number in text.split(",")],
        default=[4, 16],
        help="of the sampler, separated by commas",
    )
    parser.add_argument("--updates", type=count, default=12)
    parser.add_argument("--pictures", type=count, default=40, help="of an update")
    flags = parser.parse_args(arguments)
    source = make_prompts(PROMPTS, seed=0)
    prompts = [source[number] for number in range((flags.updates + 1) * flags.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        export.export_pipeline(MODEL, export.prepare_output(folder), "float32")
        rows = [run(folder, prompts, steps, flags) for steps in flags.steps]
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
