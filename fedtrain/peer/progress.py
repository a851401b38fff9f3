"""How the orders in hand are doing, as heartbeats tell it and as the site's log shows it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from fedtrain.core.orders import Progress
from fedtrain.storage.mailbox import Mailbox
from fedtrain.wire.status import printable

_log = logging.getLogger("fedtrain.peer")

LOG_EVERY_MS = 10_000
PHASE_CHARACTERS_MAX = 64

HELD_PHASE = "held for release at the site"
MASKS_PHASE = "waits for its masks"
RECKONING_PHASE = "reckons what it costs in privacy"


class ProgressBook:
    """Turns the trainers' own counters into the agent's, which never fall.

    A trainer that was restarted counts from the start again, and so does an agent; the coordinator
    believes in progress only when a counter grows.

    Args:
        counter: where to begin: above all that an earlier agent said, so the wall clock in ms.
    """

    def __init__(self, mailbox: Mailbox, counter: int) -> None:
        self._mailbox = mailbox
        self._counter = counter
        self._seen: dict[str, tuple[Progress, int]] = {}
        self._logged_ms = 0

    @property
    def counter(self) -> int:
        """Grows with every sign of progress on any order."""
        return self._counter

    def read(self, working: Collection[str], fetched_bytes: int, now_ms: int) -> tuple[Progress, ...]:
        """Progress of the orders that are worked on.

        An order that waits for a trainer moves with the order that the trainer is busy with: being
        queued behind another run's work is no reason to give a site up.

        Args:
            working: order ids.
            fetched_bytes: of models so far; before its trainer starts, an order moves by these.
            now_ms: monotonic.
        """
        reported = self._mailbox.progress()
        ordered = sorted(working, key=lambda order: (order not in reported, order))
        seen: dict[str, tuple[Progress, int]] = {}
        begun = self._counter
        for order in ordered:
            told = reported.get(order)
            current = told if told is not None else Progress(order, fetched_bytes, phase="prepare")
            before = self._seen.get(order)
            others_moved = told is None and self._counter > begun
            if before is None or before[0] != current or others_moved:
                self._counter += 1
                seen[order] = (current, self._counter)
            else:
                seen[order] = before
        self._seen = seen
        self._log([reported[order] for order in seen if order in reported], now_ms)
        return tuple(_fit(current, counter) for current, counter in seen.values())

    def waiting(self, held: Collection[str], phase: str = HELD_PHASE) -> tuple[Progress, ...]:
        """Orders that wait for a person of the site, for other sites, or for an accountant whose time is
        limited: alive, for as long as the agent is.

        So the round waits for them until its deadline, and not just for its patience.
        """
        if held:
            self._counter += 1
        return tuple(Progress(order, self._counter, phase=phase) for order in sorted(held))

    def _log(self, reported: Sequence[Progress], now_ms: int) -> None:
        if not reported or now_ms - self._logged_ms < LOG_EVERY_MS:
            return
        self._logged_ms = now_ms
        for current in reported:
            loss = "" if current.loss is None else f", loss {current.loss:.4f}"
            _log.info(
                "%s: %s, step %d of %d%s, %.0f tokens/s",
                current.order,
                printable(current.phase[:PHASE_CHARACTERS_MAX]),
                current.steps,
                current.steps_total,
                loss,
                current.tokens_per_s,
            )


def _fit(progress: Progress, counter: int) -> Progress:
    """Within the wire's bounds, whatever the trainer wrote."""
    return replace(
        progress,
        counter=counter,
        tokens_per_s=max(0.0, progress.tokens_per_s),
        phase=printable(progress.phase[:PHASE_CHARACTERS_MAX])[:PHASE_CHARACTERS_MAX],
    )
