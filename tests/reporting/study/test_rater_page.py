"""The raters' page in a real browser."""

import json

import pytest

from diffusionrl_jax.reporting.study import pages, votes
from diffusionrl_jax.reporting.study.returned import read_returned
from tests.browser import DOWN, LEFT, RIGHT, complaints, open_browser, wait_until
from tests.reporting.study.conftest import PAIRS

ALL = PAIRS + 2
PHONE = {"width": 390, "height": 780, "dark": True}


class Page:
    """A rater's page in a browser."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)

    def text(self, name):
        return self.driver.find_element("id", name).text

    def wait_for(self, number):
        """Until the question of a number, from 1, can be answered."""
        wait_until(lambda: self.text("count") == f"{number} of {ALL}" and self.enabled())

    def enabled(self):
        return self.driver.find_element("css selector", ".choices button").is_enabled()

    def press(self, *keys):
        self.driver.find_element("tag name", "body").send_keys(*keys)

    def click(self, selector):
        self.driver.find_element("css selector", selector).click()

    def script(self, text):
        return self.driver.execute_script(f"return {text}")


@pytest.fixture(scope="module")
def desktop(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("downloads"), **PHONE) as driver:
        yield driver


def address(server, rater):
    return f"http://127.0.0.1:{server.server_port}/{rater.token}/"


def choices(folder, rater):
    return {vote.number: vote.choice for vote in votes.read_votes(folder, rater)}


def test_keys_answer_and_a_reloaded_page_goes_on(desktop, server, folder, study, raters):
    page = Page(desktop, address(server, raters[0]))
    for number, (key, choice) in enumerate(((LEFT, "left"), (DOWN, "tie"), (RIGHT, "right"))):
        page.wait_for(number + 1)
        asked = votes.read_questions(folder, raters[0])[number]
        assert page.text("prompt") == study.pairs[asked.pair].prompt
        for side in ("left", "right"):
            shown = page.script(f"document.getElementById('{side}').src")
            assert shown.endswith(f"/{raters[0].token}/{number}/{side}")
            assert page.script(f"document.getElementById('{side}').naturalWidth") == 8
        page.press(key)
        wait_until(lambda n=number: n in choices(folder, raters[0]))
        assert choices(folder, raters[0])[number] == choice
    page.wait_for(4)
    desktop.refresh()
    page.wait_for(4)
    assert complaints(desktop) == []


def test_a_second_press_at_once_is_no_second_answer(desktop, server, folder, raters):
    page = Page(desktop, address(server, raters[0]))
    page.wait_for(1)
    # Another click 50 ms after the next question is shown.
    desktop.execute_script("""
        const click = () => document.querySelector(".sides button").click();
        const observer = new MutationObserver(() => setTimeout(click, 50));
        observer.observe(document.getElementById("prompt"), { childList: true });
    """)
    page.press(LEFT, LEFT, RIGHT)
    page.wait_for(2)
    page.press(DOWN)
    page.wait_for(3)
    assert choices(folder, raters[0]) == {0: "left", 1: "tie"}


def test_a_phone_is_touched_and_is_wide_enough(phone, server, folder, raters):
    page = Page(phone, address(server, raters[0]))
    page.wait_for(1)
    assert page.script("document.documentElement.scrollWidth") <= PHONE["width"]
    bottoms = "[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().bottom)"
    assert max(page.script(bottoms)) <= PHONE["height"], "all can be seen without scrolling"
    sizes = "[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().height)"
    assert min(page.script(sizes)) >= 44, "a finger's width"
    lightness = "getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number)"
    assert min(page.script(lightness)) > 200, "light letters in dark mode"
    page.click(".sides [data-choice=right]")
    page.wait_for(2)
    page.click(".choices [data-choice=tie]")
    page.wait_for(3)
    page.click(".choices [data-choice=left]")
    page.wait_for(4)
    assert choices(folder, raters[0]) == {0: "right", 1: "tie", 2: "left"}
    assert complaints(phone) == []


def test_two_at_once_of_whom_one_closes_the_page_in_the_middle(
    desktop, phone, server, folder, raters
):
    first, second = (
        Page(driver, address(server, rater))
        for driver, rater in zip((desktop, phone), raters, strict=False)
    )
    for number in range(1, ALL + 1):
        first.wait_for(number)
        first.press(LEFT)
        if number < 4:
            second.wait_for(number)
            second.click(".choices [data-choice=right]")
        elif number == 4:
            second.wait_for(4)
            phone.get("about:blank")
    wait_until(lambda: "Thank you" in first.text("done"))
    assert choices(folder, raters[0]) == dict.fromkeys(range(ALL), "left")
    assert choices(folder, raters[1]) == dict.fromkeys(range(3), "right")
    desktop.refresh()
    wait_until(lambda: "Thank you" in first.text("done"))
    again = Page(phone, address(server, raters[1]))
    again.wait_for(4)


def test_an_answer_that_is_not_saved_is_asked_for_again(
    desktop, server, folder, raters, monkeypatch
):
    page = Page(desktop, address(server, raters[0]))
    page.wait_for(1)
    with monkeypatch.context() as broken:
        broken.setattr(votes, "FILE", "nowhere/votes.sqlite")
        page.press(LEFT)
        wait_until(lambda: "was not saved" in page.text("status"))
        assert page.text("count") == f"1 of {ALL}"
    assert choices(folder, raters[0]) == {}
    wait_until(page.enabled)
    page.press(RIGHT)
    page.wait_for(2)
    assert page.text("status") == ""
    assert choices(folder, raters[0]) == {0: "right"}
    complaints(desktop)


def test_another_answer_in_another_tab_does_not_count(desktop, server, folder, raters):
    page = Page(desktop, address(server, raters[0]))
    page.wait_for(1)
    votes.vote(folder, raters[0], 0, "tie")
    page.press(LEFT)
    page.wait_for(2)
    assert choices(folder, raters[0]) == {0: "tie"}
    complaints(desktop)


def test_a_page_without_a_server_keeps_and_returns_its_answers(tmp_path, folder, study):
    (rater,) = votes.add_raters(folder, study, votes.EXPORTED, 1)
    questions = votes.read_questions(folder, rater)
    file = tmp_path / "rater.html"
    file.write_text(pages.rater_page(study, rater, questions, {}, folder))
    with open_browser(tmp_path) as driver:
        page = Page(driver, file.as_uri())
        page.wait_for(1)
        page.press(LEFT)
        page.wait_for(2)
        driver.refresh()
        page.wait_for(2)
        page.press(DOWN)
        page.wait_for(3)
        page.click("#save")
        returned = tmp_path / f"votes_of_rater_{rater.number}.json"
        wait_until(returned.exists)
        assert complaints(driver) == []
    assert json.loads(returned.read_text())["answers"] == {"0": "left", "1": "tie"}
    found = read_returned(returned, folder, study)
    assert [(vote.number, vote.question, vote.choice) for vote in found] == [
        (0, questions[0], "left"),
        (1, questions[1], "tie"),
    ]
