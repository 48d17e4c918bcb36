"""Each field takes its bounds and refuses what lies beside them."""

import math

import jax
import ml_collections
import pytest

from configs import common, compositionality, emoji, fairness, hps, joint
from diffusionrl_jax.distributed.digests import digests, not_finite
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.experiments.ranges import Choice, Number, Switch, Whole
from diffusionrl_jax.learning import summary
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer

NUMBERS = {name: kind for name, kind in fields.FIELDS.items() if isinstance(kind, Number | Whole)}
OTHERS = {name: kind for name, kind in fields.FIELDS.items() if isinstance(kind, Choice | Switch)}


@pytest.fixture
def config(make_config):
    made = make_config()
    made.unlock()
    return made


def put(config, name, value):
    """Sets a field, whatever its type; the names that are the user's own are the fixture's."""
    own = {"tasks": "small", "sets": "pairs", "scorers": "size", "best": "pairs/size"}
    *groups, last = name.split(".")
    group, before = config, ""
    for part in groups:
        group, before = group[own[before] if part == fields.ANY else part], part
    with group.ignore_type():
        group[own[groups[-1]] if last == fields.ANY else last] = value


def refused(config, name):
    with pytest.raises(ValueError, match="must be") as error:
        fields.check(config)
    assert name.split(fields.ANY)[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_bounds(name, config):
    kind = NUMBERS[name]
    for value in (kind.least, kind.most, *([0] if kind.zero else [])):
        put(config, name, value)
        fields.check(config)
    step = 1 if isinstance(kind, Whole) else 1e-6
    outside = [kind.most + step, kind.most * 10 + 10, -1e30, math.nan, math.inf, -math.inf]
    outside += [
        kind.least / 2 if isinstance(kind, Number) and kind.least > 0 else kind.least - step
    ]
    outside += [1.5] if isinstance(kind, Whole) else []
    for value in (*outside, "1", None, True, [1]):
        put(config, name, value)
        refused(config, name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_name_is_one_of_a_few(name, config):
    wrong = ["flash", "fft", "float16", "float8_e4m3fn", 7, None, ["auto"]]
    wrong += [] if name == "tasks.*.algorithm" else [""]  # That of all tasks.
    for value in wrong:
        put(config, name, value)
        refused(config, name)


@pytest.mark.parametrize("module", [emoji, hps, joint, compositionality, fairness])
def test_what_is_shipped_is_allowed(module):
    fields.check(module.get_config())


def test_every_field_is_in_the_table_and_no_other():
    config = common.get_config()
    config.tasks[fields.ANY] = common.make_task(common.make_scorer("jpeg_size"), "emoji:pairs")
    config.evaluation.sets[fields.ANY] = common.make_evaluation_set("emoji:pairs", 8, ())
    config.evaluation.scorers[fields.ANY] = common.make_scorer("jpeg_size")
    config.evaluation.best[fields.ANY] = 1.0
    fields.check(config)
    names = set()

    def walk(group, prefix):
        for name, value in group.items():
            if f"{prefix}{name}" in fields.FIELDS or not hasattr(value, "items"):
                names.add(f"{prefix}{name}")
            else:
                walk(value, f"{prefix}{name}.")

    walk(config, "")
    assert names == set(fields.FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": 1}, "no field config.optimiser: did you mean optimizer"),
        ({"tasks": {"small": {"prompts": "emoji:pairs"}}}, "tasks.small.scorer lacks: make"),
        ({"tasks": {"small": 3}}, "config.tasks.small=3 must be a group"),
        ({"sampler": 3}, "config.sampler=3 must be a group"),
        ({"evaluation": {}}, "config.evaluation.every lacks: begin with get_config"),
        ({"evaluation": {"every": 1, "sets": {"a": {}}}}, "evaluation.seed lacks"),
    ],
)
def test_groups_and_names(changes, message, config):
    with config.ignore_type():
        for name, value in changes.items():
            config[name] = ml_collections.ConfigDict({"value": value}).value
    with pytest.raises(ValueError, match=message):
        fields.check(config)


def test_a_misspelt_field_of_a_task_is_named(config):
    config.tasks.small.unlock()
    config.tasks.small.wieght = 1.0
    with pytest.raises(ValueError, match=r"no field config.tasks.small.wieght: did you mean weigh"):
        fields.check(config)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (common.make_scorer("jpeg_size", quality=0), "options.quality=0 must be a whole"),
        (common.make_scorer("jpeg_size", sign=math.nan), "options.sign=nan must be a number"),
        (common.make_scorer("jpeg_size", qality=3), "no option qality: did you mean quality"),
        (common.make_scorer("jpeg_size", path=3), "path=3 must be a text"),
        (common.make_scorer("host_reward", "a:b", timeout=math.inf), "options.timeout=inf must be"),
        (common.make_scorer("host_reward", "a:b", retries=-1), "options.retries=-1 must be"),
        (
            common.make_weighted_sum(a=(common.make_scorer("jpeg_size"), math.nan)),
            "options.weights=.* must be a mapping of 1 or more, each a number from",
        ),
        (
            common.make_weighted_sum(a=(common.make_scorer("jpeg_size", quality=101), 1)),
            "options.scorers.a.options.quality=101 must be",
        ),
        (common.make_weighted_sum(), "options.scorers=.* must be a mapping of 1 or more"),
        (common.make_scorer("weighted_sum"), "it has no scorers and no weights"),
        (ml_collections.ConfigDict({"reward": "jpeg_size"}), "it has the fields reward"),
        ("jpeg_size", "must be made with make_scorer or make_weighted_sum .* is 'jpeg_size'"),
    ],
)
def test_scorers_and_their_options(scorer, message, config):
    for name in (f"tasks.{fields.ANY}.scorer", f"evaluation.scorers.{fields.ANY}"):
        changed = config.copy_and_resolve_references()
        put(changed, name, scorer)
        with pytest.raises(ValueError, match=message):
            fields.check(changed)


