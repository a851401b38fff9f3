"""Rows 54, 55, 65: a coordinator that lies to a stock agent over real gRPC gets a refusal that names the
clause, every time; nothing is fetched, nothing computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from malicious import CONTRACT, LAYOUT, RUN, SITE, Victim, a_model, an_order, malice_in

from fedtrain.core import canonical, messages as msg
from fedtrain.core.contract import Contract, Hours, Models, Require, Rights
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.trust import statements

TRAIN = {"kind": OrderKind.TRAIN, "steps": 5, "model": a_model()}


def closed_now() -> Hours:
    """A window that opened yesterday and opens again in half a day, whatever the time is."""
    now = datetime.now(UTC)
    start, end = now + timedelta(hours=8), now + timedelta(hours=16)
    return Hours(60 * start.hour + start.minute, 60 * end.hour + end.minute, "UTC")


@dataclass(frozen=True)
class Trick:
    """What is asked, against which clause, and the words of the refusal."""

    order: Order
    words: str
    clauses: dict[str, Any] = field(default_factory=dict)
    roster: dict[str, str] = field(default_factory=dict)
    tampered: bool = False


def terms(**said: Any) -> Order:
    return an_order(task={"terms": said})


def raw(task: str) -> Order:
    return an_order(task=task)


UNREADABLE = "the order's task cannot be judged"
RECORD = {"epsilon": 1, "delta": 1e-5, "clip": 1.0, "steps_total": 10, "sampling_rate": 0.1}
PRIVATE = {"clauses": {"require": Require(masked=True, epsilon_max=2.0, unit="group")}}

TRICKS: dict[str, Trick] = {
    "another run": Trick(an_order(run="secrets"), "contract.runs"),
    "another task": Trick(an_order(task={"name": "dump"}), "contract.tasks"),
    "a task that looks alike": Trick(an_order(task={"name": "t\u0456ny"}), "t\\u0456ny"),
    "another data set": Trick(an_order(task={"data": "patients"}), "no data set patients here"),
    "an undiscoverable data set": Trick(an_order(task={"data": "hidden"}), "no data set hidden here"),
    "a task without rights": Trick(
        an_order(),
        "datasets.corpus.rights.execute",
        {"datasets": {"corpus": Rights(discoverable=True, execute=("other",))}},
    ),
    "reading records": Trick(an_order(task={"access": ["read"]}), "datasets.corpus.rights.read"),
    "writing records": Trick(an_order(task={"access": ["write"]}), "datasets.corpus.rights.write"),
    "an unheard-of right": Trick(an_order(task={"access": ["own"]}), "no right own"),
    "a smaller cohort": Trick(an_order(cohort=(SITE, "north")), "contract.cohort_min is 3"),
    "a cohort padded with names twice": Trick(
        an_order(cohort=(SITE, "north", "north", SITE)), "contract.cohort_min is 3, this order is shared by 2"
    ),
    "a cohort padded with ghosts": Trick(
        an_order(cohort=(SITE, "north", "ghost")),
        "1 that the coordinator's roster does not name",
        roster={SITE: "fzj", "north": "uni"},
    ),
    "a cohort without this site": Trick(
        an_order(cohort=("east", "north", "south")), "does not name this site"
    ),
    "one organisation dressed as three": Trick(
        an_order(),
        "contract.organisations_min is 2",
        {"organisations_min": 2},
        {SITE: "fzj", "north": "fzj", "south": "fzj"},
    ),
    "a roster that was tampered with": Trick(
        an_order(),
        "contract.organisations_min is 2, and the coordinator's roster names 0",
        {"organisations_min": 2},
        {SITE: "fzj", "north": "uni", "south": "clinic"},
        tampered=True,
    ),
    "no roster": Trick(an_order(), "contract.organisations_min is 2", {"organisations_min": 2}),
    "plain instead of masked": Trick(an_order(), "contract.require.masked is true", **PRIVATE),
    "masks without their terms": Trick(terms(privacy={"masked": True}), "terms.privacy.masked is no section"),
    "no epsilon": Trick(an_order(), "contract.require.epsilon_max is 2", **PRIVATE),
    "a larger epsilon": Trick(
        terms(privacy={"masked": {}, "record": {**RECORD, "epsilon": 8, "unit": "group"}}),
        "contract.require.epsilon_max is 2, this run's is 8",
        **PRIVATE,
    ),
    "an epsilon that is no number": Trick(
        terms(privacy={"record": {**RECORD, "epsilon": True}}), "record.epsilon is no number", **PRIVATE
    ),
    "another unit": Trick(terms(privacy={"record": RECORD}), "contract.require.unit", **PRIVATE),
    "another layout": Trick(
        an_order(**TRAIN), "contract.models.layouts", {"models": Models(layouts=("e" * 64,))}
    ),
    "a larger model": Trick(
        an_order(**TRAIN), "contract.models.size_max is 39 bytes", {"models": Models(size_max_bytes=39)}
    ),
    "a large model called a delta": Trick(
        an_order(**{**TRAIN, "model": a_model(10, LAYOUT, (1, "a" * 64, 4_000))}),
        "contract.models.size_max is 39 bytes, the model has 4000",
        {"models": Models(size_max_bytes=39)},
    ),
    "a deeper model": Trick(
        an_order(task={"model": {"layers": 3}}), "limits.layers", {"models": Models(limits={"layers": 2})}
    ),
    "a depth that is true": Trick(
        an_order(task={"model": {"layers": True}}), "limits.layers", {"models": Models(limits={"layers": 2})}
    ),
    "a depth in words": Trick(
        an_order(task={"model": {"layers": "2"}}), "limits.layers", {"models": Models(limits={"layers": 2})}
    ),
    "a depth that is not said": Trick(
        an_order(task={"model": {}}), "limits.layers", {"models": Models(limits={"layers": 2})}
    ),
    "out of hours": Trick(an_order(), "contract.hours", {"hours": closed_now()}),
    "more upload": Trick(an_order(), "contract.upload_max_per_day", {"upload_max_per_day_bytes": 0}),
    "more accelerator hours": Trick(an_order(), "contract.gpu_hours_max", {"gpu_hours_max": 0.0}),
    "economic use": Trick(terms(use="economic"), "contract.use is non-economic"),
    "a use that looks alike": Trick(terms(use="non\u2011economic"), UNREADABLE),
    "another licence": Trick(terms(licence="proprietary"), "contract.licences", {"licences": ("CC-*",)}),
    "a term of its own": Trick(terms(waiver="signed"), "terms.waiver is a word"),
    "a key twice": Trick(raw('{"name":"dump","name":"tiny","data":"corpus"}'), "name is there twice"),
    "NaN": Trick(raw('{"name":"tiny","model":{"layers":NaN}}'), "NaN is no number"),
    "deep nesting": Trick(raw('{"name":"tiny","model":' + "[" * 500_000), UNREADABLE),
    "a name that is a list": Trick(raw('{"name":["tiny"],"data":"corpus"}'), "name is no text"),
    "data that is false": Trick(raw('{"name":"tiny","data":false}'), "data is no text"),
    "access that is a text": Trick(raw('{"name":"tiny","access":"read"}'), "access is no list"),
    "half a surrogate": Trick(raw('{"name":"\\ud800","data":"corpus"}'), "contract.tasks"),
    "no JSON at all": Trick(raw("name: tiny"), UNREADABLE),
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS)
async def test_the_site_refuses_with_its_clause(tmp_path: Path, trick: Trick) -> None:
    """Asked twice, in an inquiry and in orders: each time no, signed over this very order and contract."""
    contract = replace(CONTRACT, **trick.clauses)
    async with malice_in(tmp_path, contract) as (malice, victim):
        if trick.roster:
            roster = malice.roster(trick.roster)
            if trick.tampered:
                roster = dataclasses.replace(roster, members={**roster.members, "south": "else"})
            malice.say(roster)
        malice.say(msg.Inquiry("would-you", trick.order))
        for _ in range(2):
            malice.say(msg.Invitation(trick.order))
        answers = await malice.until(lambda: malice.of(msg.Agreement)[1:] and malice.of(msg.Agreement))
        for answer in answers:
            assert not answer.accepted and trick.words in "; ".join(answer.reasons), answer
            _verify(victim, trick.order, answer, contract)
        (inquiry,) = malice.of(msg.Answer)
        assert not inquiry.accepted and inquiry.reasons == answers[0].reasons
        assert victim.untouched and not malice.fetched and not malice.offered
        assert victim.rows("OrderReceived") == 2 and not victim.agent.failed.done()


async def test_what_the_contract_allows_is_done(tmp_path: Path) -> None:
    """The very order that the tricks change is accepted by the very same agent, and lies in the mailbox."""
    contract = replace(
        CONTRACT, organisations_min=3, hours=Hours(0, 1440, "Europe/Berlin"), licences=("CC-*",)
    )
    order = an_order(task={"terms": {"licence": "CC-BY-4.0"}})
    async with malice_in(tmp_path, contract) as (malice, victim):
        malice.say(malice.roster({SITE: "fzj", "north": "uni", "south": "clinic"}))
        malice.say(msg.Invitation(order))
        (answer,) = await malice.until(lambda: malice.of(msg.Agreement))
        assert answer.accepted and not answer.reasons
        _verify(victim, order, answer, contract)
        await victim.agent.until(lambda: order.id in victim.agent.posted)
        (declared,) = malice.of(msg.Declaration)
        assert declared.contract == canonical.digest(contract) and declared.examples == {}
        kept = (victim.settings.state / "contract.json").read_bytes()
        assert kept == canonical.encode(contract)


async def test_an_order_for_another_site_is_left_alone(tmp_path: Path) -> None:
    """It is neither answered nor done, and the next one that is ours is."""
    async with malice_in(tmp_path) as (malice, victim):
        malice.say(msg.Invitation(an_order(site="north")))
        malice.say(msg.Invitation(an_order()))
        (answer,) = await malice.until(lambda: malice.of(msg.Agreement))
        assert answer.order == f"{RUN}.1.1.{SITE}" and victim.rows("OrderReceived") == 1


async def test_an_order_of_an_earlier_epoch_is_not_heard(tmp_path: Path) -> None:
    """A message of a lower epoch than the highest seen ends the session before it is looked at."""
    async with malice_in(tmp_path) as (malice, victim):
        await victim.agent.session.attached.wait()
        malice.say(msg.Invitation(an_order()), epoch=malice.epoch - 1)
        await malice.until(lambda: len(malice.of(msg.Hello)) == 2 or malice.of(msg.Agreement))
        assert not malice.of(msg.Agreement) and victim.untouched and not victim.rows("OrderReceived")


async def test_an_update_above_the_bound_stays_here(tmp_path: Path) -> None:
    """Whatever was trained, what is larger than the contract's upload is reported as a failure instead."""
    contract = replace(CONTRACT, upload_max_per_round_bytes=499)
    async with malice_in(tmp_path, contract) as (malice, victim):
        order = an_order()
        malice.say(msg.Invitation(order))
        await victim.agent.until(lambda: order.id in victim.agent.posted)
        assert victim.mailbox.claim("trainer-1") is not None
        _hand_in(victim, order, 500)
        (failure,) = await malice.until(lambda: malice.of(msg.Failure))
        assert "contract.upload_max_per_round is 499 bytes, this one has 500" in failure.reason
        assert not malice.offered


