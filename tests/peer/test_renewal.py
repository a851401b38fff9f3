"""Renewal over real mutual TLS, with certificates that live for seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from peer_world import CONSORTIUM, SITE
from test_peer_session import Desk as QuietDesk

from fedtrain.cli import session as cli
from fedtrain.core import messages as msg
from fedtrain.errors import BusyError, ConfigError, FedtrainError, RefusedError, Unauthenticated
from fedtrain.peer.backoff import Backoff
from fedtrain.peer.process import run, see_through
from fedtrain.peer.renewal import Renewals
from fedtrain.peer.session import Session
from fedtrain.peer.settings import AgentSettings
from fedtrain.trust import admission
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.certificates import read_certificate, utc_text
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join, load_member
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.keys import MessageKey
from fedtrain.wire import chunks
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.options import channel_credentials, server_credentials
from fedtrain.wire.server import open_server
from fedtrain.wire.values import Admission, Caller, Document, SigningRequest

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Office:
    """A coordinator that renews, holds sessions and hands out one blob, piece by piece.

    Attributes:
        callers: (method, fingerprint of the certificate that was shown) of every call that was admitted.
        refusal: raised by the next calls of `Renew`.
        outdated: fingerprints of certificates that are not admitted any more.
    """

    def __init__(self, lifetime_ms: int) -> None:
        self.authority = Authority(*create_authority(CONSORTIUM, now_ms()))
        self.lifetime_ms = lifetime_ms
        self.callers: list[tuple[str, str]] = []
        self.refusal: FedtrainError | None = None
        self.outdated: set[str] = set()
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sessions: list[msg.Hello] = []
        self._last: asyncio.Queue[msg.ToPeer | None] | None = None

    def join(self, folder: Path, role: Role = Role.SITE, name: str = SITE) -> MemberKeys:
        """A member's folder with a certificate that was made just now."""
        invite = make_invite(self.authority, name, role, f"127.0.0.1:{self.port}", now_ms(), 60_000)
        application = begin_join(folder, invite)
        public = application.message_key.public
        made = enrol(
            self.authority, invite.facts, role, application.csr_pem, public, now_ms(), self.lifetime_ms
        )
        return finish_join(folder, invite, application, made.certificate_pem, MessageKey.generate().public)

    # -- what it serves ---------------------------------------------------------------------------

    def judge(self, context: Mapping[str, Iterable[bytes]], service: str, method: str) -> Caller:
        facts = admission.judge(
            context, call=method, allowed=MEMBER_ROLES, consortium=CONSORTIUM, now_ms=now_ms()
        )
        if facts.fingerprint in self.outdated:
            raise Unauthenticated(f"{facts.identity.name}: this certificate is not accepted any more")
        self.callers.append((method, facts.fingerprint))
        identity = facts.identity
        return Caller(
            identity.name, identity.role.value, facts.fingerprint, facts.key_digest, facts.not_after_ms
        )

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        raise RefusedError("nobody joins here")

    async def renew(self, caller: Caller, request: SigningRequest) -> Admission:
        if self.refusal is not None:
            raise self.refusal
        identity = Identity(CONSORTIUM, Role(caller.role), caller.name)
        certificate = self.authority.issue_leaf(request.csr_pem, identity, now_ms(), self.lifetime_ms)
        return Admission(certificate, self.authority.certificate_pem, "0" * 64, CONSORTIUM)

    async def attend(
        self, caller: Caller, incoming: AsyncIterator[msg.FromPeer]
    ) -> AsyncIterator[tuple[int, msg.ToPeer]]:
        hello = await anext(incoming)
        assert isinstance(hello, msg.Hello)
        self.sessions.append(hello)
        if self._last is not None:
            self._last.put_nowait(msg.Superseded("a newer session of this site began"))
            self._last.put_nowait(None)
        queue: asyncio.Queue[msg.ToPeer | None] = asyncio.Queue()
        self._last = queue
        yield 1, msg.Welcome(CONSORTIUM, msg.PROTOCOL_VERSION, "1.0", now_ms(), 1000)
        while (message := await queue.get()) is not None:
            yield 1, message

    async def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        position = 0
        while (piece := await self.pieces.get()) is not None:
            yield chunks.frame(position, piece, digest)
            position += len(piece)

    async def runs(self, caller: Caller) -> Document:
        return {"runs": []}

    async def offer(self, *_: object) -> None: ...
    async def send(self, *_: object) -> None: ...
    async def commit(self, *_: object) -> None: ...


