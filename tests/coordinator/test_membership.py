"""Members over their whole life, against a real coordinator: renewal, revocation, roll-over, roles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from coordinator_world import Consortium, ScriptedSite, free_port

from fedtrain import coordinator
from fedtrain.coordinator.process import Serving, open_coordinator
from fedtrain.coordinator.roles import ALLOWED, allowed_roles
from fedtrain.errors import BusyError, ConfigError, RefusedError, Unauthenticated, UnreachableError
from fedtrain.trust import offline
from fedtrain.trust.authority import OFFLINE_LIFETIME_MS
from fedtrain.trust.certificates import read_certificate, split_certificates
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join, load_coordinator, load_member
from fedtrain.trust.generations import Plan, load_offline_root, prepare_next
from fedtrain.trust.identity import MEMBER_ROLES, Role
from fedtrain.trust.invites import Invite, decode_invite
from fedtrain.trust.keys import make_csr, make_tls_key_and_csr
from fedtrain.trust.renewal import begin_renewal, finish_renewal
from fedtrain.wire.calls import CALLS, Call
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials, channel_options
from fedtrain.wire.status import TrueStatus
from fedtrain.wire.values import InviteOrder, Registration, SigningRequest, Verdict

LIMIT_S = 60


async def enrolled(client: CoordinatorClient, state: Path, order: InviteOrder) -> MemberKeys:
    """Invite and enrol over the wire, with whatever keys lie in `state`."""
    invite = decode_invite(await client.invite(order), time.time_ns() // 1_000_000)
    return await used(invite, state)


async def used(invite: Invite, state: Path) -> MemberKeys:
    application = begin_join(state, invite)
    credentials = channel_credentials(invite.key_pem, invite.chain_pem, invite.ca_pem)
    async with CoordinatorClient(invite.address, credentials, invite.server_name) as newcomer:
        given = await newcomer.enrol(SigningRequest(application.csr_pem, application.message_key.public))
    return finish_join(
        state, invite, application, given.certificate_pem, given.message_key, given.chain_pem,
        given.intermediates_pem,
    )  # fmt: skip


async def renewed(keys: MemberKeys, state: Path) -> MemberKeys:
    """One renewal, as an agent does it."""
    renewal = begin_renewal(state, keys)
    async with client_with(keys) as client:
        given = await client.renew(SigningRequest(renewal.csr_pem, keys.message_key.public))
    return finish_renewal(
        state, keys, renewal, given.certificate_pem, given.chain_pem, given.intermediates_pem
    )


def client_with(keys: MemberKeys) -> CoordinatorClient:
    credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
    return CoordinatorClient(keys.membership.address, credentials, keys.membership.server_name)


async def until_refused(client: CoordinatorClient) -> RefusedError:
    """Ask until it is refused, and how; every refusal must come within the limit."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await client.connect(1)
            except RefusedError as error:
                return error
            await asyncio.sleep(0.2)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[list[Serving]]:
    """Coordinators that the test opens, closed at its end."""
    opened: list[Serving] = []
    yield opened
    for one in opened:
        await one.close()


async def serve(served: list[Serving], home: Path, plan: Plan, passphrase: bytes = b"") -> CoordinatorClient:
    """A new consortium with this plan, and its operator."""
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}", plan)
    served.append(await open_coordinator(home, passphrase=passphrase))
    return client_with(load_member(home / "operator"))


async def test_table_of_roles_and_calls(consortium: Consortium) -> None:
    """Every call of the protocol by every role over real gRPC: PERMISSION_DENIED where the table says no."""
    operator = consortium.operator
    people = {Role.OPERATOR: load_member(consortium.folder / "coordinator" / "operator")}
    for role in sorted(MEMBER_ROLES - {Role.OPERATOR}):
        order = InviteOrder(f"the-{role.value}", role.value, 600)
        people[role] = await enrolled(operator, consortium.folder / role.value, order)
    invite = decode_invite(await operator.invite(InviteOrder("new", "site", 600)), consortium.now_ms())
    shown = {role: (keys.tls_key_pem, keys.chain_pem) for role, keys in people.items()}
    shown[Role.ENROLLING] = (invite.key_pem, invite.chain_pem)
    assert set(ALLOWED) == set(CALLS)
    for role, (key_pem, chain_pem) in shown.items():
        credentials = channel_credentials(key_pem, chain_pem, invite.ca_pem)
        options = channel_options(invite.server_name)
        async with grpc.aio.secure_channel(invite.address, credentials, options=options) as channel:
            for (service, method), call in CALLS.items():
                denied = await _status(channel, call) is grpc.StatusCode.PERMISSION_DENIED
                assert denied == (role not in allowed_roles(service, method)), (role, service, method)


