"""Backups of a coordinator that runs, and folders made anew of them: nothing that holds is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_world import Consortium, ScriptedSite, client_of, free_port, two_sites, whole_mean

from fedtrain.cli import main
from fedtrain.coordinator import vault
from fedtrain.coordinator.process import open_coordinator
from fedtrain.coordinator.recovery import restore
from fedtrain.coordinator.vault import BLOBS, JOURNAL, MANIFEST, OBJECTS, backup, read_manifest, state_of
from fedtrain.core.state import State
from fedtrain.errors import ConfigError, IntegrityError
from fedtrain.storage.blobs import Blobs
from fedtrain.storage.journal import Journal, Row
from fedtrain.trust.folders import load_coordinator

pytestmark = pytest.mark.timeout(60)


def home_of(consortium: Consortium) -> Path:
    return consortium.folder / "coordinator"


def rows_of(folder: Path) -> list[Row]:
    journal = Journal.open(folder / JOURNAL, writer=False)
    try:
        return list(journal.read())
    finally:
        journal.close()


def fold_of(folder: Path) -> State:
    journal = Journal.open(folder / JOURNAL, writer=False)
    try:
        return state_of(journal)
    finally:
        journal.close()


def objects_of(target: Path) -> set[str]:
    return {path.name for path in (target / OBJECTS).iterdir() if path.is_file()}


async def answer(site: ScriptedSite, value: float, weight: int = 10) -> str:
    """Answer the next order; the update's digest."""
    order = await site.order()
    site.consent(order)
    return (await site.answer(order, value, weight)).digest


async def follow(site: ScriptedSite, address: str) -> None:
    """The site's operator points it at another address."""
    for task in site.tasks:
        task.cancel()
    await site.client.close()
    site.client = client_of(replace(site.keys, membership=replace(site.keys.membership, address=address)))
    site.outbox = asyncio.Queue()
    await site.attend("second")


async def test_a_backup_of_a_running_coordinator_finishes_the_round(consortium: Consortium) -> None:
    """Restored elsewhere it takes over, and the round ends with the update that was acknowledged before."""
    first, second = await two_sites(consortium)
    await answer(first, 1.0, 10)
    target, anew = consortium.folder / "backup", consortium.folder / "anew"
    report = await asyncio.to_thread(backup, home_of(consortium), target)
    assert not report.damaged and not report.missing
    assert report.sequence == consortium.serving.hub.journal.head[0]
    shutil.rmtree(home_of(consortium) / BLOBS)  # the machine is gone
    made = restore(target, anew)
    assert (made.backup_rows, made.recovered_rows, made.missing) == (report.sequence, 0, [])
    assert load_coordinator(anew / "state").membership == consortium.serving.hub.keys.membership
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match="--take-over"):
        await open_coordinator(anew, address=address)
    serving = await open_coordinator(anew, take_over=True, address=address)
    try:
        await follow(second, address)
        await answer(second, 4.0, 20)
        while serving.hub.state.runs["tiny"].rounds_done < 1:
            await asyncio.wait_for(serving.hub.changes.after(serving.hub.changes.count), 30)
        whole_mean(serving.hub.versions.public("tiny", 1), 3.0)
    finally:
        await serving.close()


async def test_a_repeated_backup_copies_only_what_is_new(consortium: Consortium) -> None:
    """Files that the backup holds are verified, not copied; what nobody needs any more goes."""
    first, second = await two_sites(consortium)
    target = consortium.folder / "backup"
    whole = await asyncio.to_thread(backup, home_of(consortium), target)
    assert whole.copied_files > 5
    again = await asyncio.to_thread(backup, home_of(consortium), target)
    assert again.copied_bytes <= whole.copied_bytes and again.copied_files <= 1  # the journal at most
    digest = await answer(first, 1.0)
    newer = await asyncio.to_thread(backup, home_of(consortium), target)
    assert digest in objects_of(target) and newer.copied_files == 2
    await answer(second, 1.0)
    await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].rounds_done == 1)
    await asyncio.to_thread(backup, home_of(consortium), target)
    assert digest not in objects_of(target)
    assert {file.digest for file in read_manifest(target).files} == objects_of(target)


class Interrupted(BaseException):
    """Ctrl-C at a chosen moment."""