@asynccontextmanager
async def serving(lifetime_ms: int) -> AsyncIterator[Office]:
    office = Office(lifetime_ms)
    key, certificate = office.authority.issue_server(now_ms())
    credentials = server_credentials(key, certificate, office.authority.certificate_pem)
    operations = Mock()
    operations.runs = office.runs
    handlers = Handlers(office, office, office, operations, Mock())
    server, office.port = await open_server("127.0.0.1:0", credentials, handlers, office.judge)
    try:
        yield office
    finally:
        await server.stop(0)


class Desk(QuietDesk):
    """Knows the present certificate, as the agent's does."""

    def __init__(self, keys: MemberKeys) -> None:
        super().__init__()
        self.facts = read_certificate(keys.certificate_pem)


class Site:
    """A connection, a session and a renewal, as the agent's process puts them together."""

    def __init__(self, state: Path, keys: MemberKeys) -> None:
        self.state = state
        credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
        member = keys.membership
        self.client = CoordinatorClient(member.address, credentials, member.server_name)
        self.desk = Desk(keys)
        self.session = Session(self.client, self.desk, Backoff(0.01, 0.01))
        self.renewals = Renewals(state, keys, self.client, self.session, self.desk, spread=0.0)

    @property
    def fingerprint(self) -> str:
        """Of the certificate in the folder."""
        return read_certificate(load_member(self.state).certificate_pem).fingerprint


@asynccontextmanager
async def attending(office: Office, state: Path) -> AsyncIterator[Site]:
    site = Site(state, office.join(state))
    async with site.client:
        keeping = asyncio.create_task(site.session.keep())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await site.session.attached.wait()
            yield site
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def test_a_transfer_ends_on_the_old_channel(tmp_path: Path) -> None:
    """New calls show the new certificate; a download that runs ends, and then the old channel is closed."""
    async with serving(3_600_000) as office, attending(office, tmp_path) as site:
        first = site.fingerprint
        digest = "a" * 64
        download = site.client.fetch(digest)
        office.pieces.put_nowait(b"one")
        assert bytes((await anext(download))[1]) == b"one"
        old = site.client._line
        assert await site.renewals.attempt() == 0.0
        assert site.fingerprint != first and site.renewals.renewed == 1
        assert {hello.session for hello in office.sessions} == {"s"} and len(office.sessions) == 2
        await site.client.connect(PATIENCE_S)
        assert office.callers[-1] == ("Check", site.fingerprint)
        assert not old.closed
        for piece in (b"two", b"three", None):
            office.pieces.put_nowait(piece)
        assert [bytes(data) async for _, data in download] == [b"two", b"three"]
        async with asyncio.timeout(PATIENCE_S):
            while not old.closed:
                await asyncio.sleep(0.01)
        assert site.session.attached.is_set()


async def test_an_outlived_certificate_cuts_no_transfer_for_good(tmp_path: Path) -> None:
    """A download that outlasts its channel's certificate breaks as a broken link does, so it is resumed."""
    async with serving(2_000) as office, attending(office, tmp_path) as site:
        download = site.client.fetch("a" * 64)
        office.pieces.put_nowait(b"one")
        await anext(download)
        office.lifetime_ms = 3_600_000
        assert await site.renewals.attempt() == 0.0
        with pytest.raises(FedtrainError) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await anext(download)
        assert caught.value.code == "unreachable"
        assert site.session.attached.is_set()


async def test_an_old_certificate_that_is_refused_is_no_verdict_on_us(tmp_path: Path) -> None:
    """What a coordinator says of the certificate before the last one is a break, not a refusal."""
    async with serving(3_600_000) as office, attending(office, tmp_path) as site:
        line, old = site.client._line, site.fingerprint
        with line.carrying():  # a call is under way, so the old channel stays open
            assert await site.renewals.attempt() == 0.0
            office.outdated.add(old)
            with pytest.raises(FedtrainError) as caught, site.client._calling("a call", line):
                await line.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        assert caught.value.code == "unreachable" and "renewed" in str(caught.value)


