"""Prompts that are longer than what a model reads are counted and warned of."""

import jax

from diffusionrl_jax.models import text_to_image


def test_prompts_that_are_cut_are_counted(tiny, caplog, monkeypatch):
    """The byte tokenizer keeps 10 bytes of a prompt; the prompts are read three at a time."""
    prompts = ["0123456789", "01234567890", "", "a" * 5000, "é" * 5, "é" * 6, "\u0130" * 4, "a b c"]
    monkeypatch.setattr(text_to_image, "PROMPTS_AT_ONCE", 3)
    caplog.set_level("WARNING", logger="absl")
    text_to_image.warn_of_cut(tiny[0], iter(prompts), "--prompts")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "--prompts: 4 of 8 prompts are longer than what the model"
    )
    assert "the first is '01234567890'" in record.getMessage()
    caplog.clear()
    text_to_image.warn_of_cut(tiny[0], prompts[:1], "--prompts")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    text_to_image.warn_of_cut(tiny[0], prompts, "--prompts")
    assert not caplog.records
