"""A site of protocol 1.0, kept as it was: its messages, its signatures, and nothing that came later.

The messages are built from the descriptors of 1.0 (`tests/wire/protocol_1_0.json`, written from the
generated code of the last commit before 1.1), in a pool of their own. What is signed is spelled out
here instead of being taken from the product, so a change of today's spelling shows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

PROTOCOL_FILE = Path(__file__).parents[1] / "wire" / "protocol_1_0.json"
PACKAGE = "fedtrain.wire.v1"
CHUNK_BYTES = 1 << 20
SIGNING_DOMAIN = b"fedtrain/v1/"
KINDS = {1: "seed", 2: "train", 3: "evaluate"}
PATIENCE_S = 30


def _read_messages() -> dict[str, Any]:
    files = json_format.ParseDict(json.loads(PROTOCOL_FILE.read_text()), descriptor_pb2.FileDescriptorSet())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = [f"{PACKAGE}.{message.name}" for file in files.file for message in file.message_type]
    return {
        name.rpartition(".")[2]: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in names
    }


MESSAGES = _read_messages()


def plain_order(order: Any) -> dict[str, Any]:
    """An order as 1.0 spells it in JSON."""
    model = None
    if order.HasField("model"):
        model = {
            "version": order.model.version,
            "digest": order.model.digest,
            "layout_digest": order.model.layout_digest,
            "snapshot_version": order.model.snapshot_version,
            "chain": [[link.version, link.digest, link.size_bytes] for link in order.model.chain],
        }
    scalars = (
        "id", "run", "round", "attempt", "site", "seed", "steps", "evaluate", "parent", "task", "codec",
        "block_elements", "patience_ms",
    )  # fmt: skip
    return {
        **{name: getattr(order, name) for name in scalars},
        "kind": KINDS[order.kind],
        "model": model,
        "returned": list(order.returned),
        "cohort": list(order.cohort),
    }


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class OldPeer:
    """Calls a coordinator as 1.0 did.

    Args:
        address: `HOST:PORT`.
        keys: (key PEM, certificate PEM, CA PEM) for TLS.
        server_name: of the coordinator's certificate.
        message_key_pem: signs what the site says.
    """

    def __init__(
        self, address: str, keys: tuple[bytes, bytes, bytes], server_name: str, message_key_pem: bytes
    ) -> None:
        key, certificate, ca = keys
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        self._channel = grpc.aio.secure_channel(
            address, credentials, options=[("grpc.ssl_target_name_override", server_name)]
        )
        self._key: Any = load_pem_private_key(message_key_pem, password=None)
        self._stream: Any = None
        self.heard: list[Any] = []

    async def enrol(self, csr_pem: bytes, message_key: str) -> Any:
        return await self._ask("Enrolment/Enrol", "SigningRequest", "Admission", csr_pem=csr_pem,
                               message_key=message_key)  # fmt: skip

    async def attend(self, *, protocol: tuple[int, int] = (1, 0)) -> Any:
        """Open the session; the first answer, which is the welcome."""
        method = self._channel.stream_stream(
            f"/{PACKAGE}.Session/Attend",
            MESSAGES["FromPeer"].SerializeToString,
            MESSAGES["ToPeer"].FromString,
        )
        self._stream = method()
        version = {"major": protocol[0], "minor": protocol[1]}
        await self.say(
            hello={
                "protocol": version, "version": "0.1.0", "session": "old", "tasks": ["scripted"],
                "codecs": ["float32"],
            }
        )  # fmt: skip
        return await self.next("welcome")

    async def say(self, **body: Any) -> None:
        await self._stream.write(MESSAGES["FromPeer"](**body))

    async def next(self, body: str) -> Any:
        """The next message of this kind, which must be whole in the eyes of 1.0."""
        while True:
            message = await asyncio.wait_for(self._stream.read(), PATIENCE_S)
            assert message is not grpc.aio.EOF, "the session ended"
            assert message.epoch > 0 and message.WhichOneof("body"), "every message has an epoch and a body"
            self.heard.append(getattr(message, message.WhichOneof("body")))
            if message.WhichOneof("body") == body:
                return self.heard[-1]

    async def order(self) -> Any:
        """The next order, agreed to."""
        order = (await self.next("invitation")).order
        statement = {
            "order": order.id,
            "order_digest": hashlib.sha256(canonical(plain_order(order))).hexdigest(),
            "accepted": True,
            "reasons": [],
        }
        await self.say(
            consent={"order": order.id, "accepted": True, "signature": self._sign("consent", statement)}
        )
        return order

    async def deliver(self, order: Any, path: Path, layout: str = "", weight: int = 10) -> Any:
        """Offer, send in chunks, commit; the receipt."""
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        missing = await self._ask(
            "Transfer/Offer", "Offer", "Missing", order=order.id, digest=digest, size_bytes=len(data)
        )
        send = self._channel.stream_unary(
            f"/{PACKAGE}.Transfer/Send", MESSAGES["Chunk"].SerializeToString, MESSAGES["Missing"].FromString
        )(timeout=PATIENCE_S)
        for offset in range(missing.offset, len(data), CHUNK_BYTES):
            named = digest if offset == missing.offset else ""
            await send.write(
                MESSAGES["Chunk"](digest=named, offset=offset, data=data[offset : offset + CHUNK_BYTES])
            )
        await send.done_writing()
        assert (await send).offset == len(data)
        statement = {
            "run": order.run, "order": order.id, "digest": digest, "size_bytes": len(data), "weight": weight,
            "steps": order.steps,
        }  # fmt: skip
        return await self._ask(
            "Transfer/Commit", "Commit", "Receipt", order=order.id, digest=digest, size_bytes=len(data),
            weight=weight, steps=order.steps, norm=0.0, train_loss=1.5, eval_loss=2.5, eval_count=7,
            seconds=0.1, layout=layout, signature=self._sign("commit", statement),
        )  # fmt: skip

    async def fetch(self, digest: str) -> bytes:
        method = self._channel.unary_stream(
            f"/{PACKAGE}.Transfer/Fetch", MESSAGES["FetchRequest"].SerializeToString,
            MESSAGES["Chunk"].FromString,
        )  # fmt: skip
        request = MESSAGES["FetchRequest"](digest=digest, offset=0)
        return b"".join([chunk.data async for chunk in method(request, timeout=PATIENCE_S)])

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask(self, path: str, request: str, answer: str, **fields: Any) -> Any:
        method = self._channel.unary_unary(
            f"/{PACKAGE}.{path}", MESSAGES[request].SerializeToString, MESSAGES[answer].FromString
        )
        return await method(MESSAGES[request](**fields), timeout=PATIENCE_S)

    def _sign(self, kind: str, statement: dict[str, Any]) -> str:
        return self._key.sign(SIGNING_DOMAIN + kind.encode() + b"\0" + canonical(statement)).hex()
