"""What is compiled for a slice: by blocks no chip holds all of the network, or of its gradient."""

import pytest

from benchmarks import gathering
from diffusionrl_jax.costs.compiled import topology_devices
from diffusionrl_jax.distributed.mesh import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_by_blocks_no_chip_holds_a_whole_gradient(remat):
    pytest.importorskip("libtpu")
    mesh = make_mesh(4, topology_devices("v5e:2x2"))
    cost, gradient = gathering.update(mesh, 4, True, remat)
    # Two microbatches, each of which gathers every kernel forward and backward, and cuts up its
    # gradient in float32.
    sent = cost.collectives
    assert sent["all-gather"].bytes == pytest.approx(4 * gradient / 2, rel=0.01)
    assert sent["reduce-scatter"].bytes == pytest.approx(2 * gradient, rel=0.01)
    # A quarter of the gradient of all blocks, and what one of the four takes.
    assert cost.temporaries < 0.6 * gradient
