"""A member's memory of epochs: which coordinator is obeyed, with the evidence to show to another.

A site keeps it in the agent's journal, a person's folder in a file: a restart forgets nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from fedtrain.core.agent import AgentEvent, AgentState, EpochSeen
from fedtrain.errors import BadSignature, StaleEpoch
from fedtrain.wire.values import EpochProof

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """What `Epochs` needs of its agent."""

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""


class Epochs:
    """The highest epoch that a member has seen. Implements `EpochBook`.

    Args:
        owner: the agent, whose journal remembers, or what stands in for it.
        check: of (epoch, time, signature); raises `BadSignature`, see `trust.statements.epoch_check`.
    """

    def __init__(self, owner: Owner, check: Callable[[int, int, str], None]) -> None:
        self._owner = owner
        self._check = check

    def epoch_shown(self) -> EpochProof | None:
        """The evidence for the highest epoch; None before there is any."""
        state = self._owner.state
        if not state.epoch_signature:
            return None
        return EpochProof(state.epoch, state.epoch_signed_ms, state.epoch_signature)

    def epoch_seen(self, proof: EpochProof | None) -> None:
        """Hold who answers against the highest epoch; keep a higher one for good.

        Raises `StaleEpoch` for a lower one, for one that the coordinator never signed, and for none
        at all once a signed one was seen: whoever says less than before is not the same.
        """
        state = self._owner.state
        if proof is None:
            if state.epoch_signature:
                raise StaleEpoch(
                    f"what answers shows no epoch, and epoch {state.epoch} was seen already: it is an older "
                    "coordinator, so it is not obeyed; check the address, or its operator has to stop it"
                )
            return
        self._hold(proof.epoch)
        if proof.epoch > state.epoch or not state.epoch_signature:
            self._verify(proof)
            self._owner.submit(
                EpochSeen(time.time_ns() // 1_000_000, proof.epoch, proof.at_ms, proof.signature)
            )

    def admit(self, epoch: int) -> None:
        """The epoch of a message in a session; a coordinator of protocol 1.0 shows no other."""
        self._hold(epoch)
        if epoch > self._owner.state.epoch:
            self._owner.submit(EpochSeen(_now_ms(), epoch))

    def _hold(self, epoch: int) -> None:
        highest = self._owner.state.epoch
        if epoch < highest:
            raise StaleEpoch(
                f"this coordinator is in epoch {epoch}, and epoch {highest} was seen already: it is an old "
                "one or was restored from an old copy, so it is not obeyed; check the address, or its "
                "operator has to stop it"
            )

    def _verify(self, proof: EpochProof) -> None:
        try:
            self._check(proof.epoch, proof.at_ms, proof.signature)
        except BadSignature as error:
            _log.error("epoch %d is shown without the coordinator's signature", proof.epoch)
            raise StaleEpoch(
                f"what answers shows epoch {proof.epoch}, which this consortium's coordinator did not sign, "
                "so it is not obeyed; check the address, and join again if the consortium was set up anew"
            ) from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
