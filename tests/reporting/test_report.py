import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.evaluation import manifest, statistics, tables
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting import curves, plots, reading, report
from tests.reporting.runs import EVIL, write_run

DETAIL = report.DETAILS[0]


@pytest.fixture(scope="module")
def page(run):
    return report.make_report([run])


def images(page):
    """The pictures of a page, opened."""
    sources = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', page)
    assert len(sources) == page.count("<img ")
    opened = [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in sources]
    for _, image in opened:
        image.load()
    return opened


def test_a_page_is_all_there_is(page):
    """Nothing is fetched: no address but the names of XML's vocabularies."""
    addresses = re.findall(r"""https?://[^\s"'<)]+""", page)
    assert {address.split("/")[2] for address in addresses} <= {"www.w3.org"}
    assert not re.search(r"<(link|iframe|object)|@import|\ssrc=\"(?!data:)|url\((?!#)", page)
    assert len(page.encode()) < report.MOST_BYTES
    assert page.count("<script>") == 1


def test_all_pictures_can_be_seen(page):
    found = images(page)
    # Before and after of 8 prompts at 3 steps, ends of two steps, prompts that have gained.
    assert len(found) >= 8 * 4 + 2 * 3 * DETAIL.ends + 2 * DETAIL.ends
    assert {(kind, image.size) for kind, image in found} == {("png", (32, 32))}


def test_what_users_write_is_no_markup(page):
    assert EVIL not in page
    assert "alert(&#34;x&#34;)" in page
    assert "TPU &lt;v5e&gt;" in page


def test_a_page_says_what_was_trained(page):
    for text in (
        "asset:emoji/stable_diffusion",
        "policy_gradient",
        "preference: image_reward (asset:emoji/image_reward) on emoji:everything",
        "8 of 48",
        "never a reward",
        "rewards preference",
        "emoji:new_pairs",  # In the config.
    ):
        assert text in page, text


def test_the_same_runs_give_the_same_page(run, page):
    assert report.make_report([run]) == page


def test_several_runs_lie_over_each_other(workdir, tmp_path):
    other = write_run(tmp_path / "owls & <$co$>", seed=1, gain=2.0)
    runs = reading.read_runs([workdir, other])
    text = report.make_report(runs)
    assert "owls &amp; &lt;$co$&gt;: config.seed (was 0, now 1)" in text
    (drawn,) = curves.reward_plots(runs)
    assert {plots.colour(0), plots.colour(1)} <= set(re.findall(r"#[0-9a-f]{6}", drawn.svg))


def test_large_pictures_leave_room(tmp_path, monkeypatch):
    run = reading.read_runs([write_run(tmp_path / "large", pixels=256)])
    monkeypatch.setattr(report, "MOST_BYTES", 1_500_000)
    text = report.make_report(run)
    assert len(text.encode()) < 1_500_000
    assert {kind for kind, _ in images(text)} == {"jpeg"}
    monkeypatch.setattr(report, "MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="give fewer to --run"):
        report.make_report(run)


def test_what_evaluate_wrote_is_shown(workdir, tmp_path):
    copy = write_run(tmp_path / "compared")
    (tmp_path / "compared" / "mine").mkdir()
    rows = [
        statistics.Measurement("base", "new_pairs", "mean", "preference", 0.5, 0.25, 0.75, 16),
        statistics.Measurement("ours", "one", "win_rate", "preference", 1.0, np.nan, np.nan, 16),
    ]
    tables.write_csv(tmp_path / "compared" / "mine" / tables.CSV, rows)
    (run,) = reading.read_runs([copy])
    assert str(run.comparisons["mine"]) == str(rows)  # NaN is not equal to itself.
    text = report.make_report([run])
    assert "0.500 [0.250, 0.750]" in text and "compared: mine" in text
    assert "manifest.json" not in text


def test_a_comparisons_manifest_is_named(workdir, tmp_path, caplog):
    copy = write_run(tmp_path / "compared")
    sampler = {"steps": 50, "eta": 1.0, "guidance_scale": 7.5}
    content = {
        "models": {"base": {"path": "owner/name", "files": "abc"}},
        "sampling": {"sampler": sampler, "dtype": "float32", "seed": 3},
        "prompts": {"objects": {"note": "no numbers of GenEval"}},
        "scorers": {},
        "pictures": {"height": 512, "width": 512, "solver": "DDIM"},
        "made_with": {"diffusionrl_jax": "1", "jax": "2", "devices": 4, "backend": "tpu"},
    }
    for name in ("mine", "damaged"):
        folder = tmp_path / "compared" / name
        folder.mkdir()
        tables.write_csv(folder / tables.CSV, [])
        manifest.write(folder, content if name == "mine" else {})
    text = report.make_report(reading.read_runs([copy]))
    assert "owner/name (abc), 50 steps of DDIM, eta 1, guidance 7.5, 512x512 pixels" in text
    assert "no numbers of GenEval" in text and text.count("manifest.json has all") == 1
    assert "damaged/manifest.json is no whole manifest" in caplog.text


def test_a_run_of_an_earlier_version_has_a_page(tmp_path):
    folder = tmp_path / "early"
    write_run(folder)
    for path in (folder / "evaluations").iterdir():
        path.unlink()
    (folder / "versions.json").unlink()
    text = report.make_report(reading.read_runs([str(folder)]))
    assert "No evaluation of this run was kept" in text and not images(text)
