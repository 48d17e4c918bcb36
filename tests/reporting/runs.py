"""Writes the folders of runs that never were, with what is known of them."""

import json

import numpy as np

from configs import emoji_policy_gradient
from diffusionrl_jax.evaluation import records

STEPS = (0, 4, 8)
EVIL = 'a <script>alert("x")</script> & a "cake"'
PROMPTS = [f"a fox and {n // 2} cakes" for n in range(14)] + [EVIL, EVIL]


def write_run(folder, pixels=32, seed=0, gain=1.0, steps=STEPS, images=16):
    """A run whose preference rises by `gain`; the pictures of step n have the red value n."""
    folder.mkdir(parents=True)
    config = emoji_policy_gradient.get_config("preference").to_dict()
    config["evaluation"]["sets"] = {
        "new_pairs": config["evaluation"]["sets"]["new_pairs"]
        | {"scorers": ["preference", "other"]}
    }
    config["evaluation"]["scorers"]["other"] = {"reward": "x.y:Z", "path": "", "options": {}}
    config["seed"] = seed
    (folder / "config.json").write_text(json.dumps(config))
    versions = {"devices": 4, "device": "TPU <v5e>", "git_revision": "abc"}
    (folder / "versions.json").write_text(json.dumps(versions))
    rows = [
        {
            "step": step,
            "time": 1000.0 + 10 * step,
            "preference/reward_mean": 1 + gain * step / 8,
            "preference/reward_std": 0.5,
            "images_per_second": 32.0,
            "seconds/sample": 6.0,
            "seconds/update": 3.0,
        }
        for step in range(1, steps[-1] + 1)
    ]
    rows.insert(0, {"step": 0, "time": 1000.0, "seconds/evaluation": 5.0})
    random = np.random.default_rng(seed)
    prompts = (PROMPTS * (images // len(PROMPTS) + 1))[:images]
    noise = random.normal(size=images)
    for step in steps:
        rows[step] |= {"watch/kl_to_base": 0.1 * step, "watch/falls": 0.0, "best": step}
        scores = {
            "preference": 1 + gain * step / 8 * (1 + np.arange(images) / images) + 0.1 * noise,
            "other": noise,
        }
        picture = random.integers(0, 256, (pixels, pixels, 3), np.uint8)
        picture[0, 0] = step
        pictures = dict.fromkeys(range(images), records.encode(picture))
        records.write_record(
            str(folder),
            records.Record(
                step,
                {"new_pairs": prompts},
                {"new_pairs": scores},
                {"new_pairs": {}},
                {"new_pairs": pictures},
            ),
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