def test_a_reward_of_ones_own_checks_its_own_options(config):
    put(config, f"tasks.{fields.ANY}.scorer", common.make_scorer("a.b:C", anything=math.nan))
    fields.check(config)


def test_earlier_runs_may_lack_fields_and_have_others(config):
    config.later = 1
    del config.lora
    with pytest.raises(ValueError, match="later"):
        fields.check(config)
    fields.check(config, of_now=False)


LARGEST = {
    "optimizer.learning_rate",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.epsilon",
    "optimizer.weight_decay",
    "optimizer.gradient_clip",
    "algorithm.policy_gradient.clip_range",
    "algorithm.policy_gradient.kl_weight",
    "sampler.guidance_scale",
    "advantage_clip",
    "ema_decay",
    f"tasks.{fields.ANY}.weight",
}


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["least", "most", "fastest"])
def test_an_iteration_at_the_bounds_is_finite(bound, config, compilation_cache):
    for name in LARGEST:
        put(config, name, getattr(fields.FIELDS[name], "least" if bound == "least" else "most"))
    if bound == "fastest":  # What holds the largest rate back is left as it is.
        for name, value in {"beta1": 0.0, "beta2": 0.0, "epsilon": 1e-15}.items():
            put(config, f"optimizer.{name}", value)
    put(config, "algorithm.policy_gradient.timesteps_per_iteration", 2)
    put(config, "sampler.eta", 1e-3 if bound == "least" else 1.0)
    if bound == "least":  # What is trained is guided by 1 or more.
        put(config, "sampler.guidance_scale", 1.0)
    made = experiments.build(config)
    state = made.init_state()
    step = make_train_step(made.algorithm, state, "split", PhaseTimer())
    state, metrics = step(state, made.frozen, made.batch(0))
    values = summary.summarise(jax.device_get(metrics), made.task_names, made.algorithm)
    summary.check_finite(values, jax.device_get(metrics), made.task_names, config.batch_size)
    assert not not_finite(digests(state.params))
