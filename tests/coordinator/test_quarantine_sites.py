"""Sites that are taken out, by rule or by an operator, over real gRPC: the run goes on without them."""

from __future__ import annotations

import dataclasses

import pytest
from coordinator_world import Consortium, ScriptedSite, spec_of, whole_mean

from fedtrain.core import messages as msg
from fedtrain.core.conduct import STRIKES_MAX
from fedtrain.core.state import RunState, Standing
from fedtrain.errors import BadUpdate, Equivocation, FedtrainError, NotFoundError, RefusedError
from fedtrain.wire.values import Verdict

NAMES = ("alpha", "beta", "gamma")


async def three_sites(consortium: Consortium, **changes: object) -> list[ScriptedSite]:
    """Three attached sites, and a run that needs two of them and has its initial weights."""
    sites = [await consortium.join(name) for name in NAMES]
    for site in sites:
        await site.attend()
    await consortium.operator.start(
        spec_of(**{"rounds": 5, "minimum": 2, "quorum": 2, "quorum_share": 0.0, **changes})
    )
    order = await sites[0].order()
    await sites[0].answer(order, 0.0)
    return sites


def run_of(consortium: Consortium) -> RunState:
    return consortium.serving.hub.state.runs["tiny"]


async def good_round(consortium: Consortium, *sites: ScriptedSite) -> None:
    """These contribute, and the version comes."""
    version = run_of(consortium).rounds_done
    for site in sites:
        await site.answer(await site.order(), 1.0)
    await consortium.until(lambda: run_of(consortium).rounds_done > version)


async def bad_upload(site: ScriptedSite, **wrong: float) -> None:
    """An update that is not a number, or a commit that claims what cannot be: refused at the commit."""
    order = await site.order()
    path = site.make_file(order, 1.0 if wrong else float("nan"))
    commit = dataclasses.replace(site.commit(order, path), **wrong)  # type: ignore[arg-type]
    await site.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    await site.client.send_file(path, commit.digest, commit.size_bytes)
    with pytest.raises(BadUpdate):
        await site.client.commit(commit)


async def test_a_site_that_sends_rubbish_again_and_again_is_out(consortium: Consortium) -> None:
    """NaN three rounds running: quarantined by rule, the run goes on without it, a release brings it back."""
    alpha, beta, gamma = await three_sites(consortium)
    for _ in range(STRIKES_MAX):
        await bad_upload(gamma)
        await good_round(consortium, alpha, beta)
    member = await consortium.operator.member("gamma")
    assert member["quarantined"].startswith("by rule: 3 updates in a row were rejected, the last because ")
    assert "finite" in member["quarantined"]
    view = await consortium.operator.run("tiny")
    assert view["quarantined"]["gamma"]["by"] == "rule" and "gamma" not in view["sites"]
    assert set(view["round"]["seats"]) == {"alpha", "beta"}
    rejected = [row for row in consortium.serving.hub.journal.read() if row.kind == "UpdateRejected"]
    assert len(rejected) == STRIKES_MAX
    with pytest.raises(FedtrainError):  # nor is a model handed to it any more
        async for _ in gamma.client.fetch(run_of(consortium).model.ref.chain[0][1]):  # type: ignore[union-attr]
            continue
    released = await consortium.operator.release(Verdict("gamma", "its disk was replaced"))
    assert released["quarantined"] == ""
    await good_round(consortium, alpha, beta)
    await good_round(consortium, alpha, beta, gamma)
    assert run_of(consortium).records[-1].seats["gamma"].standing is Standing.STORED
    whole_mean(consortium.serving.hub.versions.public("tiny", 5), 5.0)


async def test_a_quarantine_outlives_the_coordinator(consortium: Consortium) -> None:
    """It is in the journal, so a restart does not lift it."""
    await three_sites(consortium)
    await consortium.operator.quarantine(Verdict("gamma", "strange losses"))
    await consortium.restart()
    found = consortium.serving.hub.state.quarantined["gamma"]
    assert found.reason == "strange losses" and found.by == "operator"


