"""What quantisation left behind at this site, on disk between rounds: one float32 vector.

A safetensors file with the single tensor `residual`, written and read piece by piece, so that a
vector of any size passes through one buffer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from fedtrain.errors import StorageError
from fedtrain.methods.files import create_target, open_source, read_exactly, write_exactly
from fedtrain.methods.vectors import ELEMENT_BYTES, Floats


class ResidualFile:
    """Random access to the vector; made by `create` or `open`, closed by `with`."""

    def __init__(self, descriptor: int, data_offset: int) -> None:
        self._descriptor = descriptor
        self._data_offset = data_offset

    @classmethod
    def create(cls, path: Path, num_elements: int) -> ResidualFile:
        """A new file of zeros."""
        header = _header(num_elements)
        descriptor = create_target(path, len(header) + ELEMENT_BYTES * num_elements)
        write_exactly(descriptor, header, 0)
        return cls(descriptor, len(header))

    @classmethod
    def open(cls, path: Path, num_elements: int) -> ResidualFile:
        """An existing file; `StorageError` if it does not hold a vector of this length."""
        header = _header(num_elements)
        descriptor, size_bytes = open_source(path)
        found = bytearray(len(header))
        if size_bytes == len(header) + ELEMENT_BYTES * num_elements:
            read_exactly(descriptor, found, 0)
        if found != header:
            os.close(descriptor)
            raise StorageError(f"{path} holds no residual of {num_elements} elements")
        return cls(descriptor, len(header))

    def read(self, start: int, out: Floats) -> None:
        """Fill `out` with the elements from `start` on."""
        read_exactly(self._descriptor, out, self._data_offset + ELEMENT_BYTES * start)

    def write(self, start: int, values: Floats) -> None:
        """Set the elements from `start` on."""
        write_exactly(self._descriptor, values, self._data_offset + ELEMENT_BYTES * start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> ResidualFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _header(num_elements: int) -> bytes:
    tensor = {"dtype": "F32", "shape": [num_elements], "data_offsets": [0, ELEMENT_BYTES * num_elements]}
    text = json.dumps({"residual": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
