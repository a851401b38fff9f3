"""What the site says of its contract, signed; and what it believes of who the others are.

    state/contract.json    the contract, canonical JSON: its SHA-256 is the digest in every agreement
    state/contract.sig     the site's signed declaration of it, with what its data sets hold

Anyone who is shown the two files can hold them against the digests in the coordinator's journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from fedtrain.core import agent as core, canonical, messages as msg
from fedtrain.core.charges import CHARGE, LEDGER, Account
from fedtrain.core.contract import Contract
from fedtrain.core.judgement import Moment
from fedtrain.core.masks import Signed
from fedtrain.core.orders import Order
from fedtrain.errors import BadSignature, ConfigError, RemoteError
from fedtrain.trust import statements
from fedtrain.trust.folders import MemberKeys
from fedtrain.trust.private_files import read_public, write_public

CONTRACT_FILE, SIGNATURE_FILE = "contract.json", "contract.sig"
_FIRST_DAY = date(1970, 1, 1).toordinal()
_REASONS_MAX = 64
_REASON_CHARACTERS_MAX = 4_096


def moment_at(contract: Contract, at_ms: int) -> Moment:
    """A time as the contract's zone tells it; UTC for a contract without hours."""
    zone = UTC if contract.hours is None else ZoneInfo(contract.hours.zone)
    local = datetime.fromtimestamp(at_ms / 1000, zone)
    return Moment(local.date().toordinal() - _FIRST_DAY, 60 * local.hour + local.minute)


@dataclass(frozen=True)
class SignedContract:
    """The file beside the contract: `statements.Declaration` and the signature over it, hex."""

    site: str
    contract: str
    examples: Mapping[str, int]
    signature: str


class Assent:
    """Signs for the site, and checks what the coordinator signs about its members.

    Args:
        state: where the signed contract lies.
        keys: the site's and the coordinator's.
    """

    def __init__(self, state: Path, keys: MemberKeys) -> None:
        self._state = state
        self._site = keys.membership.name
        self._consortium = keys.membership.consortium
        self._key = keys.message_key
        self._coordinator_public = keys.coordinator_public

    def answer(
        self, order: Order, reply: core.Reply, contract: Contract | None
    ) -> msg.Consent | msg.Agreement:
        """The contract's answer to an order; without a contract as protocol 1.0 has it."""
        reasons = tuple(reason[:_REASON_CHARACTERS_MAX] for reason in reply.reasons[:_REASONS_MAX])
        order_digest = canonical.digest(order)
        if contract is None:
            consent = statements.Consent(order.id, order_digest, reply.accepted, reasons)
            return msg.Consent(order.id, reply.accepted, reasons, self._sign(consent))
        digest = canonical.digest(contract)
        agreement = statements.Agreement(order.id, order_digest, reply.accepted, reasons, digest)
        return msg.Agreement(order.id, reply.accepted, reasons, digest, self._sign(agreement))

    def withdrawal(self, run: str, reason: str) -> msg.Withdrawal:
        """The site takes its consent to this run back."""
        return msg.Withdrawal(run, reason, self._sign(statements.Withdrawal(self._site, run, reason)))

    def charge(self, order: str, account: Account) -> msg.Statement:
        """What a run has cost at this site."""
        document = canonical.encode(account).decode()
        statement = statements.said(self._consortium, self._site, CHARGE, order, document)
        return msg.Statement(CHARGE, order, document, self._sign(statement))

    def own_charge(self, statement: msg.Statement) -> Account:
        """Our own account that the coordinator hands back.

        Raises `BadSignature` unless both have signed it, `RemoteError` if it is none.
        """
        whole = statements.said(self._consortium, self._site, LEDGER, statement.order, statement.document)
        signature = statements.signature_bytes(statement.signature, "what the coordinator hands back")
        statements.verify(whole, self._coordinator_public, signature)
        ours = canonical.decode(Signed, statement.document)
        said = statements.said(self._consortium, self._site, CHARGE, statement.order, ours.document)
        statements.verify(said, self._key.public, statements.signature_bytes(ours.signature, "our account"))
        return canonical.decode(Account, ours.document)

    def declare(self, contract: Contract, counted: Mapping[str, int]) -> tuple[msg.Declaration, bool]:
        """The contract and what its discoverable data sets hold; and whether any of it is news.

        News lies in the state folder before this returns.
        """
        examples = {
            name: count
            for name, count in counted.items()
            if name in contract.datasets and contract.datasets[name].discoverable
        }
        digest = canonical.digest(contract)
        signature = self._sign(statements.Declaration(self._site, digest, examples))
        signed = SignedContract(self._site, digest, examples, signature)
        news = self._kept() != signed
        if news:
            write_public(self._state / CONTRACT_FILE, canonical.encode(contract))
            write_public(self._state / SIGNATURE_FILE, canonical.encode(signed))
        return msg.Declaration(digest, examples, signature), news

    def check_roster(self, roster: msg.Roster, at_ms: int) -> core.RosterReceived:
        """The roster as an event; `BadSignature` if the coordinator did not sign exactly this."""
        statement = statements.Roster(self._consortium, tuple(sorted(roster.members.items())), roster.at_ms)
        statements.verify(
            statement, self._coordinator_public, statements.signature_bytes(roster.signature, "the roster")
        )
        if self._site not in roster.members:
            raise BadSignature(f"the coordinator's roster does not name {self._site}, to whom it was sent")
        return core.RosterReceived(at_ms, roster.members, roster.at_ms, roster.signature)

    def _kept(self) -> SignedContract | None:
        try:
            kept = canonical.decode(
                SignedContract, read_public(self._state / SIGNATURE_FILE, "not there yet")
            )
            contract = read_public(self._state / CONTRACT_FILE, "not there yet")
        except (ConfigError, RemoteError):
            return None
        return kept if hashlib.sha256(contract).hexdigest() == kept.contract else None

    def _sign(self, statement: statements.Statement) -> str:
        return statements.sign(statement, self._key).hex()
