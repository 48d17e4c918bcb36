"""Each reward model against its PyTorch original: `python benchmarks/rewards.py`.

Images per second on the same CPU and threads, in turns, with random weights of the published size;
operations and bytes of the program compiled for a TPU that is not there; and, with --share, the
part of an iteration that scoring takes. See docs/reward_models.md. hps_v2 and pick_score take 13 GB
of memory, the others 6 at most.
"""

import dataclasses
import gc
import json

import jax
from absl import flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.costs.compiled import chip
from diffusionrl_jax.data.files import prepare_file, write_whole
from diffusionrl_jax.mistakes import UserError

REWARDS = flags.DEFINE_list("rewards", [], "Which; all by default.")
BATCH = flags.DEFINE_integer("batch", 8, "Pictures scored at a time.", 2)
PIXELS = flags.DEFINE_integer("pixels", 512, "Height and width of a picture.", 8)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each; 0 measures no speed.", 0)
TINY = flags.DEFINE_bool("tiny", False, "Models of two layers, to try the command out.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Compile for a chip of it; '' does not.")
SHARE = flags.DEFINE_bool("share", False, "Count Stable Diffusion 2's iteration, too.")
JSON = flags.DEFINE_string("json", None, "Write everything measured into this file.")


def main(_):
    with programs.clear_errors():
        try:
            import originals
            import scoring
        except ImportError as error:
            raise UserError(
                f"The originals need PyTorch: pip install torch (its CPU build is enough). {error}"
            ) from error
        names = REWARDS.value or list(originals.ORIGINALS)
        unknown = sorted(set(names) - set(originals.ORIGINALS))
        if unknown:
            raise UserError(f"--rewards has {unknown}; known are {list(originals.ORIGINALS)}.")
        output = JSON.value is not None and prepare_file(JSON.value, "--json")
        settings = {
            "batch": BATCH.value,
            "pixels": PIXELS.value,
            "threads": scoring.available_threads(),
            "topology": TOPOLOGY.value,
            "jax": jax.__version__,
            "torch": originals.torch.__version__,
        }
        print(", ".join(f"{name} {value}" for name, value in settings.items()))
        print(f"\n{scoring.HEAD}", flush=True)
        mesh = chip(TOPOLOGY.value) if TOPOLOGY.value else None
        results = []
        for name in names:
            result = scoring.measure(
                name,
                batch=BATCH.value,
                pixels=PIXELS.value,
                rounds=ROUNDS.value,
                tiny=TINY.value,
                mesh=mesh,
            )
            print(scoring.row(result), flush=True)
            results.append(result)
            gc.collect()
        report = {"settings": settings, "rewards": list(map(dataclasses.asdict, results))}
        if SHARE.value:
            report["iteration"] = scoring.paper_iteration()
            rows = scoring.share_rows(results, report["iteration"])
            print("\n".join(["", scoring.SHARE_HEAD, *rows]))
        if output:
            write_whole(output, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    programs.run(main)
