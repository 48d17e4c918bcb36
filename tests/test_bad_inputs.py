"""Whatever cannot be ends a program in one line that names it, with a status that is not 0."""

import shutil

import pytest

from tests import bad_configs, bad_inputs, forked_programs
from tests.processes import ROOT
from tests.tiny_transformers import make_flux, make_sd3

TRACEBACK = "Traceback (most recent call last)"


@pytest.fixture(scope="module")
def places(tiny_model, tmp_path_factory):
    """What the cases' arguments name, but for the folders of their own."""
    folder = tmp_path_factory.mktemp("bad_inputs")
    (folder / "faulty_rewards.py").write_text(bad_configs.REWARDS)
    (folder / "config.py").write_text(bad_configs.CONFIG.format(model=tiny_model))
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "empty.py").write_text("")
    files = {name: folder / f"{name}.py" for name in ("config", "broken", "empty")}
    for name, make in (("sd3", make_sd3), ("flux", make_flux)):
        make(folder / "tokenizers" / name).save_pretrained(folder / name)
    transformers = {name: folder / name for name in ("sd3", "flux")}
    return folder, {"model": tiny_model} | transformers | files


def problem(case, places, own):
    """What is wrong with how a case ends; empty if nothing is."""
    shared, named = places
    changed, run = own / "changed", own / "run_of_old"
    run.mkdir(parents=True)
    if case.damage and "{changed}" in " ".join(case.arguments):
        shutil.copytree(named[case.copied], changed)
        case.damage(changed)
    elif case.damage:
        case.damage(run)
    names = named | {"folder": own, "changed": changed, "run": run}
    arguments = [argument.format(**names) for argument in case.arguments]
    status, output = forked_programs.run(
        case.program, arguments, own, [str(ROOT), str(shared)], timeout=180
    )
    *_, last = output.strip().splitlines() or [""]
    missing = [word for word in case.words if word.format(**names) not in last]
    if status == 1 and TRACEBACK not in output and last.startswith("error: ") and not missing:
        return ""
    tail = "\n      ".join([*(TRACEBACK,) * (TRACEBACK in output), *output.splitlines()[-3:]])
    return f"{case.program} {' '.join(arguments)}: status {status}, lacks {missing}\n      {tail}"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_every_bad_input_ends_in_one_line(places, tmp_path):
    assert len(bad_inputs.CASES) > 250
    found = [
        problem(case, places, tmp_path / str(number))
        for number, case in enumerate(bad_inputs.CASES)
    ]
    wrong = [text for text in found if text]
    tracebacks = sum(TRACEBACK in text for text in wrong)
    print(f"{len(found)} bad inputs, {len(wrong)} not as they should, {tracebacks} tracebacks")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(found)}:", *wrong])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_good_input_does_not(places, tmp_path):
    """So that the cases fail by what is wrong with them alone."""
    shared, named = places
    arguments = [f"--model={named['model']}", "--prompts=a cat", "--steps=2", "--output=x.png"]
    status, output = forked_programs.run("sample", arguments, tmp_path, [str(ROOT), str(shared)])
    assert status == 0 and (tmp_path / "x.png").exists(), output
