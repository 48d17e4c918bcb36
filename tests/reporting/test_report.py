import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.evaluation import manifest, statistics, tables
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting import curves, gallery, plots, reading, report, summary
from tests.reporting.runs import EVIL, write_run

DETAIL = report.DETAILS[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "foxes")


@pytest.fixture(scope="module")
def run(workdir):
    return reading.read_runs([workdir])[0]


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


def test_a_plot_shows_the_numbers():
    x, y = np.array([0.0, 1.0, 4.0]), np.array([2.0, np.nan, 8.0])
    low, high = y - 1, y + 1
    text = plots.plot("a <b>", [plots.Curve("c", x, y, low, high, colour="#123456")], "iteration")
    tree = ElementTree.fromstring(text)
    assert tree.attrib["aria-label"] == "a <b>"
    assert "currentColor" in text and plots.INK not in text
    name = "{http://www.w3.org/2000/svg}path"
    (line,) = (
        path
        for path in tree.iter(name)
        if "stroke: #123456" in path.get("style", "") and "fill: none" in path.get("style", "")
    )
    points = np.array(re.findall(r"[-\d.]+", line.get("d")), float).reshape(-1, 2)
    assert len(points) == 2, "the point that is not finite is left out"
    (left, bottom), (right, top) = points
    assert right > left and top < bottom


def test_long_curves_are_thinned():
    x = np.arange(10_000.0)
    thin = plots.thinned(plots.Curve("", x, 2 * x))
    assert len(thin.x) == plots.MOST_POINTS
    np.testing.assert_allclose(thin.y, 2 * thin.x)
    assert thin.x[0] == pytest.approx(24.5), "the mean of the first fifty"


def test_the_interval_of_a_reward_is_that_of_its_prompts(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "plot", lambda title, found, *rest: drawn.extend(found) or "")
    curves.reward_plots([run])
    (curve,) = drawn
    # 320 samples in groups of 4.
    np.testing.assert_allclose(curve.high - curve.y, 1.96 * 0.5 / 80**0.5)
    np.testing.assert_array_equal(curve.x, np.arange(1, 9))


def test_ends_are_the_lowest_and_the_highest(run):
    record = run.evaluations[-1]
    scores = record.scores["new_pairs"]["preference"]
    found = dict(gallery.ends(record, "new_pairs", "preference", DETAIL))
    number = lambda picture: float(picture.caption.partition(":")[0])
    assert number(found["worst"][0]) == pytest.approx(scores.min(), abs=5e-3)
    assert number(found["best"][0]) == pytest.approx(scores.max(), abs=5e-3)
    assert abs(number(found["median"][0]) - np.median(scores)) < np.ptp(scores) / 8
    prompts = [picture.caption.partition(": ")[2] for picture in found["best"]]
    assert len(set(prompts)) == len(prompts), "each is of another prompt"


def test_prompts_that_gained_most_come_first(run):
    gained, lost = gallery.changes(run, "new_pairs", "preference", DETAIL)
    assert gained[0].prompt == EVIL, "the last ones gain most"
    gains = [change.after - change.before for change in gained]
    assert gains == sorted(gains, reverse=True) and not lost
    assert [picture.step for picture in gained[0].pictures] == [0, 8]


def test_pictures_through_training_are_in_order(run):
    ((prompt, pictures), *others) = gallery.through_training(run, DETAIL)["new_pairs"]
    assert prompt == "a fox and 0 cakes" and len(others) == 7
    assert [picture.step for picture in pictures] == [0, 4, 8]
    reds = [
        Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2]))).getpixel((0, 0))[0]
        for one in pictures
    ]
    assert reds == [0, 4, 8]


def test_what_a_run_has_cost(run):
    found = dict(summary.cost(run))
    assert found["images drawn to train on"] == "2,560"
    assert found["at work"] == "0:01:17"  # 5 s, and 8 times 9 s.
    assert found["devices times hours"].startswith("0.0856 of TPU")
    assert found["images a second, median"] == "32"
    assert summary.seconds_by_phase(run) == [("sample", 6.0), ("update", 3.0)]


def test_tables_have_the_intervals_of_the_evaluation(run):
    (table,) = summary.evaluation_table(run)
    (cells,) = (row for row in table.rows if row[1] == "preference")
    row = dict(zip(table.head, cells, strict=True))
    record = run.evaluations[-1]
    bootstrap = statistics.Bootstrap(record.prompts["new_pairs"])
    expected = bootstrap.interval(bootstrap.mean(record.scores["new_pairs"]["preference"]))
    assert row["iteration 8"] == "{:.3f} [{:.3f}, {:.3f}]".format(*expected)
    assert row["change"].startswith("+1.4") and row["reward"] == "preference"


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


def test_warnings_are_shown(tmp_path):
    folder = tmp_path / "fooled"
    write_run(folder)
    rows = (
        (folder / "metrics.jsonl")
        .read_text()
        .replace('"watch/kl', '"watch/noise_length": 2.0, "watch/kl')
    )
    (folder / "metrics.jsonl").write_text(rows)
    (run,) = reading.read_runs([str(folder)])
    first, last = summary.warnings(run)
    assert first.startswith("Iteration 4: ") and "2.00 times as long" in last
    assert "may be fooled" in last


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "names no run"),
        (["/no/such/run"], "/no/such/run is not the folder of a run"),
        (["{run}", "{run}"], "names a run twice"),
    ],
)
def test_what_is_no_run_is_named(names, message, workdir):
    with pytest.raises(UserError, match=message):
        reading.read_runs([name.format(run=workdir) for name in names])


def test_paths_may_have_commas(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert reading.split_runs([f"{tmp_path}/a,b", "c,d"]) == [f"{tmp_path}/a,b", "c", "d"]


def test_a_damaged_evaluation_is_left_out(tmp_path, caplog):
    workdir = write_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "evaluations" / "00000004.zip").write_bytes(b"PK")
    (run,) = reading.read_runs([workdir])
    assert [record.step for record in run.evaluations] == [0, 8]
    assert "00000004.zip is damaged" in caplog.text
