"""What is refused where groups cannot share a prefix, and what a plan makes of those that can."""

import pytest
from jax.sharding import AbstractMesh

from diffusionrl_jax.distributed.mesh import BATCH_AXES
from diffusionrl_jax.experiments import checks, divisions, memory

FIELDS = "algorithm.policy_gradient"
TASK = {"tasks.small.shared_noise": True, "tasks.small.group_size": 4}
MESH = AbstractMesh((2, 1), BATCH_AXES)


@pytest.fixture
def make(make_config):
    """A function that makes a config of 32 images for two devices, in groups of 4 with 2 steps."""

    def of(**changes):
        changes = {"batch_size": 32, f"{FIELDS}.shared_prefix": 2} | TASK | changes
        return make_config(**changes)

    return of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{FIELDS}.timesteps_per_iteration": 2}, r"needs .*timesteps_per_iteration=1, and it is"),
        ({"tasks.small.shared_noise": False}, "needs shared_noise=True .* of task small, which"),
        ({"tasks.small.group_size": 1}, "2 or more of task small, which has True and 1"),
        ({"sampler.window": 2}, "needs config.sampler.window=0, and it is 2"),
        ({f"{FIELDS}.shared_prefix": 3}, "batch_size=32 must be a multiple of 24, whole groups of"),
        ({"algorithm.name": "nft"}, "shared_prefix=2 is not for the method nft"),
    ],
    ids=str,
)
def test_refused(make, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        checks.check_experiment(make(**changes), MESH)
    assert "\n" not in str(refused.value)


def test_groups_of_two_sizes_are_refused(make):
    config = make()
    config.tasks.other = config.tasks.small.copy_and_resolve_references()
    checks.check_experiment(config, MESH)
    config.tasks.other.group_size = 2
    with pytest.raises(ValueError, match=r"tasks of one group_size, and there are \[2, 4\]"):
        checks.check_experiment(config, MESH)


def test_in_bfloat16_a_microbatch_is_a_part_of_one_step(make):
    sizes = {"microbatch.sample": 8, "microbatch.train": 8}
    checks.check(make(dtype="bfloat16", **sizes), MESH)
    sizes = dict.fromkeys(sizes, 16)
    with pytest.raises(ValueError, match="train=16 must divide the 8 samples that a device has"):
        checks.check(make(dtype="bfloat16", **sizes), MESH)
    checks.check(make(**sizes), MESH)
    # A plan takes whole groups of one step.
    assert divisions.trained_at_a_time(make(), 16) == [4, 8]


def test_an_update_holds_what_one_row_of_each_group_takes(make):
    shared, apart = (
        memory.sizes(make(**{f"{FIELDS}.shared_prefix": parts}), kernel=False) for parts in (2, 0)
    )
    division = memory.Division(
        chips=1, share=32, fsdp=1, sample=4, decode=4, score=4, train=32, remat="none"
    )
    needed = [memory.needed(sizes, division)["update"] for sizes in (apart, shared)]
    row = shared.model.network.backward("none", shared.itemsize, False)
    assert needed[0] - needed[1] == pytest.approx((32 - 8) * row)
