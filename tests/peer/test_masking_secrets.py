"""A site's end of masked sessions: its secrets on the disk, signatures that it checks, masks on its file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_world import CONSORTIUM, LAYOUT, SITE, FakeCoordinator, Site, Versions, an_order

from fedtrain.core import canonical, masks, messages as msg
from fedtrain.core.agent import SeatStage, Stage
from fedtrain.core.agent_state import MaskSeat
from fedtrain.core.contract import Contract
from fedtrain.core.masks import Advert, Keys, Signed, Survivors, Unmask
from fedtrain.core.orders import ModelRef, Order, Result, order_id
from fedtrain.errors import BadUpdate, IntegrityError
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.maskedfile import MaskedReader
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.peer import masking
from fedtrain.peer.agent import Agent
from fedtrain.peer.mask_secrets import Kept, MaskFolder
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey
from fedtrain.trust.masking import CtrStream

OTHERS = ("north", "south", "west")
ORDER = order_id("library", 1, 1, SITE)


def masked_order(ref: ModelRef | None = None, **changes: Any) -> Order:
    """An order whose answer has to be masked, among four."""
    terms = {"privacy": {"masked": {"dropouts_max": -1, "weight_max": changes.pop("weight_max", 0)}}}
    task = json.dumps({"name": "synthetic", "terms": terms})
    model = ref or ModelRef(0, "d" * 64, LAYOUT.digest, 0, ((0, "b" * 64, 40),))
    cohort = tuple(sorted((SITE, *OTHERS)))
    return an_order(model=model, task=task, codec="fixed12s8", cohort=cohort, **changes)


# -- the folder --------------------------------------------------------------------------------------


def test_a_file_is_for_this_account_only_and_what_it_held_is_overwritten(tmp_path: Path) -> None:
    """Mode 0600 in a folder of 0700; the bytes that were there are zeros once it is replaced or destroyed."""
    folder = MaskFolder(tmp_path / "masks")
    folder.create(())
    path = tmp_path / "masks" / ORDER
    folder.save(ORDER, Kept("a" * 64, secrets="5ec7e7" * 20))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert folder.load(ORDER) == Kept("a" * 64, secrets="5ec7e7" * 20)
    for let_go in (lambda: folder.save(ORDER, Kept("a" * 64)), lambda: folder.destroy(ORDER)):
        descriptor = os.open(path, os.O_RDONLY)  # still leads to the old bytes
        assert any(os.pread(descriptor, 4096, 0))
        let_go()
        assert not any(os.pread(descriptor, 4096, 0))
        os.close(descriptor)
    assert not folder.has(ORDER) and folder.load(ORDER) is None
    folder.destroy(ORDER)  # nothing there is fine


def test_a_start_destroys_what_no_session_needs(tmp_path: Path) -> None:
    """Files of orders that are over, and drafts that a crash left half written."""
    folder = MaskFolder(tmp_path / "masks")
    folder.create(())
    other = order_id("library", 2, 1, SITE)
    folder.save(ORDER, Kept("a" * 64, secrets="11"))
    folder.save(other, Kept("b" * 64, secrets="22"))
    (tmp_path / "masks" / f".{ORDER}.xyz").write_bytes(b"half of a secret")
    folder.create([other, "library.9.1.jsc"])
    assert [path.name for path in (tmp_path / "masks").iterdir()] == [other]


# -- masks on the file ---------------------------------------------------------------------------------


def plain_file(path: Path, order: Order) -> Result:
    """An update of this order, and the trainer's word on it."""
    assert order.model is not None
    header = UpdateHeader(
        order.run, order.round, order.site, "up", order.model.version, order.model.layout_digest,
        order.codec, order.block_elements, LAYOUT.num_elements, None,
    )  # fmt: skip
    values = np.linspace(-1, 1, LAYOUT.num_elements, dtype=np.float32)
    writer = UpdateWriter(path, header)
    seed = block_seed(order.run, order.seed, order.round, order.site, "up", 0)
    writer.write_block(codec(order.codec).encode(values, seed))
    digest, size_bytes = writer.close()
    return Result(order.id, "", "update.bin", digest, size_bytes, 80, 5, 0.5)


