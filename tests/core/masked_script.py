"""A whole masked consortium by hand: one coordinator's machine, one machine per site, words between them.

Secrets are made-up hexadecimal: nothing here reads them. What a site says is kept and said again, as a
shell would. `mute` holds a site's words on a topic back, `lost` drops everything to and from it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

from core_script import Script

from fedtrain.core import agent, canonical, effects as fx, events as ev, masks
from fedtrain.core.contract import Contract, Rights
from fedtrain.core.driver import Driver
from fedtrain.core.orders import OrderKind, Result
from fedtrain.core.ports import MemoryActor, MemoryJournal
from fedtrain.core.state import MaskStage, Phase

TASK = '{"data":"corpus","name":"tiny","terms":{"privacy":{"masked":{"dropouts_max":-1,"weight_max":0}}}}'
ALLOWS = Contract(("run",), ("tiny",), 2, {"corpus": Rights(execute=("tiny",))})


def secret(*parts: str) -> str:
    """Something in hexadecimal that only depends on its name."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


class KeyedScript(Script):
    """Every site has a key of its own."""

    def message_key(self, site: str) -> str:
        return f"key-{site}"


class Site:
    """One site: its machine, and the words that its shell would make."""

    def __init__(self, name: str, contract: Contract) -> None:
        self.name = name
        self.said: dict[tuple[str, str], str] = {}
        self.burnt: dict[str, str] = {}
        self.reports: list[Result] = []
        self.works = True
        self._actor: MemoryActor[agent.AgentEffect] = MemoryActor()
        self.driver: Driver[agent.AgentState, agent.AgentEvent, agent.AgentEffect] = Driver(
            MemoryJournal(), self._actor, agent.step, agent.AgentState()
        )
        self.tell(agent.AgentBooted, contract=contract)

    @property
    def state(self) -> agent.AgentState:
        return self.driver.state

    def tell(self, kind: type[agent.AgentEvent], **fields: Any) -> list[agent.AgentEffect]:
        self._actor.performed.clear()
        self.driver.handle(kind(at_ms=0, **fields))
        return list(self._actor.performed)

    def stage(self, order: str) -> agent.SeatStage | None:
        seat = self.state.masks.get(order)
        return seat.stage if seat else None

    def word(self, order: str, topic: str, heard: dict[str, str]) -> str:
        """What it says on a topic; once made, the same again."""
        if (order, topic) not in self.said:
            self.said[order, topic] = self._make(order, topic, heard)
        return self.said[order, topic]

    def _make(self, order: str, topic: str, heard: dict[str, str]) -> str:
        seat = self.state.masks[order]
        if topic == "advert":
            own = [secret(kind, self.name, order) for kind in ("mask", "share", "seed")]
            return masks.spelled(masks.Advert(seat.session, self.name, *own))
        proposal = canonical.decode(masks.Proposal, seat.proposal)
        near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, self.name)
        if topic == "boxes":
            boxes = {site: secret("box", self.name, site) for site in near if site in seat.members}
            return masks.spelled(masks.Boxes(seat.session, masks.digest_of(heard["keys"]), boxes))
        if topic == "affirmation":
            return masks.spelled(masks.Survivors(seat.session, seat.survivors))
        reach = {self.name, *near}
        seeds = {site: secret("b", site) for site in seat.survivors if site in reach}
        keys = {site: secret("s", site) for site in set(seat.sharers) - set(seat.survivors) if site in reach}
        return masks.spelled(masks.Opened(seat.session, seeds, keys))


