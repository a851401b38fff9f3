"""Who belongs to the consortium, at an operator's word: invites, revocation, quarantine, registration."""

from __future__ import annotations

import logging

from fedtrain.coordinator import views
from fedtrain.coordinator.authorities import Authorities
from fedtrain.coordinator.hub import Hub
from fedtrain.core import events as ev
from fedtrain.core.orders import NAME
from fedtrain.core.state import Member
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.trust.certificates import check_chain, read_certificate
from fedtrain.trust.identity import MEMBER_ROLES, Role
from fedtrain.trust.invites import encode_invite, make_invite
from fedtrain.trust.keys import check_public
from fedtrain.wire.values import Caller, Document, InviteOrder, Registration, Verdict

_log = logging.getLogger(__name__)

VALID_S_MAX = 366 * 86_400


class Members:
    """Implements the wire's `MembersHandler`."""

    def __init__(self, hub: Hub, authorities: Authorities) -> None:
        self._hub = hub
        self._authorities = authorities

    async def invite(self, caller: Caller, order: InviteOrder) -> str:
        """An invite line; the journal knows its fingerprint, never its key."""
        member = self._check_invitation(order)
        keys, now_ms, role = self._hub.keys, self._hub.clock.now_ms(), Role(order.role)
        if not keys.authority.issues:
            raise RefusedError(
                "this coordinator has no key to issue with, so nobody can be invited by a line: use "
                f"`fedtrain join --request DIR --name {order.name}` there, then `fedtrain site sign`"
            )
        address, lifetime_ms = keys.membership.address, order.valid_s * 1000
        invite = make_invite(keys.authority, order.name, role, address, now_ms, lifetime_ms, keys.roots_pem)
        self._hub.submit(
            ev.MemberInvited(
                now_ms,
                order.name,
                role.value,
                invite.facts.fingerprint,
                invite.expires_ms,
                order.organisation or (member.organisation if member else ""),
            )
        )
        _log.info("%s invited %s as %s", caller.name, order.name, role.value)
        return encode_invite(invite)

    def _check_invitation(self, order: InviteOrder) -> Member | None:
        """The member that is invited again, None for a newcomer."""
        if NAME.fullmatch(order.name) is None:
            raise ConfigError(
                f"{order.name[:80]!r} cannot be a name: use 1 to 63 of a-z, 0-9 and -, not at the ends"
            )
        if order.role not in MEMBER_ROLES:
            raise ConfigError(f"no role {order.role[:80]!r}: use {', '.join(sorted(MEMBER_ROLES))}")
        if not 0 < order.valid_s <= VALID_S_MAX:
            raise ConfigError(f"an invite cannot be valid for {order.valid_s} s: 1 s to 366 days")
        member = self._hub.state.members.get(order.name)
        if member is None:
            if order.again:
                raise NotFoundError(f"no member {order.name!r} to invite again: leave --again out")
            return None
        if not order.again:
            raise RefusedError(
                f"{order.name} is a member already: choose another name, or use --again if its certificate"
                " has expired, was revoked, or its keys are lost"
            )
        if member.role != order.role:
            raise RefusedError(
                f"{order.name} is {member.role}, and stays that: invite it again as {member.role}"
            )
        return member

    async def revoke(self, caller: Caller, verdict: Verdict) -> Document:
        """The membership ends, and so does every call that the member has under way."""
        if verdict.name == caller.name:
            raise RefusedError(
                "nobody revokes its own membership, so that one operator is always left: ask another operator"
            )
        state = self._hub.state
        member = state.members.get(verdict.name)
        invited = any(one.name == verdict.name and not one.used_by for one in state.invites.values())
        if member is None and not invited:
            raise NotFoundError(f"no member {verdict.name!r}: `fedtrain site list` shows all")
        if invited or (member is not None and not member.revoked):
            reason = verdict.reason or "no reason was given"
            self._hub.submit(ev.MemberRevoked(self._hub.clock.now_ms(), verdict.name, caller.name, reason))
            _log.warning("%s revoked %s: %s", caller.name, verdict.name, reason)
            self._authorities.tend()
        if member is None:
            return {"name": verdict.name, "role": "", "revoked": "its invites do not count any more"}
        return self._view(verdict.name)

    async def quarantine(self, caller: Caller, verdict: Verdict) -> Document:
        """The site has no part in any run until it is released."""
        member = self._site(verdict.name)
        if member.revoked:
            raise RefusedError(f"{member.name} is out already: {member.revoked}")
        known = self._hub.state.quarantined.get(member.name)
        if known is not None:
            raise RefusedError(f"{member.name} is in quarantine already, by {known.by}: {known.reason}")
        reason = verdict.reason or "no reason was given"
        self._hub.submit(ev.SiteQuarantined(self._hub.clock.now_ms(), verdict.name, caller.name, reason))
        _log.warning("%s quarantined %s: %s", caller.name, verdict.name, reason)
        return self._view(verdict.name)

    async def release(self, caller: Caller, verdict: Verdict) -> Document:
        """The site may take part again."""
        self._site(verdict.name)
        if verdict.name not in self._hub.state.quarantined:
            raise RefusedError(f"{verdict.name} is not in quarantine")
        reason = verdict.reason or "no reason was given"
        self._hub.submit(ev.SiteReleased(self._hub.clock.now_ms(), verdict.name, caller.name, reason))
        _log.info("%s released %s: %s", caller.name, verdict.name, reason)
        return self._view(verdict.name)

    async def register(self, caller: Caller, registration: Registration) -> Document:
        """Take in a member whose certificate the root itself has signed. The same one again is no news."""
        keys, pem = self._hub.keys, registration.certificate_pem
        check_chain(pem, keys.roots_pem)
        facts = read_certificate(pem)
        identity, now_ms = facts.identity, self._hub.clock.now_ms()
        if identity.role not in MEMBER_ROLES or identity.consortium != keys.membership.consortium:
            raise RefusedError(f"the certificate is for {identity}, who cannot be a member here")
        if now_ms >= facts.not_after_ms:
            raise RefusedError(f"the certificate of {identity} has expired: sign a new request")
        member = self._hub.state.members.get(identity.name)
        if member is not None and member.role != identity.role.value:
            raise RefusedError(f"{identity.name} is {member.role} here: use another name")
        if member is None or member.certificate != pem.decode() or member.revoked:
            self._hub.submit(
                ev.MemberEnrolled(
                    at_ms=now_ms,
                    name=identity.name,
                    role=identity.role.value,
                    invite="",
                    key_digest=facts.key_digest,
                    certificate=pem.decode(),
                    message_key=check_public(registration.message_key),
                    organisation=registration.organisation,
                )
            )
            _log.info("%s registered %s as %s", caller.name, identity.name, identity.role.value)
        return self._view(identity.name)

    async def roll_over(self, caller: Caller, finish: bool) -> Document:
        """Begin a roll-over, or end it; and how far it is."""
        if finish:
            self._authorities.finish(caller.name)
        else:
            self._authorities.begin(caller.name)
        return self._authorities.view()

    def _site(self, name: str) -> Member:
        member = self._hub.state.members.get(name)
        if member is None or member.role != Role.SITE:
            raise NotFoundError(f"no site {name!r}: `fedtrain site list` shows all")
        return member

    def _view(self, name: str) -> Document:
        return views.member_view(self._hub.state, self._hub.state.members[name])
