"""What a disk does to blobs: no room for bytes, files or descriptors, and names that do not sync."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from blob_samples import DATA, DIGEST, digest_of, files

from fedtrain.errors import StorageError
from fedtrain.storage import blobs as module
from fedtrain.storage.blobs import Blobs


class Disk:
    """What `statvfs` tells, as the test wants it."""

    f_frsize = 1

    def __init__(self, free_bytes: int, free_files: int = 10_000, files: int = 20_000) -> None:
        self.f_bavail, self.f_favail, self.f_files = free_bytes, free_files, files


def test_the_mark_holds_at_the_offer_and_while_bytes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that others fill refuses new uploads, later bytes of old ones too, and recovers at the byte."""
    disk = Disk(free_bytes=1000 + len(DATA))
    monkeypatch.setattr(os, "statvfs", lambda folder: disk)
    blobs = Blobs(tmp_path / "blobs", free_bytes_min=1000)
    upload = blobs.begin(DIGEST, len(DATA))
    with pytest.raises(StorageError, match="must stay free"):
        blobs.begin(digest_of(b"x"), 1)  # the room is promised to the first
    upload.write(0, DATA[:100])
    disk.f_bavail = 599
    with pytest.raises(StorageError, match="500 must stay free; free some space"):
        upload.write(100, DATA[100:200])
    assert blobs.begin(DIGEST, len(DATA)).received == 100
    disk.f_bavail = 1000 + len(DATA)
    upload.write(100, DATA[100:])
    upload.commit()
    blobs.check(DIGEST)


def test_files_run_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files that can still be made refuse a new upload; a file system that does not count has enough."""
    disk = Disk(free_bytes=1 << 40, free_files=module.FREE_FILES_MIN - 1)
    monkeypatch.setattr(os, "statvfs", lambda folder: disk)
    blobs = Blobs(tmp_path / "blobs")
    with pytest.raises(StorageError, match="can make only 255 more files"):
        blobs.begin(DIGEST, len(DATA))
    assert files(blobs) == set()
    disk.f_files = 0
    blobs.begin(DIGEST, len(DATA)).abandon()


def test_too_many_open_files_leave_nothing_half_done(blobs: Blobs) -> None:
    """Out of descriptors, an offer is refused in words; with one free again the same upload goes through."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    taken = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 16, limits[1]))
    try:
        try:
            while True:
                opened.append(os.open(blobs.folder, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE
        with pytest.raises(StorageError, match="too many open files: raise the limit"):
            blobs.begin(DIGEST, len(DATA))
        for _ in range(3):
            os.close(opened.pop())
        upload = blobs.begin(DIGEST, len(DATA))
        upload.write(0, DATA)
        upload.commit()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    blobs.check(DIGEST)


def test_a_name_that_cannot_be_made_durable_does_not_count(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that fails to sync takes the blob away again, so that no retry finds and acknowledges it."""
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, DATA)

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "sync_folder", fail)
    with pytest.raises(StorageError, match="the disk is failing"):
        upload.commit()
    assert files(blobs) == set()
    monkeypatch.undo()
    again = blobs.begin(DIGEST, len(DATA))
    again.write(0, DATA)
    again.commit()


def test_a_blob_that_lies_there_is_settled_before_it_counts(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill between rename and sync, the retry's commit syncs the folder before it returns."""
    (blobs.folder / DIGEST).write_bytes(DATA)
    synced: list[Path] = []
    monkeypatch.setattr(module, "sync_folder", synced.append)
    blobs.begin(DIGEST, len(DATA)).commit()
    assert synced == [blobs.folder]
