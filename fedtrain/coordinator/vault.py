"""Backups of a coordinator's folder, also while the coordinator runs on it.

    <target>/backup.json          what the backup holds: path, digest, size and mode of each file
    <target>/objects/<digest>     the files

The objects are content-addressed, so a repeated backup copies only what is new. `backup.json` is
replaced by one rename when all that it names is on the disk: a backup that is interrupted at any point
leaves the one before as it was. A backup holds the consortium's private keys: guard it as the folder.

The journal is copied first, and its own copy says which blobs and versions belong to it. These are
opened at once, before a byte of them is copied, because the running coordinator may delete them at any
moment. Is one gone already, history has moved on and the journal is copied anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtrain.coordinator.setup import OPERATOR
from fedtrain.core import canonical, events as ev, transitions
from fedtrain.core.state import State
from fedtrain.core.versions import blobs_needed
from fedtrain.errors import ConfigError, IntegrityError, RemoteError, StorageError
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.filesystem import disk_errors, lock_file, make_folder
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots
from fedtrain.trust import private_files
from fedtrain.trust.folders import load_consortium

FORMAT = 1
MANIFEST = "backup.json"
OBJECTS = "objects"
JOURNAL = "state/journal.db"
BLOBS = "state/blobs"
MODELS = "state/models"
PLACES = ("state", OPERATOR)
"""What a coordinator's folder consists of; other files in it are not fedtrain's."""

TRIES = 20
"""Copies of the journal until all that one names was still there. Each try opens files and copies
nothing else, so more than two are rare."""

COPY_BYTES = 1 << 20

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class BackupFile:
    """One file. `path` is relative to the coordinator's folder, `mode` its permission bits."""

    path: str
    digest: str
    size_bytes: int
    mode: int


@dataclass(frozen=True)
class Manifest:
    """`backup.json`. `sequence` and `hash` are the journal's last row."""

    format: int
    consortium: str
    made_ms: int
    sequence: int
    hash: str
    files: tuple[BackupFile, ...]


@dataclass(frozen=True)
class BackupReport:
    """What `backup` did.

    `damaged` are files that the disk has changed, `missing` those it has lost: the coordinator needs
    them and the backup is without them.
    """

    target: Path
    consortium: str
    sequence: int
    num_files: int
    size_bytes: int
    copied_files: int
    copied_bytes: int
    damaged: tuple[str, ...]
    missing: tuple[str, ...]


def backup(folder: Path, target: Path) -> BackupReport:
    """Make or renew the backup of the coordinator in `folder`.

    Raises:
        ConfigError: `folder` is no coordinator's, or `target` is something else than a backup.
        IntegrityError: the journal is damaged, so there is nothing sound to back up.
        StorageError: a disk refuses, or another backup into `target` is under way.
    """
    consortium = load_consortium(folder / "state").consortium
    _check_target(folder, target, consortium)
    with disk_errors(f"make {target}"):
        make_folder(target, 0o700)
    private_files.make_private_folder(target)
    with lock_file(target / "lock", f"backs up into {target}"), _draft(target) as draft:
        copier = _Copier(Blobs(target / OBJECTS))
        with contextlib.ExitStack() as opened:
            found = _grab(folder, draft, opened)
            for path, descriptor, digest in found.sources:
                copier.take(path, descriptor, digest)
        files = tuple(sorted(copier.files, key=lambda file: file.path))
        made_ms = time.time_ns() // 1_000_000
        manifest = Manifest(FORMAT, consortium, made_ms, *found.head, files)
        private_files.write_public(target / MANIFEST, canonical.encode(manifest))
        copier.store.collect({file.digest for file in files})
    return BackupReport(
        target=target,
        consortium=consortium,
        sequence=found.head[0],
        num_files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        copied_files=copier.copied_files,
        copied_bytes=copier.copied_bytes,
        damaged=tuple(copier.damaged),
        missing=tuple(found.missing),
    )


def read_manifest(target: Path) -> Manifest:
    """What the backup in `target` holds. `ConfigError` if there is none, or none that can be read."""
    path = target / MANIFEST
    try:
        with disk_errors(f"read {path}"):
            manifest = canonical.decode(Manifest, path.read_bytes())
    except StorageError as error:
        raise ConfigError(
            f"holds no finished backup ({error}): make one with `fedtrain coordinator backup DIR {target}`",
            file=str(target),
        ) from error
    except RemoteError as error:
        raise ConfigError(f"is damaged ({error}): use another backup", file=str(path)) from error
    if manifest.format != FORMAT:
        raise ConfigError(
            f"is of format {manifest.format}, this fedtrain reads {FORMAT}: use a newer fedtrain",
            file=str(path),
        )
    return manifest


def state_of(journal: Journal) -> State:
    """What the coordinator knew at the journal's last row."""
    return Snapshots(journal, State).recover(transitions.step, State(), ev.EVENTS)


def blobs_of(state: State) -> set[str]:
    """Digests of the blobs that a coordinator in this state needs."""
    return {digest for run in state.runs.values() for digest in blobs_needed(run)}


def versions_of(state: State) -> list[str]:
    """Folders, relative to the coordinator's, of the versions that the next rounds begin with."""
    return [f"{MODELS}/{name}/{run.model.ref.version}" for name, run in state.runs.items() if run.model]


