"""Runs with scorers on the host, from start to end, and the code of docs/rewards_of_your_own.md."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffusionrl_jax import main
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.rewards import http_scorer
from diffusionrl_jax.rewards.host_reward import ScorerError
from tests.test_programs import assert_same_state, steps_of

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rewards_of_your_own.md").read_text()
EXAMPLE = ROOT / "examples" / "scorer.py"
FAILURES = {
    "dies": r"has failed 2 times, last: HTTP status 500: KeyError: 'dies'\. Iteration 2 is saved",
    "hangs": r"has failed 2 times, last: no answer within the timeout\. Iteration 2 is saved",
    "rubbish": r"gave no list of numbers for 8 images, but \['good', .* Iteration 2 is saved",
    "nothing": "gave no finite score for any of 8 images. Iteration 2 is saved",
}


@dataclasses.dataclass(frozen=True)
class RedSum:
    """`red_sum` in the graph; sums of whole numbers are exact in any order."""

    @classmethod
    def load(cls, path):
        return cls(), {}

    def prepare(self, prompts):
        return {}

    def __call__(self, params, images, inputs):
        return jnp.round(jnp.clip(images, 0, 1) * 255)[..., 0].sum((1, 2))


def red_sum(images, prompts, metadata):
    return images[..., 0].sum((1, 2), dtype=np.int64)


TROUBLE = {}  # "kind" and the "iteration" it begins with


def moody(images, prompts, metadata):
    """`red_sum`, until there is trouble."""
    kind = TROUBLE.get("kind")
    if kind is None or metadata[0]["iteration"] < TROUBLE["iteration"]:
        return red_sum(images, prompts, metadata)
    if kind == "hangs":
        time.sleep(4)
    return {"rubbish": ["good"], "nothing": [None]}[kind] * len(images)


@pytest.mark.slow
def test_the_same_reward_on_the_host_and_in_the_graph(make_config, compilation_cache, tmp_path):
    scorers = {
        "graph": common.make_scorer(f"{__name__}:RedSum"),
        "host": common.make_scorer("host_reward", f"{__name__}:red_sum"),
    }
    for name, scorer in scorers.items():
        config = make_config(iterations=2, overlap_scoring=False)
        config.tasks.small.scorer = config.evaluation.scorers.size = scorer
        main.train(config, str(tmp_path / name))
    assert_same_state(tmp_path / "host", tmp_path / "graph", 2)
    ours, theirs = (read_rows(str(tmp_path / name)) for name in ("host", "graph"))
    names = ("pairs/size", "people/size", "small/reward_mean", "small/loss", "ratio_check/max")
    for row, expected in zip(ours, theirs, strict=True):
        assert [row.get(name) for name in names] == [expected.get(name) for name in names]
    assert "pairs/size" in ours[0] and ours[2]["ratio_check/max"] < 1e-4


@pytest.fixture
def served(monkeypatch):
    """The address of the example server, which scores by `moody`."""
    spec = importlib.util.spec_from_file_location("scorer", EXAMPLE)
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    monkeypatch.setattr(http_scorer, "BACKOFF", 0.01)
    monkeypatch.setattr(http_scorer, "JITTER", 0.01)
    server = scorer.make_server(moody, 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def make_mixed(make_config):
    """A function that makes a config that only trains, one task in the graph, one by a scorer.

    It samples ahead, so that the parameters depend on all that a checkpoint must hold.
    """

    def make(path, **options):
        config = make_config(**{"checkpoint.every": 100})
        config.evaluation.sets, config.evaluation.best = {}, {}
        scorer = common.make_scorer("host_reward", path, **options)
        config.tasks.host = common.make_task(scorer, "emoji:pairs")
        return config

    return make


@pytest.fixture(scope="module")
def whole(make_mixed, compilation_cache, tmp_path_factory):
    """The workdir of a run that nothing stops, scored by a function; all checkpoints are kept."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config = make_mixed(f"{__name__}:moody")
    config.checkpoint.every, config.checkpoint.keep_last = 1, 9
    main.train(config, str(workdir))
    return workdir


@pytest.mark.slow
def test_what_overlaps_is_one_update_old(whole):
    errors = [row["ratio_check/max"] for row in read_rows(str(whole))[1:]]
    assert errors[0] < 1e-4
    assert min(errors[1:]) > 1e-3


@pytest.fixture
def fail(make_mixed, tmp_path, monkeypatch):
    """A function that has a scorer fail in the third iteration of a run in `tmp_path`."""

    def run(kind, path, **options):
        monkeypatch.setitem(TROUBLE, "kind", kind)
        monkeypatch.setitem(TROUBLE, "iteration", 2)
        with pytest.raises(ScorerError, match=re.escape(f"The scorer {path} ") + FAILURES[kind]):
            main.train(make_mixed(path, **options), str(tmp_path))
        monkeypatch.delitem(TROUBLE, "kind")

    return run


