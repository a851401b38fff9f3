"""When a claim has expired: the claimer's heartbeat stood still on the agent's own clock."""

from __future__ import annotations

from collections.abc import Mapping


class ClaimWatch:
    """Judges claims by whether their heartbeat *counter* moves; no clock of the other side counts.

    Args:
        lease_ms: a claim whose heartbeat has not changed for so long is expired.
    """

    def __init__(self, lease_ms: int) -> None:
        self.lease_ms = lease_ms
        self._seen: dict[str, tuple[tuple[str, int], int]] = {}

    def observe(self, now_ms: int, claims: Mapping[str, tuple[str, int]]) -> tuple[str, ...]:
        """Order ids of expired claims, sorted.

        Args:
            now_ms: the agent's monotonic clock.
            claims: order id -> (trainer id, its counter), from `Mailbox.claims`.
        """
        seen: dict[str, tuple[tuple[str, int], int]] = {}
        for order, beat in claims.items():
            before = self._seen.get(order)
            seen[order] = before if before is not None and before[0] == beat else (beat, now_ms)
        self._seen = seen
        return tuple(sorted(order for order, (_, since) in seen.items() if now_ms - since >= self.lease_ms))
