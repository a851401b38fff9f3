"""A run goes back to an earlier version, over real gRPC: the same bits, in front of everything."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest
from coordinator_world import Consortium, ScriptedSite, spec_of, whole_mean

from fedtrain.core import effects as fx, messages as msg
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.state import Phase, RunState
from fedtrain.errors import IntegrityError, NotFoundError, RefusedError, StorageError
from fedtrain.peer.models import PublicModels

Sites = tuple[ScriptedSite, ScriptedSite]


async def started(consortium: Consortium, **changes: object) -> Sites:
    """Two attached sites and a run that has its initial weights."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await first.attend()
    await second.attend()
    await consortium.operator.start(spec_of(**changes))
    order = await first.order()
    first.consent(order)
    await first.answer(order, 0.0)
    return first, second


async def play(consortium: Consortium, sites: Sites, *values: float) -> None:
    """A whole round for each value, which fills every update of it."""
    for value in values:
        version = run_of(consortium).rounds_done
        for site in sites:
            order = await site.order()
            site.consent(order)
            await site.answer(order, value)
        await consortium.until(lambda least=version: run_of(consortium).rounds_done > least)


def run_of(consortium: Consortium) -> RunState:
    return consortium.serving.hub.state.runs["tiny"]


async def restored_order(consortium: Consortium, site: ScriptedSite, index: int) -> Order:
    """The site's first order behind the restored version."""
    await consortium.until(lambda: run_of(consortium).phase is Phase.TRAINING)
    while (order := await site.order()).round < index:
        continue
    return order


async def test_a_run_goes_back_and_to_its_end(consortium: Consortium) -> None:
    """After version 3 it goes on from version 1 as version 4, bit for bit, and has as many rounds left as it
    had then; what was stored for the open round counts nowhere."""
    sites = await started(consortium, rounds=4)
    first, second = sites
    await play(consortium, sites, 1.0, 2.0, 4.0)
    order = await first.order()
    await first.answer(order, 100.0)
    view = await consortium.operator.roll_back("tiny", 1)
    assert view["run"] == "tiny" and view["restoring"] in (1, None)
    order = await restored_order(consortium, first, 5)
    digests = {record.version: record.model_digest for record in run_of(consortium).records}
    assert order.model is not None and (order.model.version, order.model.digest) == (4, digests[1])
    assert len({digests[version] for version in (1, 2, 3)}) == 3
    assert [link[0] for link in order.model.chain] == [4]
    assert order.parent == "" and order.returned == ()
    async with PublicModels(first.folder / "models", first.client).at("tiny", order.model) as path:
        whole_mean(path, 1.0)
    assert (await restored_order(consortium, second, 5)).parent == ""
    for site in sites:
        await site.answer(order if site is first else run_of(consortium).round.seats["beta"].order, 8.0)  # type: ignore[union-attr]
    await consortium.until(lambda: run_of(consortium).rounds_done == 5)
    await play(consortium, sites, 16.0, 32.0)
    for site in sites:
        last = await site.order()
        assert last.kind is OrderKind.EVALUATE
        site.outbox.put_nowait(msg.Evaluation(last.id, 1.0, 3))
    await consortium.until(lambda: run_of(consortium).phase is Phase.DONE)
    whole_mean(consortium.serving.hub.versions.public("tiny", 7), 1.0 + 8.0 + 16.0 + 32.0)
    rounds = (await consortium.operator.rounds("tiny"))["rounds"]
    assert [row["version"] for row in rounds if row["version"] is not None] == list(range(8))
    back = next(row for row in rounds if row["restored"] is not None)
    assert (back["version"], back["restored"], back["counted"]) == (4, 1, [])
    assert "asked for by" in back["reason"]
    abandoned = next(row for row in rounds if row["index"] == 4 and row["version"] is None)
    assert abandoned["seats"]["alpha"]["standing"] == "stored" and abandoned["counted"] == []


async def test_back_behind_the_newest_snapshot_and_back_again(consortium: Consortium) -> None:
    """Right after a snapshot a run can still go back, and after going back too far, forward again."""
    sites = await started(consortium, rounds=6, snapshot_every=2)
    await play(consortium, sites, 1.0, 2.0)
    assert (await consortium.operator.run("tiny"))["restorable"] == [0, 1]
    await consortium.operator.roll_back("tiny", 0)
    await consortium.until(lambda: run_of(consortium).rounds_done == 3)
    assert (await consortium.operator.run("tiny"))["restorable"] == [2]
    await consortium.operator.roll_back("tiny", 2)
    await consortium.until(lambda: run_of(consortium).rounds_done == 4)
    records = {record.version: record for record in run_of(consortium).records if record.version is not None}
    assert records[3].model_digest == records[0].model_digest
    assert records[4].model_digest == records[2].model_digest
    whole_mean(consortium.serving.hub.versions.public("tiny", 4), 3.0)


