"""The agent when things break: links, files, results, coordinators, and itself."""

from __future__ import annotations

import asyncio

import pytest
from peer_world import LAYOUT, FakeCoordinator, Site, Versions, an_order, settled

from fedtrain.core import messages as msg
from fedtrain.core.orders import OrderKind, Result
from fedtrain.errors import (
    BadUpdate,
    BusyError,
    FedtrainError,
    OfferAgain,
    StaleRound,
    StorageError,
    UnreachableError,
)
from fedtrain.storage.mailbox import Mailbox


async def test_a_failure_reaches_the_coordinator_though_the_session_breaks(
    site: Site, coordinator: FakeCoordinator
) -> None:
    """A failure that went into a session which then broke is told again in the next one."""
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.mailbox.publish(Result(order.id, failure="the loss is not finite"), None)
        await coordinator.until(lambda: coordinator.of(msg.Failure))
        coordinator.send(UnreachableError("the connection broke"))
        failures = await coordinator.until(lambda: coordinator.of(msg.Failure)[1:])
        assert failures[0] == msg.Failure(order.id, "the loss is not finite")
        await settled(agent)
    assert coordinator.sessions == 2
    assert len(site.entries("AnswerDelivered")) == 1


async def test_an_upload_goes_on_where_it_broke(site: Site, coordinator: FakeCoordinator) -> None:
    """After a break in the middle only the missing bytes are sent, and it is committed once."""
    order = an_order(0, OrderKind.SEED)
    coordinator.cut_send_at = 200
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        result = site.hand_in(order, layout=LAYOUT.to_json())
        await settled(agent)
    assert bytes(coordinator.received[result.digest]) == b"u" * 500
    assert len(coordinator.commits) == 1


