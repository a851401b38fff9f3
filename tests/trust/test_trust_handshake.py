"""Real mutual TLS over grpc.aio on the loopback, with the certificates of this room.

What the server's interceptor will do on every call is done here by one handler: judge the peer, answer
with its identity or abort with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from fedtrain.errors import FedtrainError, RefusedError
from fedtrain.trust.admission import judge
from fedtrain.trust.authority import Authority, server_name
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_unreachable
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.keys import make_tls_key_and_csr

HOUR_MS = 3600 * 1000
SITE = Identity("vineyard", Role.SITE, "jsc")
Pair = tuple[bytes, bytes]


@dataclass
class Port(grpc.GenericRpcHandler):
    """A server's one method per role, and the authentication contexts that it has seen."""

    now_ms: int
    number: int = 0
    contexts: list[dict[str, list[bytes]]] = field(default_factory=list)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        call = handler_call_details.method.rpartition("/")[2]
        allowed = {Role.ENROLLING} if call == "Enrol" else MEMBER_ROLES

        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.contexts.append(dict(context.auth_context()))
            try:
                facts = judge(
                    context.auth_context(),
                    call=call,
                    allowed=allowed,
                    consortium="vineyard",
                    now_ms=self.now_ms,
                )
            except FedtrainError as error:
                await context.abort(grpc.StatusCode[error.status], str(error))
            return str(facts.identity).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def serving(authority: Authority, pair: Pair, now_ms: int) -> AsyncIterator[Port]:
    """A server on a free port that demands a certificate of `authority` from every client."""
    port = Port(now_ms)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((port,))
    credentials = grpc.ssl_server_credentials([pair], authority.certificate_pem, require_client_auth=True)
    port.number = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def ask(
    port: Port, root_pem: bytes, pair: Pair | None, *, call: str = "Fetch", name: str | None = "vineyard"
) -> str:
    """The server's answer; raises what gRPC raises."""
    key_pem, certificate_pem = pair or (None, None)
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if name is not None:
        options.append(("grpc.ssl_target_name_override", server_name(name)))
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, certificate_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port.number}", credentials, options=options) as channel:
        answer: bytes = await channel.unary_unary(f"/fedtrain/{call}")(b"", timeout=20)
        return answer.decode()


async def failure(
    port: Port, root_pem: bytes, pair: Pair | None, **options: str | None
) -> grpc.aio.AioRpcError:
    """How the call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(port, root_pem, pair, **options)  # type: ignore[arg-type]
    return caught.value


def member(authority: Authority, now_ms: int, lifetime_ms: int = HOUR_MS) -> Pair:
    key_pem, csr_pem = make_tls_key_and_csr("jsc")
    return key_pem, authority.issue_leaf(csr_pem, SITE, now_ms, lifetime_ms)


async def test_member_is_known_over_tls_1_3(authority: Authority, now_ms: int) -> None:
    """A member reaches the server by address under the consortium's name, and the server knows it."""
    async with serving(authority, authority.issue_server(now_ms), now_ms) as port:
        assert await ask(port, authority.certificate_pem, member(authority, now_ms)) == str(SITE)
    (context,) = port.contexts
    assert context["ssl_tls_version"] == [b"TLSv1.3"]
    assert context["peer_uri"] == [str(SITE).encode()]


async def test_invite_enrols_and_nothing_else(authority: Authority, now_ms: int) -> None:
    """An invite's certificate passes the handshake, may call Enrol, and is refused a site's call in words."""
    invite = make_invite(authority, "jsc", Role.SITE, "127.0.0.1:1", now_ms, HOUR_MS)
    pair = (invite.key_pem, invite.certificate_pem)
    async with serving(authority, authority.issue_server(now_ms), now_ms) as port:
        assert await ask(port, invite.ca_pem, pair, call="Enrol") == "fedtrain://vineyard/enrolling/jsc"
        error = await failure(port, invite.ca_pem, pair, call="Fetch")
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "Fetch is for the role" in (error.details() or "")


