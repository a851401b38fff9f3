"""Who serves the mailbox: the agent's own trainer process, or trainers that the site starts itself.

A trainer that dies gives its order back and is started again; one that dies three times over the
same order does not get it a fourth time. A claim whose holder's heartbeat stands still is given
back too, whoever the holder is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fedtrain.errors import FedtrainError
from fedtrain.peer.jobs import in_thread
from fedtrain.peer.trainer_process import TrainerProcess
from fedtrain.storage.mailbox import ClaimWatch, Mailbox

_log = logging.getLogger("fedtrain.peer")

DEATHS_MAX = 3
LEASE_MS = 30_000
"""A trainer beats once a second; thirty missed beats are no slow disk any more."""

_SPOKEN = "fedtrain trainer: "
_BUG = "fedtrain trainer: a bug"


class Trainers:
    """Keeps a trainer at work while orders wait.

    Args:
        command: starts the agent's own trainer; empty if the site starts trainers itself.
        folder: the trainer's working directory.
        log_path: its output.
        abandon: called with (order, reason) when an order has cost too many trainers.
        freed: called with an order whose claim was given back.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        command: Sequence[str],
        folder: Path,
        log_path: Path,
        abandon: Callable[[str, str], None],
        freed: Callable[[str], None],
    ) -> None:
        self._mailbox = mailbox
        self._process = TrainerProcess(command, folder, log_path, self._bury) if command else None
        self._abandon = abandon
        self._freed = freed
        self._deaths: dict[str, int] = {}
        self._claims = ClaimWatch(LEASE_MS)

    def want(self, order_id: str) -> None:
        """An order lies in the mailbox: somebody has to take it."""
        if order_id in self._deaths:
            return
        self._deaths[order_id] = 0
        if self._process is not None:
            self._process.ensure()
        else:
            _log.info("%s waits in the mailbox for a trainer of this site (launch: external)", order_id)

    def forget(self, order_id: str) -> None:
        """The order is answered or over."""
        self._deaths.pop(order_id, None)

    async def give_back_claims(self) -> None:
        """At the agent's start: a trainer of its own that held a claim has ended with the last agent."""
        if self._process is not None:
            for order_id in await in_thread(self._mailbox.claims):
                await in_thread(self._mailbox.expire, order_id)

    async def look(self, now_ms: int) -> None:
        """Give claims back whose holder shows no sign of life. `now_ms` is monotonic."""
        claims = await in_thread(self._mailbox.claims)
        for order_id in self._claims.observe(now_ms, claims):
            trainer = claims[order_id][0]
            _log.warning(
                "%s: trainer %s is silent for %d s", order_id, trainer or "unknown", LEASE_MS // 1000
            )
            if self._process is not None and self._is_own(trainer, self._process.pid):
                self._process.kill()
            else:
                await in_thread(self._mailbox.expire, order_id)
                self._freed(order_id)

    async def stop(self) -> None:
        """End the agent's own trainer."""
        if self._process is not None:
            await self._process.stop()

    async def _bury(self, pid: int, how: str) -> bool:
        """A trainer died: free its claims and count; True if another one is needed."""
        assert self._process is not None, "only an own process is buried"
        lines = self._process.last_lines()
        _log.warning("the trainer ended by itself: %s; its last lines: %s", how, " | ".join(lines))
        try:
            claims = await in_thread(self._mailbox.claims)
            own = [order for order, (trainer, _) in claims.items() if self._is_own(trainer, pid)]
            for order in own:
                await in_thread(self._mailbox.expire, order)
        except FedtrainError as error:
            _log.error("%s", error)
            own = []
        for order in [order for order in own if order in self._deaths] or list(self._deaths):
            self._count_death(order, how, lines)
        for order in own:
            self._freed(order)
        return bool(self._deaths)

    def _count_death(self, order: str, how: str, lines: Sequence[str]) -> None:
        self._deaths[order] += 1
        if self._deaths[order] < DEATHS_MAX:
            return
        del self._deaths[order]
        # The log may quote data, and a reason leaves the site: only our own sentences go along.
        spoken = [line for line in lines if line.startswith(_SPOKEN) and not line.startswith(_BUG)]
        said = (
            f", saying: {spoken[-1].removeprefix(_SPOKEN)}" if spoken else "; its log at the site tells more"
        )
        self._abandon(order, f"the trainer died {DEATHS_MAX} times over this order, last by {how}{said}")

    @staticmethod
    def _is_own(trainer: str, pid: int) -> bool:
        """A trainer's id ends in its process id."""
        return pid != 0 and trainer.endswith(f"-{pid}")