def _check_target(folder: Path, target: Path, consortium: str) -> None:
    if target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"lies inside {folder}: a backup belongs elsewhere, best on another disk", file=str(target)
        )
    if (target / MANIFEST).exists():
        owner = read_manifest(target).consortium
        if owner != consortium:
            raise ConfigError(f"holds a backup of {owner}: choose another folder", file=str(target))
    elif target.exists() and not (target / OBJECTS).exists() and any(target.iterdir()):
        raise ConfigError("is a folder with other files: choose a new one", file=str(target))


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """An empty folder for the journal's copy; what an interrupted backup left in it is thrown away."""
    draft = target / "draft"
    with disk_errors(f"make {draft}"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


Source = tuple[str, int, str]
"""(path in the coordinator's folder, open descriptor, digest if its name tells, else "")."""


@dataclass
class _Grab:
    """What belongs to one copy of the journal, open to be read; `missing` is what was not there."""

    head: tuple[int, str]
    sources: list[Source]
    missing: list[str]


def _grab(folder: Path, draft: Path, opened: contextlib.ExitStack) -> _Grab:
    """A copy of the journal and all that belongs to it, open.

    What is missing was deleted because history moved on, or is lost: if nothing was journaled between
    two looks and the same is missing, it is lost, and the backup is made without it.
    """
    previous: tuple[tuple[int, str], list[str]] | None = None
    for _ in range(TRIES):
        head, state = _copy_journal(folder, draft)
        with contextlib.ExitStack() as attempt:
            found = _Grab(head, [], [])
            _open_all(folder, draft, state, found, attempt)
            if not found.missing or previous == (head, found.missing):
                opened.push(attempt.pop_all())
                return found
        previous = head, found.missing
    raise StorageError(
        f"files in {folder} are deleted faster than a backup can open them: pause the runs, then try again"
    )


def _copy_journal(folder: Path, draft: Path) -> tuple[tuple[int, str], State]:
    """A consistent copy in `draft`, verified whole, and the state that it leads to."""
    copy = draft / Path(JOURNAL).name
    live = Journal.open(folder / JOURNAL, writer=False)
    try:
        live.backup(copy)
    finally:
        live.close()
    journal = Journal.open(copy, lock=draft / "lock", remedy="restore the coordinator from its last backup")
    try:
        return journal.head, state_of(journal)
    finally:
        journal.close()


def _open_all(folder: Path, draft: Path, state: State, found: _Grab, opened: contextlib.ExitStack) -> None:
    def grab(path: Path, name: str, digest: str = "") -> None:
        with disk_errors(f"open {path}"):
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                found.missing.append(name)
                return
        opened.callback(os.close, descriptor)
        found.sources.append((name, descriptor, digest))

    for digest in sorted(blobs_of(state)):
        grab(folder / BLOBS / digest, f"{BLOBS}/{digest}", digest)
    for version in versions_of(state):
        for name in _names_in(folder / version):
            grab(folder / version / name, f"{version}/{name}")
        # A version that is deleted is moved away before: what is still in its place was whole.
        if not (folder / version).is_dir():
            found.missing.append(version)
    grab(draft / Path(JOURNAL).name, JOURNAL)
    for place in PLACES:
        for name in _names_in(folder / place):
            if not name.startswith((".", "journal.db", "lock")) and not (folder / place / name).is_dir():
                grab(folder / place / name, f"{place}/{name}")


def _names_in(folder: Path) -> list[str]:
    """Names of what lies in the folder, sorted; nothing if there is no such folder."""
    with disk_errors(f"list {folder}"):
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []


class _Copier:
    """Puts files into the backup's objects, each verified, none twice."""

    def __init__(self, store: Blobs) -> None:
        self.store = store
        self.files: list[BackupFile] = []
        self.damaged: list[str] = []
        self.copied_files = 0
        self.copied_bytes = 0

    def take(self, path: str, descriptor: int, digest: str) -> None:
        """Store the open file as `path`; one whose content is not that of its digest is left out."""
        with disk_errors(f"read {path}"):
            found, status = _digest_of(descriptor), os.fstat(descriptor)
        if digest not in ("", found):
            self.damaged.append(path)
            return
        if not self._stored(found):
            self._copy(descriptor, found, status.st_size)
        self.files.append(BackupFile(path, found, status.st_size, stat.S_IMODE(status.st_mode)))

    def _stored(self, digest: str) -> bool:
        """Whether the backup has it, undamaged."""
        if not self.store.has(digest):
            return False
        try:
            self.store.check(digest)
        except IntegrityError:
            return False
        return True

    def _copy(self, descriptor: int, digest: str, size_bytes: int) -> None:
        upload = self.store.begin(digest, size_bytes)
        try:
            while upload.received < size_bytes:
                with disk_errors(f"read {digest}"):
                    data = os.pread(descriptor, COPY_BYTES, upload.received)
                if not data:
                    raise StorageError(f"a file became shorter while it was copied ({digest}): try again")
                upload.write(upload.received, data)
            upload.commit()
        finally:
            upload.abandon()
        self.copied_files += 1
        self.copied_bytes += size_bytes


def _digest_of(descriptor: int) -> str:
    digest = hashlib.sha256()
    place = 0
    while data := os.pread(descriptor, COPY_BYTES, place):
        digest.update(data)
        place += len(data)
    return digest.hexdigest()
