"""Worlds with a coordinator that lies: honest sites, what it tries on them, and that it gains nothing by it.

It has the consortium's true keys, some sites of its own (one organisation), and its own key in the place of a
site that nobody knows by its key. It plays masked rounds; at every document it goes on honestly, or tries one
of its tricks on one site, as the seed says. After each word and each file of a site `judge` adds up what can
be computed from everything so far.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from fedtrain.core import agent, canonical, masks, messages as msg
from fedtrain.core.contract import Contract, Require, Rights
from fedtrain.core.orders import ModelRef, Order, OrderKind, order_id
from fedtrain.errors import LocalError
from fedtrain.methods import shamir
from fedtrain.sim.chance import Chance
from fedtrain.sim.judge import Judge
from fedtrain.sim.keys import Notary, Secrets, pair_seed, public_of, said, seal
from fedtrain.sim.mark import Mark
from fedtrain.sim.numbers import digest_of
from fedtrain.sim.plan import DATASET, TASK
from fedtrain.sim.seats import COORDINATOR
from fedtrain.sim.tricks import OTHER, TRICKS, Due, Play
from fedtrain.sim.veils import place_of
from fedtrain.sim.violation import Violation

ROUNDS = 8
"""Sessions that a world's coordinator plays."""

Value = TypeVar("Value")

TOPICS = ("proposal", "keys", "delivery", "survivors", "unmask")


