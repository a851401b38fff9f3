"""An honest run of a coordinator and two sites, through the real core, in real journals with real keys.

There are no processes and no network: the sites do at once what they are asked, but for one order,
which is answered a round too late.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.evidence import Evidence, gather
from fedtrain import coordinator
from fedtrain.core import agent, canonical, effects as fx, events as ev, transitions
from fedtrain.core.driver import Driver, entry_of, replay
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import State
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.storage.chain import SignedHead, head_message
from fedtrain.storage.journal import Journal
from fedtrain.trust import statements
from fedtrain.trust.folders import load_coordinator
from fedtrain.trust.keys import MessageKey

RUN = "scripted"
SITES = ("east", "west")
ROUNDS = 4
LAYOUT = Layout((Entry("w", (4,)),))
LATE = f"{RUN}.2.1.west"
"""Answered only when the third round is open."""

SPEC = RunSpec(
    run=RUN,
    seed=1,
    task="{}",
    sites=SITES,
    minimum=1,
    rounds=ROUNDS,
    steps=1,
    quorum=1,
    quorum_share=0.1,
    deadline_ms=1_000,
    patience_ms=1_000,
    heartbeat_ms=100,
    late=LatePolicy.NEXT_ROUND,
    outer="average",
    outer_params={},
    outer_warmup_rounds=0,
    codec_up="float32",
    codec_down="float32",
    aggregator="mean",
    norm_max=None,
    evaluate_every=0,
)


class Script:
    """The honest run: a coordinator without network, sites that do at once what they are asked."""

    def __init__(self, folder: Path, late: LatePolicy = LatePolicy.NEXT_ROUND) -> None:
        self.home, self.sites = folder / "home", {name: folder / name for name in SITES}
        coordinator.init(self.home, "test", "127.0.0.1:1")
        self.keys = load_coordinator(self.home / "state")
        self.now_ms = 1_000
        self.todo: list[fx.Effect] = []
        self.message_keys = {name: MessageKey.generate() for name in SITES}
        self.journals = {name: self._site_journal(name) for name in SITES}
        self.journal = Journal.open(self.home / "state" / "journal.db")
        state = replay(self.journal, transitions.step, State(), ev.EVENTS)
        self.driver: Driver[State, ev.Event, fx.Effect] = Driver(self.journal, self, transitions.step, state)
        self._run(dataclasses.replace(SPEC, late=late))
        for journal in (self.journal, *self.journals.values()):
            journal.close()

    def perform(self, effect: fx.Effect) -> None:
        """Keep it for later, in order."""
        self.todo.append(effect)

    def _site_journal(self, name: str) -> Journal:
        state = self.sites[name] / "state"
        (state / "models" / RUN).mkdir(parents=True)
        (state / "coordinator.pub").write_text(self.keys.message_key.public + "\n")
        return Journal.open(state / "journal.db")

    def _tell(self, kind: type[ev.Event], *values: Any) -> None:
        self.now_ms += 10
        self.driver.handle(kind(self.now_ms, *values))

    def _note(self, site: str, kind: type[agent.AgentEvent], *values: Any) -> None:
        self.journals[site].append([entry_of(kind(self.now_ms, *values))])

    def _run(self, spec: RunSpec) -> None:
        self._tell(ev.Booted, 1)
        for name in SITES:
            key = self.message_keys[name].public
            self._tell(ev.MemberEnrolled, name, "site", "invite", "key", "certificate", key)
            self._tell(ev.SiteAttached, name, "session", "0", ())
            self._note(name, agent.EpochSeen, 1)
        self._tell(ev.RunSubmitted, spec, "operator")
        waiting: list[Order] = []
        while self.todo:
            effect = self.todo.pop(0)
            match effect:
                case fx.Invite(order):
                    self._note(order.site, agent.OrderReceived, order)
                    self._tell(ev.ConsentGiven, order.id)
                    if order.round == 3 and waiting:
                        self._answer(waiting.pop())
                    if order.id == LATE:
                        waiting.append(order)
                    else:
                        self._answer(order)
                case fx.SetTimer(run, timer, at_ms) if timer.startswith("deadline.2."):
                    self.now_ms = at_ms
                    self._tell(ev.TimerFired, run, timer)
                case fx.Acknowledge():
                    receipt = statements.Receipt(
                        effect.order, effect.blob, effect.outcome, effect.epoch, effect.at_ms
                    )
                    signature = statements.sign(receipt, self.keys.message_key).hex()
                    told = (effect.order, effect.blob, effect.outcome, effect.epoch, effect.at_ms, signature)
                    self._note(effect.site, agent.UploadAcknowledged, *told)
                case fx.Aggregate():
                    digest = self._model(effect.round)
                    values = (RUN, effect.round, effect.attempt, digest, "d" * 64, 1, "", 0, 1.0)
                    self._tell(ev.RoundAggregated, *values)
                case fx.Publish(run, version, outcomes):
                    self._publish(version, [site for site, _ in outcomes])
                case _:
                    continue

    def _answer(self, order: Order) -> None:
        blob = canonical.digest(order)
        if order.kind is OrderKind.SEED:
            told = (order.id, blob, 1, self._model(0), LAYOUT.to_json(), LAYOUT.digest, LAYOUT.num_elements)
            self._tell(ev.ModelSeeded, *told)
        elif order.kind is OrderKind.EVALUATE:
            self._tell(ev.EvaluationStored, order.id, 1.0, 1)
        else:
            commit = statements.Commit(RUN, order.id, blob, 100, 10, 1)
            signature = statements.sign(commit, self.message_keys[order.site]).hex()
            self._tell(ev.UpdateStored, order.id, blob, 100, 10, 1, 1.0, None, None, 0, 0.1, signature)

    def _model(self, version: int) -> str:
        """Every site gets the file; returns its digest."""
        for folder in self.sites.values():
            path = folder / "state" / "models" / RUN / f"{version}.safetensors"
            path.unlink(missing_ok=True)
            writer = ModelWriter(path, LAYOUT, RUN, version)
            writer.write(np.full(4, version, np.float32))
            digest, _, _ = writer.close()
        return digest

    def _publish(self, version: int, sites: list[str]) -> None:
        sequence, row_hash = self.journal.head
        message = head_message("test", sequence, row_hash, self.now_ms)
        key = self.keys.message_key
        head = SignedHead(
            "test", sequence, row_hash, self.now_ms, statements.sign_head(message, key).hex(), key.key_id
        )
        self.journal.add_head(head)
        for site in sites:
            heads = self.sites[site] / "state" / "heads"
            heads.mkdir(exist_ok=True)
            (heads / f"{sequence}.json").write_bytes(canonical.encode(head))

    def evidence(self) -> Evidence:
        """As the auditor reads it."""
        return gather(self.home, self.sites)
