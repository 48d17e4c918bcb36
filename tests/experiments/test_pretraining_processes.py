"""Two processes of one device each make latents together, and read a batch each for itself."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from diffusionrl_jax.data.latents import LatentDataset
from diffusionrl_jax.experiments import experiment as experiments
from tests.processes import finish, free_address, launcher

PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from diffusionrl_jax.data import latents
from diffusionrl_jax.distributed.mesh import (
    batch_sharding, local_slices, make_mesh, place, replicated
)
from diffusionrl_jax.experiments.pretraining import pretraining_batch

address, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)
mesh = make_mesh()

class Pictures(list):
    fingerprint = "grey"
    read = set()

    def __getitem__(self, index):
        self.read.add(index)
        return super().__getitem__(index)

source = Pictures((np.full((4, 4, 3), n, np.uint8), f"thing {n}") for n in range(10))
encode = lambda images, ids: {
    "latent_mean": images.transpose(0, 3, 1, 2),
    "latent_std": jnp.square(images).transpose(0, 3, 1, 2),
    "input_ids": ids,
}
encode = jax.jit(encode, out_shardings=replicated(mesh))
(rows,) = local_slices(batch_sharding(mesh), 4)
latents.write_latents(
    source,
    lambda *batch: encode(*place(batch, batch_sharding(mesh))),
    lambda texts: np.array([[int(text.split()[1])] for text in texts]),
    folder, "vae", batch_size=4, pictures_per_file=4, rows=range(rows.start, rows.stop),
)
print("READ", *sorted(source.read - {0}))
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
    read = [line for output in outputs for line in output.splitlines() if line.startswith("READ")]
    assert set(read) == {"READ 1 4 5 8 9", "READ 2 3 6 7"}
    assert len({output.split("RESULT")[1].split()[0] for output in outputs}) == 2


DRAWING = """
import json, sys
import jax, ml_collections
from diffusionrl_jax.experiments import experiment

address, index, config, folder = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
config = ml_collections.ConfigDict(json.loads(config))
experiment.build(config).with_pictures(folder)
"""


@pytest.mark.multiprocess
@pytest.mark.slow
def test_processes_draw_pictures_together(make_config, tmp_path):
    """The pictures are those of one process with eight devices."""
    changes = {"pretraining.weight": 1.0, "pretraining.pictures": "base:16", "mesh.fsdp": 2}
    config = make_config(**changes)
    fields, address = json.dumps(config.to_dict()), free_address()
    with launcher({}, devices=1) as run:
        processes = [
            run("-c", DRAWING, address, str(index), fields, str(tmp_path / "two"))
            for index in range(2)
        ]
        for status, output in map(finish, processes):
            assert status == 0, output
    experiments.build(config).with_pictures(str(tmp_path / "one"))
    (two,), (one,) = ((tmp_path / name).iterdir() for name in ("two", "one"))
    assert two.name == one.name  # Of one fingerprint.
    ours, expected = (LatentDataset(folder).read(range(16)) for folder in (two, one))
    np.testing.assert_array_equal(ours["input_ids"], expected["input_ids"])
    # Other batch sizes add up in another order.
    np.testing.assert_allclose(ours["latent_mean"], expected["latent_mean"], atol=1e-3)
