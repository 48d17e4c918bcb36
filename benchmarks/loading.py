"""How much host memory it takes to write a checkpoint and to load it onto the devices.

    python benchmarks/loading.py --dtype=float32 --devices=2

Writes a synthetic Stable Diffusion 1.5 with a UNet of half the width (1.7 GB in float32), loads it
in a process of its own onto virtual CPU devices, over which large parameters are split, and prints
the peak of the resident memory above what was resident before. On the CPU that includes the
devices' own copy, one float32 checkpoint; `--whole` reads all first and then places it, for
comparison. What the writing of it took beside the parameters is printed first. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from diffusionrl_jax.models.folders.published import CONFIGS

CHANNELS = [160, 320, 640, 640]


def resident_bytes(field: str) -> int:
    """VmRSS, the resident memory of this process, or VmHWM, its peak since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def reset_peak() -> int:
    """Begins to measure the peak anew, and returns the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def write_checkpoint(folder: Path, dtype: str) -> int:
    """Writes a diffusers folder of random weights: by how many bytes the resident memory grows."""
    import jax

    from diffusionrl_jax.emoji_world import emoji_model
    from diffusionrl_jax.models.stable_diffusion.build import (
        build_stable_diffusion,
        parameter_template,
    )
    from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion

    configs = dict(CONFIGS["sd15"])
    configs["unet"] = configs["unet"] | {"block_out_channels": CHANNELS}
    model = build_stable_diffusion(configs, emoji_model.train_tokenizer())
    numbers = np.random.default_rng(0).standard_normal(2**20, np.float32)
    params = jax.tree.map(lambda leaf: np.resize(numbers, leaf.shape), parameter_template(model))
    before = reset_peak()
    save_stable_diffusion(folder, model, params, dtype)
    return resident_bytes("VmHWM") - before


def load(folder: Path, devices: int, whole: bool) -> dict[str, int]:
    """Loads the checkpoint: resident bytes before and after, at the peak, and of the parameters."""
    import jax

    from diffusionrl_jax.distributed.mesh import make_mesh, parameter_sharding
    from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

    mesh = make_mesh(fsdp=devices)
    sharding = lambda tree: parameter_sharding(mesh, tree)
    jax.block_until_ready(jax.device_put(np.zeros(8)))
    before = reset_peak()
    if whole:
        _, params = load_stable_diffusion(folder)
        params = jax.block_until_ready(jax.device_put(params, sharding(params)))
    else:
        _, params = load_stable_diffusion(folder, sharding=sharding)
    return {
        "before": before,
        "peak": resident_bytes("VmHWM"),
        "after": resident_bytes("VmRSS"),
        "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", help="of the checkpoint")
    parser.add_argument("--devices", type=int, default=2, help="virtual CPU devices")
    parser.add_argument("--whole", action="store_true", help="read all, then place it")
    parser.add_argument("--step", choices=("write", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    flags = parse_arguments(arguments)
    if flags.step == "write":
        print(write_checkpoint(flags.folder, flags.dtype))
        return
    if flags.step == "load":
        print(json.dumps(load(flags.folder, flags.devices, flags.whole)))
        return
    with tempfile.TemporaryDirectory() as folder:
        own = [sys.executable, __file__, f"--folder={folder}", f"--devices={flags.devices}"]
        own += ["--whole"] if flags.whole else []
        virtual = f"--xla_force_host_platform_device_count={flags.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
        write = [*own, "--step=write", f"--dtype={flags.dtype}"]
        written = subprocess.run(write, check=True, stdout=subprocess.PIPE).stdout
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
        output = subprocess.run(
            [*own, "--step=load"], check=True, env=environment, stdout=subprocess.PIPE
        ).stdout
    bytes_of = json.loads(output.splitlines()[-1])
    peak, after = (bytes_of[name] - bytes_of["before"] for name in ("peak", "after"))
    print(
        f"to write it took {int(written.splitlines()[-1]) / 1e9:.2f} GB beside the parameters\n"
        f"checkpoint {size / 1e9:.2f} GB of {flags.dtype}, parameters "
        f"{bytes_of['parameters'] / 1e9:.2f} GB on {flags.devices} devices\n"
        f"resident before {bytes_of['before'] / 1e9:.2f} GB; above that, at the peak "
        f"{peak / 1e9:.2f} GB, afterwards {after / 1e9:.2f} GB\n"
        f"peak / checkpoint {peak / size:.2f}, peak / parameters "
        f"{peak / bytes_of['parameters']:.2f}"
    )


if __name__ == "__main__":
    main()
