"""Words of the site's people: left in a folder, taken once, told to the coordinator, and kept out of it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from peer_world import PATIENCE_S, RUN, FakeCoordinator, Site, an_order

from fedtrain.core import agent as core, canonical, messages as msg
from fedtrain.core.contract import Approval, Hours, Rights
from fedtrain.core.orders import OrderKind
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.peer import assent, decisions
from fedtrain.peer.decisions import Decision, LetterBox, put
from fedtrain.peer.standing import open_standing
from fedtrain.storage.journal import Journal
from fedtrain.trust import statements

SEED = an_order(0, OrderKind.SEED)


def manual(site: Site) -> Site:
    """The site with manual approval."""
    site.settings = replace(site.settings, contract=replace(site.settings.contract, approval=Approval.MANUAL))
    return site


def words(site: Site) -> list[Path]:
    """Files that wait for the agent."""
    return sorted((site.settings.state / "decisions").glob("*.json"))


def test_a_word_is_written_whole_and_read_once(tmp_path: Path) -> None:
    """Words come back oldest first, as they were given; what is removed is gone."""
    box = LetterBox(tmp_path)
    box.create()
    given = [Decision("approve", "run-1", "", "eve"), Decision("withhold", "run-1.2.1.a", "too odd", "eve")]
    paths = [put(tmp_path, word) for word in given]
    assert [word for _, word in box.waiting()] == given
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    for path, _ in box.waiting():
        box.remove(path)
    assert box.waiting() == []


@pytest.mark.parametrize(
    "bad",
    [
        Decision("applaud", "run-1"),
        Decision("approve", "Run_1"),
        Decision("approve", "run-1.1.1.a"),
        Decision("release", "run-1"),
        Decision("deny", "run-1", "x" * 1_001),
    ],
)
def test_what_nobody_can_mean_is_refused_at_both_ends(tmp_path: Path, bad: Decision) -> None:
    """An unknown word, a name of the wrong kind and an endless reason are neither given nor taken."""
    with pytest.raises(ConfigError):
        put(tmp_path, bad)
    box = LetterBox(tmp_path)
    box.create()
    path = box.folder / "1-a.json"
    path.write_bytes(canonical.encode(bad))
    assert box.waiting() == [] and not path.exists()


def test_files_that_are_no_words_are_thrown_away(tmp_path: Path) -> None:
    """A link, a pipe, half a document and a huge one hold nobody up, and a link is not followed."""
    box = LetterBox(tmp_path)
    box.create()
    outside = tmp_path / "outside.json"
    outside.write_bytes(canonical.encode(Decision("approve", "run-1")))
    (box.folder / "1.json").symlink_to(outside)
    os.mkfifo(box.folder / "2.json")
    (box.folder / "3.json").write_bytes(b'{"kind":"approve"')
    (box.folder / "4.json").write_bytes(b" " * 1_000_000)
    (box.folder / ".draft").write_bytes(b"half")
    assert box.waiting() == [] and outside.exists()
    assert [path.name for path in box.folder.iterdir()] == [".draft"]


async def test_a_running_agent_acts_at_once(site: Site, coordinator: FakeCoordinator) -> None:
    """Manual approval: the order waits, a yes leads to a new session, in which it is accepted."""
    async with manual(site).start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        (no,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
        assert not no.accepted and "waits for a person's word" in no.reasons[0]
        put(site.settings.state, Decision("approve", RUN, "", "eve"))
        first, second = await coordinator.until(
            lambda: coordinator.of(msg.Hello)[1:] and coordinator.of(msg.Hello)
        )
        assert first.session != second.session
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        await coordinator.until(lambda: [yes for yes in coordinator.of(msg.Agreement) if yes.accepted])
        async with asyncio.timeout(60):
            while words(site):  # its file goes behind the event that it became
                await asyncio.sleep(0.01)
    (decided,) = site.entries("RunDecided")
    assert decided["verdict"] == {"by": "eve", "reason": "", "word": "approved"}


async def test_a_word_waits_for_the_agents_next_start(site: Site, coordinator: FakeCoordinator) -> None:
    """A no that was left while no agent ran is heard before the first order, and the file is gone."""
    path = put(site.settings.state, Decision("deny", RUN, "ethics", "eve"))
    assert not decisions.await_taken(path, 0.05)
    async with site.start() as agent:
        assert decisions.await_taken(path, PATIENCE_S)
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        (no,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
    assert not no.accepted and "denied" in no.reasons[0] and "ethics" in no.reasons[0]
    assert "eve" not in json.dumps(canonical.to_plain(no))


async def test_a_withdrawal_is_said_in_every_session(site: Site, coordinator: FakeCoordinator) -> None:
    """What is in hand is dropped, the signed withdrawal goes out at once and again in each session, until a
    yes; after that it is not said any more."""
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        await agent.until(lambda: SEED.id in agent.posted)
        put(site.settings.state, Decision("withdraw", RUN, "leaving", "eve"))
        (said,) = await coordinator.until(lambda: coordinator.of(msg.Withdrawal))
        statement = statements.Withdrawal("jsc", RUN, "leaving")
        statements.verify(statement, site.keys.message_key.public, bytes.fromhex(said.signature))
        assert not agent.state.held
    async with site.start() as agent:
        await coordinator.until(lambda: coordinator.of(msg.Withdrawal)[1:])
        sessions = len(coordinator.of(msg.Hello))
        put(site.settings.state, Decision("approve", RUN, "", "eve"))
        await coordinator.until(lambda: len(coordinator.of(msg.Hello)) > sessions)
        coordinator.invite(SEED)
        await coordinator.until(lambda: len([a for a in coordinator.of(msg.Agreement) if a.accepted]) == 2)
        assert len(coordinator.of(msg.Withdrawal)) == 2


async def test_the_declaration_tells_what_may_be_known(site: Site, coordinator: FakeCoordinator) -> None:
    """Only discoverable data sets are counted to the coordinator; the signed contract lies in the state
    folder, and its row is written again only when something changed."""
    datasets = {"open": Rights(discoverable=True), "closed": Rights(execute=("synthetic",))}
    site.settings = replace(site.settings, contract=replace(site.settings.contract, datasets=datasets))
    async with site.start() as agent:
        await coordinator.until(lambda: coordinator.of(msg.Declaration))
        agent.submit(core.DataCounted(1, {"open": 7, "closed": 9}))
        agent.desk.declare()
        first, second = await coordinator.until(
            lambda: coordinator.of(msg.Declaration)[1:] and coordinator.of(msg.Declaration)
        )
    assert (first.examples, second.examples) == ({}, {"open": 7})
    async with site.start():
        await coordinator.until(lambda: coordinator.of(msg.Declaration)[2:])
    assert [row["examples"] for row in site.entries("ContractSigned")] == [{}, {"open": 7}]
    contract = (site.settings.state / assent.CONTRACT_FILE).read_bytes()
    signed = canonical.decode(
        assent.SignedContract, (site.settings.state / assent.SIGNATURE_FILE).read_bytes()
    )
    assert json.loads(contract) == canonical.to_plain(site.settings.contract)
    statement = statements.Declaration("jsc", signed.contract, signed.examples)
    statements.verify(statement, site.keys.message_key.public, bytes.fromhex(signed.signature))


async def test_a_window_that_opens_has_the_order_asked_again(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order out of hours is refused; when the contract's clock reaches them, the site attaches anew."""
    hours = Hours(600, 660, "Europe/Berlin")
    site.settings = replace(site.settings, contract=replace(site.settings.contract, hours=hours))
    minute = [599]
    real = assent.moment_at
    monkeypatch.setattr(
        "fedtrain.peer.desk.moment_at",
        lambda contract, at_ms: replace(real(contract, at_ms), minute=minute[0]),
    )
    async with site.start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        (no,) = await coordinator.until(lambda: coordinator.of(msg.Agreement))
        assert no.reasons == ("contract.hours are 10:00-11:00 Europe/Berlin, and it is 09:59 there",)
        sessions = coordinator.sessions
        await asyncio.sleep(0.1)
        assert coordinator.sessions == sessions
        minute[0] = 600
        await coordinator.until(lambda: len(coordinator.of(msg.Hello)) > sessions)
        coordinator.invite(SEED)
        await coordinator.until(lambda: [yes for yes in coordinator.of(msg.Agreement) if yes.accepted])


