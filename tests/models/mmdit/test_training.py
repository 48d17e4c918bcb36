"""A tiny Stable Diffusion 3 is trained by programs that know nothing of it."""

import jax
import numpy as np
import optax
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from diffusionrl_jax.distributed import mesh as mesh_rules
from diffusionrl_jax.experiments import algorithm, planning
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.monitoring.progress import PhaseTimer
from diffusionrl_jax.runs import export
from tests.models.mmdit.test_folder import open_pytorch

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_k_proj")


@pytest.fixture
def one_iteration(make_config, make_folder, monkeypatch):
    """A function of changes to the config: the parameters before and after, and the metrics."""
    all_devices = jax.devices()

    def run(devices=8, **changes):
        monkeypatch.setattr(jax, "devices", lambda *_: all_devices[:devices])
        # Small parameters are split as well.
        monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 2**10)
        # Plain steps show the gradient.
        monkeypatch.setattr(algorithm, "make_optimizer", lambda *_: optax.sgd(1.0))
        config = make_config(model=str(make_folder()), **changes)
        config, _ = planning.resolve(config)
        experiment = experiments.build(config)
        state = experiment.init_state()
        before = jax.device_get(state.params)
        step = make_train_step(experiment.algorithm, state, "split", PhaseTimer())
        state, metrics = step(state, experiment.frozen, experiment.batch(0))
        return before, jax.device_get(state.params), jax.device_get(metrics)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm.name": "policy_gradient"},
        {"algorithm.name": "nft", "sampler.eta": 0.0},
        {"algorithm.name": "nft", "sampler.eta": 0.0, "lora.rank": 4, "lora.targets": TARGETS},
    ],
    ids=["policy_gradient", "nft", "nft_lora"],
)
def test_an_iteration_on_eight_devices_is_that_on_one(one_iteration, changes):
    before, one, metrics = one_iteration(devices=1, **changes)
    blocks = {"mesh.fsdp": 4, "mesh.gather": "blocks", "remat": "blocks"}
    _, eight, of_eight = one_iteration(devices=8, **changes, **blocks)
    moved = jax.tree.map(np.subtract, one, before)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved))
    assert 1e-6 < largest < 1e2
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, eight)
    # Parameters are of order one, and gradients are summed in another order.
    assert max(jax.tree.leaves(difference)) <= 1e-6 + 1e-4 * largest
    for name, value in metrics.items():
        np.testing.assert_allclose(of_eight[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_trained_folder_and_lora_file_open_in_pytorch(
    make_config, make_folder, tmp_path, compilation_cache
):
    from diffusionrl_jax import main

    config = make_config(
        **{
            "model": str(make_folder()),
            "iterations": 1,
            "lora.rank": 32,
            "lora.alpha": 64.0,
            "lora.targets": TARGETS,
        }
    )
    config.evaluation.sets = type(config)()
    config.evaluation.best = type(config)()
    run = str(tmp_path / "run")
    main.train(config, run)
    whole, factors = (export.prepare_output(str(tmp_path / name)) for name in ("whole", "factors"))
    export.export_pipeline(run, whole, "float32")
    export.export_lora(run, factors, "float32")
    exported = StableDiffusion3Pipeline.from_pretrained(whole)
    adapted = open_pytorch(make_folder())
    before = {name: tensor.clone() for name, tensor in adapted.transformer.state_dict().items()}
    adapted.load_lora_weights(factors, weight_name="pytorch_lora_weights.safetensors")
    adapted.fuse_lora()
    adapted.unload_lora_weights()
    state = adapted.transformer.state_dict()
    changed = 0
    for name, tensor in exported.transformer.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=1e-6), name
        changed += not torch.equal(tensor, before[name])
    assert changed == 5 * 3  # Targets, and blocks.
    assert weights.read_safetensors(factors / "pytorch_lora_weights.safetensors")
