"""Masked rounds in which somebody lies, waits, leaves, or weighs: what is released, and what is not."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest
from coordinator_world import Consortium
from masked_world import LAYOUT, NAMES, contract_of, join, masked_world, model_values, plain_values

from fedtrain.coordinator import unmasking
from fedtrain.coordinator.versions import BARE
from fedtrain.core import events as ev
from fedtrain.core.agent import RunDecided, Stage, UpdateReleased
from fedtrain.core.contract import Approval, Verdict, Word
from fedtrain.core.state import MaskStage, Phase
from fedtrain.errors import StorageError
from fedtrain.methods import masking
from fedtrain.methods.codecs import codec
from fedtrain.methods.flatfile import open_update
from fedtrain.peer import held
from fedtrain.peer.clock import now_ms
from fedtrain.peer.outgoing import read as read_outgoing


async def test_one_site_with_garbage_shares_harms_nothing(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four true shares of five are enough: the sum is exact, and the liar is named in the log."""
    async with masked_world(consortium, monkeypatch) as world:
        world.sites["ash"].lies = True
        world.let_train()
        await world.start()
        await world.version()
        assert world.counted() == sorted(NAMES)
        assert world.run.records[-1].attempt == 1
        world.check_sum()
        assert any("that ash gave is false" in record.message for record in caplog.records)


