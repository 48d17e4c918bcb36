"""The page of what fields may hold is the table's."""

from diffusionrl_jax.experiments import configuration_page
from tests.processes import ROOT


def test_the_page_is_the_tables():
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_page.markdown()
