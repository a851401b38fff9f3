"""The opening of our flat files: magic, length, and a header as canonical JSON.

    8 bytes             magic: which kind of file it is
    u32 little endian   length of the header, at most 64 KiB
    canonical JSON      the header's fields, sorted keys, no spaces

The body's size follows from the header, so a file of another size is refused before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fedtrain.core import canonical
from fedtrain.errors import BadUpdate, ConfigError, RemoteError
from fedtrain.methods.files import read_exactly

T = TypeVar("T")

HEADER_BYTES_MAX = 65_536


def opening(magic: bytes, header: Any) -> bytes:
    """The bytes before the body of a file with this header."""
    text = canonical.encode(header)
    return magic + len(text).to_bytes(4, "little") + text


def read_opening(
    descriptor: int, size_bytes: int, magic: bytes, kind: type[T], what: str, check: Callable[[T], None]
) -> tuple[T, int]:
    """(header of this `kind`, byte at which the body begins) of a file of `size_bytes`.

    `what` names the file in messages; `check` raises if the header is not possible in itself. Whatever is
    wrong is a `BadUpdate`.
    """
    fixed = bytearray(len(magic) + 4)
    if size_bytes < len(fixed):
        raise BadUpdate(f"{what}: {size_bytes} bytes are no {what} file")
    read_exactly(descriptor, fixed, 0)
    if fixed[: len(magic)] != magic:
        raise BadUpdate(f"{what}: does not begin as this kind of file does")
    length = int.from_bytes(fixed[len(magic) :], "little")
    if length > min(HEADER_BYTES_MAX, size_bytes - len(fixed)):
        raise BadUpdate(f"{what}: a header of {length} bytes in a file of {size_bytes}")
    text = bytearray(length)
    read_exactly(descriptor, text, len(fixed))
    try:
        header = canonical.decode(kind, bytes(text))
        check(header)
    except (ConfigError, RemoteError) as error:
        raise BadUpdate(f"{what}: its header is not acceptable: {str(error)[:200]}") from error
    if canonical.encode(header) != text:
        raise BadUpdate(f"{what}: its header is not canonical JSON")
    return header, len(fixed) + length
