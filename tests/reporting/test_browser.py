"""A page as a browser shows it: whole, without errors, in the dark, on a phone, with its slider."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.reporting import reading, report
from tests.reporting.runs import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium (apt install chromium)")
# What is read of the page, before and after the slider is moved to the middle.
PROBE = """
<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("load", () => {
  const visible = () => [...document.querySelectorAll(".after img:not([hidden])")];
  const found = {
    broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length,
    images: document.images.length,
    plots: [...document.querySelectorAll("svg")].map((s) => s.getBoundingClientRect().height),
    width: document.documentElement.scrollWidth,
    window: innerWidth,
    before: visible().map((image) => image.dataset.step),
    colour: getComputedStyle(document.body).color,
    external: performance
      .getEntriesByType("resource")
      .map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
  };
  const input = document.querySelector("input[type=range]");
  found.shown = input.getBoundingClientRect().width;
  input.value = 1;
  input.dispatchEvent(new Event("input"));
  found.after = visible().map((image) => image.dataset.step);
  found.said = document.querySelector("output").textContent;
  found.problems = problems;
  const element = document.createElement("pre");
  element.id = "found";
  element.textContent = JSON.stringify(found);
  document.body.append(element);
});
</script>
"""


def browse(*arguments):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = reading.read_runs([write_run(folder / "foxes"), write_run(folder / "owls", seed=1)])
    path = folder / "page.html"
    path.write_text(report.make_report(runs))
    return path


@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_a_page_is_whole_and_its_slider_moves(page, size, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    output = browse(f"--window-size={size}", "--dump-dom", f"file://{probed}")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', output)[1]))
    assert found["problems"] == [] and found["broken"] == 0 and found["external"] == []
    assert found["images"] > 100 and min(found["plots"]) > 50
    assert set(found["before"]) == {"8"} and found["shown"] > 100
    # The first of the two runs' sliders has moved.
    assert found["after"] == ["4"] * 8 + ["8"] * 8 and found["said"] == "4"
    assert found["width"] <= found["window"], "nothing is cut at the side"


@pytest.mark.parametrize(("dark", "low", "high"), [(False, 220, 255), (True, 0, 60)])
def test_a_page_is_light_or_dark(page, dark, low, high, tmp_path):
    picture = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse("--window-size=1200,900", *scheme, f"--screenshot={picture}", f"file://{page}")
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert low <= np.median(pixels) <= high
    # Text and lines stand out.
    assert np.ptp(pixels) > 150


def test_without_javascript_the_last_pictures_are_there(page, tmp_path):
    still = tmp_path / "still.html"
    still.write_text(re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL))
    output = browse("--dump-dom", f"file://{still}")
    shown = re.findall(r'<img[^>]*data-step="(\d+)"(?![^>]*hidden)', output)
    assert shown.count("8") > shown.count("4") == 0
    assert re.search(r'<div class="through" hidden="">', output)
