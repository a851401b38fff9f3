"""A masked vector on disk: the integers of one site's update and its weight, modulo 2^k, under masks.

    b"FTMSK1\n\0"       magic
    u32 little endian   length of the header, at most 64 KiB
    canonical JSON      the header's fields, sorted keys, no spaces
    words               all values modulo 2^ring_bits, packed as `ring.pack` does, one after another

The values are all levels of the update in the order of its elements, then the weight's limbs. Value v (a
multiple of 32) begins at byte v * ring_bits / 8 of the body, so any range is read and written by itself.
The size of the file follows from the header, and is compared before anything is allocated.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from types import TracebackType

from fedtrain.core.masks import Proposal
from fedtrain.core.orders import DIGEST, NAME
from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.files import (
    StrPath,
    create_target,
    octet_view,
    open_source,
    read_exactly,
    write_exactly,
)
from fedtrain.methods.headed import opening, read_opening
from fedtrain.methods.layout import ELEMENTS_MAX
from fedtrain.methods.ring import (
    GROUP_VALUES,
    RING_BITS_MAX,
    Words,
    limb_count,
    pack,
    packed_bytes,
    unpack,
)
from fedtrain.methods.summable import summable
from fedtrain.methods.updatefile import BLOCK_ELEMENTS_MAX
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Octets

MAGIC = b"FTMSK1\n\0"

WEIGHT_MAX = (1 << 53) - 1
"""Weights are counts of tokens or examples; beyond this a float64 would round their sum."""

_COUNT_MAX = 2**53


@dataclass(frozen=True)
class MaskedHeader:
    """What a masked file says of itself.

    Attributes:
        run, round, site: names and counts of the round, and who made it.
        session: digest of the attempt's session, 64 hex digits.
        codec: the summable codec of the update below the masks.
        num_elements, block_elements: of that update's flat vector.
        ring_bits: bits of a value.
        weight_max: no site's weight is larger; 0 if every site counts the same.
    """

    run: str
    round: int
    site: str
    session: str
    codec: str
    num_elements: int
    block_elements: int
    ring_bits: int
    weight_max: int


def header_of(
    proposal: Proposal, session: str, site: str, num_elements: int, weight_max: int
) -> MaskedHeader:
    """The header of a site's file in the session of this proposal."""
    return MaskedHeader(
        run=proposal.run,
        round=proposal.round,
        site=site,
        session=session,
        codec=proposal.codec,
        num_elements=num_elements,
        block_elements=proposal.block_elements,
        ring_bits=proposal.ring_bits,
        weight_max=weight_max,
    )


def level_values(header: MaskedHeader) -> int:
    """How many of the values are levels; the limbs of the weight follow."""
    return summable(header.codec).level_count(header.num_elements)


def num_values(header: MaskedHeader) -> int:
    """How many values the vector has: levels and limbs."""
    return level_values(header) + limb_count(header.weight_max, summable(header.codec).bits)


def masked_size(header: MaskedHeader) -> int:
    """Exact size in bytes of the file with this header."""
    return len(opening(MAGIC, header)) + packed_bytes(num_values(header), header.ring_bits)


def check_masked(header: MaskedHeader) -> None:
    """Holds that the header is possible in itself; `BadUpdate`, or `ConfigError` for its codec."""
    row = summable(header.codec)
    if NAME.fullmatch(header.run) is None or NAME.fullmatch(header.site) is None:
        raise BadUpdate("run or site is not a name")
    if DIGEST.fullmatch(header.session) is None:
        raise BadUpdate("session is not a SHA-256 in hexadecimal")
    if not 0 <= header.round <= _COUNT_MAX:
        raise BadUpdate("round is negative or absurd")
    if not 0 < header.num_elements <= ELEMENTS_MAX:
        raise BadUpdate("num_elements is not between 1 and 2^40")
    if not 0 < header.block_elements <= BLOCK_ELEMENTS_MAX or header.block_elements % CHUNK_ELEMENTS:
        raise BadUpdate(f"block_elements is not a multiple of {CHUNK_ELEMENTS} up to 2^24")
    if not row.bits <= header.ring_bits <= RING_BITS_MAX:
        raise BadUpdate(f"ring_bits is not between the codec's {row.bits} and {RING_BITS_MAX}")
    if not 0 <= header.weight_max <= WEIGHT_MAX:
        raise BadUpdate("weight_max is negative or above 2^53 - 1")


