"""The joint-training command, with programs that write down what they were asked for."""

import csv
from pathlib import Path

import pytest

from configs import emoji_policy_gradient

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEDS = 2


@pytest.fixture
def command(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import joint_training

    return joint_training


@pytest.fixture
def calls(command, monkeypatch, tmp_path):
    """The programs that are asked for; evaluations write each model's place as its means."""
    calls = []

    def run(output, module, *arguments):
        calls.append((module, arguments))
        if module == "main":
            return
        folder = tmp_path / "evaluation"
        folder.mkdir(exist_ok=True)
        named = next(a for a in arguments if a.startswith("--checkpoints="))
        names = [part.split("=")[0] for part in named.partition("=")[2].split(",")]
        measures = {measure for group in command.MEASURES.values() for measure in group}
        with (folder / "results.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["measure", "set", "scorer", "model", "value"])
            for row, name in enumerate(["base", *names]):
                for measure in measures | set(command.WATCHED):
                    writer.writerow(["mean", *measure, name, row])

    monkeypatch.setattr(command.emoji_runs, "run", run)
    return calls


def test_every_variant_is_trained_and_all_are_compared(command, calls, tmp_path, capsys):
    command.main([f"--output={tmp_path}", f"--seeds={SEEDS}", "--iterations=18"])
    trained = [arguments for module, arguments in calls if module == "main"]
    assert len(trained) == len(command.VARIANTS) * SEEDS
    assert "--config.optimizer.warmup_iterations=3" in trained[0]
    assert "--config.optimizer.decay_iterations=15" in trained[0]
    printed = capsys.readouterr().out
    # Rows 1 and 10 of the file are the two joint models: their mean is 5.5, the base's is 0.
    assert "| new_pairs/preference | 0.000 | 5.500 (1.000 to 10.000) |" in printed
    assert "new_pairs/detection: compositionality alone gains +7.500, joint +5.500: 73%" in printed


def test_some_of_the_variants(command, calls, tmp_path, capsys):
    command.main([f"--output={tmp_path}", "--seeds=1", "--variants=joint,fairness"])
    assert [module for module, _ in calls] == ["main", "main", "evaluate"]
    printed = capsys.readouterr().out
    assert "base | joint | fairness |\n" in printed
    assert "portraits/parity: fairness alone gains +2.000, joint +1.000: 50%" in printed
    assert "preference alone" not in printed


def test_an_unknown_variant(command, calls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--output={tmp_path}", "--variants=joint,fairnes"])
    assert "no variant fairnes; there are joint, preference" in capsys.readouterr().err
    assert not calls


def test_what_the_variants_change_is_in_the_config(command):
    for path, overrides in command.VARIANTS.values():
        config = emoji_policy_gradient.get_config(*path.split(":")[1:])
        for override in overrides:
            field = override.split("=")[0].removeprefix("--config.")
            for name in field.split("."):
                assert name in config
                config = config[name]
            config = emoji_policy_gradient.get_config()