async def test_the_aggregation_that_was_called_off_is_told_to_nobody(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes on while the version is asked for, which waits for it and is then made over it."""
    sites = await started(consortium, rounds=4)
    await play(consortium, sites, 1.0, 2.0)
    versions = consortium.serving.hub.versions
    begun, may_end, at_once = threading.Event(), threading.Event(), []
    make, restore = versions.make, versions.restore

    def slow(*told: Any) -> Any:
        at_once.append("make begins")
        begun.set()
        assert may_end.wait(60)
        made = make(*told)
        at_once.append("make ends")
        return made

    def watched(*told: Any) -> Any:
        at_once.append("restore begins")
        return restore(*told)

    monkeypatch.setattr(versions, "make", slow)
    monkeypatch.setattr(versions, "restore", watched)
    for site in sites:
        await site.answer(await site.order(), 4.0)
    assert await asyncio.to_thread(begun.wait, 60)
    await consortium.operator.roll_back("tiny", 1)
    assert run_of(consortium).phase is Phase.RESTORING
    may_end.set()
    await consortium.until(lambda: run_of(consortium).rounds_done == 3)
    assert at_once == ["make begins", "make ends", "restore begins"]
    whole_mean(versions.public("tiny", 3), 1.0)
    kinds = [row.kind for row in consortium.serving.hub.journal.read()]
    assert kinds.count("RoundAggregated") == 2 and kinds.count("VersionRestored") == 1


async def test_a_restart_takes_the_restoration_up(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that died before the version was there makes it at its next start."""
    sites = await started(consortium, rounds=4)
    await play(consortium, sites, 1.0, 2.0)

    async def dead(effect: object) -> None:
        return None

    monkeypatch.setattr(consortium.serving.hub._making, "restore", dead)
    await consortium.operator.roll_back("tiny", 0)
    assert run_of(consortium).phase is Phase.RESTORING
    await consortium.restart()
    await consortium.until(lambda: run_of(consortium).rounds_done == 3)
    whole_mean(consortium.serving.hub.versions.public("tiny", 3), 0.0)


@pytest.mark.parametrize("trouble", [StorageError("no space is left"), MemoryError()], ids=["disk", "memory"])
async def test_one_that_fails_pauses_the_run(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """The run says why, and `run resume` tries again."""
    sites = await started(consortium, rounds=4)
    await play(consortium, sites, 1.0)
    versions = consortium.serving.hub.versions
    with monkeypatch.context() as patch:

        def failing(*told: Any) -> Any:
            raise trouble

        patch.setattr(versions, "restore", failing)
        await consortium.operator.roll_back("tiny", 0)
        await consortium.until(lambda: bool(run_of(consortium).paused))
    view = await consortium.operator.run("tiny")
    assert view["phase"] == "paused" and "version 0 could not be restored: " in view["reason"]
    await consortium.operator.resume("tiny")
    await consortium.until(lambda: run_of(consortium).rounds_done == 2)
    whole_mean(versions.public("tiny", 2), 0.0)


async def test_a_damaged_delta_is_never_restored_from(consortium: Consortium) -> None:
    """The bits would not be those that were published: the run pauses instead."""
    sites = await started(consortium, rounds=4)
    await play(consortium, sites, 1.0, 2.0, 4.0)
    model = run_of(consortium).model
    assert model is not None
    path = consortium.serving.hub.blobs.path(model.ref.chain[1][1])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    await consortium.operator.roll_back("tiny", 2)
    await consortium.until(lambda: bool(run_of(consortium).paused))
    assert run_of(consortium).rounds_done == 3 and "could not be restored" in run_of(consortium).paused


async def test_bits_that_are_not_those_that_were_published(consortium: Consortium) -> None:
    """A version whose digest is another than its record's is refused where it is made."""
    sites = await started(consortium, rounds=4)
    await play(consortium, sites, 1.0, 2.0)
    hub = consortium.serving.hub
    run = run_of(consortium)
    assert run.model is not None
    records = tuple(
        dataclasses.replace(record, model_digest="0" * 64) if record.version == 1 else record
        for record in run.records
    )
    forged = dataclasses.replace(run, records=records)
    with pytest.raises(IntegrityError, match="made again, has digest"):
        hub.versions.restore(forged, fx.Restore("tiny", 3, 2, 1), lambda blob: None)
    assert not hub.versions.public("tiny", 3).exists()


async def test_what_cannot_be_gone_back_to(consortium: Consortium) -> None:
    """No model, no such version, the newest one, too old, an ended run: each in words that name what can."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    operator, sites = consortium.operator, (first, second)
    await operator.start(spec_of(rounds=6, snapshot_every=1))
    with pytest.raises(NotFoundError, match="no run 'other'"):
        await operator.roll_back("other", 0)
    with pytest.raises(RefusedError, match="has no model yet"):
        await operator.roll_back("tiny", 0)
    for site in sites:
        await site.attend()
    order = await first.order()
    await first.answer(order, 0.0)
    with pytest.raises(RefusedError, match="version 0 is the newest of run tiny; it cannot go back yet"):
        await operator.roll_back("tiny", 0)
    await play(consortium, sites, 1.0, 2.0, 4.0)
    with pytest.raises(NotFoundError, match="no version 9: its versions are 0 to 3"):
        await operator.roll_back("tiny", 9)
    with pytest.raises(RefusedError, match=r"version 0 of run tiny is too old.*it can go back to version 2"):
        await operator.roll_back("tiny", 0)
    await operator.stop("tiny")
    with pytest.raises(RefusedError, match="has ended"):
        await operator.roll_back("tiny", 2)
    assert "RunRolledBack" not in [row.kind for row in consortium.serving.hub.journal.read()]
