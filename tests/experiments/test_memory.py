"""The model of memory, against sums by hand and against the shapes of a dry run."""

import dataclasses

import pytest

from diffusionrl_jax.costs import abstract, mathematics, phases
from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import memory, planning
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.models.stable_diffusion import arithmetic

FIELDS = "algorithm.policy_gradient"
# One residual block of which 2 values are read and 10 kept.
NETWORK = arithmetic.Network(((arithmetic.Block(100.0, 2, 10),),), 100.0, skips=4)
SIZES = memory.Sizes(
    model=Description(
        denoiser=800,
        vae=80,
        text_encoder=160,
        largest_encoder=120,
        network=NETWORK,
        latent=4,
        image=15,
        text=6,
        decoded=lambda itemsize: 300.0,
    ),
    trained=800,
    copies=3,
    rewards=(240, 320),
    judges=(40,),
    rewarded=(50.0, 70.0),
    judged=(500.0,),
    passes=2,
    itemsize=2,
    kernel=True,
    latent=16,
    image=60,
    text=24,
    decoded=300.0,
    steps=5,
    updates=10,
    tasks=2,
    pretrains=True,
    kept_of_example=1,
    predictions=0,
    reward_gradient=False,
    holds_base=False,
    lora=False,
    on_host=False,
    split_frozen=True,
)
DIVISION = memory.Division(
    chips=8, share=6, fsdp=4, sample=3, decode=2, score=2, train=3, remat="none"
)


def test_sums_by_hand():
    # State 4 * 3 * 800 / 4; frozen 4 * 840 / 4; two latents of each of 6 pictures.
    held = 2400 + 840 + 192
    assert memory.held(SIZES, DIVISION) == held
    # Of 12 samples: 5 steps' two latents, the text, and the latent that the chain ends in.
    drawn = 12 * (160 + 24 + 16)
    # Of a pass: the skips, and half of what a block keeps, 2 bytes each.
    forward = 2 * 4 + 0.5 * 2 * 10
    needed = memory.needed(SIZES, DIVISION)
    assert needed["sample"] == held + 2 * 800 + 2 * 160 + 3 * 2 * forward + 2 * drawn
    # VAE and the larger reward whole, two images of a microbatch, and decoding two.
    assert needed["score"] == held + drawn + 4 * (80 + 320) + 2 * 2 * 60 + 600
    # Three images, whose chains are not kept; two at a time the judge holds 500 bytes of each.
    evaluation = memory.needed(SIZES, DIVISION, trains=False)
    untrained = held - 2400 - 192 + 2 * 800
    assert evaluation["score"] == untrained + 3 * 40 + 4 * (80 + 320) + 2 * 3 * 60 + 2 * 500
    assert needed["evaluate"] == evaluation["score"] - untrained + held
    updates, text = 11 * 6 * 2 * 16, 6 * 3 * 24
    assert needed["prepare"] == held + drawn + updates + text + 2 * 160 + 2 * 6 * 24
    one = 6 * (3 * 16 + 24)
    update = held + updates + text + one + 2 * 800 + 4 * 800 + 3 * 2 * max(20, 2.5 * 20)
    assert needed["update"] == update
    assert needed["whole step"] == update + drawn + 2 * 800


def test_by_blocks_neither_the_denoiser_nor_its_gradient_is_whole():
    blocks = dataclasses.replace(DIVISION, gather="blocks")
    network = arithmetic.Network(((arithmetic.Block(100.0, 2, 10, parameters=50),),), 100.0, 4)
    sizes = dataclasses.replace(SIZES, model=dataclasses.replace(SIZES.model, network=network))
    whole, in_blocks = (memory.needed(sizes, division) for division in (DIVISION, blocks))
    # The block and the next one in 2 bytes, its gradient in 2 and in 4; a part of the gradient.
    saved = 2 * 800 + 4 * 800 - (50 * (2 + 2 + 2 + 4) + 4 * 800 / 4)
    assert whole["update"] - in_blocks["update"] == saved
    # Prompts are read before the two blocks are there, by 120 of the encoders' 160 at a time.
    sampling = 3 * 2 * (2 * 4 + 0.5 * 2 * 10)
    together = max(2 * 120, 2 * 2 * 50 + sampling)
    assert whole["sample"] - in_blocks["sample"] == 2 * 800 + 2 * 160 + sampling - together
    assert whole["prepare"] - in_blocks["prepare"] == 2 * 40
    assert whole["score"] == in_blocks["score"]
    one = dataclasses.replace(DIVISION, fsdp=1)
    unsplit = dataclasses.replace(one, gather="blocks")
    assert memory.needed(sizes, one) == memory.needed(sizes, unsplit)


def test_a_stack_of_blocks_has_a_whole_gradient_beside_the_sum():
    stacked = dataclasses.replace(
        SIZES, model=dataclasses.replace(SIZES.model, denoiser_shapes=dict)
    )
    added = lambda division: (
        memory.needed(stacked, division)["update"] - memory.needed(SIZES, division)["update"]
    )
    assert added(DIVISION) == 2 * 800
    assert added(dataclasses.replace(DIVISION, train=6)) == 0
    # By blocks there is no whole gradient, but half of a device's parameters once more.
    assert added(dataclasses.replace(DIVISION, gather="blocks")) == 4 * 800 / 4 / 2


