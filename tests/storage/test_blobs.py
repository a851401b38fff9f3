"""Blobs: whole and right, or not there; resumable at the byte where they broke."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from blob_samples import DATA, DIGEST, digest_of, files

from fedtrain.errors import IntegrityError, NotFoundError, RemoteError, StorageError
from fedtrain.storage import blobs as module
from fedtrain.storage.blobs import Blobs


def test_an_upload_in_pieces_becomes_a_blob(blobs: Blobs) -> None:
    """Pieces in order, then commit: the blob is there under its digest, and nothing else is."""
    upload = blobs.begin(DIGEST, len(DATA))
    for start in range(0, len(DATA), 1000):
        assert not blobs.has(DIGEST)
        upload.write(start, DATA[start : start + 1000])
    path = upload.commit()
    assert path == blobs.path(DIGEST)
    assert path.read_bytes() == DATA
    assert (blobs.has(DIGEST), blobs.size(DIGEST)) == (True, len(DATA))
    with blobs.open(DIGEST) as file:
        assert file.read() == DATA
    assert files(blobs) == {DIGEST}
    assert upload.commit() == path


def test_an_empty_blob_is_a_blob(blobs: Blobs) -> None:
    """No bytes at all are committed like any others."""
    assert blobs.begin(digest_of(b""), 0).commit().read_bytes() == b""


def test_a_restart_resumes_at_the_byte_where_it_broke(blobs: Blobs) -> None:
    """What a killed process had received is found, hashed again and completed."""
    blobs.begin(DIGEST, len(DATA)).write(0, DATA[:3001])
    again = Blobs(blobs.folder, free_bytes_min=0).begin(DIGEST, len(DATA))
    assert again.received == 3001
    again.write(3001, DATA[3001:])
    assert again.commit().read_bytes() == DATA


def test_a_whole_partial_file_before_its_rename_is_committed_after_a_restart(blobs: Blobs) -> None:
    """Killed between the last byte and the rename: the client's next commit finishes it."""
    (blobs.folder / "partial" / DIGEST).write_bytes(DATA)
    upload = blobs.begin(DIGEST, len(DATA))
    assert upload.received == len(DATA)
    assert upload.commit().read_bytes() == DATA


def test_a_stored_blob_is_agreed_to_without_writing(blobs: Blobs) -> None:
    """Whoever uploads what is here already is told that all is received, and may commit."""
    blobs.begin(DIGEST, len(DATA)).write(0, DATA)
    blobs.begin(DIGEST, len(DATA)).commit()
    before = blobs.path(DIGEST).stat().st_ino
    again = blobs.begin(DIGEST, len(DATA))
    assert again.received == len(DATA)
    assert again.write(5, DATA[5:10]) == len(DATA)
    with pytest.raises(RemoteError, match="differ"):
        again.write(5, b"other")
    assert again.commit() == blobs.path(DIGEST)
    assert blobs.path(DIGEST).stat().st_ino == before
    with pytest.raises(RemoteError, match="known with"):
        blobs.begin(DIGEST, 5)


def test_gaps_disagreements_and_overruns_are_refused(blobs: Blobs) -> None:
    """A refusal names the missing range, and the upload goes on as if nothing had been sent."""
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, DATA[:100])
    with pytest.raises(RemoteError, match=r"bytes 100 to 149 .*missing"):
        upload.write(150, DATA[150:200])
    with pytest.raises(RemoteError, match="differ"):
        upload.write(50, b"x" * 100)
    for offset, data in ((-1, b"ab"), (len(DATA), b"a"), (2**63, b"a"), (0, DATA + b"a")):
        with pytest.raises(RemoteError, match="outside"):
            upload.write(offset, data)
    with pytest.raises(RemoteError, match=r"bytes 100 to 10239 .*missing"):
        upload.commit()
    assert upload.write(40, DATA[40:]) == len(DATA)
    assert upload.commit().read_bytes() == DATA


def test_wrong_bytes_are_thrown_away(blobs: Blobs) -> None:
    """A digest that does not hold leaves no partial behind, and a right upload can follow."""
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, b"x" * len(DATA))
    with pytest.raises(IntegrityError, match="send it anew"):
        upload.commit()
    assert files(blobs) == set()
    with pytest.raises(StorageError, match="begin it again"):
        upload.write(0, b"x")
    fresh = blobs.begin(DIGEST, len(DATA))
    fresh.write(0, DATA)
    fresh.commit()


