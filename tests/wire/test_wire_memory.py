"""A member's memory of epochs: kept in its journal, raised by evidence only, never lowered."""

from __future__ import annotations

import pytest

from fedtrain.core import agent as core
from fedtrain.core.agent import AgentState
from fedtrain.errors import StaleEpoch, UnreachableError
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey
from fedtrain.wire.memory import Epochs
from fedtrain.wire.values import EpochProof

KEY = MessageKey.generate()


class Owner:
    """An agent's state machine without the agent."""

    def __init__(self) -> None:
        self.state = AgentState()
        self.told: list[core.AgentEvent] = []

    def submit(self, *events: core.AgentEvent) -> None:
        for event in events:
            self.told.append(event)
            self.state, _ = core.step(self.state, event)


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def epochs(owner: Owner) -> Epochs:
    return Epochs(owner, statements.epoch_check("library", KEY.public))


def signed(epoch: int, consortium: str = "library", key: MessageKey = KEY) -> EpochProof:
    statement = statements.Epoch(consortium, epoch, 7)
    return EpochProof(epoch, 7, statements.sign(statement, key).hex())


def test_a_signed_epoch_is_kept_and_shown(owner: Owner, epochs: Epochs) -> None:
    """What was seen is what is shown to others, and is journaled once."""
    assert epochs.epoch_shown() is None
    for _ in range(3):
        epochs.epoch_seen(signed(4))
    assert epochs.epoch_shown() == signed(4) and len(owner.told) == 1
    epochs.epoch_seen(signed(9))
    assert epochs.epoch_shown() == signed(9) and len(owner.told) == 2


def test_a_lower_epoch_is_not_obeyed(owner: Owner, epochs: Epochs) -> None:
    """On a call as in a session; what is on its way waits for the coordinator that is obeyed."""
    epochs.epoch_seen(signed(4))
    for refused in (lambda: epochs.epoch_seen(signed(3)), lambda: epochs.admit(3)):
        with pytest.raises(StaleEpoch, match="epoch 3, and epoch 4 was seen") as caught:
            refused()
        assert isinstance(caught.value, UnreachableError), "uploads are kept and tried again"
    assert owner.state.epoch == 4 and len(owner.told) == 1


@pytest.mark.parametrize(
    "proof",
    [
        EpochProof(9, 7, "00" * 64),
        EpochProof(9, 8, signed(9).signature),
        EpochProof(9, 7, signed(8).signature),
        signed(9, "other"),
        signed(9, key=MessageKey.generate()),
    ],
)
def test_an_epoch_that_the_coordinator_did_not_sign_is_not_believed(
    owner: Owner, epochs: Epochs, proof: EpochProof
) -> None:
    """Else whoever answers once could cut the site off from its coordinator for good."""
    with pytest.raises(StaleEpoch, match="did not sign"):
        epochs.epoch_seen(proof)
    assert owner.told == [] and epochs.epoch_shown() is None


def test_an_answer_without_an_epoch_is_good_until_a_signed_one_was_seen(epochs: Epochs) -> None:
    """A coordinator of protocol 1.0 says none; one that has said it does not stop."""
    epochs.epoch_seen(None)
    epochs.admit(3)
    epochs.epoch_seen(None)
    assert epochs.epoch_shown() is None, "what was only said is no evidence"
    epochs.epoch_seen(signed(3))
    assert epochs.epoch_shown() == signed(3)
    with pytest.raises(StaleEpoch, match="shows no epoch"):
        epochs.epoch_seen(None)
