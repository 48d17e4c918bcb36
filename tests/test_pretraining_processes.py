"""Two processes of one device each encode pictures together, and read a batch each for itself."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from diffusionrl_jax.data.latents import LatentDataset

PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from diffusionrl_jax.data import latents
from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from diffusionrl_jax.pretraining import pretraining_batch

address, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)
mesh = make_mesh()

class Pictures(list):
    fingerprint = "grey"

source = Pictures((np.full((4, 4, 3), n, np.uint8), f"thing {n}") for n in range(10))
moments = lambda images: (images.transpose(0, 3, 1, 2), jnp.square(images).transpose(0, 3, 1, 2))
encode = jax.jit(moments, out_shardings=(replicated(mesh),) * 2)
latents.write_latents(
    source,
    lambda images: encode(jax.device_put(images, batch_sharding(mesh))),
    lambda texts: np.array([[int(text.split()[1])] for text in texts]),
    folder, "vae", batch_size=4, pictures_per_file=4,
)
batch = pretraining_batch(latents.LatentDataset(folder), 1, 8, 0, mesh)
(shard,) = batch["input_ids"].addressable_shards
print("RESULT", shard.index[0].start or 0, *np.asarray(shard.data).ravel().tolist())
"""


@pytest.mark.multiprocess
@pytest.mark.slow
def test_processes_encode_together_and_read_their_own_rows(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    folder = str(tmp_path / "latents")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), folder],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    dataset = LatentDataset(folder)
    arrays = dataset.read(range(10))
    np.testing.assert_array_equal(arrays["input_ids"][:, 0], range(10))
    grey = np.arange(10, dtype=np.float32) / 255
    np.testing.assert_array_equal(arrays["latent_mean"][:, 2, 1, 3], grey)
    expected = dataset.batch(1, 8, 0)["input_ids"].reshape(2, 4)  # process, row
    for output in outputs:
        (line,) = (line for line in output.splitlines() if line.startswith("RESULT"))
        start, *ids = map(int, line.split()[1:])
        assert ids == expected[start // 4].tolist()
    assert len({output.split("RESULT")[1].split()[0] for output in outputs}) == 2
