"""Documents as one run of bytes: what is trained on, what is held out, and which window comes when.

Every tenth 4 KiB block of the joined text is held out; what lies between is training text. Windows
never cross a border, so no byte that a loss is measured on was ever trained on. A held-out block
comes from the same documents as its neighbours: the loss tells how well the site's text is
modelled, not how unseen documents are. Blocks rather than the last tenth, because the end of a
sorted collection is other text than its beginning.

Batches are counter-based: the windows of a step follow from (run, seed, site, step) alone, so a
position in the data is a step number, and nothing else needs to be kept.

Private training takes its records otherwise: windows that share no byte. Random windows overlap, so one
byte would be part of many records, and a bound on what one record can do would say nothing of a byte.
What a record is follows from the text as it is joined and cut: privacy holds between two lists of
records that differ in one (or, for groups, in all records of one document).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedtrain.errors import ConfigError

BLOCK_BYTES = 4096
HELD_OUT_EVERY = 10
SEPARATOR = b"\n"

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class Corpus:
    """Windows of `context + 1` bytes over documents.

    Args:
        parts: collections of documents, each split by itself; documents are joined with a newline.
        context: bytes that a prediction may look back on.
    """

    def __init__(self, parts: Iterable[Iterable[bytes]], context: int) -> None:
        documents = [list(part) for part in parts]
        texts = [SEPARATOR.join(part) for part in documents]
        # A separator belongs to the document before it, and joins no two parts.
        sizes = [len(text) + (i < len(part) - 1) for part in documents for i, text in enumerate(part)]
        self._document_ends = np.cumsum(sizes, dtype=np.int64)
        self._text = np.frombuffer(b"".join(texts), np.uint8)
        self._window = np.arange(context + 1)
        held_out, train = _segments([len(text) for text in texts])
        self._train_starts, self._train_ends = _windows(train, context)
        self._held_out, self._train = held_out, train
        if not self._train_ends.size or not _windows(held_out, context)[0].size:
            raise ConfigError(
                f"the data set has {self._text.size} bytes; for a context of {context} at least"
                f" {BLOCK_BYTES * HELD_OUT_EVERY} are needed, to train on and to hold out"
            )

    @property
    def train_bytes(self) -> int:
        """Bytes of training text."""
        return int(self._text.size) - self.held_out_bytes

    @property
    def held_out_bytes(self) -> int:
        """Bytes of held-out text."""
        return int(sum(end - start for start, end in self._held_out))

    def batch(self, material: str, batch_size: int) -> Bytes:
        """Training windows `(batch_size, context + 1)`, drawn uniformly by a hash of `material`."""
        digest = hashlib.shake_256(material.encode()).digest(8 * batch_size)
        # The bias of the remainder is below 2^-30 for any corpus that fits in memory.
        drawn = (np.frombuffer(digest, "<u8") % np.uint64(self._train_ends[-1])).astype(np.int64)
        segment = np.searchsorted(self._train_ends, drawn, side="right")
        before = np.where(segment > 0, self._train_ends[segment - 1], 0)
        return self._cut(self._train_starts[segment] + drawn - before)

    def records(self, *, within_documents: bool) -> tuple[Indices, Indices]:
        """Starts of training windows that share no byte, and the document that each begins in.

        Args:
            within_documents: leave out windows that run from one document into the next.
        """
        size = self._window.size
        borders = [end for _, end in self._train]
        cuts = np.unique(np.concatenate([borders, self._document_ends])) if within_documents else borders
        starts = []
        for begin, end in self._train:
            inside = [cut for cut in cuts[np.searchsorted(cuts, begin, side="right") :] if cut < end]
            for first, last in zip([begin, *inside], [*inside, end], strict=True):
                starts.append(np.arange(first, last - size + 1, size))
        found = np.concatenate(starts).astype(np.int64)
        return found, np.searchsorted(self._document_ends, found, side="right").astype(np.int64)

    def windows(self, starts: Indices) -> Bytes:
        """The windows `(n, context + 1)` that begin there."""
        return self._cut(starts)

    def held_out(self, windows_max: int) -> Bytes:
        """Held-out windows that share no predicted byte, at most so many, evenly spread."""
        context = self._window.size - 1
        starts = np.concatenate([np.arange(start, end - context, context) for start, end in self._held_out])
        if starts.size > windows_max:
            starts = starts[np.arange(windows_max) * starts.size // windows_max]
        return self._cut(starts)

    def _cut(self, starts: Indices) -> Bytes:
        windows: Bytes = self._text[starts[:, None] + self._window]
        return windows


def _segments(sizes: list[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(held-out, training) ranges of texts of these sizes, one after another.

    In each text a held-out block ends every full cycle of `HELD_OUT_EVERY` blocks.
    """
    cycle = BLOCK_BYTES * HELD_OUT_EVERY
    held_out, train = [], []
    begin = 0
    for size in sizes:
        end = begin + size
        for start in range(begin, end, cycle):
            border = min(start + cycle - BLOCK_BYTES, end)
            train.append((start, border))
            if border < end:
                held_out.append((border, min(start + cycle, end)))
        begin = end
    return held_out, train


def _windows(segments: list[tuple[int, int]], context: int) -> tuple[Indices, Indices]:
    """Starts of the segments that hold a window, and the running total of their windows."""
    long = [(start, end) for start, end in segments if end - start > context]
    starts = np.array([start for start, _ in long], np.int64)
    return starts, np.cumsum([end - start - context for start, end in long], dtype=np.int64)