SIDES = {"sd15": (64, 64), "sd2": (64, 64), "sdxl": (128, 128)}


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_the_largest_block_of_published_networks(name):
    """A residual block of the first up block that reads what two levels hand on: 2,560 to 1,280."""
    kernels = 9 * 1280 * (2560 + 1280) + 2560 * 1280
    network = arithmetic.network(published.CONFIGS[name]["unet"], 77, SIDES[name])
    assert network.largest_block == kernels


def test_what_is_held_of_images_does_not_grow_with_the_batch():
    larger = dataclasses.replace(DIVISION, share=600)
    drawn = lambda share: 2 * share * 200 + 192 * share / 6
    grown = memory.needed(SIZES, larger)["score"] - memory.needed(SIZES, DIVISION)["score"]
    assert grown == drawn(600) - drawn(6)
    whole = memory.needed(SIZES, dataclasses.replace(larger, score=600))["score"]
    assert whole > 2 * 2 * 600 * SIZES.image


def test_on_whole_devices_nothing_is_gathered():
    one = dataclasses.replace(DIVISION, fsdp=1)
    in_full = memory.needed(dataclasses.replace(SIZES, itemsize=4), one)
    held = memory.held(SIZES, one)
    assert in_full["sample"] == held + 3 * 2 * (16 + 20) + 2 * 12 * 200


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_operations_of_published_networks(name):
    """Those that were counted on the jaxpr: docs/performance.md; 100 passes are an image's."""
    # In them are the text encoder's; less is what both passes share before the first attention.
    counted = {"sd15": 77.44, "sd2": 77.58, "sdxl": 672.6}[name]
    network = arithmetic.network(published.CONFIGS[name]["unet"], 77, SIDES[name])
    assert 100 * network.operations / 1e12 == pytest.approx(counted, rel=0.015)


@pytest.mark.parametrize("size", [pytest.param((0, 0), marks=pytest.mark.slow), (36, 44)])
def test_operations_against_the_jaxpr(make_config, size):
    config = make_config(model="asset:emoji/stable_diffusion")
    config.sampler.height, config.sampler.width = size
    changes = {
        "batch_size": 1,
        f"{FIELDS}.timesteps_per_iteration": 0,
        "pretraining.pictures": "emoji",
    }

    def sampled(steps):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(
            changes | {"pretraining.weight": 1.0, "sampler.steps": steps}
        )
        made = phases.make_phases(phases.plain_experiment(changed))[0]
        return mathematics.operations(made.function, *made.arguments)

    model, *_ = abstract.make_model(config, None)
    tokens = model.tokenize([""]).shape[1]
    network = arithmetic.network(model.configs["unet"], tokens, model.latent_shape[1:])
    # The embeddings of the time are left out.
    assert network.operations == pytest.approx(sampled(2) - sampled(1), rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pretraining.weight": 1.0, f"{FIELDS}.kl_weight": 0.5, "optimizer.one_step": True},
    ],
)
def test_what_is_held_against_the_shapes_of_a_dry_run(make_config, changes):
    config = make_config(**{"batch_size": 64, "pretraining.pictures": "emoji"} | changes)
    devices = Devices(8, "v5e", "tpu", 2**34)
    config, plan = planning.resolve(config, devices)
    sizes = memory.sizes(config, kernel=True)
    made = phases.make_phases(abstract.build(config, make_mesh(config.mesh.fsdp)))
    held = {phase.name: phase.resident for phase in made}
    assert memory.held(sizes, plan.division) == pytest.approx(held["sample"], rel=0.02)
    # And in the update what is trained on, with its text.
    count = sizes.updates + sizes.pretrains
    trained_on = plan.division.share * (
        count * (1 + sizes.kept_of_example) * sizes.latent
        + (sizes.tasks + sizes.pretrains) * sizes.text
    )
    found = held["update"] - held["sample"]
    assert trained_on == pytest.approx(found, rel=0.1)


def test_published_numbers_of_parameters(make_config):
    scorer = make_config().tasks.small.scorer
    for name in ("detection", "clip_score"):
        scorer.update(reward=name, path="not/here")
        _, params, _ = abstract.make_reward(scorer, 1)
        assert count(params) == published.REWARD_PARAMETERS[name]


def test_numbers_of_parameters_of_a_folder(make_config):
    config = make_config()
    experiment = abstract.build(config, make_mesh(1))
    sizes = memory.sizes(config, kernel=False)
    assert sizes.trained == count(experiment.state.params)
    frozen = sizes.model.vae + sizes.model.text_encoder
    assert frozen == count((experiment.frozen.vae, experiment.frozen.text_encoder))


def test_a_text_has_as_many_tokens_as_the_sampler_reads(make_config):
    config = make_config(model="black-forest-labs/FLUX.1-dev")
    sizes = {}
    for config.sampler.text_tokens in (0, 512, 96):
        sizes[config.sampler.text_tokens] = memory.sizes(config, kernel=True)
    usual, same, fewer = sizes.values()
    assert usual.text == same.text and usual.text - fewer.text == 4 * (512 - 96) * 4096
    held = [one.model.network.backward("blocks", 2, True) for one in (usual, same, fewer)]
    assert held[0] == held[1] > held[2]
