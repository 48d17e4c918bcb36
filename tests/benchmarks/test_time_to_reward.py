"""The time to a reward: its arithmetic, and that it goes on, with runs that are made up."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def race(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import time_to_reward

    return time_to_reward


def points(race, name, seconds, pictures):
    return [race.Point(f"{name}@{n}", n * seconds, n * pictures) for n in (1, 2)]


def test_a_score_is_reached_between_two_checkpoints(race):
    run = points(race, "a", seconds=10.0, pictures=100.0)
    late, early = (race.reached(run, [1.0, 1.2, 1.1 + n], 1.05 + n) for n in (0.3, 0.0))
    assert (late.checkpoint, early.checkpoint) == ("a@2", "a@1")
    assert (late.seconds, late.pictures) == pytest.approx((17.5, 175.0))
    assert (early.seconds, early.pictures) == pytest.approx((2.5, 25.0))
    assert race.reached(run, [1.0, 1.2, 1.4], 1.5) is None


def test_the_target_is_the_best_of_the_rivals_rates(race, monkeypatch, tmp_path):
    trained, scores = [], {"TRL at 3e-05": 1.2, "TRL at 0.0001": 1.4, "TRL at 0.0003": 0.9}

    def train_rival(python, folder, rate, seconds, threads):
        trained.append(rate)
        return points(race, f"{rate:g}", seconds=seconds / 2, pictures=320.0)

    def train_ours(folder, method):
        trained.append(method)
        return points(race, method, seconds=20.0, pictures=160.0)

    monkeypatch.setattr(race, "train_rival", train_rival)
    monkeypatch.setattr(race, "train_ours", train_ours)
    judged = lambda output, runs: {
        name: [1.0, 1.0, {"nft": 1.8, "reward_gradient": 1.3}.get(name) or scores[name]]
        for name in runs
    }
    monkeypatch.setattr(race, "judge", judged)
    asked = ["--rival-python=python", f"--output={tmp_path}", "--methods=nft,reward_gradient"]
    rows = race.main([*asked, "--seconds=100"]).splitlines()
    assert rows[0] == "Base model 1.000, target 1.400 (TRL at 0.0001)."
    cells = {
        row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in rows[4:]
    }
    assert cells["TRL at 0.0001"] == ["1.400", "100", "1.0", "640", "1.0"]
    assert cells["TRL at 0.0003"] == ["1.000", "not reached", "", "", ""]
    assert cells["nft"] == ["1.800", "30", "3.3", "240", "2.7"]
    assert cells["reward_gradient"][1] == "not reached"
    assert trained == [3e-5, 1e-4, 3e-4, "nft", "reward_gradient"]
    race.main([*asked, "--seconds=100"])
    assert len(trained) == 5, "what is trained is kept"


def test_the_rival_draws_our_prompts_in_groups(race, monkeypatch):
    monkeypatch.setattr(race, "ITERATIONS", 2)
    prompts = race.rival_prompts(race.emoji_policy_gradient.get_config(race.TASK))
    groups = [prompts[n : n + 4] for n in range(0, len(prompts), 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(prompts) == 2 * 320 and len(set(prompts)) > 100
