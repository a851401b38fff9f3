"""A site's calls: asked, and asked again while nobody answers and the order is still in hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtrain.core import messages as msg
from fedtrain.sim.calls import Fetch, Part, Piece, Refusal, Response

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

CALL_MS = 4_000
"""After so long without an answer a call is made again."""

Question = Fetch | msg.Offer | Piece | msg.Commit
Answer = Part | msg.Missing | msg.Receipt | Refusal


@dataclass
class Pending:
    """A call that may have been made several times: the first answer to any of them counts."""

    order: str
    question: Question
    answered: Callable[[Answer], None]
    open: bool = True


class Calls:
    """Of one life.

    Attributes:
        busy: orders that something is being asked for, or will be soon.
    """

    def __init__(self, owner: Site) -> None:
        self.busy: set[str] = set()
        self._owner = owner
        self._waiting: dict[int, Pending] = {}

    def ask(self, order: str, question: Question, answered: Callable[[Answer], None]) -> None:
        """One call for this order, which is `busy` until the answer is here or the order is over."""
        self.busy.add(order)
        self._make(Pending(order, question, answered))

    def _make(self, pending: Pending) -> None:
        owner = self._owner
        number = owner.next_call()
        self._waiting[number] = pending
        owner.call(number, pending.question)

        def check() -> None:
            if not pending.open:
                return
            if pending.order in owner.held:
                self._make(pending)
            else:
                pending.open = False
                self.busy.discard(pending.order)

        patience_ms = CALL_MS + owner.transfer_ms(pending.question)
        owner.later(patience_ms + owner.jitter_ms(1_000), check)

    def forget(self, order: str) -> None:
        """Nothing more is asked for this order, as when its work is cancelled."""
        for number, pending in tuple(self._waiting.items()):
            if pending.order == order:
                pending.open = False
                del self._waiting[number]
        self.busy.discard(order)

    def answer(self, response: Response) -> None:
        """An answer came; a second one to the same call means nothing."""
        pending = self._waiting.pop(response.call, None)
        if pending is not None and pending.open:
            pending.open = False
            pending.answered(response.body)
