"""The limit for P1: the same bytes through bare gRPC, and nothing of fedtrain.

N client processes on loopback over mutual TLS. In a round each client downloads a payload (the
server reads it from a file, the client hashes it and writes it to a file) and uploads as much (the
client reads and hashes it, the server hashes it, writes it to a file and makes it durable). Streams
of 1 MiB messages, bytes without any encoding. Whatever moves a model both ways with digests and
files does at least this.

    python benchmarks/bare_grpc.py --quick

prints one JSON line per measurement and a table. `measure` is for other scripts.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHUNK_BYTES = 1 << 20
SERVER_NAME = "bare.invalid"
DOWN, UP = "/bare.Blob/Down", "/bare.Blob/Up"
OPTIONS = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.enable_http_proxy", 0),
]


def measure(num_sites: int, payload_bytes: int, rounds: int) -> dict[str, Any]:
    """Wall seconds and core-seconds per round, each way `payload_bytes` for each of `num_sites`.

    Returns `seconds` (median over rounds), `seconds_all`, `core_seconds` (server and clients together,
    per round) and the arguments. Processes are started, connected and warm before the first round.
    """
    with tempfile.TemporaryDirectory(prefix="bare-grpc-") as name:
        folder = Path(name)
        _write_certificates(folder)
        block = os.urandom(CHUNK_BYTES)  # repeated: random to every codec, and quickly made
        with (folder / "model").open("wb") as file:
            for start in range(0, payload_bytes, CHUNK_BYTES):
                file.write(block[: payload_bytes - start])
        server = _start("server", folder)
        sites: list[subprocess.Popen[str]] = []
        try:
            port = _line(server)
            sites = [_start("site", folder, port, str(index)) for index in range(num_sites)]
            processes = [server, *sites]
            for site in sites:
                _line(site)
            seconds = []
            before = _core_seconds(processes)
            for _ in range(rounds):
                began = time.perf_counter()
                for site in sites:
                    _say(site, "round")
                digests = {_line(site) for site in sites}
                seconds.append(time.perf_counter() - began)
                if len(digests) != 1:
                    raise RuntimeError(f"the sites disagree about the payload: {sorted(digests)}")
            core_seconds = (_core_seconds(processes) - before) / rounds
        finally:
            for process in [*sites, server]:
                process.communicate()  # closes its input, on which it ends
    return {
        "what": "bare_grpc",
        "sites": num_sites,
        "payload_bytes": payload_bytes,
        "rounds": rounds,
        "seconds": statistics.median(seconds),
        "seconds_all": seconds,
        "core_seconds": core_seconds,
    }


# -- processes ----------------------------------------------------------------------------------


def _start(role: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--role", role, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"process {process.pid} ended early; its standard error says why")
    return line


def _core_seconds(processes: list[subprocess.Popen[str]]) -> float:
    """User and system seconds of the processes so far."""
    ticks = 0
    for process in processes:
        # Behind the command's name, which may hold anything, fields 14 and 15 are utime and stime.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _write_certificates(folder: Path) -> None:
    """One authority and one leaf for server and sites alike."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, leaf_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("bare ca", SERVER_NAME)
    )

    def sign(subject: x509.Name, key: ec.EllipticCurvePrivateKey, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        )
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (folder / "ca.crt").write_bytes(sign(ca_name, ca_key, True))
    (folder / "leaf.crt").write_bytes(sign(leaf_name, leaf_key, False))
    (folder / "leaf.key").write_bytes(
        leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


# -- the two ends -------------------------------------------------------------------------------


async def _read(path: Path, digest: Any = None) -> AsyncIterator[bytes]:
    """A file in mebibytes, hashed on the way if a hash is given; reads run in a thread, one ahead."""
    with path.open("rb", buffering=0) as file:

        def step() -> bytes:
            data = file.read(CHUNK_BYTES)
            if digest is not None:
                digest.update(data)
            return data

        following = asyncio.ensure_future(asyncio.to_thread(step))
        while data := await following:
            following = asyncio.ensure_future(asyncio.to_thread(step))
            yield data


async def _store(messages: AsyncIterator[bytes], path: Path, *, durable: bool) -> str:
    """Hashes and writes a stream; returns the digest. Work runs in a thread while the next one comes."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:

        def step(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        pending: asyncio.Future[None] | None = None
        async for data in messages:
            if pending is not None:
                await pending
            pending = asyncio.ensure_future(asyncio.to_thread(step, data))
        if pending is not None:
            await pending
        if durable:
            await asyncio.to_thread(os.fsync, file.fileno())
    return digest.hexdigest()


class _Blobs(grpc.GenericRpcHandler):
    """Down: the model. Up: a file per upload, overwritten by the next round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == DOWN:
            return grpc.unary_stream_rpc_method_handler(self._down)
        if handler_call_details.method == UP:
            return grpc.stream_unary_rpc_method_handler(self._up)
        return None

    async def _down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for data in _read(self._folder / "model"):
            yield data

    async def _up(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        site = dict(context.invocation_metadata())["site"]
        return (await _store(messages, self._folder / f"up-{site}", durable=True)).encode()


async def _serve(folder: Path) -> None:
    credentials = grpc.ssl_server_credentials(
        [((folder / "leaf.key").read_bytes(), (folder / "leaf.crt").read_bytes())],
        root_certificates=(folder / "ca.crt").read_bytes(),
        require_client_auth=True,
    )
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Blobs(folder),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def _take_part(folder: Path, port: str, site: str) -> None:
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.crt").read_bytes(),
        (folder / "leaf.key").read_bytes(),
        (folder / "leaf.crt").read_bytes(),
    )
    options = [*OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        await channel.channel_ready()
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            path = folder / f"down-{site}"
            down = await _store(channel.unary_stream(DOWN)(b""), path, durable=False)
            digest = hashlib.sha256()
            up = await channel.stream_unary(UP)(_read(path, digest), metadata=(("site", site),))
            if not up.decode() == digest.hexdigest() == down:
                raise RuntimeError("the payload changed on its way")
            print(down, flush=True)


def main() -> None:
    """Command line: the table, or one of the processes that `measure` starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small payloads, few rounds")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        role, folder, *rest = arguments.role
        asyncio.run(_serve(Path(folder)) if role == "server" else _take_part(Path(folder), *rest))
        return
    cases = [(2, 4_000_000), (4, 4_000_000), (8, 4_000_000), (2, 100_000_000)]
    if not arguments.quick:
        cases += [(8, 100_000_000), (2, 496_000_000), (8, 496_000_000)]
    results = []
    for num_sites, payload_bytes in cases:
        results.append(measure(num_sites, payload_bytes, 3 if arguments.quick else 5))
        print(json.dumps(results[-1]), flush=True)
    print(f"\n{'sites':>5} {'payload MB':>10} {'s/round':>8} {'core-s':>7} {'MB/s both ways':>14}")
    for found in results:
        moved_mb = 2 * found["sites"] * found["payload_bytes"] / 1e6
        print(
            f"{found['sites']:>5} {found['payload_bytes'] / 1e6:>10.0f} {found['seconds']:>8.2f}"
            f" {found['core_seconds']:>7.2f} {moved_mb / found['seconds']:>14.0f}"
        )


if __name__ == "__main__":
    main()
