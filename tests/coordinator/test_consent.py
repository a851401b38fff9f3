"""Agreements, declarations, withdrawals and the roster at a real coordinator over real gRPC."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from coordinator_world import Consortium, ScriptedSite, spec_of, two_sites

from fedtrain.core import canonical, messages as msg
from fedtrain.core.orders import Order
from fedtrain.errors import BadSignature, BadUpdate, BusyError, ConfigError
from fedtrain.trust import statements

CONTRACT = "ab" * 32


def agree(site: ScriptedSite, order: Order, *reasons: str) -> None:
    """The 1.1 answer."""
    statement = statements.Agreement(order.id, canonical.digest(order), not reasons, reasons, CONTRACT)
    signature = statements.sign(statement, site.keys.message_key).hex()
    site.outbox.put_nowait(msg.Agreement(order.id, not reasons, reasons, CONTRACT, signature))


def declare(site: ScriptedSite, **examples: int) -> None:
    statement = statements.Declaration(site.name, CONTRACT, examples)
    signature = statements.sign(statement, site.keys.message_key).hex()
    site.outbox.put_nowait(msg.Declaration(CONTRACT, examples, signature))


def withdraw(site: ScriptedSite, run: str, reason: str = "leaving") -> None:
    statement = statements.Withdrawal(site.name, run, reason)
    signature = statements.sign(statement, site.keys.message_key).hex()
    site.outbox.put_nowait(msg.Withdrawal(run, reason, signature))


def rows(consortium: Consortium, kind: str) -> list[dict[str, Any]]:
    hub = consortium.serving.hub
    hub.submit()
    return [json.loads(row.payload) for row in hub.journal.read() if row.kind == kind]


async def test_an_agreement_is_journaled_with_its_contract(consortium: Consortium) -> None:
    """Yes and no both carry the contract's digest and the site's signature into the journal, where anyone
    can verify them."""
    first, second = await two_sites(consortium)
    yes, no = await first.order(), await second.order()
    agree(first, yes)
    agree(second, no, "contract.hours")
    await consortium.until(lambda: bool(rows(consortium, "ConsentRefused")))
    (refused,) = rows(consortium, "ConsentRefused")
    given = rows(consortium, "ConsentGiven")[-1]
    assert (given["order"], given["contract"], refused["contract"]) == (yes.id, CONTRACT, CONTRACT)
    statement = statements.Agreement(yes.id, canonical.digest(yes), True, (), CONTRACT)
    statements.verify(statement, first.keys.message_key.public, bytes.fromhex(given["signature"]))


@pytest.mark.parametrize("kind", ["agreement", "declaration", "withdrawal"])
async def test_what_a_site_did_not_sign_is_not_journaled(consortium: Consortium, kind: str) -> None:
    """Signed by another site, it ends the session that brought it, and leaves no row."""
    first, second = await two_sites(consortium)
    order = await first.order()
    forger = ScriptedSite(replace(second.keys, membership=first.keys.membership), first.folder, first.client)
    forger.outbox = first.outbox
    {"agreement": lambda: agree(forger, order), "declaration": lambda: declare(forger)}.get(
        kind, lambda: withdraw(forger, "tiny")
    )()
    with pytest.raises(BadSignature):
        await first.tasks[-1]
    kinds = ("SiteDeclared", "ConsentWithdrawn")
    assert not [row for name in kinds for row in rows(consortium, name)]
    assert order.id not in [row["order"] for row in rows(consortium, "ConsentGiven")]


async def test_a_declaration_bounds_the_weights_of_its_site(consortium: Consortium) -> None:
    """A weight of more passes than anybody makes over what was declared is rejected; a plausible one counts.
    The same declaration again is no row."""
    first, second = await two_sites(consortium)
    for _ in range(3):
        declare(first, corpus=10)
    declare(second, other=1)
    await consortium.until(lambda: len(consortium.serving.hub.state.declared) == 2)
    assert len(rows(consortium, "SiteDeclared")) == 2
    liar, honest = await first.order(), await second.order()
    with pytest.raises(BadUpdate, match="passes over the 10 examples"):
        await first.answer(liar, 1.0, weight=1_001)
    receipt = await second.answer(honest, 1.0, weight=10**9)  # nothing was declared of this data set
    assert receipt.outcome == "stored"
    (rejected,) = rows(consortium, "UpdateRejected")
    assert rejected["order"] == liar.id


async def test_a_site_that_declares_for_ever_is_told_to_wait(consortium: Consortium) -> None:
    """Declarations that differ each time are bounded by an allowance, beyond which the session ends."""
    first, _ = await two_sites(consortium)
    for number in range(200):
        declare(first, corpus=number)
    with pytest.raises(BusyError, match="declares again and again"):
        await first.tasks[-1]
    assert len(rows(consortium, "SiteDeclared")) < 200


async def test_a_withdrawal_takes_the_site_out_at_once(consortium: Consortium) -> None:
    """Mid-round: what is stored is not aggregated, the seat says why, and the site is asked no more in this
    session; another reason, or another word on it, is no second row."""
    third = await consortium.join("gamma")
    await third.attend()
    first, second = await two_sites(consortium)
    orders = {site.name: await site.order() for site in (first, second, third)}
    await third.answer(orders["gamma"], 5.0)
    withdraw(third, "tiny")
    withdraw(third, "tiny", "again")
    withdraw(third, "no-such-run")
    hub = consortium.serving.hub
    await consortium.until(lambda: "gamma" in hub.state.runs["tiny"].excluded)
    for site in (first, second):
        await site.answer(orders[site.name], 1.0)
    await consortium.until(lambda: hub.state.runs["tiny"].rounds_done == 1)
    record = next(record for record in hub.state.runs["tiny"].records if record.version == 1)
    assert sorted(record.counted) == [orders["alpha"].id, orders["beta"].id]
    assert record.seats["gamma"].standing.value == "refused" and "leaving" in record.seats["gamma"].reason
    (row,) = rows(consortium, "ConsentWithdrawn")
    assert (row["site"], row["run"], row["reason"]) == ("gamma", "tiny", "leaving")
    await consortium.until(lambda: hub.state.runs["tiny"].round is not None)
    opened = hub.state.runs["tiny"].round
    assert opened is not None and "gamma" not in opened.seats


async def test_the_roster_comes_before_any_order_and_when_it_changes(consortium: Consortium) -> None:
    """It is the first thing after the welcome, signed; a newcomer is in the next one, which a sign of life
    brings."""
    first = await consortium.join("alpha")
    await first.attend()
    roster = await first.next(msg.Roster)
    assert isinstance(roster, msg.Roster) and roster.members == {"alpha": "alpha"}
    public = consortium.serving.hub.keys.message_key.public
    consortium_name = first.keys.membership.consortium

    def verify(found: msg.Roster) -> None:
        members = tuple(sorted(found.members.items()))
        statement = statements.Roster(consortium_name, members, found.at_ms)
        statements.verify(statement, public, bytes.fromhex(found.signature))

    verify(roster)
    await consortium.join("beta")
    first.outbox.put_nowait(msg.Heartbeat())
    newer = await first.next(msg.Roster)
    assert isinstance(newer, msg.Roster) and sorted(newer.members) == ["alpha", "beta"]
    assert newer.at_ms > roster.at_ms
    verify(newer)
    with pytest.raises(BadSignature):
        verify(replace(newer, members={**newer.members, "beta": "alpha"}))


async def test_run_check_names_who_and_why(consortium: Consortium) -> None:
    """Each site's answer stands beside its clauses, also of those that are away; a task that nobody could
    judge is refused before anybody is asked."""
    first, second = await consortium.join("alpha"), await consortium.join("beta")
    await consortium.join("gamma")
    for site in (first, second):
        await site.attend()

    async def answers() -> dict[str, Any]:
        checking = asyncio.create_task(consortium.operator.check(spec_of()))
        for site, reasons in ((first, ()), (second, ("contract.use is non-economic",))):
            inquiry = await site.next(msg.Inquiry)
            assert isinstance(inquiry, msg.Inquiry)
            site.outbox.put_nowait(msg.Answer(inquiry.inquiry, not reasons, reasons))
        return dict(await checking)

    found = await answers()
    assert {site: answer["answer"] for site, answer in found["sites"].items()} == {
        "alpha": "accepts",
        "beta": "refuses",
        "gamma": "absent",
    }
    assert found["sites"]["beta"]["reasons"] == ["contract.use is non-economic"]
    assert (found["accepting"], found["can_start"]) == (1, False)
    with pytest.raises(ConfigError, match="name is there twice"):
        await consortium.operator.check(spec_of(task='{"name":"a","name":"b"}'))
