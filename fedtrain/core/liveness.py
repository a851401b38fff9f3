"""Who is alive and who makes progress: heartbeats in, verdicts out.

Heartbeats are too many to journal. This turns them into the few statements that decisions are made
from. All times are monotonic milliseconds of one process; the state is not kept across restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedtrain.core.orders import Progress

STRIDE_BYTES = 1 << 20
"""What a transfer has to bring, or all that is left of it, to count as moving. With the usual patience of
60 s the slowest link is one of 140 kbit/s; a byte a second, in whatever messages, holds nothing up."""


@dataclass(frozen=True)
class Beat:
    """One order's progress counter and when it last grew."""

    counter: int
    since_ms: int
    patience_ms: int


@dataclass(frozen=True)
class Pulse:
    """One site: when it was last heard, and how its orders do."""

    heard_ms: int
    patience_ms: int
    orders: Mapping[str, Beat] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The site is given up."""

    site: str
    reason: str


@dataclass(frozen=True)
class Stalled:
    """One order is given up: its site lives, but nothing moves."""

    site: str
    order: str
    reason: str


@dataclass(frozen=True)
class Passage:
    """A transfer on its way: up to which byte it was when it last counted as moving, and when that was."""

    size_bytes: int
    marked_bytes: int
    since_ms: int
    patience_ms: int

    @property
    def end_ms(self) -> int:
        """When it is given up, unless it moves before."""
        return self.since_ms + self.patience_ms


Pulses = Mapping[str, Pulse]


def hear(
    pulses: Pulses, site: str, now_ms: int, patience_ms: int, progress: Iterable[Progress] = ()
) -> Pulses:
    """The site gave a sign of life, with the counters of its orders."""
    pulse = pulses.get(site, Pulse(now_ms, patience_ms))
    orders = dict(pulse.orders)
    for item in progress:
        beat = orders.get(item.order)
        if beat is not None and item.counter > beat.counter:
            orders[item.order] = replace(beat, counter=item.counter, since_ms=now_ms)
    return {**pulses, site: Pulse(now_ms, patience_ms, orders)}


def expect(pulses: Pulses, site: str, order: str, now_ms: int, patience_ms: int) -> Pulses:
    """From now on progress on this order is expected. A stride of its upload (`carry`) is progress too."""
    pulse = pulses.get(site, Pulse(now_ms, patience_ms))
    beat = pulse.orders.get(order, Beat(-1, now_ms, patience_ms))
    return {**pulses, site: replace(pulse, orders={**pulse.orders, order: replace(beat, since_ms=now_ms)})}


def carry(passage: Passage, received_bytes: int, now_ms: int) -> Passage:
    """The transfer is at this byte: the same passage again, unless a whole stride has come since its mark."""
    stride = min(STRIDE_BYTES, passage.size_bytes - passage.marked_bytes)
    if received_bytes - passage.marked_bytes < max(stride, 1):
        return passage
    return replace(passage, marked_bytes=received_bytes, since_ms=now_ms)


def settle(pulses: Pulses, site: str, order: str) -> Pulses:
    """The order is answered: nothing more is expected of it."""
    pulse = pulses.get(site)
    if pulse is None or order not in pulse.orders:
        return pulses
    return {**pulses, site: replace(pulse, orders={k: v for k, v in pulse.orders.items() if k != order})}


def forget(pulses: Pulses, site: str) -> Pulses:
    """The site was given up; a later sign of life starts afresh."""
    return {name: pulse for name, pulse in pulses.items() if name != site}


def renew(pulses: Pulses, now_ms: int) -> Pulses:
    """Everybody begins anew: whoever was not listening cannot say that nobody spoke."""
    return {
        site: Pulse(
            now_ms,
            pulse.patience_ms,
            {order: replace(beat, since_ms=now_ms) for order, beat in pulse.orders.items()},
        )
        for site, pulse in pulses.items()
    }


def verdicts(pulses: Pulses, now_ms: int) -> tuple[tuple[Lost | Stalled, ...], int | None]:
    """What has run out of patience, and when to look again (None: nothing to wait for)."""
    found: list[Lost | Stalled] = []
    next_ms: int | None = None
    for site, pulse in sorted(pulses.items()):
        end_ms = pulse.heard_ms + pulse.patience_ms
        if now_ms >= end_ms:
            found.append(Lost(site, f"no sign of life for {pulse.patience_ms / 1000:g} s"))
            continue
        ends = [end_ms]
        for order, beat in pulse.orders.items():
            end_ms = beat.since_ms + beat.patience_ms
            if now_ms >= end_ms:
                found.append(Stalled(site, order, f"no progress for {beat.patience_ms / 1000:g} s"))
            else:
                ends.append(end_ms)
        next_ms = min([*ends, *([] if next_ms is None else [next_ms])])
    return tuple(found), next_ms
