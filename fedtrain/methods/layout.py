"""Which tensor lies where in the flat vector: the document that all sides compare by digest.

The flat vector holds the *shared* entries one after another in the order of the layout, each in
row-major order. Private entries (a site's own head, its normalisation layers) are named so that
everyone knows of them, but never travel.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from dataclasses import dataclass

from fedtrain.core import canonical
from fedtrain.errors import BadUpdate, RemoteError

ENTRIES_MAX = 100_000
ELEMENTS_MAX = 1 << 40
DIMENSIONS_MAX = 16
TEXT_CHARACTERS_MAX = 4 << 20
"""Nothing larger crosses the wire, beside which it has to fit into one message."""
DTYPES = ("float32",)
SCOPES = ("shared", "private")
ROLES = ("averaged", "optimised")

# Names become keys of files and log lines: no separators of paths, nothing invisible.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]|\.(?!\.)){0,254}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    Attributes:
        name: as the model names it, e.g. `blocks.0.attention.weight`.
        shape: sizes, each at least 1; () for a single number.
        dtype: `float32`; the flat vector holds nothing else.
        scope: `shared` entries are in the flat vector, `private` ones stay at the site.
        role: `averaged` by the outer optimiser, or `optimised` by it alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scope: str = "shared"
    role: str = "averaged"

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The ordered entries of a model; impossible ones cannot be built (`BadUpdate`)."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.entries) <= ENTRIES_MAX:
            raise BadUpdate(f"a layout has 1 to {ENTRIES_MAX} entries, this one has {len(self.entries)}")
        names = set()
        for entry in self.entries:
            _check_entry(entry)
            if entry.name in names:
                raise BadUpdate(f"layout names {entry.name!r} twice")
            names.add(entry.name)
        if not 0 < self.num_elements <= ELEMENTS_MAX:
            raise BadUpdate(f"a layout shares 1 to 2^40 elements, this one {self.num_elements}")

    @functools.cached_property
    def shared(self) -> tuple[Entry, ...]:
        """The entries of the flat vector, in its order."""
        return tuple(entry for entry in self.entries if entry.scope == "shared")

    @functools.cached_property
    def num_elements(self) -> int:
        """Length of the flat vector."""
        return sum(entry.num_elements for entry in self.shared)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(canonical.encode(self)).hexdigest()

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Name of each shared entry -> (start, stop) in the flat vector."""
        places = {}
        start = 0
        for entry in self.shared:
            places[entry.name] = (start, start + entry.num_elements)
            start += entry.num_elements
        return places

    def to_json(self) -> str:
        """Canonical JSON: equal layouts have equal text."""
        return canonical.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The layout from JSON that another process wrote; `BadUpdate` says what is wrong."""
        if len(text) > TEXT_CHARACTERS_MAX:
            raise BadUpdate(f"layout: {len(text)} characters, at most {TEXT_CHARACTERS_MAX} are read")
        if text.count('"name"') > ENTRIES_MAX:
            raise BadUpdate(f"layout: more than {ENTRIES_MAX} entries")
        check_brackets(text, text.count('"name"'), 1, "layout")
        try:
            return canonical.decode(cls, text)
        except BadUpdate:
            raise
        except RemoteError as error:
            raise BadUpdate(f"layout: {error}") from error


def check_brackets(text: str, num_entries: int, lists_per_entry: int, what: str) -> None:
    """Refuse a document of more objects and lists than its entries need, before any of them is made.

    An empty list takes two characters in the text and 64 bytes in memory. Two objects and one list may
    stand around the entries.
    """
    if text.count("{") > num_entries + 2 or text.count("[") > lists_per_entry * num_entries + 1:
        raise BadUpdate(f"{what}: more brackets than {num_entries} entries have")


def _check_entry(entry: Entry) -> None:
    name = entry.name
    if _NAME.fullmatch(name) is None or name == "__metadata__":
        raise BadUpdate(f"layout: {name[:80]!r} is not a tensor name (letters, digits, '_', '-', '.')")
    if entry.dtype not in DTYPES:
        raise BadUpdate(f"layout: {name} is {entry.dtype[:40]!r}; only float32 entries are accepted for now")
    if entry.scope not in SCOPES or entry.role not in ROLES:
        raise BadUpdate(
            f"layout: {name} is {entry.scope[:40]!r} and {entry.role[:40]!r}; "
            f"valid are {' or '.join(SCOPES)}, and {' or '.join(ROLES)}"
        )
    if len(entry.shape) > DIMENSIONS_MAX:
        raise BadUpdate(f"layout: {name} has {len(entry.shape)} dimensions, at most {DIMENSIONS_MAX} pass")
    product = 1
    for size in entry.shape:
        product *= size
        if size < 1 or product > ELEMENTS_MAX:
            raise BadUpdate(f"layout: a size of {name} is below 1, or they multiply to more than 2^40")
