"""The paper's method in miniature: three tasks at once in the emoji world."""

import ml_collections

from configs import common

TASKS = ("preference", "compositionality", "fairness")


def get_config(tasks: str = ",".join(TASKS)) -> ml_collections.ConfigDict:
    """Preference, compositionality and fairness together, without guidance.

    Args:
      tasks: the names of those to train on, as in `configs/emoji.py`.
    """
    config = common.get_config()
    config.model = "asset:emoji/stable_diffusion"
    config.iterations = 48
    config.sampler.steps = 4
    config.sampler.guidance_scale = 1.0
    config.batch_size = 320
    config.algorithm.policy_gradient.timesteps_per_iteration = 1
    # The tiny UNet has 1/350 of the parameters: it takes larger steps.
    config.algorithm.policy_gradient.clip_range = 1e-2
    config.algorithm.policy_gradient.balance_timesteps = True
    config.algorithm.nft.error = "output"  # The UNet predicts noise: see docs/methods.md.
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_iterations = 6
    # So slowly that --config.iterations=192 goes on learning.
    config.optimizer.decay_iterations = 186
    config.ema_decay = 0.95
    config.pretraining.weight = 0.1
    config.pretraining.pictures = "emoji"

    preference = common.make_scorer("image_reward", "asset:emoji/image_reward")
    detection = common.make_scorer("detection", "asset:emoji/detection")
    parity = common.make_scorer("statistical_parity", "asset:emoji/statistical_parity")
    credit = common.make_scorer(
        "statistical_parity", "asset:emoji/statistical_parity", credit="leave_one_out"
    )
    by_prompt = {"group_size": 4, "normalisation": "group", "shared_noise": True}
    known = {
        "preference": common.make_task(preference, "emoji:everything", weight=1.5, **by_prompt),
        "compositionality": common.make_task(
            detection, "emoji:compositions", weight=1.5, **by_prompt
        ),
        "fairness": common.make_task(credit, "emoji:portraits", group_size=20, weight=1.0),
    }
    common.add_tasks(config, known, tasks)

    evaluation = config.evaluation
    evaluation.every = 8
    evaluation.scorers.preference = preference
    evaluation.scorers.detection = detection
    evaluation.scorers.parity = parity
    evaluation.scorers.recognition = common.make_scorer("recognition", "asset:emoji/recogniser")
    evaluation.scorers.independent_parity = common.make_scorer(
        "recognised_parity", "asset:emoji/recogniser"
    )
    # The published thresholds; intermediate and tan are one tone, as there are five.
    evaluation.scorers.colour_parity = common.make_scorer(
        "colour_parity", thresholds=(55.0, 41.0, 10.0, -30.0)
    )
    things = ("preference", "detection", "recognition")
    people = ("preference", "parity", "recognition", "independent_parity", "colour_parity")
    evaluation.sets.new_pairs = common.make_evaluation_set("emoji:new_pairs", 96, things)
    evaluation.sets.unseen_pairs = common.make_evaluation_set("emoji:unseen_pairs", 96, things)
    evaluation.sets.portraits = common.make_evaluation_set("emoji:portraits", 80, people, 20)
    evaluation.sets.unseen_portraits = common.make_evaluation_set(
        "emoji:unseen_portraits", 80, people, 20
    )
    evaluation.head_to_head = ("preference",)
    # By judges that no task is rewarded by, so that a model that fools its rewards is not kept.
    evaluation.best = ml_collections.ConfigDict(
        {
            "new_pairs/recognition": 1.0,
            "unseen_pairs/recognition": 1.0,
            "unseen_portraits/recognition": 1.0,
            "portraits/independent_parity": 1.0,
            "unseen_portraits/independent_parity": 1.0,
        }
    )
    config.checkpoint.every = 8
    return config
