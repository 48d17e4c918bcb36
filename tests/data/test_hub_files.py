"""Files from a hub on loopback: fetched once, checked, and with what follows from them."""

import json
import threading
import time

import huggingface_hub
import pytest

from diffusionrl_jax.data import hub_files
from tests import hub as stand_in

NAME, OTHER = "me/thing", "me/other"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, with two repositories, as this process' one, with an empty cache."""
    for name in ("thing", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"use": name}))
        (tmp_path / name / "large.safetensors").write_bytes(bytes(range(256)) * 8)
        (tmp_path / name / "readme.txt").write_text("not needed")
    with stand_in.serve({NAME: tmp_path / "thing", OTHER: tmp_path / "other"}) as server:
        stand_in.use(monkeypatch, server.address, tmp_path / "home" / "hub")
        yield server
    monkeypatch.undo()
    huggingface_hub.utils.reset_sessions()


def test_fixed_files_are_fetched_once(hub, tmp_path):
    need = hub_files.fixed_files(NAME, "config.json", "large.safetensors")
    assert hub_files.find(need) is None
    (held,) = hub_files.fetch([need])
    assert (held.files, held.revision) == (("config.json", "large.safetensors"), hub.revision(NAME))
    contents = [(tmp_path / "thing" / name).read_bytes() for name in held.files]
    assert [(held.folder / name).read_bytes() for name in held.files] == contents
    assert held.size == sum(map(len, contents))
    assert hub.downloaded() == set(held.files)
    hub.requests.clear()
    assert hub_files.fetch([need]) == [held]
    assert not hub.requests


def test_large_files_come_by_the_protocol_that_goes_on_where_it_broke_off(hub):
    """The hub offers another, for which huggingface_hub has a library of its own."""
    hub_files.fetch([hub_files.fixed_files(NAME, "large.safetensors")])
    assert any(path.startswith("/cdn/") for _, path, _ in hub.requests)
    assert not any(path.startswith("/xet") for _, path, _ in hub.requests)


def test_a_hub_that_never_answers_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(hub_files, "TIMEOUT", 0.2)
    huggingface_hub.utils.reset_sessions()
    answer = threading.Event()
    hub.trouble = lambda path: answer.wait(20) and None if "/paths-info/" in path else None
    with pytest.raises(FileNotFoundError, match="can't be reached .*timed out"):
        hub_files.fetch([hub_files.fixed_files(NAME, "config.json")])
    answer.set()


def test_a_log_tells_how_much_has_arrived(hub, monkeypatch, caplog):
    """A terminal shows huggingface_hub's own bar."""
    monkeypatch.setattr(hub_files, "TOLD_EVERY", 0.01)
    caplog.set_level("INFO", logger="absl")
    hub.trouble = lambda path: time.sleep(0.2) if path.startswith("/cdn/") else None
    hub_files.fetch([hub_files.fixed_files(NAME, "large.safetensors")])
    assert " of 0.0 MB of large.safetensors have arrived." in caplog.text
    caplog.clear()
    monkeypatch.setattr(hub_files.sys.stderr, "isatty", lambda: True, raising=False)
    hub_files.fetch([hub_files.fixed_files(OTHER, "large.safetensors")])
    assert "have arrived" not in caplog.text


def test_what_is_read_decides_what_is_needed_and_what_follows(hub):
    def choose(listed, read):
        assert "readme.txt" in listed
        return ["config.json", "large.safetensors"] if read("config.json")["use"] else []

    follow = lambda names: (hub_files.fixed_files(OTHER, "config.json"),) * (len(names) == 2)
    held = hub_files.fetch([hub_files.Need(NAME, choose, follow=follow)])
    assert [one.repository for one in held] == [NAME], "what follows is fetched, and not listed"
    followed = hub_files.find(hub_files.fixed_files(OTHER, "config.json"))
    assert followed is not None and followed.revision == hub.revision(OTHER)


def test_all_that_is_missing_is_one_message_and_nothing_is_fetched(hub):
    needs = [
        hub_files.fixed_files(NAME, "config.json"),
        hub_files.fixed_files(OTHER, "none.txt"),
        hub_files.fixed_files("me/nothing", "config.json"),
    ]
    with pytest.raises(FileNotFoundError, match="Several things are missing: .1. ") as caught:
        hub_files.fetch(needs, missing=["And this."])
    message = str(caught.value)
    assert "(1) me/other on the Hugging Face hub has no none.txt." in message
    assert "(2) me/nothing is no folder here" in message and message.endswith("(3) And this.")
    assert not hub.downloaded()


def test_a_file_of_the_cache_that_changed_is_not_found(hub, caplog):
    need = hub_files.fixed_files(NAME, "large.safetensors")
    (held,) = hub_files.fetch([need])
    (held.folder / "large.safetensors").resolve().write_bytes(b"damaged")
    assert hub_files.find(need) is None
    assert "is damaged" in caplog.text
    assert hub_files.fetch([need]) == [held]
    assert held.size == 256 * 8