def test_a_partial_file_that_a_power_loss_spoiled_is_found_out(blobs: Blobs) -> None:
    """Zeros in place of unsynced bytes are hashed again after the restart and refused at commit."""
    (blobs.folder / "partial" / DIGEST).write_bytes(bytes(500))
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(500, DATA[500:])
    with pytest.raises(IntegrityError):
        upload.commit()
    assert not blobs.has(DIGEST)


def test_a_partial_file_longer_than_declared_starts_afresh(blobs: Blobs) -> None:
    """An earlier upload under a wrong size does not stand in the way of the right one."""
    (blobs.folder / "partial" / DIGEST).write_bytes(b"y" * (len(DATA) + 1))
    upload = blobs.begin(DIGEST, len(DATA))
    assert upload.received == 0
    upload.write(0, DATA)
    assert upload.commit().read_bytes() == DATA


def test_two_senders_of_one_digest_share_the_upload(blobs: Blobs) -> None:
    """Both continue each other's bytes; another size for the same digest is refused."""
    first, second = blobs.begin(DIGEST, len(DATA)), blobs.begin(DIGEST, len(DATA))
    assert first is second
    with pytest.raises(RemoteError, match="known with"):
        blobs.begin(DIGEST, len(DATA) + 1)
    with pytest.raises(RemoteError, match="cannot have -1"):
        blobs.begin(DIGEST, -1)
    first.write(0, DATA[:5000])
    second.write(4000, DATA[4000:])
    assert first.commit() == second.commit()


def test_threads_may_write_and_commit_at_once(blobs: Blobs) -> None:
    """Eight threads sending the same pieces end in one right blob."""
    upload = blobs.begin(DIGEST, len(DATA))
    failures: list[Exception] = []

    def send() -> None:
        try:
            for start in range(0, len(DATA), 512):
                upload.write(start, DATA[start : start + 512])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert upload.commit().read_bytes() == DATA


@pytest.mark.parametrize(
    "bad", ["", "../x", "A" * 64, "0" * 63, "0" * 65, "/etc/passwd", "0" * 63 + "\n", "\0" * 64]
)
def test_only_a_digest_becomes_a_path(blobs: Blobs, bad: str) -> None:
    """Path tricks in place of a digest are refused before any file is touched."""
    for call in (blobs.path, blobs.has, blobs.size, blobs.open, blobs.check):
        with pytest.raises(RemoteError, match="not a digest"):
            call(bad)
    with pytest.raises(RemoteError, match="not a digest"):
        blobs.begin(bad, 1)


def test_an_absent_blob_is_not_found(blobs: Blobs) -> None:
    """Asking for what is not here says which blob, and that it must be fetched."""
    for call in (blobs.size, blobs.open, blobs.check):
        with pytest.raises(NotFoundError, match=DIGEST):
            call(DIGEST)


def test_a_damaged_blob_is_moved_aside_when_it_is_checked(blobs: Blobs) -> None:
    """A flipped byte is found, the blob is kept as evidence, and it can be requested again."""
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, DATA)
    path = upload.commit()
    blobs.check(DIGEST)
    path.write_bytes(b"\x01" + DATA[1:])
    with pytest.raises(IntegrityError, match=f"request it again or copy it back from objects/{DIGEST}"):
        blobs.check(DIGEST)
    assert not blobs.has(DIGEST)
    assert (blobs.folder / "damaged" / DIGEST).read_bytes()[0] == 1
    again = blobs.begin(DIGEST, len(DATA))
    assert again.received == 0
    again.abandon()
    blobs.collect(keep={DIGEST})
    assert (blobs.folder / "damaged" / DIGEST).exists()
    blobs.collect(keep=())
    assert not (blobs.folder / "damaged" / DIGEST).exists()


