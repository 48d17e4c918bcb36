"""Time and memory of indexing a large prompt file, made up in the shape of DiffusionDB's.

    python benchmarks/prompts.py --rows=2000000 --unique=1500000

Writes a parquet file of one row group, indexes it, then opens it anew and draws from it. Each part
runs in its own process; memory is the growth of the resident set's peak over what imports take.
See docs/data.md.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time

import numpy as np

WORDS_PER_PROMPT = (4, 40)


def make_prompts(count: int, rng: np.random.Generator) -> list[str]:
    """Different prompts of made-up words."""
    words = [np.base_repr(code, 36) for code in range(30_000)]
    lengths = rng.integers(*WORDS_PER_PROMPT, count)
    drawn = iter(rng.integers(0, len(words), lengths.sum()).tolist())
    return [
        f"{number}: " + " ".join([words[next(drawn)] for _ in range(length)])
        for number, length in enumerate(lengths.tolist())
    ]


def write(path: str, rows: int, unique: int) -> dict:
    """Writes the file: every prompt once, the others again, in random order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(unique), rng.integers(0, unique, rows - unique)])
    rng.shuffle(numbers)
    prompts = make_prompts(unique, rng)
    table = pa.table(
        {
            "image_name": [f"{n:032x}.png" for n in range(rows)],
            "prompt": [prompts[number] for number in numbers.tolist()],
            "user_name": [f"{number % 10_000:064x}" for number in numbers.tolist()],
        }
    )
    pq.write_table(table, path, row_group_size=rows)
    return {"MiB of the file": round(os.path.getsize(path) / 2**20)}


def read(path: str, held_out: int, draws: int) -> dict:
    """Opens the file's training prompts and draws some of them."""
    from diffusionrl_jax.data.prompt_sources import open_prompts

    before = peak_mebibytes()
    start = time.perf_counter()
    source = open_prompts(f"{path}?held_out={held_out}", seed=0)
    opened = time.perf_counter()
    for index in range(draws):
        source[index]
    drawn = time.perf_counter()
    return {
        "training prompts": len(source.prompts),
        "seconds to open": round(opened - start, 2),
        "microseconds a draw": round(1e6 * (drawn - opened) / draws, 1),
        "peak RSS growth, MiB": round(peak_mebibytes() - before, 1),
    }


def peak_mebibytes() -> float:
    """The most memory that was ever resident, on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def apart(function, *arguments) -> dict:
    """What a function returns, run in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, and prints a line of JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--unique", type=int, default=1_500_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--draws", type=int, default=100_000)
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIFFUSIONRL_JAX_CACHE"] = folder
        path = str(pathlib.Path(folder) / "metadata.parquet")
        written = apart(write, path, flags.rows, flags.unique)
        print(json.dumps({"rows": flags.rows, "unique": flags.unique} | written))
        for part in ("first", "again"):
            print(json.dumps({"opened": part} | apart(read, path, flags.held_out, flags.draws)))


if __name__ == "__main__":
    main()
