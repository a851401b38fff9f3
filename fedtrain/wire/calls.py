"""The calls of the protocol, read from the generated descriptors: the protos are the only list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fedtrain.wire.v1 import common_pb2, enrolment_pb2, operations_pb2, session_pb2, transfer_pb2

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One method: what a judge calls it, and its path on the wire."""

    service: str
    method: str
    path: str
    client_streaming: bool
    server_streaming: bool


def call(service: str, method: str) -> Call:
    """The call of that name, e.g. `call("Transfer", "Fetch")`; KeyError for a name not in the protos."""
    return CALLS[service, method]


@asynccontextmanager
async def closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Closes a generator as soon as its call ends, not when it happens to be collected."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _read_calls() -> dict[tuple[str, str], Call]:
    calls = {}
    for module in (common_pb2, enrolment_pb2, operations_pb2, session_pb2, transfer_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            # Probes of container platforms know the health service by this name only.
            full_name = "grpc.health.v1.Health" if service.name == "Health" else service.full_name
            for method in service.methods:
                calls[service.name, method.name] = Call(
                    service.name,
                    method.name,
                    f"/{full_name}/{method.name}",
                    method.client_streaming,
                    method.server_streaming,
                )
    return calls


CALLS = _read_calls()
