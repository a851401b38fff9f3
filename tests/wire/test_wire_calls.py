"""Every call over a real loopback server with mutual TLS."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from wire_loopback import (
    SERVER_NAME,
    ZERO_DIGEST,
    CertificateAuthority,
    Recorder,
    a_commit,
    a_spec,
    authority,
    blob,
    collect,
    connect,
    fetch_all,
    saying,
    serving,
)

from fedtrain import errors
from fedtrain.core import messages as core
from fedtrain.errors import (
    BadUpdate,
    ConfigError,
    FedtrainError,
    LocalError,
    RefusedError,
    RemoteError,
    UnreachableError,
)
from fedtrain.wire import options
from fedtrain.wire.calls import CALLS, call
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.server import open_server
from fedtrain.wire.values import CHUNK_BYTES, InviteOrder, Registration, SigningRequest, Verdict

pytestmark = pytest.mark.timeout(60)


# -- plain calls --------------------------------------------------------------------------------


async def test_each_operation_arrives_and_answers(tmp_path: Path) -> None:
    """Every call of Enrolment and Operations reaches its handler with its arguments."""
    async with serving(Recorder(tmp_path)) as port, connect(port) as client:
        await client.connect()
        admission = await client.enrol(SigningRequest(b"csr", "ab" * 32))
        assert admission.certificate_pem == b"certificate of csr"
        assert (
            await client.renew(SigningRequest(b"csr", "ab" * 32))
        ).certificate_pem == b"certificate of csr"
        assert await client.invite(InviteOrder("jsc", "site", 9, "fzj")) == "jsc/site/9/fzj"
        for judge_member in (client.revoke, client.quarantine, client.release):
            assert await judge_member(Verdict("jsc", "why")) == {"member": "jsc", "reason": "why"}
        assert await client.register(Registration(b"pem", "ab" * 32)) == {"member": "pem"}
        assert await client.roll_over(finish=True) == {"finish": True}
        assert await client.roll_back("lm", 3) == {"run": "lm", "version": 3}
        assert await client.lineage("lm") == {"run": "lm", "version": None}
        assert await client.start(a_spec()) == {"run": "lm", "late": "drop"}
        assert await client.check(a_spec()) == {"run": "lm", "late": "drop"}
        for ask in (client.pause, client.resume, client.stop, client.run, client.rounds, client.models):
            assert await ask("lm") == {"run": "lm"}
        assert await client.runs() == await client.members() == {"runs": []}
        assert await client.member("jsc") == {"member": "jsc"}
        assert [row["version"] for row in await collect(client.watch("lm"))] == [0, 1, 2]
        assert [row["sequence"] for row in await collect(client.journal(2))] == [3, 4]
        offered = await client.offer(core.Offer("lm.3.0.jsc", ZERO_DIGEST, 5))
        assert offered == core.Missing(0, 5)
        assert (await client.commit(a_commit())).outcome == "stored"


async def test_a_caller_is_who_the_certificate_says(tmp_path: Path) -> None:
    """The judge's caller reaches the handler, with the address of the other end."""
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port, "cineca") as client:
        await client.enrol(SigningRequest(b"csr", "ab" * 32))
    assert recorder.callers[0].name == "cineca"
    assert "127.0.0.1" in recorder.callers[0].address


async def test_a_document_beyond_the_message_limit_arrives_whole(tmp_path: Path) -> None:
    """Documents travel in parts, so ten megabytes of closed rounds are no error."""
    recorder = Recorder(tmp_path)
    recorder.document = {"rounds": ["x" * 1000] * 10_000}
    async with serving(recorder) as port, connect(port) as client:
        assert await client.rounds("lm") == recorder.document


