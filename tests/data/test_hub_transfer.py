"""How files travel from a hub on loopback."""

import threading
import time

import huggingface_hub
import pytest

from diffusionrl_jax.data import hub_files, hub_transfer
from tests.data.conftest import NAME, OTHER


def test_large_files_come_by_the_protocol_that_goes_on_where_it_broke_off(hub):
    """The hub offers another, for which huggingface_hub has a library of its own."""
    hub_files.fetch([hub_files.fixed_files(NAME, "large.safetensors")])
    assert any(path.startswith("/cdn/") for _, path, _ in hub.requests)
    assert not any(path.startswith("/xet") for _, path, _ in hub.requests)


def test_a_hub_that_never_answers_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(hub_transfer, "TIMEOUT", 0.2)
    huggingface_hub.utils.reset_sessions()
    answer = threading.Event()
    hub.trouble = lambda path: answer.wait(20) and None if "/paths-info/" in path else None
    with pytest.raises(FileNotFoundError, match="can't be reached .*timed out"):
        hub_files.fetch([hub_files.fixed_files(NAME, "config.json")])
    answer.set()


def test_a_log_tells_how_much_has_arrived(hub, monkeypatch, caplog):
    """A terminal shows huggingface_hub's own bar."""
    monkeypatch.setattr(hub_transfer, "TOLD_EVERY", 0.01)
    monkeypatch.setattr(hub_transfer.sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level("INFO", logger="absl")
    hub.trouble = lambda path: time.sleep(0.2) if path.startswith("/cdn/") else None
    hub_files.fetch([hub_files.fixed_files(NAME, "large.safetensors")])
    assert " of 0.0 MB of large.safetensors have arrived." in caplog.text
    caplog.clear()
    monkeypatch.setattr(hub_transfer.sys.stderr, "isatty", lambda: True, raising=False)
    hub_files.fetch([hub_files.fixed_files(OTHER, "large.safetensors")])
    assert "have arrived" not in caplog.text
