"""Simulated disks: what they refuse, what they forget, and what a folder's copy knows."""

from __future__ import annotations

import random

import pytest

from fedtrain.core.ports import Entry, MemoryJournal
from fedtrain.errors import IntegrityError, RemoteError, StorageError
from fedtrain.sim.disk import CoordinatorDisk, Store, Trouble, TroubledJournal, flipped
from fedtrain.sim.numbers import digest_of

DATA = bytes(range(40))
DIGEST = digest_of(DATA)
ROW = Entry(1, "", "Booted", "{}")


@pytest.mark.parametrize(("trouble", "rows"), [(Trouble.FULL, 0), (Trouble.LOST, 0), (Trouble.KEPT, 2)])
def test_a_refused_batch_is_there_whole_or_not_at_all(trouble: Trouble, rows: int) -> None:
    """A full disk keeps nothing; after a failed sync the batch may be there, and nobody is told."""
    inner = MemoryJournal()
    with pytest.raises(StorageError):
        TroubledJournal(inner, lambda: trouble).append([ROW, ROW])
    assert len(inner.entries) == rows


def test_a_disk_without_trouble_takes_the_batch() -> None:
    """And gives it back in order."""
    journal = TroubledJournal(MemoryJournal(), lambda: None)
    assert journal.append([ROW, ROW]) == 2
    assert list(journal.read()) == [ROW, ROW]


def test_an_upload_resumes_at_the_byte() -> None:
    """Pieces may come again and overlap; a gap, other bytes and bytes outside change nothing."""
    store = Store()
    assert store.write(DIGEST, 40, 0, DATA[:16]) == 16
    assert store.write(DIGEST, 40, 8, DATA[8:24]) == 24
    for offset, piece in ((30, DATA[30:]), (20, b"other bytes"), (24, DATA), (-1, b"x")):
        with pytest.raises(RemoteError):
            store.write(DIGEST, 40, offset, piece)
    assert store.received(DIGEST) == 24
    with pytest.raises(RemoteError):
        store.commit(DIGEST, 40)
    assert store.write(DIGEST, 40, 24, DATA[24:]) == 40
    store.commit(DIGEST, 40)
    assert store.blobs == {DIGEST: DATA}


def test_other_bytes_never_become_a_blob() -> None:
    """They are thrown away, so that the upload begins at the first byte."""
    store = Store()
    store.write(DIGEST, 40, 0, DATA[::-1])
    with pytest.raises(IntegrityError):
        store.commit(DIGEST, 40)
    assert (store.received(DIGEST), store.blobs) == (0, {})


def test_a_loss_of_power_cuts_partial_uploads_and_nothing_else() -> None:
    """What is left is a beginning of what was there; whole blobs were synced."""
    store = Store()
    store.blobs["b" * 64] = b"whole"
    left = set()
    for seed in range(20):
        store.discard_partial(DIGEST)
        store.write(DIGEST, 40, 0, DATA[:30])
        store.lose_power(random.Random(seed))
        left.add(store.received(DIGEST))
        store.write(DIGEST, 40, store.received(DIGEST), DATA[store.received(DIGEST) :])
    assert min(left) < 15 < max(left) <= 30
    assert store.blobs == {"b" * 64: b"whole"}


def test_a_flipped_bit_is_found_and_the_blob_removed() -> None:
    """One bit, wherever it is; afterwards the blob is gone and can be sent again."""
    store = Store()
    for seed in range(20):
        store.blobs[DIGEST] = DATA
        store.flip(DIGEST, random.Random(seed))
        changed = sum((a ^ b).bit_count() for a, b in zip(DATA, store.blobs[DIGEST], strict=True))
        assert (changed, store.check(DIGEST), store.check(DIGEST)) == (1, "damaged", "gone")
    store.blobs[DIGEST] = DATA
    assert store.check(DIGEST) == ""
    assert flipped(DATA, random.Random(1)) != DATA


def test_a_copy_of_a_folder_goes_its_own_way() -> None:
    """Neither sees what becomes of the other, and they know that they lie in different places."""
    disk = CoordinatorDisk("here")
    disk.journal.append([ROW])
    disk.store.write(DIGEST, 40, 0, DATA[:8])
    twin = disk.copy("there")
    disk.journal.append([ROW])
    disk.store.discard_partial(DIGEST)
    twin.store.blobs["b" * 64] = b"b"
    assert (len(disk.journal.entries), len(twin.journal.entries)) == (2, 1)
    assert (disk.store.received(DIGEST), twin.store.received(DIGEST)) == (0, 8)
    assert (disk.store.blobs, disk.place, twin.place) == ({}, "here", "there")
