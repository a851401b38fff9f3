"""Making a consortium: authority, keys, the first operator, the journal's first rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fedtrain.core import events as ev
from fedtrain.core.driver import entry_of
from fedtrain.storage.journal import Journal
from fedtrain.trust.authority import OFFLINE_LIFETIME_MS, server_name
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import begin_join, finish_join, init_coordinator, move_coordinator
from fedtrain.trust.generations import Plan, load_offline_root
from fedtrain.trust.identity import Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.offline import note_consortium

OPERATOR = "operator"
"""Name of the first operator, and of its folder inside the coordinator's."""


@dataclass(frozen=True)
class InitReport:
    """What `init` made."""

    folder: Path
    consortium: str
    address: str
    server_name: str


def init(folder: Path, consortium: str, address: str, plan: Plan | None = None) -> InitReport:
    """Make the consortium `consortium` in `folder`, to be reached at `address` (host:port).

    The first operator joins through the same steps as everybody else, only without a network.
    Raises `ConfigError` if the folder holds a consortium already or the address is none.
    """
    state = folder / "state"
    now_ms = time.time_ns() // 1_000_000
    plan = plan or Plan()
    keys = init_coordinator(state, consortium, address, now_ms, plan)
    issuer, lifetime_ms = keys.authority, keys.book.lifetime_ms(Role.OPERATOR)
    if not issuer.issues and plan.offline is not None:
        issuer, lifetime_ms = load_offline_root(plan.offline, plan.passphrase), OFFLINE_LIFETIME_MS
    invite = make_invite(issuer, OPERATOR, Role.OPERATOR, address, now_ms, 60_000)
    application = begin_join(folder / OPERATOR, invite)
    public = application.message_key.public
    csr_pem = application.csr_pem
    enrolled = enrol(issuer, invite.facts, Role.OPERATOR, csr_pem, public, now_ms, lifetime_ms)
    finish_join(
        folder / OPERATOR,
        invite,
        application,
        enrolled.certificate_pem,
        keys.message_key.public,
        keys.roots_pem,
        issuer.intermediates_pem,
    )
    if plan.offline is not None:
        note_consortium(plan.offline, keys.membership, keys.message_key.public)
    (state / "message.pub").write_text(keys.message_key.public + "\n")
    _write_first_rows(state, invite.facts.fingerprint, enrolled.certificate_pem, public, now_ms)
    return InitReport(folder, consortium, address, server_name(consortium))


def move(folder: Path, address: str) -> None:
    """From now on the coordinator of `folder` is reached at `address`; its first operator knows."""
    for state in (folder / "state", folder / OPERATOR):
        move_coordinator(state, address)


def _write_first_rows(
    state: Path, invite: str, certificate: bytes, operator_public: str, now_ms: int
) -> None:
    """The journal begins with the first operator."""
    journal = Journal.open(state / "journal.db", lock=state / "lock")
    try:
        facts = read_certificate(certificate)
        journal.append(
            [
                entry_of(ev.MemberInvited(now_ms, OPERATOR, Role.OPERATOR.value, invite, now_ms)),
                entry_of(
                    ev.MemberEnrolled(
                        now_ms,
                        OPERATOR,
                        Role.OPERATOR.value,
                        invite,
                        facts.key_digest,
                        certificate.decode(),
                        operator_public,
                    )
                ),
            ]
        )
    finally:
        journal.close()
