"""Of two coordinators on copies of one folder, one is obeyed: starts, take-overs, proofs and fences."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_world import Consortium, ScriptedSite, client_of, free_port, spec_of

from fedtrain.cli.session import ask
from fedtrain.coordinator.process import open_coordinator
from fedtrain.coordinator.succession import place_of, why_fenced
from fedtrain.core import messages as msg
from fedtrain.core.epochs import TAKEOVER_STEP
from fedtrain.errors import BadSignature, ConfigError, RefusedError, StaleEpoch
from fedtrain.trust import statements
from fedtrain.trust.folders import load_member
from fedtrain.trust.keys import MessageKey
from fedtrain.wire.client import CoordinatorClient
from fedtrain.wire.values import EpochProof

pytestmark = pytest.mark.timeout(60)


class Book:
    """A member's memory of epochs that believes everything."""

    def __init__(self, proof: EpochProof | None = None) -> None:
        self.proof = proof

    def epoch_shown(self) -> EpochProof | None:
        return self.proof

    def epoch_seen(self, proof: EpochProof | None) -> None:
        assert proof is not None, "every answer carries an epoch"
        self.proof = max(self.proof or proof, proof, key=lambda seen: seen.epoch)


def copy_of(consortium: Consortium) -> Path:
    """A copy of the coordinator's folder, which may run meanwhile."""
    target = consortium.folder / "standby"
    shutil.copytree(consortium.folder / "coordinator", target)
    return target


def client_at(address: str, site: ScriptedSite) -> CoordinatorClient:
    """The site's client, pointed elsewhere."""
    return client_of(replace(site.keys, membership=replace(site.keys.membership, address=address)))


async def test_the_shown_epoch_is_signed_by_the_coordinator(consortium: Consortium) -> None:
    """What every answer carries verifies under the consortium's message key, and rises with each start."""
    site, book = await consortium.join("east"), Book()
    site.client.follow(book)
    await site.client.connect()
    await consortium.restart()
    first = book.proof
    await site.client.connect()
    second = book.proof
    assert first is not None and second is not None and second.epoch == first.epoch + 1 == 2
    for proof in (first, second):
        statement = statements.Epoch("test", proof.epoch, proof.at_ms)
        statements.verify(statement, site.keys.coordinator_public, bytes.fromhex(proof.signature))


async def test_a_copied_folder_starts_only_by_a_deliberate_take_over(consortium: Consortium) -> None:
    """A copy refuses with the exact command; with it, its epoch is far above any restart of the first."""
    copy = copy_of(consortium)
    with pytest.raises(ConfigError, match=f"fedtrain coordinator serve {copy} --take-over") as caught:
        await open_coordinator(copy)
    assert caught.value.exit_code == 2
    serving = await open_coordinator(copy, take_over=True, address=f"127.0.0.1:{free_port()}")
    try:
        assert serving.hub.state.epoch >= TAKEOVER_STEP
        assert serving.hub.state.place == place_of(copy / "state" / "journal.db")
    finally:
        await serving.close()
    again = await open_coordinator(copy)
    assert again.hub.state.epoch == serving.hub.state.epoch + 1
    await again.close()


async def test_a_renamed_folder_is_where_it_was(consortium: Consortium) -> None:
    """Moving a folder within its disk is no copy: it starts as ever."""
    await consortium.serving.close()
    (consortium.folder / "coordinator").rename(consortium.folder / "renamed")
    consortium.serving = await open_coordinator(consortium.folder / "renamed")
    assert consortium.serving.hub.state.epoch == 2


