"""A study is read as it was written, or refused."""

import json

import pytest
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import records
from tests.reporting.study.conftest import make_study


def test_a_study_comes_back(folder):
    assert records.read_study(folder) == make_study()


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("pairs"),
        lambda values: values.update(more=1),
        lambda values: values.update(checks=["x"]),
        lambda values: values["pairs"].append("x"),
        lambda values: values["pairs"][0].update(scores={"size": [1]}),
    ],
)
def test_a_damaged_study_is_one_error(folder, damage):
    path = folder / records.FILE
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="study.json is not as it was written"):
        records.read_study(folder)


def test_where_no_study_can_be(tmp_path, bucket):
    with pytest.raises(UserError, match="holds no study"):
        records.read_study(epath.Path(tmp_path))
    with pytest.raises(UserError, match="must be on a disk"):
        records.study_folder("gs://bucket/study")
