"""Dry runs of several slices."""

import pytest

from diffusionrl_jax.costs import slices


def test_what_was_compiled_is_kept(make_config, compilations, tmp_path):
    config, phases = make_config(), ("sample", "update")
    slices.dry_runs(config, ["sd2"], ["v5e:2x2"], phases, tmp_path)
    results = slices.dry_runs(config, ["sd2", "sdxl"], ["v5e:2x2", "v5p:2x2x1"], phases, tmp_path)
    assert len(compilations) == len(set(compilations)) == 8
    text = slices.markdown(results)
    assert (
        "| sd2 | v5e:2x2 (v5litepod-4) | 0.50; 2.00 GiB; operations, 2 s | does not fit: 21.00 GiB "
        "| does not fit: 21.00 GiB | 15.75 |  |"
    ) in text
    # 20 images on a chip, three phases of 394 TFLOP, 459 TFLOP/s.
    cell = "0.50; 2.00 GiB; operations, 0.858 s"
    assert f"| sdxl | v5p:2x2x1 (v5p-8) | {cell} | {cell} | {cell} | 95.73 | 7.766 |" in text


def test_what_was_compiled_of_another_config_is_refused(make_config, compilations, tmp_path):
    slices.dry_runs(make_config(), ["sd2"], ["v5e:2x2"], ["sample"], tmp_path)
    slices.dry_runs(make_config(iterations=9), ["sd2"], ["v5e:2x2"], ["sample"], tmp_path)
    message = "sd2_v5e_2x2_sample.json is of another config or less effort"
    with pytest.raises(ValueError, match=message):
        config = make_config(batch_size=160)
        slices.dry_runs(config, ["sd2"], ["v5p:2x2x1", "v5e:2x2"], ["sample"], tmp_path)
    assert len(compilations) == 1


def test_less_effort_is_not_taken_for_all(make_config, compilations, tmp_path):
    config = make_config()
    slices.dry_runs(config, ["sd2"], ["v5e:2x2"], ["sample"], tmp_path)
    both = ["sample", "decode"]
    results = slices.dry_runs(config, ["sd2"], ["v5e:2x2"], both, tmp_path, quick=True)
    assert len(compilations) == 2  # The one of all effort is kept.
    cell, text = "0.50; 2.00 GiB; operations, 2 s", slices.markdown(results)
    assert f"(v5litepod-4) | {cell} * | {cell} | 15.75 |" in text
    assert text.endswith("by libtpu 1.2, with less effort but for what is marked *.")
    quick = slices.dry_runs(config, ["sd2"], ["v5e:2x2"], ["decode"], tmp_path, quick=True)
    assert slices.markdown(quick).endswith("by libtpu 1.2, with less effort.")
    with pytest.raises(ValueError, match="sd2_v5e_2x2_decode.json is of another config or less"):
        slices.dry_runs(config, ["sd2"], ["v5e:2x2"], both, tmp_path)


def test_what_needs_more_than_there_is_does_not_fit(make_config, compilations, tmp_path):
    results = slices.dry_runs(make_config(), ["sd2"], ["v5e:2x2"], ["sample"], tmp_path)
    results[0]["phases"][0]["memory"] = 16 * 2**30  # By the model; the compiler took it.
    assert "| does not fit: 16.00 GiB | 15.75 |  |" in slices.markdown(results)
