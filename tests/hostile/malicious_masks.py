"""A coordinator that wants to see one site's update: the double of `malicious`, and its rounds.

It holds the consortium's true keys, and the message keys of all other sites of the cohort: what these sign
is good. The victim is the agent as it is shipped. A `Round` goes as far as it is told to, honestly; a trick
then says something else.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from malicious import PATIENCE_S, SITE, Malice, Victim, a_model, an_order
from masked_world import LAYOUT, write_first_model, write_update

from fedtrain.core import canonical, masks, messages as msg
from fedtrain.core.orders import ModelRef, Order, OrderKind, Result
from fedtrain.methods.modelfile import ModelReader
from fedtrain.methods.shamir import split
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey
from fedtrain.trust.masking import Label, MaskKeys, seal_share

OTHERS = ("east", "north", "south", "west")
COHORT = tuple(sorted((SITE, *OTHERS)))
STEPS = ("proposal", "keys", "delivery", "survivors", "unmask")
ANSWERS = {"proposal": "advert", "keys": "boxes", "survivors": "affirmation", "unmask": "opened"}


def masked_order(**changes: Any) -> Order:
    """An order of a masked round of five sites."""
    terms = changes.pop("terms", {"privacy": {"masked": {"dropouts_max": -1, "weight_max": 0}}})
    usual: dict[str, Any] = {
        "kind": OrderKind.TRAIN,
        "steps": 5,
        "model": a_model(),
        "cohort": COHORT,
        "codec": "fixed12s8",
        "task": {"terms": terms},
    }
    return an_order(**{**usual, **changes})


@dataclass
class Round:
    """One session with the victim, and everything that was said in it."""

    malice: Malice
    victim: Victim
    order: Order = field(default_factory=masked_order)
    signers: dict[str, MessageKey] = field(default_factory=dict)
    secrets: dict[str, MaskKeys] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    plain: str = ""

    def __post_init__(self) -> None:
        for site in OTHERS:
            self.signers.setdefault(site, MessageKey.generate())
            self.secrets[site] = MaskKeys.generate()

    @property
    def consortium(self) -> str:
        return self.malice.keys.membership.consortium

    @property
    def proposal(self) -> masks.Proposal:
        keys = {site: key.public for site, key in self.signers.items()}
        keys[SITE] = self.victim.keys.message_key.public
        return masks.propose(self.malice.epoch, self.order, keys)

    @property
    def session(self) -> str:
        return masks.digest_of(self.documents["proposal"])

    async def invite(self) -> None:
        """The order is accepted and worked on; what it leads to is offered, and never taken."""
        agent = self.victim.agent
        self.malice.stalls = True
        made = self.victim.settings.folder / "model"
        if not made.exists():
            write_first_model(made, self.order)
        data = made.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        with ModelReader(made) as reader:
            model_digest = reader.verify(LAYOUT)
        model = ModelRef(0, model_digest, LAYOUT.digest, 0, ((0, digest, len(data)),))
        self.malice.files[digest] = data
        self.order = replace(self.order, model=model)
        self.malice.say(msg.Invitation(self.order))
        async with asyncio.timeout(PATIENCE_S):
            await agent.until(lambda: self.order.id in agent.posted)

    async def train(self) -> None:
        """The trainer hands its plain update in; under masks it is offered."""
        mailbox = self.victim.mailbox
        while (claim := mailbox.claim("trainer-1")) is not None and claim.order.id != self.order.id:
            pass  # of an order that was replaced
        made = mailbox.checkpoints / "made"
        write_update(made, self.order)
        data = made.read_bytes()
        self.plain = hashlib.sha256(data).hexdigest()
        numbers = (10, self.order.steps, 0.5, 2.0)
        mailbox.publish(
            Result(self.order.id, "", "update.bin", self.plain, len(data), *numbers, seconds=0.1), made
        )
        await self.malice.until(lambda: self.order.id in {offer.order for offer in self.malice.offered})

    async def go(self, last: str) -> None:
        """Play honestly up to this document and its answer."""
        for topic in STEPS[: STEPS.index(last) + 1]:
            if topic not in self.documents:
                self.speak(topic, self.honest(topic))
                await self.answered(topic)

    def speak(self, topic: str, document: object, signature: str | None = None) -> None:
        """Say this to the victim, signed unless another signature is given."""
        text = document if isinstance(document, str) else masks.spelled(document)
        self.documents.setdefault(topic, text)
        said = statements.said(self.consortium, SITE, topic, self.order.id, text)
        good = statements.sign(said, self.malice.keys.message_key).hex()
        self.malice.say(msg.Statement(topic, self.order.id, text, good if signature is None else signature))

    async def answered(self, topic: str) -> None:
        """Wait for what the victim makes of it."""
        if topic == "delivery":
            await self.train()
        elif topic in ANSWERS:
            await self.malice.until(lambda: self.words(ANSWERS[topic]))

    def words(self, topic: str) -> list[msg.Statement]:
        """What the victim has said on a topic of this order."""
        heard = self.malice.of(msg.Statement)
        return [said for said in heard if (said.topic, said.order) == (topic, self.order.id)]

    # -- documents --------------------------------------------------------------------------------

    def honest(self, topic: str) -> object:
        """What an honest coordinator would say now."""
        match topic:
            case "proposal":
                return self.proposal
            case "keys":
                return masks.Keys(self.session, self.adverts())
            case "delivery":
                return self.delivery(COHORT)
            case "survivors":
                return masks.Survivors(self.session, COHORT)
        return self.unmask(COHORT)

    def adverts(self, sites: Iterable[str] = COHORT, session: str = "") -> dict[str, masks.Signed]:
        """The victim's own advert, and good ones of the others."""
        own = self.words("advert")[0]
        found = {SITE: masks.Signed(own.document, own.signature)}
        for site in set(sites) - {SITE}:
            found[site] = self.advert(site, self.secrets[site], session or self.session)
        return {site: signed for site, signed in found.items() if site in sites}

    def advert(
        self, site: str, secrets: MaskKeys, session: str, signer: MessageKey | None = None
    ) -> masks.Signed:
        text = masks.spelled(
            masks.Advert(session, site, secrets.mask_public, secrets.share_public, secrets.seed_digest)
        )
        return masks.Signed(text, self.signed(site, "advert", text, signer))

    def delivery(self, sharers: Iterable[str], boxes: Iterable[str] | None = None) -> masks.Delivery:
        """Boxes that open, of these sites."""
        sealed = {site: self.box(site) for site in (boxes or sharers) if site != SITE}
        return masks.Delivery(self.session, tuple(sorted(sharers)), sealed)

    def box(self, site: str) -> str:
        secrets = self.secrets[site]
        mine = canonical.decode(masks.Advert, self.words("advert")[0].document)
        label = Label(self.session, site, SITE, masks.digest_of(self.documents["keys"]))
        pair = (secrets.mask_private, secrets.seed)
        shares = [split(secret, 4, range(1, 6), os.urandom)[1] for secret in pair]
        sealed = seal_share(secrets.share_private, mine.share_key, label, b"".join(shares))
        return base64.b64encode(sealed).decode()

    def unmask(self, survivors: Iterable[str], signers: Iterable[str] = OTHERS) -> masks.Unmask:
        """A request to open, with the affirmations of these sites, and the victim's if it has said one."""
        named = tuple(sorted(survivors))
        text = masks.spelled(masks.Survivors(self.session, named))
        signatures = {site: self.signed(site, "affirmation", text) for site in signers}
        for own in self.words("affirmation"):
            signatures[SITE] = own.signature
        return masks.Unmask(self.session, named, signatures)

    def signed(self, site: str, topic: str, text: str, signer: MessageKey | None = None) -> str:
        """Another site's signature; with `signer` a forged one."""
        order = masks.order_of(self.proposal, site)
        said = statements.said(self.consortium, site, topic, order, text)
        return statements.sign(said, signer or self.signers[site]).hex()
