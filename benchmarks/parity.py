"""Our networks against PyTorch's at the full published sizes, with random weights, in float32.

    python benchmarks/parity.py --model=sd15 --part=unet

PyTorch draws the weights, writes them as safetensors and computes; when its process has ended ours
reads them and computes the same. Prints a row of docs/parity.md: the largest absolute difference,
the seconds of a call (the best of --calls after one more) and the peak resident memory of each.
Fails where the difference is above 1e-5 times the largest output, or 1e-5 where that is below 1.
Linux only: it binds both to the same cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from diffusionrl_jax.models.folders.published import CONFIGS

PARTS = {"unet": ("unet",), "vae": ("vae",), "text": ("text_encoder", "text_encoder_2")}
HEADER = (
    "| model | part | pixels | max. abs. difference | largest output | seconds, ours | "
    "seconds, PyTorch | ours / PyTorch | peak GiB, ours | peak GiB, PyTorch |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
TOLERANCE = 1e-5  # of float32's rounding, for outputs of order one
BATCH, START, END = 2, 49406, 49407


class EmptyTokenizer:
    """Knows the empty prompt; nothing else is tokenised here."""

    model_max_length = 77

    def __call__(self, prompts, **options):
        ids = np.full((len(prompts), self.model_max_length), END, np.int32)
        ids[:, 0] = START
        return SimpleNamespace(input_ids=ids)

    def get_vocab(self) -> dict[str, int]:
        return {}


def networks(configs: Mapping, part: str) -> tuple[str, ...]:
    """The networks of a part that the model has."""
    return tuple(name for name in PARTS[part] if name in configs)


def make_inputs(configs: Mapping, part: str, latent_size: int) -> dict[str, np.ndarray]:
    """What both frameworks compute the part on."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    length = configs["text_encoder"]["max_position_embeddings"]
    if part == "text":
        ids = rng.integers(320, START, (BATCH, length))
        ids[:, 0] = START
        for row, end in enumerate(rng.integers(5, length, BATCH)):
            ids[row, end:] = END
        return {"ids": ids}
    channels = configs["vae"]["latent_channels"]
    latents = normal(1, channels, latent_size, latent_size)
    if part == "vae":
        pixels = latent_size * 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        return {"latents": latents, "images": rng.random((1, pixels, pixels, 3), np.float32)}
    unet = configs["unet"]
    inputs = {
        "latents": latents,
        "timesteps": np.array([501], np.int32),
        "states": normal(1, length, unet["cross_attention_dim"]),
    }
    if unet.get("addition_embed_type"):
        width = configs["text_encoder_2"]["projection_dim"]
        sizes = np.float32([[1024, 1024, 0, 0, 1024, 1024]])
        inputs |= {"pooled": normal(1, width), "time_ids": sizes}
    return inputs


