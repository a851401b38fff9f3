"""The chaos auditor finds what is wrong: an honest run's journals are spoilt in one place each."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos_script import LATE, ROUNDS, RUN, Script

from benchmarks.chaos.auditor import account_of, differing, judge, judge_account
from benchmarks.chaos.evidence import Evidence, SiteEvidence, in_hand
from fedtrain.core import agent, events as ev
from fedtrain.core.ports import Entry
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import Standing
from fedtrain.storage.chain import append_row


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """One honest run, whose folders no test changes."""
    return Script(tmp_path_factory.mktemp("auditor"))


@pytest.fixture(scope="module")
def honest(script: Script) -> Evidence:
    """Its evidence."""
    return script.evidence()


def broken(evidence: Evidence) -> set[str]:
    """Invariants that the auditor finds broken."""
    return {finding.invariant for finding in judge(evidence, RUN)}


def of_coordinator(evidence: Evidence, change: Callable[[ev.Event], ev.Event | None]) -> Evidence:
    """The evidence with the coordinator's events changed, or left out where `change` gives None."""
    events = (change(event) for event in evidence.events)
    return dataclasses.replace(evidence, events=tuple(event for event in events if event is not None))


def of_site(evidence: Evidence, site: str, **changes: Any) -> Evidence:
    """The evidence with one site's part changed."""
    own = dataclasses.replace(evidence.sites[site], **changes)
    return dataclasses.replace(evidence, sites={**evidence.sites, site: own})


def receipts(own: SiteEvidence, **changes: Any) -> tuple[agent.AgentEvent, ...]:
    """A site's journal with the same field of every receipt for an update changed."""
    return tuple(
        dataclasses.replace(event, **changes)
        if isinstance(event, agent.UploadAcknowledged) and ".0." not in event.order
        else event
        for event in own.events
    )


def test_honest_run_is_found_whole(honest: Evidence, script: Script) -> None:
    """Nothing is found where nothing is wrong; the late update is counted one round later."""
    assert judge(honest, RUN) == []
    account = account_of(honest.events, RUN)
    assert account is not None and account.run.phase == "done"
    assert LATE in account.published[3].counted
    assert [in_hand(folder / "state") for folder in script.sites.values()] == [(), ()]


def test_given_back_update_is_followed_to_its_site(tmp_path: Path) -> None:
    """A late update that goes back into its site's residual is accounted for, and only there."""
    evidence = Script(tmp_path, LatePolicy.RESIDUAL).evidence()
    assert judge(evidence, RUN) == []
    account = account_of(evidence.events, RUN)
    assert account is not None
    account.run = dataclasses.replace(account.run, returned={})
    events = tuple(
        dataclasses.replace(event, order=dataclasses.replace(event.order, returned=()))
        if isinstance(event, agent.OrderReceived)
        else event
        for event in evidence.sites["west"].events
    )
    found = judge_account(of_site(evidence, "west", events=events), account)
    assert [finding.invariant for finding in found] == ["I1"]


def test_stopped_run_excuses_only_what_waited(honest: Evidence) -> None:
    """Of a run that an operator stopped, updates of the open round wait for ever; any other was lost."""
    first = next(i for i, e in enumerate(honest.events) if isinstance(e, ev.UpdateStored))
    stopped = dataclasses.replace(
        honest, events=(*honest.events[: first + 1], ev.RunStopped(2_000, RUN, "me"))
    )
    for site, own in honest.sites.items():
        early = tuple(event for event in own.events if _round_of(event) <= 1)
        stopped = of_site(stopped, site, held={}, events=early)
    stored = honest.events[first]
    assert isinstance(stored, ev.UpdateStored)
    stopped = of_site(stopped, "west", events=stopped.sites["west"].events[:-1])  # its receipt came later
    assert judge(stopped, RUN) == []
    account = account_of(stopped.events, RUN)
    assert account is not None and account.pending == {stored.order}
    account.pending = frozenset()
    assert [finding.invariant for finding in judge_account(stopped, account)] == ["I1"]


