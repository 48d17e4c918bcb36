"""Compares a base model, checkpoints of it and real pictures on the same prompts and noise."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.emoji import real
from diffusionrl_jax.data.files import is_there, split_step, write_whole
from diffusionrl_jax.data.prompt_sources import prompt_categories
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.evaluation import (
    categories,
    differences,
    head_to_head,
    manifest,
    statistics,
    tables,
)
from diffusionrl_jax.evaluation.categories import CategoryMean
from diffusionrl_jax.evaluation.differences import Difference
from diffusionrl_jax.evaluation.evaluator import SHOWN_IMAGES, Evaluation, Evaluator, evenly
from diffusionrl_jax.evaluation.head_to_head import WinRate
from diffusionrl_jax.evaluation.manifest import Manifest
from diffusionrl_jax.experiments import checks, fetching, planning
from diffusionrl_jax.experiments.fetching import MODEL, Named
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.families import describe_model
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.monitoring.images import image_grid, write_png
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.identities import settle_step

COMPARED_IMAGES = 3  # How many of each set's shown images are compared.
BASE = "base"


def split_checkpoints(text: str) -> list[str]:
    """Splits "name=PATH,name=PATH@step" at its commas, except those that belong to a path.

    A part without a name belongs to the path before it. So does any part that together with that
    path names something that exists.
    """
    found, parts = [], text.split(",") if text else []
    while parts:
        count = len(parts)
        while count > 1 and not _is_there(",".join(parts[:count])):
            count -= 1
        while count < len(parts) and "=" not in parts[count]:
            count += 1
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return found


def _is_there(text: str) -> bool:
    """Returns whether the path in "name=PATH" or "name=PATH@step" exists."""
    location = text.partition("=")[2]
    return is_there(location) or is_there(split_step(location)[0])


def parse_checkpoint(text: str) -> tuple[str, str, str]:
    """Returns name, path and step of "name=PATH@step"; the step is empty if none is given.

    Raises:
      UserError: the text is not of that form, or names nothing that can exist, see
        `runs.trained.parse_model`.
    """
    name, equals, location = text.partition("=")
    if not (name and equals and split_step(location)[0]):
        raise UserError(f"--checkpoints={text!r} is not name=PATH or name=PATH@step.")
    return name.strip(), *trained.parse_model(location, f"--checkpoints={name}")


def compare_models(
    config: Config,
    checkpoints: Sequence[tuple[str, str, str]],
    output: str,
    earlier: Manifest | None = None,
) -> str:
    """Scores the config's model, checkpoints and real pictures on the evaluation sets.

    Real pictures are scored for the sets whose prompts the emoji world can draw.

    Args:
      config: the experiment, see `experiments/config.py`.
      checkpoints: name, path and step of each, as in `runs.trained.load_trained`.
      output: an existing folder, for results.md, results.csv, differences.csv, manifest.json
        and comparison.png, for suites categories.csv, and of several checkpoints
        head_to_head.csv if a scorer decides.
      earlier: the manifest of the evaluation that this one has to be.

    Returns:
      The tables, as in results.md.

    Raises:
      UserError, FileNotFoundError: the config or a checkpoint cannot be used, or this is not the
        evaluation of `earlier`; the error says why.
    """
    names = [BASE, *(name for name, _, _ in checkpoints)]
    if len(set(names)) < len(names) or statistics.REAL in names:
        raise UserError(f"The names {names} must all differ, and not be {statistics.REAL!r}.")
    if not config.evaluation.sets:
        raise UserError("config.evaluation.sets is empty: there is nothing to evaluate.")
    settled = [(name, path, settle_step(path, step)) for name, path, step in checkpoints]
    models = [(BASE, "", ""), *settled]
    config = _open(config, models)
    described = manifest.describe(config, models)
    if earlier is not None:
        manifest.check_same(earlier, described)
    evaluator, evaluations = _draw(config, models, SHOWN_IMAGES)
    pictures = {
        name: real.draw_prompts(texts, config.evaluation.seed)
        for name, texts in evaluator.prompts.items()
    }
    scores = {name: evaluation.scores for name, evaluation in evaluations.items()}
    rows = statistics.compare(
        scores,
        evaluator.prompts,
        config.evaluation.head_to_head,
        evaluator.score_pictures(
            {name: drawn for name, drawn in pictures.items() if drawn is not None}
        ),
    )
    results = tables.as_csv(rows)
    made = manifest.complete(described, evaluator.policy, results)
    suites = {
        name: prompt_categories(chosen.prompts) for name, chosen in config.evaluation.sets.items()
    }
    by_category = categories.by_category(scores, evaluator.prompts, suites)
    apart = differences.differences(scores, evaluator.prompts)
    parts = [
        tables.markdown(rows, evaluator.prompts, manifest.summary(made)),
        tables.categories_markdown(by_category),
        tables.differences_markdown(apart),
    ]
    text = "\n".join(filter(None, parts))
    if jax.process_index() == 0:
        folder = epath.Path(output)
        write_whole(folder / "results.md", text.encode())
        write_whole(folder / tables.CSV, results)
        tables.write_csv(folder / differences.CSV, apart, Difference)
        decisive = config.evaluation.head_to_head
        # One checkpoint's wins over the base model are among the results.
        if decisive and len(checkpoints) > 1:
            rates = head_to_head.win_rates(scores, evaluator.prompts, decisive)
            tables.write_csv(folder / head_to_head.CSV, rates, WinRate)
        if by_category:
            tables.write_csv(folder / categories.CSV, by_category, CategoryMean)
        manifest.write(folder, made)
        write_png(folder / "comparison.png", _comparison_picture(evaluator, evaluations))
    if earlier is not None:
        manifest.check_results(earlier, made)
    return text


def evaluate_models(
    config: Config, models: Sequence[tuple[str, str, str]], shown: int = SHOWN_IMAGES
) -> tuple[Evaluator, dict[str, Evaluation]]:
    """Draws the evaluation sets with the same noise by several models, and scores them.

    Args:
      config: the experiment, see `experiments/config.py`.
      models: name, path and step of each, as in `runs.trained.load_trained`. An empty path means
        the config's own model.
      shown: how many images of each set are kept, at most.

    Returns:
      The evaluator, which has the prompts, and each model's evaluation by its name.

    Raises:
      UserError, FileNotFoundError: the config or a model cannot be used; the error says why.
    """
    return _draw(_open(config, models), models, shown)


def _open(config: Config, models: Sequence[tuple[str, str, str]]) -> Config:
    """Refuses what does not fit, brings what is not here, and leaves nothing in the config open."""
    on_hub = []
    for name, path, step in models:
        if path and not step and hub.is_hub_id(path, name):
            on_hub.append(Named(MODEL, path, (f"--checkpoints={name}={path}",)))
        elif path:
            trained.check_trained(path, step)
    checks.check_evaluation(config, make_mesh(1))
    fetching.bring(config, for_training=False, models=on_hub)
    _check_sizes(config, [path for _, path, _ in models if path])
    return planning.resolve(config, trains=False)[0]


def _check_sizes(config: Config, paths: Sequence[str]) -> None:
    """Refuses models that draw pictures of another size than the config's own."""
    asked, tokens = checks.size(config), config.sampler.text_tokens or None
    values = lambda model: describe_model(model, asked, tokens).image
    own = values(config.model)
    for path in paths:
        if values(trained.drawn_by(path)) != own:
            raise UserError(
                f"{path} draws pictures of another size than config.model={config.model!r}: set "
                "config.sampler.height and width, or compare models of one size."
            )