@pytest.mark.slow
async def test_certificates_of_seconds_follow_each_other(tmp_path: Path) -> None:
    """The session outlives its first certificate four times over, and is never detached."""
    async with serving(4_000) as office, attending(office, tmp_path) as site:
        first_end_ms = read_certificate(load_member(tmp_path).certificate_pem).not_after_ms
        keeping = asyncio.create_task(site.renewals.keep())
        async with asyncio.timeout(PATIENCE_S):
            while now_ms() < first_end_ms + 8_000:
                assert site.session.attached.is_set()
                await asyncio.sleep(0.02)
        keeping.cancel()
        assert len({hello.session for hello in office.sessions}) == 1
        assert len(office.sessions) == site.renewals.renewed + 1 >= 4


async def test_trouble_is_told_as_the_end_comes_nearer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that fails is said once, again when a quarter of the life is left, and at the end."""
    async with serving(3_000) as office, attending(office, tmp_path) as site:
        office.refusal = BusyError("many renew at once", 100)
        keeping = asyncio.create_task(site.renewals.keep())
        caplog.set_level(logging.WARNING, "fedtrain.peer")

        def lines() -> list[str]:
            ours = [record for record in caplog.records if record.name == "fedtrain.peer"]
            return [record.getMessage() for record in ours]

        async with asyncio.timeout(PATIENCE_S):
            while len(lines()) < 3:
                await asyncio.sleep(0.02)
        keeping.cancel()
        end = utc_text(site.desk.facts.not_after_ms)
        begun, near, expired = lines()[:3]
        assert "is not renewed yet: many renew at once" in begun and end in begun
        assert f"ends at {end}" in near and "fedtrain site invite jsc --again" in near
        assert "expired at" in expired and "fedtrain join" in expired


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path: Path) -> None:
    """The key is saved before anybody hears of it, and the next try names it again."""
    async with serving(3_600_000) as office, attending(office, tmp_path) as site:
        office.refusal = BusyError("busy", 100)
        assert await site.renewals.attempt() >= 0.1
        waiting = (tmp_path / "tls.next.key").read_bytes()
        office.refusal = None
        assert await site.renewals.attempt() == 0.0
        assert load_member(tmp_path).tls_key_pem == waiting


async def test_a_person_renews_by_using_a_command(tmp_path: Path) -> None:
    """Past half-life a command leaves a new certificate behind; trouble with that never breaks it."""
    async with serving(1_000) as office:
        for refusal in (RefusedError("not today"), None):
            folder = tmp_path / str(refusal)
            before = office.join(folder / "state", Role.OPERATOR, "ada")
            while now_ms() < read_certificate(before.certificate_pem).not_after_ms - 400:
                await asyncio.sleep(0.01)
            office.refusal, office.lifetime_ms = refusal, 3_600_000
            assert await asyncio.to_thread(cli.ask, folder, lambda client: client.runs()) == {"runs": []}
            renewed = load_member(folder / "state").certificate_pem != before.certificate_pem
            assert renewed == (refusal is None)
            office.lifetime_ms = 1_000


async def test_an_expired_site_hears_so_at_once(tmp_path: Path) -> None:
    """`peer run` names the file and the way back, and knocks at no door."""
    async with serving(1_000) as office:
        keys = office.join(tmp_path / "state")
    while now_ms() < read_certificate(keys.certificate_pem).not_after_ms:
        await asyncio.sleep(0.02)
    settings = AgentSettings(
        folder=tmp_path,
        site=SITE,
        coordinator=keys.membership.address,
        proxy=None,
        state=tmp_path / "state",
        mailbox=tmp_path / "mailbox",
        launch="external",
        contract=Mock(),
        data_file=tmp_path / "peer.yaml",
    )
    with pytest.raises(ConfigError, match=r"tls\.crt: .*expired at .*site invite jsc --again.*fedtrain join"):
        run(settings)
    assert not (tmp_path / "state" / "journal.db").exists()


async def test_a_site_that_only_looks_in_renews_before_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--once` past half-life: the certificate is new when the visit is over, though there was no work."""
    monkeypatch.setattr("fedtrain.peer.process.ONCE_IDLE_S", 0.0)
    async with serving(1_000) as office, attending(office, tmp_path) as site:
        first = site.fingerprint
        while not site.renewals.due:
            await asyncio.sleep(0.01)
        office.lifetime_ms = 3_600_000
        agent = Mock(session=site.session, state=Mock(in_hand={}), at_rest=True)
        agent.until = lambda condition: asyncio.Event().wait()
        await see_through(agent, site.renewals)
        agent.background.call_args.args[0].close()
        assert site.fingerprint != first and not site.renewals.due
