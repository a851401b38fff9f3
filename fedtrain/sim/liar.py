"""Somebody who speaks in a site's name beside its agent: with its certificate, and with bad intent.

What such a site loses is its own affair. Nobody else may be hurt by it: no update of another site is
lost, none counts twice, no version is wrong, and the run goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedtrain.core import messages as msg
from fedtrain.core.orders import OrderKind, Progress, order_id, parse_order_id
from fedtrain.sim.asking import Question
from fedtrain.sim.calls import Envelope, Piece, Request
from fedtrain.sim.network import Network
from fedtrain.sim.numbers import LAYOUT, digest_of, drawn
from fedtrain.sim.scene import Scene
from fedtrain.sim.site import Site

FORGED_EPOCH = 1 << 60
STEP_MS = 60
"""Between two messages of one lie: long enough for most networks to keep their order."""


@dataclass(frozen=True)
class Story:
    """An upload that should not count, or not like this: `size_bytes` and `digest` as they are claimed."""

    order: str
    payload: bytes
    size_bytes: int
    digest: str
    weight: int = 1
    layout: str = ""
    piece_bytes: int = 1 << 10


class Liar:
    """Lies now and then, until faults are over."""

    def __init__(self, scene: Scene, site: Site, network: Network) -> None:
        self._scene = scene
        self._site = site
        self._network = network
        self._told = 0
        self._seen: list[Story] = []

    def threaten(self, gap_ms: int) -> None:
        """Begin."""
        for name, lie in LIES.items():
            self._scene.recur(gap_ms * len(LIES), f"lie: {name}", self._site.name, partial(self._lie, lie))

    def _lie(self, lie: Callable[[Liar, str, random.Random], None], how: random.Random) -> None:
        """About an order in hand, or about one that was never given."""
        orders = sorted(self._site.held) if self._site.up else []
        lie(self, how.choice(orders) if orders else f"run-1.1.1.{self._site.name}", how)

    # -- uploads --------------------------------------------------------------------------------------

    def _story(self, order: str, how: random.Random) -> Story:
        """An upload that looks right and is not what the site's trainer made."""
        values = drawn(self._scene.plan.num_elements, "lie", order, how.random())
        payload = values.tobytes()
        held = self._site.held.get(order) if self._site.up else None
        seeds = held is not None and held.order.kind is OrderKind.SEED
        return Story(order, payload, len(payload), digest_of(payload), layout=LAYOUT if seeds else "")

    def _upload(self, story: Story) -> None:
        """Offer, pieces, commit: sent blindly, one after the other."""
        self._seen.append(story)
        questions: list[Question] = [msg.Offer(story.order, story.digest, story.size_bytes)]
        for offset in range(0, len(story.payload), story.piece_bytes):
            data = story.payload[offset : offset + story.piece_bytes]
            questions.append(Piece(story.order, story.digest, offset, data))
        questions.append(_commit(story))
        for index, question in enumerate(questions):
            self._scene.clock.after(index * STEP_MS, partial(self._ask, question))

    def another_answer(self, order: str, how: random.Random) -> None:
        """Other bytes than the trainer's, perhaps after those were acknowledged: equivocation."""
        self._upload(self._story(order, how))

    def stale_answer(self, order: str, how: random.Random) -> None:
        """What was sent before, for the order that it was for, or for the newest one."""
        if self._seen:
            old = how.choice(self._seen)
            self._upload(old if how.random() < 0.5 else replace(old, order=order))

    def foreign_answer(self, order: str, how: random.Random) -> None:
        """An answer to another site's order, and its failure, consent and refusal too."""
        run, index, attempt, own = parse_order_id(order)
        others = [site.name for site in self._scene.plan.sites if site.name != own]
        if others:
            foreign = order_id(run, index, attempt, how.choice(others))
            self._upload(replace(self._story(order, how), order=foreign))
            self._say(msg.Failure(foreign, "not ours to tell"))
            self._say(msg.Consent(foreign, how.random() < 0.5, ("not ours to tell",), ""))
            self._say(msg.Evaluation(foreign, 0.0, 1))

    def unknown_answer(self, order: str, how: random.Random) -> None:
        """An answer to an order that nobody gave."""
        own = self._site.name
        made_up = how.choice((f"run-1.9.9.{own}", f"run-77.1.1.{own}", "no order", f"run-1.0.1.{own}"))
        self._upload(replace(self._story(order, how), order=made_up))
        self._say(msg.Failure(made_up, "never given"))
        self._say(msg.Consent(made_up, True, (), ""))

    def wrong_size(self, order: str, how: random.Random) -> None:
        """Fewer or more bytes than a layout has, or another number than what is claimed."""
        story = self._story(order, how)
        payload = how.choice((story.payload[:-4], story.payload + b"\0\0\0\0", story.payload))
        size_bytes = how.choice((len(payload), len(payload) + 4, -1, 1 << 63))
        self._upload(replace(story, payload=payload, size_bytes=size_bytes, digest=digest_of(payload)))

    def wrong_bytes(self, order: str, how: random.Random) -> None:
        """Bytes that are not what their digest says."""
        story = self._story(order, how)
        self._upload(replace(story, digest=digest_of(story.payload + b"!")))

    def wrong_layout(self, order: str, how: random.Random) -> None:
        """Initial weights under another layout."""
        self._upload(replace(self._story(order, how), layout="another"))

    def not_finite(self, order: str, how: random.Random) -> None:
        """NaN or an infinity somewhere."""
        story = self._story(order, how)
        values = np.frombuffer(story.payload, np.float32).copy()
        values[how.randrange(len(values))] = how.choice((np.nan, np.inf, -np.inf))
        payload = values.tobytes()
        self._upload(replace(story, payload=payload, digest=digest_of(payload)))

    def enormous(self, order: str, how: random.Random) -> None:
        """A norm far above any bound: scaled down where the run has one."""
        story = self._story(order, how)
        payload = (np.frombuffer(story.payload, np.float32) * np.float32(1e6)).tobytes()
        self._upload(replace(story, payload=payload, digest=digest_of(payload)))

    def wrong_weight(self, order: str, how: random.Random) -> None:
        """Zero, negative, beyond what a float holds, or beyond what the site has declared."""
        self._upload(replace(self._story(order, how), weight=how.choice((0, -1, 10**18, 10**12))))

    def byte_by_byte(self, order: str, how: random.Random) -> None:
        """One byte at a time."""
        self._upload(replace(self._story(order, how), piece_bytes=1))

    # -- words ----------------------------------------------------------------------------------------

    def busy_for_ever(self, order: str, how: random.Random) -> None:
        """Progress without end and without an answer."""
        self._say(msg.Consent(order, True, (), ""))
        for beat in range(8):
            alive = msg.Heartbeat((Progress(order, (1 << 40) + beat),))
            self._scene.clock.after(beat * 2_000, partial(self._say, alive))

    def changing_mind(self, order: str, how: random.Random) -> None:
        """Yes, no, failed, done: about one order."""
        said: list[msg.FromPeer] = [
            msg.Consent(order, True, (), ""),
            msg.Consent(order, False, ("changed my mind",), ""),
            msg.Failure(order, "changed my mind"),
            msg.Evaluation(order, 1.0, 1),
        ]
        how.shuffle(said)
        for message in said:
            self._say(message)

    def taking_back(self, order: str, how: random.Random) -> None:
        """A withdrawal that the site's people know nothing of."""
        self._say(msg.Withdrawal(order.split(".", 1)[0], "not ours to say", ""))

    def forged_epoch(self, order: str, how: random.Random) -> None:
        """The claim that a coordinator of a far higher epoch has taken over, without its signature."""
        site = self._site
        if site.up:
            hello = msg.Heartbeat()
            self._network.send(
                site.name, site.home, Envelope(site.session, FORGED_EPOCH, hello, proven=False)
            )

    def _say(self, message: msg.FromPeer) -> None:
        """In the agent's own session, while it has one."""
        if self._site.up:
            self._site.say(message)

    def _ask(self, question: Question) -> None:
        """A call whose answer nobody waits for."""
        site = self._site
        self._told += 1
        if site.up:
            self._network.send(site.name, site.home, Request(-self._told, site.epoch, question))


def _commit(story: Story) -> msg.Commit:
    return msg.Commit(
        order=story.order,
        digest=story.digest,
        size_bytes=story.size_bytes,
        weight=story.weight,
        steps=1,
        norm=1.0,
        train_loss=0.0,
        eval_loss=None,
        eval_count=0,
        seconds=0.1,
        layout=story.layout,
        signature="",
    )


LIES: dict[str, Callable[[Liar, str, random.Random], None]] = {
    "another answer": Liar.another_answer,
    "stale answer": Liar.stale_answer,
    "answer to another's order": Liar.foreign_answer,
    "answer to no order": Liar.unknown_answer,
    "wrong size": Liar.wrong_size,
    "wrong bytes": Liar.wrong_bytes,
    "wrong layout": Liar.wrong_layout,
    "not finite": Liar.not_finite,
    "enormous": Liar.enormous,
    "wrong weight": Liar.wrong_weight,
    "byte by byte": Liar.byte_by_byte,
    "busy for ever": Liar.busy_for_ever,
    "changing its mind": Liar.changing_mind,
    "taking back": Liar.taking_back,
    "forged epoch": Liar.forged_epoch,
}
"""What it does, by the name that a transcript shows."""