async def test_strangers_never_reach_a_handler(
    authority: Authority, stranger: Authority, now_ms: int
) -> None:
    """No certificate, a foreign one, an expired, an early and the server's own all fail in the handshake."""
    server_pair = authority.issue_server(now_ms)
    pairs = {
        "none": None,
        "foreign": member(stranger, now_ms),
        "expired": member(authority, now_ms - 2 * HOUR_MS, HOUR_MS),
        "early": member(authority, now_ms + HOUR_MS),
        "server": server_pair,
    }
    async with serving(authority, server_pair, now_ms) as port:
        for pair in pairs.values():
            error = await failure(port, authority.certificate_pem, pair)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert port.contexts == []


async def test_failed_handshakes_are_explained(
    authority: Authority, stranger: Authority, now_ms: int
) -> None:
    """What gRPC says today in each case leads to the sentence that names the true cause."""
    good = member(authority, now_ms)
    expired = member(authority, now_ms - 2 * HOUR_MS, HOUR_MS)
    root = authority.certificate_pem

    async def sentence(port: Port, root_pem: bytes, pair: Pair, **options: str | None) -> str:
        error = await failure(port, root_pem, pair, **options)
        return explain_unreachable(read_certificate(pair[1]), "c:1", error.details() or "", now_ms)

    async with serving(authority, authority.issue_server(now_ms), now_ms) as port:
        assert "another authority" in await sentence(port, stranger.certificate_pem, good)
        assert "another consortium" in await sentence(port, root, good, name="orchard")
        assert "another consortium" in await sentence(port, root, good, name=None)
        assert "our certificate" in await sentence(port, root, expired)
        assert "TLS does not say why" in await sentence(port, root, member(stranger, now_ms))
    assert "nothing listens" in await sentence(port, root, good)
    old = authority.issue_server(now_ms - 2 * HOUR_MS, HOUR_MS)
    async with serving(authority, old, now_ms) as port:
        assert "its certificate has expired" in await sentence(port, root, good)


async def test_member_cannot_pose_as_the_coordinator(authority: Authority, now_ms: int) -> None:
    """A server that shows a member's certificate is not believed: it has no server name and may only call."""
    async with serving(authority, member(authority, now_ms), now_ms) as port:
        error = await failure(port, authority.certificate_pem, member(authority, now_ms))
    assert error.code() is grpc.StatusCode.UNAVAILABLE and port.contexts == []


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _call_over_tls_1_2(port: int, root_pem: bytes, pair: Pair, folder: Path) -> str:
    """One hand-made gRPC call, because no gRPC client can be told to stay below TLS 1.3."""
    chain = folder / "pair.pem"
    chain.write_bytes(pair[1] + pair[0])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=root_pem.decode())
    client.load_cert_chain(chain)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_alpn_protocols(["h2"])
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/fedtrain/Fetch",
        ":authority": server_name("vineyard"),
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # Literal header fields without indexing, no Huffman (RFC 7541, 6.2.2).
    block = b"".join(
        b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields.items()
    )
    message = b"\0\0\0\0\0"
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    request += _frame(1, 4, 1, block) + _frame(0, 1, 1, message)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        client.wrap_socket(plain, server_hostname=server_name("vineyard")) as secure,
    ):
        secure.sendall(request)
        received = b""
        # The answer is headers and trailers in one or two frames of stream 1; the last ends the stream.
        while not _stream_ended(received):
            part = secure.recv(65536)
            if not part:
                break
            received += part
        return secure.version() or ""


def _stream_ended(data: bytes) -> bool:
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
        if stream == 1 and (kind == 3 or (kind == 1 and flags & 1)):
            return True
        data = data[9 + size :]
    return False


async def test_tls_1_2_is_refused_on_the_call(authority: Authority, now_ms: int, tmp_path: Path) -> None:
    """gRPC's server lets TLS 1.2 through the handshake; its context says so and the judgement refuses it."""
    pair = member(authority, now_ms)
    async with serving(authority, authority.issue_server(now_ms), now_ms) as port:
        version = await asyncio.to_thread(
            _call_over_tls_1_2, port.number, authority.certificate_pem, pair, tmp_path
        )
    assert version == "TLSv1.2"
    (context,) = port.contexts
    assert context["ssl_tls_version"] == [b"TLSv1.2"]
    with pytest.raises(RefusedError, match=r"TLS 1\.3 is needed"):
        judge(context, call="Fetch", allowed=MEMBER_ROLES, consortium="vineyard", now_ms=now_ms)
