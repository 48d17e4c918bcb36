"""What a config names is fetched from a hub on loopback, whole or with one clear error."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import common, hps, image_reward
from diffusionrl_jax.data.prompt_sources import open_prompts
from diffusionrl_jax.evaluation.compare import compare_models
from diffusionrl_jax.experiments import fetching
from diffusionrl_jax.experiments.caching import cache_latents
from diffusionrl_jax.models import lora_files
from diffusionrl_jax.models.folders import hub as model_hub
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion
from diffusionrl_jax.rewards import detection, folders
from diffusionrl_jax.rewards.scorers import load_scorer
from tests import hub as stand_in

READ = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt")),
    *(f"{name}/config.json" for name in ("unet", "vae", "text_encoder")),
    *(f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae")),
    "text_encoder/model.safetensors",
}


def test_only_what_is_read_is_fetched_and_only_once(hub, cache, caplog):
    caplog.set_level("INFO", logger="absl")
    folder = model_hub.locate(stand_in.STABLE_DIFFUSION)
    others = {"tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"}
    others |= {"tokenizer/tokenizer.json", "feature_extractor/preprocessor_config.json"}
    assert READ <= hub.downloaded() <= READ | others
    assert "Fetching" in caplog.text and stand_in.STABLE_DIFFUSION in caplog.text
    load_stable_diffusion(folder)
    hub.requests.clear()
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert not hub.requests, "what is there is used without asking"


def test_weights_of_half_precision_in_the_cache_are_not_taken_for_the_whole(
    hub, cache, monkeypatch, caplog
):
    """As another program leaves them there, which has asked for no others."""
    folder = model_hub.locate(stand_in.STABLE_DIFFUSION)
    half = folder / stand_in.UNET.replace(".safetensors", ".fp16.safetensors")
    (folder / stand_in.UNET).rename(half)
    stand_in.go_offline(monkeypatch, hub, cache)
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert f"with {half.relative_to(folder)}, since the Hugging Face hub could not" in caplog.text
    stand_in.use(monkeypatch, hub.address, cache)
    hub.trouble = stand_in.at(stand_in.STABLE_DIFFUSION, 429)
    caplog.clear()
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert "429, too many requests" in caplog.text
    assert not (folder / stand_in.UNET).exists()
    hub.trouble = stand_in.at(stand_in.STABLE_DIFFUSION, None)
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert (folder / stand_in.UNET).exists()
    hub.requests.clear()
    model_hub.locate(stand_in.STABLE_DIFFUSION)
    assert not hub.requests


def test_everything_of_a_config(hub, cache, published, monkeypatch, caplog):
    caplog.set_level("INFO", logger="absl")
    everything = fetching.bring(stand_in.config_of())
    fetched = {each.named.kind: each for each in everything}
    assert set(fetched) == {"model", "hps_v2", "prompts"}
    for each in everything:
        assert each.held.revision == hub.revision(
            stand_in.DIFFUSIONDB if each.named.kind == "prompts" else each.held.repository
        )
    assert not {"HPS_v2_compressed.pt", "pytorch_model.bin"} & hub.downloaded()
    # The converted folder holds the very tensors of the pickle.
    folder = fetched["hps_v2"].held.folder
    written = stand_in.weights.read_safetensors(folder / "model.safetensors", upcast=False)
    pickle = published[stand_in.HPS] / "HPS_v2.1_compressed.pt"
    expected = stand_in.torch.load(pickle, weights_only=True)["state_dict"]
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value.numpy())
    stand_in.go_offline(monkeypatch, hub, cache)
    caplog.clear()
    assert fetching.bring(stand_in.config_of()) == everything
    assert "Converting" not in caplog.text


def test_image_reward_with_the_tokenizer_of_bert(hub, cache):
    config = stand_in.config_of(image_reward)
    by_kind = {each.named.kind: each.held for each in fetching.bring(config)}
    names = {path.name for path in by_kind["image_reward"].folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "vocab.txt"}
    reward, _ = load_scorer(config.tasks.image_reward.scorer, 1)
    assert reward.prepare(["a cat"])["input_ids"].shape == (1, reward.max_tokens)


def test_a_repository_that_has_moved(hub, cache):
    hub.moved = {stand_in.IMAGE_REWARD: "zai-org/ImageReward"}
    hub.repositories["zai-org/ImageReward"] = hub.repositories.pop(stand_in.IMAGE_REWARD)
    held = folders.hold("image_reward", stand_in.IMAGE_REWARD)
    assert held.revision == hub.revision("zai-org/ImageReward")


def test_an_aesthetic_head_is_put_on_clip(cache, monkeypatch, tmp_path):
    head, clip = tmp_path / "head", tmp_path / "clip"
    for folder in (head, clip):
        folder.mkdir()
    stand_in.add_aesthetic(head, clip)
    with stand_in.serve({stand_in.AESTHETIC: head, stand_in.CLIP: clip}) as server:
        stand_in.use(monkeypatch, server.address, cache)
        scorer = common.make_scorer("aesthetic", stand_in.AESTHETIC)
        _, params = load_scorer(scorer, 1)
    head_state = stand_in.torch.load(head / "aesthetic-model.pth", weights_only=True)
    (first, *_) = (value for name, value in head_state.items() if name == "layers.0.weight")
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == first.T.shape]
    assert any(np.array_equal(kernel, first.T.numpy()) for kernel in kernels)


def test_what_another_reward_has_left_without_a_tokenizer_gets_one(cache, monkeypatch, tmp_path):
    """The aesthetic head needs CLIP's image tower alone, fairness its tokenizer, too."""
    head, clip = tmp_path / "head", tmp_path / "clip"
    for folder in (head, clip):
        folder.mkdir()
    stand_in.add_aesthetic(head, clip)
    for name in folders.CLIP_TOKENIZER_FILES:
        (clip / name).write_text("{}")
    with stand_in.serve({stand_in.AESTHETIC: head, stand_in.CLIP: clip}) as server:
        stand_in.use(monkeypatch, server.address, cache)
        folders.hold("aesthetic", stand_in.AESTHETIC)
        assert not set(folders.CLIP_TOKENIZER_FILES) & server.downloaded()
        held = folders.hold("statistical_parity", stand_in.CLIP)
        assert set(folders.CLIP_TOKENIZER_FILES) < set(held.files)
        asked = len(server.requests)
        assert folders.hold("statistical_parity", stand_in.CLIP) == held
        assert len(server.requests) == asked


