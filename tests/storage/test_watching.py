"""Waiting for a change: nothing is lost between two waits, and every wait ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtrain.errors import StorageError
from fedtrain.storage import filesystem, watching
from fedtrain.storage.watching import Watcher, changes

LONG_S = 30.0
"""Far longer than any wake-up takes: a test that needs it fails."""

SHORT_S = 0.05


@pytest.fixture(params=["kernel", "polling"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a local disk, or on what the mount table calls a network file system."""
    if request.param == "polling":
        table = tmp_path / "mounts"
        table.write_text(f"server:/x {tmp_path} lustre rw 0 0\n")
        monkeypatch.setattr(filesystem, "MOUNT_TABLE", table)
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder


def put(folder: Path, name: str) -> None:
    """A folder appears as the mailbox makes it: under a temporary name, then renamed."""
    (folder / f".{name}~0").mkdir()
    (folder / f".{name}~0").rename(folder / name)


def test_a_change_before_the_wait_is_not_lost(folder: Path) -> None:
    """What happens after the watch is armed, or between two waits, ends the next wait."""
    with Watcher([folder]) as watcher:
        put(folder, "a")
        assert watcher.wait(LONG_S)
        put(folder, "b")
        time.sleep(SHORT_S)
        assert watcher.wait(LONG_S)
        assert not watcher.wait(SHORT_S)


def test_a_change_during_the_wait_ends_it(folder: Path, tmp_path: Path) -> None:
    """A waiter is woken by any of its folders."""
    other = tmp_path / "other"
    other.mkdir()
    with Watcher([folder, other]) as watcher:
        timer = threading.Timer(SHORT_S, put, (other, "a"))
        timer.start()
        assert watcher.wait(LONG_S)
        timer.join()


def test_temporary_names_wake_nobody(folder: Path) -> None:
    """A draft is no change; its rename is, and so are a replacement and a removal."""
    with Watcher([folder]) as watcher:
        (folder / ".draft").write_text("x")
        assert not watcher.wait(SHORT_S)
        (folder / ".draft").rename(folder / "entry")
        assert watcher.wait(LONG_S)
        (folder / ".draft").write_text("y")
        (folder / ".draft").rename(folder / "entry")
        assert watcher.wait(LONG_S)
        (folder / "entry").unlink()
        assert watcher.wait(LONG_S)


def test_what_was_there_before_is_no_change(folder: Path) -> None:
    """The first look is the caller's own; the watch tells what comes after."""
    put(folder, "old")
    with Watcher([folder]) as watcher:
        assert not watcher.wait(SHORT_S)


def test_a_stop_ends_the_wait(folder: Path) -> None:
    """A waiter with a whole hour to wait ends when its flag is set, and at once if it is set already."""
    stop = threading.Event()
    with Watcher([folder]) as watcher:
        timer = threading.Timer(SHORT_S, stop.set)
        timer.start()
        assert not watcher.wait(3600, stop)
        timer.join()
        assert not watcher.wait(3600, stop)


def test_a_network_file_system_is_polled_and_said(folder: Path) -> None:
    """On a network file system the watch says that it polls; on a local disk it says nothing."""
    remote = filesystem.network_type(folder)
    with Watcher([folder]) as watcher:
        assert isinstance(watcher._watch, watching._PollingWatch) == bool(remote)
        assert (f"lies on {remote}: it is polled" in watcher.note) if remote else watcher.note == ""


def test_an_absent_folder_is_said_in_words(tmp_path: Path) -> None:
    """Watching what does not exist is an error at once, not a wait for ever."""
    with pytest.raises(StorageError, match="absent"):
        Watcher([tmp_path / "absent"])


def test_a_kernel_without_watches_left_falls_back_to_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel refuses a watch, changes are still seen, and the reason is kept."""

    def refuse(*_: object) -> None:
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr(watching, "_KernelWatch", refuse)
    with Watcher([tmp_path]) as watcher:
        assert "watch limit" in watcher.note
        put(tmp_path, "a")
        assert watcher.wait(LONG_S)


def test_polling_pauses_grow_and_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet folders are listed ever more rarely, from 5 ms up to 2 s, busy ones quickly again."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(watching, "STOP_SLICE_S", 100.0)
    watch = watching._PollingWatch([tmp_path])
    assert not watch.wait(60.0, threading.Event())
    assert pauses[:3] == pytest.approx([0.005, 0.0075, 0.01125])
    assert max(pauses) == pytest.approx(2.0)
    assert pauses[-2] == pytest.approx(2.0)
    assert clock[0] == pytest.approx(60.0)
    put(tmp_path, "a")
    assert watch.wait(120.0, threading.Event())
    pauses.clear()
    assert not watch.wait(61.0, threading.Event())
    assert pauses[0] == pytest.approx(0.005)


async def test_changes_are_yielded_from_the_armed_watch_on(folder: Path) -> None:
    """The first turn is the caller's first look; whatever comes after it brings another turn."""
    turns = changes([folder])
    await anext(turns)
    put(folder, "a")
    await asyncio.wait_for(anext(turns), LONG_S)
    assert (folder / "a").is_dir()
    put(folder, "b")
    await asyncio.sleep(SHORT_S)
    await asyncio.wait_for(anext(turns), LONG_S)
    await turns.aclose()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(turns), LONG_S)


async def test_a_cancelled_waiter_leaves_no_thread(folder: Path) -> None:
    """Cancelling the task that waits lets its thread end, so that the loop can close."""
    entered = asyncio.Event()

    async def work() -> None:
        async for _ in changes([folder]):
            entered.set()

    task = asyncio.create_task(work())
    await entered.wait()
    await asyncio.sleep(SHORT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), LONG_S)


async def test_a_loop_that_scans_at_every_turn_sees_every_entry(folder: Path) -> None:
    """A producer and a consumer at full speed: after the last change the consumer has seen all."""

    def produce() -> None:
        for index in range(50):
            put(folder, f"e{index}")

    producer = asyncio.create_task(asyncio.to_thread(produce))

    async def consume() -> set[str]:
        async for _ in changes([folder]):
            seen = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            if len(seen) == 50:
                return seen
        return set()

    assert await asyncio.wait_for(consume(), LONG_S) == {f"e{i}" for i in range(50)}
    await producer
