"""An honest site without a network: its real machine and mask seat, spoken to by a coordinator that lies.

No crash, no clock: what the coordinator says is heard at once, and every effect is carried out at once. All
that would leave the site goes to the judge.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fedtrain.core import agent, masks, messages as msg
from fedtrain.core.contract import Contract
from fedtrain.core.orders import Order, Result
from fedtrain.sim.chance import Chance
from fedtrain.sim.judge import Judge
from fedtrain.sim.keys import Notary
from fedtrain.sim.numbers import digest_of, drawn
from fedtrain.sim.seats import Seats
from fedtrain.sim.trainer import Finished
from fedtrain.sim.veils import levels_of

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

NUM_ELEMENTS = 4
_NEVER_FAILS = SimpleNamespace(rates=SimpleNamespace(sync_fails=0.0))


class Mark:
    """One honest site, as its seats see it, and as the coordinator does.

    Attributes:
        heard: what it has said in masked sessions, (topic, order) -> the newest statement.
        uploads: order -> digest of what it has delivered.
    """

    def __init__(self, name: str, contract: Contract, notary: Notary, judge: Judge, chance: Chance) -> None:
        self.name, self.notary, self.auditor = name, notary, judge
        self.state = agent.AgentState()
        self.now_ms = 0
        self.moment = SimpleNamespace(day=1)
        self.fuse = SimpleNamespace(reach=lambda place: None)
        self.scene = SimpleNamespace(chance=chance, plan=_NEVER_FAILS, strikes=lambda *_: None)
        self.trainer = SimpleNamespace(results={})
        self.outbox = SimpleNamespace(lost=lambda order: None)
        self.heard: dict[tuple[str, str], msg.Statement] = {}
        self.uploads: dict[str, str] = {}
        self.seats = Seats(cast("Site", self))
        self.submit(agent.AgentBooted(0, contract))

    @property
    def held(self) -> dict[str, agent.Held]:
        """Orders in hand."""
        return dict(self.state.held)

    def submit(self, event: agent.AgentEvent) -> None:
        """Step and act."""
        self.state, effects = agent.step(self.state, event)
        for effect in effects:
            self._perform(effect)

    def invite(self, order: Order) -> None:
        """An order comes."""
        self.submit(agent.OrderReceived(0, order, 1, 1))

    def say(self, message: Any) -> None:
        """A statement in a masked session; the judge has heard it already."""
        self.heard[message.topic, message.order] = message

    def _perform(self, effect: agent.AgentEffect) -> None:
        match effect:
            case agent.Prepare():
                self._train(effect.order)
            case agent.Submit():
                self._deliver(effect.order, effect.result)
            case agent.Report():
                if effect.order.id in self.held:
                    self.submit(agent.AnswerDelivered(0, effect.order.id))
            case agent.SayMasked():
                self.seats.say(effect.order, effect.topic)
            case agent.MaskUpdate():
                self.seats.mask(effect.order, effect.result)
            case agent.BurnMasks():
                self.seats.burn(effect.order)
            case agent.Discard():
                self.trainer.results.pop(effect.order, None)
                self.seats.discard(effect.order)

    def _train(self, order: Order) -> None:
        """The same work has the same result: what two sums of one round would differ by."""
        values = drawn(NUM_ELEMENTS, order.run, order.round, self.name)
        summable = masks.level_bits(order.codec) is not None
        payload = levels_of(order, values, 1).astype("<i4").tobytes() if summable else values.tobytes()
        result = Result(order.id, "", "update", digest_of(payload), len(payload), 1, order.steps, 1.0, 0.0)
        self.trainer.results[order.id] = Finished(result, payload)
        self.submit(agent.ResultTaken(0, result, 1))

    def _deliver(self, order: Order, result: Result) -> None:
        """The file leaves; what leaves is named by the digest that the machine asks for."""
        self.uploads[order.id] = result.digest
        self.auditor.uploaded(self.name, order, result.digest, self.seats.updates.get(order.id, b""))