def test_a_detector_that_is_published_as_a_pickle(cache, monkeypatch, tmp_path):
    folder = tmp_path / "owl_vit"
    folder.mkdir()
    stand_in.add_owl_vit(folder)
    few = lambda split: ("apple", "cake", "fox")
    monkeypatch.setattr(detection.word_lists, "objects", few)
    with stand_in.serve({stand_in.OWL_VIT: folder}) as server:
        stand_in.use(monkeypatch, server.address, cache)
        reward, params = load_scorer(common.make_scorer("detection", stand_in.OWL_VIT), 1)
    assert reward.objects == few("all")
    assert len(params["query_embeddings"]) == 3


def test_a_lora_file(cache, published, monkeypatch, tmp_path):
    folder = tmp_path / "style"
    folder.mkdir()
    save_file({"a": np.ones((2, 3), np.float32)}, folder / "my_style.safetensors")
    config = stand_in.config_of()
    config.lora.start = "me/style"
    with stand_in.serve(published | {"me/style": folder}) as server:
        stand_in.use(monkeypatch, server.address, cache)
        overrides = fetching.copy(fetching.bring(config), str(tmp_path / "output"))
        file = lora_files.locate(config.lora.start, "config.lora.start")
        assert file.read_bytes() == (folder / "my_style.safetensors").read_bytes()
    monkeypatch.undo()
    stand_in.huggingface_hub.utils.reset_sessions()
    (value,) = [flag for flag in overrides if flag.startswith("--config.lora.start=")]
    config.lora.start = value.partition("=")[2]
    assert lora_files.locate(config.lora.start, "config.lora.start").parent.name == "me--style"
    (named,) = [one for one in fetching.list_named(config) if one.kind == fetching.LORA]
    assert named.fields == ("config.lora.start",)
    config.lora.start = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.lora.start=.*there is no .*nowhere"):
        fetching.bring(config)


