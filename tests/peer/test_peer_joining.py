"""Joining over a real connection: mutual TLS with the invite's certificate, keys made here and kept."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from fedtrain.errors import ConfigError, RefusedError, RemoteError, UnreachableError
from fedtrain.peer import join
from fedtrain.peer.egress import FILE as EGRESS_FILE, read_unwritten
from fedtrain.trust import admission
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.certificates import LeafFacts
from fedtrain.trust.enrolment import enrol, requested_key_digest
from fedtrain.trust.folders import load_member
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.invites import encode_invite, make_invite
from fedtrain.trust.keys import MessageKey
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.options import server_credentials
from fedtrain.wire.server import open_server
from fedtrain.wire.values import Admission, Caller, SigningRequest

CONSORTIUM = "vineyard"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class EnrolmentOffice:
    """A coordinator that can only enrol, in a thread of its own.

    Attributes:
        lost_replies: so many answers get lost after the certificate was issued.
        wrong_name: issue for another name than the invite's.
    """

    def __init__(self) -> None:
        self.authority = Authority(*create_authority(CONSORTIUM, now_ms()))
        self.key = MessageKey.generate()
        self.lost_replies = 0
        self.wrong_name = ""
        self.issued: dict[str, tuple[str, Admission]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server, self.port = self._run(self._open())

    def invite(self, name: str = "jsc", lifetime_ms: int = 60_000, port: int = 0) -> str:
        address = f"127.0.0.1:{port or self.port}"
        return encode_invite(make_invite(self.authority, name, Role.SITE, address, now_ms(), lifetime_ms))

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        digest = requested_key_digest(request.csr_pem)
        used_by, answer = self.issued.get(caller.fingerprint, ("", None))
        if used_by and used_by != digest:
            raise RefusedError(f"the invite for {caller.name} was used before, with another key")
        if answer is None:
            name = self.wrong_name or caller.name
            bootstrap = LeafFacts(
                Identity(CONSORTIUM, Role.ENROLLING, name), caller.fingerprint, 0, 1, caller.key_digest
            )
            made = enrol(self.authority, bootstrap, Role.SITE, request.csr_pem, request.message_key, now_ms())
            answer = Admission(made.certificate_pem, b"", self.key.public, CONSORTIUM)
            self.issued[caller.fingerprint] = (digest, answer)
        if self.lost_replies:
            self.lost_replies -= 1
            raise UnreachableError("the reply was lost")
        return answer

    async def renew(self, caller: Caller, request: SigningRequest) -> Admission:
        raise RefusedError("this office enrols and renews nothing")

    def close(self) -> None:
        self._run(self._server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> tuple[object, int]:
        key, certificate = self.authority.issue_server(now_ms())
        credentials = server_credentials(key, certificate, self.authority.certificate_pem)
        handlers = Handlers(self, *[MagicMock() for _ in range(4)])
        return await open_server("127.0.0.1:0", credentials, handlers, self._judge)

    def _judge(self, context: Mapping[str, Iterable[bytes]], service: str, method: str) -> Caller:
        facts = admission.judge(
            context, call=method, allowed=(Role.ENROLLING,), consortium=CONSORTIUM, now_ms=now_ms()
        )
        return Caller(
            facts.identity.name, "enrolling", facts.fingerprint, facts.key_digest, facts.not_after_ms
        )

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@pytest.fixture(scope="module")
def office() -> Iterator[EnrolmentOffice]:
    opened = EnrolmentOffice()
    yield opened
    opened.close()


def test_joining_leaves_a_complete_identity(office: EnrolmentOffice, tmp_path: Path) -> None:
    """One line makes a folder with keys for this user alone, a certificate, and the coordinator's key."""
    report = join(office.invite(), tmp_path / "site")
    keys = load_member(tmp_path / "site" / "state")
    assert (report.consortium, report.name, report.role) == (CONSORTIUM, "jsc", "site")
    assert report.key_id == keys.message_key.key_id
    assert report.expires_ms > now_ms()
    assert keys.coordinator_public == office.key.public
    state = tmp_path / "site" / "state"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    assert modes["tls.key"] == modes["message.key"] == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_what_joining_sends_is_the_first_row_of_the_account(office: EnrolmentOffice, tmp_path: Path) -> None:
    """The bytes of the enrolment, handshake and all, wait for the site's first agent to write them down."""
    join(office.invite("accounted"), tmp_path)
    unwritten = read_unwritten(tmp_path / "state" / EGRESS_FILE)
    assert unwritten is not None
    (row,) = unwritten.rows
    assert (row.kind, row.messages, row.order) == ("Enrolment.Enrol", 1, "")
    assert 1_000 < row.size_bytes < 20_000


def test_a_lost_reply_burns_no_invite(office: EnrolmentOffice, tmp_path: Path) -> None:
    """The same request again gets the certificate that was issued: within one `join`, or in a second one."""
    line = office.invite("network")
    office.lost_replies = 1
    report = join(line, tmp_path)
    again = join(line, tmp_path)
    assert again == report
    office.lost_replies = 100
    second = office.invite("numeric")
    with pytest.raises(UnreachableError, match="can be used again"):
        join(second, tmp_path / "numeric", patience_s=0.3)
    office.lost_replies = 0
    assert join(second, tmp_path / "numeric").name == "numeric"


def test_an_invite_is_for_one_key(office: EnrolmentOffice, tmp_path: Path) -> None:
    """The line that was used once is worth nothing in another folder, whose key is another."""
    line = office.invite("reference")
    join(line, tmp_path / "first")
    with pytest.raises(RefusedError, match="another key"):
        join(line, tmp_path / "second")
    assert not (tmp_path / "second" / "state" / "identity.json").exists()


def test_a_damaged_or_expired_line_is_told_apart(office: EnrolmentOffice, tmp_path: Path) -> None:
    """A cut line says so, an expired one says when, and neither makes a key."""
    line = office.invite()
    other = "A" if line[-9] != "A" else "B"
    for bad, words in ((line[:-3], "cut off or mistyped"), (line[:-9] + other + line[-8:], "mistyped")):
        with pytest.raises(ConfigError, match=words):
            join(bad, tmp_path)
    with pytest.raises(ConfigError, match="expired"):
        join(office.invite(lifetime_ms=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_said_with_the_address(office: EnrolmentOffice, tmp_path: Path) -> None:
    """An unreachable coordinator is named, with how long it was tried and what to check."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match=rf"127.0.0.1:{port} .*check.*tried for") as caught:
        join(office.invite(port=port), tmp_path, patience_s=0.3)
    assert "nothing listens there" in str(caught.value)


def test_a_folder_has_one_owner(office: EnrolmentOffice, tmp_path: Path) -> None:
    """A second member does not take over the folder of the first, whose keys stay."""
    join(office.invite("jsc"), tmp_path)
    before = (tmp_path / "state" / "tls.key").read_bytes()
    with pytest.raises(ConfigError, match="another folder"):
        join(office.invite("other"), tmp_path)
    assert (tmp_path / "state" / "tls.key").read_bytes() == before


def test_another_certificate_than_promised_is_not_kept(office: EnrolmentOffice, tmp_path: Path) -> None:
    """A coordinator that issues for another name is not believed, and nothing of it is saved."""
    office.wrong_name = "mallory"
    try:
        with pytest.raises(RemoteError, match="mallory"):
            join(office.invite("jsc"), tmp_path)
    finally:
        office.wrong_name = ""
    assert not (tmp_path / "state" / "identity.json").exists()
    shutil.rmtree(tmp_path / "state")
