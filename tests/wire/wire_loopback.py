"""A real server on a random loopback port with throw-away certificates, and handlers that record."""

from __future__ import annotations

import asyncio
import datetime
import functools
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedtrain.core import messages as core
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.errors import NotFoundError, RefusedError
from fedtrain.wire import options
from fedtrain.wire.chunks import FrameCache
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.handlers import Handlers
from fedtrain.wire.server import open_server
from fedtrain.wire.values import (
    Admission,
    Caller,
    Document,
    Export,
    ExportHead,
    InviteOrder,
    Registration,
    SigningRequest,
    Verdict,
)

SERVER_NAME = "coordinator.test.invalid"
ZERO_DIGEST = "0" * 64


class CertificateAuthority:
    """P-256 certificates for one test run."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(self._name, self._key, ca=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """(key PEM, certificate PEM) for a DNS name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, ca=False)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem, certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        name = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(str(name))]), False)
        return builder.sign(self._key, hashes.SHA256())


@functools.cache
def authority() -> CertificateAuthority:
    """One authority per test process: making keys is the slow part."""
    return CertificateAuthority()


def judge(context: object, service: str, method: str) -> Caller:
    """Reads the name from the certificate; lets `stranger` call nothing but Health."""
    (name,) = (value.decode() for value in context["x509_common_name"])  # type: ignore[index]
    if name == "stranger" and service != "Health":
        raise RefusedError(f"{service}.{method} is not for strangers")
    return Caller(name=name, role="site", fingerprint="f", key_digest="k", not_after_ms=0)


