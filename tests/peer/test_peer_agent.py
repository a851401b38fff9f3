"""The agent over a real mailbox and journal, with a coordinator in memory at the other end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from peer_world import LAYOUT, RUN, FakeCoordinator, Site, Versions, an_order, model_digest, settled

from fedtrain.core import canonical, messages as msg
from fedtrain.core.contract import Contract
from fedtrain.core.orders import OrderKind, Result
from fedtrain.peer.agent import now_ms
from fedtrain.storage.chain import SignedHead
from fedtrain.trust import statements


async def test_a_round_from_invitation_to_receipt(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """An allowed order is consented to, its model fetched, its result uploaded once and receipted."""
    order = an_order(3, model=versions.ref(2), parent="")
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        claim = await site.claim()
        assert claim.order == order
        assert model_digest(claim.folder / "model.safetensors") == versions.digests[2]
        result = site.hand_in(order)
        await coordinator.until(lambda: coordinator.commits)
        await settled(agent)
    (agreed,) = coordinator.of(msg.Agreement)
    contract = canonical.digest(site.settings.contract)
    statement = statements.Agreement(order.id, canonical.digest(order), True, (), contract)
    statements.verify(statement, site.keys.message_key.public, bytes.fromhex(agreed.signature))
    (commit,) = coordinator.commits
    assert (commit.order, commit.digest, commit.weight, commit.steps) == (order.id, result.digest, 80, 5)
    signed = statements.Commit(RUN, order.id, result.digest, 500, 80, 5)
    statements.verify(signed, site.keys.message_key.public, bytes.fromhex(commit.signature))
    assert bytes(coordinator.received[result.digest]) == b"u" * 500
    (receipt,) = site.entries("UploadAcknowledged")
    assert (receipt["order"], receipt["outcome"], receipt["signed_ms"]) == (order.id, "stored", 7)


async def test_what_is_over_leaves_nothing_behind(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """After the receipt the mailbox holds nothing of the order, after the version the outbox neither; one
    model stays."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        for round_index in (1, 2, 3):
            coordinator.invite(an_order(round_index, model=versions.ref(round_index - 1)))
            claim = await site.claim()
            site.hand_in(claim.order, bytes([round_index]) * 100)
            await coordinator.until(lambda n=round_index: len(coordinator.commits) == n)
            await settled(agent)
        assert [path.name for path in (site.settings.state / "outbox").iterdir()] == [claim.order.id]
        coordinator.send(msg.Publication(RUN, 3, 3, "d" * 64, "stored"))
        coordinator.send(coordinator.head(1, "a" * 64))
        await agent.until(lambda: not agent.state.held)
    folder = site.settings.mailbox
    assert not any(list((folder / name).iterdir()) for name in ("orders", "claims", "results"))
    assert not list((site.settings.state / "outbox").iterdir())
    models = site.settings.state / "models" / RUN
    assert [path.name for path in models.glob("*.safetensors")] == ["2.safetensors"]
    assert coordinator.fetched[0][0] == versions.ref(0).chain[0][1]
    assert len(coordinator.fetched) == 3, "a snapshot once, then one delta a version"


async def test_seeding_hands_over_weights_and_layout(site: Site, coordinator: FakeCoordinator) -> None:
    """A seed order needs no model, and its commit carries the layout and no numbers."""
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.hand_in(order, layout=LAYOUT.to_json(), weight=0, steps=0, norm=0.0)
        await settled(agent)
    (commit,) = coordinator.commits
    assert commit.layout == LAYOUT.to_json()
    assert (commit.weight, commit.steps, commit.norm, commit.train_loss) == (0, 0, 0.0, None)


