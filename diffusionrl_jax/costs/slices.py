"""Makes dry runs of several models on several slices, and keeps each in a file: they take hours."""

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
from diffusionrl_jax.costs.report import GIB
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.devices import devices_of_topology
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.published import HUB_IDS
from diffusionrl_jax.monitoring.markdown import table

# Phases that are compiled together, since they share a program.
TOGETHER = {"update": ["update", "pretrain"]}
# The config's fields that no program depends on.
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
    """Makes the dry runs that the folder does not hold yet.

    Args:
      config: the experiment, see `experiments/config.py`.
      models: the names of published models, each of which takes the place of config.model.
      topologies: the slices, as libtpu names them.
      phases: the phases to compile: "sample", "decode", "score", "update" (with "pretrain"), as in
        `phases.make_phases`.
      folder: the folder of the results of `DryRun.to_json`, one file for each model, topology and
        phase.
      quick: whether the compiler makes less effort, see `compiled.compile_program`. Results in the
        folder that were compiled with full effort are taken as they are.

    Returns:
      For each model and topology what its files hold, with their phases together in one list. Each
      phase has its file's "quick" and "compiler". "name" is the model's name.

    Raises:
      UserError: a file is of another config or of less effort, or the config cannot be used.
    """
    wanted = []
    for model, topology, phase in itertools.product(models, topologies, phases):
        one = copied(config)
        one.model = HUB_IDS[model]
        wanted.append(Kept(folder, model, one, topology, phase, quick))
    for kept in wanted:
        kept.check()
    results: dict[tuple[str, str], dict] = {}
    for kept in wanted:
        found = kept.result() | {"name": kept.name}
        earlier = results.get((kept.name, kept.topology), {"phases": []})
        made = {name: found[name] for name in ("quick", "compiler")}
        phases_of_file = [part | made for part in found["phases"]]
        results[kept.name, kept.topology] = found | {"phases": earlier["phases"] + phases_of_file}
    return list(results.values())


@dataclasses.dataclass(frozen=True)
class Kept:
    """A dry run of one phase, whose result is kept in a file of its own.

    Attributes:
      folder: the folder of the files.
      name: what the file's name calls the config.
      config: the experiment, see `experiments/config.py`. What it leaves open is chosen by
        `planning`.
      topology: the slice, as libtpu names it.
      phase: the phase to compile, as in `phases.make_phases`, or "whole step".
      quick: whether the compiler makes less effort, see `compiled.compile_program`. A result that
        was compiled with full effort is taken as it is.
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
        """The path of the file."""
        file = f"{self.name}_{self.topology}_{self.phase}.json"
        return epath.Path(self.folder) / re.sub("[: ]", "_", file)

    @functools.cached_property
    def _matters(self) -> dict:
        """The fields that the programs depend on, with the values that planning chooses."""
        devices = devices_of_topology(self.topology)
        config, _ = planning.resolve(self.config, devices, refuse=False)
        fields = json.loads(config.to_json())
        return {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}

    def check(self):
        """Refuses a file that is not of this dry run. There may be no file yet.

        Raises:
          UserError: the file is of another config or of less effort.
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
        """Returns what the file holds, `DryRun.to_json`.

        If there is no file, the dry run is made first, which takes minutes or hours.
        """
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
    """Returns a table with a row for each model and slice, and a column for each phase.

    A phase's cell holds the share of its compiled operations that the mathematics needs, the memory
    that it takes together with all that is held meanwhile, the resource that limits it, and the
    seconds that it takes at least. The last column is of these phases alone. Below the table are
    the compilers. Where some phases were compiled with less effort, those that were not are marked.
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
    effort = ", with less effort" if quick else ""
    if quick and not all(phase["quick"] for phase in phases):
        effort += " but for what is marked *"
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
