import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusionrl_jax.runs import checkpoints
from tests.processes import shapes_of


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    optimiser: tuple
    rng: jax.Array
    key: jax.Array
    nothing: None
    label: str = flax.struct.field(pytree_node=False, default="static")


def mesh(count=8):
    return Mesh(np.array(jax.devices()[:count]).reshape(2, -1), ("data", "fsdp"))


def make_state(seed, devices=8):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((16, 8)).astype(np.float32)
    kernel[0, :2] = [-0.0, 1e-42]  # Bit for bit, these too.
    params = {
        "kernel": jax.device_put(kernel, NamedSharding(mesh(devices), P(None, "fsdp"))),
        "scale": jnp.asarray(rng.standard_normal(3), jnp.bfloat16),
        "empty": jnp.zeros((0, 4)),
    }
    replicated = NamedSharding(mesh(devices), P())
    return State(
        step=jnp.int32(seed),
        params=params,
        optimiser=optax.adamw(1e-3).init(params),
        rng=jax.device_put(jax.random.PRNGKey(seed), replicated),
        key=jax.random.key(seed),
        nothing=None,
    )


def as_bytes(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert as_bytes(a) == as_bytes(b)


def save_steps(directory, steps, **options):
    store = checkpoints.Checkpoints(str(directory), **options)
    for step in steps:
        assert store.save(step, make_state(step))
    store.close()


def truncate(folder: pathlib.Path):
    """Cuts the arrays' files in half, as a full disk or a lost write would."""
    for file in folder.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_restores_bit_for_bit_with_shardings(tmp_path):
    save_steps(tmp_path, [5])
    store = checkpoints.Checkpoints(str(tmp_path))
    step, state = store.restore(shapes_of(make_state(0)))
    assert step == 5
    assert_identical(state, make_state(5))
    assert state.params["kernel"].sharding == make_state(0).params["kernel"].sharding


def test_restores_onto_another_mesh(tmp_path):
    save_steps(tmp_path, [5])
    abstract = shapes_of(make_state(0, devices=4))
    _, state = checkpoints.Checkpoints(str(tmp_path)).restore(abstract)
    assert_identical(state, make_state(5))
    assert len(state.params["kernel"].sharding.device_set) == 4


def test_no_checkpoint_is_none_and_makes_no_folder(tmp_path):
    store = checkpoints.Checkpoints(str(tmp_path / "mistyped"))
    assert store.restore(shapes_of(make_state(0))) is None
    assert store.steps() == ()
    assert not (tmp_path / "mistyped").exists()


def test_state_may_be_donated_while_it_is_saved(tmp_path):
    store = checkpoints.Checkpoints(str(tmp_path))
    array = jax.jit(lambda: jnp.arange(2**20, dtype=jnp.float32))()
    expected = np.array(array)
    store.save(1, {"array": array})
    jax.block_until_ready(jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(array))
    store.close()
    shape = jax.ShapeDtypeStruct(expected.shape, expected.dtype, sharding=array.sharding)
    _, restored = checkpoints.Checkpoints(str(tmp_path)).restore({"array": shape})
    np.testing.assert_array_equal(restored["array"], expected)


def test_keeps_the_last_and_the_best_across_runs(tmp_path):
    options = dict(keep_last=2, keep_best=1, best_metric="reward")
    rewards = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.2}
    for steps in ((1, 2, 3), (4, 5)):
        store = checkpoints.Checkpoints(str(tmp_path), **options)
        for step in steps:
            store.save(step, {"x": jnp.ones(3)}, {"reward": rewards[step], "loss": 0.0})
        store.close()
    assert store.steps() == (2, 4, 5)
    with pytest.raises(ValueError, match=r"'reward', which is not among the metrics \['loss'\]"):
        store.save(6, {"x": jnp.ones(3)}, {"loss": 0.0})


