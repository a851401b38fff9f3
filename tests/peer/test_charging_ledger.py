"""One ledger for a site's life: told to the coordinator, shared by agents, never put back (FAULTS 59)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from charging_world import RECORD, by_rdp, private, rows, with_budget
from peer_world import CONSORTIUM, RUN, SITE, FakeCoordinator, Site, Versions, settled

from fedtrain.core import canonical, messages as msg
from fedtrain.core.charges import CHARGE, GAUSSIAN, LEDGER, POISSON_GAUSSIAN, Account, Mechanism
from fedtrain.core.masks import Signed
from fedtrain.core.orders import Order
from fedtrain.core.privacy import AdaptiveTerms, PrivacyTerms, SiteTerms
from fedtrain.methods.accounting import Bound, epsilon_rdp, exact_gaussian_epsilon, solve_noise
from fedtrain.peer import spending
from fedtrain.storage.ledger import Ledger
from fedtrain.trust import statements


@pytest.fixture(autouse=True)
def quick_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "epsilon_pld", by_rdp)
    solve_noise(8.0, 1e-5, 0.1, 50, "rdp")  # imports the accountants while nobody waits for an agent


async def test_a_ledger_from_an_old_copy_is_found_out(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """FAULTS 59: the agent's journal knows rows that the copy lacks; no private order is taken until the
    owner has written the unknown off, and then nothing is left of the budget."""
    with_budget(site, 8.0)
    path, copy = site.settings.state / "ledger.sqlite", site.settings.folder / "copy"
    async with site.start() as agent:
        await agent.session.attached.wait()
        for round_index in (1, 2):
            coordinator.invite(private(versions, round_index))
            site.hand_in((await site.claim()).order, bytes([round_index]) * 9)
            await settled(agent)
            if round_index == 1:
                with Ledger(path, writer=False):
                    _copy(path, copy)
    _restore(copy, path)
    reasons = await _refused(site, coordinator, private(versions, 3))
    assert "rolled back" in reasons[0] and "this agent's journal knows of row 2" in reasons[0]
    assert "fedtrain ledger repair" in reasons[0]
    with Ledger(path) as ledger:
        ledger.repair("corpus", "the disk was restored")
    reasons = await _refused(site, coordinator, private(versions, 4))
    assert "nothing is left, because the ledger was repaired" in reasons[0]


async def test_the_coordinator_remembers_what_a_restored_site_forgot(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Journal and ledger may both be of an old copy: the site's own signed account, handed back, tells."""
    with_budget(site, 8.0)
    order = private(versions)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        site.hand_in((await site.claim()).order)
        said = (await coordinator.until(lambda: coordinator.of(msg.Statement)))[0]
        await settled(agent)
    (site.settings.state / "ledger.sqlite").unlink()
    site.journal.entries.clear()
    handed_back = _handed_back(site, coordinator, said)
    forged = replace(handed_back, signature="00" * 64)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.send(forged)
        coordinator.send(handed_back)
        coordinator.heard.clear()
        coordinator.invite(private(versions, 2))
        (agreement,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
    assert not agreement.accepted and "the coordinator knows of row 1" in agreement.reasons[0]


async def test_the_account_is_signed_and_says_all(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """Unit, delta, mechanisms and two epsilons go to the coordinator, with the ledger's head; the noised bit
    of adaptive clipping follows with the result."""
    with_budget(site, None)
    terms = PrivacyTerms(RECORD, SiteTerms(1.0, 5.0, 1e-6, 10, adaptive=AdaptiveTerms()))
    order = private(versions, terms=terms)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        await site.claim()
        site.hand_in(order, within=0.75)
        both = await coordinator.until(
            lambda: len(coordinator.of(msg.Statement)) >= 2 and coordinator.of(msg.Statement)
        )
        await settled(agent)
    for statement in both:
        assert (statement.topic, statement.order) == (CHARGE, order.id)
        said = statements.said(CONSORTIUM, SITE, CHARGE, order.id, statement.document)
        statements.verify(said, site.keys.message_key.public, bytes.fromhex(statement.signature))
    accounts = [canonical.decode(Account, statement.document) for statement in both]
    assert accounts[-1].within == 0.75
    account = accounts[-1]
    by_unit = {claim.unit: claim for claim in account.claims}
    assert set(by_unit) == {"record", "site"} and (account.run, account.execution) == (RUN, 1)
    assert [count for _, count in by_unit["site"].mechanisms] == [1, 1]
    assert (
        by_unit["site"].delta == 1e-6 and 0 < by_unit["record"].epsilon_pld <= by_unit["record"].epsilon_rdp
    )
    head = rows(site)[-1]
    assert (account.sequence, account.hash) == (head.sequence, head.hash)


async def test_two_agents_of_one_site_share_a_ledger(
    site: Site, coordinator: FakeCoordinator, versions: Versions
) -> None:
    """What another consortium's agent has charged to the data set counts in this one's budget."""
    with_budget(site, 6.0)
    shared = site.settings.folder / "shared.sqlite"
    site.settings = replace(site.settings, ledger=shared)
    order = private(versions)
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        site.hand_in((await site.claim()).order)
        await settled(agent)
        with Ledger(shared) as ledger:
            other = replace(ledger.rows()[0].charge, consortium="another", run="theirs")
            ledger.charge([other] * 8)
        coordinator.heard.clear()
        coordinator.invite(private(versions, 2))
        (agreement,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
    assert not agreement.accepted and "epsilon_max is 6" in agreement.reasons[0]


def _handed_back(site: Site, coordinator: FakeCoordinator, said: msg.Statement) -> msg.Statement:
    document = canonical.encode(Signed(said.document, said.signature)).decode()
    statement = statements.said(CONSORTIUM, SITE, LEDGER, said.order, document)
    signature = statements.sign(statement, coordinator.key).hex()
    return msg.Statement(LEDGER, said.order, document, signature)


async def _refused(site: Site, coordinator: FakeCoordinator, order: Order) -> tuple[str, ...]:
    coordinator.heard.clear()
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(order)
        (agreement,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
    assert not agreement.accepted
    reasons: tuple[str, ...] = agreement.reasons
    return reasons


def _copy(path: Any, copy: Any) -> None:
    """A copy as a back-up makes it: the file with what its log holds."""
    import sqlite3

    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    with target:
        source.backup(target)
    source.close(), target.close()


def _restore(copy: Any, path: Any) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, path)


def test_gaussians_without_sampling_need_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their epsilon has a closed form, tighter than the Renyi bound; with sampling the tight accountant is
    asked."""
    asked: list[Any] = []

    def slow(composition: Any, delta: float, limit_s: float) -> Bound:
        asked.append(composition)
        return Bound(1.0, "pld")

    monkeypatch.setattr(spending, "epsilon_pld", slow)
    site = Mechanism(GAUSSIAN, "site", 1.0, 10.0)
    found = spending._bound([(site, 60), (replace(site, clip=3.0), 40)], 1e-5)
    assert (found.by, asked) == ("exact", [])
    assert found.epsilon == pytest.approx(exact_gaussian_epsilon(1.0, 1e-5))
    assert found.epsilon < epsilon_rdp([(site, 100)], 1e-5)
    sampled = Mechanism(POISSON_GAUSSIAN, "record", 1.0, 1.1, 0.01, 5)
    assert spending._bound([(site, 1), (sampled, 1)], 1e-5).by == "pld" and len(asked) == 1
    assert spending._bound([(replace(site, noise_multiplier=0.0), 1)], 1e-5).by == "pld" and len(asked) == 2
