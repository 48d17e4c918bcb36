"""Boxes against transformers' OwlViTForObjectDetection and Owlv2ForObjectDetection."""

import jax
import numpy as np
import pytest
import torch

from diffusionrl_jax.data.object_requests import NOUNS, make_requests
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.towers import owl_vit
from diffusionrl_jax.rewards.detection import PREPROCESSING
from diffusionrl_jax.rewards.requested_objects import RequestedObjects


@pytest.mark.parametrize("name", [pytest.param("owl_vit", marks=pytest.mark.slow), "owlv2"])
def test_boxes_match_transformers(name, make_original, parity):
    original, folder = make_original(name)
    # Random heads of the usual size move no box by much. Files are in float16.
    with torch.no_grad():
        original.model.box_head.dense2.weight.mul_(32)
    original.write(folder)
    reward, params = RequestedObjects.load(str(folder))
    images = np.stack(parity.make_pictures(((32, 32),) * 3)).astype(np.float32) / 255
    model = reward.detection.model
    pixels = PREPROCESSING[model.model_type](images, model.vision.config.image_size)
    found = owl_vit.boxes(params, owl_vit.patch_features(model, params, pixels))
    with torch.no_grad():
        ids = torch.tensor([[1, 2]] * 3)
        pixels = torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2)
        centred = original.model(input_ids=ids, pixel_values=pixels).pred_boxes.numpy()
    expected = np.concatenate(
        [centred[..., :2] - centred[..., 2:] / 2, centred[..., :2] + centred[..., 2:] / 2], -1
    )
    assert np.ptp(centred[..., 2:]) > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_pictures_are_judged(make_original):
    _, folder = make_original("owlv2")
    reward, params = RequestedObjects.load(str(folder), threshold=0.01)
    prompts = list(make_requests(1, 0))
    reward.check(prompts)
    images = np.random.default_rng(0).random((len(prompts), 20, 40, 3), dtype=np.float32)
    inputs = reward.prepare(prompts)
    scores = np.asarray(jax.jit(reward)(params, images, inputs))
    assert scores.shape == (6,) and set(scores) <= {0.0, 1.0}
    boxes, confidences = map(np.asarray, reward.find(params, images, inputs))
    assert (np.diff(confidences, axis=-1) <= 0).all()
    assert (confidences[inputs["mask"] == 0] == 0).all()
    # The square of OWLv2 is as wide as these pictures and twice as high.
    centres = (boxes[..., 1] + boxes[..., 3]) / 2
    assert centres.max() > 1
    assert len(params["query_embeddings"]) == len(NOUNS)


def test_other_prompts_are_refused(make_original):
    _, folder = make_original("owlv2")
    reward, _ = RequestedObjects.load(str(folder))
    with pytest.raises(UserError, match="use those of suite:object_requests"):
        reward.check(["a photo of a cat", "a cat"])