def test_the_contracts_clock(site: Site) -> None:
    """Day and minute are those of the zone, also where it is another day and after the clocks changed."""
    berlin = replace(site.settings.contract, hours=Hours(0, 1440, "Europe/Berlin"))
    at_ms = 1_774_745_940_000  # 2026-03-29 00:59 UTC, a minute before summer time begins
    assert assent.moment_at(site.settings.contract, at_ms).minute == 59
    assert assent.moment_at(berlin, at_ms).minute == 119
    assert assent.moment_at(berlin, at_ms + 60_000).minute == 180
    tokyo = replace(site.settings.contract, hours=Hours(0, 1440, "Asia/Tokyo"))
    late_ms = at_ms + 15 * 3_600_000
    days = [assent.moment_at(contract, late_ms).day for contract in (site.settings.contract, tokyo)]
    assert days[1] == days[0] + 1


async def test_what_the_commands_know(site: Site, coordinator: FakeCoordinator, tmp_path: Path) -> None:
    """`pending` tells what waits and what it asks; a word that would mean nothing is refused with why."""
    async with manual(site).start() as agent:
        await agent.session.attached.wait()
        coordinator.invite(SEED)
        await coordinator.until(lambda: coordinator.of(msg.Agreement))
    state = tmp_path / "copy"
    state.mkdir()
    with pytest.raises(ConfigError, match="run the agent first"), open_standing(state):
        pass
    journal = Journal.open(state / "journal.db")
    journal.append(site.journal.entries)
    journal.close()
    with open_standing(state) as standing:
        (waiting,) = standing.waiting()
        assert (waiting.run, waiting.task, waiting.cohort) == (RUN, "synthetic", ("jsc", "other"))
        assert waiting.since_ms > 0 and waiting.use == "non-economic" and waiting.licence == "unstated"
        standing.check_approvable(RUN)
        standing.check_deniable(RUN)
        with pytest.raises(NotFoundError, match="'nothing' has asked"):
            standing.check_approvable("nothing")
        with pytest.raises(RefusedError, match="no part in run"):
            standing.check_withdrawable(RUN)
