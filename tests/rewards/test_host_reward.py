"""Scorers outside of the graph: functions, and what all of them may do."""

import copy
import dataclasses
import re
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import common
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.rewards import scorers, scoring
from diffusionrl_jax.rewards.host_reward import HostReward, Questions, ScorerError, host_rewards

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
QUESTIONS = Questions([f"prompt {n}" for n in range(5)], [{"index": n} for n in range(5)])


def brightness(images, prompts, metadata):
    assert images.dtype == np.uint8 and len(prompts) == len(metadata) == len(images)
    return images.mean((1, 2, 3)) + 1000 * np.array([values["index"] for values in metadata])


EXPECTED = (IMAGES.mean((1, 2, 3)) + 1000 * np.arange(5)).astype(np.float32)


def sleepy(images, prompts, metadata):
    time.sleep(20)


class Slow:
    """Takes half a second a call, and counts the calls at the same time."""

    def __init__(self):
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, images, prompts, metadata):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.5)
        with self.lock:
            self.now -= 1
        return [0.0] * len(images)


slow = Slow()


def raising(images, prompts, metadata):
    raise KeyError("no such cat")


def leaving(images, prompts, metadata):
    sys.exit("out of memory")


def leaving_well(images, prompts, metadata):
    sys.exit(0)


def too_few(images, prompts, metadata):
    return [1.0]


def words(images, prompts, metadata):
    return ["good"] * len(images)


class Refusing:
    def __array__(self, *arguments, **options):
        raise RuntimeError("not in this life")


def refusing(images, prompts, metadata):
    return Refusing()


def tensor(images, prompts, metadata):
    return torch.arange(5.0)


def tensor_in_bfloat16(images, prompts, metadata):
    return torch.arange(5.0, dtype=torch.bfloat16)


def tensor_with_gradient(images, prompts, metadata):
    return torch.arange(5.0, requires_grad=True)


def list_of_tensors(images, prompts, metadata):
    return list(torch.arange(5.0))


def jax_in_bfloat16(images, prompts, metadata):
    return jnp.arange(5, dtype=jnp.bfloat16)


def scribbling(images, prompts, metadata):
    """Writes into all that it is given."""
    seen = images.mean((1, 2, 3)) + 1000 * np.array([values["index"] for values in metadata])
    images[:] = 0
    prompts.clear()
    for values in metadata:
        values.clear()
    metadata.clear()
    return seen


def load(path, **options):
    return HostReward.load(path, **options)[0]


@pytest.mark.parametrize("images_per_call", [0, 2, 5, 9])
def test_a_function(images_per_call):
    reward = load(f"{__name__}:brightness", images_per_call=images_per_call)
    np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), EXPECTED)


@pytest.mark.parametrize("images_per_call", [0, 2])
def test_what_a_function_writes_is_seen_by_nobody_else(images_per_call):
    images, questions = IMAGES.copy(), copy.deepcopy(QUESTIONS)
    reward = load(f"{__name__}:scribbling", images_per_call=images_per_call)
    for _ in range(2):
        np.testing.assert_array_equal(reward.score(images, questions), EXPECTED)
    np.testing.assert_array_equal(images, IMAGES)
    assert questions == QUESTIONS
    other = load(f"{__name__}:brightness")
    np.testing.assert_array_equal(other.score(images, questions), EXPECTED)


def test_a_call_that_was_given_up_ends_before_the_next_one():
    """Whoever waits for it is told so as well, and the next one after its end is answered."""
    hasty = load(f"{__name__}:slow", timeout=0.1, images_per_call=2)
    for _ in range(2):
        with pytest.raises(ScorerError, match="slow has not returned within 0.1 seconds"):
            hasty.score(IMAGES, QUESTIONS)
    patient = load(f"{__name__}:slow", timeout=20.0)
    np.testing.assert_array_equal(patient.score(IMAGES, QUESTIONS), np.zeros(5))
    assert slow.most == 1


