"""What sites sign about themselves, as events; and what the coordinator signs about its sites.

Nothing is journaled that its site did not sign like this: a signature that does not fit is an error that
ends the session which brought it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.unmasking import check_advert
from fedtrain.core import canonical, events as ev, messages as msg
from fedtrain.core.allowance import ATTACHES, Allowance, spend
from fedtrain.core.cohort import roster
from fedtrain.core.masks import Advert
from fedtrain.core.orders import Order
from fedtrain.core.state import ENDED, Member
from fedtrain.errors import BusyError
from fedtrain.trust import statements

ROSTERS_SINCE = STATEMENTS_SINCE = (1, 1)
"""The protocol that knows these messages."""


class Testimony:
    """Holds what a site says against its signature."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._declarations: dict[str, Allowance] = {}

    def answered(
        self, site: str, message: msg.Consent | msg.Agreement, order: Order, now_ms: int
    ) -> ev.ConsentGiven | ev.ConsentRefused:
        """A contract's answer to this order; sites of protocol 1.0 do not name the contract."""
        fields = (order.id, canonical.digest(order), message.accepted, message.reasons)
        contract = message.contract if isinstance(message, msg.Agreement) else ""
        statement: statements.Statement = (
            statements.Agreement(*fields, contract) if contract else statements.Consent(*fields)
        )
        self._verify(site, statement, message.signature, f"the answer to {order.id}")
        signature = message.signature if contract else ""
        if message.accepted:
            return ev.ConsentGiven(now_ms, order.id, contract, signature)
        return ev.ConsentRefused(now_ms, order.id, message.reasons, contract, signature)

    def declared(self, site: str, message: msg.Declaration, now_ms: int) -> ev.SiteDeclared:
        """The contract that a site acts under, and what it lets us know of its data."""
        self._spend(site)
        statement = statements.Declaration(site, message.contract, message.examples)
        self._verify(site, statement, message.signature, "the declaration")
        return ev.SiteDeclared(now_ms, site, message.contract, message.examples, message.signature)

    def withdrawn(self, site: str, message: msg.Withdrawal, now_ms: int) -> ev.ConsentWithdrawn | None:
        """A consent that is taken back; None where that changes nothing: sites say it in every session."""
        statement = statements.Withdrawal(site, message.run, message.reason)
        self._verify(site, statement, message.signature, f"the withdrawal from {message.run}")
        run = self._hub.state.runs.get(message.run)
        if run is None or run.phase in ENDED:
            return None
        excluded, attached = run.excluded.get(site), self._hub.state.attached.get(site)
        in_this_session = (
            attached is not None and excluded is not None and excluded.session == attached.session
        )
        if in_this_session and excluded is not None and excluded.reason.startswith("consent withdrawn"):
            return None
        return ev.ConsentWithdrawn(now_ms, site, message.run, message.reason, message.signature)

    def said(self, site: str, message: msg.Statement, now_ms: int) -> ev.StatementHeard:
        """A document on a topic of one of the site's orders. The keys of an advert are such that others can
        use them: one that gave everybody the same secret would cost them their seats.
        """
        consortium = self._hub.keys.membership.consortium
        statement = statements.said(consortium, site, message.topic, message.order, message.document)
        self._verify(site, statement, message.signature, f"the {message.topic[:20]!r} for {message.order}")
        if message.topic == "advert":
            check_advert(canonical.decode(Advert, message.document))
        return ev.StatementHeard(
            now_ms, site, message.topic, message.order, message.document, message.signature
        )

    def _spend(self, site: str) -> None:
        now_ms = self._hub.clock.monotonic_ms()
        self._declarations[site], allowed = spend(self._declarations.get(site, Allowance()), ATTACHES, now_ms)
        if not allowed:
            raise BusyError(f"{site} declares again and again: come less often", ATTACHES.row_every_ms)

    def _verify(self, site: str, statement: statements.Statement, signature: str, what: str) -> None:
        signed = statements.signature_bytes(signature, f"{what} of {site}")
        statements.verify(statement, self._hub.state.members[site].message_key, signed)


class Rosters:
    """The signed roster, made anew when it has changed."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._members: Mapping[str, Member] | None = None
        self._signed = msg.Roster()

    def current(self) -> msg.Roster:
        """Site -> organisation of all members, signed, with the time from which it holds."""
        state = self._hub.state
        if state.members is not self._members:
            self._members = state.members
            found = roster(state)
            if found != self._signed.members or not self._signed.signature:
                self._signed = self._sign(found, self._hub.clock.now_ms())
        return self._signed

    def _sign(self, members: Mapping[str, str], at_ms: int) -> msg.Roster:
        keys = self._hub.keys
        statement = statements.Roster(keys.membership.consortium, tuple(sorted(members.items())), at_ms)
        return msg.Roster(members, at_ms, statements.sign(statement, keys.message_key).hex())
