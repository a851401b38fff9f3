"""Faults that a storage can have, each with the test that has to catch it.

In `file` of the package, `before` stands exactly once and becomes `after`; `catcher` is the test, as
pytest names it, that fails on the copy with the fault.
"""

from __future__ import annotations

from dataclasses import dataclass

CRASHES = "tests/storage/test_crash_disk.py"


@dataclass(frozen=True)
class StorageMutation:
    """One planted fault."""

    name: str
    file: str
    before: str
    after: str
    catcher: str


MUTATIONS = (
    StorageMutation(
        "a blob's bytes are not synced",
        "storage/blobs.py",
        "            os.fsync(descriptor)\n",
        "            os.fstat(descriptor)\n",
        f"{CRASHES}::test_uploads_and_collections_survive_every_crash",
    ),
    StorageMutation(
        "a blob is renamed before it is synced",
        "storage/blobs.py",
        """        if self.durable:
            os.fsync(descriptor)
        draft.rename(target)
""",
        """        draft.rename(target)
        if self.durable:
            os.fsync(descriptor)
""",
        f"{CRASHES}::test_uploads_and_collections_survive_every_crash",
    ),
    StorageMutation(
        "a blob's name is not synced",
        "storage/blobs.py",
        "                sync_folder(self.folder)\n",
        "                os.stat(self.folder)\n",
        f"{CRASHES}::test_uploads_and_collections_survive_every_crash",
    ),
    StorageMutation(
        "a blob that lies there is acknowledged as it lies",
        "storage/uploads.py",
        """                if self._stored:
                    self._blobs.settle(path)
                else:
                    self._finish(path)
""",
        """                if not self._stored:
                    self._finish(path)
""",
        f"{CRASHES}::test_a_process_that_is_killed_and_then_the_power",
    ),
    StorageMutation(
        "a partial upload is trusted at its commit",
        "storage/uploads.py",
        "        if found != self.digest:\n",
        "        if not found:\n",
        f"{CRASHES}::test_uploads_and_collections_survive_every_crash",
    ),
    StorageMutation(
        "blobs that are needed are collected",
        "storage/blobs.py",
        "if not DIGEST.fullmatch(digest) or digest in keep or digest in self._uploads:",
        "if not DIGEST.fullmatch(digest) or digest in self._uploads:",
        f"{CRASHES}::test_uploads_and_collections_survive_every_crash",
    ),
    StorageMutation(
        "a damaged blob passes its check",
        "storage/blobs.py",
        "        if found != digest:\n",
        "        if not found:\n",
        "tests/storage/test_blobs.py::test_a_blob_is_proven_before_it_leaves",
    ),
    StorageMutation(
        "an upload that has begun fills the disk",
        "storage/uploads.py",
        "self._blobs.free_bytes_min // WRITE_SHARE",
        "0 * WRITE_SHARE",
        "tests/storage/test_blobs_disk.py::test_the_mark_holds_at_the_offer_and_while_bytes_come",
    ),
    StorageMutation(
        "a version is made in its place",
        "coordinator/versions.py",
        '        draft = self._folder / run / f".{version}.part"\n',
        "        draft = self._at(run, version)\n",
        f"{CRASHES}::test_a_version_is_whole_or_not_there",
    ),
    StorageMutation(
        "a version is replaced file by file",
        "coordinator/versions.py",
        "            old = _move_away(final) if final.exists() else None\n",
        "            old = shutil.rmtree(final, ignore_errors=True)\n",
        f"{CRASHES}::test_a_version_is_whole_or_not_there",
    ),
    StorageMutation(
        "a backup is finished without one of its files",
        "coordinator/vault.py",
        """            for path, descriptor, digest in found.sources:
                copier.take(path, descriptor, digest)
""",
        """            for path, descriptor, digest in found.sources[1:]:
                copier.take(path, descriptor, digest)
""",
        f"{CRASHES}::test_a_backup_is_the_old_one_or_the_new_one",
    ),
    StorageMutation(
        "a snapshot's digest is not looked at",
        "storage/snapshots.py",
        "        if digest_of(*snapshot[:4]) != snapshot.digest:\n",
        "        if not snapshot.digest:\n",
        "tests/storage/test_snapshots.py::test_an_unfit_snapshot_is_passed_over[digest]",
    ),
    StorageMutation(
        "a snapshot of another chain is read",
        "storage/snapshots.py",
        "        if self._journal.hash_at(snapshot.sequence) != snapshot.hash:\n",
        "        if not snapshot.hash:\n",
        "tests/storage/test_snapshots.py::test_an_unfit_snapshot_is_passed_over[other chain]",
    ),
    StorageMutation(
        "rows within a snapshot are not held against the chain",
        "storage/journal.py",
        "self._head = integrity.check(connection, path, remedy) if writer else _last_row(connection)",
        "self._head = _last_row(connection) if writer else _last_row(connection)",
        "tests/storage/test_snapshots.py::test_a_snapshot_hides_no_damage",
    ),
    StorageMutation(
        "a row is taken that does not match its hash",
        "storage/chain.py",
        "        if hashlib.sha256(spelt.encode()).hexdigest() != row_hash:\n",
        "        if not spelt:\n",
        "tests/storage/test_snapshots.py::test_a_snapshot_hides_no_damage",
    ),
    StorageMutation(
        "a journal does not wait for the disk",
        "storage/database.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=OFF",
        "tests/storage/test_torn_journal.py::test_every_append_waits_for_the_disk",
    ),
    StorageMutation(
        "a damaged write-ahead log is passed over",
        "storage/integrity.py",
        "    return max(0, commits - 1)\n",
        "    return min(0, commits - 1)\n",
        "tests/storage/test_torn_journal.py::test_a_flipped_byte_in_the_log_loses_no_acknowledged_append",
    ),
    StorageMutation(
        "a journal goes on after a failed sync",
        "storage/journal.py",
        "        if not clean:\n",
        "        if clean is None:\n",
        "tests/storage/test_journal.py::test_after_a_failed_sync_nothing_more_is_written",
    ),
)
