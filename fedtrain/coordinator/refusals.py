"""What is answered to a site that uploads what nobody asked it for, and what the journal says of it."""

from __future__ import annotations

import logging

from fedtrain.coordinator.hub import Hub
from fedtrain.core import events as ev
from fedtrain.core.allowance import REFUSALS, Allowance, spend
from fedtrain.core.cohort import expected_sites
from fedtrain.core.orders import parse_order_id
from fedtrain.core.state import RunState
from fedtrain.core.uploads import Admission, Answer
from fedtrain.errors import Equivocation, FedtrainError, NotFoundError, StaleRound, UnknownSite

_log = logging.getLogger(__name__)


class Refusals:
    """Turns the core's no into an error, and journals it as far as the site's allowance goes."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._allowances: dict[str, Allowance] = {}

    def refuse(self, site: str, order: str, digest: str, answer: Answer) -> FedtrainError:
        """The error to raise. What is journaled changes no seat: a second story comes after the receipt of
        the first, and anything else may speak of another site's order."""
        second_story = answer.admission is Admission.EQUIVOCATION
        error: FedtrainError = (
            Equivocation(answer.reason) if second_story else self._not_awaited(site, order, answer.reason)
        )
        before = self._allowances.get(site, Allowance())
        self._allowances[site], written = spend(before, REFUSALS, self._hub.clock.monotonic_ms())
        if written:
            more = f" ({before.skipped} more were not written down before)" if before.skipped else ""
            _log.warning("%s: refused: %s%s", site, error, more)
            at_ms = self._hub.clock.now_ms()
            reason = f"{error}{more}"
            self._hub.submit(
                ev.UpdateRejected(at_ms, order, digest, reason)
                if second_story
                else ev.UploadRefused(at_ms, site, order, digest, reason)
            )
        return error

    def _not_awaited(self, site: str, order: str, reason: str) -> FedtrainError:
        """Whether what the site speaks of was there, never was, or is none of its business."""
        name, index, _, owner = parse_order_id(order)
        if owner != site:
            return UnknownSite(reason)
        run = self._hub.state.runs.get(name)
        if run is None:
            return NotFoundError(f"there is no run {name}")
        if site not in expected_sites(self._hub.state, run.spec):
            return UnknownSite(f"{site} has no part in run {name}")
        if index > _newest_round(run):
            return NotFoundError(f"run {name} has had no round {index} yet")
        return StaleRound(reason)


def _newest_round(run: RunState) -> int:
    """Index of the newest round that was opened, -1 before the first."""
    indices = [record.index for record in run.records[-1:]]
    return max(indices + ([run.round.index] if run.round else []), default=-1)
