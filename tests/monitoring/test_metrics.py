import json
import math
import struct

import jax.numpy as jnp
import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

from diffusionrl_jax.monitoring import metrics


def events(workdir):
    """The events of each TensorBoard file, by the TFRecord format: length, crc, data, crc."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            yield event_pb2.Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length


def write_steps(workdir, steps, start_step=0, offset=0.0):
    writer = metrics.MetricWriter(str(workdir), start_step)
    for step in steps:
        writer.scalars(step, {"reward/task": step + offset})
    writer.close()


def test_scalars_go_to_both_places(tmp_path):
    writer = metrics.MetricWriter(str(tmp_path / "new"))
    writer.scalars(3, {"loss": 0.5, "reward": jnp.float32(2), "bad": math.nan, "one": np.ones(1)})
    rows = metrics.read_rows(str(tmp_path / "new"))  # On disk before the writer is closed.
    writer.close()
    assert [row | {"time": 0} for row in rows] == [
        {"step": 3, "time": 0, "loss": 0.5, "reward": 2.0, "bad": None, "one": 1.0}
    ]
    values = {
        value.tag: (event.step, value.simple_value)
        for event in events(tmp_path / "new")
        for value in event.summary.value
    }
    assert math.isnan(values.pop("bad")[1])
    assert values == {"loss": (3, 0.5), "reward": (3, 2.0), "one": (3, 1.0)}


def test_resuming_drops_the_steps_to_come(tmp_path):
    write_steps(tmp_path, range(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')  # Killed while writing.
    write_steps(tmp_path, range(4, 7), start_step=4, offset=0.5)
    rows = metrics.read_rows(str(tmp_path))
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["reward/task"] for row in rows] == [0, 1, 2, 3, 4.5, 5.5, 6.5]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_resuming_tells_tensorboard_to_purge(tmp_path):
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(4, 7), start_step=4)
    starts = [
        event.step
        for event in events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    assert starts == [0, 4]


def test_images_are_stored_as_they_are(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    writer = metrics.MetricWriter(str(tmp_path))
    writer.images(2, {"array": image, "pillow": Image.fromarray(image)})
    writer.close()
    found = {value.tag: value.image for event in events(tmp_path) for value in event.summary.value}
    assert set(found) == {"array", "pillow"}
    assert all((picture.height, picture.width) == (5, 7) for picture in found.values())


def test_a_full_disk_ends_nothing(tmp_path, caplog, monkeypatch):
    """Far more events than tensorboardX's queue would hold: it blocked for ever."""
    writer = metrics.MetricWriter(str(tmp_path))
    writer.scalars(0, {"loss": 0.0})
    full = open("/dev/full", "ab", buffering=0)
    files = writer._rows._file, writer._events._file
    writer._rows._file = writer._events._file = full
    for step in range(1, 40):
        writer.scalars(step, {"loss": float(step)})
    assert caplog.text.count("No space left on device") == 1
    writer._rows._file, writer._events._file = files  # Somebody has made room.
    writer.scalars(40, {"loss": 40.0})
    writer.close()
    assert [row["loss"] for row in metrics.read_rows(str(tmp_path))] == list(range(41))
    found = [v.simple_value for event in events(tmp_path) for v in event.summary.value]
    assert found == list(range(41))


def test_rows_that_are_none(tmp_path):
    good = b'{"step": 1, "loss": 2.0}\n'
    for bad in (b"[1]\n", b'{"loss": 1}\n', b"\xff\xfe\n", b'{"step": "x"}\n', b"\n", b"null"):
        (tmp_path / "metrics.jsonl").write_bytes(good + bad)
        assert metrics.read_rows(str(tmp_path)) == [{"step": 1, "loss": 2.0}]
        metrics.MetricWriter(str(tmp_path), start_step=2).close()