def _draw(
    config: Config, models: Sequence[tuple[str, str, str]], shown: int
) -> tuple[Evaluator, dict[str, Evaluation]]:
    """Does what `evaluate_models` does, with a config from `_open`."""
    base = load_policy(config)
    evaluator = Evaluator(base, config, shown=shown)
    evaluations = {}
    for name, path, step in models:
        logging.info("Drawing and scoring %s.", name)
        policy = trained.load_trained(path, config, step, base) if path else base
        sampler = evaluator.sampler
        if not policy.model.same_networks(base.model):
            sampler = Sampler(policy, config.sampler, sampler.batch, config.microbatch.decode)
        evaluations[name] = evaluator(policy.params, sampler)
    return evaluator, evaluations


def _comparison_picture(evaluator: Evaluator, evaluations: Mapping[str, Evaluation]) -> Image.Image:
    """Draws a grid with a row for each model and a column for each prompt with its noise."""
    chosen = {name: evenly(len(shown), COMPARED_IMAGES) for name, shown in evaluator.shown.items()}
    captions, images = [], []
    for name, which in chosen.items():
        captions += [evaluator.prompts[name][index] for index in evaluator.shown[name][which]]
    for evaluation in evaluations.values():
        images += [evaluation.images[name][which] for name, which in chosen.items()]
    return image_grid(
        np.concatenate(images),
        len(captions),
        row_captions=list(evaluations),
        column_captions=captions,
        scale=max(1, 96 // images[0].shape[2]),
    )
