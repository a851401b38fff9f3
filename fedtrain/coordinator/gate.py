"""Who may call what: the judge of every call, and the desk where invites become members."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from fedtrain.coordinator.hub import Hub
from fedtrain.core import events as ev
from fedtrain.core.allowance import REFUSALS, Allowance, spend
from fedtrain.errors import RefusedError
from fedtrain.trust import admission
from fedtrain.trust.certificates import LeafFacts
from fedtrain.trust.enrolment import enrol, requested_key_digest
from fedtrain.trust.identity import Role, parse_identity
from fedtrain.wire.values import Admission, Caller, SigningRequest

_log = logging.getLogger(__name__)

MEMBERS = frozenset({Role.SITE, Role.OPERATOR, Role.OBSERVER, Role.AUDITOR})
READERS = frozenset({Role.OPERATOR, Role.OBSERVER})
READING = frozenset({"Runs", "Run", "Rounds", "Members", "Member", "Models", "Watch"})

ALLOWED: dict[str, frozenset[Role]] = {
    "Enrolment": frozenset({Role.ENROLLING}),
    "Session": frozenset({Role.SITE}),
    "Transfer": frozenset({Role.SITE}),
    "Health": MEMBERS,
}
"""Service -> roles; `Operations` is by method."""


def allowed_roles(service: str, method: str) -> frozenset[Role]:
    """Roles that may make this call. What is not listed is nobody's."""
    if service == "Operations":
        if method == "Journal":
            return frozenset({Role.OPERATOR, Role.AUDITOR})
        return READERS if method in READING else frozenset({Role.OPERATOR})
    return ALLOWED.get(service, frozenset())


class Gate:
    """Judges callers, and implements the wire's `EnrolmentHandler`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._allowance = Allowance()

    def judge(self, auth_context: Mapping[str, Iterable[bytes]], service: str, method: str) -> Caller:
        """Who calls, if the certificate is good, the role fits, and the key is the enrolled one."""
        facts = admission.judge(
            auth_context,
            call=f"{service}.{method}",
            allowed=allowed_roles(service, method),
            consortium=self._hub.keys.membership.consortium,
            now_ms=self._hub.clock.now_ms(),
        )
        if facts.identity.role is Role.ENROLLING:
            self._check_invite(facts)
        else:
            self._check_member(facts)
        return Caller(
            name=facts.identity.name,
            role=facts.identity.role.value,
            fingerprint=facts.fingerprint,
            key_digest=facts.key_digest,
            not_after_ms=facts.not_after_ms,
        )

    def _check_member(self, facts: LeafFacts) -> None:
        member = self._hub.state.members.get(facts.identity.name)
        if (
            member is None
            or member.role != facts.identity.role.value
            or member.key_digest != facts.key_digest
        ):
            raise RefusedError(
                f"{facts.identity} is not enrolled with this key: join again with a new invite"
            )

    def _check_invite(self, facts: LeafFacts) -> None:
        if facts.fingerprint not in self._hub.state.invites:
            raise RefusedError(f"this invite for {facts.identity.name} is not known here: ask for a new one")

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        """A certificate for the invite's name. The same key gets the same certificate again."""
        state = self._hub.state
        invite = state.invites[caller.fingerprint]
        digest = requested_key_digest(request.csr_pem)
        if invite.used_by == digest:
            return self._admission(state.members[invite.name].certificate.encode())
        if invite.used_by:
            reason = f"the invite for {invite.name} was used before, with another key"
            self._allowance, written = spend(self._allowance, REFUSALS, self._hub.clock.monotonic_ms())
            if written:
                _log.warning("%s (from %s)", reason, caller.address)
                self._hub.submit(
                    ev.InviteMisused(self._hub.clock.now_ms(), invite.name, caller.fingerprint, reason)
                )
            raise RefusedError(f"{reason}: if that was not you, tell an operator; else ask for a new invite")
        role = Role(invite.role)
        now_ms = self._hub.clock.now_ms()
        facts = LeafFacts(
            identity=parse_identity(
                f"fedtrain://{self._hub.keys.membership.consortium}/enrolling/{caller.name}"
            ),
            fingerprint=caller.fingerprint,
            not_before_ms=0,
            not_after_ms=caller.not_after_ms,
            key_digest=caller.key_digest,
        )
        enrolled = enrol(self._hub.keys.authority, facts, role, request.csr_pem, request.message_key, now_ms)
        self._hub.submit(
            ev.MemberEnrolled(
                at_ms=now_ms,
                name=caller.name,
                role=role.value,
                invite=caller.fingerprint,
                key_digest=enrolled.key_digest,
                certificate=enrolled.certificate_pem.decode(),
                message_key=enrolled.message_key,
            )
        )
        _log.info("%s joined as %s", caller.name, role.value)
        return self._admission(enrolled.certificate_pem)

    def _admission(self, certificate: bytes) -> Admission:
        keys = self._hub.keys
        return Admission(
            certificate, keys.authority.certificate_pem, keys.message_key.public, keys.membership.consortium
        )