async def test_an_export_says_what_it_is_and_arrives_whole(tmp_path: Path) -> None:
    """The head comes first and its digest is that of the pieces; large pieces are cut."""
    async with serving(Recorder(tmp_path)) as port, connect(port) as client:
        export = await client.export("lm")
        pieces = [piece async for piece in export.pieces]
        assert (export.head.version, (await client.export("lm", 0)).head.version) == (3, 0)
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert hashlib.sha256(b"".join(pieces)).hexdigest() == export.head.digest


def test_every_call_of_the_protos_is_served(tmp_path: Path) -> None:
    """No method of the protos is left without a handler."""

    class Catcher:
        def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
            self.routes = handlers[0]

    from fedtrain.wire.server import add_services

    async def build() -> Catcher:
        recorder = Recorder(tmp_path)
        catcher = Catcher()
        add_services(catcher, Handlers(*[recorder] * 5), lambda *_: None)
        return catcher

    routes = asyncio.run(build()).routes
    for known in CALLS.values():
        details = type("Details", (), {"method": known.path})
        handler = routes.service(details)
        assert handler is not None, known
        assert handler.request_streaming == known.client_streaming
        assert handler.response_streaming == known.server_streaming


# -- errors -------------------------------------------------------------------------------------


def every_error() -> Iterator[type[FedtrainError]]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, FedtrainError) and kind is not LocalError:
            yield kind


async def test_every_error_arrives_as_itself(tmp_path: Path) -> None:
    """Class, code and sentence of each error of the tree survive the wire."""
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port) as client:
        for kind in every_error():
            recorder.raises = kind("rounds.quorum is 9: choose at most 4 — the sites you named")
            with pytest.raises(FedtrainError) as caught:
                await client.run("lm")
            assert type(caught.value) is kind
            assert str(caught.value) == str(recorder.raises)


@pytest.mark.parametrize("bug", [KeyError("secret path /srv/x"), LocalError("secret invariant")])
async def test_our_bugs_tell_nothing(
    tmp_path: Path, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is a `LocalError` without internals there, and a traceback in the log here."""
    recorder = Recorder(tmp_path)
    recorder.raises = bug
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(LocalError) as caught:
            await client.run("lm")
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


async def test_control_characters_of_a_sentence_are_spelled_out(tmp_path: Path) -> None:
    """A terminal escape code in a reason arrives as its spelling, on one line, and is cut to length."""
    recorder = Recorder(tmp_path)
    recorder.raises = RefusedError("red \x1b[31m and\nlong " + "x" * 10_000)
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(RefusedError) as caught:
            await client.run("lm")
    assert str(caught.value).startswith("red \\x1b[31m and\\nlong xxx")
    assert len(str(caught.value)) < 2100


async def test_a_refused_caller_reaches_no_handler_but_health(tmp_path: Path) -> None:
    """The judge's refusal is the status of every kind of call; the health check is asked like any other."""
    recorder = Recorder(tmp_path)
    digest, _ = blob(tmp_path, 10)
    async with serving(recorder) as port, connect(port, "stranger") as client:
        await client.connect()
        with pytest.raises(RefusedError, match="not for strangers"):
            await client.enrol(SigningRequest(b"csr", "ab" * 32))
        with pytest.raises(RefusedError, match=r"Transfer\.Fetch"):
            await fetch_all(client, digest)
        with pytest.raises(RefusedError, match=r"Transfer\.Send"):
            await client.send_file(tmp_path / digest, digest, 10)
        with pytest.raises(RefusedError, match=r"Session\.Attend"):
            await collect(client.attend(saying()))
    assert not recorder.callers and not recorder.uploads and not recorder.heard


async def test_nobody_at_the_address_is_said_with_the_reason(unused_tcp_port: int) -> None:
    """A refused connection is `UnreachableError` naming address, patience and the transport's reason."""
    async with connect(unused_tcp_port) as client:
        with pytest.raises(
            UnreachableError, match=rf"127\.0\.0\.1:{unused_tcp_port}.*refused.*tried for 0 s"
        ):
            await client.connect(patience_s=0.3)


async def test_a_foreign_certificate_is_unreachable(tmp_path: Path) -> None:
    """A client of another authority gets no further than the handshake."""
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port, ca=CertificateAuthority()) as client:
        with pytest.raises(UnreachableError):
            await client.connect(patience_s=0.3)