async def _status(channel: grpc.aio.Channel, call: Call) -> grpc.StatusCode:
    """How a call with an empty request, or with none, ends."""
    sides = (call.client_streaming, call.server_streaming)
    method = getattr(channel, "_".join("stream" if side else "unary" for side in sides))(call.path)
    rpc = method(timeout=20) if call.client_streaming else method(b"", timeout=20)
    status = TrueStatus(rpc)
    try:
        if call.client_streaming:
            await rpc.done_writing()
        if call.server_streaming:
            while await rpc.read() is not grpc.aio.EOF:
                pass
        else:
            await rpc
    except grpc.aio.AioRpcError as error:
        return (await status.of(error)).code()
    return await rpc.code()


async def test_renewal_keeps_name_and_both_keys(consortium: Consortium) -> None:
    """A renewal gives a new certificate; the one before stays good; the same key gets the same certificate,
    also when it asks with the old one, because the first answer was lost; no third key is given."""
    site = await consortium.join("alpha")
    state = consortium.folder / "sites" / "alpha"
    after = await renewed(site.keys, state)
    assert after.certificate_pem != site.keys.certificate_pem
    assert read_certificate(after.certificate_pem).identity == site.keys.membership.identity
    member = consortium.serving.hub.state.members["alpha"]
    assert member.previous_key == read_certificate(site.keys.certificate_pem).key_digest
    async with client_with(after) as new:
        await site.client.connect(LIMIT_S)
        await new.connect(LIMIT_S)
        csr = make_csr(after.tls_key_pem, "alpha")
        public = after.message_key.public
        for client in (new, site.client):
            again = await client.renew(SigningRequest(csr, public))
            assert again.certificate_pem == after.certificate_pem
        third = make_tls_key_and_csr("alpha")[1]
        with pytest.raises(Unauthenticated, match="renewed before"):
            await site.client.renew(SigningRequest(third, public))
        with pytest.raises(RefusedError, match="another message key"):
            await new.renew(SigningRequest(third, "ab" * 32))


async def test_renewals_are_limited(consortium: Consortium) -> None:
    """Who renews again and again is told when to come back."""
    site = await consortium.join("alpha")
    keys, state = site.keys, consortium.folder / "sites" / "alpha"
    with pytest.raises(BusyError, match="come back") as caught:
        for _ in range(40):
            keys = await renewed(keys, state)
    assert caught.value.retry_after_ms > 0


async def test_revocation_cuts_what_is_under_way(consortium: Consortium) -> None:
    """A revoked site's session and its other calls end with the reason, new calls are refused, and an invite
    from before is dead; invited again it is a member with new keys, and never with the old ones."""
    site, operator = await consortium.join("alpha"), consortium.operator
    await site.attend()
    await operator.invite(InviteOrder("beta", "site", 600))
    old = decode_invite(
        await operator.invite(InviteOrder("alpha", "site", 600, again=True)), consortium.now_ms()
    )
    shown = await operator.revoke(Verdict("alpha", "left the consortium"))
    assert "left the consortium" in shown["revoked"]
    done, _ = await asyncio.wait(site.tasks, timeout=LIMIT_S, return_when=asyncio.FIRST_EXCEPTION)
    errors = [task.exception() for task in done if task.exception()]
    assert any(isinstance(error, Unauthenticated) and "left the consortium" in str(error) for error in errors)
    with pytest.raises(Unauthenticated, match="left the consortium"):
        await site.client.connect(5)
    with pytest.raises(RefusedError, match="not known here"):
        await used(old, consortium.folder / "sites" / "alpha")
    assert consortium.serving.hub.state.attached == {}
    misuses = (await operator.members())["misuses"]
    assert misuses[-1]["name"] == "alpha" and "does not count any more" in misuses[-1]["reason"]
    order = InviteOrder("alpha", "site", 600, again=True)
    with pytest.raises(RefusedError, match="keys of alpha that were revoked"):
        await enrolled(operator, consortium.folder / "sites" / "alpha", order)
    again = await enrolled(operator, consortium.folder / "sites" / "alpha-new", order)
    async with client_with(again) as client:
        await client.connect(LIMIT_S)
    assert (await operator.member("alpha"))["revoked"] == ""


