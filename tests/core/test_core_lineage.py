"""Lineage: who made a version, from which, told by the journal alone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from core_script import Script

from fedtrain.core import canonical, events as ev, lineage as core
from fedtrain.core.driver import entry_of
from fedtrain.core.lineage import Lineage, Place
from fedtrain.core.ports import Entry
from fedtrain.core.spec import LatePolicy
from fedtrain.errors import IntegrityError, LocalError
from fedtrain.storage.chain import GENESIS, Row, append_row


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """The entries as a journal's rows."""
    rows: list[Row] = []
    for entry in entries:
        previous = rows[-1].hash if rows else GENESIS
        rows.append(append_row(entry, len(rows) + 1, previous))
    return rows


def lineages(script: Script) -> list[Lineage]:
    """The documents about all versions of the script's run."""
    return list(core.rebuild(rows_of(script.journal.entries), ["run"]))


def a_run(**changes: object) -> Script:
    script = Script(**changes)
    script.tell(ev.Booted, epoch=1, version="1.2.3", code="c0de")
    for site in script.sites:
        script.enrol(site)
        script.attach(site)
    script.submit()
    script.seed()
    return script


def test_every_version_names_its_parent_and_contributors() -> None:
    """Documents follow one another by digest, each with its updates, their consents, and its row."""
    script = a_run()
    for site in "ab":
        script.tell(ev.ConsentGiven, order=script.order(site).id, contract="c" * 64, signature=f"yes-{site}")
    script.tell(ev.WorkFailed, order=script.order("c").id, reason="no")
    script.store("a", weight=3)
    script.store("b", weight=5)
    script.aggregate()
    seed, first = lineages(script)
    assert (seed.kind, seed.parents, seed.version) == ("seeded", (), 0)
    assert [(item.site, item.update, item.weight) for item in seed.contributors] == [("a", "blob-0", 0)]
    assert (first.kind, first.version, first.round, first.epoch) == ("aggregated", 1, 1, 1)
    (parent,) = first.parents
    assert (parent.version, parent.model_digest, parent.lineage) == (0, "model-0", canonical.digest(seed))
    told = [(item.site, item.weight, item.consent, item.message_key) for item in first.contributors]
    assert told == [("a", 3, "yes-a", "m"), ("b", 5, "yes-b", "m")]
    assert first.configuration_digest == canonical.digest(script.spec)
    assert (first.code_version, first.code_digest) == ("1.2.3", "c0de")
    rows = rows_of(script.journal.entries)
    assert first.journal == Place(len(rows), rows[-1].hash) and rows[-1].kind == "RoundAggregated"
    assert {site: (share.updates, share.weight) for site, share in first.shares.items()} == {
        "a": (1, 3),
        "b": (1, 5),
    }


def test_a_late_update_is_told_where_it_counts() -> None:
    """An update that came behind its round's end is a contributor of the next version, with less weight."""
    script = a_run(rounds=3, late=LatePolicy.NEXT_ROUND)
    script.store("a")
    script.store("b")
    script.wait(script.spec.deadline_ms)
    script.aggregate()
    script.store("c", weight=4)
    assert script.run.round is not None and script.run.round.index == 2
    for site in script.run.round.seats:
        script.store(site)
    script.aggregate()
    second = lineages(script)[2]
    late = [item for item in second.contributors if item.order == "run.1.1.c"]
    assert [item.weight for item in late] == [4] and late[0].counted_weight < 4


def test_a_restored_version_has_the_earlier_one_as_its_parent() -> None:
    """After a roll-back the document names the version that is repeated, and shares are as they were then."""
    script = a_run(rounds=4)
    for _ in range(2):
        script.play_round()
    back = [
        ev.RunRolledBack(script.now_ms, "run", 1, "op"),
        ev.VersionRestored(script.now_ms, "run", 3, "model-1", "snapshot-3", 40),
    ]
    rows = rows_of([*script.journal.entries, *map(entry_of, back)])
    documents = list(core.rebuild(rows, ["run"]))
    assert [document.kind for document in documents] == ["seeded", "aggregated", "aggregated", "restored"]
    restored = documents[3]
    assert restored.parents[0].version == 1 and restored.parents[0].lineage == canonical.digest(documents[1])
    assert restored.contributors == () and restored.shares == documents[1].shares
    assert restored.model_digest == documents[1].model_digest
    assert "op" in restored.reason


def test_what_an_order_was_agreed_to_as_is_told() -> None:
    """The digest of an order is that of the order which its site had in hand when it consented."""
    script = a_run()
    order = script.order("b")
    script.consent("b")
    script.play_round()
    agreed: dict[str, str] = {}
    assert len(list(core.rebuild(rows_of(script.journal.entries), ["run"], agreed))) == 2
    assert agreed == {order.id: canonical.digest(order)}


def test_a_row_that_cannot_be_read_is_named() -> None:
    """Journals of sites, and of newer versions, are told apart from damage by the row's number."""
    with pytest.raises(IntegrityError, match="row 1 is a 'AgentBooted'"):
        list(core.rebuild(rows_of([Entry(1, "", "AgentBooted", "{}")]), ["run"]))
    with pytest.raises(IntegrityError, match="row 1 cannot be read"):
        list(core.rebuild(rows_of([Entry(1, "", "Booted", "{}")]), ["run"]))


def test_a_document_needs_its_parents() -> None:
    """The wrong parent is our bug and not a document."""
    script = a_run()
    script.play_round()
    seed, first = lineages(script)
    with pytest.raises(LocalError, match="version 1 needs that of 0"):
        core.complete(core.Draft(0, first), None)
    assert core.complete(core.Draft(0, first), seed).parents == first.parents


def test_differences_are_named_by_field() -> None:
    """Two documents that differ in what went in and in the model say so; equal ones say nothing."""
    script = a_run()
    script.play_round()
    _, first = lineages(script)
    other = canonical.decode(Lineage, canonical.encode(first).replace(b'"model-1"', b'"model-x"'))
    assert core.differences(first, other) == ("model_digest",)
    assert core.differences(first, canonical.decode(Lineage, canonical.encode(first))) == ()


def test_evidence_does_not_pile_up() -> None:
    """Behind a version nothing is kept of the orders that it counted."""
    script, provenance = a_run(rounds=50), core.Provenance()
    sizes = set()
    state_rows = 0
    for _ in range(20):
        script.consent(*script.sites)
        script.play_round()
        for entry in script.journal.entries[state_rows:]:
            provenance.observe(canonical.decode(ev.EVENTS[entry.kind], entry.payload))
        state_rows = len(script.journal.entries)
        provenance.forget(script.run)
        sizes.add(len(provenance._consents) + len(provenance._updates))
    assert sizes == {0}
