"""A result on its way to the coordinator: out of the trainer's reach, across, committed, receipted.

    outbox/<order id>    the result's file, moved here out of the mailbox

Everything can be repeated after a break at any point: the file is moved once, the upload goes on at
the byte that the coordinator names, and an equal commit gets an equal receipt.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedtrain.core.agent import UploadAcknowledged
from fedtrain.core.messages import Commit, Missing, Offer, Receipt
from fedtrain.core.orders import ORDER_ID, Order, OrderKind, Result
from fedtrain.errors import BadMailbox, BadSignature, RemoteError
from fedtrain.peer.egress import Account
from fedtrain.peer.jobs import in_thread
from fedtrain.storage.filesystem import disk_errors
from fedtrain.storage.mailbox import Mailbox, entries
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey

SENDS_MAX = 5
"""Transfers of one file that may end early before it is given up until the next session."""


class UpdateSink(Protocol):
    """Where updates go: `wire.client.CoordinatorClient`, or a test's own."""

    async def offer(self, offer: Offer) -> Missing:
        """What the other side lacks."""

    async def send_file(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        offset: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Missing:
        """Send from `offset` on, hashing; `IntegrityError` if the file is not `digest`.

        `progress` gets the position reached, in bytes.
        """

    async def commit(self, commit: Commit) -> Receipt:
        """Make it count."""


class Outbox:
    """Takes results over from the mailbox and delivers them.

    Args:
        folder: on the mailbox's file system a file is renamed into it, else copied.
        sink: the coordinator.
        key: signs commits.
        coordinator_public: verifies receipts.
        account: of what leaves the site.
    """

    def __init__(
        self,
        folder: Path,
        mailbox: Mailbox,
        sink: UpdateSink,
        key: MessageKey,
        coordinator_public: str,
        account: Account,
    ) -> None:
        self._folder = folder
        self._mailbox = mailbox
        self._sink = sink
        self._key = key
        self._coordinator_public = coordinator_public
        self._account = account

    def create(self) -> None:
        """Make the folder if it is missing."""
        with disk_errors(f"make {self._folder}"):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def deliver(self, order: Order, result: Result) -> Receipt:
        """Upload and commit; returns the coordinator's verified receipt.

        Raises:
            UnreachableError: the connection broke; to be called again.
            IntegrityError, BadMailbox: the file is not what the result says; it is never committed.
            RemoteError, RefusedError: the coordinator does not take it, or signs something else.
        """
        path = await in_thread(self.take_over, result)
        missing = await self._sink.offer(Offer(order.id, result.digest, result.size_bytes))
        for _ in range(SENDS_MAX):
            if missing.offset == result.size_bytes:
                break
            with self._account.upload(order, result, missing.offset) as progress:
                missing = await self._sink.send_file(
                    path, result.digest, result.size_bytes, missing.offset, progress
                )
        else:
            raise RemoteError(
                f"the coordinator still lacks bytes of {order.id} from {missing.offset} on, after "
                f"{SENDS_MAX} transfers"
            )
        receipt = await self._sink.commit(self._commit(order, result))
        self._check(receipt, order, result)
        return receipt

    def forget(self, order_id: str) -> None:
        """Delete an order's file, if there is one."""
        path = self._folder / order_id
        with disk_errors(f"delete {path}"):
            path.unlink(missing_ok=True)

    def sweep(self, known: frozenset[str]) -> None:
        """Delete the files of orders that are over."""
        with disk_errors(f"list {self._folder}"):
            names = [entry.name for entry in self._folder.iterdir()]
        for name in names:
            if name.removesuffix(".part") not in known or not ORDER_ID.fullmatch(name):
                self.forget(name)

    def take_over(self, result: Result) -> Path:
        """The file in our own folder, moved there unless it is there already.

        The trainer may still hold it open, so the bytes are hashed again when they are sent; but no
        name in a shared folder leads to them any more.
        """
        target = self._folder / result.order
        if not target.exists():
            with disk_errors(f"take over the result of {result.order}"):
                self._move(result, target)
        found = target.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size != result.size_bytes:
            self.forget(result.order)
            raise BadMailbox(
                f"the file of {result.order} is not one regular file of {result.size_bytes} bytes any more"
            )
        return target

    def hold(self, result: Result) -> Path:
        """As `take_over`; a file that is there is left alone, for masks may be on it."""
        target = self._folder / result.order
        return target if target.exists() else self.take_over(result)

    def _move(self, result: Result, target: Path) -> None:
        try:
            with (
                entries.open_folder(self._mailbox.results_folder.resolve()) as results,
                entries.open_folder(result.order, results) as inside,
            ):
                if not _renamed(inside, result.file, target):
                    _copy(inside, result, target)
        except FileNotFoundError as error:
            raise BadMailbox(f"the file of {result.order} is gone from the mailbox") from error

    def _commit(self, order: Order, result: Result) -> Commit:
        """The signed word that this blob is the answer. Initial weights have no numbers to tell."""
        seeds = order.kind is OrderKind.SEED
        weight, steps = (0, 0) if seeds else (result.weight, result.steps)
        statement = statements.Commit(order.run, order.id, result.digest, result.size_bytes, weight, steps)
        return Commit(
            order=order.id,
            digest=result.digest,
            size_bytes=result.size_bytes,
            weight=weight,
            steps=steps,
            norm=0.0 if seeds else result.norm,
            train_loss=None if seeds else result.train_loss,
            eval_loss=None if seeds else result.eval_loss,
            eval_count=0 if seeds else result.eval_count,
            seconds=result.seconds,
            layout=result.layout if seeds else "",
            signature=statements.sign(statement, self._key).hex(),
        )

    def _check(self, receipt: Receipt, order: Order, result: Result) -> None:
        if (receipt.order, receipt.digest) != (order.id, result.digest):
            raise BadSignature(f"the receipt for {order.id} speaks of another order or blob")
        statement = statements.Receipt(
            receipt.order, receipt.digest, receipt.outcome, receipt.epoch, receipt.at_ms
        )
        statements.verify(
            statement, self._coordinator_public, statements.signature_bytes(receipt.signature, "the receipt")
        )


def acknowledgement(receipt: Receipt, at_ms: int) -> UploadAcknowledged:
    """What the journal keeps of a verified receipt: all of it."""
    return UploadAcknowledged(
        at_ms=at_ms,
        order=receipt.order,
        blob=receipt.digest,
        outcome=receipt.outcome,
        epoch=receipt.epoch,
        signed_ms=receipt.at_ms,
        signature=receipt.signature,
    )


def _renamed(inside: int, name: str, target: Path) -> bool:
    """Move within one mount; False across two, which may be of one file system (volumes of containers)."""
    try:
        os.rename(name, target, src_dir_fd=inside)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _copy(inside: int, result: Result, target: Path) -> None:
    """Copy out of the mailbox. The draft is renamed when it is whole, so half a copy is never sent."""
    draft = target.with_name(f"{target.name}.part")
    # Not blocking: a pipe put in the file's place must not hold us up; its size then does not fit.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # One byte more than declared shows a file that grows, without following it for ever.
    left = result.size_bytes + 1
    with open(os.open(result.file, flags, dir_fd=inside), "rb") as reader, open(draft, "wb") as copy:
        while left and (data := reader.read(min(left, entries.COPY_BYTES))):
            copy.write(data)
            left -= len(data)
    draft.replace(target)
