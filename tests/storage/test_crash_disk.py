"""Production code over a disk that forgets: what was acknowledged is there and whole, nothing else passes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crash_disk import FORMS, Crash, CrashDisk

from fedtrain import coordinator
from fedtrain.coordinator import vault
from fedtrain.coordinator.recovery import restore
from fedtrain.coordinator.versions import Versions
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.ports import Entry
from fedtrain.errors import BadMailbox, BadUpdate, ConfigError, FedtrainError, IntegrityError
from fedtrain.methods.layout import Entry as Tensor, Layout
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.journal import Journal
from fedtrain.storage.mailbox import Mailbox
from fedtrain.trust.private_files import write_public

DATA = {name: bytes(range(256)) * 20 + name.encode() for name in ("first", "second", "third")}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}


def every_crash(disk: CrashDisk, tmp_path: Path, check: Callable[[Path, Crash], None]) -> int:
    """Rebuild and check each, without waiting for the real disk; the number of crashes."""
    crashes = list(disk.crashes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        check_each(crashes, tmp_path, check)
    return len(crashes)


def check_each(crashes: list[Crash], tmp_path: Path, check: Callable[[Path, Crash], None]) -> None:
    for crash in crashes:
        found = tmp_path / "found"
        crash.rebuild(found)
        try:
            check(found, crash)
        except (AssertionError, FedtrainError, OSError) as error:
            error.add_note(f"after a crash before `{crash.moment}`; the disk has kept: {crash.form}")
            raise
        shutil.rmtree(found)


def send(blobs: Blobs, name: str) -> None:
    """The whole way of one upload, from whatever is there."""
    digest, data = DIGESTS[name], DATA[name]
    upload = blobs.begin(digest, len(data))
    while upload.received < len(data):
        upload.write(upload.received, data[upload.received : upload.received + 2000])
    upload.commit()


def sound_store(store: Path, crash: Crash) -> None:
    """No wrong blob under a digest, every promised one there, and every upload can still be brought home."""
    blobs = Blobs(store, free_bytes_min=0)
    for path in store.iterdir():
        if path.is_file():
            blobs.check(path.name)
    for kind, digest in crash.promises:
        assert kind != "blob" or blobs.has(digest), f"the acknowledged blob {digest[:8]} is lost"
    for name in DATA:
        try:
            send(blobs, name)
        except IntegrityError:
            send(blobs, name)  # a torn partial upload costs one more try
        blobs.check(DIGESTS[name])
    blobs.collect(keep=())
    assert [path for path in store.rglob("*") if path.is_file()] == []


def test_the_layer_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """The disk itself: a write and a rename without sync are there, lost, or half there; synced, always."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with CrashDisk(folder) as disk:
        (folder / "a").write_bytes(b"12345678")
        (folder / "a").rename(folder / "b")
        write_public(folder / "c", b"synced")
    last = {form: disk.crash_at(-1, form) for form in FORMS}
    expected = {
        "nothing more": {"b": b"", "c": b"synced"},
        "everything": {"b": b"12345678", "c": b"synced"},
        "names without bytes": {"b": b"", "c": b"synced"},
        "torn bytes": {"b": b"1234\0\0\0\0", "c": b"synced"},
        "bytes without names": {"b": b"12345678", "c": b"synced"},
    }
    for form, files in expected.items():
        last[form].rebuild(tmp_path / form)
        assert {path.name: path.read_bytes() for path in (tmp_path / form).iterdir()} == files
    renamed = [c for c in disk.crashes() if c.moment.startswith("rename") and c.form == "nothing more"]
    assert len(renamed) == 1 and renamed[0].synced.folders[folder.stat().st_ino] == {}


def test_uploads_and_collections_survive_every_crash(tmp_path: Path) -> None:
    """Upload, commit, adopt, collect: acknowledged blobs are there, whole, until they are let go."""
    folder = tmp_path / "disk"
    (folder / "elsewhere").mkdir(parents=True)
    (folder / "elsewhere" / "made").write_bytes(DATA["third"])
    with CrashDisk(folder) as disk:
        blobs = Blobs(folder / "blobs", free_bytes_min=0)
        send(blobs, "first")
        disk.promise("blob", DIGESTS["first"])
        half = blobs.begin(DIGESTS["second"], len(DATA["second"]))
        half.write(0, DATA["second"][:1000])
        half.abandon()
        blobs.adopt(folder / "elsewhere" / "made", DIGESTS["third"])
        disk.promise("blob", DIGESTS["third"])
        send(blobs, "second")
        disk.promise("blob", DIGESTS["second"])
        disk.release("blob", DIGESTS["third"])
        blobs.collect(keep={DIGESTS["first"], DIGESTS["second"]})

    def check(found: Path, crash: Crash) -> None:
        (found / "blobs").mkdir(exist_ok=True)
        sound_store(found / "blobs", crash)

    assert every_crash(disk, tmp_path, check) > 30


def test_a_process_that_is_killed_and_then_the_power(tmp_path: Path) -> None:
    """A blob that a killed process had renamed but not synced is synced before the retry is acknowledged."""
    folder = tmp_path / "disk"
    folder.mkdir()
    blobs = Blobs(folder / "blobs", free_bytes_min=0)
    with CrashDisk(folder) as disk:
        draft = folder / "blobs" / "partial" / DIGESTS["first"]
        upload = blobs.begin(DIGESTS["first"], len(DATA["first"]))
        upload.write(0, DATA["first"])
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        draft.rename(folder / "blobs" / DIGESTS["first"])
        upload.abandon()  # killed here; the next process is told of the upload again
        send(Blobs(folder / "blobs", free_bytes_min=0), "first")
        disk.promise("blob", DIGESTS["first"])
    every_crash(disk, tmp_path, lambda found, crash: sound_store(found / "blobs", crash))


