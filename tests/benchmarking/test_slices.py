"""Dry runs of several slices."""

import pytest

from diffusionrl_jax.benchmarking import chips, compiled, report, slices
from diffusionrl_jax.benchmarking.roofline import PhaseCost

COST = compiled.Cost(
    arguments=0,
    temporaries=2**30,
    outputs=0,
    operations=197e12,
    accessed=0.0,
    collectives={},
    kernels=0,
    largest=(),
    unknown_loops=(),
    seconds=1.0,
)
TOO_LARGE = compiled.OutOfMemory(20 * 2**30, 16 * 2**30)


@pytest.fixture
def compilations(monkeypatch):
    """What was asked of the compiler, which finds that decoding does not fit in four chips."""
    asked = []

    def dry_run(config, topology, *, only):
        asked.append((config.model, topology))
        costs = (COST, TOO_LARGE if topology == "v5e:2x2" else COST)
        return report.DryRun(
            model=config.model,
            topology=topology,
            chip=chips.of_topology(topology),
            chips=4,
            fsdp=1,
            microbatch={"sample": 1},
            remat="none",
            images=80,
            whole=False,
            partial=True,
            assumed=(),
            phases=tuple(
                PhaseCost(name, 2, cost, 2**30, needed=98.5e12)
                for name, cost in zip(only, costs, strict=True)
            ),
        )

    monkeypatch.setattr(slices, "dry_run", dry_run)
    return asked


def test_what_was_compiled_is_kept(make_config, compilations, tmp_path):
    config, phases = make_config(), ("sample", "decode")
    slices.dry_runs(config, ["sd2"], ["v5e:2x2"], phases, tmp_path)
    results = slices.dry_runs(config, ["sd2", "sdxl"], ["v5e:2x2", "v5p:2x2x1"], phases, tmp_path)
    assert len(compilations) == len(set(compilations)) == 4
    text = slices.markdown(results)
    assert (
        "| sd2 | v5e:2x2 | 0.50; 2.00 GiB; operations, 2 s | does not fit: 21.00 GiB | 15.75 |  |"
    ) in text
    # 20 images on a chip, two phases of 394 TFLOP, 459 TFLOP/s.
    cell = "0.50; 2.00 GiB; operations, 0.858 s"
    assert f"| sdxl | v5p:2x2x1 | {cell} | {cell} | 95 | 11.650 |" in text


@pytest.mark.parametrize("change", ["config", "phases"])
def test_what_was_compiled_of_another_config_is_refused(
    change, make_config, compilations, tmp_path
):
    slices.dry_runs(make_config(), ["sd2"], ["v5e:2x2"], ("sample", "decode"), tmp_path)
    config = make_config(batch_size=160) if change == "config" else make_config()
    phases = ("sample", "update") if change == "phases" else ("sample", "decode")
    with pytest.raises(ValueError, match="sd2_v5e_2x2.json is of another config"):
        slices.dry_runs(config, ["sd2"], ["v5e:2x2"], phases, tmp_path)