@pytest.mark.parametrize("name", ["tensor", "list_of_tensors", "jax_in_bfloat16"])
def test_scores_may_be_arrays_of_many_kinds(name):
    scores = load(f"{__name__}:{name}").score(IMAGES, QUESTIONS)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, range(5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sleepy", "has not returned within 0.3 seconds"),
        ("raising", "raised KeyError: 'no such cat'"),
        ("leaving", "raised SystemExit: out of memory"),
        ("leaving_well", r"raised SystemExit: 0\."),
        ("too_few", r"gave scores of shape \(1,\) for 5 images"),
        ("words", r"gave no list of numbers for 5 images, but \['good'"),
        ("refusing", r"gave no list of numbers for 5 images, but .* \(not in this life\)\."),
        ("tensor_with_gradient", r"gave no list of numbers .* Use tensor\.detach\(\)\.numpy\(\)"),
        ("tensor_in_bfloat16", "gave no list of numbers .* unsupported ScalarType BFloat16"),
    ],
)
def test_functions_that_fail(name, message):
    with pytest.raises(ScorerError, match=f"The scorer .*test_host_reward:{name} {message}"):
        load(f"{__name__}:{name}", timeout=0.3).score(IMAGES, QUESTIONS)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("no_such_module:score", {}, "'no_such_module:score' cannot be imported"),
        (f"{__name__}:nothing", {}, "nothing' cannot be imported"),
        ("brightness", {}, "'brightness' is not of the form package.module:name"),
        (f"{__name__}:IMAGES", {}, "is a ndarray, not a function"),
        (f"{__name__}:brightness", {"image_format": "gif"}, "image_format='gif' must be one of"),
        (f"{__name__}:brightness", {"timeout": 0}, "timeout=0 must be at least"),
        (f"{__name__}:brightness", {"tries": 3}, r"host_reward has no option \['tries'\]"),
    ],
)
def test_bad_configs(path, options, message):
    scorer = common.make_scorer("host_reward", path, **options)
    with pytest.raises(ValueError, match=message):
        experiment.load_scorer(scorer, group_size=1)


MODULE = """import {helper}


def score(images, prompts, metadata):
    return [0.0] * len(images)


class Own:
    pass
"""
HELPER = """

{statement}
"""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import sys; sys.exit(0)", r"\(SystemExit: 0\)"),
        ("raise SystemExit", r"\(SystemExit: \)"),
        ("raise RuntimeError('no GPU')", r"\(RuntimeError: no GPU\)"),
        ("1 / 0", r"\(ZeroDivisionError: division by zero\)"),
        ("class Odd(BaseException): pass\nraise Odd('?')", r"\(Odd: \?\)"),
        ("import no_such_module_at_all", r"\(ModuleNotFoundError: No module named 'no_such_mod"),
        ("import json; json.loads('{')", r"\(JSONDecodeError: "),
        ("def f(:", r"\(SyntaxError: invalid syntax"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("kind", ["host_reward", "own"])
def test_modules_that_break_on_import_are_named(
    statement, message, kind, tmp_path, monkeypatch, request
):
    """With the line of theirs, not of a library or of ours; the status is that of bad input."""
    name = re.sub(r"\W", "_", request.node.callspec.id)
    (tmp_path / f"module_{name}.py").write_text(MODULE.format(helper=f"helper_{name}"))
    (tmp_path / f"helper_{name}.py").write_text(HELPER.format(statement=statement))
    monkeypatch.syspath_prepend(tmp_path)
    path = f"module_{name}:score"
    scorer = common.make_scorer(kind, path) if kind == "host_reward" else common.make_scorer(path)
    line = 4 if "class Odd" in statement else 3
    expected = f"'{path}' cannot be imported {message}.*: mend .*helper_{name}.py, line {line}"
    with pytest.raises(ValueError, match=expected):
        experiment.load_scorer(scorer, group_size=1)


def test_an_interrupt_while_a_module_is_imported_is_the_users(tmp_path, monkeypatch):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load("interrupted:score")


@dataclasses.dataclass(frozen=True)
class Leaving:
    """A reward whose every method leaves."""

    @classmethod
    def load(cls, path):
        if path == "nothing":
            return None
        if path:
            sys.exit(0)
        return cls(), {}

    def check(self, prompts):
        sys.exit(0)

    def prepare(self, prompts):
        sys.exit(0)

    def __call__(self, params, images, inputs):
        sys.exit(0)


def test_no_reward_ends_a_run_as_if_all_were_well():
    own = lambda path: experiment.load_scorer(common.make_scorer(f"{__name__}:Leaving", path), 1)
    with pytest.raises(
        ValueError, match=r":Leaving cannot be loaded \(SystemExit: 0\): mend .*\.py"
    ):
        own("elsewhere")
    with pytest.raises(ValueError, match=r":Leaving cannot be loaded \(TypeError: .*unpack"):
        own("nothing")
    reward, params = own("")
    for call in (
        lambda: scorers.check_prompts(reward, ["a cat"]),
        lambda: scorers.prepare(reward, ["a cat"]),
        lambda: scoring.score(reward, params, IMAGES, {}),
    ):
        with pytest.raises(ValueError, match=r"Leaving.* called sys.exit\(0\): mend .*, line"):
            call()


def test_parts_of_a_sum_are_found():
    ours = common.make_scorer("host_reward", f"{__name__}:brightness")
    inner = common.make_weighted_sum(ours=(ours, 2.0), other=(ours, 1.0))
    reward, params = experiment.load_scorer(common.make_weighted_sum(all=(inner, -1.0)), 1)
    assert set(host_rewards(reward)) == {"all/ours/scores", "all/other/scores"}
    inputs = {"all/ours/scores": np.float32([3, 4]), "all/other/scores": np.float32([5, 6])}
    np.testing.assert_array_equal(reward(params, None, inputs), [-11, -14])
