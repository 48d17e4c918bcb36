"""The gallery's command, with programs that write down what they were asked for."""

import json
import re
from pathlib import Path

import gallery
import numpy as np
import pytest
from PIL import Image

from configs import emoji_policy_gradient
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.evaluation.records import Record, encode, write_record
from diffusionrl_jax.experiments import checks
from tests.processes import ROOT

PROMPTS = {
    "new_pairs": [f"pair {n}" for n in range(8)],
    "unseen_pairs": [f"unseen {n}" for n in range(4)],
    "portraits": ["a judge"] * 2 + ["a cook"] * 2,
    "unseen_portraits": ["a pilot"] * 2,
}


def record(step, brightness):
    """An evaluation whose pictures are of one red, and whose rewards rise by 1 and 3 in turns."""
    rises = lambda name: step and 1.0 + 2.0 * (np.arange(len(PROMPTS[name])) % 2)
    scores = {
        name: {
            "preference": np.full(len(texts), 0.5) + rises(name),
            "recognition": np.full(len(texts), 0.75),
        }
        for name, texts in PROMPTS.items()
    }
    picture = encode(np.full((32, 32, 3), (brightness, 0, 0), np.uint8))
    pictures = {name: dict.fromkeys(range(len(texts)), picture) for name, texts in PROMPTS.items()}
    distances = {"portraits": {"a judge": 2.0 - step / 10, "a cook": 2.0 - step / 10}}
    return Record(step, PROMPTS, scores, distances, pictures)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What programs were asked for; a run leaves its first and last evaluation."""
    calls = []

    def run(output, module, *arguments):
        calls.append((module, arguments))
        workdir = next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2]
        last = next(a for a in arguments if a.startswith("--config.iterations=")).partition("=")[2]
        write_record(workdir, record(0, 10))
        write_record(workdir, record(int(last), 250))
        row = {"step": int(last), "watch/noise_length": 1.07}
        (Path(workdir) / "metrics.jsonl").write_text(json.dumps(row) + "\n")

    monkeypatch.setattr(gallery, "run", run)
    return calls


def test_every_method_has_a_setting_that_fits():
    assert ALGORITHMS.keys() - gallery.METHODS.keys() == {"dpo_offline"}
    for method in gallery.METHODS:
        config = emoji_policy_gradient.get_config("preference")
        config.update_from_flattened_dict(gallery.overrides(method))
        checks.check_experiment(config, make_mesh(1))


def test_pictures_and_figures_are_a_runs_own(calls, tmp_path, capsys):
    gallery.main([f"--output={tmp_path}", "--methods=awm"])
    ((module, arguments),) = calls
    assert module == "main" and "--config.algorithm.name=awm" in arguments
    text = (tmp_path / "awm.md").read_text()
    # 12 pairs gain 1 and 3 in turns, the 3 prompts of portraits 2 each: a deviation of sqrt(12/14).
    error = (12 / 14 / 15) ** 0.5
    assert f"from 0.500 by +2.000 ({error:.3f}), and the recogniser" in text
    assert "0.750 by +0.000 (0.000)" in text
    assert "differ 0.50 times as much" in text and "1.07 times as long" in text
    assert capsys.readouterr().out.strip() == text.strip()
    # Eight pairs of pictures in two rows, dark before and bright after.
    shown = np.asarray(Image.open(tmp_path / "awm.png"))
    for red in (10, 250):
        assert (shown == (red, 0, 0)).all(-1).sum() == 8 * 64 * 64


def test_what_is_done_is_not_done_again(calls, tmp_path):
    for methods in ("nft", "nft,refl"):
        gallery.main([f"--output={tmp_path}", f"--methods={methods}"])
    names = [arguments[1] for _, arguments in calls]
    assert names == ["--config.algorithm.name=nft", "--config.algorithm.name=refl"]


def test_the_page_gets_what_was_found(calls, tmp_path):
    """Each in its own place, once however often the command is given, and with its picture."""
    page = tmp_path / "docs" / "gallery.md"
    page.parent.mkdir()
    text = (ROOT / "docs" / "gallery.md").read_text()
    page.write_text(text)
    for _ in range(2):
        gallery.main([f"--output={tmp_path}", "--methods=nft,refl", f"--page={page}"])
    shown = page.read_text()
    for method in ("nft", "refl"):
        part = shown.split(f"## {method}\n")[1].split("\n## ")[0]
        assert part.count((tmp_path / f"{method}.md").read_text()) == 1
        picture = page.parent / "gallery" / f"{method}.png"
        assert picture.read_bytes() == (tmp_path / f"{method}.png").read_bytes()
        assert f"(gallery/{method}.png)" in part
    others = lambda text: re.sub("<!-- (nft|refl) -->.*?<!-- /", "<!-- /", text, flags=re.DOTALL)
    assert others(shown) == others(text)
    for method in gallery.METHODS:
        assert text.count(f"<!-- {method} -->\n") == text.count(f"<!-- /{method} -->\n") == 1


def test_an_unknown_method_is_refused(calls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gallery.main([f"--output={tmp_path}", "--methods=ntf"])
    assert "no method ntf; there are policy_gradient" in capsys.readouterr().err