def test_every_part_of_a_sum_is_named():
    config = stand_in.config_of()
    part = common.make_scorer("hps_v2", "somebody/else")
    config.tasks.hps.scorer = common.make_weighted_sum(people=(part, 1.0))
    (named,) = [each for each in fetching.list_named(config) if each.name == "somebody/else"]
    assert named.fields == ("config.tasks.hps.scorer.options.scorers.people.path",)


def test_processes_must_have_the_same_revisions(hub, cache, monkeypatch):
    apart = lambda values: np.stack([values, values + 1])
    monkeypatch.setattr(fetching.processes, "gather", apart)
    with pytest.raises(ValueError, match="different revisions"):
        fetching.bring(stand_in.config_of())


def test_processes_must_have_the_same_files(hub, cache, monkeypatch):
    digests = []
    monkeypatch.setattr(
        fetching.processes, "gather", lambda values: digests.append(int(values[0])) or values
    )
    fetched = fetching.bring(stand_in.config_of())
    model = next(each for each in fetched if each.named.kind == fetching.MODEL)
    for files in (model.held.files[::-1], model.held.files[1:]):
        held = dataclasses.replace(model.held, files=files)
        others = [each for each in fetched if each is not model]
        place = fetched.index(model)
        others.insert(place, dataclasses.replace(model, held=held))
        fetching._check_same_everywhere(others)
    whole, reversed_, fewer = digests
    assert whole == reversed_ != fewer


def test_data_that_are_missing_are_listed_with_all_else(hub, cache, tmp_path):
    config = stand_in.config_of()
    config.model = "me/nothing"
    config.pretraining.weight = 1.0
    config.pretraining.pictures = f"tfds:dragons?data_dir={tmp_path}"
    config.algorithm.name = "dpo_offline"
    config.algorithm.dpo_offline.pairs = str(tmp_path / "pairs.parquet")
    config.tasks.hps.prompts = f"array_record:{tmp_path}/no_prompts"
    with pytest.raises(FileNotFoundError, match="Several things are missing") as caught:
        fetching.bring(config)
    for part in (
        "me/nothing is no folder here",
        "config.pretraining.pictures: 'tfds:dragons",
        "tensorflow-datasets finds no 'dragons'",
        f"config.algorithm.dpo_offline.pairs: there is no {tmp_path}/pairs.parquet: name",
        f"config.tasks.hps.prompts: there is no folder {tmp_path}/no_prompts",
    ):
        assert part in str(caught.value)
    # Another method reads no pairs.
    config.algorithm.name = "policy_gradient"
    with pytest.raises(FileNotFoundError) as caught:
        fetching.bring(config)
    assert "pairs" not in str(caught.value)


def test_a_login_node_needs_no_pictures(hub, cache, tmp_path):
    config = stand_in.config_of()
    config.pretraining.weight = 1.0
    config.pretraining.pictures = f"array_record:{tmp_path}/no_pictures"
    assert len(fetching.bring(config, only_hub=True)) == 4
    # Nor does who only evaluates.
    assert len(fetching.bring(config, for_training=False)) == 3


def test_prompts_are_those_of_the_published_table(hub, published):
    name = "poloclub/diffusiondb/metadata.parquet?held_out=2000&split=test"
    ours = open_prompts(f"hub:{name}", 0)
    path = published[stand_in.DIFFUSIONDB] / "metadata.parquet"
    local = open_prompts(f"{path}?held_out=2000&split=test", 0)
    assert list(ours.prompts) == list(local.prompts)
    assert len(ours.prompts) == 2000
    with pytest.raises(ValueError, match="is not hub:OWNER/NAME/FILE"):
        open_prompts("hub:poloclub", 0)
    with pytest.raises(FileNotFoundError, match=r"has no no\.parquet"):
        open_prompts("hub:poloclub/diffusiondb/no.parquet", 0)


def test_without_a_network_one_message_lists_all_that_is_missing(hub, cache, monkeypatch, tmp_path):
    stand_in.go_offline(monkeypatch, hub, cache)
    config = stand_in.config_of()
    config.pretraining.weight = 1.0
    config.pretraining.pictures = f"array_record:{tmp_path}/no_pictures"
    with pytest.raises(FileNotFoundError) as caught:
        fetching.bring(config)
    message = str(caught.value)
    for part in (
        f"{stand_in.STABLE_DIFFUSION} (about 5.2 GB)",
        f"{stand_in.HPS} (about 2.0 GB)",
        f"{stand_in.CLIP} (vocab.json, merges.txt)",
        "poloclub/diffusiondb (metadata.parquet) (about 0.2 GB)",
        "HF_HUB_OFFLINE",
        "python -m diffusionrl_jax.fetch",
        "config.pretraining.pictures: there is no folder",
    ):
        assert part in message
    assert "\n" not in message


