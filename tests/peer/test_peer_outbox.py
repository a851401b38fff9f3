"""A result on its way: taken out of the trainer's reach, sent as declared, and believed only if signed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from peer_world import Bookkeeper, FakeCoordinator, an_order, sha256

from fedtrain.core.messages import Commit, Missing, Receipt
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.errors import BadMailbox, BadSignature, IntegrityError, RemoteError
from fedtrain.peer.egress import Account
from fedtrain.peer.outbox import Outbox
from fedtrain.storage.mailbox import Mailbox
from fedtrain.trust.keys import MessageKey

ORDER = an_order(1, OrderKind.TRAIN)
DATA = b"update" * 100


class Desk:
    """An outbox with one result in its mailbox."""

    def __init__(self, folder: Path) -> None:
        self.coordinator = FakeCoordinator()
        self.mailbox = Mailbox(folder / "mailbox")
        self.mailbox.create()
        self.folder = folder / "outbox"
        self.books = Bookkeeper()
        self.outbox = Outbox(
            self.folder,
            self.mailbox,
            self.coordinator,
            MessageKey.generate(),
            self.coordinator.key.public,
            Account(self.books, "localhost:7443"),
        )
        self.outbox.create()
        self.result = Result(ORDER.id, "", "update.bin", sha256(DATA), len(DATA), 10, 5)
        self.mailbox.post(ORDER, None)
        assert self.mailbox.claim("t-1")
        made = folder / "made"
        made.write_bytes(DATA)
        assert self.mailbox.publish(self.result, made)
        self.file = self.mailbox.results_folder / ORDER.id / "update.bin"


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_the_file_is_moved_out_of_the_mailbox(desk: Desk) -> None:
    """What is sent lies in the agent's folder, by a rename and not by a copy."""
    inode = desk.file.stat().st_ino
    await desk.outbox.deliver(ORDER, desk.result)
    assert not desk.file.exists()
    assert (desk.folder / ORDER.id).stat().st_ino == inode
    assert bytes(desk.coordinator.received[desk.result.digest]) == DATA


async def test_a_repeated_delivery_needs_the_mailbox_no_more(desk: Desk) -> None:
    """After a break the file in the outbox is enough, and nothing is sent that has arrived."""
    await desk.outbox.deliver(ORDER, desk.result)
    desk.mailbox.discard(ORDER.id)
    receipt = await desk.outbox.deliver(ORDER, desk.result)
    assert receipt.digest == desk.result.digest
    assert bytes(desk.coordinator.received[desk.result.digest]) == DATA


async def test_a_file_that_was_swapped_is_not_taken(desk: Desk, tmp_path: Path) -> None:
    """A link, another size or a second name in the file's place is refused, and nothing is sent."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * len(DATA))
    for swap in (lambda: desk.file.symlink_to(secret), lambda: desk.file.write_bytes(b"short")):
        desk.file.unlink(missing_ok=True)
        swap()
        with pytest.raises(BadMailbox):
            await desk.outbox.deliver(ORDER, desk.result)
        assert not (desk.folder / ORDER.id).exists()
    desk.file.write_bytes(DATA)
    os.link(desk.file, tmp_path / "second-name")
    with pytest.raises(BadMailbox):
        await desk.outbox.deliver(ORDER, desk.result)
    assert secret.exists() and not desk.coordinator.received


async def test_a_linked_folder_is_not_entered(desk: Desk, tmp_path: Path) -> None:
    """A link in the place of the result's folder leads nowhere."""
    elsewhere = tmp_path / "elsewhere"
    desk.file.parent.rename(elsewhere)
    desk.file.parent.symlink_to(elsewhere)
    with pytest.raises(BadMailbox):
        await desk.outbox.deliver(ORDER, desk.result)
    assert (elsewhere / "update.bin").exists()


async def test_a_missing_file_is_said(desk: Desk) -> None:
    """A result whose file has gone is a mailbox that cannot be believed."""
    desk.file.unlink()
    with pytest.raises(BadMailbox, match="gone"):
        await desk.outbox.deliver(ORDER, desk.result)


async def test_a_mailbox_on_another_disk_is_copied_from(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rename is impossible the bytes are copied, also of a file that keeps growing."""
    monkeypatch.setattr("fedtrain.peer.outbox._renamed", lambda *_: False)
    await desk.outbox.deliver(ORDER, desk.result)
    assert (desk.folder / ORDER.id).read_bytes() == DATA
    desk.outbox.forget(ORDER.id)
    desk.file.write_bytes(DATA * 1000)
    with pytest.raises(BadMailbox):
        await desk.outbox.deliver(ORDER, desk.result)


async def test_other_bytes_than_declared_are_not_committed(desk: Desk) -> None:
    """The digest is taken from the bytes that are sent."""
    desk.file.write_bytes(b"x" * len(DATA))
    with pytest.raises(IntegrityError):
        await desk.outbox.deliver(ORDER, desk.result)
    assert not desk.coordinator.commits


async def test_a_receipt_counts_only_with_its_signature(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt that the coordinator did not sign, or signed for something else, is not believed."""
    honest = desk.coordinator.commit
    for change in ({"outcome": "late_dropped"}, {"signature": "zz"}, {"order": "library.9.1.jsc"}):

        async def forged(commit: Commit, change: dict[str, str] = change) -> Receipt:
            return replace(await honest(commit), **change)

        monkeypatch.setattr(desk.coordinator, "commit", forged)
        with pytest.raises(BadSignature):
            await desk.outbox.deliver(ORDER, desk.result)


async def test_a_coordinator_that_never_has_enough_is_left(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transfers that never complete end in a sentence instead of a loop."""

    async def lose(*_: object) -> Missing:
        return Missing(0, len(DATA))

    monkeypatch.setattr(desk.coordinator, "send_file", lose)
    with pytest.raises(RemoteError, match="still lacks"):
        await desk.outbox.deliver(ORDER, desk.result)


async def test_a_sweep_leaves_only_what_is_in_hand(desk: Desk) -> None:
    """Files of orders that are over, and half copies, go at the start."""
    other: Order = an_order(2)
    for name in (ORDER.id, other.id, f"{ORDER.id}.part", "rubbish"):
        (desk.folder / name).write_bytes(b"1")
    desk.outbox.sweep(frozenset({ORDER.id}))
    assert [path.name for path in desk.folder.iterdir()] == [ORDER.id]
