"""What a config names is fetched from a hub on loopback, whole or with one clear error."""

import concurrent.futures
import dataclasses
import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import common, hps, image_reward
from diffusionrl_jax.data import hub_files
from diffusionrl_jax.data.prompt_sources import open_prompts
from diffusionrl_jax.experiments import fetching
from diffusionrl_jax.models import lora_files
from diffusionrl_jax.models.folders import hub as model_hub
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion
from diffusionrl_jax.rewards import conversion, detection, folders
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
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tiny_model, tmp_path_factory):
    """Repository -> folder; copies are changed."""
    return stand_in.make_repositories(tmp_path_factory.mktemp("published"), tiny_model)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(published, cache, monkeypatch):
    """The hub, as this process' one, with an empty cache."""
    with stand_in.serve(published) as server:
        stand_in.use(monkeypatch, server.address, cache)
        yield server
    monkeypatch.undo()
    stand_in.huggingface_hub.utils.reset_sessions()


def at(name, trouble):
    """Trouble wherever a path has a name in it."""
    return lambda path: trouble if name in path else None


def config_of(module=hps):
    config = module.get_config()
    config.pretraining.weight = 0.0
    return config


def go_offline(monkeypatch, hub, cache):
    stand_in.use(monkeypatch, hub.address, cache, offline=True)


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
    half = folder / UNET.replace(".safetensors", ".fp16.safetensors")
    (folder / UNET).rename(half)
    go_offline(monkeypatch, hub, cache)
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert f"with {half.relative_to(folder)}, since the Hugging Face hub could not" in caplog.text
    stand_in.use(monkeypatch, hub.address, cache)
    hub.trouble = at(stand_in.STABLE_DIFFUSION, 429)
    caplog.clear()
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert "429, too many requests" in caplog.text
    assert not (folder / UNET).exists()
    hub.trouble = at(stand_in.STABLE_DIFFUSION, None)
    assert model_hub.locate(stand_in.STABLE_DIFFUSION) == folder
    assert (folder / UNET).exists()
    hub.requests.clear()
    model_hub.locate(stand_in.STABLE_DIFFUSION)
    assert not hub.requests


def test_everything_of_a_config(hub, cache, published, monkeypatch, caplog):
    caplog.set_level("INFO", logger="absl")
    everything = fetching.bring(config_of())
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
    go_offline(monkeypatch, hub, cache)
    caplog.clear()
    assert fetching.bring(config_of()) == everything
    assert "Converting" not in caplog.text


def test_image_reward_with_the_tokenizer_of_bert(hub, cache):
    config = config_of(image_reward)
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
    config = config_of()
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
    config = config_of()
    part = common.make_scorer("hps_v2", "somebody/else")
    config.tasks.hps.scorer = common.make_weighted_sum(people=(part, 1.0))
    (named,) = [each for each in fetching.list_named(config) if each.name == "somebody/else"]
    assert named.fields == ("config.tasks.hps.scorer.options.scorers.people.path",)


def test_processes_must_have_the_same_revisions(hub, cache, monkeypatch):
    apart = lambda values: np.stack([values, values + 1])
    monkeypatch.setattr(fetching.processes, "gather", apart)
    with pytest.raises(ValueError, match="different revisions"):
        fetching.bring(config_of())


def test_processes_must_have_the_same_files(hub, cache, monkeypatch):
    digests = []
    monkeypatch.setattr(
        fetching.processes, "gather", lambda values: digests.append(int(values[0])) or values
    )
    fetched = fetching.bring(config_of())
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
    config = config_of()
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
    config = config_of()
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
    go_offline(monkeypatch, hub, cache)
    config = config_of()
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


def test_nobody_answers(hub, cache, monkeypatch):
    stand_in.use(monkeypatch, "http://127.0.0.1:9", cache)
    with pytest.raises(FileNotFoundError, match="hub can't be reached .*diffusionrl_jax.fetch"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)


STATUSES = {
    401: "shows no such model .*hf auth login.* HF_TOKEN",
    403: "is gated .*accept its terms .*hf auth login.* HF_TOKEN",
    404: "shows no such model .*check the id",
    429: "429, too many requests: wait",
    500: "fails at .* with 500: start the same command again later",
}