def test_other_programs_list_all_that_is_missing_too(hub, cache, monkeypatch, tmp_path):
    stand_in.go_offline(monkeypatch, hub, cache)
    config = hps.get_config()
    with pytest.raises(FileNotFoundError, match=f"{stand_in.STABLE_DIFFUSION}.*diffusiondb"):
        cache_latents(config, str(tmp_path / "latents"))
    other = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with pytest.raises(FileNotFoundError, match=f"{stand_in.STABLE_DIFFUSION}.*{other}"):
        compare_models(config, [("a", other, "")], str(tmp_path))


def test_a_pickle_without_pytorch_is_refused_before_anything_is_fetched(hub, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FileNotFoundError, match="is published as a pickle.*the extra `torch`"):
        fetching.bring(stand_in.config_of())
    assert not any(name.endswith((".pt", ".safetensors")) for name in hub.downloaded())


def test_a_folder_of_safetensors_is_taken_as_it_is(hub, cache, published):
    clip = published[stand_in.CLIP]
    shutil.copy(published[stand_in.HPS] / "config.json", clip)
    try:
        held = folders.hold("pick_score", stand_in.CLIP)
    finally:
        (clip / "config.json").unlink()
    assert set(held.files) == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}


def test_what_was_fetched_is_copied_and_trained_from(hub, cache, tmp_path, monkeypatch):
    config = stand_in.config_of()
    output = tmp_path / "output"
    overrides = fetching.copy(fetching.bring(config), str(output))
    changes = dict(flag.removeprefix("--config.").split("=", 1) for flag in overrides)
    assert set(changes) == {
        "model",
        "tasks.hps.scorer.path",
        "tasks.hps.prompts",
        "evaluation.scorers.hps.path",
        "evaluation.sets.hps.prompts",
    }
    shutil.rmtree(cache.parent)
    stand_in.go_offline(monkeypatch, hub, cache)
    config.update_from_flattened_dict(changes)
    assert fetching.bring(config) == []
    load_stable_diffusion(config.model)
    load_scorer(config.tasks.hps.scorer, 1)
    mark = json.loads((pathlib.Path(config.model) / fetching.MARK_FILE).read_text())
    assert mark["files"].keys() >= READ


def test_an_interrupted_copy_leaves_nothing_half_written(hub, cache, bucket, monkeypatch):
    fetched = fetching.bring(stand_in.config_of())
    copy, started = shutil.copyfileobj, []

    def interrupted(read, written, size):
        if started:
            written.write(read.read(1))
            raise KeyboardInterrupt
        started.append(copy(read, written, size))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetching.copy(fetched, "gs://bucket/fetched")
    assert len(bucket) == 1
    fetching.copy(fetched, "gs://bucket/fetched")
    copied = {path.rpartition("/")[2]: len(file.getvalue()) for path, file in bucket.items()}
    assert copied["metadata.parquet"] == fetched[-1].held.size


@pytest.mark.parametrize("module", [hps, image_reward])
def test_a_bucket_holds_what_was_fetched(hub, cache, bucket, caplog, module):
    config = stand_in.config_of(module)
    fetched = fetching.bring(config)
    overrides = fetching.copy(fetched, "gs://bucket/fetched")
    config.update_from_flattened_dict(
        dict(flag.removeprefix("--config.").split("=", 1) for flag in overrides)
    )
    assert config.model.startswith("gs://bucket/fetched/")
    load_stable_diffusion(config.model)
    for task in config.tasks.values():
        load_scorer(task.scorer, 1)
        assert len(open_prompts(task.prompts, 0).prompts) == 100
    before = dict(bucket)
    caplog.set_level("INFO", logger="absl")
    fetching.copy(fetched, "gs://bucket/fetched")
    assert bucket == before and "Copying" not in caplog.text