async def test_rosters_are_believed_only_when_signed(tmp_path: Path) -> None:
    """A roster with a changed member, time or signature, or without this site, changes nothing; an older one
    does not replace a newer."""
    async with malice_in(tmp_path) as (malice, victim):
        members = {SITE: "fzj", "north": "uni"}
        good = malice.roster(members)
        lies = [
            replace(good, members={**members, "south": "clinic"}),
            replace(good, at_ms=good.at_ms + 1),
            replace(good, signature="00" * 64),
            malice.roster({"north": "uni"}),
        ]
        for lie in lies:
            malice.say(lie)
        malice.say(good)
        await victim.agent.until(lambda: victim.agent.state.roster)
        assert victim.agent.state.roster == members and victim.rows("RosterReceived") == 1


def _verify(victim: Victim, order: Order, answer: msg.Agreement, contract: Contract) -> None:
    digest = canonical.digest(contract)
    assert answer.contract == digest
    statement = statements.Agreement(
        order.id, canonical.digest(order), answer.accepted, answer.reasons, digest
    )
    statements.verify(statement, victim.keys.message_key.public, bytes.fromhex(answer.signature))


def _hand_in(victim: Victim, order: Order, size_bytes: int) -> None:
    data = b"m" * size_bytes
    file = victim.mailbox.checkpoints / "made"
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    layout = json.dumps([])
    assert victim.mailbox.publish(Result(order.id, "", "model.bin", digest, size_bytes, layout=layout), file)