def seat_of(order: Order) -> MaskSeat:
    proposal = masks.propose(
        1, order, {site: hashlib.sha256(site.encode()).hexdigest() for site in order.cohort}
    )
    text = masks.spelled(proposal)
    return MaskSeat(masks.digest_of(text), text, SeatStage.READY)


STREAMS = [(CtrStream(b"1" * 32), +1), (CtrStream(b"2" * 32), -1)]


def test_masks_go_on_once(tmp_path: Path) -> None:
    """The masked file takes the plain one's place; asked again, it is found there, the same bytes."""
    order = masked_order()
    path = tmp_path / order.id
    result = plain_file(path, order)
    plain = path.read_bytes()
    seat = seat_of(order)
    digest, size_bytes = masking._masked(order, result, seat, STREAMS, path)
    data = path.read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size_bytes)
    assert data != plain and [entry.name for entry in tmp_path.iterdir()] == [order.id]
    with MaskedReader(path) as reader:
        assert (reader.header.session, reader.header.ring_bits) == (seat.session, 14)
    assert masking._masked(order, result, seat, STREAMS, path) == (digest, size_bytes)
    with pytest.raises(BadUpdate, match="another session"):
        masking._masked(order, result, replace(seat, session="f" * 64), STREAMS, path)


def test_a_file_that_is_not_the_announced_one_is_not_masked(tmp_path: Path) -> None:
    """Another digest, another layout, a weight beyond the run's bound: nothing is written."""
    order = masked_order()
    path = tmp_path / order.id
    result = plain_file(path, order)
    before = path.read_bytes()
    seat = seat_of(order)
    with pytest.raises(IntegrityError, match="not the file that the trainer announced"):
        masking._masked(order, replace(result, digest="0" * 64), seat, STREAMS, path)
    other = masked_order(ModelRef(0, "d" * 64, "e" * 64, 0, ((0, "b" * 64, 40),)))
    with pytest.raises(BadUpdate, match="layout_digest"):
        masking._masked(other, result, seat_of(other), STREAMS, path)
    weighted = masked_order(weight_max=79)
    with pytest.raises(BadUpdate, match=r"privacy\.masked\.weight_max is 79"):
        masking._masked(weighted, result, seat_of(weighted), STREAMS, path)
    assert path.read_bytes() == before


# -- what is heard -------------------------------------------------------------------------------------


class Room:
    """The coordinator's end of a session, with the true keys of everybody else."""

    def __init__(self, coordinator: FakeCoordinator, site: Site, order: Order) -> None:
        self.coordinator, self.site, self.order = coordinator, site, order
        self.keys = {name: MessageKey.generate() for name in OTHERS}
        publics = {name: key.public for name, key in self.keys.items()}
        self.proposal = masks.propose(1, order, {**publics, SITE: site.keys.message_key.public})
        self.session = masks.digest_of(masks.spelled(self.proposal))

    def say(self, topic: str, document: object, signature: str | None = None) -> None:
        text = document if isinstance(document, str) else masks.spelled(document)
        said = statements.said(CONSORTIUM, SITE, topic, self.order.id, text)
        signed = statements.sign(said, self.coordinator.key).hex() if signature is None else signature
        self.coordinator.send(msg.Statement(topic, self.order.id, text, signed))

    def advert(self, name: str) -> Signed:
        """Another site's advert, really signed."""
        keys = [hashlib.sha256(f"{kind} {name}".encode()).hexdigest() for kind in ("mask", "share", "seed")]
        text = masks.spelled(Advert(self.session, name, *keys))
        return Signed(text, self.signed(name, "advert", text))

    def signed(self, name: str, topic: str, text: str) -> str:
        said = statements.said(CONSORTIUM, name, topic, masks.order_of(self.proposal, name), text)
        return statements.sign(said, self.keys[name]).hex()

    def own_advert(self) -> Signed:
        (heard,) = [m for m in self.coordinator.of(msg.Statement) if m.topic == "advert"]
        return Signed(heard.document, heard.signature)


