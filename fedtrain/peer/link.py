"""The way to the coordinator, measured with calls that change nothing: health checks.

Throughput is not measured. The protocol has no call that only moves bytes, and an answer of a few
bytes says nothing about gigabytes; `run watch` shows the rates of real transfers.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from fedtrain.errors import StaleEpoch, UnreachableError
from fedtrain.peer.settings import AgentSettings
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.diagnosis import explain_unreachable
from fedtrain.trust.folders import MemberKeys
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.options import channel_credentials

PATIENCE_S = 10.0
ROUND_TRIPS = 9


@dataclass(frozen=True)
class Link:
    """What was measured.

    Attributes:
        latency_ms: median round trip of a health check.
        ahead_ms: this machine's clock less the coordinator's, to within half a round trip; None if the
            coordinator does not tell its time.
    """

    latency_ms: float
    ahead_ms: int | None


async def measure_link(settings: AgentSettings, keys: MemberKeys) -> Link:
    """Connect, and ask a few times. No session is opened, so an agent at work keeps its own.

    Raises `UnreachableError` with the cause in words.
    """
    credentials = channel_credentials(keys.tls_key_pem, keys.chain_pem, keys.ca_pem)
    name = keys.membership.server_name
    async with CoordinatorClient(settings.coordinator, credentials, name, settings.proxy) as client:
        try:
            await client.connect(PATIENCE_S)
        except StaleEpoch:
            raise
        except UnreachableError as error:
            facts = read_certificate(keys.certificate_pem)
            cause = explain_unreachable(
                facts, client.address, str(error), time.time_ns() // 1_000_000, settings.proxy
            )
            raise UnreachableError(f"{cause} (tried for {PATIENCE_S:.0f} s)") from error
        trips_ms, aheads_ms = [], []
        for _ in range(ROUND_TRIPS):
            before_ms, began_s = time.time_ns() / 1e6, time.monotonic()
            at_ms = await client.sound()
            trip_ms = (time.monotonic() - began_s) * 1000
            trips_ms.append(trip_ms)
            if at_ms is not None:
                aheads_ms.append((trip_ms, round(before_ms + trip_ms / 2 - at_ms)))
    # The shortest trip bounds the error of its clock reading best.
    return Link(statistics.median(trips_ms), min(aheads_ms)[1] if aheads_ms else None)
