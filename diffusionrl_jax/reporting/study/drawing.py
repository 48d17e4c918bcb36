"""Draws the pictures of a study: two models, the same prompts and the same noise."""

import uuid
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.prompt_sources import prompt_categories
from diffusionrl_jax.data.suites import columns_of
from diffusionrl_jax.evaluation.compare import BASE, evaluate_models
from diffusionrl_jax.evaluation.evaluator import evenly
from diffusionrl_jax.experiments.tasks import make_evaluation_set
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.hub import is_run
from diffusionrl_jax.monitoring.images import to_uint8, write_png
from diffusionrl_jax.reporting.study.records import (
    SCRAMBLED,
    A,
    B,
    Pair,
    Study,
    picture_path,
    write_study,
)
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.identities import settle_step

SET = "study"


def parse_models(names: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Returns path and step of the two models that a user has named; the path of `BASE` is empty.

    Args:
      names: what the flags a and b hold, by their names: `BASE`, or as in `trained.parse_model`.

    Raises:
      UserError: a name cannot be a model's, or both name the same.
    """
    found = {
        name: ("", "") if text == BASE else trained.parse_model(text, f"--{name}")
        for name, text in names.items()
    }
    _check_two(names, found)
    return found


def _check_two(names: dict[str, str], models: dict[str, tuple[str, str]]) -> None:
    if models[A] == models[B]:
        raise UserError(f"--a={names[A]} and --b={names[B]} are the same model: name two.")


def settle_models(names: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Returns what `parse_models` does, with the number of a run's step.

    Which one "best" and "last" mean changes while a run trains.

    Raises:
      UserError, FileNotFoundError: as `parse_models`, or a run has no such step.
    """
    found = {
        name: (path, settle_step(path, step) if path else "")
        for name, (path, step) in parse_models(names).items()
    }
    _check_two(names, found)
    return found


def usual_config(models: dict[str, tuple[str, str]]) -> Config:
    """Returns the config by which two models are drawn where none is given.

    It is that of the run of b, or else of a; where neither is of a run, it is the usual one.

    Raises:
      UserError: one is `BASE`, and the other no run that began from it.
    """
    paths = [path for path, _ in (models[B], models[A]) if path]
    runs = [path for path in paths if is_run(path)]
    if len(paths) < len(models) and not runs:
        raise UserError(
            f"{BASE!r} is the model that a run began from, and {paths[0]} is no run: name the "
            "model itself, or give --config."
        )
    return trained.opening_config((runs or paths)[0])


def draw_study(
    folder: epath.Path,
    config: Config,
    names: dict[str, str],
    prompts: str,
    pairs: int,
    *,
    question: str,
    seed: int = 0,
    checks: int = 0,
    columns: Sequence[str] | None = None,
    scorers: Sequence[str] | None = None,
) -> Study:
    """Draws and scores a study's pictures, and writes its folder. All processes call it.

    Args:
      folder: an existing folder.
      config: says how to sample, which model `BASE` is, and what the scorers are. It is changed.
      names: the two models, as in `parse_models`.
      prompts: the prompts' source, as a task's. It is gone through once from its beginning, and
        again where there are fewer prompts than pairs.
      pairs: how many pairs there are.
      question: what people are asked.
      seed: of the noise, of the prompts' order, and of what each rater is shown.
      checks: of how many pairs a picture is shown beside a scrambled one, too.
      columns: the columns of the prompts' file, or of their suite, that say to which categories a
        prompt belongs; None means all of a suite's.
      scorers: names in `config.evaluation.scorers` of those that judge the pictures, too; None
        means those by which an evaluation sets models head to head.

    Raises:
      UserError, FileNotFoundError: the models, the prompts or a scorer cannot be used.
    """
    models = settle_models(names)
    categories = prompt_categories(prompts, columns)
    groups = columns_of(categories)
    chosen = tuple(config.evaluation.head_to_head if scorers is None else scorers)
    # The devices are given the same number of pictures each; those beyond the pairs are left out.
    images = -(-pairs // jax.device_count()) * jax.device_count()
    with config.unlocked():
        config.evaluation.sets = {SET: make_evaluation_set(prompts, images, chosen)}
        config.evaluation.best = {}
        config.evaluation.head_to_head = ()
        config.evaluation.seed = seed
    evaluator, evaluations = evaluate_models(
        config, [(name, *models[name]) for name in (A, B)], shown=images
    )
    scores = {
        scorer: np.stack([evaluations[name].scores[SET][scorer] for name in (A, B)], axis=1)
        for scorer in chosen
    }
    study = Study(
        identity=uuid.uuid4().hex,
        a=names[A],
        b=names[B],
        prompts=prompts,
        question=question,
        seed=seed,
        sampler=config.sampler.to_dict(),
        pairs=tuple(
            Pair(
                prompt,
                {column: categories.get(prompt, {}).get(column, "") for column in groups},
                {
                    scorer: (float(by[number, 0]), float(by[number, 1]))
                    for scorer, by in scores.items()
                },
            )
            for number, prompt in enumerate(evaluator.prompts[SET][:pairs])
        ),
        checks=tuple(evenly(pairs, checks).tolist()),
        steps={name: step for name, (_, step) in models.items() if step},
    )
    if jax.process_index() == 0:
        drawn = {name: to_uint8(evaluations[name].images[SET]) for name in (A, B)}
        _write_pictures(folder, drawn, study)
        write_study(folder, study)
        logging.info("Wrote %d pairs of pictures to %s", pairs, folder)
    return study


def _write_pictures(folder: epath.Path, drawn: dict[str, np.ndarray], study: Study) -> None:
    """Writes the pictures of both models, and scrambled ones for the attention checks."""
    generator = np.random.default_rng(study.seed)
    for name in (A, B, SCRAMBLED):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for pair in range(len(study.pairs)):
        for name in (A, B):
            write_png(picture_path(folder, name, pair), Image.fromarray(drawn[name][pair]))
    for pair in study.checks:
        image = drawn[(A, B)[generator.integers(2)]][pair]
        pixels = generator.permutation(image.reshape(-1, image.shape[-1]))
        scrambled = Image.fromarray(pixels.reshape(image.shape))
        write_png(picture_path(folder, SCRAMBLED, pair), scrambled)
