"""I5 at a site, by the auditor's own account: nothing is worked on or leaves against its people's word."""

from __future__ import annotations

from fedtrain.core import agent
from fedtrain.core.contract import Approval, Contract
from fedtrain.sim.violation import demand


class Permission:
    """Of one site: its contract, what its people have said, and what waits for them.

    Attributes:
        contract: the one that it acts by.
    """

    def __init__(self, site: str) -> None:
        self._site = site
        self.contract = Contract()
        self._said: dict[str, bool] = {}
        self._held_back: set[str] = set()
        self._looked_at: set[str] = set()

    def happened(self, event: agent.AgentEvent) -> None:
        """An event's own meaning."""
        match event:
            case agent.AgentBooted():
                self.contract = event.contract
            case agent.RunDecided():
                self._said[event.run] = event.verdict.word == "approved"
            case agent.ResultTaken() if self.contract.approval is Approval.HOLD and event.result.file:
                if event.result.order not in self._looked_at:  # else it is only told again
                    self._held_back.add(event.result.order)
            case agent.UpdateReleased():
                self._held_back.discard(event.order)
                self._looked_at.add(event.order)

    def decided(self, effects: tuple[agent.AgentEffect, ...]) -> None:
        """What the machine wants done about it."""
        for effect in effects:
            match effect:
                case agent.Prepare():
                    self._looked_at.discard(effect.order.id)
                    self._allowed(effect.order.run, f"works on {effect.order.id}")
                    manual = self.contract.approval is Approval.MANUAL
                    yes = self._said.get(effect.order.run, False)
                    demand(yes or not manual, "I5", f"{self._site} works on {effect.order.id} without a yes")
                case agent.Submit():
                    name = effect.order.id
                    self._allowed(effect.order.run, f"sends its update for {name}")
                    looked = name not in self._held_back
                    demand(looked, "I5", f"{self._site} sends {name}, at which nobody has looked")
                case agent.Discard():
                    self._held_back.discard(effect.order)

    def speaks(self, order: str) -> None:
        """It says something in a masked session."""
        self._allowed(order.split(".", 1)[0], f"speaks in the masked session of {order}")

    def _allowed(self, run: str, does: str) -> None:
        demand(self._said.get(run, True), "I5", f"{self._site} {does}, and its people have said no")
