"""The race: its arithmetic, and that it is resumed, with programs that note what they are asked."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def race(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import race

    return race


def run_of(race, shares, judges=None):
    judges = judges or [0.9] * len(shares)
    pairs = zip(shares, judges, strict=True)
    return [race.Point(6 * k, share, judge) for k, (share, judge) in enumerate(pairs)]


def test_half_is_crossed_between_two_evaluations(race):
    assert race.iterations_until(run_of(race, [0, 0.4, 0.6, 0.3]), 0.5) == pytest.approx(9)
    assert race.iterations_until(run_of(race, [0, 0.4, 0.45]), 0.5) is None


def test_what_fools_its_reward_counts_until_the_judge_falls(race):
    found = run_of(race, [0, 0.3, 0.2, 0.8, 0.1], [0.90, 0.91, 0.89, 0.87, 0.91])
    assert race.best_before_a_fall(found) == 0.3


def test_the_share_is_of_the_way_to_real_pictures(race):
    mean = lambda new, unseen, judge: {
        ("new_pairs", "detection"): new,
        ("unseen_pairs", "detection"): unseen,
        ("new_pairs", "recognition"): judge,
        ("unseen_pairs", "recognition"): judge - 0.2,
    }
    means = {"base": mean(0.8, 0.5, 0.9), "real pictures": mean(1.0, 0.9, 1.0)}
    means["6"] = mean(0.9, 0.6, 0.95)
    start, end = race.points(means, [6])
    assert start == race.Point(0, 0.0, pytest.approx(0.8))
    assert end == race.Point(6, pytest.approx((0.5 + 0.25) / 2), pytest.approx(0.85))


def test_the_interval_is_students(race):
    # 4.303 is the 97.5% quantile of two degrees of freedom in any printed table.
    assert race.interval([1.0, 2.0, 3.0]) == f"2 ± {4.303 / 3**0.5:.2g}"


@pytest.mark.slow
def test_passes_are_those_of_the_method(race):
    """Four to draw; one with a gradient is three, and nft has the old policy's and the base's."""
    gradient, forward = (race.passes_of_an_iteration(name) for name in ("policy_gradient", "nft"))
    of_an_image = [passes / race.BATCH for passes in (gradient, forward)]
    assert of_an_image == [pytest.approx(7, rel=0.03), pytest.approx(9, rel=0.03)]


def test_every_method_has_settings_for_stable_diffusion(race):
    for method in race.METHODS:
        config = race.published_config(method)
        process = make_process(NOISE_SCHEDULE, config.sampler.steps)
        assert ALGORITHMS[method].make(config, process).weights == (1.0,)
    assert race.published_config("policy_gradient").sampler.guidance_scale > 1
    assert race.published_config("nft").sampler.steps == 10


def test_other_settings_than_those_that_are_kept_are_refused(race, tmp_path):
    kept = {"nft": {"settings": {"iterations": 1}, "runs": {}}}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="nft with other settings"):
        race.main([f"--output={tmp_path}", "--methods=nft"])


def test_every_method_has_as_many_tries_and_a_second_start_runs_nothing(
    race, monkeypatch, tmp_path, capsys
):
    asked, means = [], {}
    for k, name in enumerate(["base", *map(str, race.STEPS), "real pictures"]):
        scores = {
            (of, scorer): 0.1 * k for of in race.SETS for scorer in ("detection", "recognition")
        }
        means[name] = scores
    run = lambda output, module, *arguments: asked.append((module, arguments))
    monkeypatch.setattr(race.emoji_runs, "run", run)
    monkeypatch.setattr(race.emoji_runs, "read_means", lambda folder: means)
    monkeypatch.setattr(race.emoji_runs, "read_rows", lambda path: [{"images_per_second": 80.0}])
    monkeypatch.setattr(race, "passes_of_an_iteration", lambda method: 100.0)
    monkeypatch.setattr(race, "needs", lambda config, model: SimpleNamespace(bound=lambda _: 2.0))
    flags = [f"--output={tmp_path}", "--methods=nft,awm", "--seeds=2"]
    race.main(flags)
    trained = [arguments for module, arguments in asked if module == "main"]
    timed = [arguments for arguments in trained if any("timed-" in flag for flag in arguments)]
    assert len(trained) == 2 * (len(race.TRIES) + 2) + len(timed) and timed == trained[-2:]
    rates = {flag for arguments in trained for flag in arguments if "learning_rate" in flag}
    assert len(rates) == len({1e-4, 2e-4, 4e-4, 5e-5})
    # Shares rise by a ninth at each of eight evaluations, six iterations apart: half after 27.
    first = capsys.readouterr().out
    assert "2 of 2" in first and "4,320 ± 0" in first
    asked.clear()
    race.main(flags)
    assert not asked and capsys.readouterr().out == first
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"nft", "awm"}
    assert (tmp_path / "race.svg").stat().st_size > 1000


def test_the_page_is_made_of_the_results_that_are_kept(race):
    docs = BENCHMARKS.parent / "docs"
    results = json.loads((docs / "race" / "results.json").read_text())
    assert race.tables(results) in (docs / "methods.md").read_text()


def test_an_unknown_method_is_named(race, capsys):
    with pytest.raises(SystemExit):
        race.parse_arguments(["--output=x", "--methods=ppo"])
    assert "no method ppo; there are policy_gradient" in capsys.readouterr().err
