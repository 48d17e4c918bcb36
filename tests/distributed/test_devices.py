"""The devices of topologies."""

import pytest

from diffusionrl_jax.distributed.devices import devices_of_topology


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:2xa", "v9:2x2"])
def test_unknown_topologies(topology):
    with pytest.raises(ValueError, match="topology"):
        devices_of_topology(topology)
