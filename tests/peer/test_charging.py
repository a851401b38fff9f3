"""The agent charges before anybody works: real ledger and mailbox, a coordinator in memory (FAULTS 56-58)."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from charging_world import RECORD, by_rdp, executions, private, rows, with_budget
from peer_world import CONSORTIUM, FakeCoordinator, Site, Versions, an_order, settled

from fedtrain.core import messages as msg
from fedtrain.core.agent import Stage
from fedtrain.core.privacy import PrivacyTerms
from fedtrain.methods.accounting import epsilon_rdp, solve_noise
from fedtrain.peer import charging, spending
from fedtrain.peer.progress import RECKONING_PHASE
from fedtrain.storage.mailbox import Finding


@pytest.fixture(autouse=True)
def quick_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "epsilon_pld", by_rdp)
    solve_noise(8.0, 1e-5, 0.1, 50, "rdp")  # imports the accountants while nobody waits for an agent


async def test_it_is_charged_before_a_trainer_can_claim_it(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Whoever claims a private order finds a permit whose row is in the ledger already, durable."""
    with_budget(site, 8.0)
    order = private(versions)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        claim = await site.claim()
        (row,) = rows(site)
        assert claim.permit is not None and claim.permit.ledger_sequence == row.sequence == 1
        assert row.charge.mechanism == claim.permit.record
        assert (row.charge.consortium, row.charge.dataset, row.charge.execution) == (CONSORTIUM, "corpus", 1)
        site.hand_in(order)
        await settled(agent)
    kinds = [entry.kind for entry in site.journal.entries]
    assert kinds.index("ChargeMade") < kinds.index("ResultTaken")
    (charge,) = site.entries("ChargeMade")
    assert (charge["sequence"], charge["hash"]) == (row.sequence, row.hash)
    epsilon = epsilon_rdp([(row.charge.mechanism, 10)], 1e-5)
    assert 7.9 < epsilon <= 8.0, "ten orders of five steps are the fifty that the run promises"