class Coordinator:
    """Of one world, and the world itself.

    Attributes:
        tried: trick -> how often.
        boldness: how often a document of the session at hand is a trick.
    """

    def __init__(self, seed: int) -> None:
        self.how = random.Random(f"malice {seed}")
        self.notary = Notary(seed)
        count = self.how.randint(3, 8)
        self.honest = [f"site-{letter}" for letter in "abcdefgh"[:count]]
        # With its own sites, and one that is known to nobody, at most a fifth of all, rounded up.
        most = 1 if count < 5 else 2
        self.stranger = self.how.choice((None, None, *self.honest)) if count > 3 else None
        own = self.how.randint(0, most - bool(self.stranger))
        self.sybils = [f"sybil-{letter}" for letter in "xy"[:own]]
        self.boldness = 0.0
        self.roster = {s: f"house-{s}" for s in self.honest} | dict.fromkeys(self.sybils, "house-x")
        chance = Chance(seed, lambda key: True)
        contracts = {site: self._contract(site) for site in self.honest}
        self.judge = Judge(self.notary, contracts, self.roster)
        self.marks = self.judge.marks
        for site, contract in contracts.items():
            self.marks[site] = Mark(site, contract, self.notary, self.judge, chance)
            self.marks[site].submit(agent.RosterReceived(0, self.roster, 1, ""))
        self.tried: Counter[str] = Counter()
        self.past: list[Play] = []
        self.said: list[tuple[str, str]] = []

    def _contract(self, site: str) -> Contract:
        others = [name for name in self.honest if name not in (site, self.stranger)]
        return Contract(
            ("run-*",),
            (TASK,),
            self.how.choice((1, 3, 3, len(self.honest))),
            {DATASET: Rights(execute=(TASK,))},
            organisations_min=self.how.choice((1, 1, 2, 3)),
            require=Require(masked=True),
            partners={name: self.notary.key_of(name) for name in others},
        )

    # -- a session ------------------------------------------------------------------------------------

    def play(self) -> None:
        """One session, or two side by side, with as much of the truth as the seed wants."""
        self.boldness = self.how.choice((0.0, 0.02, 0.05, 0.15))
        order = self._order()
        plays = [self._begin(order)]
        if self.how.random() < 2 * self.boldness:
            changed = self._trick("another order for some sites", self._changed, order)
            half = self.how.sample(plays[0].sites, len(plays[0].sites) // 2)
            plays[0].sites = [site for site in plays[0].sites if site not in half]
            plays.append(replace(self._begin(changed), sites=[s for s in half if s in changed.cohort]))
        for play in plays:
            for site in play.sites:
                self._invite(site, play.order)
        for topic in TOPICS:
            for play in plays:
                getattr(self, f"_{topic}")(play)
                if self.how.random() < self.boldness:
                    self._again(play)
        self.past += plays

    def _order(self) -> Order:
        """The next round; or the same one, or an old one, once more, often without one site."""
        names = sorted((*self.honest, *self.sybils))
        if self.past and self.how.random() < 0.45:
            old = self.how.choice(self.past[-4:]).order
            again = self.how.choice((old.attempt, old.attempt + 1, old.attempt + 2))
            if again == old.attempt:
                return self._trick("the same order again", lambda _: old, old)
            cohort = self.how.choice((old.cohort, self._fewer(old.cohort)))
            self.tried["another attempt at a round"] += 1
            self.tried["another attempt, one site fewer"] += cohort != old.cohort
            return self._made(old.round, again, cohort)
        index = 1 + max((play.order.round for play in self.past), default=0)
        if self.how.random() < 0.15:
            names = self._trick("a small cohort", self._small, names)
        return self._made(index, 1, tuple(names))

    def _made(self, index: int, attempt: int, cohort: Iterable[str]) -> Order:
        terms = {"weight_max": 0, "dropouts_max": self.how.choice((-1, -1, 1))}
        task = {"name": TASK, "data": DATASET, "terms": {"privacy": {"masked": terms}}}
        model = ModelRef(index - 1, digest_of(b"model"), digest_of(b"layout"), 0, ((0, OTHER, 8),))
        text = json.dumps(task, separators=(",", ":"), sort_keys=True)
        sites, kind = tuple(sorted(cohort)), OrderKind.TRAIN
        numbers = {"parent": "", "returned": (), "cohort": sites, "task": text, "patience_ms": 1_000}
        return Order(
            "", kind, "run-1", index, attempt, "", 1, model, 1, False, codec="fixed12s8", block_elements=32,
            **numbers,
        )  # fmt: skip

    def _fewer(self, cohort: Iterable[str]) -> tuple[str, ...]:
        names = sorted(cohort)
        gone = self.how.choice(names) if len(names) > 1 else ""
        return tuple(name for name in names if name != gone)

    def _small(self, names: list[str]) -> list[str]:
        """One or two honest sites, among the coordinator's own if there are any."""
        return sorted((*self.how.sample(self.honest, self.how.choice((1, 2))), *self.sybils))

    def _changed(self, order: Order) -> Order:
        """Another model, plan, codec or cohort under the same name."""
        assert order.model is not None, "training starts from a model"
        plain = json.dumps({"name": TASK, "data": DATASET})
        return self.how.choice(
            (
                replace(order, model=replace(order.model, digest=OTHER)),
                replace(order, task=order.task.replace('"terms"', '"training":{},"terms"')),
                replace(order, task=plain),
                replace(order, codec=self.how.choice(("int8", "fixed24s8", "fixed13s8"))),
                replace(order, cohort=self._fewer(order.cohort)),
            )
        )

    def _begin(self, order: Order) -> Play:
        keys = {site: self.notary.key_of(site) for site in order.cohort}
        foreign = [site for site in order.cohort if site in self.sybils]
        if self.stranger in keys and self.how.random() < 0.2:
            self.tried["its own key in a stranger's place"] += 1
            foreign.append(str(self.stranger))
            keys[str(self.stranger)] = self._fake(str(self.stranger))
        elif set(keys) - set(self.sybils) and self.how.random() < 0.03:
            known = self.how.choice(sorted(set(keys) - set(self.sybils)))
            self.tried["its own key in a known site's place"] += 1
            foreign.append(known)
            keys[known] = self._fake(known)
        secrets = {site: Secrets.drawn(self.how) for site in foreign}
        sites = [site for site in order.cohort if site not in foreign]
        self.judge.tasks[masks.digest_of(order.task)] = order.task
        return Play(order, masks.propose(1, order, keys), sites, secrets)

    def _fake(self, site: str) -> str:
        return self.notary.key_of(f"what the coordinator calls {site}")

    def _signer(self, site: str) -> str:
        return site if site in self.sybils else f"what the coordinator calls {site}"

    def _trick(self, name: str, change: Callable[[Value], Value], honest: Value) -> Value:
        self.tried[name] += 1
        return change(honest)

    # -- words ----------------------------------------------------------------------------------------

    def _invite(self, site: str, order: Order) -> None:
        mark = self.marks[site]
        name = order_id(order.run, order.round, order.attempt, site)
        mark.invite(replace(order, id=name, site=site))

    def _speak(self, play: Play, site: str, topic: str, document: object) -> None:
        """To one site, in the session's order, signed unless the seed says otherwise."""
        text = document if isinstance(document, str) else masks.spelled(document)
        self.said.append((topic, text))
        order = masks.order_of(play.proposal, site)
        signature = self.notary.sign(COORDINATOR, said(site, topic, order, text))
        if self.how.random() < 0.005:
            self.tried["no signature of its own"] += 1
            signature = "00" * 32
        self.marks[site].seats.hear(msg.Statement(topic, order, text, signature))

    def _each(self, play: Play, topic: str, honest: Callable[[str], object]) -> None:
        """The honest document to every site; to some of them what a trick makes of it."""
        for site in play.sites:
            document = honest(site)
            if self.how.random() < self.boldness:
                name = self.how.choice(sorted(TRICKS[topic]))
                self.tried[name] += 1
                document = TRICKS[topic][name](Due(self, play, site, document))
            self._speak(play, site, topic, document)

    def _again(self, play: Play) -> None:
        """Something that was said before, in this order; or this order is taken back and given again."""
        site = self.how.choice(play.sites or self.honest)
        order = masks.order_of(play.proposal, site)
        if site in play.sites and self.how.random() < 0.3:
            self.tried["the order taken back and given again"] += 1
            self.marks[site].submit(agent.OrderCancelled(0, order, ""))
            self._invite(site, play.order)
            self._speak(play, site, "proposal", play.proposal)
        elif self.said:
            self.tried["old documents replayed"] += 1
            topic, text = self.how.choice(self.said)
            self._speak(play, site, topic, text)

    def _answer(self, play: Play, site: str, topic: str) -> msg.Statement | None:
        """What a site has said in this very session."""
        found = self.marks[site].heard.get((topic, masks.order_of(play.proposal, site)))
        if found is None or json.loads(found.document)["session"] != play.session:
            return None
        return found

    def sign(self, play: Play, site: str, topic: str, document: str) -> str:
        """In the name of a site that is the coordinator's; anybody else's is a forgery."""
        name = self._signer(site)
        return self.notary.sign(name, said(site, topic, masks.order_of(play.proposal, site), document))

    def _proposal(self, play: Play) -> None:
        """The order's; sometimes another one, to all sites alike."""
        if play.sites and self.how.random() < self.boldness:
            self.tried["another proposal than the order's, to all"] += 1
            change = {"threshold": 1, "shares": 1, "degree": 1, "model": OTHER, "plan": OTHER, "ring_bits": 9}
            name = self.how.choice(sorted(change))
            play.proposal = replace(play.proposal, **{name: change[name]})
        self._each(play, "proposal", lambda site: play.proposal)

    def _keys(self, play: Play) -> None:
        for site in play.sites:
            if found := self._answer(play, site, "advert"):
                play.adverts[site] = masks.Signed(found.document, found.signature)
        for site, secrets in play.foreign.items():
            play.adverts[site] = self.advert(play, site, secrets)
        self._each(play, "keys", lambda site: masks.Keys(play.session, play.adverts))

    def advert(self, play: Play, site: str, secrets: Secrets) -> masks.Signed:
        """Keys of the coordinator's under this name."""
        own = (public_of(secrets.mask), public_of(secrets.share), digest_of(secrets.seed))
        text = masks.spelled(masks.Advert(play.session, site, *own))
        return masks.Signed(text, self.sign(play, site, "advert", text))

    def _delivery(self, play: Play) -> None:
        keys = masks.spelled(masks.Keys(play.session, play.adverts))
        sealed: dict[str, dict[str, str]] = {}
        for site in play.sites:
            found = self._answer(play, site, "boxes")
            if found is not None and json.loads(found.document)["keys"] == masks.digest_of(keys):
                sealed[site] = dict(canonical.decode(masks.Boxes, found.document).boxes)
        for site, secrets in play.foreign.items():
            sealed[site] = self._boxes(play, site, secrets, keys)
        play.sharers = tuple(sorted(sealed))

        def honest(site: str) -> masks.Delivery:
            boxes = {source: sealed[source][site] for source in play.sharers if site in sealed[source]}
            return masks.Delivery(play.session, play.sharers, boxes)

        self._each(play, "delivery", honest)

    def _boxes(self, play: Play, own: str, secrets: Secrets, keys: str) -> dict[str, str]:
        """Good boxes of a site that is the coordinator's; none where there are too few to share with."""
        if len(play.adverts) < play.proposal.shares:
            return {}
        places = [place_of(play.session, site) for site in play.adverts]
        pair = [
            shamir.split(secret, play.proposal.shares, places, self.how.randbytes)
            for secret in (secrets.mask, secrets.seed)
        ]
        boxes = {}
        for site in set(play.adverts) - {own}:
            advert = canonical.decode(masks.Advert, play.adverts[site].document)
            key = pair_seed(secrets.share, advert.share_key, play.session)
            place = place_of(play.session, site)
            about = f"{play.session} {own} {site} {masks.digest_of(keys)}"
            boxes[site] = seal(key, about, pair[0][place] + pair[1][place])
        return boxes

    def _survivors(self, play: Play) -> None:
        """Those whose updates came, and sometimes one fewer: alive, and called lost."""
        came = [s for s in play.sites if masks.order_of(play.proposal, s) in self.marks[s].uploads]
        alive = sorted({*came, *play.foreign} & set(play.sharers))
        if alive and self.how.random() < 0.2:
            self.tried["alive and called lost"] += 1
            alive.remove(self.how.choice(alive))
        sets = [tuple(alive)]
        if len(alive) > 1 and self.how.random() < 0.2:
            self.tried["two sets of survivors"] += 1
            sets.append(self._fewer(alive))
        chosen = {site: self.how.choice(sets) for site in play.sites}
        self._each(play, "survivors", lambda site: masks.Survivors(play.session, chosen[site]))

    def _unmask(self, play: Play) -> None:
        for site in play.sites:
            if found := self._answer(play, site, "affirmation"):
                survivors = canonical.decode(masks.Survivors, found.document).survivors
                play.affirmed.setdefault(survivors, {})[site] = found.signature
        for survivors, signatures in play.affirmed.items():
            text = masks.spelled(masks.Survivors(play.session, survivors))
            for site in set(play.foreign) & set(survivors):
                signatures[site] = self.sign(play, site, "affirmation", text)
        # Each site is asked for the set that it has affirmed, sometimes for every set that there is.
        for survivors, signatures in list(play.affirmed.items()):
            everybody = self.how.random() < 0.2
            self.tried["asked for every set"] += everybody and len(play.affirmed) > 1
            asked = [s for s in play.sites if s in signatures or everybody]
            document = masks.Unmask(play.session, survivors, dict(signatures))
            if len(signatures) < play.proposal.threshold and self.how.random() < 0.5:
                self.tried["forged for want of signatures"] += 1
                forged = {site: self.sign(play, site, "affirmation", "") for site in survivors}
                document = replace(document, signatures={**forged, **signatures})
            self._each(replace(play, sites=asked), "unmask", lambda site, d=document: d)


@dataclass(frozen=True)
class Tally:
    """What many worlds came to: trick -> how often it was tried, and what there was to judge."""

    tried: Counter[str]
    counts: Counter[str]


class Gained(LocalError):
    """A coordinator that lies has gained something."""


def endure(seed: int) -> Coordinator:
    """One world; `Gained` names the seed and what was had."""
    world = Coordinator(seed)
    try:
        for _ in range(ROUNDS):
            world.play()
    except Violation as violation:
        raise Gained(f"malice seed {seed}: {violation}") from violation
    return world


def endure_many(seeds: Iterable[int]) -> Tally:
    """Worlds one after the other, up to the first that gives something away."""
    tried: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = endure(seed)
        tried += world.tried
        counts += world.judge.counts
    return Tally(tried, counts)
