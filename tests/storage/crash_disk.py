"""A disk that forgets: every state that a power loss may leave behind production code.

    with CrashDisk(folder) as disk:
        ...                      # production code, over the real file system
        disk.promise("a", ...)   # from here on this must survive
    for crash in disk.crashes():
        crash.rebuild(elsewhere) # the folder as the disk may have kept it; reopen it and look

Between the code and the file system stands a layer on `os` that takes a picture before every call that
changes something. What is known to be on the disk is only what was synced: a file's bytes by `fsync` of
the file, a folder's names by `fsync` of the folder. At each picture the disk may have kept more, so a
crash comes in five forms (`FORMS`), after Pillai et al., "All File Systems Are Not Created Equal: On the
Complexity of Crafting Crash-Consistent Applications", OSDI 2014.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

FORMS = ("nothing more", "everything", "names without bytes", "torn bytes", "bytes without names")
"""What the disk has kept beyond what was synced."""

CALLS = (
    *("open", "write", "pwrite", "ftruncate", "fsync"),
    *("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir"),
)

Names = dict[str, int]
"""Of one folder: name -> inode."""


@dataclass
class Picture:
    """Bytes of files by inode, names of folders by inode."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, Names] = field(default_factory=dict)

    def copy(self) -> Picture:
        return Picture(dict(self.files), dict(self.folders))


@dataclass(frozen=True)
class Crash:
    """One way in which the disk may be found after one moment.

    Attributes:
        moment: the call that was about to be made, for messages.
        promises: what was promised before.
    """

    moment: str
    form: str
    promises: tuple[Any, ...]
    root: int
    synced: Picture
    seen: Picture

    def rebuild(self, target: Path) -> None:
        """Make the folder as the disk has kept it."""
        target.mkdir()
        for path, content in self.tree():
            if content is None:
                (target / path).mkdir()
            else:
                (target / path).write_bytes(content)

    def tree(self) -> tuple[tuple[str, bytes | None], ...]:
        """(path, bytes) of all that is left, None for a folder, each folder before what it holds."""
        return tuple(self._below(self.root, ""))

    def _below(self, inode: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        names = self.synced if self.form in ("nothing more", "bytes without names") else self.seen
        for name, child in names.folders.get(inode, {}).items():
            if child in self.seen.folders:
                yield f"{path}{name}", None
                yield from self._below(child, f"{path}{name}/")
            else:
                yield f"{path}{name}", self._bytes(child)

    def _bytes(self, inode: int) -> bytes:
        synced, seen = self.synced.files.get(inode, b""), self.seen.files.get(inode, b"")
        match self.form:
            case "everything" | "bytes without names":
                return seen
            case "torn bytes" if seen != synced:
                # Half of what is new is there, and where the rest should be there are zeros.
                half = len(seen) // 2
                return seen[:half] + bytes(len(seen) - half)
            case _:
                return synced


class CrashDisk:
    """Records what happens below `folder`, whose present content counts as synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.stat().st_ino
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}
        self._held: dict[int, int] = {}
        self._seen = Picture()
        self._promises: list[Any] = []
        self._moments: list[tuple[str, tuple[Any, ...], Picture, Picture]] = []
        self._look()
        self._synced = self._seen.copy()

    def __enter__(self) -> CrashDisk:
        for name in CALLS:
            setattr(os, name, self._layer(name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        self._take("the end")
        for descriptor in self._held.values():
            os.close(descriptor)

    def promise(self, *what: Any) -> None:
        """From now on a crash must not lose this; what it means is the test's own."""
        self._promises.append(what)

    def release(self, *what: Any) -> None:
        """From now on it may be lost: the code was told to let it go."""
        self._promises.remove(what)

    def crashes(self) -> Iterator[Crash]:
        """Every moment in every form; what leaves the same folder and the same promises comes once."""
        known = set()
        for moment, promises, synced, seen in self._moments:
            for form in FORMS:
                crash = Crash(moment, form, promises, self._root, synced, seen)
                if (found := (hash(crash.tree()), promises)) not in known:
                    known.add(found)
                    yield crash

    def crash_at(self, index: int, form: str) -> Crash:
        """One of them."""
        _, promises, synced, seen = self._moments[index]
        return Crash(f"call {index}", form, promises, self._root, synced, seen)

    def _layer(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_TRUNC):
                return real(*args, **options)
            self._take(f"{name} {args[0]}")
            result = real(*args, **options)
            if name == "fsync":
                self._sync(args[0])
            return result

        return call

    def _take(self, moment: str) -> None:
        self._look()
        self._moments.append((moment, tuple(self._promises), self._synced.copy(), self._seen.copy()))

    def _sync(self, descriptor: int) -> None:
        self._look()
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            if found.st_ino in self._seen.folders:
                self._synced.folders[found.st_ino] = self._seen.folders[found.st_ino]
        elif found.st_ino in self._seen.files:
            self._synced.files[found.st_ino] = self._seen.files[found.st_ino]

    def _look(self) -> None:
        """What a running program sees; an inode is held open, so that its number means one file only."""
        waiting = [self._folder]
        while waiting:
            folder = waiting.pop()
            names: Names = {}
            for entry in sorted(folder.iterdir()):
                inode = entry.lstat().st_ino
                names[entry.name] = inode
                if inode not in self._held:
                    self._held[inode] = self._real["open"](entry, os.O_RDONLY)
                if entry.is_dir():
                    waiting.append(entry)
                else:
                    self._seen.files[inode] = self._content(inode)
            self._seen.folders[folder.stat().st_ino] = names

    def _content(self, inode: int) -> bytes:
        descriptor = self._held[inode]
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