async def test_an_interrupted_backup_leaves_the_one_before(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is interrupted, the backup in place is whole, and the next one completes it."""
    first, _ = await two_sites(consortium)
    home, target = home_of(consortium), consortium.folder / "backup"
    await asyncio.to_thread(backup, home, target)
    before = (target / MANIFEST).read_bytes()
    await answer(first, 1.0)
    real_begin, real_collect = Blobs.begin, Blobs.collect
    calls = 0

    def begin(self: Blobs, digest: str, size_bytes: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Interrupted
        return real_begin(self, digest, size_bytes)

    monkeypatch.setattr(Blobs, "begin", begin)
    interrupted = 0
    for stop_at in (1, 2):
        calls = 0
        with pytest.raises(Interrupted):
            await asyncio.to_thread(backup, home, target)
        interrupted += 1
        assert (target / MANIFEST).read_bytes() == before
        restore(target, consortium.folder / f"anew-{stop_at}")
    assert interrupted == 2
    monkeypatch.setattr(Blobs, "begin", real_begin)

    def collect(self: Blobs, keep: object) -> int:
        raise Interrupted

    monkeypatch.setattr(Blobs, "collect", collect)
    with pytest.raises(Interrupted):
        await asyncio.to_thread(backup, home, target)
    monkeypatch.setattr(Blobs, "collect", real_collect)
    restore(target, consortium.folder / "anew-3")
    assert fold_of(consortium.folder / "anew-3") == consortium.serving.hub.state


async def test_history_that_moves_on_is_followed(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that is collected between the journal's copy and its own opening makes the copy begin anew."""
    first, second = await two_sites(consortium)
    await answer(first, 1.0)
    home, target = home_of(consortium), consortium.folder / "backup"
    loop, real = asyncio.get_running_loop(), vault._copy_journal
    heads = []

    async def close_round() -> None:
        await answer(second, 1.0)
        await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].rounds_done == 1)
        await asyncio.gather(*consortium.serving.hub._tasks - _endless(consortium))

    def copy(folder: Path, draft: Path) -> Any:
        made = real(folder, draft)
        if not heads:
            asyncio.run_coroutine_threadsafe(close_round(), loop).result(30)
        heads.append(made[0])
        return made

    monkeypatch.setattr(vault, "_copy_journal", copy)
    report = await asyncio.to_thread(backup, home, target)
    assert len(heads) == 2 and report.sequence == heads[1][0] > heads[0][0]
    assert not report.missing
    restore(target, consortium.folder / "anew")
    assert fold_of(consortium.folder / "anew").runs["tiny"].rounds_done == 1


def _endless(consortium: Consortium) -> Any:
    """The background tasks that end with the coordinator only."""
    names = ("PulseWatch.run", "_watch_over")
    found = {t for t in consortium.serving.hub._tasks if any(name in repr(t) for name in names)}
    assert len(found) == len(names)
    return found


