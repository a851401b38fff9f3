"""A site's uploads: offered, sent on from the byte that the coordinator names, committed, receipted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedtrain.core import agent, messages as msg
from fedtrain.core.orders import Order, Result
from fedtrain.sim.asking import Answer
from fedtrain.sim.calls import Piece, Refusal
from fedtrain.sim.process import Place
from fedtrain.sim.trainer import Finished

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

RETRY_MS = 1_500
"""Before an upload goes on that the coordinator could not take for now."""


class Outbox:
    """Of one life; the files are the trainer's results."""

    def __init__(self, owner: Site) -> None:
        self._owner = owner

    def deliver(self, order: Order) -> None:
        """Begin, or begin again, unless it is under way."""
        owner = self._owner
        held = owner.held.get(order.id)
        if order.id in owner.calls.busy or held is None or held.order != order or held.result is None:
            return
        finished = self._file(held.result)
        if finished is None or len(finished.payload) != finished.result.size_bytes:
            self.lost(order)
            return
        offer = msg.Offer(order.id, finished.result.digest, len(finished.payload))
        owner.calls.ask(order.id, offer, lambda answer: self._answered(order, finished, answer))

    def lost(self, order: Order) -> None:
        """A loss of power took the file: the order cannot be answered with these bytes any more."""
        owner = self._owner
        reason = "the result's file is gone"
        owner.say(msg.Failure(order.id, reason))
        owner.submit(agent.UploadRefused(owner.now_ms, order.id, reason))

    def _file(self, result: Result) -> Finished | None:
        """What leaves: the trainer's file, or the masked one that was made of it."""
        made = self._owner.trainer.results.get(result.order)
        if made is None or made.result.digest == result.digest:
            return made
        masked = self._owner.seats.updates.get(result.order)
        return None if masked is None else Finished(result, masked)

    def _answered(self, order: Order, finished: Finished, answer: Answer) -> None:
        """What follows from the coordinator's word: bytes, the commit, or an end."""
        owner = self._owner
        owner.calls.busy.discard(order.id)
        if order.id not in owner.held:
            return
        owner.fuse.reach(Place.AMID_TRANSFER)
        match answer:
            case msg.Missing():
                self._go_on(order, finished, answer.offset)
            case msg.Receipt():
                owner.submit(
                    agent.UploadAcknowledged(
                        owner.now_ms, order.id, answer.digest, answer.outcome, answer.epoch, answer.at_ms, ""
                    )
                )
            case Refusal(again=True):
                owner.calls.busy.add(order.id)
                owner.later(RETRY_MS + owner.jitter_ms(1_000), lambda: self._try_again(order))
            case Refusal():
                owner.submit(agent.UploadRefused(owner.now_ms, order.id, answer.reason))

    def _try_again(self, order: Order) -> None:
        self._owner.calls.busy.discard(order.id)
        self.deliver(order)

    def _go_on(self, order: Order, finished: Finished, offset: int) -> None:
        owner, digest, payload = self._owner, finished.result.digest, finished.payload

        def answered(answer: Answer) -> None:
            self._answered(order, finished, answer)

        if offset >= len(payload):
            owner.calls.ask(order.id, _commit(order, finished), answered)
            return
        data = payload[offset : offset + owner.plan.piece_bytes]
        owner.calls.ask(order.id, Piece(order.id, digest, offset, data), answered)


def _commit(order: Order, finished: Finished) -> msg.Commit:
    result = finished.result
    return msg.Commit(
        order=order.id,
        digest=result.digest,
        size_bytes=result.size_bytes,
        weight=result.weight,
        steps=result.steps,
        norm=result.norm,
        train_loss=result.train_loss,
        eval_loss=result.eval_loss,
        eval_count=result.eval_count,
        seconds=result.seconds,
        layout=result.layout,
        signature="",
    )
