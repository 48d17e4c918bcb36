"""Dry runs of several models on several slices. They take hours, and so each is kept in a file."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence

from absl import logging
from etils import epath

from diffusionrl_jax.costs.dry_run import dry_run
from diffusionrl_jax.costs.phases import WHOLE
from diffusionrl_jax.costs.report import GIB, table
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.published import HUB_IDS

# Phases that are compiled together, since they share a program.
TOGETHER = {"update": ["update", "pretrain"]}
# Fields that no program depends on.
WITHOUT_EFFECT = ("iterations", "seed", "checkpoint", "evaluation")


def dry_runs(
    config: Config,
    models: Sequence[str],
    topologies: Sequence[str],
    phases: Sequence[str],
    folder: str,
    *,
    quick: bool = False,
) -> list[dict]:
    """Compiles what the folder does not hold yet.

    Args:
      config: see `experiments/config.py`.
      models: published ones' names, each for config.model.
      topologies: as libtpu names them.
      phases: "sample", "decode", "score", "update" (with "pretrain"), as in `phases.make_phases`.
      folder: of `DryRun.to_json`, a file for each model, topology and phase.
      quick: with less effort of the compiler, see `compiled.compile_program`; what the folder holds
        of all its effort is taken as it is.

    Returns:
      For each model and topology what the files hold, their phases together, each with "quick" and
      "compiler"; with "name", the model's.

    Raises:
      UserError: a file is of another config or less effort; or what does not fit.
    """
    wanted = []
    for model, topology, phase in itertools.product(models, topologies, phases):
        one = copied(config)
        one.model = HUB_IDS[model]
        wanted.append((model, phase, Kept(folder, model, one, topology, phase, quick)))
    for *_, kept in wanted:
        kept.check()
    results: dict[tuple[str, str], dict] = {}
    for model, _, kept in wanted:
        found = kept.result() | {"name": model}
        earlier = results.get((model, kept.topology), {"phases": []})
        made = {name: found[name] for name in ("quick", "compiler")}
        phases_of_file = [part | made for part in found["phases"]]
        results[model, kept.topology] = found | {"phases": earlier["phases"] + phases_of_file}
    return list(results.values())


@dataclasses.dataclass(frozen=True)
class Kept:
    """A dry run of a phase, whose result is kept in a file of its own.

    Attributes:
      folder: of the files.
      name: of the config, for the file's name.
      config: see `experiments/config.py`; what it leaves open is chosen by `planning`.
      topology: as libtpu names it.
      phase: as in `phases.make_phases`, or "whole step".
      quick: with less effort of the compiler, see `compiled.compile_program`; a result of all its
        effort is taken as it is.
      needed: whether to count what the mathematics needs.
    """

    folder: str
    name: str
    config: Config
    topology: str
    phase: str
    quick: bool
    needed: bool = True

    @property
    def path(self) -> epath.Path:
        """The file."""
        file = f"{self.name}_{self.topology}_{self.phase}.json"
        return epath.Path(self.folder) / re.sub("[: ]", "_", file)

    @functools.cached_property
    def _matters(self) -> dict:
        """The fields that the programs depend on, as they are planned."""
        devices = planning.devices_of_topology(self.topology)
        config, _ = planning.resolve(self.config, devices, refuse=False)
        fields = json.loads(config.to_json())
        return {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}

    def check(self):
        """Refuses a file that is not of this dry run.

        Raises:
          UserError: it is of another config or less effort.
        """
        if not self.path.exists():
            return
        found = json.loads(self.path.read_text())
        if found["config"] != self._matters or (found["quick"] and not self.quick):
            raise UserError(
                f"{self.path} is of another config or less effort: name another folder, or delete "
                "the file."
            )

    def result(self) -> dict:
        """What the file holds, `DryRun.to_json`, once it is compiled; in minutes or hours."""
        if not self.path.exists():
            logging.info("%s.", self.path.stem)
            whole = self.phase == WHOLE
            only = None if whole else TOGETHER.get(self.phase, [self.phase])
            found = dry_run(
                self.config,
                self.topology,
                whole=whole,
                only=only,
                needed=self.needed,
                quick=self.quick,
            )
            result = found.to_json() | {"config": self._matters}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(result, indent=2, default=str).encode())
        return json.loads(self.path.read_text())


def markdown(results: Sequence[Mapping]) -> str:
    """A row for each model and slice, a column for each phase.

    A phase's cell holds the share of its compiled operations that the mathematics needs, the memory
    that it takes together with all that is held meanwhile, what binds it, and its least seconds.
    The last column is of these phases alone. Below are the compilers; where some phases were
    compiled with less effort, those that were not are marked.
    """
    phases = [phase for one in results for phase in one["phases"]]
    names = list(dict.fromkeys(phase["name"] for phase in phases))
    quick = any(phase["quick"] for phase in phases)
    rows = []
    for one in results:
        memory = chips.of_topology(one["topology"]).memory
        cells = {phase["name"]: _cell(phase, memory, quick) for phase in one["phases"]}
        fits = all(_fits(phase, memory) for phase in one["phases"])
        seconds = sum(phase["seconds"] for phase in one["phases"])
        speed = f"{one['images'] / one['chips'] / seconds:.3f}" if fits else ""
        rows.append(
            [one["name"], chips.name(one["topology"]), *(cells.get(name, "") for name in names)]
            + [f"{memory / GIB:.4g}", speed]
        )
    found = table(["", "slice", *names, "HBM, GiB", "images/s/chip at most"], rows)
    compilers = " and ".join(sorted({phase["compiler"] for phase in phases}))
    effort = ", with less effort but for what is marked *" if quick else ""
    return f"{found}\n\nCompiled by {compilers}{effort}."


def _fits(phase: Mapping, memory: float) -> bool:
    return bool(phase["bound_by"]) and phase["memory"] <= memory


def _cell(phase: Mapping, memory: float, quick: bool) -> str:
    gibibytes = f"{phase['memory'] / GIB:.2f} GiB"
    effort = " *" if quick and not phase["quick"] else ""
    if not _fits(phase, memory):
        return f"does not fit: {gibibytes}{effort}"
    binds = f"{phase['bound_by']}, {phase['seconds']:.3g} s"
    return f"{phase['share']:.2f}; {gibibytes}; {binds}{effort}"