def _round_of(event: agent.AgentEvent) -> int:
    """The round that a site's event is about, 0 for none."""
    name = event.order.id if isinstance(event, agent.OrderReceived) else getattr(event, "order", "")
    return int(name.split(".")[1]) if name else 0


def test_lost_update_is_found(honest: Evidence) -> None:
    """An update that its site holds a receipt for, and the coordinator's journal does not have, is I1."""

    def forget(event: ev.Event) -> ev.Event | None:
        lost = isinstance(event, ev.UpdateStored) and event.order == f"{RUN}.1.1.east"
        return None if lost else event

    assert "I1" in broken(of_coordinator(honest, forget))


def test_update_without_a_version_is_found(honest: Evidence) -> None:
    """A stored and acknowledged update that no version counts was lost, whatever the journal says."""
    account = account_of(honest.events, RUN)
    assert account is not None
    account.counted[f"{RUN}.1.1.east"] = 0
    assert {finding.invariant for finding in judge_account(honest, account)} == {"I1"}


def test_update_counted_twice_is_found(honest: Evidence) -> None:
    """An update in two versions is I1."""
    account = account_of(honest.events, RUN)
    assert account is not None
    account.counted[LATE] = 2
    assert {finding.invariant for finding in judge_account(honest, account)} == {"I1"}


def test_update_counted_before_it_came_is_found(honest: Evidence) -> None:
    """A version can only count what was stored before it was computed."""
    account = account_of(honest.events, RUN)
    assert account is not None
    account.stored_by[1] = frozenset()
    assert {finding.invariant for finding in judge_account(honest, account)} == {"I2"}


@pytest.mark.parametrize(
    "changes", [{"signature": "00" * 64}, {"blob": "e" * 64}, {"outcome": "late_residual"}]
)
def test_false_receipt_is_found(honest: Evidence, changes: dict[str, str]) -> None:
    """A receipt that the coordinator did not sign as it stands is I1."""
    events = receipts(honest.sites["east"], **changes)
    assert broken(of_site(honest, "east", events=events)) == {"I1"}


def test_update_that_its_site_did_not_sign_is_found(honest: Evidence) -> None:
    """The coordinator cannot invent an update: its site's signature is in the journal."""

    def forge(event: ev.Event) -> ev.Event:
        return dataclasses.replace(event, weight=99) if isinstance(event, ev.UpdateStored) else event

    assert broken(of_coordinator(honest, forge)) == {"I1"}


def test_missing_version_is_found(honest: Evidence) -> None:
    """Versions are one chain: one that was never computed leaves a gap."""

    def skip(event: ev.Event) -> ev.Event | None:
        return None if isinstance(event, ev.RoundAggregated) and event.round == 2 else event

    assert "I3" in broken(of_coordinator(honest, skip))


def test_other_version_than_computed_is_found(honest: Evidence) -> None:
    """A record that names another model than the one that was computed is I2."""
    account = account_of(honest.events, RUN)
    assert account is not None
    records = (*account.run.records[:2], dataclasses.replace(account.run.records[2], model_digest="f" * 64))
    account.run = dataclasses.replace(account.run, records=(*records, *account.run.records[3:]))
    assert "I2" in {finding.invariant for finding in judge_account(honest, account)}


def test_site_left_out_of_a_record_is_found(honest: Evidence) -> None:
    """A site that was given an order and is in no record of its round is I7."""
    account = account_of(honest.events, RUN)
    assert account is not None
    records = tuple(
        dataclasses.replace(record, seats={s: seat for s, seat in record.seats.items() if s != "west"})
        if record.index == 2
        else record
        for record in account.run.records
    )
    account.run = dataclasses.replace(account.run, records=records)
    assert {finding.invariant for finding in judge_account(honest, account)} == {"I7"}