def test_saving_again(tmp_path):
    save_steps(tmp_path, [3])
    store = checkpoints.Checkpoints(str(tmp_path))
    assert not store.save(3, make_state(3))
    with pytest.raises(ValueError, match="step 2 .* later step 3, of another run"):
        store.save(2, make_state(2))


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        checkpoints.Checkpoints(str(tmp_path), keep_last=0)
    with pytest.raises(ValueError, match="needs best_metric"):
        checkpoints.Checkpoints(str(tmp_path), keep_best=1)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "metadata", "unmarked"])
def test_falls_back_to_the_step_before_a_broken_one(tmp_path, capsys, damage):
    save_steps(tmp_path, [1, 2])
    folder = tmp_path / "2"
    if damage == "truncated":
        truncate(folder)
    elif damage == "emptied":
        shutil.rmtree(folder / "state")
    elif damage == "metadata":
        (folder / "state" / "_METADATA").write_text('{"half')
    elif damage == "unmarked":
        (folder / "state" / "manifest.ocdbt").unlink()
    before = sorted(tmp_path.rglob("*"))
    store = checkpoints.Checkpoints(str(tmp_path))
    step, state = store.restore(shapes_of(make_state(0)))
    assert step == 1
    assert_identical(state, make_state(1))
    warning = capsys.readouterr().err
    assert warning.count("WARNING") == 1
    assert str(folder) in warning
    assert sorted(tmp_path.rglob("*")) == before, "restoring must delete nothing"

    # The run goes on through the broken step, which is set aside and kept.
    assert store.save(2, make_state(22))
    store.close()
    assert (tmp_path / "2.broken").is_dir()
    again = checkpoints.Checkpoints(str(tmp_path))
    assert again.steps() == (1, 2)
    step, state = again.restore(shapes_of(make_state(0)))
    assert step == 2
    assert_identical(state, make_state(22))


def test_all_broken_is_one_clear_error(tmp_path):
    save_steps(tmp_path, [1, 2])
    truncate(tmp_path / "1")
    truncate(tmp_path / "2")
    store = checkpoints.Checkpoints(str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"None of the checkpoints .*step 2: .*step 1: "
    ) as caught:
        store.restore(shapes_of(make_state(0)))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_configuration_is_an_error(tmp_path):
    save_steps(tmp_path, [1])
    abstract = shapes_of(make_state(0))
    other = abstract.params | {"scale": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}
    with pytest.raises(RuntimeError, match="another configuration"):
        checkpoints.Checkpoints(str(tmp_path)).restore(abstract.replace(params=other))


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    save_steps(tmp_path, [1, 2])
    store = checkpoints.Checkpoints(str(tmp_path))

    def restore_step(step, state):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(store, "restore_step", restore_step)
    with pytest.raises(RuntimeError, match="Checkpoint 2 in .* does not fit into the devices"):
        store.restore(shapes_of(make_state(0)))


def test_missing_step_names_those_that_exist(tmp_path):
    save_steps(tmp_path, [1, 4])
    store = checkpoints.Checkpoints(str(tmp_path))
    abstract = shapes_of(make_state(0))
    assert_identical(store.restore_step(1, abstract), make_state(1))
    with pytest.raises(FileNotFoundError, match=r"step 3 .* one of \[1, 4\]"):
        store.restore_step(3, abstract)


