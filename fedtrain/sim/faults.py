"""How often what goes wrong in a world: the rates that a seed draws, kind by kind, none in some worlds."""

from __future__ import annotations

import random
from dataclasses import dataclass

NEVER_MS = 1 << 40


@dataclass(frozen=True)
class FaultRates:
    """Gaps are mean milliseconds between two of a kind; the others are probabilities.

    Attributes:
        lost, doubled, slow: per message.
        trainer_dies, trainer_fails, trainer_hangs, not_finite: per job.
        aggregation_fails: per aggregation.
        journal_full, sync_fails: per write of a journal.
        disk_full: per offer, chunk and commit at a coordinator.
        flip_gap_ms: a bit of an update at a coordinator, or of a model at a site.
        journal_flip_gap_ms: a bit of a coordinator's journal.
        lie_gap_ms: between two lies of a lying site.
    """

    lost: float = 0.0
    doubled: float = 0.0
    slow: float = 0.0
    partition_gap_ms: int = NEVER_MS
    leave_gap_ms: int = NEVER_MS
    trainer_dies: float = 0.0
    trainer_fails: float = 0.0
    trainer_hangs: float = 0.0
    not_finite: float = 0.0
    aggregation_fails: float = 0.0
    coordinator_gap_ms: int = NEVER_MS
    site_gap_ms: int = NEVER_MS
    stop_gap_ms: int = NEVER_MS
    journal_full: float = 0.0
    sync_fails: float = 0.0
    disk_full: float = 0.0
    power_gap_ms: int = NEVER_MS
    flip_gap_ms: int = NEVER_MS
    journal_flip_gap_ms: int = NEVER_MS
    jump_gap_ms: int = NEVER_MS
    lie_gap_ms: int = NEVER_MS


def draw_rates(chance: random.Random) -> FaultRates:
    """A third of the worlds have a good network, a third good machines, most good disks and clocks.

    So faults also come one kind at a time, and a few worlds have none at all.
    """
    network = chance.choice((0.0, 1.0, 3.0))
    machines = chance.choice((0.0, 1.0, 2.0))
    disks = chance.choice((0.0, 0.0, 0.0, 1.0, 3.0))
    clocks = chance.choice((0.0, 0.0, 1.0))
    return FaultRates(
        lost=0.02 * network,
        doubled=0.02 * network,
        slow=0.03 * network,
        partition_gap_ms=_gap_ms(45_000, network),
        leave_gap_ms=_gap_ms(90_000, network),
        trainer_dies=0.05 * machines,
        trainer_fails=0.05 * machines,
        trainer_hangs=0.03 * machines,
        not_finite=0.03 * machines,
        aggregation_fails=0.05 * machines,
        coordinator_gap_ms=_gap_ms(25_000, machines),
        site_gap_ms=_gap_ms(60_000, machines),
        stop_gap_ms=_gap_ms(150_000, machines),
        journal_full=0.004 * disks,
        sync_fails=0.004 * disks,
        disk_full=0.03 * disks,
        power_gap_ms=_gap_ms(120_000, disks),
        flip_gap_ms=_gap_ms(20_000, disks),
        journal_flip_gap_ms=_gap_ms(250_000, disks),
        jump_gap_ms=_gap_ms(60_000, clocks),
        lie_gap_ms=2_500,
    )


def _gap_ms(gap_ms: int, how_much: float) -> int:
    return int(gap_ms / how_much) if how_much else NEVER_MS
