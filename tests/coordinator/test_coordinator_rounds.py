"""Rounds over real gRPC: what a site does by hand, and what the coordinator makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib

import pytest
from coordinator_world import Consortium, ScriptedSite, client_of, spec_of, two_sites, whole_mean

from fedtrain.core import messages as msg
from fedtrain.core.orders import OrderKind
from fedtrain.core.state import Phase, Standing
from fedtrain.errors import (
    BadSignature,
    BadUpdate,
    Equivocation,
    OfferAgain,
    RemoteError,
    StaleRound,
    UnknownSite,
)


async def whole_round(*sites: ScriptedSite, values: tuple[float, ...], weights: tuple[int, ...]) -> None:
    for site, value, weight in zip(sites, values, weights, strict=True):
        order = await site.order()
        site.consent(order)
        await site.answer(order, value, weight)


async def test_run_ends_with_the_weighted_mean(consortium: Consortium) -> None:
    """Two rounds of plain averaging give theta - mean(updates), weighted by what the sites declared."""
    first, second = await two_sites(consortium)
    await whole_round(first, second, values=(1.0, 4.0), weights=(10, 20))
    await whole_round(first, second, values=(0.5, 0.5), weights=(10, 10))
    for site in (first, second):
        order = await site.order()
        assert order.kind is OrderKind.EVALUATE
        site.outbox.put_nowait(msg.Evaluation(order.id, 1.25, 9))
    state = consortium.serving.hub
    await consortium.until(lambda: state.state.runs["tiny"].phase is Phase.DONE)
    run = state.state.runs["tiny"]
    assert run.evaluations["alpha"] == (2, 1.25, 9)
    whole_mean(state.versions.public("tiny", 2), 3.0 + 0.5)


async def test_every_seat_is_in_the_record(consortium: Consortium) -> None:
    """A refusal closes the seat with its clause, and a failure with its reason."""
    first, second = await two_sites(consortium)
    order = await first.order()
    first.consent(order)
    await first.answer(order, 1.0)
    refused = await second.order()
    second.consent(refused, "contract.hours: not now")
    hub = consortium.serving.hub
    await consortium.until(lambda: len(hub.state.runs["tiny"].records) == 2)
    record = hub.state.runs["tiny"].records[-1]
    assert record.version is None
    assert record.seats["beta"].standing is Standing.REFUSED
    assert "contract.hours" in record.seats["beta"].reason
    assert record.seats["alpha"].standing is Standing.STORED


async def test_same_commit_gets_the_same_receipt(consortium: Consortium) -> None:
    """A lost reply is repeated byte for byte, also by a coordinator that was restarted in between."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    path = first.make_file(order, 1.0)
    receipt = await first.answer(order, 1.0)
    again = await first.client.commit(first.commit(order, path))
    assert again == receipt
    await consortium.restart()
    await first.client.connect()
    assert await first.client.commit(first.commit(order, path)) == receipt


async def test_an_upload_goes_on_at_a_restarted_coordinator(consortium: Consortium) -> None:
    """Between offer and commit it asks for the offer again, keeps the bytes that it has, and counts once."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    path = first.make_file(order, 1.0)
    commit = first.commit(order, path)
    offer = msg.Offer(order.id, commit.digest, commit.size_bytes)
    await first.client.offer(offer)
    await first.client.send_file(path, commit.digest, commit.size_bytes)
    await consortium.restart()
    await first.client.connect()
    for call in (first.client.send_file(path, commit.digest, commit.size_bytes), first.client.commit(commit)):
        with pytest.raises(OfferAgain):
            await call
    assert (await first.client.offer(offer)).offset == commit.size_bytes
    assert (await first.client.commit(commit)).outcome == "stored"


async def test_second_story_is_refused_and_journaled(consortium: Consortium) -> None:
    """Another blob for an order that was answered is equivocation."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    await first.answer(order, 1.0)
    path = first.make_file(order, 2.0)
    commit = first.commit(order, path)
    with pytest.raises(Equivocation, match="another blob"):
        await first.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    kinds = [row.kind for row in consortium.serving.hub.journal.read()]
    assert kinds.count("UpdateRejected") == 1