def test_silence_about_a_site_is_found(honest: Evidence) -> None:
    """Whoever did not contribute is in the record with a reason."""
    account = account_of(honest.events, RUN)
    assert account is not None
    late = [record for record in account.run.records if record.index == 2]
    assert late[0].seats["west"].standing is Standing.LATE
    mute = dataclasses.replace(late[0].seats["west"], reason="")
    records = tuple(
        dataclasses.replace(record, seats={**record.seats, "west": mute}) if record.index == 2 else record
        for record in account.run.records
    )
    account.run = dataclasses.replace(account.run, records=records)
    assert {finding.invariant for finding in judge_account(honest, account)} == {"I7"}


def test_epoch_of_nobody_is_found(honest: Evidence) -> None:
    """A site that followed an epoch which the coordinator never began followed somebody else."""
    own = honest.sites["west"]
    events = (*own.events, agent.EpochSeen(9_000, 7))
    assert broken(of_site(honest, "west", events=events)) == {"I3"}


def test_other_model_at_a_site_is_found(honest: Evidence) -> None:
    """A site that holds other bits than the version it names is I11."""
    assert broken(of_site(honest, "west", held={RUN: (ROUNDS, "0" * 64)})) == {"I11"}


def test_old_model_at_a_site_that_measured_the_last_is_found(honest: Evidence) -> None:
    """Who measured the last version holds it."""
    assert broken(of_site(honest, "west", held={})) == {"I11"}


def test_run_without_a_site_is_told_from_one_with_all(honest: Evidence) -> None:
    """Where every version has to count every site, one that does not is found before any bits are."""

    def fewer(event: ev.Event) -> ev.Event | None:
        return None if isinstance(event, ev.UpdateStored) and event.order == LATE else event

    less = of_coordinator(honest, fewer)
    assert list(differing(less, honest, RUN)) == []
    assert [f.invariant for f in differing(less, honest, RUN, all_sites=True)] == ["I2"]


def test_other_bits_than_in_peace_are_found(honest: Evidence) -> None:
    """Equal contributions make equal bits; where contributions differ, bits may too."""
    assert list(differing(honest, honest, RUN)) == []

    def other(event: ev.Event) -> ev.Event:
        wrong = isinstance(event, ev.RoundAggregated) and event.round == 2
        return dataclasses.replace(event, model_digest="a" * 64) if wrong else event

    assert [f.invariant for f in differing(of_coordinator(honest, other), honest, RUN)] == ["I2"]


def rewrite(journal: Path, keep: Callable[[tuple[Any, ...]], bool]) -> None:
    """Make the chain anew from the rows that are kept: what somebody with the file, and no key, can do."""
    with closing(sqlite3.connect(journal)) as connection:
        rows = connection.execute("SELECT at_ms, run, kind, payload FROM rows ORDER BY sequence").fetchall()
        connection.execute("DELETE FROM rows")
        sequence, previous = 0, "0" * 64
        for row in filter(keep, rows):
            made = append_row(Entry(*row), sequence + 1, previous)
            sequence, previous = made.sequence, made.hash
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", made)
        connection.commit()


def test_rewritten_history_is_found(tmp_path: Path) -> None:
    """A coordinator's journal without an update, its chain made anew, contradicts heads and receipts."""
    script = Script(tmp_path)
    rewrite(script.home / "state" / "journal.db", lambda row: f"{RUN}.1.1.east" not in row[3])
    assert {"I1", "I8"} <= broken(script.evidence())


def test_cut_off_end_is_found(tmp_path: Path) -> None:
    """A journal whose last rows are gone is shorter than the heads that sites kept."""
    script = Script(tmp_path)
    with closing(sqlite3.connect(script.home / "state" / "journal.db")) as connection:
        connection.execute("DELETE FROM rows WHERE sequence > 10")
        connection.commit()
    assert "I8" in broken(script.evidence())


@pytest.mark.parametrize("whose", ["home", "west"])
def test_changed_row_is_found(tmp_path: Path, whose: str) -> None:
    """One changed field in any journal, the coordinator's or a site's, does not verify."""
    script = Script(tmp_path)
    with closing(sqlite3.connect(tmp_path / whose / "state" / "journal.db")) as connection:
        connection.execute("UPDATE rows SET at_ms = at_ms + 1 WHERE sequence = 3")
        connection.commit()
    assert "I8" in broken(script.evidence())