async def test_the_contract_refuses_with_its_clause(site: Site, coordinator: FakeCoordinator) -> None:
    """A forbidden order is refused with the clause, signed, and nothing reaches the mailbox."""
    order = an_order(0, OrderKind.SEED, cohort=("jsc",))
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        (consent,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
        assert agent.state.held == {}
    assert not consent.accepted and "contract.cohort_min" in consent.reasons[0]
    statement = statements.Agreement(
        order.id, canonical.digest(order), False, consent.reasons, canonical.digest(site.settings.contract)
    )
    statements.verify(statement, site.keys.message_key.public, bytes.fromhex(consent.signature))
    assert site.mailbox.claim("trainer-1") is None


async def test_an_inquiry_is_answered_and_nothing_starts(site: Site, coordinator: FakeCoordinator) -> None:
    """`run check` learns what the contract would say; the journal and the mailbox hear nothing of it."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.send(msg.Inquiry("q1", an_order(0, OrderKind.SEED, task='{"name": "mining"}')))
        coordinator.send(msg.Inquiry("q2", an_order(0, OrderKind.SEED)))
        answers = await coordinator.until(
            lambda: coordinator.of(msg.Answer)[1:] and coordinator.of(msg.Answer)
        )
    assert [(answer.inquiry, answer.accepted) for answer in answers] == [("q1", False), ("q2", True)]
    assert not site.entries("OrderReceived")


async def test_an_order_for_another_site_is_left_alone(site: Site, coordinator: FakeCoordinator) -> None:
    """An order that names another site is neither answered nor worked on."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(an_order(0, OrderKind.SEED, site="other"))
        coordinator.send(msg.Inquiry("q", an_order(0, OrderKind.SEED)))
        await coordinator.until(lambda: coordinator.of(msg.Answer))
        assert not agent.state.held and not coordinator.of(msg.Agreement)


async def test_an_evaluation_is_told_once_in_a_session(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """A measured loss travels as a message, and is not said twice though the order comes twice."""
    order = an_order(2, OrderKind.EVALUATE, model=versions.ref(1), evaluate=True)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.mailbox.publish(Result(order.id, eval_loss=1.25, eval_count=900), None)
        await coordinator.until(lambda: coordinator.of(msg.Evaluation))
        if order.id in agent.state.held:
            coordinator.invite(order)
        await settled(agent)
    assert set(coordinator.of(msg.Evaluation)) == {msg.Evaluation(order.id, 1.25, 900)}
    assert len(coordinator.of(msg.Evaluation)) == 1


async def test_a_cancelled_order_is_withdrawn(site: Site, coordinator: FakeCoordinator) -> None:
    """A cancellation takes the order back from a trainer at work, and its result is thrown away."""
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        coordinator.send(msg.Cancellation(order.id, "the run was stopped"))
        await settled(agent)
        async with asyncio.timeout(5):
            while not site.mailbox.withdrawn(order.id):
                await asyncio.sleep(0.005)
        assert not site.mailbox.publish(Result(order.id, failure="late"), None)
    assert not coordinator.of(msg.Failure)


async def test_heads_are_witnessed(site: Site, coordinator: FakeCoordinator) -> None:
    """A signed head is journaled and kept as a file; a forged one is not; one of a second history is kept
    beside it as evidence. A repeated head is no news."""
    heads = site.settings.state / "heads"
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.send(replace(coordinator.head(8, "cc" * 32), sequence=9))
        coordinator.send(coordinator.head(7, "aa" * 32))
        async with asyncio.timeout(5):
            await agent.until(lambda: bool(site.entries("HeadWitnessed")))
        coordinator.send(coordinator.head(7, "bb" * 32))
        coordinator.send(coordinator.head(7, "aa" * 32))
        coordinator.send(coordinator.head(8, "dd" * 32))
        async with asyncio.timeout(5):
            await agent.until(lambda: bool(site.entries("HeadWitnessed")[1:]))
    evidence = f"7.{'bb' * 8}.json"
    assert sorted(path.name for path in heads.iterdir()) == sorted(["7.json", evidence, "8.json"])
    kept = canonical.decode(SignedHead, (heads / "7.json").read_bytes())
    assert (kept.sequence, kept.hash, kept.key_id) == (7, "aa" * 32, coordinator.key.key_id)
    assert [entry["sequence"] for entry in site.entries("HeadWitnessed")] == [7, 8]


async def test_heartbeats_carry_growing_counters(site: Site, coordinator: FakeCoordinator) -> None:
    """A trainer's progress travels in heartbeats; the counter grows with it and above any earlier agent's."""
    order = an_order(0, OrderKind.SEED)

    def counters() -> list[int]:
        return [p.counter for beat in coordinator.of(msg.Heartbeat) for p in beat.progress if p.steps]

    for steps in (3, 4):
        async with site.start() as agent:
            await agent.session.attached.wait()
            coordinator.invite(order)
            if steps == 3:
                await site.claim()
            site.mailbox.report(msg.Progress(order.id, 1, steps, 5, 2.0, 10.0, "train"))
            before = len(counters())
            await coordinator.until(lambda before=before: counters()[before:])
            assert agent.state.held
    told = counters()
    assert told == sorted(told) and told[0] < told[-1]


async def test_a_changed_contract_counts_from_the_next_start(
    site: Site, coordinator: FakeCoordinator
) -> None:
    """What peer.yaml says at a start is what orders are held against from then on."""
    order = an_order(0, OrderKind.SEED)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
    site.settings = replace(site.settings, contract=Contract())
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await coordinator.until(lambda: [c for c in coordinator.of(msg.Agreement) if not c.accepted])
        assert not agent.state.held
    assert json.loads(canonical.encode(Contract())) == site.entries("AgentBooted")[-1]["contract"]


async def test_clocks_that_differ_are_said(
    site: Site, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that is an hour or a year off stops nothing here, and the log says what to do."""
    async with site.start() as agent:
        await agent.session.attached.wait()
    assert "clock" not in caplog.text
    coordinator.clock_ms = now_ms() - 3_700_000
    async with site.start() as agent:
        await agent.session.attached.wait()
    assert "s ahead of the coordinator's: set it (NTP)" in caplog.text
    coordinator.clock_ms = now_ms() + 31_600_000_000
    async with site.start() as agent:
        await agent.session.attached.wait()
    assert "s behind the coordinator's: set it (NTP)" in caplog.text
