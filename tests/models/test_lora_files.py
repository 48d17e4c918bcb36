"""LoRA files that diffusers has written, begun with: merged, or trained further."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.models import lora_files
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.lora import FILE_NAME
from diffusionrl_jax.models.lora_files import METADATA

TARGETS = ("to_q", "to_v")


@pytest.fixture(scope="module")
def theirs(tiny_model, tmp_path_factory):
    """A pipeline whose UNet has random factors by PEFT, and the folder of its LoRA file."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    torch.manual_seed(0)
    fields = {"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS)}
    pipeline.unet.add_adapter(LoraConfig(**fields, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    pipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
    )
    return pipeline, folder


@pytest.fixture
def starting(make_config, theirs):
    def make(start=None, **changes):
        config = make_config(**changes)
        config.lora.update(start=str(start or theirs[1]), targets=TARGETS)
        return planning.resolve(config)[0]

    return make


def fused(theirs, folder=None):
    """The UNet's parameters as PyTorch merges them, of a file that diffusers wrote or another."""
    pipeline, folder = theirs[0], folder or theirs[1]
    pipeline = StableDiffusionPipeline.from_pretrained(
        pipeline.config._name_or_path, safety_checker=None
    )
    pipeline.load_lora_weights(folder, weight_name=FILE_NAME)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {name: value.numpy() for name, value in pipeline.unet.state_dict().items()}


def test_a_file_is_merged_as_pytorch_merges_it(theirs, starting):
    expected = fused(theirs)
    found = weights.to_pytorch(load_policy(starting()).denoiser)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    plain = starting()
    plain.lora.start = ""
    untouched = weights.to_pytorch(load_policy(plain).denoiser)
    assert max(np.abs(untouched[name] - expected[name]).max() for name in expected) > 1e-2


@pytest.mark.parametrize("alpha", [6.0, 16.0])
def test_a_file_is_trained_further(theirs, starting, alpha):
    """The first policy is the file's, whatever alpha the config has."""
    made = experiments.build(
        starting(theirs[1] / FILE_NAME, **{"lora.rank": 3, "lora.alpha": alpha})
    )
    state = made.init_state()
    expected = fused(theirs)
    found = weights.to_pytorch(jax.device_get(made.merge(state.params)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def kohya(tensors):
    """In the names of kohya's trainer, with an alpha, which one module lacks."""
    kinds = {"lora_A": "lora_down", "lora_B": "lora_up"}
    named = {}
    for name, value in tensors.items():
        module, kind, _ = name.removeprefix("unet.").rsplit(".", 2)
        named[f"lora_unet_{module.replace('.', '_')}.{kinds[kind]}.weight"] = value
    modules = sorted({name.partition(".")[0] for name in named})
    return named | {f"{module}.alpha": np.array(1.5, np.float32) for module in modules[1:]}


def with_another_alpha(tensors):
    *_, last = tensors = kohya(tensors)
    return tensors | {last: np.array(2.5, np.float32)}


@pytest.fixture(scope="module")
def several(tiny_model, tmp_path_factory):
    """Files of several ranks and alphas by PEFT, with and without its metadata."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    torch.manual_seed(1)
    patterns = {"rank_pattern": {"to_v": 2}, "alpha_pattern": {"attn1.to_q": 5.0, "attn.*to_v": 1}}
    fields = {"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS)} | patterns
    pipeline.unet.add_adapter(LoraConfig(**fields, init_lora_weights=False))
    state = get_peft_model_state_dict(pipeline.unet)
    config = pipeline.unet.peft_config["default"].to_dict()
    folders = {name: tmp_path_factory.mktemp(name) for name in ("patterns", "plain", "kohya")}
    options = {"patterns": {"unet_lora_adapter_metadata": config}}
    for name, folder in folders.items():
        pipeline.save_lora_weights(folder, state, **options.get(name, {}))
    file = folders["kohya"] / FILE_NAME
    save_file(kohya(load_file(file)), file)
    return folders


@pytest.mark.parametrize(
    "kind", [pytest.param("patterns", marks=pytest.mark.slow), "plain", "kohya"]
)
def test_several_ranks_and_alphas_are_merged_as_pytorch_merges_them(
    theirs, several, starting, kind
):
    expected = fused(theirs, several[kind])
    found = weights.to_pytorch(load_policy(starting(several[kind])).denoiser)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    with pytest.raises(ValueError, match=r"have the ranks \[2, 3\].*config.lora.rank=0"):
        experiments.build(starting(several[kind], **{"lora.rank": 3}))


def test_a_file_of_kohyas_is_trained_further(theirs, starting, tmp_path):
    changed(theirs, tmp_path, kohya)
    made = experiments.build(starting(tmp_path, **{"lora.rank": 3, "lora.alpha": 2.0}))
    expected = fused(theirs, tmp_path)
    found = weights.to_pytorch(jax.device_get(made.merge(made.init_state().params)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_a_scale_by_the_root_of_the_rank(theirs, starting, tmp_path):
    fields = {"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS), "use_rslora": True}
    fields |= {"rank_pattern": {}, "alpha_pattern": {}}
    metadata = {METADATA: json.dumps({f"unet.{name}": value for name, value in fields.items()})}
    changed(theirs, tmp_path, metadata=metadata | {"format": "pt"})
    expected = fused(theirs, tmp_path)
    found = weights.to_pytorch(load_policy(starting(tmp_path)).denoiser)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_which_file_of_a_repository_is_read():
    need = lora_files.describe("me/style")
    read = lambda *names: need.choose(names, json.loads)
    assert read("README.md", FILE_NAME, "other.safetensors") == [FILE_NAME]
    assert read("README.md", "a/b.safetensors", "style.safetensors") == ["style.safetensors"]
    for names in ((), ("a.safetensors", "b.safetensors"), ("pytorch_lora_weights.bin",)):
        with pytest.raises(FileNotFoundError, match=f"me/style .* has no {FILE_NAME}"):
            read(*names)


def changed(theirs, tmp_path, tensors=lambda tensors: tensors, metadata=None):
    path = tmp_path / FILE_NAME
    save_file(tensors(load_file(theirs[1] / FILE_NAME)), path, metadata or {})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: found | {"text_encoder.q.lora_A.weight": found.popitem()[1]},
            "is no factor",
        ),
        (lambda found: {f"{name}.alpha": value for name, value in found.items()}, "is no factor"),
        (
            lambda found: {name: v for name, v in found.items() if "lora_A" in name},
            "lacks its second",
        ),
        (
            lambda found: {name: v for name, v in kohya(found).items() if "alpha" in name},
            "has no factors",
        ),
        (lambda found: with_another_alpha(found), r"have the alphas \[1.5, 2.5\]"),
    ],
)
def test_what_does_not_fit_is_refused(theirs, starting, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_policy(starting(changed(theirs, tmp_path, change)))


def test_other_ranks_and_scales(theirs, starting, tmp_path):
    with pytest.raises(ValueError, match="has rank 3 .* set config.lora.rank=3"):
        experiments.build(starting(**{"lora.rank": 4}))
    with pytest.raises(ValueError, match="the alpha of .*to_q is not above 0"):
        wrong = {METADATA: json.dumps({"unet.alpha_pattern": {"to_q": 0}})}
        load_policy(starting(changed(theirs, tmp_path, metadata=wrong)))
    with pytest.raises(ValueError, match=f"its {METADATA} are damaged"):
        load_policy(starting(changed(theirs, tmp_path, metadata={METADATA: "[]"})))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    run = tmp_path / "run@best"
    with pytest.raises(ValueError, match=f"export --checkpoint={run} --lora --output=DIR, and"):
        lora_files.locate(str(run), "config.lora.start")
    with pytest.raises(FileNotFoundError, match="there is no .*/nowhere"):
        load_policy(starting(tmp_path / "nowhere"))