async def test_who_may_be_revoked_and_invited(consortium: Consortium) -> None:
    """Nobody revokes itself or a stranger, a member is invited only again, and a stranger never again."""
    operator = consortium.operator
    await consortium.join("alpha")
    with pytest.raises(RefusedError, match="its own membership"):
        await operator.revoke(Verdict("operator", ""))
    with pytest.raises(RefusedError, match="no member 'nobody'"):
        await operator.revoke(Verdict("nobody", ""))
    with pytest.raises(RefusedError, match="use --again"):
        await operator.invite(InviteOrder("alpha", "site", 600))
    with pytest.raises(RefusedError, match="no member 'nobody'"):
        await operator.invite(InviteOrder("nobody", "site", 600, again=True))
    with pytest.raises(ConfigError, match="no role"):
        await operator.invite(InviteOrder("beta", "king", 600))


async def test_second_invite_dies_when_the_first_is_used(consortium: Consortium) -> None:
    """Of two invites for one name the second is refused once the first was used, and that is reported."""
    operator, folder = consortium.operator, consortium.folder
    first, second = [
        decode_invite(await operator.invite(InviteOrder("alpha", "site", 600)), consortium.now_ms())
        for _ in range(2)
    ]
    await used(first, folder / "one")
    with pytest.raises(RefusedError, match="not known here"):
        await used(second, folder / "two")
    assert len((await operator.members())["misuses"]) == 1


async def test_session_ends_with_its_certificate(tmp_path: Path, served: list[Serving]) -> None:
    """With certificates of ten seconds a site that does not renew is cut while it waits, and told so."""
    operator = await serve(served, tmp_path / "home", Plan(site_ms=10_000))
    async with operator:
        keys = await enrolled(operator, tmp_path / "alpha", InviteOrder("alpha", "site", 600))
        site = ScriptedSite(keys, tmp_path / "alpha", client_with(keys))
        await site.attend()
        done, _ = await asyncio.wait(site.tasks, timeout=LIMIT_S, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in done if task.exception()]
        assert any(isinstance(error, Unauthenticated) and "expired at" in str(error) for error in errors)
        assert isinstance(await until_refused(site.client), Unauthenticated)
        await site.close()


