"""The dry run: what is compiled, and what is said of it."""

import importlib.metadata
import json

import jax
import pytest

from diffusionrl_jax.costs import abstract, compiled, dry_run, phases
from diffusionrl_jax.distributed import mesh as meshes
from diffusionrl_jax.distributed.mesh import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "rank"),
    [
        ("sample", 0),
        ("update", 0),
        ("update", 4),
    ],
    ids=["sample", "update", "lora"],
)
def test_split_kernels_are_gathered_once(phase, rank, config, monkeypatch, compilation_cache):
    """For all of sampling's steps, and for all of an update's microbatches, here two."""
    monkeypatch.setattr(meshes, "REPLICATED_BYTES", 2**14)
    config.mesh.fsdp, config.batch_size, config.lora.rank = 8, 16, rank
    experiment = abstract.build(config, make_mesh(8))
    made = {made.name: made for made in phases.make_phases(experiment)}[phase]
    cost = compiled.read(made.function.lower(*made.arguments).compile())
    unet = [
        leaf
        for leaf in jax.tree.leaves(experiment.frozen.base if rank else experiment.state.params)
        if not leaf.sharding.is_fully_replicated
    ]
    assert len(unet) > 10
    whole = sum(leaf.size * 4 for leaf in unet)
    # The text encoder's are gathered besides, for sampling.
    most = whole + sum(leaf.size * 4 for leaf in jax.tree.leaves(experiment.frozen.text_encoder))
    gathered = cost.collectives["all-gather"].bytes
    assert whole <= gathered <= most < 2 * whole
    if phase == "sample":
        assert cost.collectives.keys() == {"all-gather"}
        return
    # Of the gradients every device keeps its part of one sum, and the whole sum of small ones.
    assert cost.collectives.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    trained = sum(leaf.size * 4 for leaf in jax.tree.leaves(experiment.state.params))
    summed = sum(sent.bytes for kind, sent in cost.collectives.items() if kind != "all-gather")
    assert 0.9 * trained <= summed <= 1.1 * trained


@pytest.mark.parametrize(
    ("topology", "quick"),
    [pytest.param("v5e:2x2", False, marks=pytest.mark.slow), ("v6e:2x2", True)],
)
def test_dry_run_of_a_tpu_that_is_not_there(config, topology, quick):
    pytest.importorskip("libtpu")
    result = dry_run.dry_run(config, topology, only=["sample"], quick=quick)
    (sample,) = result.phases
    # The chain's steps and the microbatches are counted, and little besides what is needed.
    assert 0.5 < sample.share < 1.05
    assert result.summary()["fits"]
    assert "**Fits**, as far as these phases go" in result.markdown()
    effort = "with less effort " if quick else ""
    version = importlib.metadata.version("libtpu")
    assert f"compiled {effort}by libtpu {version}." in result.markdown()
    json.dumps(result.to_json(), default=str)


def test_phases_are_chosen_by_name():
    made = [phases.Phase(name, None, (), 1, 0) for name in ("sample", "score a", "score b")]
    chosen = lambda *only: [phase.name for phase in dry_run._choose(made, only)]
    assert chosen("score") == ["score a", "score b"]
    assert chosen("score b", "sample") == ["sample", "score b"]
    with pytest.raises(ValueError, match=r"no phases \['evaluate'\].*'score', 'score a'"):
        chosen("evaluate")