async def test_a_server_of_another_name_is_unreachable(tmp_path: Path) -> None:
    """The name in the coordinator's certificate counts, not the address dialled."""
    async with serving(Recorder(tmp_path)) as port:
        key, certificate = authority().issue("jsc")
        credentials = options.channel_credentials(key, certificate, authority().pem)
        async with CoordinatorClient(f"127.0.0.1:{port}", credentials, "other.invalid") as client:
            with pytest.raises(UnreachableError):
                await client.connect(patience_s=0.3)


@asynccontextmanager
async def connect_proxy(asked: list[str]) -> AsyncIterator[int]:
    """Port of an HTTP proxy that knows CONNECT only and notes what it was asked for."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split()[1])
        far_reader, far_writer = await asyncio.open_connection(*asked[-1].rsplit(":", 1))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()


async def test_a_named_proxy_is_used_and_the_environment_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `proxy` the call goes through CONNECT; without it `https_proxy` changes nothing."""
    asked: list[str] = []
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with serving(Recorder(tmp_path)) as port, connect_proxy(asked) as proxy_port:
        async with connect(port) as client:
            await client.connect()
        assert asked == []
        async with connect(port, proxy=f"127.0.0.1:{proxy_port}") as client:
            await client.connect()
        assert asked == [f"127.0.0.1:{port}"]


async def test_a_second_server_cannot_share_the_port(tmp_path: Path) -> None:
    """A port in use is a `ConfigError`; the kernel's port sharing is switched off."""
    recorder = Recorder(tmp_path)
    key, certificate = authority().issue(SERVER_NAME)
    credentials = options.server_credentials(key, certificate, authority().pem)
    async with serving(recorder) as port:
        with pytest.raises(ConfigError, match="another process may hold the port"):
            await open_server(f"127.0.0.1:{port}", credentials, Handlers(*[recorder] * 5), None)


async def raw_call(client: CoordinatorClient, service: str, method: str, raw: bytes) -> bytes:
    """Bytes that no client of ours would send."""
    with client._calling("test"):
        return await client._line.channel.unary_unary(call(service, method).path)(raw, timeout=10)


async def test_hostile_bytes_are_refused_in_words(tmp_path: Path) -> None:
    """Bytes that are no message, or break a bound, are the caller's error and reach no handler."""
    recorder = Recorder(tmp_path)
    async with serving(recorder) as port, connect(port) as client:
        with pytest.raises(RemoteError, match="are not"):
            await raw_call(client, "Transfer", "Offer", b"\xff\xff\xff")
        with pytest.raises(RemoteError, match=r"Offer\.order"):
            await raw_call(client, "Transfer", "Offer", b"")
        with pytest.raises(BadUpdate, match=r"Commit\.order"):
            await raw_call(client, "Transfer", "Commit", b"\x0a\x06../../")
        with pytest.raises(RemoteError, match="limit of the transport"):
            await raw_call(client, "Transfer", "Offer", b"x" * (options.MESSAGE_BYTES_MAX - 100 + 200))
    assert not recorder.sizes and not recorder.commits


async def test_a_closed_client_is_unreachable_and_not_cancelled(tmp_path: Path) -> None:
    """Calls under way when the client closes end as `UnreachableError`, not as a cancellation."""
    recorder = Recorder(tmp_path)
    recorder.commit_may_end.clear()
    async with serving(recorder) as port:
        client = connect(port)
        pending = asyncio.create_task(client.commit(a_commit()))
        await recorder.commit_begun.wait()
        await client.close()
        with pytest.raises(UnreachableError):
            await pending
        recorder.commit_may_end.set()
        await recorder.commit_ended.wait()
