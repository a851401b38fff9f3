"""What is different in a masked run's account: stages that go on without a site, and a sum of survivors."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.orders import Order
from fedtrain.sim.account import AT_WORK, Account, Fate
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.secrecy import Secrecy
from fedtrain.sim.violation import demand

MISSED = {"it sent no keys": "advert", "it shared no secrets": "boxes"}
"""Why a stage goes on without a site -> the word that it has not said."""


class Veil:
    """Of one masked run.

    Attributes:
        survivors: orders whose updates the closed round sums, None while updates are awaited.
        bound: the last round for which sites were asked to open shares, and which sites.
    """

    def __init__(self, secrecy: Secrecy) -> None:
        self.survivors: tuple[str, ...] | None = None
        self.bound: tuple[int, frozenset[str]] = (0, frozenset())
        self._secrecy = secrecy
        self._heard: set[tuple[str, str]] = set()

    def happened(self, event: ev.StatementHeard | ev.SumRefused, closed: fx.Aggregate | None) -> None:
        """A site has spoken, or what lay under the masks was refused: only a liar can be the reason."""
        if isinstance(event, ev.StatementHeard):
            self._heard.add((event.order, event.topic))
            return
        if closed is not None and closed.masks is not None:
            may_be = self._secrecy.may_be_refused(closed.masks)
            demand(may_be, "I2", f"the sum of honest sites was refused: {event.reason}")

    def drops(self, effect: fx.Cancel, event: ev.Event) -> bool:
        """Whether a stage goes on without this order's site: it has missed it, or said what does not fit."""
        missed_or_misfit = effect.reason.startswith(tuple(MISSED)) or "does not fit the mask" in effect.reason
        if not missed_or_misfit:
            return False
        for words, topic in MISSED.items():
            if effect.reason.startswith(words):
                silent = (effect.order, topic) not in self._heard
                demand(silent, "I7", f"{effect.order} is given up though its {topic} is here")
                return True
        misfit = isinstance(event, ev.StatementHeard) and event.order == effect.order
        demand(misfit, "I7", f"{effect.order} is given up, and has said nothing: {effect.reason}")
        return True

    def spoken(self, effect: fx.Speak, seated: Collection[Account]) -> None:
        """A document. With the first that names survivors the round closes. I1, I5: they are those whose
        updates are stored, and none that has left.
        """
        if effect.topic not in ("survivors", "unmask"):
            return
        named = set(json.loads(effect.document)["survivors"])
        accounts = [account for account in seated if account.order.site in named]
        barred = [account.order.id for account in accounts if account.barred]
        demand(not barred, "I5", f"{barred} are among the survivors, and their sites were taken out")
        stored = {a.order.site for a in seated if a.fate is Fate.STORED}
        demand(named == stored, "I1", f"survivors are {sorted(named)}, stored are {sorted(stored)}")
        self.survivors = tuple(account.order.id for account in accounts)
        if effect.topic == "unmask" and accounts:
            self.bound = (accounts[0].order.round, frozenset(named))
        for account in seated:
            if account.fate in AT_WORK:
                account.fate = Fate.LATE

    def may_sit(self, index: int) -> frozenset[str] | None:
        """Sites that may have a seat in an attempt at this round, None for all."""
        return self.bound[1] if self.bound[0] == index else None

    def compute(self, effect: fx.Aggregate, orders: Mapping[str, Order], chain: Chain) -> None:
        """What the next version has to be; nothing where the sum has to be refused."""
        mean = self._secrecy.mean(effect, orders)
        if mean is not None:
            chain.compute(effect, mean)