def test_a_blob_is_proven_before_it_leaves(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass for many readers; damage is found by a new process at once, and by this one in time."""
    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, DATA)
    path = upload.commit()
    reads: list[str] = []
    check = Blobs.check
    monkeypatch.setattr(Blobs, "check", lambda self, digest: (reads.append(digest), check(self, digest)))
    blobs.prove(DIGEST)
    assert reads == []  # its digest was taken when it came
    restarted = Blobs(blobs.folder)
    restarted.prove(DIGEST)
    restarted.prove(DIGEST)
    assert reads == [DIGEST]
    path.write_bytes(b"\x01" + DATA[1:])
    monkeypatch.setattr(module, "PROOF_S", 0.0)
    for store in (blobs, Blobs(blobs.folder)):
        with pytest.raises(IntegrityError if store is blobs else NotFoundError):
            store.prove(DIGEST)
    assert not blobs.has(DIGEST)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_local_file_is_adopted(blobs: Blobs, tmp_path: Path, trusted: bool) -> None:
    """A finished file moves in under its digest, again and again with the same outcome."""
    for _ in range(2):
        (tmp_path / "out").write_bytes(DATA)
        assert blobs.adopt(tmp_path / "out", DIGEST, trusted=trusted).read_bytes() == DATA
        assert not (tmp_path / "out").exists()
    assert files(blobs) == {DIGEST}


def test_a_file_that_is_not_what_it_claims_is_not_adopted(blobs: Blobs, tmp_path: Path) -> None:
    """Other content, a link, a folder or nothing at all never becomes a blob."""
    (tmp_path / "secret").write_bytes(DATA)
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "out").write_bytes(b"other")
    (tmp_path / "folder").mkdir()
    for name in ("out", "link", "folder", "absent"):
        with pytest.raises(IntegrityError):
            blobs.adopt(tmp_path / name, DIGEST)
    assert files(blobs) == set()
    assert (tmp_path / "secret").exists()


def test_adopting_across_file_systems_copies(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a rename cannot reach, bytes are copied, verified and the original removed."""
    out = tmp_path / "out"
    out.write_bytes(DATA)
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self == out:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    assert blobs.adopt(out, DIGEST).read_bytes() == DATA
    assert not out.exists()


def test_collecting_frees_what_nothing_names(blobs: Blobs, tmp_path: Path) -> None:
    """Kept blobs, uploads under way and foreign files stay; the rest is gone and counted."""
    digests = []
    for size in (10, 20, 30):
        data = os.urandom(size)
        (tmp_path / "out").write_bytes(data)
        digests.append(digest_of(data))
        blobs.adopt(tmp_path / "out", digests[-1])
    live = blobs.begin(DIGEST, len(DATA))
    live.write(0, DATA[:10])
    (blobs.folder / "partial" / ("0" * 64)).write_bytes(b"x" * 5)
    (blobs.folder / "partial" / f".{'1' * 64}~0011").write_bytes(b"x" * 7)
    (blobs.folder / "README").write_text("mine")
    assert blobs.collect({digests[1]}) == 10 + 30 + 5 + 7
    assert files(blobs) == {digests[1], f"partial/{DIGEST}", "README"}
    live.abandon()
    assert blobs.collect({digests[1], DIGEST}) == 0
    assert blobs.begin(DIGEST, len(DATA)).received == 10


def test_too_little_space_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    """The low-water mark holds, counting what uploads under way were promised; the sentence names it."""
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    with pytest.raises(StorageError, match=rf"{tmp_path}.*must stay free; free some space"):
        Blobs(tmp_path / "a", free_bytes_min=free + (1 << 40)).begin(DIGEST, 1)
    blobs = Blobs(tmp_path / "b", free_bytes_min=free // 2)
    first = blobs.begin(DIGEST, free // 3)
    with pytest.raises(StorageError, match="to spare"):
        blobs.begin("0" * 64, free // 3)
    first.abandon()
    blobs.begin("0" * 64, free // 3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_the_disk_refuses_can_be_sent_again(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Half of a chunk fits, then the disk refuses: what was taken counts, the rest comes later."""
    upload = blobs.begin(DIGEST, len(DATA))
    pwrite = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if offset >= 4096:
            raise OSError(number, os.strerror(number))
        return pwrite(descriptor, data[: 4096 - offset], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=os.strerror(number)):
            upload.write(0, DATA)
    assert upload.received == 4096
    upload.write(0, DATA)
    assert upload.commit().read_bytes() == DATA


def test_a_failed_sync_is_not_acknowledged(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails to sync, the bytes are thrown away, because a second try would prove nothing."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    upload = blobs.begin(DIGEST, len(DATA))
    upload.write(0, DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="the disk is failing"):
            upload.commit()
    assert files(blobs) == set()
    assert blobs.begin(DIGEST, len(DATA)).received == 0


def test_no_descriptor_left_is_said_in_words(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of descriptors is the disk's refusal with advice, and passes."""

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(StorageError, match="raise the limit"):
            blobs.begin(DIGEST, len(DATA))
    assert blobs.begin(DIGEST, len(DATA)).received == 0


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_store_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    """A durable store syncs file and folder before a blob counts; an agent's saves the waiting."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    upload = Blobs(tmp_path / "blobs", durable=durable, free_bytes_min=0).begin(DIGEST, len(DATA))
    upload.write(0, DATA)
    upload.commit()
    assert len(synced) == (4 if durable else 0)  # the names of two folders, the file, the blob's name
