"""The command that plans, and compiles what its plans say is the fullest."""

import pytest

from configs import hps
from tests.own_flags import program

PLAN = "costs.commands.plan"


@pytest.fixture
def plan():
    """The command's module."""
    with program(PLAN) as command:
        yield command


def test_the_table(plan):
    text = plan.markdown({"configs/hps.py": ("v5e:1x1", "h100-80gb:8")})
    first, second = text.splitlines()[2:]
    lora = "lora.rank=16 optimizer.learning_rate=0.0001"
    assert first.startswith(f"| hps | v5e:1x1 (v5litepod-1) | {lora} | 1 |")
    assert second.startswith("| hps | h100-80gb:8 (h100-80gb-8) |  | 8 |")


def test_a_changed_config_and_a_slice_that_it_does_not_divide_over(plan):
    config = hps.get_config()
    config.algorithm.name = "draft_k"
    topologies = ("v5e:3x1", "v5e:2x4")
    text = plan.markdown({"configs/hps.py": topologies}, changed=config)
    assert "| hps | v5e:2x4 (v5litepod-8) |  | 8 |" in text
    assert "\n- hps on v5e:3x1 (v5litepod-3): config.batch_size" in text
    assert config.mesh.fsdp == 0
    with pytest.raises(ValueError, match="config.batch_size .* must be a multiple of 3"):
        plan.markdown({"configs/hps.py": topologies[:1]})


def test_one_config_is_changed_on_the_command_line(capsys):
    lora = "--config.lora.rank=16", "--config.optimizer.learning_rate=1e-4"
    with program(PLAN, "--config=configs/hps.py", *lora, "--topologies=v5e:1x1") as command:
        command.main([])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| hps | v5e:1x1 (v5litepod-1) |  |")
    flags = "--config=configs/hps.py", "--configs=configs/hps.py"
    with program(PLAN, *flags) as command, pytest.raises(SystemExit):
        command.main([])
    assert "Give either --config, which may be changed, or --configs." in capsys.readouterr().err


def test_the_fullest_program_is_compiled_once(plan, compilations, tmp_path):
    wanted = {"configs/hps.py": ("v5e:2x4", "v5e:4x4")}
    for _ in range(2):
        text = plan.markdown(wanted, str(tmp_path), quick=True)
    asked = [(topology, phases) for _, topology, *phases in compilations]
    assert asked == [("v5e:2x4", ["update", "pretrain"]), ("v5e:4x4", ["whole step"])]
    assert all(line.endswith(" | 2.00 | 15.75 |") for line in text.splitlines()[2:])


def test_what_the_compiler_refuses_does_not_fit(plan, compilations, tmp_path):
    text = plan.markdown({"configs/hps.py": ("v5e:2x2",)}, str(tmp_path), quick=True)
    assert text.endswith("| update | 13.82 | does not fit: 21.00 | 15.75 |")
