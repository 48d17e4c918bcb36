"""Trains each method in the emoji world, and keeps what docs/gallery.md shows of it.

    python benchmarks/gallery.py --output=FOLDER [--methods=nft,awm] [--page=docs/gallery.md]

All learn the preference alone from the same base model, without the pretraining loss and without an
average of the parameters, so that nothing is seen but the method. FOLDER then holds, of each, its
run, METHOD.png, the same prompts and noise before and after, and METHOD.md, a fragment of the page
with the command and the figures; with --page they are put into the page. Started again, it goes on
where it was; what has its fragment is not run again. `dpo_offline` is not among them: the emoji
world has no pairs that people chose between.
"""

import argparse
import io
import pathlib
import shlex
import shutil

import numpy as np
from arguments import names_of
from emoji_runs import WITHOUT_NOISE, run
from PIL import Image

from diffusionrl_jax.evaluation.records import Record, mean_by_prompt, read_record
from diffusionrl_jax.evaluation.watch import diversity_share, paired_changes
from diffusionrl_jax.monitoring.images import before_after, write_png
from diffusionrl_jax.monitoring.metrics import read_rows

CONFIG = "configs/emoji_policy_gradient.py:preference"
ALIKE = {"batch_size": 160, "pretraining.weight": 0.0, "ema_decay": 0.0}
SLOWLY = {"optimizer.learning_rate": 1e-5, "optimizer.warmup_iterations": 0}
MANY_STEPS = {"sampler.steps": 16}
# Of each method: what differs from the config, and how many iterations are trained.
METHODS = {
    "policy_gradient": ({}, 24),
    "reward_weighted": (
        MANY_STEPS
        | SLOWLY
        | {
            "algorithm.reward_weighted.from_base": False,
            "algorithm.reward_weighted.noises": 2,
            "algorithm.reward_weighted.temperature": 0.3,
            "algorithm.reward_weighted.weighting": "softmax",
        },
        12,
    ),
    "raft": (MANY_STEPS | SLOWLY | {"algorithm.raft.noises": 2}, 12),
    "nft": (WITHOUT_NOISE | {"algorithm.nft.error": "clean"}, 12),
    "awm": (WITHOUT_NOISE | {"optimizer.learning_rate": 5e-5}, 10),
    "dgpo": (WITHOUT_NOISE | {"optimizer.learning_rate": 5e-5}, 10),
    "crd": (WITHOUT_NOISE | {"optimizer.learning_rate": 5e-5}, 10),
    "dpo": (WITHOUT_NOISE | {"optimizer.learning_rate": 5e-5}, 10),
    "reward_gradient": (WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4}, 10),
    "refl": (
        WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4, "algorithm.refl.late_steps": 2},
        10,
    ),
    "draft_k": (WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4}, 10),
    "draft_lv": (
        WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4, "optimizer.one_step": True},
        10,
    ),
}
REWARD, JUDGE = "preference", "recognition"
# The set whose prompts come back, so that its pictures can be compared with each other.
REPEATED = "portraits"
# How many pictures of each evaluation set are shown, evenly apart.
SHOWN = {"new_pairs": 4, "unseen_pairs": 2, "portraits": 1, "unseen_portraits": 1}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="where runs, pictures and fragments go")
    parser.add_argument(
        "--methods",
        type=names_of("method", METHODS),
        default=list(METHODS),
        help=f"those to train, separated by commas; all of {', '.join(METHODS)} if not given",
    )
    parser.add_argument(
        "--page", type=pathlib.Path, help="a page that gets the fragments, and a folder of pictures"
    )
    return parser.parse_args(arguments)


def overrides(method: str) -> dict:
    """What a method's config has changed from `CONFIG`, by the fields' names."""
    changes, iterations = METHODS[method]
    of_all = {"algorithm.name": method, "iterations": iterations, "evaluation.every": iterations}
    return of_all | ALIKE | changes


def command(method: str) -> list[str]:
    """The flags that train a method, but for the workdir."""
    changed = [f"--config.{name}={value}" for name, value in overrides(method).items()]
    return [f"--config={CONFIG}", *changed]


def pictures(before: Record, after: Record) -> Image.Image:
    """The same prompts and noise before and after, side by side."""
    chosen = [
        (name, place)
        for name, count in SHOWN.items()
        for place in range(0, len(after.prompts[name]), len(after.prompts[name]) // count)
    ]
    read = lambda record: np.stack(
        [
            np.asarray(Image.open(io.BytesIO(record.pictures[name][place])).convert("RGB"))
            for name, place in chosen
        ]
    )
    prompts = [after.prompts[name][place] for name, place in chosen]
    return before_after(read(before), read(after), prompts, scale=2)


def change(before: Record, after: Record, scorer: str) -> str:
    """A scorer's mean over prompts, how it has changed, and the change's standard error."""
    changes = paired_changes(before, after, scorer)
    means = [
        mean
        for name, scores in before.scores.items()
        if scorer in scores
        for mean in mean_by_prompt(before.prompts[name], scores[scorer]).values()
    ]
    error = changes.std(ddof=1) / len(changes) ** 0.5
    return f"{np.mean(means):.3f} by {changes.mean():+.3f} ({error:.3f})"


def fragment(method: str, before: Record, after: Record, noise_length: float) -> str:
    """What the page says of a run: its picture, its figures and its command."""
    share = diversity_share(before, after, REPEATED)
    shown = shlex.join(
        ["python", "-m", "diffusionrl_jax.main", *command(method), f"--workdir=runs/{method}"]
    )
    return (
        f"![Before and after {METHODS[method][1]} iterations of {method}](gallery/{method}.png)\n\n"
        f"After {after.step} iterations the {REWARD}, the reward, has changed from "
        f"{change(before, after, REWARD)}, and the recogniser, never a reward, from "
        f"{change(before, after, JUDGE)}, with the standard error of the change over prompts in "
        f"brackets. The pictures of a prompt in {REPEATED} differ {share:.2f} times as much as "
        f"at first, and the predicted noise is {noise_length:.2f} times as long.\n\n"
        f"```sh\n{shown}\n```\n"
    )


def put(page: pathlib.Path, method: str, folder: pathlib.Path) -> None:
    """Puts a method's fragment into a page, in place of an earlier one, and its picture beside.

    In the page the fragment stands between two comments, <!-- METHOD --> and <!-- /METHOD -->.
    """
    begin, end = f"<!-- {method} -->\n", f"<!-- /{method} -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, there, after = rest.partition(end)
    assert there, f"{page} has no place for {method}"
    shown = (folder / f"{method}.md").read_text(encoding="utf-8")
    page.write_text(f"{before}{begin}\n{shown}\n{end}{after}", encoding="utf-8")
    pictures = page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    shutil.copy(folder / f"{method}.png", pictures)


def main(arguments: list[str] | None = None) -> None:
    """Trains, and writes the pictures and the fragments."""
    flags = parse_arguments(arguments)
    folder = pathlib.Path(flags.output)
    for method in flags.methods:
        said = folder / f"{method}.md"
        if not said.exists():
            workdir, last = str(folder / method), METHODS[method][1]
            run(flags.output, "main", *command(method), f"--workdir={workdir}")
            before, after = (read_record(workdir, step) for step in (0, last))
            write_png(folder / f"{method}.png", pictures(before, after))
            length = read_rows(workdir)[-1]["watch/noise_length"]
            said.write_text(fragment(method, before, after, length), encoding="utf-8")
        print(said.read_text(encoding="utf-8"), flush=True)
        if flags.page:
            put(flags.page, method, folder)


if __name__ == "__main__":
    main()
