"""A site's own machine in a scenario: what its agent hears, what it does, what it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scenario_coordinator import Coordinator, ScenarioError

from fedtrain.core import agent
from fedtrain.core.contract import Approval, Contract, Rights, Verdict, Word
from fedtrain.core.driver import Driver, replay
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.ports import MemoryActor, MemoryJournal

ALLOWS = Contract(("run-*",), ("tiny",), 1, {"corpus": Rights(execute=("tiny",))})


class Agent:
    """One site's agent, life after life over one journal. Orders and receipts are the coordinator's."""

    def __init__(self, site: str, coordinator: Coordinator) -> None:
        self._site = site
        self._coordinator = coordinator
        self._journal = MemoryJournal()
        self._actor: MemoryActor[agent.AgentEffect] = MemoryActor()
        self._driver: Driver[agent.AgentState, agent.AgentEvent, agent.AgentEffect] | None = None

    @property
    def _state(self) -> agent.AgentState:
        if self._driver is None:
            raise ScenarioError(f"the agent of {self._site} is down: boot it first")
        return self._driver.state

    # -- the process ------------------------------------------------------------------------------

    def do_boot(self, runs: str = "run-*", cohort_min: str = "1", approval: str = "automatic") -> list[str]:
        """The agent starts, with the contract that lies there today."""
        state = replay(self._journal, agent.step, agent.AgentState(), agent.AGENT_EVENTS)
        if self._driver is not None and self._driver.state != state:
            raise AssertionError(f"I8: the journal of {self._site} does not replay to the live state")
        self._driver = Driver(self._journal, self._actor, agent.step, state)
        contract = replace(ALLOWS, runs=(runs,), cohort_min=int(cohort_min), approval=Approval(approval))
        return self._tell(agent.AgentBooted, contract=contract)

    def do_crash(self) -> list[str]:
        """The process is killed."""
        self.do_boot()
        self._driver = None
        return [f"the agent of {self._site} is down"]

    # -- from the coordinator -----------------------------------------------------------------------

    def do_sees(self, epoch: str) -> list[str]:
        """A coordinator shows its epoch; one that is lower than another before is not obeyed."""
        if int(epoch) < self._state.epoch:
            return [f"refused: epoch {epoch} is behind {self._state.epoch}"]
        return self._tell(agent.EpochSeen, epoch=int(epoch)) or [f"follows epoch {self._state.epoch}"]

    def do_receives(self, order: str) -> list[str]:
        """An invitation comes."""
        return self._tell(agent.OrderReceived, order=self._order(order))

    def do_cancelled(self, order: str, reason: str = "it is over") -> list[str]:
        """The coordinator does not want the order any more."""
        return self._tell(agent.OrderCancelled, order=order, reason=reason)

    def do_receipt(self, order: str) -> list[str]:
        """The coordinator's receipt comes, as its state has it."""
        run = self._coordinator.state.runs.get(order.split(".", 1)[0])
        kept = run.receipts.get(self._site) if run else None
        if kept is None or kept.order != order:
            raise ScenarioError(f"the coordinator has no receipt for {order}")
        receipt = {"blob": kept.blob, "outcome": kept.outcome, "epoch": kept.epoch, "signed_ms": kept.at_ms}
        return self._tell(agent.UploadAcknowledged, order=order, signature="s", **receipt)

    def do_refused(self, order: str, reason: str = "the round is over") -> list[str]:
        """The coordinator will not take the upload."""
        return self._tell(agent.UploadRefused, order=order, reason=reason)

    def do_published(self, run: str, index: str) -> list[str]:
        """The version of this round is out."""
        return self._tell(agent.RoundPublished, run=run, round=int(index))

    # -- from the site's people ----------------------------------------------------------------------

    def do_says(self, run: str, word: str, reason: str = "we talked about it") -> list[str]:
        """A person approves, denies or withdraws: approved, denied, withdrawn."""
        return self._tell(agent.RunDecided, run=run, verdict=Verdict(Word(word), reason, "ada"))

    def do_releases(self, order: str) -> list[str]:
        """A person has looked at a held update and lets it go."""
        return self._tell(agent.UpdateReleased, order=order, by="ada", day=1)

    def do_withholds(self, order: str, reason: str = "too much of one patient") -> list[str]:
        """A person has looked at a held update, and it stays."""
        return self._tell(agent.UpdateWithheld, order=order, by="ada", reason=reason)

    # -- from the trainer ---------------------------------------------------------------------------

    def do_result(self, order: str, weight: str = "1", failure: str = "", loss: str = "") -> list[str]:
        """The trainer is done: an update, an evaluation's loss, or a failure."""
        if failure:
            result = Result(order, failure=failure)
        elif loss:
            result = Result(order, eval_loss=float(loss), eval_count=10)
        else:
            seeds = self._order(order).kind is OrderKind.SEED
            told: dict[str, Any] = {
                "file": "update.bin",
                "digest": f"blob-{order}",
                "size_bytes": 40,
                "norm": 1.0,
            }
            result = Result(order, weight=0 if seeds else int(weight), **told)
        return self._tell(agent.ResultTaken, result=result)

    def do_abandons(self, order: str, reason: str = "the trainer died 3 times") -> list[str]:
        """The agent gives up on its trainer."""
        return self._tell(agent.WorkAbandoned, order=order, reason=reason)

    def do_delivered(self, order: str) -> list[str]:
        """An answer without a file has reached the coordinator."""
        return self._tell(agent.AnswerDelivered, order=order)

    # -- how it is told -------------------------------------------------------------------------------

    def _order(self, name: str) -> Order:
        if name not in self._coordinator.orders:
            raise ScenarioError(f"nobody handed out {name}")
        return self._coordinator.orders[name]

    def _tell(self, kind: type[agent.AgentEvent], **told: Any) -> list[str]:
        """One event through the driver; what was done about it, and what is held if that has changed."""
        before = _held(self._state)
        self._actor.performed.clear()
        assert self._driver is not None, "`_state` has looked"
        self._driver.handle(kind(at_ms=self._coordinator.now_ms, **told))
        lines = [_effect(effect) for effect in self._actor.performed]
        after = _held(self._state)
        return lines if before == after else [*lines, f"{self._site} holds {after}"]


def _held(state: agent.AgentState) -> str:
    return ", ".join(f"{name} ({held.stage})" for name, held in state.held.items()) or "nothing"


def _effect(effect: agent.AgentEffect) -> str:
    """What an agent does, as a line."""
    match effect:
        case agent.Reply():
            why = f": {'; '.join(effect.reasons)}" if effect.reasons else ""
            return f"{'accept' if effect.accepted else 'refuse'} {effect.order}{why}"
        case agent.Prepare():
            return f"prepare {effect.order.id}"
        case agent.Submit():
            return f"upload {effect.result.digest} for {effect.order.id}"
        case agent.Report():
            said = effect.result.failure or f"loss {effect.result.eval_loss}"
            return f"report {effect.order.id}: {said}"
        case agent.Shelve():
            return f"shelve {effect.order}"
        case agent.Discard():
            return f"discard {effect.order}"
        case agent.Withdraw():
            return f"withdraw from {effect.run}: {effect.reason}"
        case agent.Reattach():
            return f"attach anew: {effect.reason}"
    raise AssertionError(effect)
