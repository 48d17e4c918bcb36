"""The command writes a page for each rater, of a study that is drawn already."""

import json

from diffusionrl_jax.reporting.study import votes
from tests.own_flags import program
from tests.reporting.study.conftest import CHECKS, State


def test_a_page_for_each_rater(folder, study):
    flags = (f"--folder={folder}", "--raters=2", "--per_rater=4")
    for _ in range(2):  # The same pages again, and no more raters.
        with program("reporting.study.commands.export", *flags) as export:
            export.main([])
        raters = votes.read_raters(folder)
        assert [rater.kind for rater in raters] == [votes.EXPORTED] * 2
        pages = {path.name: path.read_text() for path in (folder / "pages").iterdir()}
        assert pages.keys() == {f"rater_{rater.number}.html" for rater in raters}
        for rater in raters:
            state = json.loads(State(pages[f"rater_{rater.number}.html"]).text)
            assert (state["rater"], state["study"]) == (rater.token, study.identity)
            asked = votes.read_questions(folder, rater)
            assert len(state["questions"]) == len(asked) == 4 + len(CHECKS)


def test_where_the_flag_says(folder, tmp_path):
    flags = (f"--folder={folder}", "--raters=1", f"--output={tmp_path}/elsewhere")
    with program("reporting.study.commands.export", *flags) as export:
        export.main([])
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["rater_1.html"]
    assert not (folder / "pages").exists()
