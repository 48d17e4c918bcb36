"""The model that a config names is opened on its mesh, with the LoRA that it starts from."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from configs import common
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import loading
from diffusionrl_jax.experiments.loading import load_policy, network_sharding, start_factors
from tests.algorithms import toy

RANK = 2


def write_lora(path, denoiser, module, inputs, outputs):
    """Writes a file of PyTorch's factors without an alpha, which is then the rank: what it adds."""
    rng = np.random.default_rng(0)
    down, up = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((RANK, inputs), (outputs, RANK))
    )
    names = (f"{denoiser}.{module}.{name}.weight" for name in ("lora_A", "lora_B"))
    save_file(dict(zip(names, (down, up), strict=True)), path)
    return (up @ down).T


def test_the_denoiser_is_split_as_what_is_trained():
    """The other networks are whole unless they are to be split too."""
    mesh, large = make_mesh(4), {"kernel": jax.ShapeDtypeStruct((512, 1024), np.float32)}
    networks = {"unet": large, "vae": large, "text_encoder": large}
    split, whole = PartitionSpec(None, "fsdp"), PartitionSpec()
    for splits, others in ((False, whole), (True, split)):
        found = network_sharding(mesh, splits, networks)
        specs = {name: leaf["kernel"].spec for name, leaf in found.items()}
        assert specs == {"unet": split, "vae": others, "text_encoder": others}


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match="config.model is empty: name a diffusers folder or a hub"):
        load_policy(common.get_config())


@pytest.mark.parametrize(("width", "warned"), [(2**19, False), (2**19 + 1, True)])
def test_a_split_that_leaves_most_of_the_denoiser_whole_is_warned_of(
    width, warned, monkeypatch, caplog
):
    params = {"denoiser": {"kernel": jax.ShapeDtypeStruct((1, width), np.float32)}}
    monkeypatch.setattr(loading, "load_model", lambda path, **_: (toy.Toy(), params))
    config = common.get_config()
    config.model, config.mesh.fsdp = "the/model", 8
    load_policy(config)
    words = "config.mesh.fsdp=8 divides so few dimensions of the/model that most"
    assert (words in caplog.text) == warned


def test_a_split_over_several_slices_is_warned_of(monkeypatch, caplog):
    params = {"denoiser": {"bias": np.zeros(8, np.float32)}}
    monkeypatch.setattr(loading, "load_model", lambda path, **_: (toy.Toy(), params))
    config = common.get_config()
    config.model, config.mesh.fsdp = "the/model", 8
    load_policy(config)
    assert not caplog.text
    monkeypatch.setattr(loading, "spans_slices", lambda mesh: True)
    load_policy(config)
    assert "config.mesh.fsdp=8 splits parameters over several slices" in caplog.text


def test_a_lora_is_merged_into_the_model_that_it_is_of(tmp_path, monkeypatch):
    file, opened = tmp_path / "lora.safetensors", []
    added = write_lora(file, "denoiser", "to_q", 8, 6)
    kernels = {name: {"kernel": np.ones((8, 6), np.float32)} for name in ("to_q", "to_v")}

    def load_model(path, **_):
        opened.append(path)
        return toy.Toy(), {"denoiser": kernels}

    monkeypatch.setattr(loading, "load_model", load_model)
    config = common.get_config()
    config.model, config.lora.start, config.mesh.fsdp = "the/model", str(file), 1
    for path, expected in ((None, 1 + added), ("the/model", 1 + added), ("another", 1)):
        denoiser = load_policy(config, path).denoiser
        np.testing.assert_allclose(denoiser["to_q"]["kernel"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(denoiser["to_v"]["kernel"], 1)
    assert opened == ["the/model", "the/model", "another"]


@pytest.fixture
def starting(tmp_path):
    """A function of LoRA's fields: the config and a policy of one kernel; and what a file adds."""
    file = tmp_path / "lora.safetensors"
    added = write_lora(file, "unet", "to_q", 8, 6)
    kernels = {name: {"kernel": np.zeros((8, 6), np.float32)} for name in ("to_q", "to_v")}
    model = types.SimpleNamespace(denoiser_name="unet")
    policy = types.SimpleNamespace(model=model, denoiser=kernels)

    def make(**fields):
        config = common.get_config()
        config.lora.update({"start": str(file), "targets": ("to_q",)} | fields)
        return config, policy

    return make, added


@pytest.mark.parametrize("alpha", [2.0, 7.0])
def test_training_begins_with_what_the_file_adds(starting, alpha):
    make, added = starting
    factors = start_factors(*make(rank=RANK, alpha=alpha))
    (name,) = factors
    down, up = (factors[name][kind]["kernel"] for kind in ("lora_A", "lora_B"))
    np.testing.assert_allclose(alpha / RANK * down @ up, added, rtol=1e-5, atol=1e-6)


def test_factors_are_drawn_where_no_file_is_begun_with(starting):
    make, _ = starting
    assert start_factors(*make(rank=RANK, start="")) is None
    assert start_factors(*make(rank=0)) is None  # It is merged.


@pytest.mark.parametrize("fields", [{"rank": 3}, {"rank": RANK, "targets": ("to_q", "to_v")}])
def test_a_file_of_another_lora_is_refused(starting, fields):
    make, _ = starting
    with pytest.raises(ValueError, match=r"has rank 2 and changes 1 modules, other .*lora.rank=2"):
        start_factors(*make(**fields))
