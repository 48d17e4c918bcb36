"""Dry runs of several models on several slices. They take hours, and so each is kept in a file."""

import json
from collections.abc import Mapping, Sequence

import ml_collections
from absl import logging
from etils import epath

from diffusionrl_jax.benchmarking import chips
from diffusionrl_jax.benchmarking.dry_run import dry_run
from diffusionrl_jax.benchmarking.report import GIB, table
from diffusionrl_jax.models.published import HUB_IDS


def dry_runs(
    config: ml_collections.ConfigDict,
    models: Sequence[str],
    topologies: Sequence[str],
    phases: Sequence[str],
    folder: str,
) -> list[dict]:
    """Compiles what the folder does not hold yet.

    Args:
      config: see `configs/common.py`.
      models: published ones' names, each for config.model.
      topologies: as libtpu names them.
      phases: names of those to compile.
      folder: of `DryRun.to_json`, a file for each model and topology.

    Returns:
      What the files hold, with "name", the model's, "config" and "asked", the phases.

    Raises:
      ValueError: a file is of another config or of other phases; or what does not fit.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for model in models:
        one = ml_collections.ConfigDict(config.to_dict())
        one.model = HUB_IDS[model]
        asked = {"name": model, "config": json.loads(one.to_json()), "asked": list(phases)}
        for topology in topologies:
            path = folder / f"{model}_{topology.replace(':', '_')}.json"
            if not path.exists():
                logging.info("Compiling %s for %s.", model, topology)
                found = asked | dry_run(one, topology, only=list(phases)).to_json()
                unfinished = path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(found, indent=2, default=str))
                unfinished.rename(path)
            results.append(json.loads(path.read_text()))
            if any(results[-1][key] != value for key, value in asked.items()):
                raise ValueError(
                    f"{path} is of another config or of other phases: name another folder, or "
                    "delete the file."
                )
    return results


def markdown(results: Sequence[Mapping]) -> str:
    """A row for each model and slice, a column for each phase.

    A phase's cell holds the share of its compiled operations that the mathematics needs, the memory
    that it takes together with all that is held meanwhile, what binds it, and its least seconds.
    """
    names = list(dict.fromkeys(phase["name"] for one in results for phase in one["phases"]))
    rows = []
    for one in results:
        cells = {phase["name"]: _cell(phase) for phase in one["phases"]}
        seconds = [phase["seconds"] for phase in one["phases"]]
        speed = f"{one['images'] / one['chips'] / sum(seconds):.3f}" if all(seconds) else ""
        rows.append(
            [one["name"], one["topology"], *(cells.get(name, "") for name in names)]
            + [f"{chips.of_topology(one['topology']).memory / GIB:.4g}", speed]
        )
    return table(["", "slice", *names, "HBM, GiB", "images/s/chip at most"], rows)


def _cell(phase: Mapping) -> str:
    gibibytes = f"{phase['memory'] / GIB:.2f} GiB"
    if not phase["bound_by"]:
        return f"does not fit: {gibibytes}"
    return f"{phase['share']:.2f}; {gibibytes}; {phase['bound_by']}, {phase['seconds']:.3g} s"
