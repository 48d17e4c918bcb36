"""Tables, as another library reads them."""

from xml.etree import ElementTree

import pytest

from diffusionrl_jax.monitoring.markdown import table

markdown = pytest.importorskip("markdown")


@pytest.mark.parametrize("rows", [[], [["a", "1"]], [["a b", "-1.5"], ["", "**2**"]]])
def test_a_table_is_one_to_others(rows):
    text = markdown.markdown(table(["name", "value"], iter(rows)), extensions=["tables"])
    tree = ElementTree.fromstring(text)
    assert tree.tag == "table"
    found = [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]
    plain = [[cell.replace("*", "") for cell in row] for row in rows]
    assert found[0] == ["name", "value"]
    assert [row for row in found[1:] if any(row)] == plain
