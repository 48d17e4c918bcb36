"""Whether a picture has the objects that its prompt asks for, by OWL-ViT's or OWLv2's boxes.

It judges the six tasks of GenEval (Ghosh et al., 2310.11513), where a Mask2Former finds the objects
and a CLIP tells the colours of what it has cut out. Here an open-vocabulary detector finds them,
and colours are told from the pixels of the boxes: the numbers are not those of GenEval.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.object_requests import NOUNS, read_request
from diffusionrl_jax.models.towers import owl_vit
from diffusionrl_jax.rewards import checkpoint
from diffusionrl_jax.rewards.detection import PREPROCESSING, Detection
from diffusionrl_jax.rewards.distinct import once_per_prompt
from diffusionrl_jax.rewards.object_verdict import THINGS, encode_requests, judge

MOST_BOXES = 20  # Of each noun, the most certain ones are looked at.


@dataclasses.dataclass(frozen=True, eq=False)
class RequestedObjects:
    """The reward that is 1 where all that was asked for is there, and 0 elsewhere.

    Attributes:
      detection: the detector.
      threshold: the least confidence of an object. Detectors are not calibrated: what is compared
        must have the same.
    """

    has_gradient: ClassVar[bool] = False
    substitute: ClassVar[str] = (
        "OWL-ViT or OWLv2 finds objects in place of GenEval's Mask2Former, and pixels tell their "
        "colours in place of its CLIP."
    )

    detection: Detection
    threshold: float = 0.2

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32, **options
    ) -> tuple["RequestedObjects", dict]:
        """Opens a detector's folder as `Detection.load` does, with its box head.

        Args:
          path: the folder.
          dtype: the dtype that the towers compute in.
          **options: the field `threshold`.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit.
        """
        detection, params = Detection.load(path, dtype, objects=NOUNS, max_objects=THINGS)
        folder, _ = checkpoint.read_config(path)
        head = checkpoint.read_params(
            folder, owl_vit.box_template(detection.model), ignore=(owl_vit.NO_BOX_HEAD,)
        )
        return cls(detection, **options), {**params, **head}

    def check(self, prompts: Sequence[str]) -> None:
        """Refuses the prompts that `prepare` would refuse.

        Raises:
          UserError: a prompt is not one of `data/object_requests.py`.
        """
        for prompt in prompts:
            read_request(prompt)

    @once_per_prompt
    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads what each prompt asks for.

        Returns:
          What `object_verdict.encode_requests` does, and "nouns": int32 [n, THINGS], in `NOUNS`.

        Raises:
          UserError: as `check`.
        """
        requests = [read_request(prompt) for prompt in prompts]
        nouns = np.zeros((len(prompts), THINGS), np.int32)
        for row, request in enumerate(requests):
            for column, thing in enumerate(request.things):
                nouns[row, column] = NOUNS.index(thing.noun)
        return encode_requests(requests) | {"nouns": nouns}

    def find(
        self, params: Mapping, images: jax.Array, inputs: Mapping
    ) -> tuple[jax.Array, jax.Array]:
        """Finds the boxes of each noun that is asked for.

        Args:
          params: the parameters, from `load`.
          images: float [n, height, width, 3] in [0, 1].
          inputs: what `prepare` returned, n rows.

        Returns:
          float32 [n, THINGS, k, 4], left, top, right, bottom in shares of the picture, the most
          certain first; and their confidences, float32 [n, THINGS, k] in [0, 1]. A box counts for
          the noun that it fits best alone.
        """
        model = self.detection.model
        pixels = PREPROCESSING[model.model_type](images, model.vision.config.image_size)
        features = owl_vit.patch_features(model, params, pixels)
        queries = jnp.asarray(params["query_embeddings"])[inputs["nouns"]]
        logits = owl_vit.class_logits(params, features, queries)
        logits = jnp.where(inputs["mask"][:, None] > 0, logits, -jnp.inf)
        best = jnp.argmax(logits, -1, keepdims=True)
        logits = jnp.where(jnp.arange(THINGS) == best, logits, -jnp.inf)
        number = min(MOST_BOXES, logits.shape[1])
        top, where = jax.lax.top_k(jnp.swapaxes(logits, 1, 2), number)
        boxes = owl_vit.boxes(params, features)
        boxes = jnp.take_along_axis(boxes[:, None], where[..., None], 2)
        if model.model_type == "owlv2":  # The picture was padded to a square.
            height, width = images.shape[1:3]
            side = max(height, width)
            boxes = boxes * jnp.asarray([side / width, side / height] * 2, jnp.float32)
        return boxes, jax.nn.sigmoid(top)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns 1 where all that was asked for is there, and 0 elsewhere, float32 [n]."""
        return judge(images, *self.find(params, images, inputs), inputs, self.threshold)
