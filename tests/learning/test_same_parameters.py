"""The parameters after three iterations of the emoji world are those of an earlier revision.

`parameters.json` holds them: to the bit, for the kind of processor that it was written on, and how
far each array has moved, for others. Where results are meant to change it is written anew by
`python -m tests.learning.test_same_parameters`.
"""

import hashlib
import json
import os
import pathlib
import platform
import tempfile

import pytest

from configs import common, emoji_policy_gradient

FILE = pathlib.Path(__file__).with_name("parameters.json")
DEVICES = 8


def joint(**changes):
    config = emoji_policy_gradient.get_config()
    config.update_from_flattened_dict(
        {"batch_size": 40, "iterations": 3, "algorithm.policy_gradient.timesteps_per_iteration": 2}
        | changes
    )
    return config


def per_prompt():
    config = joint()
    config.tasks.fairness.update(normalisation="prompt", prompt_min_count=1)
    return config


def host_reward():
    config = joint()
    config.tasks.preference.scorer = common.make_scorer("host_reward", "tests.scorers:brightness")
    return config


SETTINGS = {
    "joint": joint,
    "fused": lambda: joint(execution="fused", **{"mesh.fsdp": 4}),
    "lora": lambda: joint(
        **{
            "algorithm.policy_gradient.kl_weight": 0.1,
            "lora.rank": 4,
            "sampler.guidance_scale": 3.0,
        }
    ),
    "per_prompt": per_prompt,
    "host_reward": host_reward,
}


def processor() -> str:
    """What decides how sums are rounded: the processor's kind, its cores, the versions."""
    import jax

    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kinds = {line for line in lines if line.startswith(("model name", "flags"))}
    named = [platform.machine(), os.cpu_count(), jax.__version__, *sorted(kinds)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def train(name: str, folder: str) -> dict:
    """A setting's parameters: their digest, and the norm of what each array has moved."""
    import jax
    import numpy as np

    from diffusionrl_jax.experiments import experiment as experiments
    from diffusionrl_jax.experiments import planning
    from diffusionrl_jax.experiments.algorithm import scores_on_host
    from diffusionrl_jax.learning.execution import choose_execution, make_train_step
    from diffusionrl_jax.monitoring.progress import PhaseTimer

    config, _ = planning.resolve(SETTINGS[name]())
    experiment = experiments.build(config).with_pictures(folder)
    execution = choose_execution(config.execution, scores_on_host(config))
    step = make_train_step(
        experiment.algorithm, experiment.abstract_state(), execution, PhaseTimer()
    )
    state = experiment.init_state()
    flatten = lambda state: {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    first = flatten(state)
    batch = experiment.batch(0)
    for iteration in range(config.iterations):
        following = experiment.batch(iteration + 1)
        state, _ = step(state, experiment.frozen, batch, following)
        batch = following
    last = flatten(state)
    digest = hashlib.sha256()
    for array in last:
        digest.update(array.encode() + last[array].tobytes())
    moved = {array: float(np.linalg.norm(last[array] - first[array])) for array in last}
    return {"sha256": digest.hexdigest(), "moved": moved}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_are_the_same(name, tmp_path):
    kept = json.loads(FILE.read_text())
    found = train(name, str(tmp_path))
    # Adam's first steps are signs of gradients, and some gradients are within rounding of 0.
    assert found["moved"] == pytest.approx(kept["settings"][name]["moved"], rel=0.02)
    if kept["processor"] == processor():
        assert found["sha256"] == kept["settings"][name]["sha256"]


def main() -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        settings = {name: train(name, folder) for name in SETTINGS}
    FILE.write_text(json.dumps({"processor": processor(), "settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