def run_pytorch(configs: Mapping, part: str, inputs: Mapping, folder: Path, threads: int):
    """Draws the weights, writes them, and returns the function to be timed."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kinds = {
        "unet": lambda config: UNet2DConditionModel(**config),
        "vae": lambda config: AutoencoderKL(**config),
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    }
    models = {}
    for name in networks(configs, part):
        models[name] = kinds[name](configs[name]).eval()
        for parameter in models[name].parameters():
            if parameter.ndim == 1:  # biases of 0 and scales of 1 would hide a mix-up
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        models[name].save_pretrained(folder / name, max_shard_size="2GB")
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def unet():
        added = None
        if "pooled" in tensors:
            added = {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]}
        arguments = (tensors[name] for name in ("latents", "timesteps", "states"))
        return {"output": models["unet"](*arguments, added_cond_kwargs=added).sample}

    def vae():
        scale = configs["vae"]["scaling_factor"]
        posterior = models["vae"].encode(2 * tensors["images"].permute(0, 3, 1, 2) - 1).latent_dist
        images = models["vae"].decode(tensors["latents"] / scale).sample
        return {
            "mean": scale * posterior.mean,
            "deviation": scale * posterior.std,
            "images": ((images + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1),
        }

    def text():
        if "text_encoder_2" not in models:
            return {"states": models["text_encoder"](tensors["ids"]).last_hidden_state}
        outputs = [m(tensors["ids"], output_hidden_states=True) for m in models.values()]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"states": states, "pooled": outputs[1].text_embeds}

    return torch.no_grad()({"unet": unet, "vae": vae, "text": text}[part])


def run_ours(configs: Mapping, part: str, inputs: Mapping, folder: Path, threads: int):
    """Reads the weights, and returns the function to be timed."""
    import jax

    from diffusionrl_jax.models.folders.networks import join_networks, read_networks, split_networks
    from diffusionrl_jax.models.stable_diffusion.build import (
        build_stable_diffusion,
        parameter_template,
    )
    from diffusionrl_jax.models.text_encoders import Conditioning

    second = {"tokenizer_2": EmptyTokenizer()} if "text_encoder_2" in configs else {}
    model = build_stable_diffusion(configs, EmptyTokenizer(), **second)
    templates = split_networks(parameter_template(model))
    templates = {name: templates[name] for name in networks(configs, part)}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = read_networks(folder, templates, jax.tree.map(lambda _: device, templates))
    if part == "text":
        params = join_networks({**params, "unet": None, "vae": None})["text_encoder"]
    else:
        params = params[part]

    @jax.jit
    def unet(params, inputs):
        text = inputs["states"]
        if "pooled" in inputs:
            text = Conditioning(text, inputs["pooled"], inputs["time_ids"])
        return {"output": model.denoise(params, inputs["latents"], inputs["timesteps"], text)}

    @jax.jit
    def vae(params, inputs):
        mean, deviation = model.encode(params, inputs["images"])
        images = model.decode(params, inputs["latents"])
        return {"mean": mean, "deviation": deviation, "images": images}

    @jax.jit
    def text(params, inputs):
        ids = [inputs["ids"].astype(np.int32)] * len(templates)
        text = model.encode_text(params, jax.numpy.concatenate(ids, axis=1))
        if isinstance(text, Conditioning):
            return {"states": text.states, "pooled": text.pooled}
        return {"states": text}

    function = {"unet": unet, "vae": vae, "text": text}[part]
    arrays = jax.device_put(dict(inputs))

    def call():
        with jax.default_matmul_precision("highest"):
            return jax.block_until_ready(function(params, arrays))

    return call


def time_call(function: Callable, calls: int) -> tuple[dict[str, np.ndarray], float]:
    """The outputs, and the seconds of the fastest call after the first."""
    outputs, seconds = function(), []
    for _ in range(calls):
        start = time.perf_counter()
        outputs = function()
        seconds.append(time.perf_counter() - start)
    return {name: np.asarray(value) for name, value in outputs.items()}, min(seconds)


def compute(side: str, configs: Mapping, part: str, folder: Path, threads: int, calls: int):
    """One framework's turn, in a process of its own: writes SIDE.npz and SIDE.json."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    inputs = dict(np.load(folder / "inputs.npz"))
    run = {"pytorch": run_pytorch, "ours": run_ours}[side]
    outputs, seconds = time_call(run(configs, part, inputs, folder, threads), calls)
    np.savez(folder / f"{side}.npz", **outputs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (folder / f"{side}.json").write_text(json.dumps({"seconds": seconds, "peak": peak}))


def compare(folder: Path) -> dict[str, float]:
    """The figures of a row, from what both wrote."""
    ours, theirs = (dict(np.load(folder / f"{side}.npz")) for side in ("ours", "pytorch"))
    figures = {
        f"{side}_{name}": value
        for side in ("ours", "pytorch")
        for name, value in json.loads((folder / f"{side}.json").read_text()).items()
    }
    if ours.keys() != theirs.keys():
        raise ValueError(f"The outputs are {sorted(ours)} and {sorted(theirs)}.")
    # Not Python's maximum, which drops NaN.
    largest = lambda arrays: float(np.max([np.abs(array).max() for array in arrays]))
    figures["difference"] = largest(ours[name] - theirs[name] for name in ours)
    figures["output"] = largest(theirs.values())
    return figures


def disagreement(figures: Mapping[str, float]) -> str | None:
    """What to say where the two differ by more than rounding does; None where they agree."""
    allowed = TOLERANCE * max(1.0, figures["output"])
    if figures["difference"] <= allowed:  # false of NaN
        return None
    return (
        f"Ours differs from PyTorch by {figures['difference']:.1e}, more than {allowed:.1e}: "
        f"{TOLERANCE:.0e} times the largest output, {figures['output']:.2f}, or times 1."
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CONFIGS, required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--latent-size", type=int, help="height and width; the model's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=2, help="timed, of which the best counts")
    parser.add_argument("--side", choices=("pytorch", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    flags = parse_arguments(arguments)
    configs = CONFIGS[flags.model]
    if flags.side:
        compute(flags.side, configs, flags.part, flags.folder, flags.threads, flags.calls)
        return
    latent_size = flags.latent_size or configs["unet"]["sample_size"]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **make_inputs(configs, flags.part, latent_size))
        for side in ("pytorch", "ours"):
            command = [sys.executable, __file__, f"--side={side}", f"--folder={folder}"]
            command += [f"--{name}={getattr(flags, name)}" for name in ("model", "part")]
            command += [f"--{name}={getattr(flags, name)}" for name in ("threads", "calls")]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            subprocess.run(command, check=True, env=environment)
        figures = compare(Path(folder))
    row = [
        flags.model,
        flags.part,
        "" if flags.part == "text" else f"{8 * latent_size}",
        f"{figures['difference']:.1e}",
        f"{figures['output']:.2f}",
        f"{figures['ours_seconds']:.2f}",
        f"{figures['pytorch_seconds']:.2f}",
        f"{figures['ours_seconds'] / figures['pytorch_seconds']:.2f}",
        f"{figures['ours_peak']:.1f}",
        f"{figures['pytorch_peak']:.1f}",
    ]
    print(HEADER)
    print(f"| {' | '.join(row)} |")
    sys.exit(disagreement(figures))  # of None: 0


if __name__ == "__main__":
    main()