@asynccontextmanager
async def attached(site: Site) -> AsyncIterator[Agent]:
    """The site's agent in an open session."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        yield agent


async def begun(coordinator: FakeCoordinator, site: Site, versions: Versions) -> Room:
    """An order is accepted and the proposal's answer is here."""
    order = masked_order(versions.ref(0))
    room = Room(coordinator, site, order)
    coordinator.invite(order)
    room.say("proposal", room.proposal)
    await coordinator.until(lambda: [m for m in coordinator.of(msg.Statement) if m.topic == "advert"])
    return room


@pytest.fixture
async def masked_site(tmp_path: Path, coordinator: FakeCoordinator) -> Site:
    contract = Contract(runs=("lib*",), tasks=("synthetic",), cohort_min=3)
    return Site(tmp_path / "site", coordinator, contract)


async def until_burnt(coordinator: FakeCoordinator, site: Site, why: str) -> None:
    """The order has failed with this reason, and no secret is on the disk."""
    (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
    assert failure.reason.startswith("the masked session was burnt: ") and why in failure.reason
    await coordinator.until(lambda: not list((site.settings.state / "masks").iterdir()))


async def test_an_advert_is_kept_before_it_is_said_and_said_again_alike(
    coordinator: FakeCoordinator, masked_site: Site, versions: Versions
) -> None:
    """The proposal said twice is answered twice with the same bytes, by an agent that has restarted too."""
    async with attached(masked_site):
        room = await begun(coordinator, masked_site, versions)
        path = masked_site.settings.state / "masks" / ORDER
        kept = canonical.decode(Kept, path.read_bytes())
        assert kept.said == {"advert": room.own_advert().document} and kept.secrets
        advert = canonical.decode(Advert, room.own_advert().document)
        assert (advert.session, advert.site) == (room.session, SITE)
    coordinator.heard.clear()
    async with attached(masked_site):
        room.say("proposal", room.proposal)
        await coordinator.until(lambda: coordinator.of(msg.Statement))
        assert room.own_advert().document == kept.said["advert"]


@pytest.mark.parametrize("signature", ["", "00" * 64, "no hex"])
async def test_a_word_that_the_coordinator_has_not_signed_burns_the_session(
    coordinator: FakeCoordinator, masked_site: Site, versions: Versions, signature: str
) -> None:
    """Whoever speaks in its stead learns nothing and ends the order."""
    async with attached(masked_site):
        order = masked_order(versions.ref(0))
        room = Room(coordinator, masked_site, order)
        coordinator.invite(order)
        room.say("proposal", room.proposal, signature)
        await coordinator.until(lambda: coordinator.of(msg.Failure))
        assert not coordinator.of(msg.Statement)
        assert "has not signed its proposal" in coordinator.of(msg.Failure)[0].reason


async def test_a_proposal_with_another_key_in_our_place_burns_the_session(
    coordinator: FakeCoordinator, masked_site: Site, versions: Versions
) -> None:
    """A coordinator that would speak for this site is found out."""
    async with attached(masked_site):
        order = masked_order(versions.ref(0))
        room = Room(coordinator, masked_site, order)
        coordinator.invite(order)
        stolen = {**room.proposal.sites, SITE: MessageKey.generate().public}
        room.say("proposal", replace(room.proposal, sites=stolen))
        await until_burnt(coordinator, masked_site, "another key for this site than its own")


def keys_of(room: Room, case: str) -> Keys:
    """All adverts, one of which is not as it should be."""
    adverts = {name: room.advert(name) for name in OTHERS} | {SITE: room.own_advert()}
    stranger, victim = adverts["west"], adverts["north"]
    if case == "unsigned":
        adverts["north"] = replace(victim, signature="")
    elif case == "signed by another":
        adverts["north"] = replace(victim, signature=stranger.signature)
    elif case == "other keys":
        other = replace(canonical.decode(Advert, victim.document), mask_key="4" * 64)
        adverts["north"] = replace(victim, document=masks.spelled(other))
    elif case == "another of ours":
        other = replace(canonical.decode(Advert, adverts[SITE].document), mask_key="4" * 64)
        text = masks.spelled(other)
        said = statements.said(CONSORTIUM, SITE, "advert", room.order.id, text)
        adverts[SITE] = Signed(text, statements.sign(said, room.site.keys.message_key).hex())
    elif case == "a stranger":
        adverts["sybil"] = stranger
    return Keys(room.session, adverts)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("unsigned", "signature"),
        ("signed by another", "signature"),
        ("other keys", "signature"),
        ("another of ours", "another advert of this site"),
        ("a stranger", "does not name"),
    ],
)
async def test_keys_that_their_sites_have_not_signed_burn_the_session(
    coordinator: FakeCoordinator, masked_site: Site, versions: Versions, case: str, why: str
) -> None:
    """Substituted keys would let the coordinator read every share; no box leaves."""
    async with attached(masked_site):
        room = await begun(coordinator, masked_site, versions)
        room.say("keys", keys_of(room, case))
        await until_burnt(coordinator, masked_site, why)
        assert {m.topic for m in coordinator.of(msg.Statement)} == {"advert"}


