import shlex
import subprocess

import pytest

COMMANDS = ["gcloud", "sudo", "systemctl", "systemd-run", "journalctl", "python3"]
WHERE = ["--name=joint", "--zone=us-west4-a"]
TYPE = ["--type=v5litepod-16", "--poll=0.01"]
FLAGS = ["--config=configs/joint.py", "--workdir=gs://bucket/joint", "--config.note=it's $HOME"]
WAITING = ["WAITING_FOR_RESOURCES", "PROVISIONING"]


@pytest.fixture
def tpu_vm(play):
    def run(command, *options, world=None, flags=FLAGS, where=WHERE, checkout=False):
        flags = ["--", *flags] if command == "run" else []
        script = ["tpu_vm.sh", command, *where, *options, *flags]
        # A played git lists no files: packing the checkout takes seconds.
        return play(script, COMMANDS if checkout else [*COMMANDS, "git"], world)

    return run


def actions(process):
    """What was done with the queued resource, hosts and program, but for the looking."""
    found = []
    for name, *arguments in process.calls:
        if name == "systemd-run":
            found.append("start")
        elif name == "gcloud" and arguments[3] in ("create", "delete", "scp"):
            found.append(arguments[3])
    return found


def test_runs_on_every_host_until_the_program_ends(tpu_vm):
    world = {"requests": [[*WAITING, "ACTIVE"]], "services": [["running", "running", "exited"]]}
    process = tpu_vm("run", *TYPE, "--spot", "--project=mine", world=world)
    assert process.returncode == 0, process.stderr
    assert actions(process) == ["create", "scp", "start"]
    gcloud = [call[1:] for call in process.calls if call[0] == "gcloud"]
    assert all({"--zone=us-west4-a", "--project=mine", "--quiet"} <= set(call) for call in gcloud)
    create = next(call for call in gcloud if "create" in call)
    expected = {"joint", "--node-id=joint", "--accelerator-type=v5litepod-16", "--spot"}
    assert expected | {"--runtime-version=v2-alpha-tpuv5-lite"} <= set(create)
    assert all("--worker=all" in call for call in gcloud if "scp" in call)
    starting = [call for call in gcloud if "systemd-run" in " ".join(call)]
    assert len(starting) == 1 and "--worker=all" in starting[0]
    assert "log of start 1" in process.stdout


def test_the_program_gets_its_flags_and_the_checkout(tpu_vm):
    world = {"requests": [["ACTIVE"]], "services": [["running", "exited"]]}
    process = tpu_vm("run", *TYPE, world=world, checkout=True)
    service = next(call for call in process.calls if call[0] == "systemd-run")
    folder = process.home / "joint"
    program = [str(folder / ".venv/bin/python"), "-u", "-m", "diffusionrl_jax.main"]
    # Started without a shell in between, which would keep the signals to itself.
    started = service[service.index("--") + 1 :]
    assert [word.replace("$$", "$") for word in started] == [*program, *FLAGS]
    assert "$$HOME" in started[-1]  # systemd would replace $HOME.
    assert f"--working-directory={folder}" in service
    assert (folder / "configs/joint.py").exists()
    assert (folder / "diffusionrl_jax/main.py").exists()
    assert not (folder / ".git").exists()


def test_a_token_of_the_hub_is_on_no_command_line(play, tmp_path):
    world = {"requests": [["ACTIVE"]], "services": [["running", "exited"]]}
    script = ["tpu_vm.sh", "run", *WHERE, *TYPE, "--", *FLAGS]
    process = play(script, [*COMMANDS, "git"], world, HF_TOKEN="hf_secret")
    assert process.returncode == 0, process.stderr
    file = process.home / "joint.environment"
    assert file.read_text() == 'HF_TOKEN="hf_secret"\n'
    service = next(call for call in process.calls if call[0] == "systemd-run")
    assert f"--property=EnvironmentFile=-{file}" in service
    printed = play([*script[:2], "--dry_run", *script[2:]], COMMANDS, HF_TOKEN="hf_secret").stdout
    assert "joint.environment" in printed
    assert "hf_secret" not in f"{process.calls} {process.stdout} {printed}"
    assert not (tmp_path / "joint.environment").exists()


def test_variables_reach_the_program_as_they_are(tpu_vm, tmp_path):
    """systemd's file of variables is a shell's: https://www.freedesktop.org/software/systemd."""
    given = {
        "XLA_FLAGS": "--xla_a=1 --xla_b=2",
        "EMPTY": "",
        "ODD": """ it's $HOME, "$(id)" `id` \\ \\" a=b # ü""",
    }
    world = {"requests": [["ACTIVE"]], "services": [["running", "exited"]]}
    options = [f"--env={name}={value}" for name, value in given.items()]
    process = tpu_vm("run", *TYPE, *options, world=world)
    assert process.returncode == 0, process.stderr
    file = process.home / "joint.environment"
    for name, value in given.items():
        script = f'set -ue; . "{file}"; printf %s "${name}"'
        shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert shell.stdout == value
    assert "--xla_a" not in str(process.calls)
    # Those of an earlier start are forgotten.
    tpu_vm("run", *TYPE, world=world)
    assert not file.exists()


