"""A copy of a config."""

import ml_collections

from diffusionrl_jax.data.config_type import copied


def test_a_copy_has_fields_of_its_own():
    config = ml_collections.ConfigDict({"a": 1, "group": {"b": (1, 2)}})
    config.lock()
    copy = copied(config)
    assert copy.to_dict() == config.to_dict()
    copy.group.b, copy.more = (5,), 1
    assert config.to_dict() == {"a": 1, "group": {"b": (1, 2)}}
