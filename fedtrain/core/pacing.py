"""How often sites show themselves, and how many may come at once.

`patience_s` of a run is the one figure that a person sets; the others follow from it here.

| figure | value | against |
|---|---|---|
| lease of a site with work | the shortest patience of its orders | a stopped process is found within it |
| its signs of life | as often as its runs ask, and 4 in each patience | three of them may be lost |
| lease of a site without work | 60 s | nobody waits for it; its next order starts a lease of its own |
| its signs of life | every 20 s, up to a fifth earlier | two may be lost; 1,000 sites are 55 a second |
| sites let in | 100 a second after the first 50 | 4 ms of a core each: under half a core, 10 s for 1,000 |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from fedtrain.core.state import ENDED, State

IDLE_PATIENCE_MS = 60_000
IDLE_BEAT_MS = 20_000

IDLE_PACE_SINCE = (1, 1)
"""Protocol version whose coordinators give a site without work `IDLE_PATIENCE_MS`; to earlier ones every
site beats as its runs ask."""

BEATS_PER_PATIENCE = 4

SLOT_MS = 10
"""Between two sites that are let in."""

BURST = 50
"""Sites that may come at once while nobody queues: a small consortium never notices the door."""

SLOT_KEPT_MS = 10_000
"""How long a slot is good for after its time; who comes later queues again."""


def beat_ms(asked_ms: int, patiences_ms: Collection[int], protocol: tuple[int, int]) -> int:
    """Between two signs of life of a site.

    Args:
        asked_ms: what the coordinator asked for at the welcome.
        patiences_ms: of the orders in hand; none means a site without work.
        protocol: what the coordinator speaks.
    """
    if patiences_ms:
        return max(1, min(asked_ms, min(patiences_ms) // BEATS_PER_PATIENCE))
    return IDLE_BEAT_MS if protocol >= IDLE_PACE_SINCE else asked_ms


def lease_ms(patiences_ms: Collection[int]) -> int:
    """How long a site may be silent, given the patiences of the orders that it works on."""
    return min(patiences_ms, default=IDLE_PATIENCE_MS)


def has_part(state: State, site: str) -> bool:
    """Whether a run that goes on names the site, or waits for it."""
    return any(
        site in run.spec.sites or site in run.busy or (run.round is not None and site in run.round.seats)
        for run in state.runs.values()
        if run.phase not in ENDED
    )


@dataclass(frozen=True)
class Door:
    """Lets sites in at a bounded rate. Those it turns away are told when to come, one after the other.

    The queue is in the slots that were handed out, not in connections that wait: a token bucket by
    virtual scheduling (ITU-T I.371, the generic cell rate algorithm) that remembers its promises.

    Attributes:
        free_ms: the next slot that nobody has, monotonic.
        slots: site -> the slot that it was told.
    """

    free_ms: int = 0
    slots: Mapping[str, int] = field(default_factory=dict)


def knock(door: Door, site: str, now_ms: int) -> tuple[Door, int]:
    """A site wants in: the door behind it, and for how long it has to go away, 0 if it is in.

    Who comes back at its slot or after it is let in; who comes back early keeps its slot.
    """
    promised = door.slots.get(site)
    if promised is not None and promised > now_ms:
        return door, promised - now_ms
    slots = {name: slot for name, slot in door.slots.items() if now_ms - slot < SLOT_KEPT_MS}
    if slots.pop(site, None) is not None:
        return replace(door, slots=slots), 0
    slot = max(door.free_ms, now_ms)
    wait_ms = slot - now_ms
    if wait_ms < BURST * SLOT_MS:
        wait_ms = 0
    else:
        slots[site] = slot
    return Door(slot + SLOT_MS, slots), wait_ms