async def test_a_restarted_agent_goes_on_from_its_journal(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """An agent that died with work out, or with a result in hand, carries both to their end."""
    order = an_order(2, model=versions.ref(1))
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
    coordinator.away = True
    site.hand_in(order)
    async with site.start() as agent:
        async with asyncio.timeout(5):
            await agent.until(lambda: any(held.result for held in agent.state.held.values()))
        assert not coordinator.commits
    coordinator.away = False
    async with site.start() as agent:
        await settled(agent)  # an upload waits for no session
        await coordinator.until(lambda: len(coordinator.of(msg.Hello)) == 2)
    assert len(coordinator.commits) == 1
    hellos = coordinator.of(msg.Hello)
    assert [hello.holding for hello in hellos] == [(), (order.id,)]
    assert len({hello.session for hello in hellos}) == len(hellos)


@pytest.mark.parametrize("again", [OfferAgain("a new coordinator"), BusyError("8 transfers")], ids=type)
async def test_an_upload_that_a_new_coordinator_does_not_know_is_offered_again(
    site: Site, coordinator: FakeCoordinator, versions: Versions, again: FedtrainError
) -> None:
    """A coordinator that restarted between offer and commit costs the site nothing but the second offer."""
    order = an_order(1, model=versions.ref(0))
    coordinator.refusal = again
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.hand_in(order)
        await settled(agent)
    assert [commit.order for commit in coordinator.commits] == [order.id]
    assert not site.entries("UploadRefused")


async def test_a_refused_upload_is_dropped(site: Site, coordinator: FakeCoordinator) -> None:
    """What the coordinator will not take is not offered for ever, and the journal keeps the reason."""
    for round_index, refusal in enumerate(
        (StaleRound("the round is over"), BadUpdate("its norm is too large"))
    ):
        order = an_order(0, OrderKind.SEED, attempt=round_index + 1)
        coordinator.refusal = refusal
        async with site.start() as agent:
            await agent.session.attached.wait()
            coordinator.invite(order)
            await site.claim()
            site.hand_in(order, layout=LAYOUT.to_json())
            await settled(agent)
    assert [entry["reason"] for entry in site.entries("UploadRefused")] == [
        "the round is over",
        "its norm is too large",
    ]
    assert not coordinator.commits and not coordinator.of(msg.Failure)


async def test_a_full_coordinator_is_tried_again(site: Site, coordinator: FakeCoordinator) -> None:
    """A coordinator without space gets the same update again when it has some."""
    coordinator.refusal = StorageError("free some space")
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.hand_in(order, layout=LAYOUT.to_json())
        await settled(agent)
    assert len(coordinator.commits) == 1


async def test_a_file_that_is_not_what_it_claims_is_never_committed(
    site: Site, coordinator: FakeCoordinator
) -> None:
    """A result whose bytes do not have its digest becomes a failure, told to the coordinator."""
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.hand_in(order, digest="ab" * 32, layout=LAYOUT.to_json())
        await settled(agent)
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
    assert failure.order == order.id
    assert not coordinator.commits


@pytest.mark.parametrize(
    "changes",
    [{"file": "model.bin"}, {"norm": -1.0}, {"file": "", "digest": "", "size_bytes": 0}],
    ids=["wrong-file", "negative-norm", "no-file"],
)
async def test_an_unfit_result_is_a_failure(
    site: Site, coordinator: FakeCoordinator, versions: Versions, changes: dict[str, object]
) -> None:
    """A result that cannot be an answer to its order is reported as one that failed."""
    order = an_order(1, model=versions.ref(0))
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        if changes.get("file") == "":
            site.mailbox.publish(Result(order.id, weight=3), None)
        else:
            site.hand_in(order, **changes)
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
        await settled(agent)
    assert order.id in failure.reason
    assert not coordinator.received


async def test_a_model_that_cannot_be_had_is_a_failure(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """An order whose model the coordinator does not serve is given up with the reason."""
    order = an_order(1, model=versions.ref(1))
    coordinator.blobs = {}
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
        assert "no blob" in failure.reason
        await settled(agent)


async def test_a_fetch_waits_for_the_link(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A download that breaks goes on at its byte, and the order is not given up for it."""
    order = an_order(1, model=versions.ref(0))
    coordinator.cut_fetch_at = 700
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
    assert [offset for _, offset in coordinator.fetched] == [0, 700]


async def test_an_old_coordinator_is_not_obeyed(site: Site, coordinator: FakeCoordinator) -> None:
    """A coordinator with a lower epoch than one seen before is refused, also by a restarted agent."""
    coordinator.epoch = 5
    async with site.start() as agent:
        await agent.session.attached.wait()
    coordinator.epoch = 4
    async with site.start() as agent:
        async with asyncio.timeout(5):
            while "epoch 5 was seen" not in agent.session.failure:
                await asyncio.sleep(0.005)
        assert not agent.session.attached.is_set()
    coordinator.epoch = 6
    async with site.start() as agent:
        await agent.session.attached.wait()
        assert agent.state.epoch == 6


async def test_yesterdays_leftovers_are_swept(site: Site, coordinator: FakeCoordinator) -> None:
    """Orders and results that the journal does not know are gone before a trainer can take them."""
    site.mailbox.create()
    site.mailbox.post(an_order(9, OrderKind.SEED), None)
    async with site.start() as agent:
        await agent.session.attached.wait()
        assert site.mailbox.claim("trainer-1") is None


async def test_a_mailbox_that_stumbles_is_looked_at_again(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared disk that refuses once costs neither the agent nor the result."""
    order = an_order(0, OrderKind.SEED)
    honest, faults = Mailbox.results, [StorageError("cannot list: stale file handle")]

    def stumbling(mailbox: Mailbox) -> list[str]:
        found = honest(mailbox)
        if found and faults:
            raise faults.pop()
        return found

    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        monkeypatch.setattr(Mailbox, "results", stumbling)
        site.hand_in(order, layout=LAYOUT.to_json())
        await settled(agent)
    assert len(coordinator.commits) == 1 and not faults