@pytest.mark.parametrize(
    ("status", "where"),
    [
        *((status, "/api/") for status in STATUSES),
        *((status, UNET) for status in (404, 429)),
        # huggingface_hub tries for half a minute.
        pytest.param(500, UNET, marks=pytest.mark.slow),
    ],
)
def test_a_hub_that_refuses(hub, cache, status, where):
    hub.trouble = at(where, status)
    with pytest.raises(OSError, match=STATUSES[status]) as caught:
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    assert "\n" not in str(caught.value)
    hub.trouble = at(where, None)
    model_hub.locate(stand_in.STABLE_DIFFUSION)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (stand_in.CUT, "broke off .*the same command again, and it goes on"),
        (stand_in.SHORT, "broke off .*the same command again, and it goes on"),
        (stand_in.DAMAGED, "arrived damaged 2 times"),
    ],
)
def test_a_file_that_does_not_arrive_whole(hub, cache, monkeypatch, trouble, message):
    hub.trouble = at(f"/cdn/{stand_in.STABLE_DIFFUSION}/-/{UNET}", trouble)
    with pytest.raises(OSError, match=f"{UNET} .*{message}"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    # Nor is it taken for whole later.
    go_offline(monkeypatch, hub, cache)
    with pytest.raises(FileNotFoundError, match="nor whole in the cache"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    stand_in.use(monkeypatch, hub.address, cache)
    hub.trouble = at(UNET, None)
    hub.requests.clear()
    load_stable_diffusion(model_hub.locate(stand_in.STABLE_DIFFUSION))
    assert {name for name in hub.downloaded() if name.endswith(".safetensors")} == {UNET}
    resumed = any(first for _, path, first in hub.requests if path.startswith("/cdn/"))
    assert resumed == (trouble != stand_in.DAMAGED)


def test_a_file_that_is_damaged_in_the_cache_is_fetched_anew(hub, cache, caplog):
    folder = model_hub.locate(stand_in.STABLE_DIFFUSION)
    blob = pathlib.Path(folder / UNET).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    model_hub.locate(stand_in.STABLE_DIFFUSION)
    assert "is damaged" in caplog.text
    assert blob.read_bytes() == content


def test_a_converted_folder_that_is_damaged_is_made_anew(hub, cache):
    held = folders.hold("hps_v2", stand_in.HPS)
    path = held.folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert folders.hold("hps_v2", stand_in.HPS) == held
    assert path.read_bytes() == content


def test_a_conversion_that_was_killed_is_made_anew(hub, cache, monkeypatch):
    def killed(*arguments, **options):
        convert(*arguments, **options)
        raise KeyboardInterrupt

    convert = conversion.convert
    monkeypatch.setattr(conversion, "convert", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.hold("hps_v2", stand_in.HPS)
    monkeypatch.setattr(conversion, "convert", convert)
    assert (folders.hold("hps_v2", stand_in.HPS).folder / folders.SOURCE_FILE).exists()


def test_conversions_beside_each_other_take_turns(hub, cache, monkeypatch):
    """None removes what another is writing."""
    write, running, most = conversion._write, [], []

    def slow(*arguments):
        running.append(arguments)
        most.append(len(running))
        write(*arguments)
        time.sleep(0.5)  # The other one, if it does not wait, begins meanwhile.
        running.pop()

    monkeypatch.setattr(conversion, "_write", slow)
    wanted = [("hps_v2", stand_in.HPS), ("image_reward", stand_in.IMAGE_REWARD)]
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:
        held = list(pool.map(lambda each: folders.hold(*each), wanted))
    assert [each.repository for each in held] == [stand_in.HPS, stand_in.IMAGE_REWARD]
    assert most == [1, 1]


def test_a_pickle_without_pytorch_is_refused_before_anything_is_fetched(hub, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FileNotFoundError, match="is published as a pickle.*the extra `torch`"):
        fetching.bring(config_of())
    assert not any(name.endswith((".pt", ".safetensors")) for name in hub.downloaded())


def test_a_folder_of_safetensors_is_taken_as_it_is(hub, cache, published):
    clip = published[stand_in.CLIP]
    shutil.copy(published[stand_in.HPS] / "config.json", clip)
    try:
        held = folders.hold("pick_score", stand_in.CLIP)
    finally:
        (clip / "config.json").unlink()
    assert set(held.files) == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}


def test_a_disk_that_is_full(hub, cache, monkeypatch):
    usage = lambda folder: shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(hub_files.shutil, "disk_usage", usage)
    with pytest.raises(OSError, match="has 0.0 MB free, and .* make room.*HF_HOME"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)


def test_what_was_fetched_is_copied_and_trained_from(hub, cache, tmp_path, monkeypatch):
    config = config_of()
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
    go_offline(monkeypatch, hub, cache)
    config.update_from_flattened_dict(changes)
    assert fetching.bring(config) == []
    load_stable_diffusion(config.model)
    load_scorer(config.tasks.hps.scorer, 1)
    mark = json.loads((pathlib.Path(config.model) / fetching.MARK_FILE).read_text())
    assert mark["files"].keys() >= READ


@pytest.mark.parametrize("module", [hps, image_reward])
def test_a_bucket_holds_what_was_fetched(hub, cache, bucket, caplog, module):
    config = config_of(module)
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