async def test_what_promises_nothing_is_not_charged(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """An order without privacy has no permit, and nobody opens a ledger for it."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(an_order(1, model=versions.ref(0)))
        claim = await site.claim()
        assert claim.permit is None
    assert not (site.settings.state / "ledger.sqlite").exists()


async def test_a_spent_budget_stops_before_the_work(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """FAULTS 56: the order that would overdraw is refused with what is left; nothing is charged for it."""
    with_budget(site, 6.0)
    async with site.start() as agent:
        await agent.session.attached.wait()
        done = 0
        for round_index in range(1, 20):
            coordinator.invite(private(versions, round_index))
            await coordinator.until(lambda n=round_index: len(coordinator.of(msg.Agreement)) == n)
            if not coordinator.of(msg.Agreement)[-1].accepted:
                break
            claim = await site.claim()
            site.hand_in(claim.order, bytes([round_index]) * 50)
            await settled(agent)
            done = round_index
    refused = coordinator.of(msg.Agreement)[-1]
    assert 1 <= done < 19 and not refused.accepted
    assert "datasets.corpus.privacy.epsilon_max is 6" in refused.reasons[0]
    assert "are left" in refused.reasons[0] and "record" in refused.reasons[0]
    assert len(rows(site)) == done
    mechanism = rows(site)[0].charge.mechanism
    assert epsilon_rdp([(mechanism, done)], 1e-5) <= 6.0 < epsilon_rdp([(mechanism, done + 1)], 1e-5)


async def test_a_budget_that_is_gone_at_the_charge_is_a_failure(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Before its units are counted an order is taken in hand; the charge finds that there is no room."""
    with_budget(site, 0.5)
    record = replace(RECORD, sampling_rate=None)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(private(versions, terms=PrivacyTerms(record)))
        async with asyncio.timeout(30):
            while not (asked := list(site.mailbox.probes())):
                await asyncio.sleep(0.01)
        assert json.loads(asked[0].task)["data"] == "corpus" and asked[0].unit == "record"
        site.mailbox.answer(Finding(asked[0].id, "trainer-1", "1", 1, 0, True, units=80))
        (failure,) = await coordinator.until(lambda: coordinator.of(msg.Failure))
    assert "epsilon_max is 0.5: 0 are spent" in failure.reason
    assert site.entries("PrivacyReckoned")[0]["units"] == 80
    assert not rows(site) and site.mailbox.claim("trainer-1") is None


async def test_units_are_counted_once(site: Site, coordinator: FakeCoordinator, versions: Versions) -> None:
    """The rate and the noise are found for the first order and kept; a permit names the units."""
    with_budget(site, 100.0)
    terms = PrivacyTerms(replace(RECORD, sampling_rate=None))
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(private(versions, 1, terms))
        async with asyncio.timeout(30):
            while not (asked := list(site.mailbox.probes())):
                await asyncio.sleep(0.01)
        site.mailbox.answer(Finding(asked[0].id, "trainer-1", "1", 1, 0, True, units=80))
        first = await site.claim()
        site.hand_in(first.order)
        await settled(agent)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(private(versions, 2, terms))
        second = await site.claim()
    assert first.permit and second.permit and first.permit.units == second.permit.units == 80
    assert first.permit.record and first.permit.record.sampling_rate == 0.1
    assert first.permit.record == second.permit.record
    assert len(site.entries("PrivacyReckoned")) == 1


async def test_reckoning_is_a_sign_of_life(
    site: Site, coordinator: FakeCoordinator, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an accountant takes its time, heartbeats show progress: a busy machine is not given up."""
    done = threading.Event()

    def slow(*terms: Any) -> float:
        done.wait(60)
        return solve_noise(*terms[:4], "rdp")

    def counters() -> set[int]:
        beats = coordinator.of(msg.Heartbeat)
        return {p.counter for beat in beats for p in beat.progress if p.phase == RECKONING_PHASE}

    with_budget(site, 8.0)
    monkeypatch.setattr(charging, "solve_noise", slow)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(private(versions))
        try:
            await coordinator.until(lambda: len(counters()) > 1)
        finally:
            done.set()
        claim = await site.claim()
        assert claim.permit is not None and not agent.charging.reckoning


async def test_an_expired_claim_is_charged_again(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """An order that another trainer gets has a new permit, and a row of its own in the ledger."""
    with_budget(site, 8.0)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(private(versions))
        first = await site.claim()
        site.mailbox.expire(first.order.id)
        second = await site.claim()
        assert first.permit and second.permit
        assert (first.permit.execution, second.permit.execution) == (1, 2)
        assert second.permit.ledger_sequence == 2
        site.hand_in(second.order)
        await settled(agent)
    assert executions(site) == [(first.order.id, 1), (first.order.id, 2)]


async def test_an_order_in_the_mailbox_is_not_charged_twice(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A restart of the agent, or an order that is said again, finds it posted: one execution, one charge."""
    with_budget(site, 8.0)
    order = private(versions)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        async with asyncio.timeout(30):
            await agent.until(lambda: order.id in agent.posted)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        claim = await site.claim()
        assert claim.permit and claim.permit.execution == 1
        site.hand_in(order)
        await settled(agent)
    assert executions(site) == [(order.id, 1)]


async def test_a_crash_behind_the_charge_costs_it(
    site: Site, coordinator: FakeCoordinator, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 57: a charge whose journal row or post is lost stays; the next try is the next execution."""
    with_budget(site, 8.0)
    order = private(versions)

    async with site.start() as agent:
        charge = agent.charging._charge
        stuck = asyncio.Event()
        loop = asyncio.get_running_loop()

        def charge_and_hang(*arguments: Any) -> Any:
            charge(*arguments)
            loop.call_soon_threadsafe(stuck.set)
            raise asyncio.CancelledError  # the process is gone

        monkeypatch.setattr(agent.charging, "_charge", charge_and_hang)
        await agent.session.attached.wait()
        coordinator.invite(order)
        await asyncio.wait_for(stuck.wait(), 30)
    assert executions(site) == [(order.id, 1)] and not site.entries("ChargeMade")
    async with site.start() as agent:
        claim = await site.claim()
        assert claim.permit and (claim.permit.execution, claim.permit.ledger_sequence) == (2, 2)
        await agent.session.attached.wait()
    assert executions(site) == [(order.id, 1), (order.id, 2)]


async def test_a_lost_send_is_resent_and_costs_nothing(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """FAULTS 58: what did not leave, or broke on its way, leaves with the same bytes in the next life."""
    with_budget(site, 8.0)
    order = private(versions)
    data = bytes(range(250)) * 4
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        coordinator.away = True
        result = site.hand_in(order, data)
        async with asyncio.timeout(30):
            await agent.until(lambda: agent.state.held[order.id].stage is Stage.ANSWERED)
    assert not coordinator.received
    coordinator.away, coordinator.cut_send_at = False, 100
    async with site.start() as agent:
        await settled(agent)
    assert bytes(coordinator.received[result.digest]) == data
    assert executions(site) == [(order.id, 1)]


async def test_messages_keep_their_order_while_a_cost_is_reckoned(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A cancellation that comes right behind its invitation ends the order, however long the reckoning."""
    with_budget(site, 8.0)
    order = private(versions)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        coordinator.send(msg.Cancellation(order.id, "not needed any more"))
        coordinator.send(msg.Inquiry("q", private(versions)))
        await coordinator.until(lambda: coordinator.of(msg.Answer))
        assert not agent.state.held
        kinds = [entry.kind for entry in site.journal.entries]
    assert kinds.index("OrderReceived") < kinds.index("OrderCancelled")
