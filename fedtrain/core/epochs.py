"""A coordinator's lives in order: of two that speak, the one of the higher epoch is obeyed.

An ordinary start raises the epoch by one; the lock on the state folder keeps two of them apart. A
take-over starts from a *copy* of the folder, so the old coordinator may still run, or come back and
start as often as it likes: the step is so large that it never catches up, and has some chance in it
so that two take-overs from one copy do not meet in the same epoch.
"""

from __future__ import annotations

TAKEOVER_STEP = 1 << 20


def next_epoch(epoch: int, chance: int | None = None) -> int:
    """The epoch of the next life.

    Args:
        epoch: of the last one, as the folder has it.
        chance: for a take-over, any non-negative random number; None for an ordinary start.
    """
    if chance is None:
        return epoch + 1
    return (epoch // TAKEOVER_STEP + 1) * TAKEOVER_STEP + chance % (TAKEOVER_STEP // 2)
