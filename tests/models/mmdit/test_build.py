"""Networks are built with the options that only some of them have."""

from diffusionrl_jax.models.families import load_model


def test_options_of_flux_are_heeded(make_folder):
    model, _ = load_model(str(make_folder(flux=True)), embedded_guidance=4.0, text_tokens=77)
    assert model.transformer.guidance == model.embedded_guidance == 4.0
    assert model.tokenize(["a"]).shape == (1, 12 + 77)