async def test_what_the_disk_has_lost_is_told(
    consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    """The backup is made without it, says so, and a restore names it as missing."""
    first, _ = await two_sites(consortium)
    gone = await answer(first, 1.0)
    damaged = consortium.serving.hub.state.runs["tiny"].model.ref.chain[0][1]  # type: ignore[union-attr]
    home, target = home_of(consortium), consortium.folder / "backup"
    (home / BLOBS / gone).unlink()
    path = home / BLOBS / damaged
    data = path.read_bytes()
    path.unlink()  # the public model is a link to the same file
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    report = await asyncio.to_thread(backup, home, target)
    assert report.missing == (f"{BLOBS}/{gone}",) and report.damaged == (f"{BLOBS}/{damaged}",)
    assert main(["coordinator", "backup", str(home), str(target)]) == 0
    told = capsys.readouterr()
    assert f"{gone} is missing" in told.err and f"{damaged} is damaged" in told.err
    made = restore(target, consortium.folder / "anew")
    assert set(made.missing) == {f"{BLOBS}/{gone}", f"{BLOBS}/{damaged}"}


async def test_rows_behind_the_backup_come_from_the_damaged_log(
    consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    """All up to the flipped row, with the blobs they need; the report says what stopped it and is lost."""
    first, second = await two_sites(consortium)
    home, target = home_of(consortium), consortium.folder / "backup"
    await asyncio.to_thread(backup, home, target)
    held = read_manifest(target).sequence
    stored = {await answer(first, 1.0), await answer(second, 1.0)}
    await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].rounds_done == 1)
    await consortium.serving.close()
    rows = rows_of(home)
    bad = next(row for row in rows if row.kind == "RoundAggregated")
    with sqlite3.connect(home / JOURNAL) as connection:
        connection.execute("UPDATE rows SET payload=payload||' ' WHERE sequence=?", (bad.sequence,))
    connection.close()
    with pytest.raises(IntegrityError, match=rf"row {bad.sequence} .*restore BACKUP NEW --log {home}"):
        await open_coordinator(home)
    for digest in stored:  # the collection behind the lost version may have been there first
        (home / BLOBS / digest).unlink(missing_ok=True)
    anew = consortium.folder / "anew"
    assert main(["coordinator", "restore", str(target), str(anew), "--log", str(home), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backup_rows"], told["recovered_rows"]) == (held, bad.sequence - 1 - held)
    assert f"row {bad.sequence} does not match its hash" in told["stopped_by"]
    assert (
        told["lost"]["RoundAggregated"] == 1
        and sum(told["lost"].values()) == rows[-1].sequence - bad.sequence + 1
    )
    assert set(told["missing"]) == {f"{BLOBS}/{digest}" for digest in stored}
    assert told["next"].endswith("--take-over")
    assert rows_of(anew) == rows[: bad.sequence - 1]
    assert main(["coordinator", "restore", str(target), str(anew / "2"), "--log", str(home)]) == 0
    words = capsys.readouterr().out
    assert f"The log ends there: row {bad.sequence}" in words and "1 RoundAggregated" in words
    assert "--take-over" in words
    consortium.serving = await open_coordinator(anew, take_over=True)
    changes = consortium.serving.hub.changes
    while any(seat.update for seat in consortium.serving.hub.state.runs["tiny"].round.seats.values()):  # type: ignore[union-attr]
        await asyncio.wait_for(changes.after(changes.count), 30)  # what is missing is asked for again


async def test_a_sound_log_loses_nothing(consortium: Consortium) -> None:
    """With the whole log behind an old backup, rows, blobs and the newest version are all there."""
    home, target = home_of(consortium), consortium.folder / "backup"
    await asyncio.to_thread(backup, home, target)
    first, second = await two_sites(consortium)
    await answer(first, 1.0)
    await answer(second, 1.0)
    await consortium.until(lambda: consortium.serving.hub.state.runs["tiny"].rounds_done == 1)
    await consortium.serving.close()
    made = restore(target, consortium.folder / "anew", home)
    assert (made.stopped_by, made.missing) == ("", [])
    assert made.unproven == ["state/models/tiny/1/exact.f32"]
    assert rows_of(consortium.folder / "anew") == rows_of(home)
    consortium.serving = await open_coordinator(consortium.folder / "anew", take_over=True)
    assert consortium.serving.hub.state.runs["tiny"].rounds_done == 1


async def test_a_damaged_write_ahead_log_is_told(consortium: Consortium) -> None:
    """SQLite would pass over it in silence: the start refuses, and the restore says that rows are lost."""
    home, target = home_of(consortium), consortium.folder / "backup"
    await asyncio.to_thread(backup, home, target)
    await two_sites(consortium)
    killed = consortium.folder / "killed"
    shutil.copytree(home, killed)
    log = bytearray((killed / "state" / "journal.db-wal").read_bytes())
    log[len(log) // 2] ^= 1
    (killed / "state" / "journal.db-wal").write_bytes(log)
    for _ in range(2):  # a refusal leaves everything as it was
        with pytest.raises(IntegrityError, match="write-ahead log is damaged"):
            await open_coordinator(killed, take_over=True)
    made = restore(target, consortium.folder / "anew", killed)
    assert "write-ahead log is damaged" in made.stopped_by
    assert made.recovered_rows < len(rows_of(home)) - made.backup_rows


async def test_a_log_that_cannot_even_be_read_is_told(consortium: Consortium) -> None:
    """A damaged journal of which SQLite reads nothing costs what is behind the backup, and says so."""
    home, target = home_of(consortium), consortium.folder / "backup"
    await asyncio.to_thread(backup, home, target)
    await consortium.serving.close()
    (home / JOURNAL).write_bytes(b"not a database at all" * 500)
    made = restore(target, consortium.folder / "anew", home)
    assert "cannot be read" in made.stopped_by and made.recovered_rows == 0
    consortium.serving = await open_coordinator(consortium.folder / "anew", take_over=True)


async def test_nothing_is_overwritten_or_mistaken(consortium: Consortium) -> None:
    """A folder that is there, a target in the wrong place, and a damaged backup are each refused."""
    home, target = home_of(consortium), consortium.folder / "backup"
    with pytest.raises(ConfigError, match="holds no finished backup"):
        restore(target, consortium.folder / "anew")
    await asyncio.to_thread(backup, home, target)
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        restore(target, home)
    with pytest.raises(ConfigError, match="lies inside"):
        backup(home, home / "backup")
    with pytest.raises(ConfigError, match="other files"):
        backup(home, consortium.folder)
    with pytest.raises(ConfigError, match=r"holds no state/journal\.db"):
        restore(target, consortium.folder / "anew", consortium.folder)
    manifest = read_manifest(target)
    for file in manifest.files:
        path = target / OBJECTS / file.digest
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IntegrityError, match="use another backup"):
            restore(target, consortium.folder / "anew")
        path.write_bytes(data)
        assert not (consortium.folder / "anew").exists()
    evil = replace(manifest, files=(replace(manifest.files[0], path="state/../../evil"),))
    (target / MANIFEST).write_bytes(vault.canonical.encode(evil))
    with pytest.raises(IntegrityError, match="fedtrain did not write this"):
        restore(target, consortium.folder / "anew")
