"""The public model's file: readable by others, hostile ones refused, one digest per model."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtrain.errors import BadUpdate, LocalError, StorageError
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter

LAYOUT = Layout(
    (Entry("a", (2, 3)), Entry("own", (5,), scope="private"), Entry("b", ()), Entry("c", (9000,)))
)
VALUES = np.arange(LAYOUT.num_elements, dtype=np.float32) / 7


def write(path: Path, values: np.ndarray = VALUES, piece: int = 4096) -> tuple[str, str, int]:
    """Write `values` in pieces; what `close` returns."""
    writer = ModelWriter(path, LAYOUT, "run-1", 3, hash_file=True)
    for start in range(0, len(values), piece):
        writer.write(values[start : start + piece])
    return writer.close()


def test_safetensors_reads_it(tmp_path: Path) -> None:
    """The safetensors library finds the tensors, their shapes and the metadata."""
    safetensors = pytest.importorskip("safetensors")
    write(tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", framework="numpy") as file:
        assert set(file.keys()) == {"a", "b", "c"}
        assert file.metadata() == {"layout_digest": LAYOUT.digest, "run": "run-1", "version": "3"}
        for name, (start, stop) in LAYOUT.offsets().items():
            tensor = file.get_tensor(name)
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor.reshape(-1), VALUES[start:stop])
        assert file.get_tensor("a").shape == (2, 3)
        assert file.get_tensor("b").shape == ()


def test_digests_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    """Model digest over layout digest and values; file digest over the file; neither depends on pieces."""
    model_digest, file_digest, size = write(tmp_path / "m", piece=1000)
    data = (tmp_path / "m").read_bytes()
    assert model_digest == hashlib.sha256(LAYOUT.digest.encode() + VALUES.tobytes()).hexdigest()
    assert file_digest == hashlib.sha256(data).hexdigest()
    assert size == len(data)
    assert write(tmp_path / "n", piece=7777) == (model_digest, file_digest, size)
    with ModelReader(tmp_path / "m") as reader:
        assert reader.verify(LAYOUT) == model_digest


def test_ranges_and_facts_are_read_back(tmp_path: Path) -> None:
    """The reader gives metadata, names, shapes and any range."""
    write(tmp_path / "m")
    with ModelReader(tmp_path / "m") as reader:
        assert (reader.run, reader.version, reader.layout_digest) == ("run-1", 3, LAYOUT.digest)
        assert reader.names == ("a", "b", "c")
        assert reader.shapes == ((2, 3), (), (9000,))
        out = np.empty(4097, np.float32)
        reader.read(13, out)
        np.testing.assert_array_equal(out, VALUES[13 : 13 + 4097])
        with pytest.raises(LocalError):
            reader.read(LAYOUT.num_elements - 1, out)


def test_writer_refuses_too_few_and_too_many(tmp_path: Path) -> None:
    """A writer that is not given exactly the model's elements says so."""
    with pytest.raises(LocalError):
        write(tmp_path / "m", VALUES[:-1])
    with pytest.raises(LocalError):
        write(tmp_path / "m", np.append(VALUES, VALUES[:1]))


def test_verify_refuses_other_layouts_and_non_finite_weights(tmp_path: Path) -> None:
    """Another layout, and NaN or infinity anywhere, is refused."""
    write(tmp_path / "m")
    other = Layout((Entry("a", (LAYOUT.num_elements,)),))
    with ModelReader(tmp_path / "m") as reader, pytest.raises(BadUpdate, match="layout"):
        reader.verify(other)
    for bad in (np.nan, np.inf, -np.inf):
        values = VALUES.copy()
        values[5000] = bad
        write(tmp_path / "bad", values)
        with ModelReader(tmp_path / "bad") as reader, pytest.raises(BadUpdate, match="finite"):
            reader.verify(LAYOUT)


def damaged(path: Path, change: Any) -> Path:
    """A copy of a good file whose JSON header went through `change`."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    text += b" " * (-len(text) % 8)
    target = path.with_name("damaged")
    target.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a"].update(shape=[2, 4]),
        lambda header: header["a"].update(shape=[-2, -3]),
        lambda header: header["a"].update(shape=[2**62, 2**62]),
        lambda header: header["a"].update(shape=[True, 6]),
        lambda header: header["a"].update(dtype="F16"),
        lambda header: header["b"].update(data_offsets=[0, 4]),
        lambda header: header["c"].update(shape=[9001], data_offsets=[28, 28 + 4 * 9001]),
        lambda header: header.pop("b") and None,
        lambda header: header.pop("__metadata__") and None,
        lambda header: header["__metadata__"].update(version="-1"),
        lambda header: header["__metadata__"].update(version="1" * 5000),
        lambda header: header["__metadata__"].update(run=5),
        lambda header: header.update(extra=1),
        lambda header: "[1, 2]",
        lambda header: "[" * 5000,
        lambda header: '{"a": 1, "a": 2}',
        lambda header: "",
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, change: Any) -> None:
    """Every header that does not describe exactly the bytes that follow is refused."""
    write(tmp_path / "m")
    with pytest.raises(BadUpdate):
        ModelReader(damaged(tmp_path / "m", change))


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    """Short, lying, linked, piped, or absent files raise errors of ours."""
    for data in (b"", b"1234567", b"\xff" * 8 + b"x" * 100, (1 << 40).to_bytes(8, "little") + b"{}"):
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(BadUpdate):
            ModelReader(tmp_path / "m")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(BadUpdate):
            ModelReader(tmp_path / name)
    with pytest.raises(StorageError):
        ModelReader(tmp_path / "absent")
