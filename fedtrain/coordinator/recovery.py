"""A coordinator's folder made anew from its backup, and from what still holds of the damaged one.

The journal's chain joins the two: every row of the damaged journal that follows the backup's last row,
and holds against its hash, is as good as the backup itself. It ends at the first row that does not
hold; what stood behind it is lost and is told. Blobs and versions are taken from the backup, else from
the damaged folder, each held against its digest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fedtrain.coordinator.vault import (
    BLOBS,
    JOURNAL,
    OBJECTS,
    PLACES,
    BackupFile,
    Manifest,
    blobs_of,
    read_manifest,
    state_of,
    versions_of,
)
from fedtrain.coordinator.versions import PUBLIC
from fedtrain.core.ports import Entry
from fedtrain.core.state import RunState, State
from fedtrain.errors import ConfigError, FedtrainError, IntegrityError, NotFoundError, StorageError
from fedtrain.methods.layout import Layout
from fedtrain.methods.modelfile import ModelReader
from fedtrain.storage import integrity
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.chain import Row, fault_of
from fedtrain.storage.database import SELECT_ROWS, connect
from fedtrain.storage.filesystem import disk_errors, make_folder, sync_folder
from fedtrain.storage.journal import Journal

BATCH_ROWS = 1_000


@dataclass
class RestoreReport:
    """What `restore` did.

    Attributes:
        backup_rows: rows that the backup's journal held.
        recovered_rows: rows that were taken from the damaged journal.
        stopped_by: what was wrong behind the last of these, "" if nothing was.
        lost: kinds of events behind it that can be told, and how many of each. There may be more.
        missing: files that the coordinator needs and that neither backup nor damaged folder holds.
        unproven: files taken from the damaged folder whose content nothing proves.
    """

    folder: Path
    consortium: str
    backup_rows: int
    recovered_rows: int = 0
    stopped_by: str = ""
    lost: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)


def restore(source: Path, folder: Path, damaged: Path | None = None) -> RestoreReport:
    """Make the coordinator's folder `folder` from the backup `source` and the folder `damaged`.

    The folder appears by one rename, whole.

    Raises:
        ConfigError: `folder` is there already, or there is no backup.
        IntegrityError: the backup itself is damaged.
        StorageError: the disk refuses.
    """
    manifest = read_manifest(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("is there already: name a new folder; nothing is overwritten", file=str(folder))
    if damaged is not None and not (damaged / JOURNAL).is_file():
        raise ConfigError(f"holds no {JOURNAL}: name the damaged coordinator's folder", file=str(damaged))
    report = RestoreReport(folder, manifest.consortium, manifest.sequence)
    draft = folder.with_name(f".{folder.name}.part")
    with disk_errors(f"make {draft}"):
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft, 0o700)
    try:
        _place_files(source / OBJECTS, manifest, draft)
        _complete(draft, manifest, damaged, report)
        with disk_errors(f"put {folder} in place"):
            for inside in (path for path in draft.rglob("*") if path.is_dir()):
                sync_folder(inside)
            sync_folder(draft)
            draft.replace(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


def _place_files(objects: Path, manifest: Manifest, draft: Path) -> None:
    """Every file of the backup in its place, verified and on the disk."""
    store = Blobs(objects)
    for file in manifest.files:
        target = draft / _checked(file)
        try:
            _copy_blob(store, file.digest, target)
        except (NotFoundError, IntegrityError) as error:
            raise IntegrityError(
                f"the backup does not hold {file.path} as it was ({error}): use another backup"
            ) from error
        with disk_errors(f"restore {target}"):
            target.chmod(file.mode & 0o777)


def _checked(file: BackupFile) -> str:
    """Its path, if it is one that a backup may name."""
    parts = PurePosixPath(file.path).parts
    if not parts or parts[0] not in PLACES or ".." in parts or "\0" in file.path:
        raise IntegrityError(f"the backup names the file {file.path!r}: fedtrain did not write this")
    return file.path


def _copy_blob(store: Blobs, digest: str, target: Path) -> None:
    """A copy of the blob at `target`, on the disk; `IntegrityError` if its bytes are not what they were."""
    with disk_errors(f"restore {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        receiver = Blobs(target.parent / ".part")
    upload = receiver.begin(digest, store.size(digest))
    try:
        with store.open(digest) as file:
            while data := file.read(1 << 20):
                upload.write(upload.received, data)
        path = upload.commit()
    finally:
        upload.abandon()
    with disk_errors(f"restore {target}"):
        path.replace(target)
        shutil.rmtree(receiver.folder)


def _complete(draft: Path, manifest: Manifest, damaged: Path | None, report: RestoreReport) -> None:
    """Rows of the damaged journal, and the files that the journal now asks for."""
    journal = Journal.open(draft / JOURNAL, lock=draft / "state" / "lock", remedy="use another backup")
    try:
        if journal.head != (manifest.sequence, manifest.hash):
            raise IntegrityError(
                "the backup's journal is not the one that it was made of: use another backup"
            )
        if damaged is not None:
            _recover_rows(journal, damaged / JOURNAL, report)
        state = state_of(journal)
    finally:
        journal.close()
    _complete_blobs(draft, state, damaged, report)
    for name, run in state.runs.items():
        if run.model is not None:
            _complete_version(draft, name, run, damaged, report)


def _recover_rows(journal: Journal, damaged: Path, report: RestoreReport) -> None:
    """Append every row of the damaged journal that still follows; tell what stopped it."""
    with contextlib.closing(connect(damaged, write=False)) as connection:
        rows = _readable_rows(connection, journal.head[0], report)
        batch: list[Entry] = []
        last = journal.head
        for row in rows:
            if fault := fault_of(row, *last):
                report.stopped_by = fault
                break
            last = row.sequence, row.hash
            batch.append(Entry(*row[1:5]))
            if len(batch) == BATCH_ROWS:
                journal.append(batch)
                batch.clear()
        if batch:
            journal.append(batch)
        if not report.stopped_by:
            report.stopped_by = _fault_of_log(damaged)
        if report.stopped_by:
            report.lost = _kinds_behind(connection, last[0])
        _recover_heads(journal, damaged)
    report.recovered_rows = last[0] - report.backup_rows


def _fault_of_log(damaged: Path) -> str:
    """SQLite says nothing of commits behind a damaged place of its write-ahead log; so we look, too."""
    try:
        integrity.check_log(damaged, "they cannot be recovered")
    except (IntegrityError, StorageError) as error:
        return str(error)
    return ""


def _readable_rows(connection: sqlite3.Connection, after: int, report: RestoreReport) -> Iterator[Row]:
    """Rows behind `after`, until SQLite itself cannot go on, which is then what stopped it."""
    last = after
    try:
        for values in connection.execute(f"{SELECT_ROWS} WHERE sequence > ? ORDER BY sequence", (after,)):
            row = Row._make(values)
            yield row
            last = row.sequence
    except sqlite3.Error as error:
        report.stopped_by = f"what stands behind row {last} cannot be read ({error})"


def _kinds_behind(connection: sqlite3.Connection, last: int) -> dict[str, int]:
    """Kinds of the rows behind `last` as far as they can be read, one row at a time."""
    found: Counter[str] = Counter()
    with contextlib.suppress(sqlite3.Error):
        for (kind,) in connection.execute("SELECT kind FROM rows WHERE sequence > ?", (last,)):
            found[str(kind)] += 1
    return dict(sorted(found.items()))


def _recover_heads(journal: Journal, damaged: Path) -> None:
    """Signed heads are evidence for an audit: those of rows that are here come along."""
    with contextlib.suppress(FedtrainError):
        reader = Journal.open(damaged, writer=False)
        try:
            heads = reader.heads()
        finally:
            reader.close()
        for head in heads:
            if isinstance(head.sequence, int) and journal.hash_at(head.sequence) == head.hash:
                journal.add_head(head)


def _complete_blobs(draft: Path, state: State, damaged: Path | None, report: RestoreReport) -> None:
    store = Blobs(draft / BLOBS)
    for digest in sorted(blobs_of(state)):
        if store.has(digest):
            continue
        try:
            if damaged is None:
                raise NotFoundError(digest)
            _copy_blob(Blobs(damaged / BLOBS), digest, store.path(digest))
        except (NotFoundError, IntegrityError):
            report.missing.append(f"{BLOBS}/{digest}")


def _complete_version(
    draft: Path, name: str, run: RunState, damaged: Path | None, report: RestoreReport
) -> None:
    """The version that the run's next round begins with."""
    (place,) = versions_of(State(runs={name: run}))
    if _fits(draft / place, run):
        return
    source = damaged / place if damaged is not None else None
    if source is None or not _fits(source, run):
        report.missing.append(place)
        return
    with disk_errors(f"copy {source}"):
        shutil.rmtree(draft / place, ignore_errors=True)
        (draft / place).mkdir(parents=True)
        for path in sorted(source.iterdir()):
            if path.is_symlink() or not path.is_file():
                continue
            shutil.copyfile(path, draft / place / path.name)
            with open(draft / place / path.name, "rb") as copy:
                os.fsync(copy.fileno())
            if path.name != PUBLIC:
                report.unproven.append(f"{place}/{path.name}")


def _fits(version: Path, run: RunState) -> bool:
    """Whether the public model in this folder is the one that the journal names."""
    model = run.model
    assert model is not None, "called for a run that has a model"
    try:
        with ModelReader(version / PUBLIC) as reader:
            named = reader.run == run.spec.run and reader.version == model.ref.version
            return named and reader.verify(Layout.from_json(model.layout)) == model.ref.digest
    except (FedtrainError, OSError):
        return False
