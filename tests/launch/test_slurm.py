import pytest

FLAGS = ["--config=configs/joint.py", "--workdir=/shared/joint", "--config.note=it's $HOME"]
PROGRAM = ["launch/until_complete.sh", ".venv/bin/python", "-u", "-m", "diffusionrl_jax.main"]


@pytest.fixture
def slurm(play):
    def run(*flags, status=0, **changes):
        world = {"exit": {"srun": status}}
        script = ["slurm.sh", *flags]
        return play(script, ["srun", "scontrol"], world, SLURM_JOB_ID="17", **changes)

    return run


def test_starts_one_process_a_host_with_all_of_its_gpus(slurm):
    process = slurm(*FLAGS, SLURM_GPUS_ON_NODE="4")
    assert process.returncode == 0, process.stderr
    (call,) = process.calls
    place = call.index(PROGRAM[0])
    assert call[0] == "srun" and "--ntasks-per-node=1" in call[:place]
    assert call[place:] == [*PROGRAM, *FLAGS, "0,1,2,3"]


def test_what_was_stopped_is_queued_again(slurm):
    process = slurm(*FLAGS, status=143)
    assert process.calls[-1] == ["scontrol", "requeue", "17"]


def test_what_failed_is_not(slurm):
    process = slurm(*FLAGS, status=1)
    assert process.returncode == 1 and [call[0] for call in process.calls] == ["srun"]


def test_dry_run_prints_the_command(slurm):
    process = slurm("--dry_run", *FLAGS)
    assert process.returncode == 0 and process.calls == []
    assert process.stdout.startswith("srun ") and "--workdir=/shared/joint" in process.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        (FLAGS[:1], "--workdir"),
        (FLAGS[1:], "--config"),
        ([FLAGS[0], "--workdir=runs/joint"], "full path"),
    ],
)
def test_bad_input_is_one_clear_line(slurm, flags, message):
    process = slurm(*flags)
    assert process.returncode == 1 and process.calls == []
    assert message in process.stderr and len(process.stderr.splitlines()) == 1


def test_must_be_submitted_from_the_checkout(slurm, tmp_path):
    assert "checkout" in slurm(*FLAGS, cwd=tmp_path).stderr
