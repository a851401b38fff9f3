"""Waiting until something appears in a folder, without a timer where the kernel can tell.

A watch is armed when it is made, and remembers what happens between two waits. So: make it, look
into the folders, wait, look again; whatever happens in between, the next wait returns at once.
Temporary names (a leading dot) wake nobody.

On a network file system the kernel hears nothing of what other machines do. There the folders are
listed again and again, every 5 ms after a change and ever more rarely, down to every 2 s, without.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from fedtrain.storage.filesystem import disk_errors, network_type

POLL_MIN_S = 0.005
POLL_MAX_S = 2.0
POLL_GROWTH = 1.5
STOP_SLICE_S = 0.05
"""A long wait is cut into slices, so that a stop does not wait for its end. A change ends it at once."""

WAIT_S = 3600.0
"""One wait of a polling thread; it only ends early by a change or a stop, and is then begun again."""


class Flag(Protocol):
    """What an `asyncio.Event` and a `threading.Event` have in common."""

    def is_set(self) -> bool: ...


class Watcher:
    """An armed watch over the entries of some folders, not of what lies deeper.

    Attributes:
        note: what a person should know, e.g. that the folders are polled; "" if nothing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.note = ""
        self._watch: _KernelWatch | _PollingWatch
        with disk_errors(f"watch {', '.join(str(folder) for folder in folders)}"):
            remote = next(filter(None, map(network_type, folders)), "")
            if remote:
                self.note = f"{folders[0]} lies on {remote}: it is polled, up to {POLL_MAX_S:g} s apart"
                self._watch = _PollingWatch(folders)
                return
            try:
                self._watch = _KernelWatch(folders)
            except FileNotFoundError:
                raise
            except OSError as error:
                # The usual reason is the kernel's limit of watches per user.
                self.note = f"the kernel cannot watch {folders[0]} ({error}), so it is polled"
                self._watch = _PollingWatch(folders)

    def wait(self, timeout_s: float, stop: Flag | None = None) -> bool:
        """True as soon as something has changed since the last wait, False at the timeout or stop."""
        with disk_errors("watch for changes"):
            return self._watch.wait(time.monotonic() + timeout_s, stop or threading.Event())

    async def changed(self, stop: Flag) -> bool:
        """`wait` for an event loop; may return False at any time, and is then called again."""
        with disk_errors("watch for changes"):
            return await self._watch.changed(stop)

    def close(self) -> None:
        """Stop watching. No thread may be in `wait`."""
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def changes(folders: Sequence[Path]) -> AsyncIterator[None]:
    """Yields once when the watch is armed, then after every change, until it is closed or cancelled.

    The first yield is for the first look into the folders: nothing after it is missed. Several
    changes that come together are one.
    """
    stop = threading.Event()
    with Watcher(folders) as watch:
        try:
            yield
            while True:
                if await watch.changed(stop):
                    yield
        finally:
            # A cancelled waiter may leave a polling thread behind, which sees this and ends.
            stop.set()


class _KernelWatch:
    """Kernel notification (Linux): the kernel keeps what happens while nobody waits.

    A blocked reader of the descriptor costs nothing and wakes within some 50 microseconds. Notifiers
    that collect events in a thread of their own look every millisecond, and eighteen of those (a
    coordinator's sites on one machine) took half a core.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(f"not on {sys.platform}")
        from inotify_simple import INotify, flags

        wanted = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ONLYDIR
        self._notify = INotify(nonblocking=True)
        try:
            for folder in folders:
                self._notify.add_watch(folder, wanted)
        except BaseException:
            self._notify.close()
            raise

    def wait(self, deadline_s: float, stop: Flag) -> bool:
        poller = select.poll()
        poller.register(self._notify.fileno(), select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0 and not stop.is_set():
            if poller.poll(1000 * min(left_s, STOP_SLICE_S)) and self._take():
                return True
        return False

    async def changed(self, stop: Flag) -> bool:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._notify.fileno(), readable.set)
        try:
            await readable.wait()
            return self._take()
        finally:
            loop.remove_reader(self._notify.fileno())

    def _take(self) -> bool:
        """Whether what has come concerns anybody. A lost event (the queue ran over) always does."""
        return any(not event.name.startswith(".") for event in self._notify.read(timeout=0))

    def close(self) -> None:
        self._notify.close()


class _PollingWatch:
    """Repeated listing. Names with inodes, since a file replaced by a rename keeps its name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._seen = self._look()
        self._pause_s = POLL_MIN_S

    def wait(self, deadline_s: float, stop: Flag) -> bool:
        while True:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                self._pause_s = POLL_MIN_S
                return True
            if not _sleep_until(min(time.monotonic() + self._pause_s, deadline_s), stop):
                return False
            if time.monotonic() >= deadline_s:
                return False
            self._pause_s = min(self._pause_s * POLL_GROWTH, POLL_MAX_S)

    async def changed(self, stop: Flag) -> bool:
        return await asyncio.to_thread(self.wait, time.monotonic() + WAIT_S, stop)

    def close(self) -> None:
        self._seen = frozenset()

    def _look(self) -> frozenset[tuple[int, str, int]]:
        found: set[tuple[int, str, int]] = set()
        for index, folder in enumerate(self._folders):
            with os.scandir(folder) as entries:
                found.update((index, e.name, e.inode()) for e in entries if not e.name.startswith("."))
        return frozenset(found)


def _sleep_until(end_s: float, stop: Flag) -> bool:
    """Sleep on the monotonic clock; False if stopped."""
    while not stop.is_set():
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return True
        time.sleep(min(left_s, STOP_SLICE_S))
    return False