LAYOUT = Layout((Tensor("w", (64, 8)),))
VALUES = np.arange(LAYOUT.num_elements, dtype=np.float32)


def test_a_version_is_whole_or_not_there(tmp_path: Path) -> None:
    """The initial model becomes version 0 by one rename: never half of it, and never lost once it counts."""
    folder = tmp_path / "disk"
    folder.mkdir()
    writer = ModelWriter(folder / "model", LAYOUT, "run", 0)
    writer.write(VALUES)
    writer.close()
    blobs = Blobs(folder / "blobs", free_bytes_min=0)
    blob = hashlib.sha256((folder / "model").read_bytes()).hexdigest()
    blobs.adopt(folder / "model", blob)
    versions = Versions(folder / "models", blobs)
    with CrashDisk(folder) as disk:
        versions.seed("run", blob, LAYOUT.to_json())
        # A crash before it was journaled has it made again.
        made = versions.seed("run", blob, LAYOUT.to_json())
        disk.promise("version", 0)
        send(blobs, "first")  # life goes on
        disk.release("version", 0)
        versions.collect("run", keep_version=1)

    def check(found: Path, crash: Crash) -> None:
        again = Versions(found / "models", Blobs(found / "blobs", free_bytes_min=0))
        public = again.public("run", 0)
        assert not crash.promises or public.parent.is_dir(), "the version that counts is gone"
        if public.parent.is_dir():
            with ModelReader(public) as reader:
                assert reader.verify(LAYOUT) == made.model_digest
            assert (public.parent / "exact.f32").read_bytes() == VALUES.tobytes()
        assert again.seed("run", blob, LAYOUT.to_json()) == made
        again.collect("run", keep_version=1)
        assert [path.name for path in (found / "models" / "run").iterdir()] == []

    assert every_crash(disk, tmp_path, check) > 20


def test_a_backup_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """At every moment of a repeated backup the one that was finished last can be restored, whole."""
    folder = tmp_path / "disk"
    folder.mkdir()
    home = tmp_path / "coordinator"
    coordinator.init(home, "test", "127.0.0.1:1")
    with CrashDisk(folder) as disk:
        first = vault.backup(home, folder / "backup")
        disk.promise("rows", first.sequence)
        journal = Journal.open(home / vault.JOURNAL, lock=home / "state" / "lock")
        row = next(iter(journal.read()))
        journal.append([Entry(*row[1:5])])
        journal.close()
        second = vault.backup(home, folder / "backup")
        disk.promise("rows", second.sequence)
    assert second.sequence == first.sequence + 1

    def check(found: Path, crash: Crash) -> None:
        anew = tmp_path / "anew"
        rows = max((promise[1] for promise in crash.promises), default=0)
        try:
            report = restore(found / "backup", anew)
        except ConfigError:
            assert rows == 0, "a finished backup is gone"
            return
        assert report.backup_rows in (first.sequence, second.sequence) and report.backup_rows >= rows
        assert not report.missing
        shutil.rmtree(anew)

    assert every_crash(disk, tmp_path, check) > 30


ORDER = Order(
    id="run.1.1.east",
    kind=OrderKind.TRAIN,
    run="run",
    round=1,
    attempt=1,
    site="east",
    seed=1,
    model=None,
    steps=5,
    evaluate=False,
    parent="",
    returned=(),
    cohort=("east",),
    task="{}",
    codec="float32",
    block_elements=1024,
    patience_ms=1000,
)


def test_a_mailbox_is_never_read_half(tmp_path: Path) -> None:
    """Post, claim, publish without a sync: after a crash an entry is whole, refused, or not there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    data = DATA["first"]
    result = Result(
        order=ORDER.id, file="update.bin", size_bytes=len(data), digest=DIGESTS["first"], weight=3, steps=5
    )
    with CrashDisk(folder) as disk:
        mailbox = Mailbox(folder / "box")
        mailbox.create()
        mailbox.post(ORDER, None)
        assert mailbox.claim("t1") is not None
        (folder / "update").write_bytes(data)
        assert mailbox.publish(result, folder / "update")
        mailbox.discard(ORDER.id)

    def check(found: Path, crash: Crash) -> None:
        box = Mailbox(found / "box")
        box.create()
        if ORDER.id in box.results():
            try:
                taken, file = box.take_result(ORDER.id)
            except BadMailbox:
                box.discard(ORDER.id)
            else:
                assert taken == result and file is not None
                whole = hashlib.sha256(file.read_bytes()).hexdigest() == taken.digest
                assert whole or crash.form in ("nothing more", "names without bytes", "torn bytes")
        box.sweep(known=())
        box.post(ORDER, None)
        claim = box.claim("t2")
        assert claim is not None and claim.order == ORDER

    assert every_crash(disk, tmp_path, check) > 20


@pytest.mark.parametrize("kept", range(0, 24, 3))
def test_a_torn_initial_model_is_refused(tmp_path: Path, kept: int) -> None:
    """A seeding that is repeated on a torn file says so; it does not make a version of it."""
    writer = ModelWriter(tmp_path / "model", LAYOUT, "run", 0)
    writer.write(VALUES)
    writer.close()
    data = (tmp_path / "model").read_bytes()
    blobs = Blobs(tmp_path / "blobs", free_bytes_min=0)
    blobs.path("0" * 64).write_bytes(data[: len(data) * kept // 24])
    versions = Versions(tmp_path / "models", blobs)
    with pytest.raises((BadUpdate, IntegrityError)):
        versions.seed("run", "0" * 64, LAYOUT.to_json())
    assert not versions.public("run", 0).exists()