@pytest.mark.slow
def test_a_run_outlives_its_scorer(fail, whole, make_mixed, served, tmp_path):
    fail("dies", served, timeout=2.0, retries=1)
    assert steps_of(tmp_path) == [0, 1, 2]
    main.train(make_mixed(served, timeout=2.0, retries=1), str(tmp_path))
    assert steps_of(tmp_path) == [0, 1, 2, 3]
    assert_same_state(tmp_path, whole, 3)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in ("hangs", "rubbish", "nothing")],
)
def test_whatever_a_scorer_does_nothing_is_lost(kind, fail, whole, served, tmp_path):
    if kind == "rubbish":
        fail(kind, f"{__name__}:moody")
    else:
        fail(kind, served, timeout=1.0, retries=1)
    assert steps_of(tmp_path) == [0, 1, 2]
    assert_same_state(tmp_path, whole, 2)


@pytest.mark.slow
def test_what_overlaps_is_not_resumed_otherwise(whole, make_mixed):
    config = make_mixed(f"{__name__}:moody")
    config.overlap_scoring = False
    with pytest.raises(ValueError, match=r"config.overlap_scoring \(was true, now false\)"):
        main.train(config, str(whole))


DYING = """
import os


def brightness(images, prompts, metadata):
    if metadata[0]["iteration"] == 2 and not os.path.exists("mended"):
        os._exit(1)
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def start_scorer(tmp_path):
    """A function that starts examples/scorer.py with `DYING`: the port that it answers on."""
    (tmp_path / "dying.py").write_text(DYING)
    started = []

    def run(port=0):
        process = subprocess.Popen(
            [sys.executable, EXAMPLE, "--function=dying:brightness", f"--port={port}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return int(process.stdout.readline().split()[-1])

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_program_outlives_its_scorer(
    start_scorer, make_mixed, config_file, compilation_cache, tmp_path
):
    port = start_scorer()
    config = make_mixed(f"http://localhost:{port}", retries=2)
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    arguments = f"--config={config_file(config)}", f"--workdir={workdir}"
    run = functools.partial(
        subprocess.run,
        [sys.executable, "-m", "diffusionrl_jax.main", *arguments],
        cwd=ROOT,
        env={**os.environ, **compilation_cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        text=True,
    )
    disturbed = run()
    assert disturbed.returncode == 1
    assert disturbed.stdout.splitlines()[-1] == (
        f"error: The scorer http://localhost:{port} has failed 3 times, last: no connection. "
        "Iteration 2 is saved: mend the scorer, and the same command goes on."
    )
    assert "Traceback" not in disturbed.stdout
    (tmp_path / "mended").touch()
    start_scorer(port)
    resumed = run()
    assert resumed.returncode == 0, resumed.stdout
    assert "Resumed after iteration 2." in resumed.stdout
    assert steps_of(workdir) == [0, 1, 2, 3]
    main.train(config, str(whole))
    assert_same_state(workdir, whole, 3)


@pytest.mark.slow
def test_a_scorer_that_fails_in_an_evaluation(make_config, tmp_path, compilation_cache):
    config = make_config(iterations=2)
    # Metadata of an evaluation has no iteration, which this scorer looks for.
    config.evaluation.scorers.moody = common.make_scorer("host_reward", f"{__name__}:moody")
    config.evaluation.sets.pairs.scorers = ("size",)
    config.evaluation.sets.people.scorers = ("moody",)
    TROUBLE.update(kind="nothing", iteration=0)
    with pytest.raises(ScorerError, match="raised KeyError: 'iteration'. Iteration 0 is saved"):
        main.train(config, str(tmp_path))
    TROUBLE.clear()
    main.train(config, str(tmp_path))
    assert steps_of(tmp_path) == [0, 1, 2]


def test_a_fused_program_can_have_no_scorer_on_the_host(make_mixed, tmp_path):
    config = make_mixed(f"{__name__}:moody")
    config.execution = "fused"
    with pytest.raises(ValueError, match="config.execution='fused' cannot have a host_reward"):
        main.train(config, str(tmp_path))


@pytest.mark.slow
def test_the_pages_own_code_trains(make_config, compilation_cache, tmp_path, monkeypatch):
    """The files are at most 20 lines long, and do what the page says."""
    blocks = re.findall(r"```python\n# ([^\n]+)\n(.*?)```", PAGE, re.DOTALL)
    code = dict(blocks)
    assert list(code) == ["my_rewards.py", "my_scorers.py", "config"]
    for name in ("my_rewards.py", "my_scorers.py"):
        assert len([line for line in code[name].splitlines() if line.strip()]) <= 20
        (tmp_path / name).write_text(code[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    config = make_config(iterations=1)
    config.evaluation.sets, config.evaluation.best = {}, {}
    exec(code["config"], {"config": config, "common": common})
    main.train(config, str(tmp_path / "run"))
    _, row = read_rows(str(tmp_path / "run"))
    images = {name: row[f"{name}/reward_mean"] for name in ("small", "small_files", "red")}
    assert -5 < images["small_files"] < -0.6  # A file of 32x32 pixels has more than its headers.
    assert abs(images["red"]) < 1
    for name in ("red", "small_files", "small"):
        assert row[f"{name}/invalid_rewards"] == 0
