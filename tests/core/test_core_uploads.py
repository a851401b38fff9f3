"""Admission of uploads, the chain of versions, and what the run may still need."""

import pytest
from core_script import Script
from hypothesis import given, strategies as st

from fedtrain.core.invariants import violations
from fedtrain.core.orders import ModelRef
from fedtrain.core.rounds import next_model
from fedtrain.core.state import Model
from fedtrain.core.uploads import Admission, admit
from fedtrain.core.versions import blobs_needed


def seeded(names: str = "abc", **changes: object) -> Script:
    """Round 1 is open."""
    script = Script(names, **changes).begin()
    script.seed()
    return script


def admission(script: Script, site: str, order: str, blob: str = "") -> Admission:
    """The answer to an offer of this blob."""
    return admit(script.state, site, order, blob or f"blob-{order}").admission


def test_welcome() -> None:
    """An invited, working or lost site's update is welcome, with its order."""
    script = seeded()
    script.consent("b"), script.lose("c")
    for site in "abc":
        answer = admit(script.state, site, f"run.1.1.{site}", "x")
        assert answer.admission is Admission.WELCOME
        assert answer.order == script.order(site)


@pytest.mark.parametrize("order", ["run.1.1.b", "other.1.1.a", "nonsense", "run.1.1", "../run.1.1.a"])
def test_unknown(order: str) -> None:
    """Another site's order, an unknown run and what is no order's name are unknown, with a reason."""
    answer = admit(seeded().state, "a", order, "x")
    assert answer.admission is Admission.UNKNOWN
    assert answer.reason


def test_the_same_blob_again() -> None:
    """A second copy gets the receipt of the first, with its epoch and time, and counts once."""
    script = seeded()
    script.store("a")
    first = script.run.receipts["a"]
    script.now_ms += 100
    script.boot()
    answer = admit(script.state, "a", "run.1.1.a", first.blob)
    assert answer.admission is Admission.REPEATED
    assert answer.acknowledged == first
    assert (first.epoch, first.at_ms, first.outcome) == (1, 1_000, "stored")
    assert script.store("a") == []


def test_another_blob_for_the_same_order() -> None:
    """Equivocation is told apart, and a rejected second story takes nothing from the first."""
    script = seeded()
    script.store("a")
    assert admission(script, "a", "run.1.1.a", "another") is Admission.EQUIVOCATION
    assert script.fail("a") == []
    assert script.standings.startswith("a stored")


def test_stale() -> None:
    """An order of an earlier round, of a refuser, or of an ended run is over."""
    script = seeded()
    script.refuse("c")
    assert admission(script, "c", "run.1.1.c") is Admission.STALE
    script.store("a"), script.store("b"), script.aggregate()
    assert admission(script, "a", "run.9.1.a") is Admission.STALE
    script.stop()
    assert admission(script, "b", "run.2.1.b") is Admission.STALE


def test_late_is_welcome_until_the_run_ends() -> None:
    """The order of a late site stays welcome while it can count."""
    script = seeded()
    script.store("a"), script.store("b"), script.wait(10_000)
    assert admission(script, "c", "run.1.1.c") is Admission.WELCOME
    script.aggregate()
    assert admission(script, "c", "run.1.1.c") is Admission.WELCOME
    script.stop()
    assert admission(script, "c", "run.1.1.c") is Admission.STALE


def test_a_lost_site_is_too_late_once_the_round_has_closed() -> None:
    """Admission and storing agree: while the sum is computed, a lost site's update is not welcome."""
    script = seeded()
    script.lose("c"), script.store("a"), script.store("b")
    assert admission(script, "c", "run.1.1.c") is Admission.STALE
    assert script.store("c") == []


def test_a_seeding_sites_weights_are_welcome_once() -> None:
    """The initial weights are admitted like an update, and repeated like one."""
    script = Script("ab").begin()
    assert admission(script, "a", "run.0.1.a", "blob-0") is Admission.WELCOME
    script.seed()
    assert admission(script, "a", "run.0.1.a", "blob-0") is Admission.REPEATED


def test_chain_of_snapshots_and_deltas() -> None:
    """A snapshot every second version: the chain starts there, and deltas for stragglers stay."""
    script = seeded("ab", rounds=5, snapshot_every=2)
    chains = []
    for version in range(1, 6):
        script.store("a"), script.store("b")
        due = script.last_aggregation().snapshot
        script.aggregate(snapshot=f"whole-{version}" if due else "")
        assert script.run.model is not None
        chains.append([blob for _, blob, _ in script.run.model.ref.chain])
    assert chains == [
        ["blob-0", "delta-1"],
        ["whole-2", "delta-1", "delta-2"],
        ["whole-2", "delta-2", "delta-3"],
        ["whole-4", "delta-3", "delta-4"],
        ["whole-5", "delta-4", "delta-5"],
    ]


@given(every=st.integers(1, 7), versions=st.integers(1, 40))
def test_any_chain_leads_to_the_newest_version(every: int, versions: int) -> None:
    """From the snapshot, consecutive deltas lead to the newest version, whatever the interval."""
    model = Model(ModelRef(0, "m", "l", 0, ((0, "whole-0", 1),)), "", 1)
    for version in range(1, versions + 1):
        whole = (f"whole-{version}", 9) if version % every == 0 else ("", 0)
        model = next_model(model, version, f"m{version}", (f"delta-{version}", 1), whole, every)
        snapshot, *deltas = model.ref.chain
        assert snapshot[:2] == (model.ref.snapshot_version, f"whole-{version - version % every}")
        links = [link for link, _, _ in deltas if link > snapshot[0]]
        assert links == list(range(snapshot[0] + 1, version + 1))
        assert len(deltas) <= every + max(0, version - snapshot[0])


def test_blobs_needed() -> None:
    """The chain, stored updates and late ones are kept; everything else may go."""
    script = seeded()
    assert blobs_needed(script.run) == {"blob-0"}
    script.store("a"), script.store("b"), script.wait(10_000), script.store("c")
    assert blobs_needed(script.run) == {"blob-0", *(f"blob-run.1.1.{site}" for site in "abc")}
    script.aggregate()
    assert blobs_needed(script.run) == {"blob-0", "delta-1", "blob-run.1.1.c"}
    waiting = Script("ab").begin(attached="a")
    assert blobs_needed(waiting.run) == frozenset()
    assert violations(waiting.state) == ()
