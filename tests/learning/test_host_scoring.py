"""Rewards that are computed on the host train as the same ones in the graph do."""

import contextlib
import dataclasses
import itertools
import time

import jax
import numpy as np
import pytest

from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.host_scoring import start_scoring
from diffusionrl_jax.monitoring.progress import PhaseTimer
from diffusionrl_jax.rewards.host_reward import HostReward, Questions, ScorerError
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

SMALL = {"tasks": 2, "pretraining_weight": 0.0, "guidance_scale": 1.0, "devices": 2}


@dataclasses.dataclass(frozen=True)
class Redness:
    """`redness` in the graph."""

    def __call__(self, params, images, inputs):
        pixels = jax.numpy.round(jax.numpy.clip(images, 0, 1) * 255)
        # Sums of whole numbers, so that they are exact in any order.
        return pixels[..., 0].sum((1, 2))


def redness(images, prompts, metadata):
    """Refuses what is not asked of the right image; a prompt of "lost" has no score."""
    assert [int(prompt.split()[-1]) for prompt in prompts] == [m["index"] for m in metadata]
    scores = images[..., 0].astype(np.float32).sum((1, 2))
    lost = [prompt.startswith("lost") for prompt in prompts]
    return [None if gone else score for gone, score in zip(lost, scores, strict=True)]


def without_numbers(images, prompts, metadata):
    return [None] * len(images)


def even(images, prompts, metadata):
    return [None if asked["index"] % 2 else 1.0 for asked in metadata]


def odd(images, prompts, metadata):
    return [1.0 if asked["index"] % 2 else None for asked in metadata]


def constant(images, prompts, metadata):
    return [1.0] * len(images)


def with_rewards(setup, rewards, params=None):
    """The setup with other rewards, and its batch with questions about every image."""
    batch_size = setup.batch.input_ids.shape[1]
    numbers = range(batch_size)
    questions = Questions([f"prompt {n}" for n in numbers], [{"index": n} for n in numbers])
    return dataclasses.replace(
        setup.changed(rewards=tuple(rewards)),
        frozen=setup.frozen.replace(rewards=params or ({},) * len(rewards)),
        batch=setup.batch.replace(
            reward_inputs=({},) * len(rewards), questions=(questions,) * len(rewards)
        ),
    )


HOST = HostReward(f"{__name__}:redness", images_per_call=3)


@pytest.fixture(scope="module")
def setup(build, compilation_cache):
    return build(**SMALL)


@pytest.fixture(scope="module")
def in_graph(setup):
    """(states, metrics) of two iterations that are scored in the graph."""
    return with_rewards(setup, (Redness(), Redness())).run("split")


@pytest.fixture(scope="module")
def on_host(setup):
    """One task on the host, one in the graph."""
    return with_rewards(setup, (HOST, Redness()))


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(ours), jax.device_get(theirs)))


@pytest.mark.slow
def test_the_same_reward_on_the_host_gives_the_same_parameters(on_host, in_graph):
    ours, our_metrics = on_host.run("split")
    states, metrics = in_graph
    assert same(our_metrics, metrics)
    assert same(ours, states)
    assert not same(ours[-1].params, ours[0].params)


@pytest.mark.slow
def test_a_part_of_a_sum_may_be_on_the_host(setup, in_graph):
    weights = {"host": 2.0, "graph": -1.0}
    mixed = WeightedSum({"host": HOST, "graph": Redness()}, weights)
    params = ({"host": {}, "graph": {}}, {})
    _, metrics = with_rewards(setup, (mixed, Redness()), params).run("split", 1)
    assert same(metrics[0]["reward_mean"], in_graph[1][0]["reward_mean"])


def batches(setup, count):
    """Equal batches that are different objects, as those of consecutive iterations are."""
    return [setup.batch.replace() for _ in range(count)]


def run_ahead(setup, first, last, state=None, lookahead=True):
    """Iterations first to last of four, and their metrics."""
    state = state or setup.state(samples_ahead=True)
    step, metrics = setup.step("split", samples_ahead=True), []
    all_ = batches(setup, 4)
    for index in range(first, last):
        following = all_[index + 1] if lookahead and index + 1 < len(all_) else None
        state, values = step(state, setup.frozen, all_[index], following)
        metrics.append(jax.device_get(values))
    return state, metrics


@pytest.mark.slow
def test_overlapping_changes_nothing_but_the_order(on_host):
    """From the same parameters, drawing early, late or anew after a stop is the same."""
    overlapped, metrics = run_ahead(on_host, 0, 4)
    one_by_one, their_metrics = run_ahead(on_host, 0, 4, lookahead=False)
    assert same(overlapped, one_by_one)
    assert same(metrics, their_metrics)
    stopped, _ = run_ahead(on_host, 0, 2)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, stopped)
    resumed, _ = run_ahead(on_host, 2, 4, jax.device_put(jax.device_get(stopped), shardings))
    assert same(overlapped, resumed)