class MaskedWriter:
    """Writes one masked file at `path`, which the caller later moves into place.

    `place` may be called from several threads, `absorb` takes the digest and so needs the bytes in order.
    """

    def __init__(self, path: StrPath, header: MaskedHeader) -> None:
        check_masked(header)
        prefix = opening(MAGIC, header)
        self.size_bytes = masked_size(header)
        self._ring_bits = header.ring_bits
        self._data_offset = len(prefix)
        self._absorbed_bytes = 0
        self._hash = hashlib.sha256(prefix)
        self._descriptor = create_target(path, self.size_bytes)
        write_exactly(self._descriptor, prefix, 0)

    def place(self, start: int, words: Words, scratch: Octets) -> Octets:
        """Pack and write the values from `start`, a multiple of 32; returns what `absorb` wants."""
        packed = pack(words, self._ring_bits, scratch)
        offset = self._data_offset + _byte_of(start, self._ring_bits)
        if offset + len(packed) > self.size_bytes:
            raise LocalError("more values than the header of this masked file promises")
        write_exactly(self._descriptor, packed, offset)
        return packed

    def absorb(self, packed: Octets) -> None:
        """Take the next packed values into the digest."""
        self._hash.update(octet_view(packed))
        self._absorbed_bytes += len(packed)

    def close(self) -> tuple[str, int]:
        """(SHA-256 of the file, size in bytes)."""
        self.abandon()
        if self._data_offset + self._absorbed_bytes != self.size_bytes:
            raise LocalError("fewer values than the header of this masked file promises")
        return self._hash.hexdigest(), self.size_bytes

    def abandon(self) -> None:
        """Close the file as it is; the caller removes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MaskedReader:
    """Reads a masked file; a malformed one is a `BadUpdate` before any allocation. Safe in threads.

    Attributes:
        header: checked in itself, not against a round.
        num_values: how many values it holds.
    """

    def __init__(self, path: StrPath) -> None:
        self._descriptor, size_bytes = open_source(path)
        try:
            self.header, self._data_offset = read_opening(
                self._descriptor, size_bytes, MAGIC, MaskedHeader, "masked update", check_masked
            )
            expected = masked_size(self.header)
            if size_bytes != expected:
                raise BadUpdate(
                    f"masked update of {self.header.site}: {size_bytes} bytes, its header implies {expected}"
                )
            self.num_values = num_values(self.header)
        except BaseException:
            self.close()
            raise

    def read(self, start: int, out: Words, scratch: Octets) -> Words:
        """Fill `out` (n,) with the values from `start`, a multiple of 32.

        `start + n` is a multiple of 32 too, or the end. `scratch` holds at least the packed bytes.
        """
        stop = start + len(out)
        if stop > self.num_values or (stop % GROUP_VALUES and stop != self.num_values):
            raise LocalError(f"values {start} to {stop} of {self.num_values} in a masked update")
        bits = self.header.ring_bits
        packed = scratch[: packed_bytes(len(out), bits)]
        read_exactly(self._descriptor, packed, self._data_offset + _byte_of(start, bits))
        return unpack(packed, bits, out)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> MaskedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _byte_of(value: int, bits: int) -> int:
    if value % GROUP_VALUES:
        raise LocalError(f"packed ranges start at multiples of {GROUP_VALUES} values, not at {value}")
    return value * bits // 8
