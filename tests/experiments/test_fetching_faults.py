"""A hub that fails, and files and conversions that are damaged: one clear error, or made anew."""

import concurrent.futures
import pathlib
import shutil
import time

import pytest

from diffusionrl_jax.data import hub_files
from diffusionrl_jax.models.folders import hub as model_hub
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion
from diffusionrl_jax.rewards import conversion, folders
from tests import hub as stand_in


def test_nobody_answers(hub, cache, monkeypatch):
    stand_in.use(monkeypatch, "http://127.0.0.1:9", cache)
    with pytest.raises(FileNotFoundError, match="hub can't be reached .*diffusionrl_jax.fetch"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)


STATUSES = {
    401: "shows no such model .*hf auth login.* HF_TOKEN",
    403: "refuses .* with 403 .*trouble.*: start the same command again later",
    stand_in.GATED: "is gated .*accept its terms .*hf auth login.* HF_TOKEN",
    stand_in.BAD_TOKEN: "does not know the token .*hf auth login.* HF_TOKEN",
    404: "shows no such model .*check the id",
    429: "429, too many requests: wait",
    500: "fails at .* with 500: start the same command again later",
}


@pytest.mark.parametrize(
    ("status", "where"),
    [
        *((status, "/api/") for status in STATUSES),
        *((status, stand_in.UNET) for status in (403, 404, 429)),
        # huggingface_hub tries for half a minute.
        pytest.param(500, stand_in.UNET, marks=pytest.mark.slow),
    ],
)
def test_a_hub_that_refuses(hub, cache, status, where):
    hub.trouble = stand_in.at(where, status)
    with pytest.raises(OSError, match=STATUSES[status]) as caught:
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    assert "\n" not in str(caught.value)
    hub.trouble = stand_in.at(where, None)
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
    hub.trouble = stand_in.at(f"/cdn/{stand_in.STABLE_DIFFUSION}/-/{stand_in.UNET}", trouble)
    with pytest.raises(OSError, match=f"{stand_in.UNET} .*{message}"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    # Nor is it taken for whole later.
    stand_in.go_offline(monkeypatch, hub, cache)
    with pytest.raises(FileNotFoundError, match="nor whole in the cache"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)
    stand_in.use(monkeypatch, hub.address, cache)
    hub.trouble = stand_in.at(stand_in.UNET, None)
    hub.requests.clear()
    load_stable_diffusion(model_hub.locate(stand_in.STABLE_DIFFUSION))
    assert {name for name in hub.downloaded() if name.endswith(".safetensors")} == {stand_in.UNET}
    resumed = any(first for _, path, first in hub.requests if path.startswith("/cdn/"))
    assert resumed == (trouble != stand_in.DAMAGED)


def test_a_file_that_is_damaged_in_the_cache_is_fetched_anew(hub, cache, caplog):
    folder = model_hub.locate(stand_in.STABLE_DIFFUSION)
    blob = pathlib.Path(folder / stand_in.UNET).resolve()
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


def test_a_disk_that_is_full(hub, cache, monkeypatch):
    usage = lambda folder: shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(hub_files.shutil, "disk_usage", usage)
    with pytest.raises(OSError, match="has 0.0 MB free, and .* make room.*HF_HOME"):
        model_hub.locate(stand_in.STABLE_DIFFUSION)
