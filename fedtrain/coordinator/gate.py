"""Who may call what: the judge of every call, and the desk where invites become members.

Whoever is let in is judged again while its call lasts (`check`), because a certificate ends, and a
membership does, and gRPC would not notice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from fedtrain.coordinator.authorities import Authorities
from fedtrain.coordinator.hub import Hub
from fedtrain.coordinator.limits import EnrolmentLimits
from fedtrain.coordinator.roles import allowed_roles
from fedtrain.core import events as ev
from fedtrain.core.allowance import REFUSALS, Allowance, spend
from fedtrain.core.state import Member
from fedtrain.errors import RefusedError, Unauthenticated
from fedtrain.trust import admission
from fedtrain.trust.certificates import LeafFacts, utc_text
from fedtrain.trust.enrolment import enrol, requested_key_digest
from fedtrain.trust.identity import Role, parse_identity
from fedtrain.wire.values import Admission, Caller, SigningRequest

_log = logging.getLogger(__name__)


class Gate:
    """Judges callers, and implements the wire's `EnrolmentHandler`."""

    def __init__(self, hub: Hub, authorities: Authorities) -> None:
        self._hub = hub
        self._authorities = authorities
        self._misuses = Allowance()
        self._limits = EnrolmentLimits(hub.clock.monotonic_ms)

    def judge(self, auth_context: Mapping[str, Iterable[bytes]], service: str, method: str) -> Caller:
        """Who calls, if the certificate is good, the role fits, and the key is the enrolled one."""
        facts = admission.judge(
            auth_context,
            call=f"{service}.{method}",
            allowed=allowed_roles(service, method),
            consortium=self._hub.keys.membership.consortium,
            now_ms=self._hub.clock.now_ms(),
        )
        caller = Caller(
            name=facts.identity.name,
            role=facts.identity.role.value,
            fingerprint=facts.fingerprint,
            key_digest=facts.key_digest,
            not_after_ms=facts.not_after_ms,
        )
        self.check(caller)
        if facts.identity.role is not Role.ENROLLING:
            self._authorities.note(facts)
        return caller

    def check(self, caller: Caller) -> None:
        """Whether somebody who was let in may still be here; `Unauthenticated` if not."""
        if self._hub.clock.now_ms() >= caller.not_after_ms:
            raise Unauthenticated(
                f"the certificate of {caller.name} expired at {utc_text(caller.not_after_ms)}: ask an "
                f"operator for `fedtrain site invite {caller.name} --again` and join again"
            )
        if caller.role == Role.ENROLLING:
            self._check_invite(caller)
        else:
            self._check_member(caller)

    def _check_member(self, caller: Caller) -> None:
        member = self._hub.state.members.get(caller.name)
        if member is not None and member.revoked:
            raise Unauthenticated(f"{caller.name}: {member.revoked}; only an operator can invite it again")
        if (
            member is None
            or member.role != caller.role
            or caller.key_digest not in (member.key_digest, member.previous_key)
        ):
            raise Unauthenticated(
                f"{caller.role} {caller.name} is not enrolled with this key: join again with a new invite"
            )
        if caller.key_digest == member.key_digest and not self._authorities.trusts(member):
            raise Unauthenticated(
                f"the authority that signed the certificate of {caller.name} was retired: ask an operator "
                f"for `fedtrain site invite {caller.name} --again` and join again"
            )

    def _check_invite(self, caller: Caller) -> None:
        if caller.fingerprint not in self._hub.state.invites:
            # Our authority signed it, so it was an invite once: another one was used, or its name revoked.
            self._report(caller, f"an invite for {caller.name} that does not count any more was shown")
            raise Unauthenticated(f"this invite for {caller.name} is not known here: ask for a new one")

    def _report(self, caller: Caller, reason: str) -> None:
        """Journal that an invite was misused, as far as the allowance goes."""
        now_ms = self._hub.clock.monotonic_ms()
        self._misuses, written = spend(self._misuses, REFUSALS, now_ms)
        if written:
            _log.warning("%s (from %s)", reason, caller.address or "an unknown address")
            self._hub.submit(
                ev.InviteMisused(self._hub.clock.now_ms(), caller.name, caller.fingerprint, reason)
            )

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        """A certificate for the invite's name. The same key gets the same certificate again."""
        self._limits.enrol(caller.fingerprint, caller.address)
        state = self._hub.state
        invite = state.invites[caller.fingerprint]
        digest = requested_key_digest(request.csr_pem)
        member = state.members.get(invite.name)
        if invite.used_by == digest and member is not None and member.key_digest == digest:
            return self._authorities.admission(member.certificate.encode())
        if invite.used_by:
            reason = f"the invite for {invite.name} was used before, with another key"
            self._report(caller, reason)
            raise RefusedError(f"{reason}: if that was not you, tell an operator; else ask for a new invite")
        if member is not None and member.revoked and _holds(member, digest, request.message_key):
            raise RefusedError(
                f"these are the keys of {member.name} that were revoked: join into an empty folder, where new"
                " ones are made"
            )
        role, keys, now_ms = Role(invite.role), self._hub.keys, self._hub.clock.now_ms()
        facts = LeafFacts(
            identity=parse_identity(f"fedtrain://{keys.membership.consortium}/enrolling/{caller.name}"),
            fingerprint=caller.fingerprint,
            not_before_ms=0,
            not_after_ms=caller.not_after_ms,
            key_digest=caller.key_digest,
        )
        lifetime_ms = keys.book.lifetime_ms(role)
        enrolled = enrol(
            keys.authority, facts, role, request.csr_pem, request.message_key, now_ms, lifetime_ms
        )
        self._hub.submit(
            ev.MemberEnrolled(
                at_ms=now_ms,
                name=caller.name,
                role=role.value,
                invite=caller.fingerprint,
                key_digest=enrolled.key_digest,
                certificate=enrolled.certificate_pem.decode(),
                message_key=enrolled.message_key,
                organisation=invite.organisation,
            )
        )
        _log.info("%s joined as %s", caller.name, role.value)
        return self._authorities.admission(enrolled.certificate_pem)

    async def renew(self, caller: Caller, request: SigningRequest) -> Admission:
        """The caller's next certificate, for a new key. The same key gets the same certificate again."""
        member = self._hub.state.members[caller.name]
        if request.message_key != member.message_key:
            raise RefusedError(
                f"{caller.name} is enrolled with another message key: a new one needs a new invite"
            )
        digest = requested_key_digest(request.csr_pem)
        if digest == member.key_digest:
            return self._authorities.admission(member.certificate.encode())
        self._check_next_key(caller, member, digest)
        self._limits.renew(caller.name)
        certificate_pem = self._authorities.renew(member, request.csr_pem, digest)
        return self._authorities.admission(certificate_pem)

    def _check_next_key(self, caller: Caller, member: Member, digest: str) -> None:
        """One that has been replaced gives no other one: who stole it could go on for ever."""
        if caller.key_digest != member.key_digest or digest == member.previous_key:
            raise Unauthenticated(
                f"the certificate of {caller.name} was renewed before, with another key: go on with that "
                "one, or ask an operator for a new invite"
            )


def _holds(member: Member, key_digest: str, message_key: str) -> bool:
    """Whether one of these keys is, or was until its renewal, the member's."""
    return key_digest in (member.key_digest, member.previous_key) or message_key == member.message_key
