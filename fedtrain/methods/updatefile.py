"""An update (site to coordinator) or a delta (coordinator to sites) on disk.

    b"FTUPD1\\n\\0"       magic
    u32 little endian   length of the header, at most 64 KiB
    canonical JSON      the header's fields, sorted keys, no spaces
    blocks              in order, each exactly `codec.encoded_bytes(its elements)`

Blocks begin at multiples of `block_elements`, itself a multiple of the codecs' chunk of 4096, so
element e of the flat vector (e a multiple of 4096) begins at byte `encoded_bytes(e)` of the body:
any such range can be read by itself. The size of the file follows from the header, and is
compared before anything is allocated.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from fedtrain.core.orders import DIGEST, NAME
from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.codecs import Codec, codec
from fedtrain.methods.files import (
    StrPath,
    create_target,
    octet_view,
    open_source,
    read_exactly,
    write_exactly,
)
from fedtrain.methods.headed import HEADER_BYTES_MAX as HEADER_BYTES_MAX, opening, read_opening
from fedtrain.methods.layout import ELEMENTS_MAX
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, Octets, norm_of, square_sums

MAGIC = b"FTUPD1\n\0"
BLOCK_ELEMENTS_MAX = 1 << 24
_COUNT_MAX = 10**9
_INSPECT_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class UpdateHeader:
    """What an update file says of itself.

    Attributes:
        run, round: names and counts of the round it was made in.
        site: who made it; "" for a delta.
        direction: "up" for an update, "down" for a delta.
        base_version: version of the public model that it starts from.
        layout_digest: of the layout of its flat vector.
        codec: a name that `codecs.codec` knows.
        block_elements: elements per block, a multiple of 4096.
        num_elements: length of the flat vector.
        clip_norm: the L2 norm that the site clipped to, None if it did not.
    """

    run: str
    round: int
    site: str
    direction: str
    base_version: int
    layout_digest: str
    codec: str
    block_elements: int
    num_elements: int
    clip_norm: float | None


@dataclass(frozen=True)
class UpdateFacts:
    """What the coordinator knows an update must be; see `UpdateHeader` for the fields."""

    run: str
    round: int
    site: str
    base_version: int
    layout_digest: str
    codec: str
    num_elements: int


def num_blocks(header: UpdateHeader) -> int:
    """How many blocks the vector is cut into."""
    return -(-header.num_elements // header.block_elements)


def expected_size(header: UpdateHeader) -> int:
    """Exact size in bytes of the file with this header."""
    return len(_prefix(header)) + codec(header.codec).encoded_bytes(header.num_elements)


class UpdateWriter:
    """Writes one update file at `path`, which the caller later moves into place.

    `place` may be called from several threads, `absorb` takes the digest and so needs the bytes
    in order; `write_block` does both.
    """

    def __init__(self, path: StrPath, header: UpdateHeader, hash_file: bool = True) -> None:
        _check(header)
        prefix = _prefix(header)
        self._codec = codec(header.codec)
        self._data_offset = len(prefix)
        self._absorbed_bytes = 0
        self._hash = hashlib.sha256(prefix) if hash_file else None
        self.size_bytes = expected_size(header)
        self._descriptor = create_target(path, self.size_bytes)
        write_exactly(self._descriptor, prefix, 0)

    def place(self, start: int, encoded: bytes | memoryview | Octets) -> None:
        """Write the encoding of a range that begins at element `start`, a multiple of 4096."""
        offset = self._data_offset + self._codec.encoded_bytes(start)
        if offset + len(encoded) > self.size_bytes:
            raise LocalError("more encoded bytes than the header of this update promises")
        write_exactly(self._descriptor, encoded, offset)

    def absorb(self, encoded: bytes | memoryview | Octets) -> None:
        """Take the next encoded bytes into the digest."""
        if self._hash is not None:
            self._hash.update(octet_view(encoded))
        self._absorbed_bytes += len(encoded)

    def write_block(self, encoded: bytes | memoryview | Octets) -> None:
        """The next block (or chunk-aligned range), encoded."""
        offset = self._data_offset + self._absorbed_bytes
        if offset + len(encoded) > self.size_bytes:
            raise LocalError("more encoded bytes than the header of this update promises")
        write_exactly(self._descriptor, encoded, offset)
        self.absorb(encoded)

    def close(self) -> tuple[str, int]:
        """(SHA-256 of the file or "" if not asked for, size in bytes)."""
        self.abandon()
        if self._data_offset + self._absorbed_bytes != self.size_bytes:
            raise LocalError("fewer encoded bytes than the header of this update promises")
        return ("" if self._hash is None else self._hash.hexdigest()), self.size_bytes

    def abandon(self) -> None:
        """Close the file as it is; the caller removes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class UpdateReader:
    """Reads an update file; a malformed one is a `BadUpdate` before any allocation. Safe in threads.

    Attributes:
        header: checked in itself, not against a round; `inspect` does that.
        num_blocks: how many blocks it holds.
    """

    def __init__(self, path: StrPath) -> None:
        self._descriptor, size_bytes = open_source(path)
        try:
            self.header, self._data_offset = _read_header(self._descriptor, size_bytes)
            self._codec: Codec = codec(self.header.codec)
            self.num_blocks = num_blocks(self.header)
        except BaseException:
            self.close()
            raise

    def decode_block(self, index: int, out: Floats, scratch: Octets) -> Floats:
        """Decode block `index` into the front of `out`, returned as a view.

        `scratch` holds at least the block's encoded bytes. `BadUpdate` if a value is not finite.
        """
        if not 0 <= index < self.num_blocks:
            raise LocalError(f"block {index} of an update of {self.num_blocks}")
        start = index * self.header.block_elements
        count = min(self.header.block_elements, self.header.num_elements - start)
        return self.decode_range(start, out[:count], scratch)

    def decode_range(self, start: int, out: Floats, scratch: Octets) -> Floats:
        """Fill `out` (n,) with the elements from `start`, a multiple of 4096.

        `start + n` is a multiple of 4096 too, or the vector's end.
        """
        encoded = self.encoded_range(start, len(out), scratch)
        try:
            self._codec.decode(encoded, out)
        except BadUpdate as error:
            block = start // self.header.block_elements
            raise BadUpdate(f"{_whose(self.header)}, block {block}: {error}") from error
        return out

    def encoded_range(self, start: int, count: int, scratch: Octets) -> Octets:
        """The bytes of `count` elements from `start`, cut as for `decode_range`, in front of `scratch`."""
        stop = start + count
        if start % CHUNK_ELEMENTS or (stop % CHUNK_ELEMENTS and stop != self.header.num_elements):
            raise LocalError(f"the range {start} to {stop} does not lie on chunks of {CHUNK_ELEMENTS}")
        if stop > self.header.num_elements:
            raise LocalError(f"the range {start} to {stop} of an update of {self.header.num_elements}")
        encoded = scratch[: self._codec.encoded_bytes(count)]
        read_exactly(self._descriptor, encoded, self._data_offset + self._codec.encoded_bytes(start))
        return encoded

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> UpdateReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def inspect(path: StrPath, expected: UpdateFacts, norm_max: float | None = None) -> float:
    """L2 norm of the update at `path` after it was found to be what the round expects.

    One pass in 1 MiB of decoded values. The norm is a float64 sum over chunks in their order.
    Raises `BadUpdate` that names what differs, for values that are not finite (or whose squares
    are not, beyond 1e17), and for a norm above `norm_max`.
    """
    with UpdateReader(path) as reader:
        header = reader.header
        check_facts(header, expected)
        step = min(_INSPECT_ELEMENTS, header.num_elements)
        out = np.empty(step, np.float32)
        scratch = np.empty(codec(header.codec).encoded_bytes(step), np.uint8)
        sums = np.empty(-(-header.num_elements // CHUNK_ELEMENTS), np.float64)
        for start in range(0, header.num_elements, step):
            values = reader.decode_range(start, out[: header.num_elements - start], scratch)
            squares = square_sums(values)
            first = start // CHUNK_ELEMENTS
            sums[first : first + len(squares)] = squares
    norm = norm_of(sums)
    if not math.isfinite(norm):
        raise BadUpdate(f"{_whose(header)}: holds values that are not finite, or beyond 1e17")
    if norm_max is not None and norm > norm_max:
        raise BadUpdate(f"{_whose(header)}: its norm {norm:.6g} is above the bound of {norm_max:.6g}")
    return norm


def check_facts(header: UpdateHeader, expected: UpdateFacts) -> None:
    """`BadUpdate` naming the first field in which the header is not what was expected."""
    direction = "up" if expected.site else "down"
    wanted: dict[str, Any] = {**vars(expected), "direction": direction}
    for name, value in wanted.items():
        found = getattr(header, name)
        if found != value:
            raise BadUpdate(f"{_whose(header)}: its {name} is {found!r}, expected {value!r}")


def _whose(header: UpdateHeader) -> str:
    return f"update of {header.site}" if header.site else "delta"


def _prefix(header: UpdateHeader) -> bytes:
    return opening(MAGIC, header)


def _read_header(descriptor: int, size_bytes: int) -> tuple[UpdateHeader, int]:
    """(header, byte at which the blocks begin) of a file whose size is exactly right."""
    header, data_offset = read_opening(descriptor, size_bytes, MAGIC, UpdateHeader, "update", _check)
    expected = expected_size(header)
    if size_bytes != expected:
        raise BadUpdate(f"{_whose(header)}: {size_bytes} bytes, its header implies {expected}")
    return header, data_offset


def _check(header: UpdateHeader) -> None:
    """A header that is possible in itself; `BadUpdate` or `ConfigError` (codec) otherwise."""
    codec(header.codec[:40])
    if header.direction not in ("up", "down") or (header.direction == "up") != bool(header.site):
        raise BadUpdate("direction is not 'up' with a site or 'down' without one")
    if NAME.fullmatch(header.run) is None or (header.site and NAME.fullmatch(header.site) is None):
        raise BadUpdate("run or site is not a name")
    if DIGEST.fullmatch(header.layout_digest) is None:
        raise BadUpdate("layout_digest is not a SHA-256 in hexadecimal")
    if not (0 <= header.round <= _COUNT_MAX and 0 <= header.base_version <= _COUNT_MAX):
        raise BadUpdate("round or base_version is negative or absurd")
    if not 0 < header.num_elements <= ELEMENTS_MAX:
        raise BadUpdate("num_elements is not between 1 and 2^40")
    if not 0 < header.block_elements <= BLOCK_ELEMENTS_MAX or header.block_elements % CHUNK_ELEMENTS:
        raise BadUpdate(f"block_elements is not a multiple of {CHUNK_ELEMENTS} up to 2^24")
    if header.clip_norm is not None and not 0 < header.clip_norm < math.inf:
        raise BadUpdate("clip_norm is not a positive number")
