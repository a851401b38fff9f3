"""Who may speak at all: certificates, names, invites (rows 61-63), against a served coordinator."""

from __future__ import annotations

import dataclasses
import time

import grpc
import pytest
from coordinator_world import client_of
from hostile_world import Arena, Refusal, case, raw, rows_allowed

from fedtrain.core import messages as msg
from fedtrain.core.allowance import ATTACHES, REFUSALS
from fedtrain.errors import BusyError, ConfigError, FedtrainError, RefusedError
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.folders import MemberKeys
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.invites import decode_invite, encode_invite, make_invite
from fedtrain.trust.keys import MessageKey, make_tls_key_and_csr
from fedtrain.wire import convert, options
from fedtrain.wire.calls import CALLS
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials
from fedtrain.wire.values import InviteOrder, SigningRequest

_PEM = b"-----BEGIN CERTIFICATE REQUEST-----\n%s\n-----END CERTIFICATE REQUEST-----\n"
SITE_CALLS = [one for (service, _), one in CALLS.items() if service in ("Session", "Transfer")]


def issued(arena: Arena, authority: Authority, role: Role, name: str, age_ms: int = 0) -> MemberKeys:
    """Keys with a certificate that `authority` gives out: the coordinator's own, or a stranger's."""
    key, csr = make_tls_key_and_csr(name)
    identity = Identity(arena.hub.keys.membership.consortium, role, name)
    certificate = authority.issue_leaf(csr, identity, arena.hub.clock.now_ms() - age_ms, 60_000)
    return dataclasses.replace(arena.liar.keys, tls_key_pem=key, certificate_pem=certificate)


async def every_site_call(arena: Arena, keys: MemberKeys, **how: grpc.ChannelCredentials) -> list[Refusal]:
    """How each call of a site is refused."""
    found = []
    for one in SITE_CALLS:
        requests = [b""] if one.client_streaming else b""
        answer = await raw(keys, one.path, requests, streaming_answer=one.server_streaming, **how)
        assert isinstance(answer, Refusal), one
        found.append(answer)
    return found


async def test_strangers_do_not_get_through_the_handshake(arena: Arena) -> None:
    """Without a certificate, with another authority's, or with one that has expired, no call gets an answer
    of fedtrain's; the run goes on."""
    own, foreign = arena.hub.keys.authority, Authority(*create_authority("test", arena.hub.clock.now_ms()))
    strangers = {
        "no certificate": grpc.ssl_channel_credentials(root_certificates=arena.liar.keys.ca_pem),
        "another authority's": _credentials(issued(arena, foreign, Role.SITE, "mallory")),
        "expired": _credentials(issued(arena, own, Role.SITE, "mallory", age_ms=3_600_000)),
    }
    for name, credentials in strangers.items():
        for refusal in await every_site_call(arena, arena.liar.keys, credentials=credentials):
            assert (refusal.status, refusal.code) == ("UNAVAILABLE", ""), (name, refusal)
    await arena.finish()


async def test_a_certificate_for_another_key_of_a_name_is_refused(arena: Arena) -> None:
    """A certificate of the right authority for a name that is enrolled with another key, or not at all, or
    in another role, opens nothing, and the sentence says so."""
    own = arena.hub.keys.authority
    for role, name in (
        (Role.SITE, "alpha"),
        (Role.SITE, "mallory"),
        (Role.SITE, "never-enrolled"),
        (Role.SITE, "operator"),
        (Role.AUDITOR, "mallory"),
    ):
        for refusal in await every_site_call(arena, issued(arena, own, role, name)):
            known = ("PERMISSION_DENIED", "refused"), ("UNAUTHENTICATED", "unauthenticated")
            assert (refusal.status, refusal.code) == known[role is Role.SITE], (name, refusal)
            assert name in refusal.sentence
    await arena.finish()


async def test_a_site_cannot_operate_or_enrol(arena: Arena) -> None:
    """Every call of operators and newcomers is PERMISSION_DENIED under a site's certificate."""
    for (service, method), one in CALLS.items():
        if service == "Operations" or method == "Enrol":
            answer = await raw(arena.liar.keys, one.path, b"", streaming_answer=one.server_streaming)
            with case(method):
                assert isinstance(answer, Refusal) and answer.status == "PERMISSION_DENIED", answer
    await arena.finish()