class Consortium:
    """Coordinator and sites, with their words in a queue that `settle` empties."""

    def __init__(self, names: str = "abcde", contract: Contract = ALLOWS, **changes: Any) -> None:
        fields = {"task": TASK, "codec_up": "fixed12s11", "quorum": 3, "minimum": 3, **changes}
        self.script = KeyedScript(names, **fields)
        self.sites = {name: Site(name, contract) for name in names}
        self.mute: set[tuple[str, str]] = set()
        self.lost: set[str] = set()
        self.heard: dict[str, dict[str, str]] = {}
        self.spoken: list[fx.Speak] = []
        self.sums: list[fx.Unmasking] = []
        self._performed: deque[fx.Effect] = deque()
        perform = self.script._actor.perform

        def note(effect: fx.Effect) -> None:
            perform(effect)
            self._performed.append(effect)
            if isinstance(effect, fx.Aggregate) and effect.masks is not None:
                self.sums.append(effect.masks)

        self.script._actor.perform = note  # type: ignore[method-assign]
        self.script.begin()
        self.settle()
        self.script.seed(min(names))
        self.settle()

    @property
    def stage(self) -> MaskStage | None:
        """Of the open round's masks."""
        opened = self.script.run.round
        return opened.masks.stage if opened and opened.masks else None

    @property
    def phase(self) -> Phase:
        return self.script.run.phase

    def settle(self) -> None:
        """Carry out effects and carry words until nothing is left to do."""
        while self._performed:
            effect = self._performed.popleft()
            match effect:
                case fx.Invite(order) if order.site not in self.lost and self.sites[order.site].works:
                    self._act(
                        self.sites[order.site],
                        self.sites[order.site].tell(agent.OrderReceived, order=order, day=0, minute=0),
                    )
                case fx.Speak() if effect.site not in self.lost:
                    self.speak(effect)
                case fx.Acknowledge() if effect.site not in self.lost:
                    site = self.sites[effect.site]
                    fields = {"order": effect.order, "blob": effect.blob, "outcome": effect.outcome}
                    heard = site.tell(agent.UploadAcknowledged, **fields, epoch=1, signed_ms=0, signature="")
                    self._act(site, heard)
                case fx.Cancel() if effect.site not in self.lost:
                    site = self.sites[effect.site]
                    told = site.tell(agent.OrderCancelled, order=effect.order, reason=effect.reason)
                    self._act(site, told)
                case _:
                    pass

    def speak(self, effect: fx.Speak, fault: str = "") -> None:
        """The coordinator's words reach their site."""
        self.spoken.append(effect)
        site = self.sites[effect.site]
        self.heard.setdefault(effect.order, {})[effect.topic] = effect.document
        fields = {"topic": effect.topic, "order": effect.order, "document": effect.document, "fault": fault}
        self._act(site, site.tell(agent.StatementReceived, **fields))

    def _act(self, site: Site, told: list[agent.AgentEffect]) -> None:
        for effect in told:
            match effect:
                case agent.Reply(order, accepted, reasons):
                    kind = ev.ConsentGiven if accepted else ev.ConsentRefused
                    self._say(kind, order=order, **({} if accepted else {"reasons": reasons}))
                case agent.Prepare(order) if order.model is not None:
                    self.finish(site.name, order.id)
                case agent.SayMasked(order, topic) if (site.name, topic) not in self.mute:
                    self.say(site.name, order, topic)
                case agent.MaskUpdate(order, _) if (site.name, "update") not in self.mute:
                    blob = secret("blob", order.id)
                    masked = site.tell(agent.UpdateMasked, order=order.id, digest=blob, size_bytes=40, day=0)
                    self._act(site, masked)
                case agent.Submit(order, result):
                    assert result.weight == 1 and result.norm == 0.0
                    self._store(order.id, result)
                case agent.BurnMasks(order, reason):
                    site.burnt[order] = reason
                case agent.Report(order, result):
                    site.reports.append(result)
                    self._say(ev.WorkFailed, order=order.id, reason=result.failure)
                case _:
                    pass

    def finish(self, name: str, order: str) -> None:
        """The site's trainer is done."""
        if (name, "work") in self.mute:
            return
        if self.sites[name].state.held[order].order.kind is not OrderKind.TRAIN:
            return
        result = Result(order=order, file="update.bin", digest="d" * 64, size_bytes=40, weight=9, norm=2.0)
        self._act(self.sites[name], self.sites[name].tell(agent.ResultTaken, result=result))

    def say(self, name: str, order: str, topic: str, document: str = "") -> None:
        """A site's words reach the coordinator."""
        document = document or self.sites[name].word(order, topic, self.heard.get(order, {}))
        self._say(
            ev.StatementHeard,
            site=name,
            topic=topic,
            order=order,
            document=document,
            signature=secret("signature", name, document),
        )

    def _store(self, order: str, result: Result) -> None:
        self._say(
            ev.UpdateStored,
            order=order,
            blob=result.digest,
            size_bytes=40,
            weight=result.weight,
            steps=5,
            norm=0.0,
            train_loss=None,
            eval_loss=None,
            eval_count=0,
            seconds=0.1,
            signature="",
        )

    def _say(self, kind: type[ev.Event], **fields: Any) -> None:
        self.script.tell(kind, **fields)

    def lose(self, name: str) -> None:
        """The site is gone until it attaches again."""
        self.lost.add(name)
        self.script.lose(name)
        self.settle()

    def back(self, name: str) -> None:
        """The site attaches anew, with what it has in hand."""
        self.lost.discard(name)
        self.script.attach(name, holding=tuple(self.sites[name].state.held))
        self.settle()

    def wait(self, delay_ms: int) -> None:
        self.script.wait(delay_ms)
        self.settle()

    def order(self, name: str) -> str:
        return self.script.order(name).id