async def test_roll_over_waits_for_everybody(consortium: Consortium) -> None:
    """Both authorities are trusted until every member has used a certificate of the new one; then the old one
    is retired, its key is gone, and its certificates are refused in the handshake."""
    operator, folder = consortium.operator, consortium.folder
    home = folder / "coordinator"
    alpha, beta = await consortium.join("alpha"), await consortium.join("beta")
    begun = await operator.roll_over()
    assert begun["rolling"] and begun["behind"] == ["alpha", "beta"] and len(set(begun["trusted"])) == 2
    assert await operator.roll_over() == begun
    gamma = await consortium.join("gamma")
    assert len(split_certificates(gamma.keys.ca_pem)) == 2
    await gamma.client.connect(LIMIT_S)
    await alpha.client.connect(LIMIT_S)
    after = await renewed(alpha.keys, folder / "sites" / "alpha")
    assert "alpha" in (await operator.roll_over())["behind"]
    async with client_with(after) as client:
        await client.connect(LIMIT_S)
        assert (await operator.roll_over())["behind"] == ["beta"]
    await consortium.restart()
    async with client_with(load_member(home / "operator")) as operator:
        await operator.connect(LIMIT_S)
        assert (await operator.roll_over())["rolling"]
        await operator.revoke(Verdict("beta", "too slow"))
        for keys in (after, gamma.keys):
            async with client_with(keys) as client:
                await client.connect(LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            while (home / "state" / "ca.key").exists():
                await asyncio.sleep(0.2)
    kept = load_coordinator(home / "state")
    assert kept.book.oldest == kept.book.newest == 2 and len(split_certificates(kept.roots_pem)) == 1
    async with client_with(after) as client:
        await client.connect(LIMIT_S)
    async with client_with(beta.keys) as old:
        with pytest.raises(UnreachableError):
            await old.connect(2)
    kinds = [row.kind for row in consortium.serving.hub.journal.read() if row.kind.startswith("Authority")]
    assert kinds == ["AuthorityAdded", "AuthorityRetired"]


async def test_finish_leaves_the_slow_behind(consortium: Consortium) -> None:
    """`--finish` retires the old authority at once: who has not moved is cut with the remedy."""
    alpha = await consortium.join("alpha")
    await alpha.client.connect(LIMIT_S)
    await consortium.operator.roll_over()
    ended = await consortium.operator.roll_over(finish=True)
    assert not ended["rolling"]
    with pytest.raises(Unauthenticated, match=r"was retired.*--again"):
        await alpha.client.connect(5)


async def test_offline_root_with_an_issuer(tmp_path: Path, served: list[Serving]) -> None:
    """With the root's key elsewhere members enrol and renew under the issuer, in handshakes both ways; the
    next root is prepared by hand."""
    home, ca = tmp_path / "home", tmp_path / "ca"
    operator = await serve(served, home, Plan(offline=ca, passphrase=b"sesame"), b"sesame")
    (ca / "ca.key").rename(tmp_path / "carried-away")
    async with operator:
        keys = await enrolled(operator, tmp_path / "alpha", InviteOrder("alpha", "site", 600))
        assert keys.intermediates_pem and len(split_certificates(keys.ca_pem)) == 1
        after = await renewed(keys, tmp_path / "alpha")
        async with client_with(after) as client:
            await client.connect(LIMIT_S)
        with pytest.raises(RefusedError, match="kept elsewhere"):
            await operator.roll_over()
        prepare_next(home / "state", tmp_path / "next", b"sesame", time.time_ns() // 1_000_000)
        assert (await operator.roll_over())["behind"] == ["alpha"]
        last = await renewed(after, tmp_path / "alpha")
        async with client_with(last) as client:
            await client.connect(LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            while served[0].hub.keys.book.oldest == 1:
                await asyncio.sleep(0.2)
        async with client_with(last) as client:
            await client.connect(LIMIT_S)


async def test_no_issuer_at_all(tmp_path: Path, served: list[Serving]) -> None:
    """Without an issuer nobody is invited by a line; a request that the root signs by hand makes a member."""
    home, ca = tmp_path / "home", tmp_path / "ca"
    async with await serve(served, home, Plan(offline=ca, issues=False)) as operator:
        await operator.connect(LIMIT_S)
        with pytest.raises(RefusedError, match="no key to issue with"):
            await operator.invite(InviteOrder("alpha", "site", 600))
        state, request, paper = tmp_path / "alpha", tmp_path / "r.json", tmp_path / "a.json"
        offline.write_file(request, offline.make_request(state, "alpha", "site", "clinic"))
        now_ms = time.time_ns() // 1_000_000
        signed = offline.sign_request(load_offline_root(ca), ca, offline.read_request_file(request), now_ms)
        offline.write_file(paper, signed)
        admission = offline.read_admission(paper)
        shown = await operator.register(
            Registration(admission.certificate_pem.encode(), admission.message_key, admission.organisation)
        )
        assert shown["organisation"] == "clinic" and shown["expires_ms"] > now_ms + OFFLINE_LIFETIME_MS - 2000
        keys = offline.take_admission(state, admission)
        async with client_with(keys) as client:
            await client.connect(LIMIT_S)
            renewal = begin_renewal(state, keys)
            with pytest.raises(RefusedError, match="no key to issue with"):
                await client.renew(SigningRequest(renewal.csr_pem, keys.message_key.public))
        request.write_text(request.read_text().replace("alpha", "omega"))
        with pytest.raises(ConfigError, match="damaged"):
            offline.read_request_file(request)


async def test_passphrase_is_asked_for(tmp_path: Path, served: list[Serving]) -> None:
    """An encrypted key opens with its passphrase only, and the sentence names file and remedy."""
    home = tmp_path / "home"
    async with await serve(served, home, Plan(passphrase=b"sesame"), b"sesame") as operator:
        await operator.connect(LIMIT_S)
    assert b"ENCRYPTED" in (home / "state" / "ca.key").read_bytes()
    for wrong, words in ((b"", "--passphrase-file"), (b"open", "does not open")):
        with pytest.raises(ConfigError, match=words) as caught:
            load_coordinator(home / "state", wrong)
        assert "ca.key" in str(caught.value)


async def test_local_operator_is_kept_fresh(tmp_path: Path, served: list[Serving]) -> None:
    """The operator inside the coordinator's folder is re-issued by the coordinator, so that a start after a
    long pause has a good one."""
    home = tmp_path / "home"
    async with await serve(served, home, Plan(person_ms=10_000)):
        first = load_member(home / "operator").certificate_pem
        async with asyncio.timeout(LIMIT_S):
            while load_member(home / "operator").certificate_pem == first:
                await asyncio.sleep(0.2)
    async with client_with(load_member(home / "operator")) as operator:
        await operator.connect(LIMIT_S)
    assert served[0].hub.state.members["operator"].previous_key
