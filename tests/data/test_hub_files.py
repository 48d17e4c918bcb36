"""Files from a hub on loopback: fetched once, checked, and with what follows from them."""

import pytest

from diffusionrl_jax.data import hub_files
from tests.data.conftest import NAME, OTHER


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
