"""Failed connections against real servers: each leads to the sentence that names its cause, or all causes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from fedtrain.errors import UnreachableError
from fedtrain.trust.authority import Authority
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_unreachable, not_admitted
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.keys import make_tls_key_and_csr
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials, server_credentials

pytestmark = pytest.mark.timeout(120)

HOUR_MS = 3600 * 1000
Pair = tuple[bytes, bytes]


def member(authority: Authority, now_ms: int, lifetime_ms: int = HOUR_MS) -> Pair:
    key_pem, csr_pem = make_tls_key_and_csr("jsc")
    return key_pem, authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms, lifetime_ms)


@contextlib.asynccontextmanager
async def serving(pair: Pair, roots_pem: bytes) -> AsyncIterator[int]:
    """The port of a gRPC server that shows this pair and knows no call."""
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(*pair, roots_pem))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of something that is no coordinator: `answer` gets each connection."""
    door = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = door.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            answer(connection)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        door.shutdown(socket.SHUT_RDWR)  # closing alone would let the thread accept one more
        door.close()


async def sentence(
    port: int, root: bytes, pair: Pair, now_ms: int, *, name: str = "vineyard", proxy: str = ""
) -> str:
    """What a person is told."""
    credentials = channel_credentials(*pair, root)
    address = f"127.0.0.1:{port}"
    async with CoordinatorClient(address, credentials, f"{name}.fedtrain.invalid", proxy or None) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.runs()
    told = explain_unreachable(read_certificate(pair[1]), address, str(caught.value), now_ms, proxy or None)
    assert told.startswith(address) and "{" not in told and "\n" not in told
    return told


async def test_a_coordinator_that_is_not_believed(
    authority: Authority, stranger: Authority, now_ms: int
) -> None:
    """Its certificate is expired, early, of an unknown authority, of another consortium, or a member's."""
    good, root = member(authority, now_ms), authority.certificate_pem
    async with serving(authority.issue_server(now_ms), root) as port:
        rolled_over = await sentence(port, stranger.certificate_pem, good, now_ms)
        assert "another authority" in rolled_over and "site invite jsc --again" in rolled_over
        assert "replaced its authority while jsc was away" in rolled_over
        assert "another consortium" in await sentence(port, root, good, now_ms, name="orchard")
    for pair, words in (
        (
            authority.issue_server(now_ms - 2 * HOUR_MS, HOUR_MS),
            "its certificate has expired by this machine's",
        ),
        (authority.issue_server(now_ms + 2 * HOUR_MS, HOUR_MS), "is not valid yet by this machine's clock"),
        (member(authority, now_ms), "another consortium|shows the certificate of a member"),
    ):
        async with serving(pair, root) as port:
            told = await sentence(port, root, good, now_ms)
            assert any(word in told for word in words.split("|")), told


async def test_a_site_that_is_not_admitted(authority: Authority, stranger: Authority, now_ms: int) -> None:
    """Ours is expired or early, which is known here; of a foreign authority, all causes are named."""
    root = authority.certificate_pem
    async with serving(authority.issue_server(now_ms), root) as port:
        expired = member(authority, now_ms - 2 * HOUR_MS, HOUR_MS)
        told = await sentence(port, root, expired, now_ms)
        assert "our certificate (fedtrain://vineyard/site/jsc) expired at" in told
        assert "site invite jsc --again" in told and "fedtrain join" in told
        early = await sentence(port, root, member(authority, now_ms + HOUR_MS), now_ms)
        assert "is valid from" in early and "set this machine's clock" in early
        foreign = await sentence(port, root, member(stranger, now_ms), now_ms)
    assert "TLS does not say why" in foreign and "Compare the clocks" in foreign
    assert "replaced its authority" in foreign and "is valid until" in foreign


async def test_what_is_no_coordinator(authority: Authority, now_ms: int, tmp_path: Path) -> None:
    """A web server, a server without TLS, one of old TLS, one that hangs up, one that is silent, nobody."""
    good, root = member(authority, now_ms), authority.certificate_pem
    pair = authority.issue_server(now_ms)
    (tmp_path / "pair.pem").write_bytes(pair[1] + pair[0])

    def tls(version: ssl.TLSVersion) -> Callable[[socket.socket], None]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pair.pem")
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version

        def answer(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1000)

        return answer

    def web(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for answer, words in (
        (web, "does not speak TLS"),
        (tls(ssl.TLSVersion.TLSv1_1), "speaks an older TLS"),
        (tls(ssl.TLSVersion.TLSv1_3), "TLS but not gRPC"),
        (lambda connection: None, "before showing a certificate"),
    ):
        with listening(answer) as port:
            assert words in await sentence(port, root, good, now_ms)
    assert "nothing listens there" in await sentence(port, root, good, now_ms)
    silence = threading.Event()
    with listening(lambda connection: silence.wait(60) and None) as port:
        assert "did not answer in time" in await sentence(port, root, good, now_ms)
        silence.set()


async def test_a_proxy_in_the_way(authority: Authority, now_ms: int) -> None:
    """A proxy that forbids the connection, one that is not there, and one whose name is wrong are named."""
    good, root = member(authority, now_ms), authority.certificate_pem

    def forbids(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    async with serving(authority.issue_server(now_ms), root) as port:
        with listening(forbids) as door:
            told = await sentence(port, root, good, now_ms, proxy=f"127.0.0.1:{door}")
            assert "HTTP proxy refused" in told
        told = await sentence(port, root, good, now_ms, proxy=f"127.0.0.1:{door}")
        assert f"nothing listens at the proxy 127.0.0.1:{door}" in told
        told = await sentence(port, root, good, now_ms, proxy="no-such-host.invalid:3128")
        assert "the proxy's (no-such-host.invalid:3128) name cannot be resolved" in told


async def test_only_a_handshake_proves_that_an_expired_certificate_is_the_reason(
    authority: Authority, now_ms: int
) -> None:
    """Nobody there is nobody there, with a note on the certificate; closed in the handshake, it is final."""
    root, expired = authority.certificate_pem, member(authority, now_ms - 2 * HOUR_MS, HOUR_MS)
    facts, good = read_certificate(expired[1]), read_certificate(member(authority, now_ms)[1])
    async with serving(authority.issue_server(now_ms), root) as port:
        credentials = channel_credentials(*expired, root)
        async with CoordinatorClient(f"127.0.0.1:{port}", credentials, "vineyard.fedtrain.invalid") as client:
            with pytest.raises(UnreachableError) as caught:
                await client.runs()
    assert not_admitted(facts, str(caught.value), now_ms)
    assert not not_admitted(good, str(caught.value), now_ms)
    told = await sentence(port, root, expired, now_ms)
    assert "nothing listens there" in told and "Besides, our certificate" in told
    assert not not_admitted(facts, "Connection refused", now_ms)
