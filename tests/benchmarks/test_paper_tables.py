"""The paper's tables: arithmetic and layout, with programs that leave invented files."""

import ast
import csv
import itertools
import json
import math
import re
from pathlib import Path

import emoji_runs
import paper_layout
import paper_tables
import pytest
from paper_numbers import SCORE_TABLES

from configs import emoji_policy_gradient
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.runs.provenance import write_run_information

SCORERS = ("preference", "recognition", "detection", "parity", "independent_parity")


def flag(arguments, name):
    return next(a for a in arguments if a.startswith(f"--{name}=")).partition("=")[2]


def typed(text):
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def write(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def leave_run(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 0}, *({"step": n, "images_per_second": 80.0} for n in (1, 2, 3))]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (workdir / "report.html").write_text("")


def leave_evaluation(folder, models):
    """Each model's means are a tenth of its place and a hundredth of the seed; each beats others.

    Parity has the minus of that. Of any two models, the later one wins three of four times; its
    differences are 0.1 for each place between them, give or take 0.05.
    """
    seed = int(folder.name.rpartition("-")[2])
    mean = lambda place, scorer: (-1 if "parity" in scorer else 1) * (place / 10 + seed / 100)
    measures = list(itertools.product(emoji_runs.IMAGES, SCORERS))
    means = [
        ("mean", *measure, model, mean(place, measure[1]))
        for place, model in enumerate(["base", *models, "real pictures"])
        for measure in measures
    ]
    write(folder / "results.csv", ["measure", "set", "scorer", "model", "value"], means)
    head = ["model", "against", "set", "scorer", "value", "low", "high"]
    places = list(enumerate(["base", *models]))
    pairs = [
        (model, against, *measure, (n - m) / 10)
        for (m, against), (n, model) in itertools.combinations(places, 2)
        for measure in measures
    ]
    apart = [(*pair, pair[-1] - 0.05, pair[-1] + 0.05) for pair in pairs]
    write(folder / "differences.csv", head, apart)
    write(folder / "head_to_head.csv", head, [(*pair[:4], 0.75, 0.7, 0.8) for pair in pairs])


def config_of(arguments):
    """The config that a run is asked for."""
    config = emoji_policy_gradient.get_config(flag(arguments, "config").partition(":")[2])
    fields = [a.removeprefix("--config.").split("=") for a in arguments if "--config." in a]
    config.update_from_flattened_dict({name: typed(value) for name, value in fields})
    return config


@pytest.fixture
def calls(monkeypatch):
    """What programs were asked for; they leave invented files."""
    calls = []

    def run(output, module, *arguments):
        calls.append((module, arguments))
        if module == "main":
            leave_run(Path(flag(arguments, "workdir")))
            write_run_information(flag(arguments, "workdir"), config_of(arguments))
        else:
            models = [part.split("=")[0] for part in flag(arguments, "checkpoints").split(",")]
            leave_evaluation(Path(flag(arguments, "output")), models)

    monkeypatch.setattr(emoji_runs, "run", run)
    return calls


def names(calls, module, name):
    return [Path(flag(arguments, name)).name for each, arguments in calls if each == module]


