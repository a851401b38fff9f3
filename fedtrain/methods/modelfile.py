"""The public model on disk: a safetensors file that is written and read as one stream.

    u64 little endian   length of the header
    JSON, padded        `__metadata__` (layout_digest, run, version, all text), then the tensors
    float32 LE          all shared tensors in layout order, without gaps

Any safetensors reader opens it. We write and read the format ourselves because a model of any
size must pass through one buffer, and because the *model digest*, SHA-256 over the layout digest
(ASCII) and the tensor bytes in layout order, is taken on the way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from types import TracebackType
from typing import Any

import numpy as np

from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.files import (
    StrPath,
    create_target,
    octet_view,
    open_source,
    read_exactly,
    write_exactly,
)
from fedtrain.methods.layout import DIMENSIONS_MAX, ELEMENTS_MAX, ENTRIES_MAX, Layout, check_brackets
from fedtrain.methods.vectors import ELEMENT_BYTES, Floats, square_sums

HEADER_BYTES_MAX = 4 << 20
"""As for the layout, whose entries are longer than a tensor's description here."""

_STREAM_ELEMENTS = 1 << 18
_VERSION = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_METADATA = {"layout_digest", "run", "version"}


def model_header(layout: Layout, run: str, version: int) -> bytes:
    """Everything before the first tensor byte; its length is a multiple of 8."""
    header: dict[str, Any] = {
        "__metadata__": {"layout_digest": layout.digest, "run": run, "version": str(version)}
    }
    start = 0
    for entry in layout.shared:
        stop = start + ELEMENT_BYTES * entry.num_elements
        header[entry.name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES_MAX:
        raise LocalError(f"a model header of {len(text)} bytes: the layout has too many or too long names")
    return len(text).to_bytes(8, "little") + text


class ModelWriter:
    """Writes one model file at `path`, which the caller later moves into place.

    `place` may be called from several threads, `absorb` takes the digest and so needs the values
    in order; `write` does both for a writer that has them in order anyway.
    """

    def __init__(
        self, path: StrPath, layout: Layout, run: str, version: int, hash_file: bool = False
    ) -> None:
        header = model_header(layout, run, version)
        self._num_elements = layout.num_elements
        self._data_offset = len(header)
        self._absorbed = 0
        self._model_hash = hashlib.sha256(layout.digest.encode())
        self._file_hash = hashlib.sha256(header) if hash_file else None
        self.size_bytes = len(header) + ELEMENT_BYTES * layout.num_elements
        self._descriptor = create_target(path, self.size_bytes)
        write_exactly(self._descriptor, header, 0)

    def place(self, start: int, values: Floats) -> None:
        """Write `values` (n,) at element `start`."""
        if start + len(values) > self._num_elements:
            raise LocalError(f"{start + len(values)} elements for a model of {self._num_elements}")
        write_exactly(self._descriptor, _little_endian(values), self._data_offset + ELEMENT_BYTES * start)

    def absorb(self, values: Floats) -> None:
        """Take the next `values` into the digests."""
        data = octet_view(_little_endian(values))
        self._model_hash.update(data)
        if self._file_hash is not None:
            self._file_hash.update(data)
        self._absorbed += len(values)

    def write(self, values: Floats) -> None:
        """The next `values` of the flat vector."""
        self.place(self._absorbed, values)
        self.absorb(values)

    def close(self) -> tuple[str, str, int]:
        """(model digest, SHA-256 of the file or "" if not asked for, size in bytes)."""
        self.abandon()
        if self._absorbed != self._num_elements:
            raise LocalError(f"a model of {self._num_elements} elements was given {self._absorbed}")
        file_digest = "" if self._file_hash is None else self._file_hash.hexdigest()
        return self._model_hash.hexdigest(), file_digest, self.size_bytes

    def abandon(self) -> None:
        """Close the file as it is; the caller removes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ModelReader:
    """Reads a model file of our own shape; anything else is a `BadUpdate` before any allocation.

    Attributes:
        layout_digest, run, version: what its metadata says.
        names, shapes: of the tensors, in their order.
        num_elements: length of the flat vector.
        data_offset: byte at which the vector starts.
    """

    def __init__(self, path: StrPath) -> None:
        self._descriptor, size_bytes = open_source(path)
        try:
            header = _read_header(self._descriptor, size_bytes)
            self.data_offset = 8 + len(header)
            self._parse(_strict_json(header), size_bytes - self.data_offset)
        except BaseException:
            self.close()
            raise

    def _parse(self, plain: dict[str, Any], data_bytes: int) -> None:
        metadata = plain.pop("__metadata__", None)
        if (
            not isinstance(metadata, dict)
            or set(metadata) != _METADATA
            or not all(isinstance(value, str) for value in metadata.values())
            or _VERSION.fullmatch(metadata["version"]) is None
        ):
            raise BadUpdate("model: its metadata is not layout_digest, run and version")
        if not 0 < len(plain) <= ENTRIES_MAX:
            raise BadUpdate(f"model: {len(plain)} tensors, 1 to {ENTRIES_MAX} are accepted")
        self.layout_digest: str = metadata["layout_digest"]
        self.run: str = metadata["run"]
        self.version = int(metadata["version"])
        self.names = tuple(plain)
        stop = 0
        shapes = []
        for name, tensor in plain.items():
            shape, stop = _read_tensor(name, tensor, stop)
            shapes.append(shape)
        if stop != data_bytes:
            raise BadUpdate(f"model: its header tells of {stop} tensor bytes, the file holds {data_bytes}")
        self.shapes = tuple(shapes)
        self.num_elements = stop // ELEMENT_BYTES

    def read(self, start: int, out: Floats) -> None:
        """Fill `out` (n,) with the elements from `start` on; safe in threads."""
        if start < 0 or start + len(out) > self.num_elements:
            raise LocalError(f"elements {start} to {start + len(out)} of a model of {self.num_elements}")
        read_exactly(self._descriptor, out, self.data_offset + ELEMENT_BYTES * start)

    def check_layout(self, layout: Layout) -> None:
        """`BadUpdate` unless the file's tensors are the layout's shared entries."""
        if self.layout_digest != layout.digest:
            raise BadUpdate(
                f"model: made for layout {self.layout_digest[:16]}, this run has {layout.digest[:16]}"
            )
        expected = [(entry.name, entry.shape) for entry in layout.shared]
        if list(zip(self.names, self.shapes, strict=True)) != expected:
            raise BadUpdate("model: its tensors are not those of the layout that it names")

    def verify(self, layout: Layout) -> str:
        """The model digest, in one pass; `BadUpdate` for another layout or values that are not finite."""
        self.check_layout(layout)
        digest = hashlib.sha256(layout.digest.encode())
        buffer = np.empty(min(_STREAM_ELEMENTS, self.num_elements), np.float32)
        for start in range(0, self.num_elements, len(buffer)):
            values = buffer[: self.num_elements - start]
            self.read(start, values)
            if not np.all(np.isfinite(square_sums(values))):
                raise BadUpdate(f"model: a weight near element {start} is not finite, or beyond 1e17")
            digest.update(octet_view(_little_endian(values)))
        return digest.hexdigest()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ModelReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def renumber(
    source: StrPath, target: StrPath, layout: Layout, run: str, version: int
) -> tuple[str, str, int]:
    """Write the model in `source` as version `version` of the run: the same tensors under another number.

    Returns (model digest, SHA-256 of the file, size in bytes). Raises `BadUpdate` for another layout.
    """
    with ModelReader(source) as reader:
        reader.check_layout(layout)
        writer = ModelWriter(target, layout, run, version, hash_file=True)
        try:
            buffer = np.empty(min(_STREAM_ELEMENTS, reader.num_elements), np.float32)
            for start in range(0, reader.num_elements, len(buffer)):
                values = buffer[: reader.num_elements - start]
                reader.read(start, values)
                writer.write(values)
            return writer.close()
        finally:
            writer.abandon()


def _little_endian(values: Floats) -> Any:
    return np.ascontiguousarray(values, dtype="<f4")


def _read_header(descriptor: int, size_bytes: int) -> bytes:
    if size_bytes < 8:
        raise BadUpdate(f"model: {size_bytes} bytes are no safetensors file")
    prefix = bytearray(8)
    read_exactly(descriptor, prefix, 0)
    length = int.from_bytes(prefix, "little")
    if length > min(HEADER_BYTES_MAX, size_bytes - 8) or length % 8:
        raise BadUpdate(f"model: a header of {length} bytes in a file of {size_bytes}")
    header = bytearray(length)
    read_exactly(descriptor, header, 8)
    return bytes(header)


def _strict_json(header: bytes) -> dict[str, Any]:
    try:
        text = header.decode()
        check_brackets(text, text.count('"dtype"'), 2, "model")
        plain = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadUpdate(f"model: its header is not valid JSON ({str(error)[:120]})") from error
    if not isinstance(plain, dict):
        raise BadUpdate("model: its header is not a JSON object")
    return plain


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a name occurs twice")
    return keys


def _read_tensor(name: str, tensor: Any, start: int) -> tuple[tuple[int, ...], int]:
    """(shape, end byte) of a tensor that must begin at byte `start`."""
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise BadUpdate(f"model: the description of {name[:80]!r} is malformed")
    shape = tensor["shape"]
    if tensor["dtype"] != "F32" or not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise BadUpdate(
            f"model: {name[:80]!r} is not a float32 tensor of at most {DIMENSIONS_MAX} dimensions"
        )
    if not all(type(size) is int and 0 < size <= ELEMENTS_MAX for size in shape):
        raise BadUpdate(f"model: a size of {name[:80]!r} is not between 1 and 2^40")
    stop = start + ELEMENT_BYTES * math.prod(shape)
    if tensor["data_offsets"] != [start, stop]:
        raise BadUpdate(f"model: {name[:80]!r} does not lie where its shape puts it")
    return tuple(shape), stop