async def test_too_many_garbage_shares_refuse_the_sum_and_begin_anew(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three true shares nothing is released; the next attempt has a session of its own, which those who
    had opened join with the same set.
    """
    async with masked_world(consortium, monkeypatch) as world:
        liars = [world.sites[name] for name in ("ash", "fir")]
        for site in liars:
            site.lies = True
        world.let_train()
        await world.start()
        await world.until(lambda: any(record.index == 1 for record in world.run.records))
        refused = world.run.records[-1]
        assert refused.version is None and "3 true" not in refused.reason
        assert "do not give the secret" in refused.reason
        assert not world.sums
        for site in liars:
            site.lies = False
        await world.version()
        world.check_sum()
        sessions = {said.order for site in liars for said in site.said if said.topic == "advert"}
        assert len(sessions) == 4, "two orders each"


async def test_a_held_update_is_shown_before_its_masks(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person looks at the plain update; released, it gets its masks, and what leaves is another file."""
    async with masked_world(consortium, monkeypatch, NAMES[:4]) as world:
        careful = world.sites["fir"] = await join(consortium, "fir", contract_of(approval=Approval.HOLD))
        await careful.start()
        world.let_train()
        await world.start()
        await world.until(lambda: world.stage is MaskStage.INPUT)
        agent = careful.agent
        assert agent is not None
        order = "tiny.1.1.fir"
        await world.until(lambda: order in agent.state.held and agent.state.held[order].stage is Stage.HELD)
        await world.until(lambda: (careful.settings.state / "outbox" / order).exists())
        seen = held.inspect(careful.settings.state, agent.state, order)
        with open_update(careful.plain[order]) as plain:
            assert seen.norm == pytest.approx(plain.measure(0, LAYOUT.num_elements).norm)
        assert world.run.phase is Phase.TRAINING
        agent.submit(UpdateReleased(now_ms(), order, "ada", 0))
        await world.version()
        assert world.counted() == sorted(NAMES)
        world.check_sum()
        (sent,) = (leave.sent for leave in read_outgoing(careful.settings.state).leaves if leave.sent.order)
        assert sent.digest != seen.digest and sent.norm == 0.0
        assert "masked in session" in sent.clause and "(5 sites mask together)" in sent.clause


async def test_who_withdraws_while_masks_come_off_is_not_in_the_version(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum that was about to be had is given up; the next session is without the site."""
    async with masked_world(consortium, monkeypatch) as world:
        leaver = world.sites["elm"]
        leaver.gate.muted.add("affirmation")
        world.let_train()
        await world.start(minimum=4)
        await world.until(lambda: world.run.phase is Phase.UNMASKING)
        agent = leaver.agent
        assert agent is not None
        agent.submit(RunDecided(now_ms(), "tiny", Verdict(Word.DENIED, "not this one", "ada")))
        await world.version()
        assert world.counted() == sorted(set(NAMES) - {"elm"})
        assert world.run.records[-1].attempt == 2
        world.check_sum()
        await world.until(lambda: not leaver.secrets())


async def test_who_is_revoked_while_masks_come_off_is_not_in_the_version(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a withdrawal; its agent is cut off."""
    async with masked_world(consortium, monkeypatch) as world:
        world.sites["elm"].gate.muted.add("affirmation")
        world.let_train()
        await world.start(minimum=4)
        await world.until(lambda: world.run.phase is Phase.UNMASKING)
        hub = consortium.serving.hub
        hub.submit(ev.MemberRevoked(hub.clock.now_ms(), "elm", "operator", "stolen laptop"))
        await world.version()
        assert world.counted() == sorted(set(NAMES) - {"elm"})
        world.check_sum()


async def test_a_stopped_run_leaves_no_secret(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped in a masked round calls every session off, at those that have delivered too."""
    async with masked_world(consortium, monkeypatch) as world:
        for name, site in world.sites.items():
            if name != "elm":
                site.gate.trainer.set()
        await world.start()
        await world.until(lambda: len(world.run.receipts) == 4 and world.stage is MaskStage.INPUT)
        await consortium.operator.stop("tiny")
        await world.until(lambda: not any(site.secrets() for site in world.sites.values()))
        assert not world.sums


async def test_masks_that_come_off_in_a_later_life_give_the_same_sum(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses in the middle pauses the run and leaves nothing unmasked behind; the next life of
    the coordinator takes the same masks off the same updates.
    """
    async with masked_world(consortium, monkeypatch) as world:
        true_unmask = masking.unmask

        def refuse(job: masking.Unmasking, threads: int) -> masking.Unmasked:
            true_unmask(job, threads)
            assert Path(job.target).exists()
            raise StorageError("cannot write: No space left on device; free some space")

        monkeypatch.setattr(unmasking.masking, "unmask", refuse)
        world.let_train()
        await world.start()
        await world.until(lambda: bool(world.run.paused))
        assert world.run.phase is Phase.AGGREGATING
        assert not list((consortium.folder / "coordinator").rglob(BARE))
        monkeypatch.setattr(unmasking.masking, "unmask", true_unmask)
        await consortium.restart()
        await consortium.operator.resume("tiny")
        await world.version()
        assert len({found.sum_digest for found in world.sums}) == 1
        world.check_sum()


async def test_an_agent_that_leaves_when_all_is_done_stays_for_its_shares(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For `peer run --once`: with its update delivered a site is still owed to the sum."""
    async with masked_world(consortium, monkeypatch) as world:
        for name, site in world.sites.items():
            if name != "elm":
                site.gate.trainer.set()
        await world.start()
        agent = world.sites["ash"].agent
        assert agent is not None
        async with asyncio.timeout(60):
            await agent.until(lambda: agent.owes_shares == ("tiny.1.1.ash",))
            assert not agent.state.in_hand and not agent.at_rest
            world.let_train()
            await agent.until(lambda: agent.at_rest)
        assert not agent.owes_shares
        assert [said.topic for said in world.sites["ash"].said].count("opened") == 1
        await world.version()


async def test_masked_weights_make_a_weighted_mean(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are summed under the masks, and nobody's own is told: commits say 1."""
    async with masked_world(consortium, monkeypatch) as world:
        for number, site in enumerate(world.sites.values()):
            site.weight = 100 + number
        world.let_train()
        await world.start(privacy={"masked": {"dropouts_max": -1, "weight_max": 1000}})
        await world.version()
        assert world.sums[-1].weight == sum(range(100, 105))
        assert {record.weight for record in world.run.records[-1].seats.values()} == {1}
        plain = [site.plain[f"tiny.1.1.{name}"] for name, site in world.sites.items()]
        row = codec(world.run.spec.codec_up)
        mean = sum(plain_values(path, row) for path in plain) * 1000 / sum(range(100, 105))
        found = -model_values(consortium.serving.hub.versions.public("tiny", 1))
        np.testing.assert_allclose(found, mean, rtol=1e-6)


async def test_the_lineage_of_a_masked_version_names_the_session_and_the_masked_bytes(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its contributors' digests are of what was sent, its reason says that this was masked, and in which
    session."""
    async with masked_world(consortium, monkeypatch) as world:
        world.let_train()
        await world.start()
        await world.until(lambda: world.stage is MaskStage.INPUT)
        opened = world.run.round
        assert opened is not None and opened.masks is not None
        session = opened.masks.session
        await world.version()
        lineage = consortium.serving.hub.lineages.statement("tiny", 1).lineage
        assert f"masked in session {session}" in lineage.reason
        stored = {seat.site: seat for seat in lineage.contributors}
        for name, site in world.sites.items():
            receipt = world.run.receipts[name]
            assert stored[name].update == receipt.blob
            assert (stored[name].weight, stored[name].norm) == (1, 0.0)
            assert receipt.blob not in {
                hashlib.sha256(path.read_bytes()).hexdigest() for path in site.plain.values()
            }