def cells(printed, name):
    """The row of a Markdown table that begins with a name."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", printed, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_scores_stand_beside_the_papers(calls, tmp_path, capsys):
    paper_tables.main(["--table=1", f"--output={tmp_path}"])
    assert len(names(calls, "main", "workdir")) == 2 * 5
    printed = capsys.readouterr().out
    ours = "0.505 (0.500 to 0.510)"
    theirs = ("0.845", "5.918", "0.731", "5.477")
    expected = [cell for value in theirs for cell in (ours, value)]
    assert cells(printed, "policy_gradient") == ["its own", *expected]
    assert cells(printed, "base")[:3] == ["Stable Diffusion 2", "0.000", "0.170"]
    assert cells(printed, "real pictures")[:3] == ["", "0.600", ""]


def test_parity_is_printed_as_the_paper_has_it(calls, tmp_path, capsys):
    paper_tables.main(["--table=3", f"--output={tmp_path}", "--seeds=1", "--images=40"])
    assert names(calls, "main", "workdir") == [
        f"fairness-{method}-48-0" for method in ("raft", "reward_weighted", "policy_gradient")
    ]
    assert cells(capsys.readouterr().out, "raft") == ["RAFT", "0.100", "0.464", "0.100", "0.527"]
    arguments = calls[-1][1]
    images = [
        flag(arguments, f"config.evaluation.sets.{name}.images") for name in emoji_runs.IMAGES
    ]
    assert images == ["20", "20", "40", "40"]


def test_what_another_table_has_made_is_not_made_again(calls, tmp_path, capsys):
    start = lambda number, seeds: paper_tables.main(
        [f"--table={number}", f"--output={tmp_path}", f"--seeds={seeds}", "--methods=raft,refl"]
    )
    start(1, 1)
    assert [module for module, _ in calls] == ["main", "main", "evaluate"]
    start(2, 1)
    assert len(calls) == 3
    start(6, 1)
    # Its checkpoints are judged, of the same runs.
    evaluated = ["preference-raft-48-0", "preference-refl-48-0"]
    assert names(calls[3:], "evaluate", "output") == evaluated and len(calls) == 5
    start(1, 2)
    assert names(calls[5:], "main", "workdir") == ["preference-raft-48-1", "preference-refl-48-1"]
    assert names(calls[5:], "evaluate", "output") == ["preference-48-1"]
    calls.clear()
    # A run that was stopped has no report yet, and goes on.
    (tmp_path / "preference-raft-48-0" / "report.html").unlink()
    start(1, 2)
    assert names(calls, "main", "workdir") == ["preference-raft-48-0"] and len(calls) == 1


def test_a_run_of_other_settings_is_not_taken_for_one_of_now(calls, tmp_path, monkeypatch):
    arguments = ["--table=4", f"--output={tmp_path}", "--seeds=1", "--methods=raft"]
    paper_tables.main(arguments)
    _, rate = emoji_runs.METHODS["raft"]
    monkeypatch.setitem(emoji_runs.METHODS, "raft", ({"algorithm.raft.noises": 3}, rate))
    with pytest.raises(SystemExit, match="raft.* was trained with algorithm.raft.noises=1, now 3"):
        paper_tables.main(arguments)


def test_models_are_ranked_as_bradley_and_terry_have_it():
    """Of strengths 4, 2 and 1 the stronger wins 2/3 and 4/5; pairs are there in either order."""
    strengths = {"base": 1.0, "refl": 2.0, "policy_gradient": 4.0, "raft": 1.0}
    rates = {
        (model, against, name, "preference"): (one / (one + other), 0.0, 1.0)
        for (against, other), (model, one) in itertools.combinations(strengths.items(), 2)
        for name in ("new_pairs", "unseen_pairs")
    }
    assert paper_layout.win_share(rates, "raft", "policy_gradient") == pytest.approx(1 / 5)
    printed = paper_layout.ranking([rates], ["refl", "raft", "policy_gradient"])
    assert "| against policy_gradient | against refl | against raft |" in printed
    own = ["its own", "1", "1", "80", "80.3", "", "67", "80"]
    assert cells(printed, "policy_gradient") == own
    assert cells(printed, "refl") == ["ReFL", "2", "4", "67", "", "33", "", "67"]
    assert cells(printed, "raft") == ["RAFT", "3", "5", "50", "", "20", "33", ""]


def test_sets_and_seeds_are_averaged():
    def rates(new, unseen):
        pairs = [("raft", "base"), ("refl", "base"), ("refl", "raft")]
        sets = {"new_pairs": new, "unseen_pairs": unseen}
        return {(*pair, name, "preference"): (sets[name], 0, 1) for pair in pairs for name in sets}

    printed = paper_layout.ranking([rates(0.5, 0.7), rates(0.7, 0.9)], ["raft", "refl"])
    assert cells(printed, "raft")[3] == "70 (60 to 80)"
    assert cells(printed, "raft")[5] == "30 (20 to 40)"


def test_an_exponential_has_converged_where_it_should():
    """With a time constant of 6, 98% of what is there after 48 iterations is there after 23.4."""
    gains = {step: 1 - math.exp(-step / 6) for step in emoji_runs.steps_of(48)}
    reached = -6 * math.log(1 - 0.98 * gains[48])
    assert paper_layout.converged(gains) == 24 == 6 * math.ceil(reached / 6)
    assert paper_layout.converged({6: 0.5, 12: 0.2}) == 6
    assert paper_layout.converged({6: -0.1, 12: 0.0}) is None


def test_time_to_converge(calls, tmp_path, capsys):
    flags = [f"--output={tmp_path}", "--methods=raft", "--iterations=16"]
    paper_tables.main(["--table=6", *flags])
    # Gains are 0.1 to 0.8 after 2 to 16 iterations, each of 160 pictures in 2 seconds.
    found = ["RAFT", "16 (16 to 16)", "2560 (2560 to 2560)", "32 (32 to 32)"]
    row = cells(capsys.readouterr().out, "raft")
    assert row == [*found, "0.800 (0.800 to 0.800)", "5.5, diverged"]
    printed = paper_layout.convergence_table({"refl": [({6: 0.1}, 2.0), ({6: -0.1}, 2.0)]})
    assert cells(printed, "refl")[1:4] == ["no gain in 1 of 2 runs"] * 3


def test_the_judges_of_the_pretraining_loss(calls, tmp_path, capsys):
    paper_tables.main(["--table=pretraining", f"--output={tmp_path}", "--seeds=1"])
    with_loss, without = (arguments for module, arguments in calls if module == "main")
    assert flag(with_loss, "config.pretraining.weight") == "0.1"
    assert flag(without, "config.pretraining.weight") == "0.0"
    assert flag(without, "config.iterations") == "192"
    assert names(calls, "evaluate", "output") == ["pretraining-192-0"]
    # Models come as with-24 to with-192, without-24 to without-192: eight places apart.
    row = cells(capsys.readouterr().out, "new_pairs/preference, rewarded")
    assert row == ["+0.800 [+0.750, +0.850]"] * 8


def test_a_judge_is_below_where_all_seeds_are():
    below, above, both = (-0.2, -0.3, -0.1), (0.2, 0.1, 0.3), (-0.2, -0.3, 0.1)
    seeds = lambda *each: dict(zip((24, 48, 72), each, strict=True))
    assert paper_layout.first_below(seeds([below, both], [below, below], [below, below])) == 48
    assert paper_layout.first_below(seeds([below, above], [both, below], [above, above])) is None
    nothing = (-0.2, math.nan, math.nan)
    assert paper_layout.first_below(seeds([nothing], [nothing], [nothing])) is None
    measures = [*emoji_runs.MEASURES["preference"], *paper_layout.APART]
    found = {("without-6", "with-6", *measure): above for measure in measures}
    found |= {("without-12", "with-12", *measure): above for measure in measures}
    found["without-12", "with-12", "portraits", "recognition"] = below
    printed = paper_layout.pretraining_table([found, found], [6, 12])
    assert "- portraits/recognition: first after 12 iterations" in printed
    assert "- new_pairs/recognition: at no checkpoint" in printed
    two = "-0.200 [-0.300, -0.100]; -0.200 [-0.300, -0.100]"
    assert cells(printed, "portraits/recognition")[1] == two


@pytest.mark.parametrize("number", SCORE_TABLES)
def test_every_run_has_settings_that_fit(number, calls, tmp_path):
    of = SCORE_TABLES[number]
    paper_tables.main([f"--table={number}", f"--output={tmp_path}", "--seeds=1"])
    trained = [arguments for module, arguments in calls if module == "main"]
    assert len(trained) == len(of.methods)
    for arguments in trained:
        assert flag(arguments, "config") == f"configs/emoji_policy_gradient.py:{of.task}"
        config = config_of(arguments)
        checks.check_experiment(config, make_mesh(1))
    for column in of.columns:
        name, scorer = column.measure
        assert scorer in config.evaluation.sets[name].scorers
        assert column.values.keys() == {"base", *of.methods}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=5"], "invalid choice: '5'"),
        (["--table=3", "--methods=refl"], "table 3 has no refl; it has raft, reward_weighted"),
        (["--table=2", "--methods=raft"], "name two or more"),
        (["--table=1", "--images=30"], "--images=30 must be a multiple of 20"),
        (["--table=1", "--seeds=0"], "0 is no whole number of 1 or more"),
    ],
)
def test_what_is_refused(arguments, message, calls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        paper_tables.main([f"--output={tmp_path}", *arguments])
    assert message in capsys.readouterr().err and not calls