async def test_true_keys_are_answered_with_a_box_for_each_neighbour(
    coordinator: FakeCoordinator, masked_site: Site, versions: Versions
) -> None:
    """The same words to the same keys, and the session's secrets stay in one file."""
    async with attached(masked_site) as agent:
        room = await begun(coordinator, masked_site, versions)
        keys = keys_of(room, "true")
        for _ in range(2):
            room.say("keys", keys)
        said = await coordinator.until(
            lambda: [m for m in coordinator.of(msg.Statement) if m.topic == "boxes"][:2]
        )
        boxes = canonical.decode(masks.Boxes, said[0].document)
        assert set(boxes.boxes) == set(OTHERS)
        assert len({m.document for m in said}) == 1
        assert agent.state.held[ORDER].stage is Stage.WORKING
        assert [path.name for path in (masked_site.settings.state / "masks").iterdir()] == [ORDER]


def test_affirmations_are_held_against_their_sites_keys(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    """One that another site made, one over another set, one of a stranger: each is a fault of the unmask."""
    site = Site(tmp_path / "site", coordinator)
    order = masked_order()
    room = Room(coordinator, site, order)
    owner = type("Owner", (), {"broke": None, "has_spoken": None})()
    ours = masking.Masking(owner, tmp_path, site.keys)
    survivors = ("north", "south", "west")
    seat = MaskSeat(room.session, masks.spelled(room.proposal), survivors=survivors)
    text = masks.spelled(Survivors(room.session, survivors))
    true = {name: room.signed(name, "affirmation", text) for name in survivors}

    def fault(signatures: dict[str, str]) -> str:
        document = masks.spelled(Unmask(room.session, survivors, signatures))
        try:
            return ours._unmask_fault(seat, msg.Statement("unmask", order.id, document, ""))
        except Exception as error:
            return str(error)

    assert fault(true) == ""
    smaller = masks.spelled(Survivors(room.session, survivors[:2]))
    assert "signature" in fault({**true, "north": true["south"]})
    assert "signature" in fault({**true, "north": room.signed("north", "affirmation", smaller)})
    assert "signature" in fault({**true, "north": room.signed("north", "advert", text)})
    assert "does not name" in fault({**true, "sybil": true["north"]})
