"""What the digests of cached latents cost: `python benchmarks/latents.py`.

Latents of 512 px and their token ids, 1,024 pictures a file, are written, read in batches, and
compared as a whole with their digests as at the start of a run; both are mostly SHA-256. Times are
of one CPU core, so that other work on the machine matters little; the files lie in the system's
memory.
"""

import hashlib
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags

from diffusionrl_jax.data import latents

PICTURES = flags.DEFINE_integer("pictures", 4096, "How many.", 1024)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of each, of which the median counts.", 1)
BATCH = 256
SHAPE = (4, 64, 64)


class Source(list):
    """Empty pictures, whose number is the text."""

    fingerprint = "benchmark"


def main(_):
    rng = np.random.default_rng(0)
    picture = np.zeros((8, 8, 3), np.uint8)
    source = Source((picture, str(number)) for number in range(PICTURES.value))
    tokenize = lambda texts: np.array([[int(text)] * 77 for text in texts], np.int32)

    def encode(images, ids):
        mean, std = (rng.random((len(ids), *SHAPE), np.float32) for _ in range(2))
        return {"latent_mean": mean, "latent_std": std, "input_ids": ids}

    def read(dataset):
        for first in range(0, PICTURES.value, BATCH):
            dataset.read(range(first, first + BATCH))

    with tempfile.TemporaryDirectory() as folder:
        write = lambda: latents.write_latents(source, encode, tokenize, folder, "model")
        write()
        dataset = latents.LatentDataset(folder)
        row = sum(values.nbytes for values in dataset.read([0]).values())
        gigabytes = PICTURES.value * row / 1e9
        data = bytes(2**20)
        cases = {
            "SHA-256 alone": (
                lambda: [hashlib.sha256(data) for _ in range(512)],
                512 * 2**20 / 1e9,
            ),
            "batches": (lambda: read(dataset), gigabytes),
            "the whole cache, at the start of a run": (write, gigabytes),
        }
        times = {name: [] for name in cases}
        for _ in range(ROUNDS.value):
            for name, (function, _) in cases.items():
                begun = time.process_time()
                function()
                times[name].append(time.process_time() - begun)
        for name, (_, size) in cases.items():
            print(f"{name}: {statistics.median(times[name]) / size:.2f} CPU seconds a GB")


if __name__ == "__main__":
    app.run(main)
