"""The program encodes what its flags say, and refuses a config without pictures."""

import pytest

from tests.own_flags import program

CONFIG = "--config=configs/emoji.py:preference"


@pytest.mark.parametrize("more", [(), ("--text_embeddings",)])
def test_what_is_encoded(more, tmp_path, monkeypatch):
    encoded = []
    with program("cache_latents", CONFIG, f"--output={tmp_path}/latents", *more) as command:
        monkeypatch.setattr(command.start, "start_devices", lambda: None)
        monkeypatch.setattr(command.caching, "cache_latents", lambda *given: encoded.append(given))
        command.main([])
    ((config, output, text_embeddings),) = encoded
    assert config.model == "asset:emoji/stable_diffusion"
    assert (output, text_embeddings) == (f"{tmp_path}/latents", bool(more))


def test_a_config_without_pictures_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    flags = (CONFIG, f"--output={tmp_path}/latents", "--config.pretraining.pictures=")
    with program("cache_latents", *flags) as command:
        monkeypatch.setattr(command.start, "start_devices", lambda: None)
        with pytest.raises(SystemExit) as ended:
            command.main([])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config.pretraining.pictures=") and "names no pictures" in line
    assert not (tmp_path / "latents").exists()