class Recorder:
    """All four handlers in one, with a blob store in memory and switches for faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = FrameCache()
        self.callers: list[Caller] = []
        self.heard: list[core.FromPeer] = []
        self.uploads: dict[str, bytearray] = {}
        self.sizes: dict[str, int] = {}
        self.commits: list[core.Commit] = []
        self.commit_begun = asyncio.Event()
        self.commit_may_end = asyncio.Event()
        self.commit_may_end.set()
        self.commit_ended = asyncio.Event()
        self.session_ended = asyncio.Event()
        self.raises: Exception | None = None
        self.document: Document = {}

    async def enrol(self, caller: Caller, request: SigningRequest) -> Admission:
        self.callers.append(caller)
        return Admission(b"certificate of " + request.csr_pem, b"chain", request.message_key, "library")

    async def attend(
        self, caller: Caller, incoming: AsyncIterator[core.FromPeer]
    ) -> AsyncIterator[tuple[int, core.ToPeer]]:
        try:
            yield 7, core.Welcome("library", core.PROTOCOL_VERSION, "0.1", 1_700_000_000_000, 5000)
            async for message in incoming:
                self.heard.append(message)
                if isinstance(message, core.Goodbye):
                    break
                yield 7, core.Cancellation("r.0.0.jsc", f"heard {type(message).__name__}")
        finally:
            self.session_ended.set()

    async def fetch(self, caller: Caller, digest: str, offset: int) -> AsyncIterator[bytes]:
        path = self.folder / digest
        if not path.exists():
            raise NotFoundError(f"no blob {digest[:8]}")
        async for frame in self.cache.read(digest, path, path.stat().st_size, offset):
            yield frame

    async def offer(self, caller: Caller, offer: core.Offer) -> core.Missing:
        self.sizes[offer.digest] = offer.size_bytes
        return core.Missing(len(self.uploads.setdefault(offer.digest, bytearray())), offer.size_bytes)

    async def send(
        self, caller: Caller, digest: str, pieces: AsyncIterator[tuple[int, bytes]]
    ) -> core.Missing:
        stored = self.uploads.setdefault(digest, bytearray())
        async for offset, data in pieces:
            if offset != len(stored):
                raise RefusedError(f"byte {len(stored)} was due and byte {offset} came")
            stored += data
        return core.Missing(len(stored), self.sizes.get(digest, len(stored)))

    async def commit(self, caller: Caller, commit: core.Commit) -> core.Receipt:
        self.commit_begun.set()
        await self.commit_may_end.wait()
        self.commits.append(commit)
        self.commit_ended.set()
        return core.Receipt(commit.order, commit.digest, "stored", 7, 1, "aa")

    async def renew(self, caller: Caller, request: SigningRequest) -> Admission:
        return await self.enrol(caller, request)

    async def invite(self, caller: Caller, order: InviteOrder) -> str:
        return f"{order.name}/{order.role}/{order.valid_s}/{order.organisation}"

    async def judged(self, caller: Caller, verdict: Verdict) -> Document:
        return {"member": verdict.name, "reason": verdict.reason}

    revoke = quarantine = release = judged

    async def register(self, caller: Caller, registration: Registration) -> Document:
        return {"member": registration.certificate_pem.decode()}

    async def roll_over(self, caller: Caller, finish: bool) -> Document:
        return {"finish": finish}

    async def roll_back(self, caller: Caller, run: str, version: int) -> Document:
        return {"run": run, "version": version}

    async def lineage(self, caller: Caller, run: str, version: int | None) -> Document:
        return {"run": run, "version": version}

    async def start(self, caller: Caller, spec: RunSpec) -> Document:
        return {"run": spec.run, "late": spec.late.value}

    check = start

    async def run(self, caller: Caller, run: str) -> Document:
        if self.raises is not None:
            raise self.raises
        return self.document or {"run": run}

    pause = resume = stop = rounds = models = run

    async def member(self, caller: Caller, name: str) -> Document:
        return {"member": name}

    async def runs(self, caller: Caller) -> Document:
        return {"runs": []}

    members = runs

    async def watch(self, caller: Caller, run: str) -> AsyncIterator[Document]:
        for version in range(3):
            yield {"run": run, "version": version}

    async def journal(self, caller: Caller, after: int) -> AsyncIterator[Document]:
        for sequence in range(after + 1, 5):
            yield {"sequence": sequence}

    async def export(self, caller: Caller, run: str, version: int | None) -> Export:
        data = b"model" * 500_000

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        digest = hashlib.sha256(data).hexdigest()
        return Export(ExportHead(3 if version is None else version, len(data), digest, ZERO_DIGEST), pieces())


@asynccontextmanager
async def serving(recorder: Recorder) -> AsyncIterator[int]:
    """The port of a running server."""
    key, certificate = authority().issue(SERVER_NAME)
    credentials = options.server_credentials(key, certificate, authority().pem)
    server, port = await open_server("127.0.0.1:0", credentials, Handlers(*[recorder] * 5), judge)
    try:
        yield port
    finally:
        await server.stop(0)


def connect(
    port: int, name: str = "jsc", ca: CertificateAuthority | None = None, proxy: str | None = None
) -> CoordinatorClient:
    """A client with a certificate for `name`, of a foreign authority if one is given."""
    key, certificate = (ca or authority()).issue(name)
    credentials = options.channel_credentials(key, certificate, authority().pem)
    return CoordinatorClient(f"127.0.0.1:{port}", credentials, SERVER_NAME, proxy)


def blob(folder: Path, size_bytes: int) -> tuple[str, bytes]:
    """(digest, bytes) of a file of that size, stored under its digest."""
    data = bytes(range(251)) * (size_bytes // 251 + 1)
    data = data[:size_bytes]
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return digest, data


def an_order(**changes: object) -> Order:
    """An order to look at."""
    values: dict[str, object] = {
        "id": "lm.3.0.jsc",
        "kind": OrderKind.TRAIN,
        "run": "lm",
        "round": 3,
        "attempt": 0,
        "site": "jsc",
        "seed": 1,
        "model": None,
        "steps": 20,
        "evaluate": True,
        "parent": "",
        "returned": (),
        "cohort": ("jsc",),
        "task": "{}",
        "codec": "int8",
        "block_elements": 1 << 20,
        "patience_ms": 60_000,
    }
    return Order(**{**values, **changes})  # type: ignore[arg-type]


def a_commit(digest: str = ZERO_DIGEST, size_bytes: int = 0) -> core.Commit:
    """A commit to look at."""
    return core.Commit("lm.3.0.jsc", digest, size_bytes, 10, 20, 0.5, 1.25, None, 0, 3.5, "", "aa")


def a_spec() -> RunSpec:
    """A run to look at."""
    return RunSpec(
        run="lm", seed=1, task="{}", sites=(), minimum=2, rounds=3, steps=5, quorum=2, quorum_share=0.5,
        deadline_ms=1000, patience_ms=1000, heartbeat_ms=100, late=LatePolicy.DROP, outer="average",
        outer_params={}, outer_warmup_rounds=0, codec_up="int8", codec_down="int8", aggregator="mean",
        norm_max=None, evaluate_every=1,
    )  # fmt: skip


async def collect(stream: AsyncIterator[object]) -> list[object]:
    return [item async for item in stream]


async def fetch_all(client: CoordinatorClient, digest: str, offset: int = 0) -> bytes:
    return b"".join([data async for _, data in client.fetch(digest, offset)])


async def saying(*messages: core.FromPeer) -> AsyncIterator[core.FromPeer]:
    for message in messages:
        yield message