async def test_upload_goes_on_where_it_broke(consortium: Consortium) -> None:
    """Bytes that came before a restart of the coordinator are not sent again, and count once."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    path = first.make_file(order, 1.0)
    commit = first.commit(order, path)
    await first.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    upload = consortium.serving.hub.blobs.begin(commit.digest, commit.size_bytes)
    upload.write(0, path.read_bytes()[: commit.size_bytes // 2])
    with pytest.raises(RemoteError, match="missing"):
        await first.client.commit(commit)
    await consortium.restart()
    await first.client.connect()
    missing = await first.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    assert missing.offset == commit.size_bytes // 2
    await first.client.send_file(path, commit.digest, commit.size_bytes, missing.offset)
    assert (await first.client.commit(commit)).outcome == "stored"


async def test_bad_uploads_are_refused(consortium: Consortium) -> None:
    """Wrong size, foreign order, wrong signature, non-finite values: each by its own error."""
    first, second = await two_sites(consortium)
    order = await first.order()
    path = first.make_file(order, float("nan"))
    commit = first.commit(order, path)
    with pytest.raises(BadUpdate, match="bytes"):
        await first.client.offer(msg.Offer(order.id, commit.digest, 1 << 40))
    with pytest.raises(UnknownSite):
        await second.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    await first.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    await first.client.send_file(path, commit.digest, commit.size_bytes)
    with pytest.raises(BadSignature):
        await first.client.commit(dataclasses.replace(commit, weight=11))
    with pytest.raises(BadUpdate, match="finite"):
        await first.client.commit(commit)
    seat = consortium.serving.hub.state.runs["tiny"].round
    assert seat is not None and seat.seats["alpha"].standing is Standing.FAILED


async def test_restart_hands_the_open_orders_out_again(consortium: Consortium) -> None:
    """After a restart the same orders come to whoever attaches, under a higher epoch."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    epoch = consortium.serving.hub.state.epoch
    await first.close()
    await consortium.restart()
    assert consortium.serving.hub.state.epoch == epoch + 1
    reopened = ScriptedSite(first.keys, first.folder, client_of(first.keys))
    consortium.sites.append(reopened)
    await reopened.attend("second")
    assert await reopened.order() == order


async def test_stopped_run_takes_no_more_updates(consortium: Consortium) -> None:
    """A stop calls the work off, and an update that comes all the same is stale."""
    first, _ = await two_sites(consortium)
    order = await first.order()
    await consortium.operator.stop("tiny")
    cancelled = await first.next(msg.Cancellation)
    assert isinstance(cancelled, msg.Cancellation) and cancelled.order == order.id
    with pytest.raises(StaleRound, match="stopped"):
        await first.answer(order, 1.0)


async def test_newer_session_supersedes(consortium: Consortium) -> None:
    """Of two sessions of one site the newer one gets the orders."""
    site = await consortium.join("alpha")
    await site.attend("first")
    newer = ScriptedSite(site.keys, site.folder, client_of(site.keys))
    consortium.sites.append(newer)
    await newer.attend("second")
    superseded = await site.next(msg.Superseded)
    assert isinstance(superseded, msg.Superseded) and "newer session" in superseded.reason
    hub = consortium.serving.hub
    await consortium.until(lambda: [a.session for a in hub.state.attached.values()] == ["second"])


async def test_export_is_what_the_head_promises(consortium: Consortium) -> None:
    """The exported bytes have the promised digest."""
    await two_sites(consortium)
    export = await consortium.operator.export("tiny")
    data = b"".join([piece async for piece in export.pieces])
    assert hashlib.sha256(data).hexdigest() == export.head.digest
    assert export.head.version == 0


async def test_check_asks_the_sites(consortium: Consortium) -> None:
    """`run check` tells who accepts, who refuses with the clause, and who is away."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await consortium.join("gamma")
    await first.attend()
    await second.attend()

    async def reply(site: ScriptedSite, *reasons: str) -> None:
        inquiry = await site.next(msg.Inquiry)
        assert isinstance(inquiry, msg.Inquiry)
        site.outbox.put_nowait(msg.Answer(inquiry.inquiry, not reasons, reasons))

    answers = asyncio.gather(reply(first), reply(second, "contract.tasks does not allow task scripted"))
    document = await consortium.operator.check(spec_of())
    await answers
    assert {name: found["answer"] for name, found in document["sites"].items()} == {
        "alpha": "accepts",
        "beta": "refuses",
        "gamma": "absent",
    }
    assert not document["can_start"]