@pytest.mark.parametrize("end", [["SUSPENDING", "SUSPENDED"], ["FAILED"], ["SUSPENDED"]])
def test_a_preempted_slice_is_made_again(tpu_vm, end):
    world = {
        "requests": [["ACTIVE", "ACTIVE", *end], [*WAITING, "ACTIVE"]],
        "services": [["running"], ["running", "exited"]],
    }
    process = tpu_vm("run", *TYPE, world=world)
    assert process.returncode == 0, process.stderr
    assert actions(process) == ["create", "scp", "start", "delete", "create", "scp", "start"]
    assert process.stdout.index("log of start 1") < process.stdout.index("log of start 2")


def test_a_program_that_ended_because_of_a_preemption_is_started_again(tpu_vm):
    world = {
        "requests": [["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"], ["ACTIVE"]],
        "services": [["running", "exited"], ["running", "exited"]],
    }
    process = tpu_vm("run", *TYPE, world=world)
    assert process.returncode == 0, process.stderr
    assert actions(process).count("start") == 2


def test_a_node_that_is_gone_under_an_active_request(tpu_vm):
    world = {"requests": [["ACTIVE"], ["FAILED"]], "services": [], "silent": True}
    process = tpu_vm("run", *TYPE, "--max_failures=1", world=world | {"node": "PREEMPTED"})
    assert process.returncode == 1
    assert actions(process) == ["create", "delete", "create"]


def test_a_failing_program_is_started_again_but_not_for_ever(tpu_vm):
    world = {"requests": [["ACTIVE"]], "services": [["running", "failed"]] * 3}
    process = tpu_vm("run", *TYPE, world=world)
    assert process.returncode == 1
    assert actions(process).count("start") == 3
    assert "Given up" in process.stderr


def test_running_again_goes_on_watching(tpu_vm):
    world = {
        "requests": [["ACTIVE"]],
        "services": [["running", "running", "exited"]],
        **{"exists": True, "created": 1, "started": True, "starts": 1},
    }
    process = tpu_vm("run", *TYPE, world=world)
    assert process.returncode == 0, process.stderr
    assert actions(process) == []
    # What had been stopped is started again.
    process = tpu_vm("run", *TYPE, world=world | {"services": [["exited"], ["running", "exited"]]})
    assert actions(process) == ["scp", "start"]


def test_the_slice_goes_back_when_asked_to(tpu_vm):
    world = {"requests": [["ACTIVE"]], "services": [["running", "exited"]]}
    process = tpu_vm("run", *TYPE, "--delete_when_done", world=world)
    assert actions(process)[-1] == "delete"


def test_dry_run_calls_nothing_and_prints_what_the_run_calls(tpu_vm):
    dry = tpu_vm("run", *TYPE, "--dry_run")
    assert dry.returncode == 0 and dry.calls == [], dry.stderr
    printed = [line.split()[2:] for line in dry.stdout.splitlines() if line.startswith("gcloud")]
    world = {"requests": [["ACTIVE", "SUSPENDED"], ["ACTIVE"]], "services": [["exited"]] * 2}
    wet = tpu_vm("run", *TYPE, world=world)
    called = {tuple(call[2:5]) for call in wet.calls if call[0] == "gcloud"}
    assert {tuple(words[:3]) for words in printed} == called


@pytest.mark.parametrize(
    "command, options, where, expected",
    [
        ("stop", [], "--worker=all", "kill --kill-who=main --signal=TERM joint"),
        ("logs", ["--worker=3", "--follow"], "--worker=3", "--unit=joint --output=cat --no-pager"),
        ("status", [], "--worker=all", "systemctl show joint"),
    ],
)
def test_other_commands(tpu_vm, command, options, where, expected):
    process = tpu_vm(command, *options, "--dry_run")
    assert process.returncode == 0 and process.calls == []
    last = shlex.split(process.stdout.split("gcloud ")[-1])
    assert where in last
    assert expected in next(word for word in last if word.startswith("--command="))


def test_delete_takes_the_node_along(tpu_vm):
    process = tpu_vm("delete", "--dry_run")
    assert process.stdout.startswith("gcloud compute tpus queued-resources delete joint --force")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"flags": ["--config=c.py", "--workdir=/tmp/x"]}, "gs://"),
        ({"flags": ["--workdir=gs://x"]}, "--config"),
        ({"where": ["--name=joint"]}, "--zone"),
        ({"where": ["--name=a b", "--zone=z"]}, "--name"),
        ({"options": ["--type=v9-8"]}, "--type='v9-8'"),
        ({"options": ["--typo=1"]}, "--typo"),
        ({"options": [*TYPE, "--env=1A=b"]}, "--env=NAME=VALUE"),
    ],
)
def test_bad_input_is_one_clear_line(tpu_vm, changes, message):
    options = changes.pop("options", TYPE)
    process = tpu_vm("run", *options, **changes)
    assert process.returncode == 1 and process.calls == []
    assert message in process.stderr and len(process.stderr.splitlines()) == 1