async def test_an_expired_member_is_cut_off_within_a_heartbeat(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose certificate ends while it is open is ended at its next sign of life, with the advice;
    calls of it are refused at once."""
    session = arena.liar.tasks[-1]
    later_ms = arena.hub.clock.now_ms() + 366 * 86_400_000
    with monkeypatch.context() as patch:
        patch.setattr(arena.hub.clock, "now_ms", lambda: later_ms)
        arena.liar.outbox.put_nowait(msg.Heartbeat(()))
        with pytest.raises(RefusedError, match="expired"):
            await session
        with pytest.raises(RefusedError, match="expired"):
            await arena.liar.client.offer(msg.Offer(arena.order.id, "ab" * 32, 100))
    await arena.finish()


async def test_an_invite_is_good_once_for_one_name(arena: Arena) -> None:
    """A used invite, with another key, is refused and journaled within bounds; one that was never given out,
    for another site or for none, gets nowhere; the site that has joined keeps its name."""
    now_ms, operator = arena.consortium.now_ms(), arena.consortium.operator
    line = await operator.invite(InviteOrder("newcomer", "site", 600))
    invite = decode_invite(line, now_ms)
    newcomer = _newcomer(invite.key_pem, invite.certificate_pem, invite.ca_pem, arena)
    _, csr = make_tls_key_and_csr("newcomer")
    _, other = make_tls_key_and_csr("newcomer")
    message, began_s = MessageKey.generate().public, time.monotonic()
    async with newcomer:
        await newcomer.enrol(SigningRequest(csr, message))
        for _ in range(REFUSALS.rows_max + 5):
            with pytest.raises(RefusedError, match="used before"):
                await newcomer.enrol(SigningRequest(other, message))
        with pytest.raises(RefusedError, match="is for the role site"):
            await newcomer.offer(msg.Offer(arena.order.id, "ab" * 32, 100))
    assert 1 <= len(arena.rows("InviteMisused")) <= rows_allowed(REFUSALS, began_s)
    own = arena.hub.keys.authority
    for name in ("newcomer", "alpha", "nobody"):
        made_up = make_invite(own, name, Role.SITE, arena.liar.keys.membership.address, now_ms, 60_000)
        stranger = _newcomer(made_up.key_pem, made_up.certificate_pem, made_up.ca_pem, arena)
        async with stranger:
            with case(name), pytest.raises(RefusedError, match="not known here"):
                await stranger.enrol(SigningRequest(other, message))
    with pytest.raises(RefusedError, match="member already"):
        await operator.invite(InviteOrder("alpha", "site", 600))
    await arena.finish()


async def test_an_expired_or_foreign_invite_is_told_apart(arena: Arena) -> None:
    """An invite that has ended says when; another consortium's has no business here."""
    now_ms = arena.hub.clock.now_ms()
    address = arena.liar.keys.membership.address
    own, foreign = arena.hub.keys.authority, Authority(*create_authority("test", now_ms))
    old = make_invite(own, "late", Role.SITE, address, now_ms - 3_600_000, 60_000)
    with pytest.raises(ConfigError, match="expired at"):
        decode_invite(encode_invite(old), now_ms)
    for one in (old, make_invite(foreign, "late", Role.SITE, address, now_ms, 60_000)):
        async with _newcomer(one.key_pem, one.certificate_pem, one.ca_pem, arena) as stranger:
            with pytest.raises(FedtrainError):
                await stranger.enrol(SigningRequest(make_tls_key_and_csr("late")[1], "ab" * 32))
    assert "late" not in arena.hub.state.members
    await arena.finish()


async def test_a_request_that_is_none_does_not_burn_the_invite(arena: Arena) -> None:
    """Bytes in the place of a signing request are refused, and the invite still works."""
    invite = decode_invite(
        await arena.consortium.operator.invite(InviteOrder("newcomer", "site", 600)),
        arena.consortium.now_ms(),
    )
    message = MessageKey.generate().public
    async with _newcomer(invite.key_pem, invite.certificate_pem, invite.ca_pem, arena) as newcomer:
        for csr in (b"", b"none", _PEM % b"", _PEM % b"AAAA", _PEM % (b"A" * 10_000)):
            with case(csr[:60]), pytest.raises(FedtrainError):
                await newcomer.enrol(SigningRequest(csr, message))
        admission = await newcomer.enrol(SigningRequest(make_tls_key_and_csr("newcomer")[1], message))
    assert admission.consortium == "test"


async def test_a_site_that_attaches_for_ever_is_told_to_wait(arena: Arena) -> None:
    """The journal holds a bounded number of one site's attaches; beyond it the refusal says when to come."""
    client = client_of(arena.liar.keys)
    hello = convert.encode_from_peer(
        msg.Hello(msg.PROTOCOL_VERSION, "0.1.0", "again", (), (), (arena.order.id,))
    )
    refused, began_s = 0, time.monotonic()
    for _ in range(ATTACHES.rows_max + 10):
        answer = await raw(
            arena.liar.keys, "/fedtrain.wire.v1.Session/Attend", [hello], streaming_answer=True
        )
        refused += isinstance(answer, Refusal) and answer.code == "busy"
    assert refused >= 1
    rows = [row for row in arena.rows("SiteAttached") if '"mallory"' in row.payload]
    assert len(rows) <= rows_allowed(ATTACHES, began_s) + 1
    with pytest.raises(BusyError) as told:
        async for _ in client.attend(_one(msg.Hello(msg.PROTOCOL_VERSION, "0.1.0", "again", (), (), ()))):
            pass
    assert told.value.retry_after_ms > 0
    await client.close()
    await arena.finish()


async def _one(message: msg.FromPeer):  # type: ignore[no-untyped-def]
    yield message


def _credentials(keys: MemberKeys) -> grpc.ChannelCredentials:
    return options.channel_credentials(keys.tls_key_pem, keys.certificate_pem, keys.ca_pem)


def _newcomer(key: bytes, certificate: bytes, ca: bytes, arena: Arena) -> CoordinatorClient:
    membership = arena.liar.keys.membership
    return CoordinatorClient(
        membership.address, channel_credentials(key, certificate, ca), membership.server_name
    )
