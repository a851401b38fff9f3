"""Cut the flat vector into ranges and pass them through threads, digests taken in order.

Each worker computes ranges on its own; a digest needs them one after another. So a worker that has
computed its range waits for its turn and then absorbs it, while the others compute the next ones.
No more ranges are in flight than there are workers, which bounds the memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from fedtrain.methods.vectors import CHUNK_ELEMENTS

# 2^17 elements are 512 KiB a buffer: large against the cost of a call, small against a cache.
RANGE_ELEMENTS_MAX = 1 << 17

Range = tuple[int, int]


class Worker(Protocol):
    """One thread's buffers and what it does with a range [start, stop) of the flat vector."""

    def compute(self, start: int, stop: int) -> None:
        """All work that needs no order; runs beside the other workers'."""

    def absorb(self, start: int, stop: int) -> None:
        """What must happen range after range: the digests."""


def range_elements(bytes_per_element: int, memory_bytes_max: int, threads: int) -> int:
    """Elements per range such that `threads` workers stay within `memory_bytes_max`: whole chunks."""
    fitting = memory_bytes_max // (bytes_per_element * threads)
    return max(CHUNK_ELEMENTS, min(fitting, RANGE_ELEMENTS_MAX) // CHUNK_ELEMENTS * CHUNK_ELEMENTS)


def cut(num_elements: int, block_elements: int, step: int) -> list[Range]:
    """Ranges of at most `step` elements that never cross from one block into the next."""
    return [
        (start, min(start + step, block + block_elements, num_elements))
        for block in range(0, num_elements, block_elements)
        for start in range(block, min(block + block_elements, num_elements), step)
    ]


def pass_through(ranges: Sequence[Range], workers: Sequence[Worker]) -> None:
    """Compute every range with one of the workers and absorb them in order; re-raises what fails."""
    line = _Line(ranges)
    others = [threading.Thread(target=line.serve, args=(worker,)) for worker in workers[1:]]
    for thread in others:
        thread.start()
    line.serve(workers[0])
    for thread in others:
        thread.join()
    if line.failure is not None:
        raise line.failure


class _Line:
    """The ranges still to be taken, and whose turn it is to absorb."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.failure: BaseException | None = None
        self._ranges = ranges
        self._taken = 0
        self._turn = 0
        self._changed = threading.Condition()

    def serve(self, worker: Worker) -> None:
        """Take ranges until none is left or another worker has failed."""
        try:
            while (index := self._take()) is not None:
                start, stop = self._ranges[index]
                worker.compute(start, stop)
                if not self._await_turn(index):
                    return
                worker.absorb(start, stop)
                with self._changed:
                    self._turn += 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self.failure = self.failure or error
                self._changed.notify_all()

    def _take(self) -> int | None:
        with self._changed:
            if self.failure is not None or self._taken == len(self._ranges):
                return None
            self._taken += 1
            return self._taken - 1

    def _await_turn(self, index: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == index or self.failure is not None)
            return self.failure is None