async def test_a_good_update_wipes_the_slate(consortium: Consortium) -> None:
    """Two rejected, one good, two rejected: not three in a row."""
    alpha, beta, gamma = await three_sites(consortium, rounds=6)
    for good in (False, False, True, False, False):
        if good:
            await gamma.answer(await gamma.order(), 1.0)
        else:
            await bad_upload(gamma)
        await good_round(consortium, alpha, beta)
    assert consortium.serving.hub.state.quarantined == {}
    assert consortium.serving.hub.state.strikes == {"gamma": 2}


async def test_second_stories_are_strikes(consortium: Consortium) -> None:
    """A site that tells three other stories about an order is out, and so is its first one."""
    alpha, beta, gamma = await three_sites(consortium)
    order = await gamma.order()
    await gamma.answer(order, 100.0)
    for value in (2.0, 3.0, 4.0):
        commit = gamma.commit(order, gamma.make_file(order, value))
        with pytest.raises(Equivocation):
            await gamma.client.offer(msg.Offer(order.id, commit.digest, commit.size_bytes))
    assert "another blob" in consortium.serving.hub.state.quarantined["gamma"].reason
    await good_round(consortium, alpha, beta)
    record = run_of(consortium).records[-1]
    assert (
        record.seats["gamma"].standing is Standing.FAILED and "in quarantine" in record.seats["gamma"].reason
    )
    assert order.id not in record.counted
    whole_mean(consortium.serving.hub.versions.public("tiny", 1), 1.0)


async def test_an_operator_takes_a_site_out(consortium: Consortium) -> None:
    """Its work is called off, its stored update is not counted, and the journal has who, whom and why."""
    alpha, beta, gamma = await three_sites(consortium)
    order = await gamma.order()
    await gamma.answer(order, 100.0)
    busy = await beta.order()
    await consortium.operator.quarantine(Verdict("gamma", "its losses are made up"))
    view = await consortium.operator.run("tiny")
    assert view["round"]["seats"]["gamma"]["reason"] == "in quarantine: its losses are made up"
    await beta.answer(busy, 1.0)
    await alpha.answer(await alpha.order(), 1.0)
    await consortium.until(lambda: run_of(consortium).rounds_done == 1)
    whole_mean(consortium.serving.hub.versions.public("tiny", 1), 1.0)
    row = next(row for row in consortium.serving.hub.journal.read() if row.kind == "SiteQuarantined")
    assert '"by":"operator"' in row.payload and "its losses are made up" in row.payload
    await consortium.operator.quarantine(Verdict("beta", ""))
    await alpha.answer(await alpha.order(), 1.0)
    cancelled = await beta.next(msg.Cancellation)
    assert isinstance(cancelled, msg.Cancellation) and "in quarantine" in cancelled.reason
    await consortium.until(lambda: run_of(consortium).phase == "waiting")
    view = await consortium.operator.run("tiny")
    assert "1 of 2 needed sites are here (in quarantine: beta, gamma)" in view["reason"]
    await consortium.operator.release(Verdict("beta", ""))
    await consortium.until(lambda: run_of(consortium).phase == "training")


async def test_who_cannot_be_taken_out_or_released(consortium: Consortium) -> None:
    """A stranger, a person, somebody who is out, somebody who is not: refused in words."""
    await three_sites(consortium)
    operator = consortium.operator
    for call in (operator.quarantine, operator.release):
        with pytest.raises(NotFoundError, match="no site 'nobody'"):
            await call(Verdict("nobody", ""))
        with pytest.raises(NotFoundError, match="no site 'operator'"):
            await call(Verdict("operator", ""))
    with pytest.raises(RefusedError, match="gamma is not in quarantine"):
        await operator.release(Verdict("gamma", ""))
    await operator.quarantine(Verdict("gamma", "why"))
    with pytest.raises(RefusedError, match="already, by operator: why"):
        await operator.quarantine(Verdict("gamma", "again"))