def test_a_flipped_bit_is_seen(tmp_path, capsys):
    """OCDBT has no checksum of an array's data: it decodes to other numbers without a word."""
    store = checkpoints.Checkpoints(str(tmp_path))
    arrays = [np.random.default_rng(step).standard_normal(2**16, np.float32) for step in (1, 2)]
    for step, array in enumerate(arrays, start=1):
        store.save(step, {"x": jnp.asarray(array)})
    store.close()
    data = max((tmp_path / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    step, state = checkpoints.Checkpoints(str(tmp_path)).restore(shapes_of({"x": jnp.ones(2**16)}))
    assert step == 1
    np.testing.assert_array_equal(state["x"], arrays[0])
    (warning,) = capsys.readouterr().err.splitlines()
    assert "x is not what was saved, by its digest" in warning


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, value):
    store = checkpoints.Checkpoints(str(tmp_path))
    state = make_state(1)
    moments = jax.tree.map(lambda leaf: leaf, state.optimiser)
    moments[0].mu["scale"] = moments[0].mu["scale"].at[1].set(value)
    with pytest.raises(FloatingPointError, match="optimiser/0/mu/scale is not finite after step 1"):
        store.save(1, state.replace(optimiser=moments))
    assert store.steps() == ()


def test_what_was_never_finite_is_passed_over(tmp_path, monkeypatch, capsys):
    """As earlier versions saved it."""
    store = checkpoints.Checkpoints(str(tmp_path))
    store.save(1, {"x": jnp.ones(3)})
    monkeypatch.setattr(checkpoints, "not_finite", lambda found: [])
    store.save(2, {"x": jnp.array([1, np.nan, 3])})
    store.close()
    monkeypatch.undo()
    assert store.restore(shapes_of({"x": jnp.ones(3)}))[0] == 1
    assert store.whole_steps() == (1,)
    assert "x is not finite" in capsys.readouterr().err


NAMES = [
    "a[1]",
    "[",
    "a*b?",
    "sp ace",
    "new\nline",
    "q'\"",
    "$(x)",
    "%41#",
    "a@b",
    "c:d",
    "☃",
    "=,;",
    "-x",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder(tmp_path, name):
    folder = tmp_path / name / "run"
    for step in (1, 2, 3):
        store = checkpoints.Checkpoints(str(folder), keep_last=2)
        store.save(step, {"x": jnp.arange(5) + step})
        store.close()
    step, state = checkpoints.Checkpoints(str(folder)).restore(shapes_of({"x": jnp.arange(5)}))
    assert step == 3
    np.testing.assert_array_equal(state["x"], np.arange(5) + 3)
    assert store.steps() == (2, 3)


def test_a_name_that_the_library_would_read_otherwise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="its path has a backslash"):
        checkpoints.Checkpoints(str(tmp_path / "a\\b"))


FULL_DISK = """
    import resource, signal, sys
    import jax, jax.numpy as jnp
    from diffusionrl_jax.runs import checkpoints

    store = checkpoints.Checkpoints(sys.argv[1])
    state = {"x": jax.random.normal(jax.random.key(0), (2**20,))}
    store.save(1, state)
    store.wait()
    # A file of more bytes fails as on a disk that is full, or where a quota ends.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
    store.save(2, state)
    try:
        while True:
            store.check()  # Is told without waiting for it.
    except checkpoints.SaveError as error:
        print(error)
    store.close()
"""


def test_a_save_that_fails_is_told_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    message = done.stdout.strip()
    assert message == (
        f"Checkpoint 2 cannot be saved in {tmp_path}, where it needs up to 4.2 MB (File too "
        "large): mend that, and the same command goes on after iteration 1."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    checkpoints.Checkpoints(str(tmp_path)).clean_up()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "notes"]
    checkpoints.Checkpoints(str(tmp_path / "missing")).clean_up()


KILLED_WHILE_SAVING = """
    import os, signal, sys
    import jax.numpy as jnp
    from diffusionrl_jax.runs import checkpoints

    store = checkpoints.Checkpoints(sys.argv[1])
    store.save(1, {"x": jnp.full((2**22,), 1.0)})
    store.wait()
    store.save(2, {"x": jnp.arange(2**22, dtype=jnp.float32)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_saving_leaves_the_step_before(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_SAVING), str(tmp_path)]
    environment = os.environ | {"XLA_FLAGS": ""}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    store = checkpoints.Checkpoints(str(tmp_path))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = {"x": jax.ShapeDtypeStruct((2**22,), jnp.float32, sharding=sharding)}
    step, state = store.restore(shape)
    # Step 2 could only be there if all of its 16 MiB were written within microseconds.
    expected = {1: np.ones(2**22), 2: np.arange(2**22)}[step]
    np.testing.assert_array_equal(state["x"], expected)
    assert store.save(2, state) == (step == 1)
    store.close()
    assert store.steps() == (1, 2)
