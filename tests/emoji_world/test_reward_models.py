"""Reward models as they begin, and as they are written for those who ship them."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from transformers import BertTokenizer

from diffusionrl_jax import assets
from diffusionrl_jax.emoji_world import emoji_model, reward_models

PATCHES = 64


def test_bert_knows_every_word_of_the_world_and_spells_all_others(tmp_path):
    reward_models.write_bert_vocabulary(epath.Path(tmp_path))
    tokenizer = BertTokenizer.from_pretrained(str(tmp_path))
    prompts = emoji_model.world_prompts()
    for prompt in (*prompts[:100], *prompts[-20:]):
        assert tokenizer.tokenize(prompt) == prompt.split()
    assert tokenizer.tokenize("A qzx") == ["a", "q", "##z", "##x"]
    assert tuple(tokenizer.convert_ids_to_tokens(range(5))) == reward_models.SPECIAL_TOKENS
    assert tokenizer.pad_token_id == 0


def test_first_parameters_have_unit_gain_and_known_places(hasty):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    template = {
        "dense": {"kernel": shape(400, 300), "bias": shape(7)},
        "conv": {"kernel": shape(3, 3, 40, 200)},
        "norm": {"scale": shape(5), "bias": shape(5)},
        "words": {"embedding": shape(200, 100)},
        "places": {"embedding": shape(PATCHES + 1, 16)},
    }
    found = jax.tree.map(np.asarray, reward_models.initial(jax.random.key(0), template))
    # Of 20,000 to 120,000 draws: standard errors below half a percent.
    for name, fan_in in (("dense", 400), ("conv", 3 * 3 * 40)):
        assert found[name]["kernel"].std() == pytest.approx(fan_in**-0.5, rel=0.02)
    assert found["words"]["embedding"].std() == pytest.approx(0.1, rel=0.03)
    np.testing.assert_array_equal(found["norm"]["scale"], 1)
    for name in ("dense", "norm"):
        np.testing.assert_array_equal(found[name]["bias"], 0)
    # Half of the sines and cosines of the row and of the column, behind the class token's zeros.
    places = 2 * found["places"]["embedding"]
    np.testing.assert_array_equal(places[0], 0)
    for row, column in ((0, 0), (3, 5), (7, 1)):
        waves = places[1 + 8 * row + column]
        angles = np.multiply.outer((row, column), (1, 1 / 2, 1 / 4, 1 / 8))
        expected = np.concatenate([[np.sin(angle), np.cos(angle)] for angle in angles]).ravel()
        np.testing.assert_allclose(waves, expected, atol=1e-5)


def random_like(template):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), template)


def tensors(folder):
    """Each tensor's shape and dtype, by its name, as safetensors itself reads them."""
    with safe_open(str(folder / "model.safetensors"), "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


@pytest.mark.parametrize("name", reward_models.BUILDERS)
def test_a_folder_is_like_the_shipped_one_and_is_read_again(name, tmp_path):
    folder = epath.Path(tmp_path)
    objective, save = reward_models.BUILDERS[name](folder)
    template = jax.eval_shape(objective.init, jax.random.key(0))["model"]
    params = random_like(template)
    save(params)
    shipped = assets.resolve(f"asset:emoji/{name}")
    assert tensors(folder) == tensors(shipped)
    config = lambda folder: json.loads((folder / "config.json").read_text())
    written, theirs = config(folder), config(shipped)
    measured = {"score_mean", "score_std"}  # Of the trained model.
    assert {key: written[key] for key in written.keys() - measured} == {
        key: theirs[key] for key in theirs.keys() - measured
    }
    assert {path.name for path in shipped.iterdir()} <= {path.name for path in folder.iterdir()}
    again = reward_models.load_params(folder, objective)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    # Kept as float16, of 11 bits.
    for ours, kept in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(kept, ours, rtol=2**-11, atol=1e-7)