@pytest.mark.slow
def test_samples_are_one_update_old(on_host):
    _, metrics = run_ahead(on_host, 0, 3)
    errors = [values["largest_ratio_error"][0] for values in metrics]
    assert errors[0] < 1e-5
    assert min(errors[1:]) > 1e-4
    state, _ = run_ahead(on_host, 0, 2)
    before, _ = run_ahead(on_host, 0, 1)
    assert same(state.sampling_params, before.params)


class Watch(PhaseTimer):
    """Remembers which phases have ended."""

    ended = []

    @contextlib.contextmanager
    def phase(self, name):
        with super().phase(name):
            yield
        self.ended.append(name)


def patient(images, prompts, metadata):
    """Waits for two iterations' images to be drawn."""
    while Watch.ended.count("sample") < 2:
        time.sleep(0.01)
    return redness(images, prompts, metadata)


@pytest.mark.slow
def test_images_are_drawn_while_the_last_are_scored(setup):
    waiting = with_rewards(setup, (HostReward(f"{__name__}:patient", timeout=60.0), Redness()))
    state = waiting.state(samples_ahead=True)
    step = make_train_step(waiting.algorithm, state, "split", Watch())
    step(state, waiting.frozen, *batches(waiting, 2))
    ended = [name for name, _ in itertools.groupby(Watch.ended[2:])]
    assert Watch.ended[:2] == ["sample", "sample"] and ended == ["score", "prepare", "update"]


@pytest.mark.slow
def test_images_without_a_score_are_left_out(on_host):
    asked = on_host.batch.questions[0]
    prompts = ["lost 0", *asked.prompts[1:]]
    batch = on_host.batch.replace(
        questions=(dataclasses.replace(asked, prompts=prompts), on_host.batch.questions[1])
    )
    _, metrics = on_host.step("split")(on_host.state(), on_host.frozen, batch)
    np.testing.assert_array_equal(metrics["invalid_rewards"], [1, 0])


def test_a_failure_leaves_the_state_as_it_was(setup, on_host):
    broken = with_rewards(setup, (HostReward(f"{__name__}:without_numbers"), Redness()))
    state = setup.state()
    before = jax.device_get(state)
    with pytest.raises(ScorerError, match="without_numbers gave no finite score for any of 8"):
        broken.step("split")(state, broken.frozen, broken.batch)
    assert same(state, before)


EIGHT = Questions([f"prompt {n}" for n in range(8)], [{"index": n} for n in range(8)])


def ask(rewards, images, refuse_unscored=True):
    """The inputs of each reward about eight images each, over two devices."""
    mesh = make_mesh(1, jax.devices()[:2])
    images = jax.device_put(images, batch_sharding(mesh, axis=1))
    pending = start_scoring(rewards, images, [EIGHT] * len(rewards), mesh)
    return pending.result(refuse_unscored)


def test_images_that_are_not_finite_have_no_score():
    images = np.ones((2, 8, 4, 4, 3), np.float32)
    images[0, 3, 0, 0, 0], images[0, 5, -1] = np.nan, np.inf
    rewards = [HostReward(f"{__name__}:constant", images_per_call=3)] * 2
    first, second = ask(rewards, images)
    lost = np.where(np.isin(range(8), (3, 5)), np.nan, 1)
    np.testing.assert_array_equal(first["scores"], lost)
    np.testing.assert_array_equal(second["scores"], np.ones(8))


def test_scorers_that_score_no_image_together_are_named():
    parts = {name: HostReward(f"{__name__}:{name}") for name in ("even", "odd")}
    images = np.ones((1, 8, 4, 4, 3), np.float32)
    message = "even and .*:odd gave no finite score for any of 8"
    with pytest.raises(ScorerError, match=message):
        ask([WeightedSum(parts, {"even": 1.0, "odd": 1.0})], images)
    ask([WeightedSum(parts | {"odd": parts["even"]}, {"even": 1.0, "odd": 1.0})], images)


def test_a_part_of_an_evaluation_may_have_no_score():
    (scores,) = ask([HostReward(f"{__name__}:constant")], np.full((1, 8, 4, 4, 3), np.nan), False)
    assert np.isnan(scores["scores"]).all()


def test_whatever_is_raised_is_the_scorers_error(monkeypatch):
    def fail(self, images, questions):
        raise MemoryError("no room")

    monkeypatch.setattr(HostReward, "score", fail)
    images = np.ones((1, 8, 4, 4, 3), np.float32)
    with pytest.raises(ScorerError, match="scorer .*:even raised MemoryError: no room"):
        ask([HostReward(f"{__name__}:even")], images)