def test_a_place_is_one_file(tmp_path: Path) -> None:
    """Two files have two places; one file has one, whatever it holds and is called."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("journal")
    shutil.copy2(first, second)
    place = place_of(first)
    assert place != place_of(second)
    first.rename(tmp_path / "third")
    (tmp_path / "third").write_text("more")
    assert place_of(tmp_path / "third") == place


async def test_a_new_address_is_kept_and_named(consortium: Consortium) -> None:
    """`--address` moves coordinator and operator for good; a malformed one changes nothing."""
    copy, address = copy_of(consortium), f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError):
        await open_coordinator(copy, take_over=True, address="nowhere")
    serving = await open_coordinator(copy, take_over=True, address=address)
    assert serving.hub.keys.membership.address == address
    await serving.close()
    assert load_member(copy / "operator").membership.address == address
    assert load_member(consortium.folder / "coordinator" / "operator").membership.address != address


async def test_a_site_that_has_moved_fences_the_old_coordinator(consortium: Consortium) -> None:
    """The old one hears the new one's signed epoch, refuses that call and all others, tells its sites
    and names who told; it starts again only by a take-over, above the one that took over."""
    east, west = await consortium.join("east"), await consortium.join("west")
    copy = copy_of(consortium)
    await west.attend()
    new = await open_coordinator(copy, take_over=True, address=f"127.0.0.1:{free_port()}")
    old, book = consortium.serving, Book()
    try:
        async with client_at(new.hub.keys.membership.address, east) as moved:
            moved.follow(book)
            await moved.connect()
        east.client.follow(book)
        with pytest.raises(StaleEpoch, match="steps down"):
            await east.client.connect()
        assert old.hub.state.fenced == new.hub.state.epoch
        with pytest.raises(RefusedError):
            await old.hub.failed
        with pytest.raises(StaleEpoch, match="taken over"):
            await west.client.offer(msg.Offer("tiny.1.1.west", "0" * 64, 100))
        await old.close()
        told = await west.next(msg.Superseded)
        assert isinstance(told, msg.Superseded) and "has taken over" in told.reason
        folder = consortium.folder / "coordinator"
        with pytest.raises(RefusedError, match=f"east follows epoch {new.hub.state.epoch}") as caught:
            await open_coordinator(folder)
        assert caught.value.exit_code == 3 and f"serve {folder} --take-over" in str(caught.value)
        consortium.serving = await open_coordinator(folder, take_over=True)
        assert consortium.serving.hub.state.epoch > new.hub.state.epoch
        assert not consortium.serving.hub.state.fenced
    finally:
        await new.close()


async def test_a_forged_epoch_fences_nobody(consortium: Consortium) -> None:
    """A member that claims an epoch which the coordinator never signed is refused; the rest goes on."""
    site, epoch = await consortium.join("east"), 1 << 40
    genuine = Book()
    site.client.follow(genuine)
    await site.client.connect()
    assert genuine.proof is not None
    own = statements.sign(statements.Epoch("test", epoch, 1), site.keys.message_key).hex()
    stranger = statements.sign(statements.Epoch("test", epoch, 1), MessageKey.generate()).hex()
    key = consortium.serving.hub.keys.message_key
    elsewhere = statements.sign(statements.Epoch("other", epoch, 1), key).hex()
    forged = [own, stranger, elsewhere, genuine.proof.signature, os.urandom(64).hex()]
    for signature in forged:
        site.client.follow(Book(EpochProof(epoch, 1, signature)))
        with pytest.raises(BadSignature, match="not signed"):
            await site.client.connect()
    assert consortium.serving.hub.state.fenced == 0 and not consortium.serving.hub.failed.done()
    site.client.follow(genuine)
    await site.client.connect()


async def test_an_own_or_lower_epoch_is_heard_in_peace(consortium: Consortium) -> None:
    """A site that comes back with the epoch of before the restart is welcome, whatever its signature."""
    site = await consortium.join("east")
    await consortium.restart()
    for epoch in (1, 2):
        site.client.follow(Book(EpochProof(epoch, 1, "00" * 64)))
        await site.client.connect()
    assert consortium.serving.hub.state.fenced == 0


async def test_an_upload_that_is_under_way_is_not_acknowledged_by_a_fenced_coordinator(
    consortium: Consortium,
) -> None:
    """Between the fence and the end of the process nothing counts: no receipt, no event."""
    east, west = await consortium.join("east"), await consortium.join("west")
    await east.attend()
    await west.attend()
    await consortium.operator.start(spec_of())
    seeded = await _first_order(east, west)
    hub, statement = consortium.serving.hub, statements.Epoch("test", 77, 1)
    proof = EpochProof(77, 1, statements.sign(statement, hub.keys.message_key).hex())
    holder = west if seeded is east else east
    holder.client.follow(Book(proof))
    with pytest.raises(StaleEpoch):
        await holder.client.connect()
    order = hub.state.runs["tiny"].round.seats[seeded.name].order  # type: ignore[union-attr]
    with pytest.raises(StaleEpoch):
        await seeded.answer(order, 1.0)
    assert hub.state.runs["tiny"].model is None
    assert f"{holder.name} follows epoch 77, this one was in 1" in why_fenced(hub, Path("home"))
    with pytest.raises(RefusedError):
        await hub.failed


async def _first_order(*sites: ScriptedSite) -> ScriptedSite:
    """The site that is asked for the first model."""
    asked = [asyncio.ensure_future(site.next(msg.Invitation)) for site in sites]
    done, waiting = await asyncio.wait(asked, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return sites[asked.index(done.pop())]


async def test_a_take_over_goes_above_the_epoch_that_fenced(consortium: Consortium) -> None:
    """However far ahead the other one is, the folder that takes its place back is ahead of it."""
    site, far = await consortium.join("east"), 5 * TAKEOVER_STEP + 3
    key = consortium.serving.hub.keys.message_key
    signature = statements.sign(statements.Epoch("test", far, 1), key).hex()
    site.client.follow(Book(EpochProof(far, 1, signature)))
    with pytest.raises(StaleEpoch):
        await site.client.connect()
    with pytest.raises(RefusedError):
        await consortium.serving.hub.failed
    await consortium.serving.close()
    consortium.serving = await open_coordinator(consortium.folder / "coordinator", take_over=True)
    assert consortium.serving.hub.state.epoch >= 6 * TAKEOVER_STEP
    await site.client.connect()


async def test_an_operator_remembers_too(consortium: Consortium) -> None:
    """Commands keep the epoch beside the member's keys: one that has spoken to a standby neither obeys the
    old coordinator nor leaves it in the dark."""
    home, copy = consortium.folder / "coordinator", copy_of(consortium)

    def runs(folder: Path) -> object:
        return ask(folder, lambda client: client.runs())

    assert await asyncio.to_thread(runs, home) == {"runs": []}
    kept = home / "operator" / "epoch.json"
    assert json.loads(kept.read_text())["epoch"] == 1
    kept.write_text("{")  # damaged: written again
    await asyncio.to_thread(runs, home)
    assert json.loads(kept.read_text())["epoch"] == 1
    new = await open_coordinator(copy, take_over=True, address=f"127.0.0.1:{free_port()}")
    try:
        await asyncio.to_thread(runs, copy)
    finally:
        await new.close()
    shutil.copy2(copy / "operator" / "epoch.json", kept)  # the same person, with the old address
    with pytest.raises(StaleEpoch, match=f"epoch {new.hub.state.epoch}"):
        await asyncio.to_thread(runs, home)
    assert consortium.serving.hub.state.fenced == new.hub.state.epoch
    with pytest.raises(RefusedError):
        await consortium.serving.hub.failed
