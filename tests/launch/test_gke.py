import pytest
import yaml
from kubeflow_trainer_api import models

FLAGS = ["--config=configs/joint.py", "--workdir=gs://bucket/joint", '--config.note=a $(b) "c']
OPTIONS = {
    "name": "joint",
    "image": "europe-docker.pkg.dev/p/r/diffusionrl:1",
    "accelerator": "tpu-v5-lite-podslice",
    "topology": "4x4",
}


@pytest.fixture
def gke(play):
    def run(command, *more, flags=(), world=None, **options):
        given = [f"--{key}={value}" for key, value in options.items()]
        script = ["gke.py", command, *given, *more, *(["--", *flags] if flags else [])]
        return play(script, ["kubectl", "docker"], world)

    return run


@pytest.fixture
def fill(gke):
    """The manifest that --dry_run prints, by its options."""

    def run(*more, flags=FLAGS, **changes):
        process = gke("run", "--dry_run", *more, flags=flags, **OPTIONS | changes)
        assert process.returncode == 0 and process.calls == [], process.stderr
        return yaml.safe_load(process.stdout)

    return run


def pod(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def unknown_fields(given, known, path=""):
    """Names of fields that the API's models dropped or changed, which they do to unknown ones."""
    if isinstance(given, dict):
        known = known if isinstance(known, dict) else {}
        for key, value in given.items():
            yield from unknown_fields(value, known.get(key), f"{path}.{key}")
    elif isinstance(given, list):
        known = known if isinstance(known, list) and len(known) == len(given) else [None] * 99
        for value, other in zip(given, known, strict=False):
            yield from unknown_fields(value, other, f"{path}[]")
    elif given != known:
        yield path


def check_api(manifest):
    """Against the models that are generated from the published OpenAPI document of JobSet."""
    parsed = models.JobsetV1alpha2JobSet.from_dict(manifest)
    assert list(unknown_fields(manifest, parsed.to_dict())) == []


@pytest.mark.parametrize("more", [[], ["--spot"]])
def test_manifest_is_of_the_published_api(fill, more):
    manifest = fill(*more)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    check_api(manifest)
    # The check can fail: at a misspelt field, and at one of the wrong type.
    pod(manifest)["nodeSelectors"] = pod(manifest).pop("nodeSelector")
    with pytest.raises(AssertionError, match="nodeSelectors"):
        check_api(manifest)
    manifest = fill()
    manifest["spec"]["failurePolicy"]["maxRestarts"] = "three"
    with pytest.raises(ValueError, match="maxRestarts"):
        check_api(manifest)


@pytest.mark.parametrize(
    "changes, hosts, chips",
    [
        ({}, 4, 4),
        ({"topology": "16x16"}, 64, 4),
        ({"topology": "1x1"}, 1, 1),
        ({"topology": "2x4", "chips_per_host": 8}, 1, 8),
        ({"topology": "4x4x4", "accelerator": "tpu-v5p-slice"}, 16, 4),
    ],
)
def test_one_pod_a_host_of_the_slice(fill, changes, hosts, chips):
    manifest = fill(**changes)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    assert pod(manifest)["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    assert pod(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": (OPTIONS | changes)["accelerator"],
        "cloud.google.com/gke-tpu-topology": (OPTIONS | changes)["topology"],
    }


def test_comes_back_after_preemptions_and_some_failures(fill):
    manifest = fill("--spot", "--max_restarts=5")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and pod(manifest)["restartPolicy"] == "Never"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert pod(manifest)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_the_program_gets_its_flags(fill):
    container = pod(fill())["containers"][0]
    # Kubernetes makes $$( a plain $( again.
    assert [flag.replace("$$(", "$(") for flag in container["args"]] == FLAGS
    assert "$$(b)" in container["args"][-1]
    assert container["image"] == OPTIONS["image"]


def test_a_token_of_the_hub_may_be_a_secret(fill):
    (variable,) = pod(fill())["containers"][0]["env"]
    assert variable["name"] == "HF_TOKEN"
    secret = variable["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "hf-token", "key": "HF_TOKEN", "optional": True}


def test_variables_reach_the_program_as_they_are(fill):
    given = {"XLA_FLAGS": "--xla_a=1 --xla_b=2", "EMPTY": "", "ODD": """it's $(A) "b" \\ : # ü\n"""}
    manifest = fill(*(f"--env={name}={value}" for name, value in given.items()))
    check_api(manifest)
    token, *others = pod(manifest)["containers"][0]["env"]
    assert token["name"] == "HF_TOKEN"
    # Kubernetes makes $$( a plain $( again.
    assert {one["name"]: one["value"].replace("$$(", "$(") for one in others} == given
    assert "$$(A)" in others[-1]["value"]


@pytest.mark.parametrize("name", ["no", "y", "true"])
def test_a_name_stays_text(fill, name):
    assert fill(name=name)["metadata"]["name"] == name


def test_run_applies_what_dry_run_prints(gke, fill):
    asked, call = gke("run", flags=FLAGS, **OPTIONS).calls
    assert asked[:4] == ["kubectl", "get", "jobset", "joint"]
    assert call[:3] == ["kubectl", "apply", "--filename=-"]
    assert yaml.safe_load(call[3]) == fill()


def actions(process):
    return [call[1] for call in process.calls]


@pytest.mark.parametrize("condition", ["Completed", "Failed"])
def test_the_same_command_goes_on_where_the_jobset_has_ended(gke, condition):
    first = gke("run", flags=FLAGS, **OPTIONS)
    ended = {"jobset": first.world["jobset"] | {"conditions": ["Started", condition]}}
    process = gke("run", flags=FLAGS, world=ended, **OPTIONS)
    assert process.returncode == 0 and actions(process) == ["get", "delete", "apply"]
    # It is gone with its pods before there is another one.
    assert "--cascade=foreground" in process.calls[1]
    assert process.world["jobset"] == first.world["jobset"]


def test_a_running_jobset_is_left_alone_and_other_options_are_refused_clearly(gke):
    live = gke("run", flags=FLAGS, **OPTIONS).world
    live["jobset"]["conditions"] = ["Started"]
    same = gke("run", flags=FLAGS, world=live, **OPTIONS)
    assert same.returncode == 0 and actions(same) == ["get", "apply"]
    other = gke("run", flags=[*FLAGS, "--config.seed=1"], world=live, **OPTIONS)
    assert other.returncode == 1 and actions(other) == ["get", "apply"]
    immutable, error = other.stderr.splitlines()
    assert "immutable" in immutable
    assert error.startswith("error: kubectl refuses the JobSet joint.")
    assert "launch/gke.py delete --name=joint, then run again" in error
    assert other.world == live


@pytest.mark.parametrize(
    "command, options, expected",
    [
        ("build", {"image": "a/b:c"}, "docker push a/b:c"),
        ("status", {"name": "j"}, "kubectl get jobset j"),
        ("logs", {"name": "j"}, "jobset-name=j,batch.kubernetes.io/job-completion-index=0"),
        ("stop", {"name": "j"}, '{"spec": {"suspend": true}}'),
        ("delete", {"name": "j"}, "kubectl delete jobset j"),
    ],
)
def test_other_commands(gke, command, options, expected):
    dry = gke(command, "--dry_run", **options)
    assert dry.calls == [] and expected in dry.stdout
    assert len(gke(command, **options).calls) == len(dry.stdout.splitlines())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"topology": "4by4"}, "4x4"),
        ({"topology": "2x4", "chips_per_host": 3}, "--chips_per_host=3"),
        ({"name": "My Job"}, "--name"),
        ({"accelerator": "tpu-v9"}, "tpu-v5p-slice"),
        ({"env": "1A=b"}, "--env=1A=b must be NAME=VALUE"),
        ({"flags": ["--config=c.py", "--workdir=/tmp/x"]}, "gs://"),
        ({"flags": ["--workdir=gs://x"]}, "--config"),
    ],
)
def test_bad_input_is_one_clear_line(gke, changes, message):
    flags = changes.pop("flags", FLAGS)
    process = gke("run", flags=flags, **OPTIONS | changes)
    assert process.returncode and process.calls == []
    assert message in process.stderr.splitlines()[-1]
