"""A study is drawn once as the flags say, opened again, and refused where they are of another."""

import jax
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import records, votes
from tests.own_flags import program
from tests.reporting.study.conftest import make_study

OPENING = "reporting.study.commands.opening"
MODELS = ("--a=base", "--b=asset:emoji/stable_diffusion")


def test_what_is_drawn_is_opened(folder, study):
    again = (f"--folder={folder}", f"--a={study.a}", f"--seed={study.seed}", "--raters=2")
    for arguments in (again[:1], again):
        with program(OPENING, *arguments) as opening:
            opening.check_flags(port=0)
            assert opening.open_study() == (folder, study)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--seed=1", "holds a study of --seed=3: choose another --folder for --seed=1"),
        ("--a=base", "holds a study of --a=models/earlier"),
        ("--prompts=suite:occupations", "--prompts=prompts.tsv.field=Prompt: choose another"),
        ("--pairs=3", "holds a study of --pairs=12"),
        ("--question=Who?", "holds a study of --question=Which is better"),
        ("--folder={none}", "holds no study yet: give --a, --b, --prompts."),
    ],
)
def test_flags_of_another_study(folder, argument, words, tmp_path):
    argument = argument.format(none=tmp_path / "none")
    with (
        program(OPENING, f"--folder={folder}", argument) as opening,
        pytest.raises(UserError, match=words),
    ):
        opening.open_study()


@pytest.mark.parametrize("argument", ["--raters=0", "--pairs=0", "--per_rater=-1", "--checks=-1"])
def test_numbers_out_of_their_range(argument):
    with program(OPENING, argument) as opening, pytest.raises(UserError, match=f"{argument} must"):
        opening.check_flags()


@pytest.mark.parametrize(
    ("arguments", "columns", "scorers"),
    [
        ((), None, None),
        (("--categories=Category,Challenge", "--scorers="), ["Category", "Challenge"], []),
        (("--categories=", "--scorers=size"), [], ["size"]),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_study_is_drawn_as_the_flags_say(
    arguments, columns, scorers, processes, tmp_path, monkeypatch
):
    """Of several processes none goes on to show it."""
    drawn = []

    def draw(folder, config, names, prompts, pairs, **options):
        drawn.append((names, prompts, pairs, options))
        records.write_study(folder, make_study())
        return make_study()

    flags = (f"--folder={tmp_path}/new", "--prompts=emoji:pairs", "--pairs=7", "--seed=5")
    config = "--config=configs/emoji.py:preference"
    with program(OPENING, *flags, *MODELS, config, *arguments) as opening:
        monkeypatch.setattr(opening.drawing, "draw_study", draw)
        monkeypatch.setattr(opening.start, "start_devices", lambda: None)
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        if processes == 1:
            folder, study = opening.open_study()
            assert study == make_study() and votes.read_raters(folder) == []
        else:
            with pytest.raises(SystemExit) as ended:
                opening.open_study()
            assert not ended.value.code
    ((names, prompts, pairs, options),) = drawn
    assert names == {"a": "base", "b": "asset:emoji/stable_diffusion"}
    assert (prompts, pairs) == ("emoji:pairs", 7)
    asked = {"question": "Which picture is the better one for this text?", "checks": 4}
    assert options == {"seed": 5, "columns": columns, "scorers": scorers} | asked
