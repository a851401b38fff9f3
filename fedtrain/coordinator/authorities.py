"""The authorities of the consortium while the coordinator serves: issuing, and one following another.

A roll-over begins with a second root, under another name, which issues from then on. Clients of both are
accepted, and the server keeps showing the certificate of the first, because members learn of the second
with their next certificate. When every member has *used* a certificate of the second, the server shows its
own of the second, and the first is retired. Files are written before the journal's rows, and a start
writes the rows that a crash has left out.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import replace
from pathlib import Path

from fedtrain.coordinator.hub import Hub
from fedtrain.core import events as ev
from fedtrain.core.state import Member
from fedtrain.errors import FedtrainError, RefusedError
from fedtrain.trust import generations
from fedtrain.trust.authority import Authority
from fedtrain.trust.certificates import LeafFacts, read_certificate, renew_at_ms
from fedtrain.trust.enrolment import requested_key_digest
from fedtrain.trust.folders import load_coordinator, load_member
from fedtrain.trust.identity import Role
from fedtrain.trust.renewal import begin_renewal, finish_renewal, renewal_lock
from fedtrain.wire.options import ServerIdentity
from fedtrain.wire.values import Admission, Document

_log = logging.getLogger(__name__)

BY_RULE = "rule"

_facts = functools.lru_cache(maxsize=4096)(read_certificate)


class Authorities:
    """Issues for members, and carries a roll-over out.

    Args:
        folder: the coordinator's.
        passphrase: of its issuing key, empty if that is not encrypted.

    Attributes:
        identity: what the server shows; replaced when the authority is.
    """

    def __init__(self, hub: Hub, folder: Path, passphrase: bytes) -> None:
        self._hub = hub
        self._state = folder / "state"
        self._operator = folder / "operator"
        self._passphrase = passphrase
        self._moved: set[str] = set()
        keys = hub.keys
        self._trusted: tuple[Authority, ...] = self._load_trusted()
        self.identity = ServerIdentity(keys.server_key_pem, keys.server_certificate_pem, keys.roots_pem)

    @property
    def rolling(self) -> bool:
        """Whether one authority follows another right now."""
        return self._hub.keys.book.oldest != self._hub.keys.book.newest

    def trusts(self, member: Member) -> bool:
        """Whether the member's newest certificate is of an authority that is not retired."""
        issuer = _facts(member.certificate.encode()).issuer
        return any(issuer in authority.subjects for authority in self._trusted)

    def note(self, facts: LeafFacts) -> None:
        """A member has used this certificate: if the newest authority signed it, it has moved."""
        if self.rolling and facts.issuer in self._hub.keys.authority.subjects:
            self._moved.add(facts.identity.name)

    def admission(self, certificate_pem: bytes) -> Admission:
        """What a member gets: its certificate, and whom to trust from now on."""
        keys, issuer = self._hub.keys, _facts(certificate_pem).issuer
        below = [one.intermediates_pem for one in self._trusted if issuer in one.subjects]
        return Admission(
            certificate_pem,
            keys.roots_pem,
            keys.message_key.public,
            keys.membership.consortium,
            below[0] if below else b"",
        )

    def renew(self, member: Member, csr_pem: bytes, key_digest: str) -> bytes:
        """Issue and journal the member's next certificate (PEM)."""
        keys, now_ms = self._hub.keys, self._hub.clock.now_ms()
        if not keys.authority.issues:
            raise RefusedError(
                "this coordinator has no key to issue with: ask for a certificate that is signed where the"
                " key is kept (`fedtrain join --request DIR`, `fedtrain site sign`)"
            )
        role = Role(member.role)
        identity = replace(keys.membership, name=member.name, role=role).identity
        pem = keys.authority.issue_leaf(csr_pem, identity, now_ms, keys.book.lifetime_ms(role))
        self._hub.submit(ev.MemberRenewed(now_ms, member.name, key_digest, pem.decode()))
        _log.info("%s has a new certificate", member.name)
        return pem

    # -- the roll-over ------------------------------------------------------------------------------

    def begin(self, by: str) -> None:
        """Let the next authority issue: the prepared one if its files lie there, else one that is made now.

        `RefusedError` if the root's key is kept elsewhere and nothing was prepared.
        """
        if self.rolling:
            return
        keys = self._hub.keys
        number = keys.book.newest + 1
        if not generations.has_generation(self._state, number):
            if not keys.authority.issues or keys.authority.intermediates_pem:
                raise RefusedError(
                    "the root of this consortium is kept elsewhere: make the next one with `fedtrain"
                    " coordinator roll-over DIR --offline-ca NEWCADIR`, on the coordinator's machine"
                )
            made = generations.new_generation(keys.membership.consortium, self._hub.clock.now_ms())
            generations.save_generation(self._state, number, made, self._passphrase)
        self._moved.clear()
        self._take_up(replace(keys.book, newest=number))
        self._journal(by)
        self.refresh_operator()
        _log.info("%s began a roll-over: authority %s issues now", by, self._hub.keys.authority.serial)

    def finish(self, by: str) -> None:
        """Retire all authorities but the newest, whoever still depends on them."""
        if not self.rolling:
            return
        self._take_up(replace(self._hub.keys.book, oldest=self._hub.keys.book.newest))
        self._journal(by)
        generations.drop_keys(self._state, self._hub.keys.book.newest)
        _log.info("the roll-over is over: only authority %s is trusted", self._hub.keys.authority.serial)

    def behind(self) -> list[str]:
        """Members who have not used a certificate of the newest authority yet, and still have a good one."""
        now_ms = self._hub.clock.now_ms()
        return [
            name
            for name, member in sorted(self._hub.state.members.items())
            if not member.revoked
            and name not in self._moved
            and _facts(member.certificate.encode()).not_after_ms > now_ms
        ]

    def tend(self) -> None:
        """What is due: the local operator's certificate, and the end of a roll-over."""
        self.refresh_operator()
        if self.rolling and not self.behind():
            self.finish(BY_RULE)

    def view(self) -> Document:
        """How far a roll-over is."""
        return {
            "rolling": self.rolling,
            "issuing": self._hub.keys.authority.serial,
            "trusted": [authority.serial for authority in self._trusted],
            "behind": self.behind() if self.rolling else [],
        }

    def complete(self) -> None:
        """At the start: the rows of a roll-over whose files a crash has left without them."""
        self._journal(BY_RULE)
        generations.drop_keys(self._state, self._hub.keys.book.oldest)

    def _take_up(self, book: generations.Book) -> None:
        """From now on this book holds, on the disk, in memory and for the next handshake."""
        generations.write_book(self._state, book)
        self._hub.keys = keys = load_coordinator(self._state, self._passphrase)
        self._trusted = self._load_trusted()
        self.identity.replace(keys.server_key_pem, keys.server_certificate_pem, keys.roots_pem)

    def _load_trusted(self) -> tuple[Authority, ...]:
        """Newest first. Only the newest has to issue."""
        keys = self._hub.keys
        older = range(keys.book.newest - 1, keys.book.oldest - 1, -1)
        return (keys.authority, *(generations.load_certificates(self._state, number) for number in older))

    def _journal(self, by: str) -> None:
        """Journal what the files say and the journal does not."""
        added: set[str] = set()
        retired: set[str] = set()
        for row in self._hub.journal.read(kinds=("AuthorityAdded", "AuthorityRetired")):
            (added if row.kind == "AuthorityAdded" else retired).add(json.loads(row.payload)["subject"])
        book, now_ms = self._hub.keys.book, self._hub.clock.now_ms()
        for number in range(2, book.newest + 1):
            authority = generations.load_certificates(self._state, number)
            if authority.serial not in added:
                pem = authority.certificate_pem.decode()
                self._hub.submit(ev.AuthorityAdded(now_ms, by, authority.serial, pem))
        for number in range(1, book.oldest):
            serial = generations.load_certificates(self._state, number).serial
            if serial not in retired:
                self._hub.submit(ev.AuthorityRetired(now_ms, by, serial))

    # -- the operator inside the coordinator's folder -------------------------------------------------

    def refresh_operator(self) -> None:
        """Re-issue the local operator's certificate past its half-life, or under a new authority."""
        try:
            if self._renew_operator():
                _log.info("the local operator's certificate is re-issued")
        except FedtrainError as error:
            _log.warning("the certificate in %s cannot be re-issued: %s", self._operator, error)

    def _renew_operator(self) -> bool:
        """Renews the operator if that is due; whether it was."""
        keys = self._hub.keys
        if not self._operator.is_dir() or not keys.authority.issues:
            return False
        member_keys = load_member(self._operator)
        facts = read_certificate(member_keys.certificate_pem)
        member = self._hub.state.members.get(facts.identity.name)
        fresh = facts.issuer in keys.authority.subjects
        if fresh:
            self._moved.add(facts.identity.name)
        if (fresh and self._hub.clock.now_ms() < renew_at_ms(facts)) or member is None or member.revoked:
            return False
        if facts.key_digest not in (member.key_digest, member.previous_key):
            return False  # an operator of that name has joined elsewhere, with a key of its own
        with renewal_lock(self._operator) as alone:
            if not alone:
                return False
            renewal = begin_renewal(self._operator, member_keys)
            digest = requested_key_digest(renewal.csr_pem)
            if digest == member.key_digest:  # a crash came between the journal's row and the file
                pem = member.certificate.encode()
            else:
                pem = self.renew(member, renewal.csr_pem, digest)
            below = keys.authority.intermediates_pem
            finish_renewal(self._operator, member_keys, renewal, pem, keys.roots_pem, below)
            self._moved.add(member.name)
            return True
